"""Watches the data folder: a share that is not mounted, a file server that does not answer."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from pathlib import Path

from gossipseg.learn.data import presence

ANSWER_S = 10.0


class DataFolder:
    """Asks whether the data are there.

    A dead file server may block a look for hours. So one thread at a time looks, and shutdown does not wait
    for it.
    """

    def __init__(
        self, path: Path, *, look: Callable[[Path], str] = presence.away, answer_s: float = ANSWER_S
    ) -> None:
        self._path, self._look, self._answer_s = path, look, answer_s
        self._answer: asyncio.Future[str] | None = None

    async def obstacle(self) -> str:
        """Why no worker can be started now; "" if one can."""
        if self._answer is None:
            self._answer = self._ask()
        done, _ = await asyncio.wait({self._answer}, timeout=self._answer_s)
        if not done:
            return presence.waiting(f"data.path {self._path} does not answer")
        found, self._answer = self._answer.result(), None
        return presence.waiting(found) if found else ""

    def _ask(self) -> asyncio.Future[str]:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[str] = loop.create_future()

        def look() -> None:
            found = self._look(self._path)
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(answer.set_result, found)

        threading.Thread(target=look, name="data folder", daemon=True).start()
        return answer
