"""A lock that a process holds for its whole life, and that ends with it (kill -9 included)."""

from __future__ import annotations

import fcntl
import os
import weakref
from pathlib import Path
from types import TracebackType
from typing import Self

from gossipseg.errors import AlreadyRunning
from gossipseg.store.atomic import disk_error

_held: weakref.WeakSet[DirectoryLock] = weakref.WeakSet()


class DirectoryLock:
    """An exclusive flock on `path`; the file holds the pid of its holder and is never removed.

    (Removing it would let two processes lock two files of one name.)
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd: int | None = None

    def acquire(self) -> None:
        """Take the lock, or raise AlreadyRunning (with the holder's pid) at once. LocalError: no access."""
        if self._fd is not None:
            raise AlreadyRunning(f"{self.path}: this process holds this lock already.")
        try:
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as e:
            raise disk_error(self.path, "locked", e) from e
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        except BlockingIOError:
            holder = os.pread(fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(fd)
            raise AlreadyRunning(
                f"{self.path}: process {holder} holds this lock: {self.path.parent} is in use. "
                f"Stop that process first, or give this one another state_dir."
            ) from None
        except OSError as e:
            os.close(fd)
            raise disk_error(self.path, "locked", e) from e
        self._fd = fd
        _held.add(self)

    def release(self) -> None:
        """Release the lock; nothing happens if it is not held."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
            _held.discard(self)

    @property
    def held(self) -> bool:
        return self._fd is not None

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def holder_of(path: Path) -> str | None:
    """The pid of the process that holds the lock on `path`; None where no process does, or it is unknown."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)  # given back at once, with the file
    except BlockingIOError:
        return os.pread(fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
    except OSError:
        return None
    finally:
        os.close(fd)
    return None


def _release_in_fork() -> None:
    # A forked child (a data loader) shares the open file: it would hold the lock after its parent's death.
    for lock in list(_held):
        lock.release()


os.register_at_fork(after_in_child=_release_in_fork)
