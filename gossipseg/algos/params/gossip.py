"""Settings of GCML and its controls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from gossipseg.algos.params.common import FORBID, Exchange, Personal


@dataclass(frozen=True, slots=True)
class LocalParams:
    """No exchange: each site trains alone. The floor of every comparison."""

    __pydantic_config__: ClassVar[dict[str, Any]] = FORBID
    exchange: ClassVar[Exchange] = "none"
    personal: ClassVar[Personal] = "itself"
    name: Literal["local"] = "local"
    """The algorithm."""


@dataclass(frozen=True, slots=True)
class GossipAverageParams:
    """Average with each model that arrives, then train on: gossip without mutual learning."""

    __pydantic_config__: ClassVar[dict[str, Any]] = FORBID
    exchange: ClassVar[Exchange] = "gossip"
    personal: ClassVar[Personal] = "yes"
    name: Literal["gossip_average"] = "gossip_average"
    """The algorithm."""


@dataclass(frozen=True, slots=True)
class GcmlParams:
    """Gossip contrastive mutual learning (arXiv 2503.03883); symbols as in docs/design/equations.md §1."""

    __pydantic_config__: ClassVar[dict[str, Any]] = FORBID
    exchange: ClassVar[Exchange] = "gossip"
    personal: ClassVar[Personal] = "yes"
    name: Literal["gcml"] = "gcml"
    """The algorithm."""
    lambda_: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.05
    """Weight of the mutual term, reached `lambda_ramp_rounds` rounds after the first exchange."""
    lambda_ramp_rounds: Annotated[int, Field(ge=0)] = 5
    """Rounds over which the weight of the mutual term grows from 0."""
    mutual: Literal["shared", "both"] = "shared"
    """Who learns by the mutual term: the shared model from the personal one, or each from the other."""
    gamma: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.5
    """Weight of the push beside the pull."""
    delta_nats: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """Margin of the push, in nats of KL divergence."""
    contrast: Literal["logits", "features", "none"] = "logits"
    """What the pushing away goes by: the logits; the features of class regions (InfoNCE); none: there is no
    pushing away, as with gamma 0."""
    region: Literal["union", "label", "whole"] = "union"
    """Voxels of the mutual term: foreground of label or predictions, of the label alone, or all."""
