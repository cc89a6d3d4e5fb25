"""The audit log on disk: JSON lines, each with the SHA-256 of the line before it, in numbered files.

What belongs here: appending durably, rotating, mending a torn end, verifying, reading. What must not: the
meaning of a line, a clock, asyncio. `audit.jsonl` is written to; `audit-<first seq>.jsonl` are full.

A line is `{"seq":n,"t":wall seconds,"prev":hash of the line before,"event":name,…}`; `prev` is over the bytes
of that line without its newline, so that `sha256sum` can check it too. The first line of a file continues the
chain of the file before it. Two lines speak of the log itself: `audit_torn` closes a line that a crash cut
off, and `audit_dropped` says which old file was removed to bound the disk.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
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
SNAPSHOT_TRIES = 20
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
        """What a crash left of a line, to be closed by the next one."""

    @property
    def head(self) -> tuple[int, str]:
        """(seq, hash) of the newest line: noted elsewhere, it shows later whether the end was cut off."""
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
        """Give the file back; the next append opens it again."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _open(self) -> None:
        """Go on with the file in place.

        Where somebody moved or removed it under this daemon, the chain goes on from the line that was written
        last, wherever that is now: verify then shows what is missing.
        """
        known = _Head()
        if self._fd >= 0:
            if _same_file(self.path, self._fd):
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
        """The newest whole line; what a crash left behind it will be closed by a line saying so."""
        head = self._newest(audit_files(self.directory)[:-1])
        lines, rest = _split(self.path)
        for line in lines:
            if (record := _parse(line)) is not None and record.get("prev") == head.hash:
                head = _Head(record["seq"], line_hash(line))
        if rest:
            os.write(self._fd, b"\n")
            self._size += 1
            if (record := _parse(rest)) is not None and record.get("prev") == head.hash:
                return _Head(record["seq"], line_hash(rest))  # only its newline was missing
        last = rest or (lines[-1] if lines else b"")
        self._torn = last if last and _parse(last) is None else None
        return head

    def _newest(self, files: list[Path]) -> _Head:
        """The last line of the full files."""
        for file in reversed(files):
            for line in reversed(_split(file)[0]):
                if (record := _parse(line)) is not None:
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
        """Nothing of a failed append stays; where even that fails, the next opening mends the end."""
        try:
            os.ftruncate(self._fd, size)
        except OSError:
            self.close()
        else:
            self._size, self._head = size, head

    def _rotate(self, t: float) -> None:
        """A full file gets its number and a new one is begun, which continues its chain."""
        os.fsync(self._fd)
        lines, _ = _split(self.path)
        first = next((r["seq"] for line in lines if (r := _parse(line)) is not None), self._head.seq)
        numbers = [int(m[1]) for f in audit_files(self.directory) if (m := _FULL_FILE.fullmatch(f.name))]
        first = max([first, *(n + 1 for n in numbers)])  # after tampering too, no file replaces another
        os.replace(self.path, self.directory / f"audit-{first:012d}.jsonl")  # noqa: PTH105
        self.close()
        self._open()
        files = audit_files(self.directory)
        for old in files[: max(0, len(files) - self._max_files)]:
            self._drop(old, t)

    def _drop(self, old: Path, t: float) -> None:
        lines, _ = _split(old)
        records = [(line, r) for line in lines if (r := _parse(line)) is not None]
        if records:
            last, record = records[-1]
            gone = {"file": old.name, "last_seq": record["seq"], "last_hash": line_hash(last)}
            self._write(t, DROPPED, gone)
            os.fsync(self._fd)  # said before it is done
        old.unlink()


# ---------------------------------------------------------------- reading


def audit_files(directory: Path) -> list[Path]:
    """The files of the log, oldest first; the one written to last."""
    full = sorted(f for f in directory.glob("audit-*.jsonl") if _FULL_FILE.fullmatch(f.name))
    current = directory / AUDIT_FILE
    return [*full, *([current] if current.exists() else [])]


@contextlib.contextmanager
def _opened(directory: Path) -> Iterator[list[tuple[str, BinaryIO]]]:
    """All files of the log at one moment, (name, file): the daemon may change files while they are read.

    Raises LocalError.
    """
    for _ in range(SNAPSHOT_TRIES):
        with contextlib.ExitStack() as stack:
            files = audit_files(directory)
            opened: list[tuple[str, BinaryIO]]
            try:
                opened = [(f.name, stack.enter_context(f.open("rb"))) for f in files]
            except FileNotFoundError:
                continue  # it changed files just now
            except OSError as e:
                raise disk_error(directory, "read", e) from e
            still = all(_same_file(f, o.fileno()) for f, (_, o) in zip(files, opened, strict=True))
            if still and audit_files(directory) == files:
                yield opened
                return
    raise LocalError(f"{directory}: the files of the audit log change faster than they can be read.")


def read_audit(directory: Path) -> Iterator[dict[str, Any]]:
    """Every line that can be read, oldest first, checked or not. Raises LocalError."""
    with _opened(directory) as files:
        for name, file in files:
            for line in _lines(file, directory / name)[0]:
                if (record := _parse(line)) is not None:
                    yield record


