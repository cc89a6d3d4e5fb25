"""How long the disk takes to make something durable.

Some disks take seconds: a dying one, a full RAID cache, a network share. Messages that depend on a write then
wait; the event loop continues.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

SLOW_S = 2.0
SHOWN_S = 600.0
"""Seconds after the last slow write for which the warning stays."""


class DiskWatch:
    """Times writes. `folder` is named in the warning; `clock` gives monotonic seconds."""

    def __init__(self, folder: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder, self._clock = folder, clock
        self._under_way: dict[int, tuple[str, float]] = {}
        self._numbers = itertools.count()
        self._slow: tuple[str, float, float] | None = None
        """The purpose of the last slow write, its duration, and when it ended."""

    async def beside(self, what: str, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do blocking work in a thread; returns or raises what the work does."""

        def timed() -> T:
            with self.timing(what):
                return work(*args, **kwargs)

        return await asyncio.to_thread(timed)

    @contextmanager
    def timing(self, what: str) -> Iterator[None]:
        """Time the work inside the block."""
        number, began = next(self._numbers), self._clock()
        self._under_way[number] = (what, began)
        try:
            yield
        finally:
            del self._under_way[number]
            now = self._clock()
            if now - began > SLOW_S:
                self._slow = (what, now - began, now)

    def last_slow_s(self) -> float:
        """Duration of the last slow write while its warning stays; else 0."""
        slow, now = self._slow, self._clock()
        return slow[1] if slow is not None and now - slow[2] < SHOWN_S else 0.0

    def problem(self) -> str:
        """What is wrong with the disk; "" if nothing is."""
        now = self._clock()
        for what, began in list(self._under_way.values()):
            if now - began > SLOW_S:
                return self._text(f"{what} is being written for {now - began:.0f} s")
        slow = self._slow
        if slow is not None and now - slow[2] < SHOWN_S:
            return self._text(f"to write {slow[0]} took {slow[1]:.1f} s")
        return ""

    def _text(self, what: str) -> str:
        return f"the disk is slow: {what}; look at the disk of {self._folder}, and at what else uses it"
