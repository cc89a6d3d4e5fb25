"""Notices when the state directory or the control socket is deleted under the running daemon.

What belongs here: a look at both, every few seconds, and what can be mended at once. What must not: what is
kept there (store), what the socket answers (service.py).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from gossipseg.errors import GossipsegError
from gossipseg.store import DirectoryLock

LOOK_EVERY_S = 2.0
SAID_S = 3600.0
"""A socket that was made again is told of for so long."""


class Socket(Protocol):
    """What is needed of the control server."""

    path: Path

    @property
    def intact(self) -> bool: ...

    async def renew(self) -> None: ...


class Places:
    """What is lost now: code → text. `clock` gives monotonic seconds; `note` writes to the event log."""

    def __init__(
        self, state_dir: Path, note: Callable[..., None], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.lost: dict[str, str] = {}
        self._dir, self._note, self._clock = state_dir, note, clock
        self._known = _identity(state_dir)
        self._lock: DirectoryLock | None = None
        self._until = 0.0

    async def run(self, socket: Socket) -> None:
        """Look for as long as the daemon runs."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            await self.look(socket)

    async def look(self, socket: Socket) -> None:
        """See whether both are still there. What is gone is told of, and a socket made again."""
        self._look_at_directory()
        if not socket.intact:
            await self._renew(socket)
        elif "control_socket_gone" in self.lost and self._clock() >= self._until:
            del self.lost["control_socket_gone"]

    def _look_at_directory(self) -> None:
        if self._known is None:
            self._known = _identity(self._dir)
        there = _identity(self._dir)
        if there == self._known or "state_dir_gone" in self.lost:
            return
        if there is not None:
            self._say(
                "state_dir_gone", f"the state directory {self._dir} is another folder than at the start"
            )
            return
        again = self._make_again()
        self._say(
            "state_dir_gone",
            f"the state directory {self._dir} was deleted under the running daemon: checkpoints, models and "
            f"logs are lost{again}",
        )

    def _make_again(self) -> str:
        """An empty one, locked, so that gossipctl can ask; its parent is never made."""
        try:
            self._dir.mkdir(mode=0o700)
            self._lock = DirectoryLock(self._dir / "daemon.lock")
            self._lock.acquire()
        except (OSError, GossipsegError) as e:
            return f", and it cannot be made again ({e})"
        return "; an empty one was made"

    async def _renew(self, socket: Socket) -> None:
        self._until = self._clock() + SAID_S
        at = time.strftime("%H:%M")
        try:
            await socket.renew()
        except (OSError, GossipsegError) as e:
            text = f"the control socket {socket.path} is gone and cannot be made again: {e}"
        else:
            text = f"the control socket {socket.path} was deleted under the daemon, and made again at {at}"
        self._say("control_socket_gone", text)

    def _say(self, code: str, text: str) -> None:
        if self.lost.get(code) != text:
            self._note(code, reason=text)
        self.lost = {**self.lost, code: text}


def _identity(path: Path) -> tuple[int, int] | None:
    """Which folder a path is; None where it is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