@dataclass(frozen=True, slots=True)
class Flaw:
    """A place where the chain does not hold."""

    file: str
    line: int
    """Counted from 1."""
    seq: int | None
    """The line's own number, where it can be read."""
    reason: str
    """unreadable | changed | missing | head_missing. `changed`: the line before it does not have the hash
    that this one names: one of the two was altered, or lines were put in or taken out between them."""
    detail: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What verify_audit found."""

    files: int = 0
    lines: int = 0
    first_seq: int = 0
    last_seq: int = 0
    last_hash: str = GENESIS
    torn: int = 0
    """Lines cut off by crashes, and closed."""
    open_end: bool = False
    """The last line is being written, or was cut off by a crash and is not closed yet."""
    flaws: tuple[Flaw, ...] = ()


MAX_FLAWS = 100


@dataclass(slots=True)
class _Chain:
    """The state of a walk along the chain."""

    seq: int = 0
    hash: str = GENESIS
    lines: int = 0
    first_seq: int = 0
    torn: int = 0
    flaws: list[Flaw] = field(default_factory=list)
    wanted: tuple[int, str] | None = None
    """(seq, hash) of a line before the oldest that is left: a later line must say that it was removed."""

    def take(self, file: str, number: int, line: bytes, following: bytes | None) -> None:
        record = _parse(line)
        if following is not None and _closes(following, line):
            self.torn += 1
            return
        if record is None:
            self._flaw(file, number, None, "unreadable", "it is no line of an audit log")
            return
        seq = int(record["seq"])
        if not self.lines:
            self.first_seq = seq
            if seq > 1:
                self.wanted = (seq - 1, str(record.get("prev")))
            elif record.get("prev") != GENESIS:
                self._flaw(file, number, seq, "changed", "the first line names a line before it")
        elif record.get("prev") != self.hash:
            self._flaw(file, number, seq, "changed", "the line before it does not have the hash it names")
        elif seq != self.seq + 1:
            self._flaw(file, number, seq, "missing", f"line {self.seq + 1} was expected")
        if record.get("event") == DROPPED:
            gone = (record.get("last_seq"), record.get("last_hash"))
            self.wanted = None if gone == self.wanted else self.wanted
        self.seq, self.hash, self.lines = seq, line_hash(line), self.lines + 1

    def _flaw(self, file: str, number: int, seq: int | None, reason: str, detail: str) -> None:
        if len(self.flaws) < MAX_FLAWS:
            self.flaws.append(Flaw(file, number, seq, reason, detail))


def verify_audit(directory: Path, *, noted: tuple[int, str] | None = None) -> Verdict:
    """Walk the whole chain. `noted`: (seq, hash) of a line written down earlier, which must still be there.

    Raises LocalError when a file cannot be read.
    """
    chain, open_end = _Chain(), False
    seen, names = noted is None, [AUDIT_FILE]
    with _opened(directory) as files:
        names = [name for name, _ in files] or names
        for name, file in files:
            lines, rest = _lines(file, directory / name)
            if name == AUDIT_FILE and not rest and lines and _parse(lines[-1]) is None:
                rest = lines.pop()  # its newline is there, and the line that closes it not yet
            for i, line in enumerate(lines):
                chain.take(name, i + 1, line, lines[i + 1] if i + 1 < len(lines) else None)
                seen = seen or (chain.seq, chain.hash) == noted
            if rest and name == AUDIT_FILE:
                open_end = True
            elif rest:
                chain._flaw(name, len(lines) + 1, None, "unreadable", "a full file ends within a line")
        count = len(files)
    if chain.wanted is not None:
        detail = "older lines were removed, and the log does not say so"
        chain._flaw(names[0], 1, chain.first_seq, "missing", detail)
    if not seen and noted is not None:
        detail = f"line {noted[0]} with the noted hash is not in the log"
        chain._flaw(names[-1], 0, noted[0], "head_missing", detail)
    return Verdict(
        count,
        chain.lines,
        chain.first_seq,
        chain.seq,
        chain.hash,
        chain.torn,
        open_end,
        tuple(chain.flaws),
    )


def _closes(line: bytes, torn: bytes) -> bool:
    """Whether a line says that the one before it was torn."""
    record = _parse(line)
    return record is not None and record.get("event") == TORN and record.get("sha256") == line_hash(torn)


def _split(file: Path) -> tuple[list[bytes], bytes]:
    """Whole lines, and what follows the last newline."""
    try:
        opened = file.open("rb")
    except OSError as e:
        raise disk_error(file, "read", e) from e
    with opened:
        return _lines(opened, file)


def _lines(opened: BinaryIO, path: Path) -> tuple[list[bytes], bytes]:
    try:
        *lines, rest = opened.read().split(b"\n")
    except OSError as e:
        raise disk_error(path, "read", e) from e
    return lines, rest


def _same_file(path: Path, fd: int) -> bool:
    """Whether the descriptor is of the file that has this name now."""
    try:
        return os.path.samestat(path.stat(), os.fstat(fd))
    except FileNotFoundError:
        return False


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and type(record.get("seq")) is int else None
