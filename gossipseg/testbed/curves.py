"""What the sites of a run did over time: a curve for each, and the exchanges between them."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Exchange:
    """A model that went from one site to another. Times are seconds since the run began."""

    sender: str
    receiver: str
    arrived_s: float
    done_s: float | None = None
    outcome: str = "waiting"
    """waiting | merged | held | kept out | refused | reverted | dropped | broken"""


@dataclass(slots=True)
class Curve:
    """One site's rounds. Lists are parallel; times are seconds since the run began."""

    rounds: list[int] = field(default_factory=list)
    at_s: list[float] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    dice_val: list[float] = field(default_factory=list)
    visits: list[str] = field(default_factory=list)
    """Sender of the model that was accepted then, or ""."""
