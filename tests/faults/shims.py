"""Changes to a real daemon's surroundings, by a sitecustomize module that its processes import at start.

What belongs here: a wall clock that jumps, another range of the peer protocol. What must not: any change to
what the daemon itself does.
"""

from __future__ import annotations

import os
from pathlib import Path

_CLOCK = """
import os, time
_real, _file = time.time, {file!r}

def _jumped():
    try:
        with open(_file) as f:
            return _real() + float(f.read() or 0)
    except FileNotFoundError:
        return _real()

time.time = _jumped
"""
_PROTOCOL = """
import gossipseg.core.types as types
types.PROTOCOL_MIN, types.PROTOCOL_MAX = {low}, {high}
"""


def _environment(folder: Path, code: str) -> dict[str, str]:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sitecustomize.py").write_text(code)
    paths = [str(folder), os.environ.get("PYTHONPATH", "")]
    return {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


_FSYNC = """
import os, time
_real, _file = os.fsync, {file!r}

def _slow(fd):
    try:
        with open(_file) as f:
            time.sleep(float(f.read() or 0))
    except FileNotFoundError:
        pass
    return _real(fd)

os.fsync = _slow
"""


class SlowDisk:
    """os.fsync() of processes with `env` takes as many seconds longer as slow() said last."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "seconds"
        self.env = _environment(folder, _FSYNC.format(file=str(self._file)))

    def slow(self, seconds: float) -> None:
        waiting = self._file.with_suffix(".new")
        waiting.write_text(str(seconds))
        waiting.replace(self._file)


class WallClock:
    """time.time() of processes with `env` is off by what jump() said last. Monotonic time is left alone, as
    a machine's own is when its clock is set."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "offset"
        self.env = _environment(folder, _CLOCK.format(file=str(self._file)))

    def jump(self, offset_s: float) -> None:
        waiting = self._file.with_suffix(".new")
        waiting.write_text(str(offset_s))
        waiting.replace(self._file)


def protocol(folder: Path, low: int, high: int) -> dict[str, str]:
    """The environment of a daemon that speaks these versions of the peer protocol."""
    return _environment(folder, _PROTOCOL.format(low=low, high=high))
