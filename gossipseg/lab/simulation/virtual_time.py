"""An event loop whose clock jumps to the next deadline when nothing is ready: hours pass in no time.

It uses no threads and no sockets. With all random draws seeded, every run is the same.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

from gossipseg.errors import LocalError

_T = TypeVar("_T")


class VirtualLoop(asyncio.SelectorEventLoop):
    """`time()` is virtual seconds since the loop was made."""

    def __init__(self) -> None:
        self._now_s = 0.0
        super().__init__(_Jumping(self))

    def time(self) -> float:
        return self._now_s

    def jump(self, seconds: float) -> None:
        """The jump to the next deadline: nothing happens before this has passed."""
        self._now_s += seconds


class _Jumping(selectors.SelectSelector):
    """Moves the clock where the loop would wait."""

    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready or (timeout is not None and timeout <= 0):
            return ready
        if timeout is None:
            raise LocalError("every site of the federation waits, and nothing is due: this is a bug.")
        self._loop.jump(timeout)
        return ready


def run(work: Coroutine[Any, Any, _T]) -> _T:
    """The outcome of `work`, on a fresh loop in virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(work)
