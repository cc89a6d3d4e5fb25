"""Models on disk by content: `<blake3>.safetensors`, and those still arriving in `partial/`."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from blake3 import blake3

from gossipseg.errors import LocalError
from gossipseg.store.atomic import (
    _FULL,
    atomic_write,
    disk_error,
    disk_full,
    fsync_directory,
    make_directory,
    sweep_temporaries,
)

_BLOCK_BYTES = 1 << 20
_HASH = re.compile(r"[0-9a-f]{64}")
_PEER = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_SUFFIX = ".safetensors"
_Hashes = list[str]  # inside ModelStore, `list` is its method
_Partials = list[tuple[str, str]]


class BrokenModel(ValueError):
    """A model that arrived is not what was promised. `reason` is a stable code."""

    reason = "broken"


class HashMismatch(BrokenModel):
    """The bytes have another hash; the partial file is gone."""

    reason = "hash_mismatch"


class OversizeModel(BrokenModel):
    """More bytes came than were declared; the partial file is gone."""

    reason = "too_large"


class IncompleteModel(BrokenModel):
    """The stream ended early; the partial file stays, for a resume."""

    reason = "incomplete"


class PartialBusy(LocalError):
    """Another stream of the same model from the same peer is being written."""


@dataclass(frozen=True, slots=True)
class StoredModel:
    hash: str
    size_bytes: int
    mtime: float
    """Wall time in seconds at which the model came into the store."""


def hash_file(path: Path) -> tuple[str, int]:
    """blake3 (64 hex digits) and size in bytes, read in blocks of 1 MiB. Raises OSError."""
    hasher, size = blake3(), 0
    with path.open("rb", buffering=0) as f:
        while block := f.read(_BLOCK_BYTES):
            hasher.update(block)
            size += len(block)
    return hasher.hexdigest(), size


class ModelStore:
    """The directory `models/`. One daemon writes; anyone may read."""

    def __init__(self, root: Path) -> None:
        """Make the directories. Raises LocalError."""
        self.root, self._partials = root, root / "partial"
        make_directory(self._partials)

    def path(self, hash: str) -> Path:
        """Where the model with this hash is, or would be. Raises ValueError if it is no hash."""
        return self.root / (_checked(_HASH, hash, "hash") + _SUFFIX)

    def has(self, hash: str) -> bool:
        return self.path(hash).is_file()

    def adopt(self, file: Path) -> tuple[str, int]:
        """Move a finished file into the store; returns its hash and size. A second copy replaces the first.

        Durable on return. Raises DiskFull, LocalError; then the file is whole, where it was or in the store.
        """
        try:
            hash, size = hash_file(file)
            with file.open("rb") as f:
                os.fsync(f.fileno())
            os.utime(file)  # the store's age counts from now
            target = self.path(hash)
            if file.stat().st_dev == self.root.stat().st_dev:
                os.replace(file, target)  # noqa: PTH105
                fsync_directory(self.root)
            else:
                with file.open("rb") as f:
                    atomic_write(target, lambda out: shutil.copyfileobj(f, out, _BLOCK_BYTES))
                file.unlink()
        except OSError as e:
            raise disk_error(file, "taken into the store", e) from e
        return hash, size

    def partial(self, hash: str, peer: str, *, size_bytes: int | None = None) -> PartialModel:
        """Open (or continue) a model that arrives from a peer; reads the present part to hash it.

        `size_bytes` is the declared size; more is refused. Raises PartialBusy, LocalError, ValueError.
        """
        name = f"{_checked(_HASH, hash, 'hash')}.{_checked(_PEER, peer, 'peer')}"
        return PartialModel(self._partials / name, self.path(hash), size_bytes)

    def partials(self) -> _Partials:
        """(hash, peer) of every model that has begun to arrive and is not whole."""
        names = (p.name.partition(".") for p in self._partials.iterdir())
        return [(hash, peer) for hash, _, peer in names if _HASH.fullmatch(hash)]

    def list(self) -> list[StoredModel]:
        """The models in the store, newest first."""
        named = (p for p in self.root.glob(f"*{_SUFFIX}") if _HASH.fullmatch(p.stem))
        found = (StoredModel(p.stem, s.st_size, s.st_mtime) for p in named if (s := _stat(p)) is not None)
        return sorted(found, key=lambda m: (-m.mtime, m.hash))

    def remove(self, hash: str) -> bool:
        """Remove a model; False if it was not there. Raises LocalError."""
        path = self.path(hash)
        try:
            path.unlink()
        except FileNotFoundError:
            return False
        except OSError as e:
            raise disk_error(path, "removed", e) from e
        return True

    def collect(
        self,
        keep: Collection[str],
        *,
        now_s: float,
        older_than_s: float = 0.0,
        partials_older_than_s: float = 3600.0,
    ) -> _Hashes:
        """Garbage collection; returns the hashes of the removed models. Raises LocalError.

        It removes models not in `keep` and at least `older_than_s` old at wall time `now_s`. It removes
        partial files untouched for `partials_older_than_s` and not open, and a killed process's leftovers.
        """
        removed = [
            m.hash
            for m in self.list()
            if m.hash not in keep and now_s - m.mtime >= older_than_s and self.remove(m.hash)
        ]
        for path in self._partials.iterdir():
            stat = _stat(path)
            if stat is not None and now_s - stat.st_mtime >= partials_older_than_s:
                _remove_unlocked(path)
        sweep_temporaries(self.root)
        return removed

    def free_bytes(self) -> int:
        """Bytes that this user may still write on the store's file system. Raises LocalError."""
        try:
            stat = os.statvfs(self.root)
        except OSError as e:
            raise disk_error(self.root, "measured", e) from e
        return stat.f_bavail * stat.f_frsize


