"""At which rounds' ends an exchange is due. Values and sums only; docs/design/equations.md §7.

Rounds are the federation's, from 1: all sites find the same ends.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

TOLERANCE = 1e-9
"""What a sum of learning rates may lack of its share: the sum is rounded."""


@dataclass(frozen=True, slots=True)
class ExchangeTimes:
    """Every K rounds; or each time that the learning rate, summed since the last exchange, reaches a share of
    the whole."""

    every_rounds: int = 1
    share: float | None = None
    """None: `every_rounds` says when."""
    summed: tuple[float, ...] = ()
    """Share of the whole that is summed up by the end of round 0, 1, 2 …"""
    ends: tuple[int, ...] = ()
    """The rounds at whose ends an exchange is due, where `share` says when."""

    @classmethod
    def by_rate(cls, share: float, rates: Sequence[float]) -> ExchangeTimes:
        """By the summed learning rate of each round. Rounds of fine-tuning, after them, are no part of it."""
        whole = sum(rates)
        summed = (0.0, *(done / whole for done in accumulate(rates)))
        ends, last = [], 0.0
        for round, done in enumerate(summed):
            if done - last >= share - TOLERANCE:
                ends.append(round)
                last = done
        return cls(share=share, summed=summed, ends=tuple(ends))

    @property
    def each_round(self) -> bool:
        """Whether an exchange is due at each round's end."""
        return self.share is None and self.every_rounds == 1

    def is_due(self, round: int, last: int) -> bool:
        """Whether an exchange is due at the end of a round, after one at the end of round `last`."""
        if self.share is None:
            return round - last >= self.every_rounds
        return self._summed(round) - self._summed(last) >= self.share - TOLERANCE

    def is_end(self, round: int) -> bool:
        """Whether an exchange is due at the end of a round where each is made when it is due."""
        return self.until(round) > self.until(round - 1)

    def until(self, round: int) -> int:
        """The number of exchanges by the end of a round, where each is made when it is due."""
        if self.share is None:
            return max(0, round) // self.every_rounds
        return bisect_right(self.ends, round)

    def end_of(self, exchange: int) -> int:
        """The round at whose end an exchange is: 0 before the first, and after the last the last round."""
        if self.share is None:
            return exchange * self.every_rounds
        if exchange > len(self.ends):
            return len(self.summed) - 1
        return self.ends[exchange - 1] if exchange > 0 else 0

    def length(self, exchange: int) -> int:
        """Rounds that are trained before an exchange, since the one before."""
        return self.end_of(exchange) - self.end_of(exchange - 1)

    @property
    def longest(self) -> int:
        """The most rounds between two exchanges."""
        if self.share is None:
            return self.every_rounds
        return max((self.length(n) for n in range(1, len(self.ends) + 1)), default=1)

    def _summed(self, round: int) -> float:
        return self.summed[min(max(round, 0), len(self.summed) - 1)]
