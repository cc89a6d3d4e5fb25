"""The testbed's daemons as processes: start, check, stop, also from another process.

A process is only signalled when it still is the daemon that was started: both pid and start time are kept.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gossipseg.children import directory, python_module, safe
from gossipseg.errors import LocalError
from gossipseg.store import atomic_write
from gossipseg.testbed.layout import Layout, SiteFolder

STATE_FILE = "testbed.json"
STOP_GRACE_S = 15.0
"""Seconds before a daemon is killed: it promises to end within 10 s of SIGTERM."""
_POLL_S = 0.1


@dataclass(slots=True)
class DaemonProcess:
    """One daemon. `child` is set where this process started it."""

    site: str
    pid: int
    born: str
    """Start time from /proc, which reveals a reused pid."""
    log: Path
    child: subprocess.Popen[bytes] | None = None
    exit_code: int | None = None

    def alive(self) -> bool:
        """Whether that very process still runs."""
        if self.child is not None:
            self.exit_code = self.child.poll()
            return self.exit_code is None
        return self.pid > 0 and _born(self.pid) == self.born

    def signal(self, number: int) -> None:
        """Send a signal, if the process still exists."""
        if self.alive():
            try:
                os.kill(self.pid, number)
            except ProcessLookupError:
                return

    def last_words(self, lines: int = 5) -> str:
        """The end of the daemon's log."""
        try:
            text = self.log.read_text(encoding="utf-8", errors="replace")
        except OSError as e:
            return f"(its log cannot be read: {e})"
        return "\n".join(text.rstrip().splitlines()[-lines:])


def start(site: SiteFolder) -> DaemonProcess:
    """Start one site's daemon in a session of its own (Ctrl-C reaches it through us alone)."""
    site.folder.mkdir(parents=True, exist_ok=True)
    command = [*python_module("gossipseg.daemon.main"), "--config", str(site.config_path)]
    with site.log.open("ab") as log:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=_environment(),
            cwd=directory(),
            start_new_session=True,
        )
    return DaemonProcess(site.name, child.pid, _born(child.pid), site.log, child)


def stop(daemons: Iterable[DaemonProcess], grace_s: float = STOP_GRACE_S) -> list[str]:
    """SIGTERM to all, wait, SIGKILL to the rest; returns the sites that had to be killed."""
    daemons = list(daemons)
    for daemon in daemons:
        daemon.signal(signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    while any(d.alive() for d in daemons) and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    stubborn = [d for d in daemons if d.alive()]
    for daemon in stubborn:
        daemon.signal(signal.SIGKILL)
        if daemon.child is not None:
            daemon.child.wait()
    return [d.site for d in stubborn]


# ---------------------------------------------------------------- a whole testbed


def start_all(layout: Layout) -> list[DaemonProcess]:
    """Start all and record their processes."""
    daemons: list[DaemonProcess] = []
    try:
        for site in layout.sites:
            daemons.append(start(site))  # noqa: PERF401  (what was started must be known when one fails)
        _save(layout.root, daemons)
    except BaseException:
        stop(daemons)
        raise
    return daemons


def load_started(root: Path) -> list[DaemonProcess]:
    """The daemons that were started in this folder and not ended by us, alive or not."""
    path = root / STATE_FILE
    try:
        records = json.loads(path.read_text(encoding="utf-8"))["daemons"]
        return [DaemonProcess(r["site"], int(r["pid"]), str(r["born"]), Path(r["log"])) for r in records]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise LocalError(f"{path}: cannot be read: {e!r}. Stop the daemons by hand and remove it.") from e


def running(root: Path) -> list[str]:
    """Sites of this folder whose daemons run."""
    return [d.site for d in load_started(root) if d.alive()]


def stop_started(root: Path) -> list[str]:
    """End the recorded daemons; returns the sites that were running."""
    daemons = [d for d in load_started(root) if d.alive()]
    stop(daemons)
    forget(root)
    return [d.site for d in daemons]


def forget(root: Path) -> None:
    """Record that nothing of this testbed runs any more."""
    (root / STATE_FILE).unlink(missing_ok=True)


def _save(root: Path, daemons: Sequence[DaemonProcess]) -> None:
    rows = [{"site": d.site, "pid": d.pid, "born": d.born, "log": str(d.log.absolute())} for d in daemons]
    doc = {"version": 1, "daemons": rows}
    atomic_write(root / STATE_FILE, json.dumps(doc, indent=1).encode() + b"\n")


def _environment() -> dict[str, str]:
    """This process's environment, without overrides for a single site, and with one thread per library."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("GOSSIPSEG_")}
    return {**safe(kept), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


def _born(pid: int) -> str:
    """Start time in clock ticks since boot; "" where there is no such process, or it is a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in ("Z", "X") else fields[19]
