"""Replacing a file so that a crash at any instant leaves the old content or the new, never a mixture."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import itertools
import logging
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from gossipseg.errors import DiskFull, LocalError

log = logging.getLogger(__name__)
_FULL = (errno.ENOSPC, errno.EDQUOT)
_SUFFIX = ".tmp"
_counter = itertools.count()
_ACL = "system.posix_acl_access"


def atomic_write(path: Path, data: bytes | Callable[[BinaryIO], None], *, mode: int = 0o600) -> None:
    """Replace `path` by `data` (bytes, or a function that writes them to the file it is given).

    An existing file keeps its mode, owner and group, whoever replaces it; `mode` (less the umask) is for a
    new one. The steps are: temporary file in the same directory, fsync, rename, fsync of the directory. On
    any error the temporary file is removed and the old content stays valid. Raises DiskFull when it does not
    fit, LocalError for any other failure of the disk. An error that the function raises itself passes
    through.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{next(_counter)}{_SUFFIX}")
    sink: _Sink | None = None
    try:
        sink = _Sink(temporary, mode)
        _keep_access(path, sink.fileno())
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


def _keep_access(path: Path, fd: int) -> None:
    """Give the replacement of `path` the mode, owner and group of the present file.

    Limits are this user's rights: only root may change owners. Access lists and extended attributes are
    copied where the file system allows it.
    """
    try:
        old = path.stat()
    except OSError:  # a new file, or one that the rename will say more of
        return
    if not stat.S_ISREG(old.st_mode):
        return
    _keep_owner(path, fd, old)
    with contextlib.suppress(OSError):  # a file system that has no modes of its own
        os.fchmod(fd, stat.S_IMODE(old.st_mode) & 0o777)
    _keep_attributes(path, fd)


def _keep_owner(path: Path, fd: int, old: os.stat_result) -> None:
    made = os.fstat(fd)
    for uid, gid in (
        (-1, old.st_gid),
        (old.st_uid, -1),
    ):  # one's own groups may be given without being root
        if (uid, gid) not in ((made.st_uid, -1), (-1, made.st_gid)):
            with contextlib.suppress(OSError):
                os.fchown(fd, uid, gid)
    kept = os.fstat(fd)
    if (kept.st_uid, kept.st_gid) != (old.st_uid, old.st_gid):
        log.warning(
            "%s: its owner becomes %d:%d, it was %d:%d: only root may keep it. Check that those who read it "
            "still can.",
            *(path, kept.st_uid, kept.st_gid, old.st_uid, old.st_gid),
        )


def _keep_attributes(path: Path, fd: int) -> None:
    """Copy extended attributes, above all the access list. A folder's default list would let others in."""
    try:
        names = os.listxattr(path)
    except OSError:
        return
    if _ACL not in names:
        with contextlib.suppress(OSError):
            os.removexattr(fd, _ACL)
    for name in names:
        if name == _ACL or name.startswith("user."):
            with contextlib.suppress(OSError):
                os.setxattr(fd, name, os.getxattr(path, name))


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
    """Remove temporary files that a killed process left; those still being written stay.

    The holder of the directory's lock calls it once at start. Raises LocalError.
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
        """Close without flushing what cannot be flushed; returns the bytes asked for so far."""
        self.raw.close()
        return self._asked
