"""What settings of several algorithms have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

FORBID: dict[str, Any] = {"extra": "forbid"}

Exchange = Literal["none", "gossip", "rounds"]
"""How models travel: not at all, from site to site (core/gossip), or by a rotating coordinator
(core/rounds)."""


@dataclass(frozen=True, slots=True)
class Coordinated:
    """Of algorithms whose models meet at the coordinator of a round."""

    __pydantic_config__: ClassVar[dict[str, Any]] = FORBID
    exchange: ClassVar[Exchange] = "rounds"
    min_sites: ClassVar[int] = 1
    """With fewer listed sites the algorithm means nothing, and is refused at start."""
    networks: ClassVar[tuple[str, ...] | None] = None
    """Networks that have the parts it needs, its own one first; None: any."""
    every_rounds: Annotated[int, Field(ge=1)] = 1
    """Rounds that a site trains between two exchanges; 3 moves a third of the bytes."""
    finetune_rounds: Annotated[int, Field(ge=0)] = 0
    """The last so many rounds of a site's budget are trained alone, from the last common model."""
    weighting: Literal["cases", "uniform"] = "cases"
    """What a site weighs in the average: its training cases n_k, or one."""
