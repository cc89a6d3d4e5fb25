"""Whether the kernel killed the worker for lack of memory: its counters before and after.

The group's counter (cgroup v2 `memory.events`, v1 `memory.oom_control`) counts processes of this group alone,
whatever caused the shortage. It decides where it can be read. The machine's counter (`/proc/vmstat`) counts
all processes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

REMEDY = (
    "Give it more memory (MemoryMax= of the service, --memory of the container), end what else uses it, set "
    "`data.cache: false` in site.yaml, or lower training.batch_size or task.patch_size in peers.yaml"
)
UNLIMITED = 1 << 60
RECENT_S = 10.0
"""Longest seconds between a kill and the process's end: the kernel needs time to free much memory."""
_FILES = (("memory.events", "memory.max"), ("memory.oom_control", "memory.limit_in_bytes"))


@dataclass(frozen=True, slots=True)
class Kills:
    """Processes killed for lack of memory so far; None: that counter cannot be read."""

    group: int | None = None
    machine: int | None = None
    limit_bytes: int | None = None
    """The group's memory limit."""


class Recent:
    """The counters of a short while ago: older kills say nothing of a process that has just died."""

    def __init__(self, kills: Kills, now: float) -> None:
        self.kills = self._next = kills
        self._at = now

    def due(self, now: float) -> bool:
        """Whether the counters are to be read again."""
        return now - self._at >= RECENT_S

    def read(self, kills: Kills, now: float) -> None:
        """Read the counters now. They count from the next reading on: a kill may be under way."""
        self.kills, self._next, self._at = self._next, kills, now


def read(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> Kills:
    """Read the counters of this process and its children now."""
    machine = _counter(proc / "vmstat", "oom_kill")
    for folder in _groups(proc, cgroups):
        for events, limit in _FILES:
            group = _counter(folder / events, "oom_kill")
            if group is not None:
                return Kills(group, machine, _limit(folder / limit))
    return Kills(None, machine)


def blamed(before: Kills, after: Kills) -> str:
    """The explanation for a process that got SIGKILL between two readings."""
    if before.group is not None and after.group is not None:
        if after.group > before.group:
            limit = f", limit {after.limit_bytes / 2**30:.2g} GiB" if after.limit_bytes else ""
            return f"the kernel killed it for lack of memory (of its control group{limit}). {REMEDY}"
    elif before.machine is not None and after.machine is not None and after.machine > before.machine:
        return f"most likely the kernel killed it for lack of memory (on this machine, meanwhile). {REMEDY}"
    return "killed by SIGKILL (by somebody, or by the kernel without a trace)"


def _groups(proc: Path, cgroups: Path) -> Iterator[Path]:
    """Folders that may count for this process, the nearest first.

    A parent counts for its children, too. In a container the path is the host's, and the top folder the
    container's own.
    """
    for line in _text(proc / "self" / "cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top = cgroups / "memory" if controllers else cgroups
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for n in range(len(parts), -1, -1):
            yield top.joinpath(*parts[:n])


def _counter(file: Path, name: str) -> int | None:
    for line in _text(file).splitlines():
        key, _, value = line.partition(" ")
        if key == name and value.strip().isdecimal():
            return int(value)
    return None


def _limit(file: Path) -> int | None:
    text = _text(file).strip()
    return int(text) if text.isdecimal() and int(text) < UNLIMITED else None


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
