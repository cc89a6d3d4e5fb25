"""Records on their way round, riding on pings and answers (SWIM §4.1: piggybacked dissemination).

A record that is no longer current is dropped unsent.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from gossipseg.core.types import Record

RETRANSMIT_FACTOR = 4


def retransmit_limit(live: int) -> int:
    """How often one site passes a record on: 4·log10(N+1), rounded up."""
    return RETRANSMIT_FACTOR * math.ceil(math.log10(live + 1))


class Broadcasts:
    """A queue that prefers what was sent least often, and of that the newest."""

    __slots__ = ("_is_current", "_sent", "size")

    def __init__(self, is_current: Callable[[Record], bool]) -> None:
        self._sent: list[list[Record]] = [[]]
        """_sent[k]: records sent k times so far; the newest last."""
        self._is_current = is_current
        self.size = 0

    def add(self, record: Record) -> None:
        self._sent[0].append(record)
        self.size += 1

    def take(self, room: int, limit: int) -> tuple[Record, ...]:
        """Up to `room` records for one message; each is passed on `limit` times at most."""
        if not self.size:
            return ()
        while len(self._sent) <= limit:
            self._sent.append([])
        taken: list[Record] = []
        moved: list[tuple[int, Record]] = []
        for k, tier in enumerate(self._sent):
            while tier and len(taken) < room:
                record = tier.pop()
                if not self._is_current(record):
                    self.size -= 1
                    continue
                taken.append(record)
                moved.append((k + 1, record))
            if len(taken) >= room:
                break
        for k, record in moved:
            if k < limit:
                self._sent[k].append(record)
            else:
                self.size -= 1
        return tuple(taken)
