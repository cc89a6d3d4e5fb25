"""`fedavg`: federated averaging (McMahan 2016, arXiv 1602.05629), and its relatives of one line each.

Standing: textbook. Each site k trains E steps from the common model and sends W_k; then

    W ← Σ n_k W_k / Σ n_k      over the updates received                                                  (1)

    fedprox          L_k = L_seg + μ/2·‖W_k − W‖²                 (Li 2018, arXiv 1812.06127)              (2)
    fedavg_finetune  (1), then the last rounds alone from the last W: nothing but a schedule
    fedbn            (1) without the normalisation layers          (Li 2021, arXiv 2102.07623)
    ditto            (1), and beside it a personal V_k that is deployed (Li 2021, arXiv 2012.04221):
                     L(V_k) = L_seg + λ/2·‖V_k − W‖²                                                      (3)

In (2) and (3) W is the last common model, before the first one arrives the shared initial model W_0; sums
run over the parameters that travel.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from gossipseg.algos.average import running_average
from gossipseg.algos.base import Algorithm, Combined, Losses, Outputs, Role, StepContext, Update, Weights
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


class FedAvgFinetune(FedAvg):
    """FedAvg whose last rounds are trained alone (a matter of its schedule)."""

    name = "fedavg_finetune"


class FedBn(FedAvg):
    """FedAvg with private normalisation layers (given as private names)."""

    name = "fedbn"


class FedProx(FedAvg):
    """Equation (2)."""

    name = "fedprox"
    needs_anchor = True

    def __init__(
        self,
        mu: float,
        weighting: Literal["cases", "uniform"] = "cases",
        private_names: Collection[str] = (),
    ) -> None:
        super().__init__(weighting, private_names)
        self.mu = mu

    def losses(self, outputs: Mapping[Role, Outputs], target: Tensor, context: StepContext) -> Losses:
        seg = context.segmentation_loss(outputs["local"], target)
        prox = squared_distance(context.parameters["local"], context.anchor)
        return Losses({"local": seg + self.mu / 2 * prox}, {"seg": seg.detach(), "distance2": prox.detach()})


class Ditto(FedAvg):
    """Equation (3). The model that travels trains as in FedAvg, on the same batches."""

    name = "ditto"
    needs_anchor = True
    has_personal = True

    def __init__(self, lambda_: float, weighting: Literal["cases", "uniform"] = "cases") -> None:
        super().__init__(weighting)
        self.lambda_ = lambda_

    def losses(self, outputs: Mapping[Role, Outputs], target: Tensor, context: StepContext) -> Losses:
        seg = context.segmentation_loss(outputs["local"], target)
        own = context.segmentation_loss(outputs["personal"], target)
        prox = squared_distance(context.parameters["personal"], context.anchor)
        return Losses(
            {"local": seg, "personal": own + self.lambda_ / 2 * prox},
            {"seg": seg.detach(), "personal_seg": own.detach(), "distance2": prox.detach()},
        )


def weights_of(updates: Sequence[Update], weighting: Literal["cases", "uniform"]) -> list[float]:
    """n_k, or 1 for each; 1 for each also where no site has said how many cases it has."""
    cases = [float(update.cases) for update in updates]
    return cases if weighting == "cases" and sum(cases) > 0 else [1.0] * len(updates)


def squared_distance(parameters: Weights, anchor: Weights) -> Tensor:
    """Σ (W − W_anchor)² over the parameters that the anchor names; 0 where there is none."""
    terms = [
        (parameter.float() - anchor[name].float()).square().sum()
        for name, parameter in parameters.items()
        if name in anchor
    ]
    return torch.stack(terms).sum() if terms else torch.zeros(())
