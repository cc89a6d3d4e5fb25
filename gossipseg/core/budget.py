"""How many rounds a site trains: its own budget, the federation's, and how far ahead the federation is.

Values and sums only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from gossipseg.core.exchange_times import ExchangeTimes


@dataclass(slots=True)
class Budget:
    """The budget, shared by all parts of a node. `ahead` changes when the worker reports and when the
    schedule orders."""

    own: int | None = None
    """Rounds of this site in all, in its own count; None: no limit of its own."""
    federation: int | None = None
    """The round at whose end every site has finished; None: no such round."""
    ahead: int = 0
    """Rounds by which the federation is ahead of this site's own count. The number is negative where the site
    has trained rounds alone, which are not the federation's."""

    @property
    def last(self) -> float:
        """The own round at whose end the site has finished, by the earlier of the two budgets; infinite:
        never."""
        own = math.inf if self.own is None else self.own
        return own if self.federation is None else min(own, self.federation - self.ahead)

    def last_common(self, times: ExchangeTimes, finetune_rounds: int) -> float:
        """The coordinator's round of the last global model; infinite: there is no end."""
        if self.federation is None:
            return math.inf
        return times.until(self.federation - finetune_rounds)

    def begin_at(self, position: int, round: int) -> None:
        """Declare that own round `round` is round `position` of the federation, or its last one if that is
        over."""
        if self.federation is not None:
            position = min(position, self.federation)
        self.ahead = position - round
