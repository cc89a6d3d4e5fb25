"""Settings of FedAvg and its near relatives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from gossipseg.algos.params.common import Coordinated, Personal


@dataclass(frozen=True, slots=True)
class FedAvgParams(Coordinated):
    """Federated averaging (McMahan 2016): the baseline of everything else."""

    personal: ClassVar[Personal] = "yes"
    name: Literal["fedavg"] = "fedavg"
    """The algorithm."""


@dataclass(frozen=True, slots=True)
class FedProxParams(Coordinated):
    """FedAvg with a proximal term (Li 2018, arXiv 1812.06127)."""

    personal: ClassVar[Personal] = "yes"
    name: Literal["fedprox"] = "fedprox"
    """The algorithm."""
    mu: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.01
    """Weight of μ/2·‖W − W_global‖²."""


@dataclass(frozen=True, slots=True)
class FedAvgFinetuneParams(Coordinated):
    """FedAvg, then local training from the last global model."""

    personal: ClassVar[Personal] = "yes"
    name: Literal["fedavg_finetune"] = "fedavg_finetune"
    """The algorithm."""
    finetune_rounds: Annotated[int, Field(ge=0)] = 5


@dataclass(frozen=True, slots=True)
class FedBnParams(Coordinated):
    """FedAvg without the normalisation layers, which stay at the site (Li 2021, arXiv 2102.07623)."""

    personal: ClassVar[Personal] = "yes"
    name: Literal["fedbn"] = "fedbn"
    """The algorithm."""


@dataclass(frozen=True, slots=True)
class DittoParams(Coordinated):
    """FedAvg beside a personal model that is held near the common one (Li 2021, arXiv 2012.04221)."""

    personal: ClassVar[Personal] = "own"
    name: Literal["ditto"] = "ditto"
    """The algorithm."""
    lambda_: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.1
    """Weight of λ/2·‖V − W_global‖²: 0 is local training, large values follow the global model."""
