"""Reads the audit log and walks its chain, also while the daemon writes to it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from gossipseg.errors import LocalError
from gossipseg.store.atomic import disk_error
from gossipseg.store.auditlog import (
    AUDIT_FILE,
    DROPPED,
    GENESIS,
    TORN,
    audit_files,
    line_hash,
    lines_of,
    parse_line,
    same_file,
)

SNAPSHOT_TRIES = 20


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
            still = all(same_file(f, o.fileno()) for f, (_, o) in zip(files, opened, strict=True))
            if still and audit_files(directory) == files:
                yield opened
                return
    raise LocalError(f"{directory}: the files of the audit log change faster than they can be read.")


def read_audit(directory: Path) -> Iterator[dict[str, Any]]:
    """Every line that can be read, oldest first, checked or not. Raises LocalError."""
    with _opened(directory) as files:
        for name, file in files:
            for line in lines_of(file, directory / name)[0]:
                if (record := parse_line(line)) is not None:
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
    """unreadable | changed | missing | head_missing.

    `changed`: the hash that this line names is not that of the line before it. One of the two was altered, or
    lines were inserted or removed between them.
    """
    detail: str


@dataclass(frozen=True, slots=True)
class ChainVerdict:
    """The result of verify_audit."""

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
        record = parse_line(line)
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


def verify_audit(directory: Path, *, noted: tuple[int, str] | None = None) -> ChainVerdict:
    """Walk the whole chain. `noted`: (seq, hash) of a line written down earlier, which must still be there.

    Raises LocalError when a file cannot be read.
    """
    chain, open_end = _Chain(), False
    seen, names = noted is None, [AUDIT_FILE]
    with _opened(directory) as files:
        names = [name for name, _ in files] or names
        for name, file in files:
            lines, rest = lines_of(file, directory / name)
            if name == AUDIT_FILE and not rest and lines and parse_line(lines[-1]) is None:
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
    return ChainVerdict(
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
    record = parse_line(line)
    return record is not None and record.get("event") == TORN and record.get("sha256") == line_hash(torn)
