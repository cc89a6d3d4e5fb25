"""The audit log on disk: JSON lines, each with the SHA-256 of the line before it, in numbered files.

`audit.jsonl` is written to; `audit-<first seq>.jsonl` are full.

A line is `{"seq":n,"t":wall seconds,"prev":hash of the line before,"event":name,…}`. `prev` covers the bytes
of that line without its newline, so that `sha256sum` can check it, too. The first line of a file continues
the chain of the file before it. Two lines concern the log itself. `audit_torn` closes a line that a crash cut
off. `audit_dropped` names an old file that was removed to bound the disk.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from gossipseg.errors import LocalError
from gossipseg.store.atomic import _FULL, disk_error, disk_full, fsync_directory, make_directory
from gossipseg.store.eventlog import _plain

AUDIT_FILE = "audit.jsonl"
GENESIS = "0" * 64
"""`prev` of the very first line."""
MAX_FILE_BYTES = 8 << 20
MAX_FILES = 64
TORN, DROPPED = "audit_torn", "audit_dropped"
_FULL_FILE = re.compile(r"audit-(\d+)\.jsonl")


def line_hash(line: bytes) -> str:
    """SHA-256, 64 hex digits, of a line without its newline."""
    return hashlib.sha256(line).hexdigest()


@dataclass(frozen=True, slots=True)
class _Head:
    """The newest line of the chain."""

    seq: int = 0
    hash: str = GENESIS


class AuditLog:
    """Appends to the chain in `directory`. One writer at a time. All calls block."""

    def __init__(
        self, directory: Path, *, max_file_bytes: int = MAX_FILE_BYTES, max_files: int = MAX_FILES
    ) -> None:
        """Find the end of the chain. `max_files` bounds the files, the one written to among them."""
        self.directory, self.path = directory, directory / AUDIT_FILE
        self._max_file_bytes, self._max_files = max_file_bytes, max(2, max_files)
        self._fd, self._size = -1, 0
        self._head = _Head()
        self._torn: bytes | None = None
        """The part of a line that a crash left, to be closed by the next line."""

    @property
    def head(self) -> tuple[int, str]:
        """(seq, hash) of the newest line. Noted elsewhere, it shows later whether the end was cut off."""
        return self._head.seq, self._head.hash

    def append(self, entries: Sequence[tuple[float, str, Mapping[str, Any]]]) -> None:
        """Add lines (wall seconds, event, fields) and fsync once.

        Raises DiskFull or LocalError: then none of them is in the log.
        """
        if not entries:
            return
        before: tuple[_Head, int] | None = None
        try:
            self._open()
            if self._size > self._max_file_bytes and self._torn is None:  # a torn line is closed in its file
                self._rotate(entries[0][0])
            before = self._head, self._size
            if self._torn is not None:
                self._write(entries[0][0], TORN, {"bytes": len(self._torn), "sha256": line_hash(self._torn)})
            for t, event, fields in entries:
                self._write(t, event, fields)
            os.fsync(self._fd)
        except (OSError, LocalError) as e:
            if before is not None:
                self._take_back(*before)
            else:
                self.close()  # half-way through a change of files: the next opening finds out where
            if isinstance(e, LocalError):
                raise
            if e.errno in _FULL:
                raise disk_full(self.path, 4096) from e
            raise disk_error(self.path, "written", e) from e
        self._torn = None

    def close(self) -> None:
        """Close the file; the next append opens it again."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _open(self) -> None:
        """Continue with the present file.

        If somebody moved or removed it meanwhile, the chain continues from the last written line, wherever
        that is now. verify then shows what is missing.
        """
        known = _Head()
        if self._fd >= 0:
            if same_file(self.path, self._fd):
                return
            known = self._head
            self.close()
        if not self.directory.exists():
            make_directory(self.directory)
            fsync_directory(self.directory.parent)
        fresh = not self.path.exists()
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            if fresh:
                fsync_directory(self.directory)
            self._size = os.fstat(self._fd).st_size
            found = self._find_head()
        except BaseException:
            self.close()  # or the next append would write without knowing the end of the chain
            raise
        self._head = max(found, known, key=lambda head: head.seq)

    def _find_head(self) -> _Head:
        """Find the newest whole line. A torn line after it will be closed by a line saying so."""
        head = self._newest(audit_files(self.directory)[:-1])
        lines, rest = _split(self.path)
        for line in lines:
            if (record := parse_line(line)) is not None and record.get("prev") == head.hash:
                head = _Head(record["seq"], line_hash(line))
        if rest:
            os.write(self._fd, b"\n")
            self._size += 1
            if (record := parse_line(rest)) is not None and record.get("prev") == head.hash:
                return _Head(record["seq"], line_hash(rest))  # only its newline was missing
        last = rest or (lines[-1] if lines else b"")
        self._torn = last if last and parse_line(last) is None else None
        return head

    def _newest(self, files: list[Path]) -> _Head:
        """The last line of the full files."""
        for file in reversed(files):
            for line in reversed(_split(file)[0]):
                if (record := parse_line(line)) is not None:
                    return _Head(record["seq"], line_hash(line))
        return _Head()

    def _write(self, t: float, event: str, fields: Mapping[str, Any]) -> None:
        record: dict[str, Any] = {
            "seq": self._head.seq + 1,
            "t": round(t, 3),
            "prev": self._head.hash,
            "event": event,
        }
        record.update({k: _plain(v) for k, v in fields.items() if k not in record})
        line = json.dumps(record, separators=(",", ":"), allow_nan=False).encode()
        data = line + b"\n"
        done = 0
        while done < len(data):
            done += os.write(self._fd, data[done:])
        self._size += len(data)
        self._head = _Head(record["seq"], line_hash(line))

    def _take_back(self, head: _Head, size: int) -> None:
        """Remove what a failed append left. Where even that fails, the next opening mends the end."""
        try:
            os.ftruncate(self._fd, size)
        except OSError:
            self.close()
        else:
            self._size, self._head = size, head

    def _rotate(self, t: float) -> None:
        """Number a full file and begin a new one, which continues its chain."""
        os.fsync(self._fd)
        lines, _ = _split(self.path)
        first = next((r["seq"] for line in lines if (r := parse_line(line)) is not None), self._head.seq)
        numbers = [int(m[1]) for f in audit_files(self.directory) if (m := _FULL_FILE.fullmatch(f.name))]
        first = max([first, *(n + 1 for n in numbers)])  # after tampering, too, no file replaces another
        os.replace(self.path, self.directory / f"audit-{first:012d}.jsonl")  # noqa: PTH105
        self.close()
        self._open()
        files = audit_files(self.directory)
        for old in files[: max(0, len(files) - self._max_files)]:
            self._drop(old, t)

    def _drop(self, old: Path, t: float) -> None:
        lines, _ = _split(old)
        records = [(line, r) for line in lines if (r := parse_line(line)) is not None]
        if records:
            last, record = records[-1]
            gone = {"file": old.name, "last_seq": record["seq"], "last_hash": line_hash(last)}
            self._write(t, DROPPED, gone)
            os.fsync(self._fd)  # said before it is done
        old.unlink()


