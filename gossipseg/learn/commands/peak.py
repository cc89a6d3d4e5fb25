"""The most memory that some work takes, beyond what was taken before it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

from gossipseg.learn.engine.precision import Compute

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
T = TypeVar("T")


def with_peak(work: Callable[[], T], compute: Compute) -> tuple[T, int | None]:
    """What `work` returns, and the bytes by which the device's memory grew at most; None: nobody says.

    On the CPU the process's own. Memory that it has freed before and not given back is no growth.
    """
    if compute.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(compute.device)
        before = torch.cuda.memory_allocated(compute.device)
        found = work()
        return found, torch.cuda.max_memory_allocated(compute.device) - before
    resident = _forget_peak()
    found = work()
    peak = _status_bytes("VmHWM")
    return found, peak - resident if peak is not None and resident is not None else None


def _forget_peak() -> int | None:
    """Let the peak begin anew; the bytes that are resident now."""
    try:
        _RESET.write_text("5")
    except OSError:
        return None
    return _status_bytes("VmRSS")


def _status_bytes(key: str) -> int | None:
    try:
        found = re.search(rf"^{key}:\s+(\d+) kB$", _STATUS.read_text(), re.MULTILINE)
    except OSError:
        return None
    return 1024 * int(found[1]) if found else None
