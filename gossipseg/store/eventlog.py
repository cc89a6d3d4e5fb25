"""The bounded event log: one JSON object a line, numbered, in two files of which the older is dropped."""

from __future__ import annotations

import json
import math
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gossipseg.store.atomic import _FULL, disk_error, disk_full

_BLOCK_BYTES = 64 << 10


class EventLog:
    """`events.jsonl` and, once that is full, `events.1.jsonl` beside it. One writer; safe in threads."""

    def __init__(self, path: Path, max_bytes: int = 8 << 20) -> None:
        """`max_bytes` bounds both files together. A line torn by a crash is cut off here.

        Raises LocalError.
        """
        self.path, self._rotated, self._limit = path, rotated_path(path), max_bytes // 2
        self._mutex = threading.Lock()
        last = next(_newest_first(path), None)
        self._seq: int = last["seq"] if last else 0
        self._fd, self._size, self._torn = -1, 0, False
        try:
            self._open()
        except OSError as e:
            raise disk_error(path, "opened", e) from e

    def append(self, event: str, *, t: float, **fields: Any) -> dict[str, Any]:
        """Add an event at wall time `t` (seconds); returns the line as written, with its `seq`.

        Numbers that JSON lacks (NaN, infinities) become null; other objects their str(). Raises DiskFull or
        LocalError: then the event is not in the log, and the next append mends it.
        """
        with self._mutex:
            record = {"seq": self._seq + 1, "t": t, "event": event, **_plain(fields)}
            line = json.dumps(record, separators=(",", ":")).encode() + b"\n"
            try:
                self._open()
                if self._size and self._size + len(line) > self._limit:
                    self._rotate()
                self._write(line)
            except OSError as e:
                if e.errno in _FULL:
                    raise disk_full(self.path, len(line)) from e
                raise disk_error(self.path, "written", e) from e
            self._seq += 1
            return record

    def tail(self, n: int, since_seq: int = 0) -> list[dict[str, Any]]:
        """The newest `n` events with seq > `since_seq`, oldest of them first."""
        with self._mutex:
            return read_events(self.path, n, since_seq)

    @property
    def last_seq(self) -> int:
        return self._seq

    def close(self) -> None:
        """Close the file; the next append opens it again."""
        with self._mutex:
            self._close()

    def _open(self) -> None:
        """Open if needed, and cut off what a failed write or a crash left after the last whole line."""
        if self._fd < 0:
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            self._torn = True
        if self._torn:
            self._size = _cut_torn_line(self._fd)
            self._torn = False

    def _write(self, line: bytes) -> None:
        self._torn = True
        done = 0
        while done < len(line):
            done += os.write(self._fd, line[done:])
        self._torn = False
        self._size += len(line)

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _rotate(self) -> None:
        os.replace(self.path, self._rotated)  # noqa: PTH105
        self._close()
        self._open()


def rotated_path(path: Path) -> Path:
    """events.jsonl → events.1.jsonl."""
    return path.with_name(f"{path.stem}.1{path.suffix}")


def read_events(path: Path, n: int, since_seq: int = 0) -> list[dict[str, Any]]:
    """The newest `n` events with seq > `since_seq`, oldest first; for readers in other processes, too.

    The file is read backwards from the end, so that the cost follows `n`. Lines that are no events are left
    out.
    """
    found: list[dict[str, Any]] = []
    for record in _newest_first(path):
        if len(found) >= n or record["seq"] <= since_seq:
            break
        if not found or record["seq"] < found[-1]["seq"]:  # a rotation under our eyes shows lines twice
            found.append(record)
    return found[::-1]


def _newest_first(path: Path) -> Iterator[dict[str, Any]]:
    yield from _backwards(path)
    yield from _backwards(rotated_path(path))


def _backwards(path: Path) -> Iterator[dict[str, Any]]:
    try:
        with path.open("rb") as f:
            position, rest = f.seek(0, os.SEEK_END), b""
            torn = True  # what follows the last newline is being written, or was cut by a crash
            while position > 0:
                step = min(_BLOCK_BYTES, position)
                position -= step
                f.seek(position)
                rest, *lines = (f.read(step) + rest).split(b"\n")
                for line in reversed(lines):
                    if not torn and (record := _parse(line)) is not None:
                        yield record
                    torn = False
            if not torn and (record := _parse(rest)) is not None:
                yield record
    except FileNotFoundError:
        return
    except OSError as e:
        raise disk_error(path, "read", e) from e


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and type(record.get("seq")) is int else None


def _cut_torn_line(fd: int) -> int:
    """Drop what follows the last newline; returns the remaining size."""
    size = os.fstat(fd).st_size
    position = size
    while position > 0:
        step = min(_BLOCK_BYTES, position)
        newline = os.pread(fd, step, position - step).rfind(b"\n")
        if newline >= 0:
            position = position - step + newline + 1
            break
        position -= step
    if position < size:
        os.ftruncate(fd, position)
    return position


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return str(value)
