"""Makes the n-th file operation of an action fail, for every n in turn."""

from __future__ import annotations

import errno
import fcntl
import io
import os
from collections.abc import Callable, Iterator

import pytest

_OPERATIONS = (
    "open",
    "write",
    "pwrite",
    "pread",
    "fsync",
    "ftruncate",
    "replace",
    "unlink",
    "utime",
    "mkdir",
)


class _Counter:
    def __init__(self, fail_at: int, error: int) -> None:
        self.count, self.fail_at, self.error, self.failed = 0, fail_at, error, ""

    def hit(self, name: str) -> bool:
        self.count += 1
        if self.count == self.fail_at:
            self.failed = name
            return True
        return False

    def fail(self) -> OSError:
        return OSError(self.error, os.strerror(self.error))


def _wrap(counter: _Counter, name: str, real: Callable) -> Callable:
    def operation(*args, **kwargs):
        if counter.hit(name):
            if name in ("write", "pwrite"):  # a torn write: half of it is there
                half = memoryview(args[1])[: len(args[1]) // 2]
                real(args[0], half, *args[2:])
            raise counter.fail()
        return real(*args, **kwargs)

    return operation


def _file_io(counter: _Counter) -> type[io.FileIO]:
    class FaultyFileIO(io.FileIO):
        def write(self, data):
            if counter.hit("FileIO.write"):
                super().write(memoryview(data)[: len(data) // 2])
                raise counter.fail()
            return super().write(data)

    return FaultyFileIO


def each_fault(
    monkeypatch: pytest.MonkeyPatch, action: Callable[[], object], error: int = errno.EIO
) -> Iterator[tuple[str, BaseException | None]]:
    """Run `action` again and again, failing its 1st, 2nd … file operation; yields it and what was raised.

    Ends when a run has gone through without reaching the operation that was to fail.
    """
    for n in range(1, 1000):
        counter = _Counter(n, error)
        raised: BaseException | None = None
        with monkeypatch.context() as m:
            for name in _OPERATIONS:
                m.setattr(os, name, _wrap(counter, name, getattr(os, name)))
            m.setattr(fcntl, "flock", _wrap(counter, "flock", fcntl.flock))
            m.setattr(io, "FileIO", _file_io(counter))
            try:
                action()
            except Exception as e:
                raised = e
        if not counter.failed:
            assert raised is None, raised
            return
        yield counter.failed, raised
    raise AssertionError("the action never ends")
