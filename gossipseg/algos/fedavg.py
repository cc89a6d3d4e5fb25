"""`fedavg`: federated averaging (McMahan 2016, arXiv 1602.05629).

Standing: textbook. Each site k trains E steps from the global model and sends W_k; then

    W ← Σ n_k W_k / Σ n_k      over the updates received                                                  (1)
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal

from gossipseg.algos.average import running_average
from gossipseg.algos.base import Algorithm, Combined, Update
from gossipseg.algos.robust import Robust, combine


class FedAvg(Algorithm):
    """Equation (1)."""

    name = "fedavg"
    robust = Robust()
    """How updates are combined instead, where the settings ask for it: no equation (1) then."""

    def __init__(
        self, weighting: Literal["cases", "uniform"] = "cases", private_names: Collection[str] = ()
    ) -> None:
        super().__init__(private_names)
        self.weighting = weighting

    def aggregate(self, updates: Sequence[Update], round: int) -> Combined:
        if self.robust.rule != "none":
            return combine(updates, self.robust)
        return Combined(running_average(updates, weights_of(updates, self.weighting)))


def weights_of(updates: Sequence[Update], weighting: Literal["cases", "uniform"]) -> list[float]:
    """n_k, or 1 for each; 1 for each also where no site has said how many cases it has."""
    cases = [float(update.cases) for update in updates]
    return cases if weighting == "cases" and sum(cases) > 0 else [1.0] * len(updates)