def audit_files(directory: Path) -> list[Path]:
    """The files of the log, oldest first; the current one last."""
    full = sorted(f for f in directory.glob("audit-*.jsonl") if _FULL_FILE.fullmatch(f.name))
    current = directory / AUDIT_FILE
    return [*full, *([current] if current.exists() else [])]


def _split(file: Path) -> tuple[list[bytes], bytes]:
    """Whole lines, and what follows the last newline."""
    try:
        opened = file.open("rb")
    except OSError as e:
        raise disk_error(file, "read", e) from e
    with opened:
        return lines_of(opened, file)


def lines_of(opened: BinaryIO, path: Path) -> tuple[list[bytes], bytes]:
    """Whole lines of an open file, and what follows the last newline. Raises LocalError."""
    try:
        *lines, rest = opened.read().split(b"\n")
    except OSError as e:
        raise disk_error(path, "read", e) from e
    return lines, rest


def same_file(path: Path, fd: int) -> bool:
    """Whether the descriptor is of the file that has this name now."""
    try:
        return os.path.samestat(path.stat(), os.fstat(fd))
    except FileNotFoundError:
        return False


def parse_line(line: bytes) -> dict[str, Any] | None:
    """Parse a line of the log; None: it is no line of the log."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and type(record.get("seq")) is int else None