class PartialModel:
    """An incoming model: appended to, hashed as it comes, renamed when whole. One thread at a time."""

    def __init__(self, path: Path, target: Path, size_bytes: int | None) -> None:
        self.path, self._target, self._limit = path, target, size_bytes
        self._hasher, self._offset = blake3(), 0
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as e:
            raise disk_error(path, "opened", e) from e
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            while block := os.pread(self._fd, _BLOCK_BYTES, self._offset):
                self._hasher.update(block)
                self._offset += len(block)
        except BlockingIOError:
            self.close()
            raise PartialBusy(f"{path}: another stream of this model is being written.") from None
        except OSError as e:
            self.close()
            raise disk_error(path, "read", e) from e
        if size_bytes is not None and self._offset > size_bytes:  # another size was declared then
            self._restart()

    @property
    def offset(self) -> int:
        """Bytes received; the next chunk begins there."""
        return self._offset

    def write(self, chunk: bytes) -> None:
        """Append a chunk. Raises DiskFull or LocalError (the earlier bytes stay), OversizeModel."""
        if self._limit is not None and self._offset + len(chunk) > self._limit:
            self.discard()
            raise OversizeModel(f"{self.path.name}: more bytes than the {self._limit} declared")
        view, done = memoryview(chunk), 0
        try:
            while done < len(view):
                done += os.pwrite(self._fd, view[done:], self._offset + done)
        except OSError as e:
            # A part of the chunk may stay: the next write covers it, and finish() cuts.
            if e.errno in _FULL:
                raise disk_full(self.path, (self._limit or self._offset + len(chunk)) - self._offset) from e
            raise disk_error(self.path, "written", e) from e
        self._hasher.update(view)
        self._offset += len(view)

    def finish(self, expected_hash: str, size: int) -> Path:
        """Check hash and size, make it durable, move it into the store, close; returns its path there.

        Raises IncompleteModel (kept for a resume), OversizeModel, HashMismatch (both gone), LocalError.
        """
        if self._offset < size:
            self.close()
            raise IncompleteModel(f"{self.path.name}: {self._offset} of {size} bytes came")
        if self._offset > size:
            self.discard()
            raise OversizeModel(f"{self.path.name}: {self._offset} bytes came, {size} were declared")
        seen = self._hasher.hexdigest()
        if seen != expected_hash or self._target.stem != expected_hash:
            self.discard()
            raise HashMismatch(f"{self.path.name}: its bytes hash to {seen}, promised was {expected_hash}")
        try:
            os.ftruncate(self._fd, size)
            os.fsync(self._fd)
            os.replace(self.path, self._target)  # noqa: PTH105
        except OSError as e:
            raise disk_error(self.path, "moved into the store", e) from e
        finally:
            self.close()
        fsync_directory(self._target.parent)
        return self._target

    def close(self) -> None:
        """Stop here and keep the received part. May be called more than once."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def discard(self) -> None:
        """Remove the received part."""
        self.path.unlink(missing_ok=True)
        self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _restart(self) -> None:
        os.ftruncate(self._fd, 0)
        self._hasher, self._offset = blake3(), 0


def _checked(pattern: re.Pattern[str], value: str, what: str) -> str:
    # Both become file names and come from the network.
    if not pattern.fullmatch(value):
        raise ValueError(f"{value[:80]!r} is not a valid {what}")
    return value


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:
        return None  # removed meanwhile


def _remove_unlocked(path: Path) -> None:
    try:
        with path.open("rb") as f:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
    except (BlockingIOError, FileNotFoundError):
        return  # it is being written, or has just become whole
    except OSError as e:
        raise disk_error(path, "removed", e) from e
