"""A bounded queue of lines and its writer thread, so that callers never wait for a reader.

A stalled reader (docker's log driver, `| less`, Ctrl-S on a terminal) fills the pipe. Then write(2) blocks,
but only this thread.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import stat
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

MAX_WAITING_BYTES = 1 << 20
STUCK_S = 5.0
"""Seconds after which a blocked write is reported."""
RETRY_S = 5.0
"""Seconds after a failure before the next try, where no new line comes."""


class Outlet:
    """Writes lines in order through `write`, which may block and may raise OSError.

    `name` describes the target to people; `gap` makes the line that reports lost lines.
    """

    def __init__(
        self,
        name: str,
        write: Callable[[bytes], None],
        gap: Callable[[int], bytes],
        *,
        max_waiting_bytes: int = MAX_WAITING_BYTES,
        retry_s: float = RETRY_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name, self.lost = name, 0
        """`lost`: lines lost since the start."""
        self._write, self._gap_line, self._clock, self._retry_s = write, gap, clock, retry_s
        self._limit, self._waiting_bytes = max_waiting_bytes, 0
        self._lines: deque[bytes | int] = deque()
        """Lines, and at each gap the number of lines lost there."""
        self._gap, self._failure, self._closed = 0, "", False
        self._began: float | None = None
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name=f"log to {name}", daemon=True)
        self._thread.start()

    def put(self, line: bytes) -> None:
        """Add a line; never waits. A line that does not fit is counted, and reported once there is room
        again."""
        with self._changed:
            if self._closed or self._waiting_bytes + len(line) > self._limit:
                self.lost += 1
                self._gap += 1
                return
            if self._gap and not self._failure:
                self._lines.append(self._gap)
                self._gap = 0
            self._lines.append(line)
            self._waiting_bytes += len(line)
            self._changed.notify_all()

    def problem(self) -> str:
        """What is wrong at this moment; "" if nothing is."""
        with self._changed:
            lost = f", {self.lost} log lines are lost so far" if self.lost else ""
            if self._failure:
                return f"log lines cannot be written to {self.name}: {self._failure}{lost}"
            if self._began is not None and (waited_s := self._clock() - self._began) > STUCK_S:
                return f"{self.name} takes no log line for {waited_s:.0f} s, its reader is stalled{lost}"
        return ""

    def flush(self, timeout_s: float) -> bool:
        """Wait for a limited time until every line is written; returns whether it is."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._lines and self._began is None, timeout_s)

    def close(self, timeout_s: float) -> None:
        """Accept no more lines; those not written by then are given up. The thread may stay in its write for
        ever."""
        self.flush(timeout_s)
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _run(self) -> None:
        while (item := self._next()) is not None:
            try:
                self._write(item if isinstance(item, bytes) else self._gap_line(item))
            except OSError as e:
                self._done(item, e.strerror or str(e))
            else:
                self._done(item, "")

    def _next(self) -> bytes | int | None:
        """The next line, or a number of lost lines; None at the end."""
        with self._changed:
            while not self._lines:
                if self._gap and (not self._failure or self._rested()):
                    self._lines.append(self._gap)
                    self._gap = 0
                elif self._closed:
                    return None
                elif not self._gap:
                    self._changed.wait()
            item = self._lines.popleft()
            self._waiting_bytes -= len(item) if isinstance(item, bytes) else 0
            self._began = self._clock()
            return item

    def _rested(self) -> bool:
        """Wait after a failure; returns whether no line came, so that the gap itself is tried next."""
        return not self._changed.wait_for(lambda: self._lines or self._closed, self._retry_s)

    def _done(self, item: bytes | int, failure: str) -> None:
        with self._changed:
            self._failure, self._began = failure, None
            if failure:
                self.lost += isinstance(item, bytes)
                self._gap += 1 if isinstance(item, bytes) else item
            self._changed.notify_all()


def write_to(fd: int) -> Callable[[bytes], None]:
    """A function that writes a whole line to a file descriptor, and waits even if the descriptor is
    non-blocking.

    Another process that shares the terminal or pipe may have made it non-blocking.
    """

    def write(line: bytes) -> None:
        done = 0
        while done < len(line):
            try:
                done += os.write(fd, line[done:])
            except BlockingIOError:
                room = select.poll()
                room.register(fd, select.POLLOUT)
                room.poll()

    return write


class RotatingFile:
    """A log file that starts anew at `max_bytes`. `count` files are kept; FILE.1 is the newest old one.

    A file that was moved away (logrotate) or removed is made again. A link stays a link: its target is
    written.
    """

    def __init__(self, path: Path, max_bytes: int, count: int) -> None:
        """Raises OSError when it cannot be opened."""
        self._path, self._max_bytes, self._count = Path(os.path.realpath(path)), max_bytes, count
        self._fd, self._size = -1, 0
        self._open()

    def write(self, line: bytes) -> None:
        """Add a line; a half-written line is removed when the disk is full. Raises OSError."""
        if not self._in_place():
            self._open()
        if self._size and self._size + len(line) > self._max_bytes:
            self._rotate()
        try:
            write_to(self._fd)(line)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self._size)
            raise
        self._size += len(line)

    def _in_place(self) -> bool:
        try:
            now = self._path.stat()
        except FileNotFoundError:
            return False
        if self._fd < 0 or not os.path.samestat(now, os.fstat(self._fd)):
            return False
        self._size = now.st_size  # logrotate's copytruncate makes it smaller
        return True

    def _open(self) -> None:
        self.close()
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK
        self._fd = os.open(
            self._path, flags, 0o600
        )  # non-blocking: a pipe without a reader is not waited for
        found = os.fstat(self._fd)
        if not stat.S_ISREG(found.st_mode):  # a rotation would rename /dev/null
            self.close()
            raise OSError(errno.EINVAL, "it is no plain file", str(self._path))
        self._size = found.st_size

    def _rotate(self) -> None:
        for n in range(self._count - 1, 0, -1):
            older = self._path if n == 1 else self._numbered(n - 1)
            with contextlib.suppress(FileNotFoundError):
                older.replace(self._numbered(n))
        if self._count == 1:
            os.ftruncate(self._fd, 0)
        self._open()

    def _numbered(self, n: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{n}")

    def close(self) -> None:
        """Give the file back."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
