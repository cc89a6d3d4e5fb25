"""Replacing a file so that a crash at any instant leaves the old content or the new, never a mixture.

What belongs here: the one way in which files are replaced, and what its failures are called.
What must not: formats, names of particular files.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from gossipseg.errors import DiskFull, LocalError

_FULL = (errno.ENOSPC, errno.EDQUOT)
_SUFFIX = ".tmp"
_counter = itertools.count()


def atomic_write(path: Path, data: bytes | Callable[[BinaryIO], None], *, mode: int = 0o600) -> None:
    """Replace `path` by `data` (bytes, or a function that writes them to the file it is given).

    Temporary file in the same directory, fsync, rename, fsync of the directory. On any error the
    temporary file is removed and the old content stays valid.
    Raises DiskFull when it does not fit, LocalError for any other failure of the disk; what the
    function raises of its own accord passes through.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{next(_counter)}{_SUFFIX}")
    sink: _Sink | None = None
    try:
        sink = _Sink(temporary, mode)
        data(sink) if callable(data) else sink.write(data)
        sink.flush()
        os.fsync(sink.fileno())
        sink.close()
        os.replace(temporary, path)  # noqa: PTH105 (one name for the fault-injection tests)
    except BaseException as e:
        written, failure = (sink.abandon(), sink.failure) if sink else (0, None)
        with contextlib.suppress(OSError):  # the first error says more; sweep_temporaries removes it later
            temporary.unlink(missing_ok=True)
        needed = max(written, len(data) if isinstance(data, bytes) else 0)
        if failure is None and isinstance(e, OSError):
            failure = e
        if failure is None:
            raise
        if failure.errno in _FULL:
            raise disk_full(path, needed) from e
        raise disk_error(path, "written", failure) from e
    fsync_directory(path.parent)


def make_directory(directory: Path) -> None:
    """Make a directory that only this user may enter, with its parents. Raises LocalError."""
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as e:
        raise disk_error(directory, "made", e) from e


def fsync_directory(directory: Path) -> None:
    """Make renames in the directory durable. Raises LocalError."""
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as e:
        raise disk_error(directory, "made durable", e) from e


def sweep_temporaries(directory: Path) -> list[Path]:
    """Remove temporary files that a killed process left behind; those still being written stay.

    Call it once at start, by whoever holds the lock on the directory. Raises LocalError.
    """
    swept = []
    for temporary in sorted(directory.glob(f".*{_SUFFIX}")):
        try:
            with temporary.open("rb") as f:
                fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
                temporary.unlink()
        except (BlockingIOError, FileNotFoundError):
            continue  # its writer lives, or has just renamed it
        except OSError as e:
            raise disk_error(temporary, "removed", e) from e
        swept.append(temporary)
    return swept


def disk_full(path: Path, needed_bytes: int) -> DiskFull:
    """The error for a write that did not fit: the file, what was needed, what is free, the remedy."""
    try:
        stat = os.statvfs(path.parent)
        free = f"{stat.f_bavail * stat.f_frsize} bytes free"
    except OSError as e:
        free = f"free space unknown ({e.strerror})"
    return DiskFull(
        f"{path}: the disk is full: at least {needed_bytes} bytes needed, {free}. "
        f"What was there before is still valid. Free some space on the file system of {path.parent}."
    )


def disk_error(path: Path, done: str, e: OSError) -> LocalError:
    """The error for any other failure of the disk."""
    return LocalError(
        f"{path}: cannot be {done}: {e.strerror or e}. "
        f"Check that {path.parent} exists, is writable for this user, and that its disk is healthy."
    )


class _Sink(io.BufferedWriter):
    """A file under a lock that remembers why it could not be written.

    torch.save may turn an OSError of its file into a RuntimeError; the reason must not get lost.
    """

    def __init__(self, path: Path, mode: int) -> None:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        super().__init__(io.FileIO(fd, "wb"), 1 << 20)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)  # tells sweep_temporaries that its writer lives
        except OSError:
            self.raw.close()
            raise
        self.failure: OSError | None = None
        self._asked = 0

    def write(self, data: object, /) -> int:
        self._asked += memoryview(data).nbytes  # type: ignore[arg-type]
        try:
            return super().write(data)  # type: ignore[arg-type]
        except OSError as e:
            self.failure = self.failure or e
            raise

    def abandon(self) -> int:
        """Close without flushing what cannot be flushed; the bytes asked for so far."""
        self.raw.close()
        return self._asked
