"""How far an attempt may be ahead of what this site has promised: no further than time can have brought it.

To refuse a promise is always safe; a number that is out of all reach would leave no higher ones, and let
all sites rest for long between attempts.
"""

from __future__ import annotations

from dataclasses import dataclass

FREE_TURNS = 4
"""So many times round the list are always within reach, or one far step would shut out all that follow."""
HASTE = 2.0
"""Each site begins one attempt within its patience and passes over the others at most: twice that is allowed,
for restarts."""
REMEMBERED_S = 30 * 86400.0
"""Sites that were apart, or down, may have missed the attempts of so long a time."""
ABSURD = 16.0
"""So many times further than that no honest site ever comes."""
FARTHEST = 1 << 30


@dataclass(slots=True)
class Reach:
    """What is left of it: it grows with time, and far steps take from it."""

    patience_s: float
    _left: float = float("inf")
    _at: float = 0.0

    def objection(self, step: int, sites: int, now: float) -> str:
        """Why an attempt so far above the promised one is not listened to; "" if it is."""
        self._grow(sites, now)
        if step <= max(FREE_TURNS * sites, self._left):
            return ""
        absurd = step > min(ABSURD * self._rate(sites) * REMEMBERED_S, FARTHEST)
        return "absurd_attempt" if absurd else "attempt_too_far"

    def take(self, step: int, sites: int, now: float) -> None:
        """It was promised."""
        self._grow(sites, now)
        if step > FREE_TURNS * sites:
            self._left -= min(step, self._left)

    def _grow(self, sites: int, now: float) -> None:
        rate = self._rate(sites)
        self._left = min(rate * REMEMBERED_S, self._left + rate * max(0.0, now - self._at))
        self._at = now

    def _rate(self, sites: int) -> float:
        return HASTE * (sites + 1) ** 2 / self.patience_s
