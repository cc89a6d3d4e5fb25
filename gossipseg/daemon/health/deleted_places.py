"""Notices when the state directory or the control socket is deleted under the running daemon."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from gossipseg.errors import GossipsegError
from gossipseg.store import DirectoryLock

LOOK_EVERY_S = 2.0
SAID_S = 3600.0
"""Seconds for which a recreated socket is reported."""


_Identity = tuple[int, int]


class Socket(Protocol):
    """The parts of the control server that are needed."""

    path: Path

    @property
    def intact(self) -> bool: ...

    async def renew(self) -> None: ...


class Places:
    """The deleted places: code → text. `clock` gives monotonic seconds; `note` writes to the event log."""

    def __init__(
        self, state_dir: Path, note: Callable[..., None], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.lost: dict[str, str] = {}
        self._dir, self._note, self._clock = state_dir, note, clock
        self._known: _Identity | None = None
        self._parent: _Identity | None = None
        self._held: int | None = None
        """Keeps the folder's inode number from being reused once the folder is deleted."""
        self._remember()
        self._made: _Identity | None = None
        """The folder that was made in place of a deleted one."""
        self._lock: DirectoryLock | None = None
        self._until = 0.0

    async def run(self, socket: Socket) -> None:
        """Check for as long as the daemon runs."""
        try:
            while True:
                await asyncio.sleep(LOOK_EVERY_S)
                await self.look(socket)
        finally:
            if self._held is not None:
                os.close(self._held)
                self._held = None

    async def look(self, socket: Socket) -> None:
        """Check that both still exist. What is gone is reported; a socket is recreated."""
        self._look_at_directory()
        if not socket.intact:
            await self._renew(socket)
        elif "control_socket_gone" in self.lost and self._clock() >= self._until:
            del self.lost["control_socket_gone"]

    def _look_at_directory(self) -> None:
        """Check the directory. It may return, too: a disk that was away, a folder that was put back."""
        try:
            there = _identity(self._dir)
        except OSError as e:  # a file server that is away: nothing is deleted
            self._say(
                "state_dir_gone", f"the state directory {self._dir} cannot be reached: {e.strerror or e}"
            )
            return
        if self._known is None:
            self._remember()
        if there == self._known:
            if self.lost.pop("state_dir_gone", None):
                self._note("state_dir_back")
        elif there is None or (there != self._made and self._deleted()):  # a worker may have made it anew
            again = self._make_again()
            self._say(
                "state_dir_gone",
                f"the state directory {self._dir} was deleted under the running daemon: checkpoints, models "
                f"and logs are lost{again}",
            )
        elif there != self._made:
            self._say(
                "state_dir_gone", f"the state directory {self._dir} is another folder than at the start"
            )

    def _remember(self) -> None:
        with contextlib.suppress(OSError):
            self._held = os.open(self._dir, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            self._known, self._parent = _identity(self._dir), _identity(self._dir.parent)

    def _deleted(self) -> bool:
        """Whether the directory of the start is linked nowhere. False where the file system hides it."""
        return self._held is not None and os.fstat(self._held).st_nlink == 0

    def _make_again(self) -> str:
        """Recreate an empty, locked directory, so that gossipctl can ask.

        Its parent is never made. A changed parent is left alone: it may be a mount point whose disk is away.
        """
        try:
            if _identity(self._dir.parent) != self._parent:
                return f", and {self._dir.parent} is another folder than at the start, or none"
            made = not self._dir.exists()
            self._dir.mkdir(mode=0o700, exist_ok=True)
            self._lock = DirectoryLock(self._dir / "daemon.lock")
            self._lock.acquire()
            self._made = _identity(self._dir)
        except (OSError, GossipsegError) as e:
            return f", and it cannot be made again ({e})"
        return "; an empty one was made" if made else "; the folder that is there now was made since"

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


def _identity(path: Path) -> _Identity | None:
    """Which folder a path refers to; None where there is none. Raises OSError where that cannot be
    determined."""
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_dev, found.st_ino
