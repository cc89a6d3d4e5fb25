"""Settings of FedSCA."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from gossipseg.algos.params.common import Coordinated
from gossipseg.nets.params import WITH_ADAPTERS


@dataclass(frozen=True, slots=True)
class FedScaParams(Coordinated):
    """Federated tuning of adapters with similarity-guided aggregation (arXiv 2503.15390)."""

    min_sites: ClassVar[int] = 2
    combines_itself: ClassVar[bool] = True
    networks: ClassVar[tuple[str, ...] | None] = WITH_ADAPTERS
    name: Literal["fedsca"] = "fedsca"
    """The algorithm."""
    aggregation: Literal["similarity", "simplex", "fedavg"] = "similarity"
    """How the coordinator combines adapters."""
    tau: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.1
    """Temperature of the similarities."""
    alpha: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """Under `simplex`, weights are data share + s_i / (2·alpha), projected on the simplex."""
    warmup_rounds: Annotated[int, Field(ge=0)] = 1
    """Rounds of plain averaging at the beginning."""
