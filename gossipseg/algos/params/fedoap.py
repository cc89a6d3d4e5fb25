"""Settings of FedOAP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from gossipseg.algos.params.common import Coordinated
from gossipseg.nets.params import WITH_PRIVATE_PARTS


@dataclass(frozen=True, slots=True)
class FedOapParams(Coordinated):
    """Organ-agnostic personalised segmentation (arXiv 2511.18847); symbols: docs/design/equations.md §4."""

    networks: ClassVar[tuple[str, ...] | None] = WITH_PRIVATE_PARTS
    name: Literal["fedoap"] = "fedoap"
    """The algorithm."""
    finetune_rounds: Annotated[int, Field(ge=0)] = 5
    """F: rounds of local fine-tuning with the perturbed boundary loss, at the end of the budget."""
    tau: Annotated[float, Field(gt=0, lt=1)] = 0.75
    """Voxels whose |p − y| is above this are perturbed."""
    sigma: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.1
    """Standard deviation of the noise on their logits."""
    lambda_: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Weight of the perturbed term; 0 is the control: plain fine-tuning."""
