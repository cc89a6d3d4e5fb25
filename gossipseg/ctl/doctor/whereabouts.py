"""Whether a daemon runs, and what is wrong with it. Asked when the control socket does not answer."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gossipseg.store.lock import holder_of

STARTING_S = 60.0
"""Seconds for which a daemon that holds its lock may still be starting."""


@dataclass(frozen=True, slots=True)
class Whereabouts:
    """The findings in place of an answer."""

    state: Literal["none", "starting", "hanging", "no_socket"]
    text: str
    remedy: str


def whereabouts(state_dir: Path, socket: Path, site_file: Path | str = "site.yaml") -> Whereabouts:
    """The state shown by the socket and by the daemon's lock in `state_dir`, held for the daemon's whole
    life."""
    lock = state_dir / "daemon.lock"
    holder = holder_of(lock)
    if holder is None:
        text = f"not running (nobody holds {lock})"
        return Whereabouts("none", text, f"Start it: gossipsegd --config {site_file}.")
    age_s = _age_s(lock)
    if age_s < STARTING_S:
        text = f"process {holder} was started {age_s:.0f} s ago and does not answer yet"
        return Whereabouts("starting", text, "Wait a little, and look at its log.")
    if not socket.exists():
        return Whereabouts(
            "no_socket",
            f"process {holder} runs (it holds {lock}), but its control socket {socket} is gone",
            f"It makes the socket again within seconds; if it does not, restart it (kill {holder}, or "
            "systemctl restart gossipsegd), and find out what deletes files there.",
        )
    return Whereabouts(
        "hanging",
        f"process {holder} runs (it holds {lock}) and does not answer on {socket}: it hangs, or is stopped",
        f"Look at its log and at `ps -o stat,wchan {holder}` (T: stopped, D: waits for a disk); then restart "
        "it (systemctl restart gossipsegd).",
    )


def _age_s(lock: Path) -> float:
    """Age of the lock in seconds; infinite where the clock was set back since."""
    try:
        age_s = time.time() - lock.stat().st_mtime
    except OSError:
        return 0.0
    return max(0.0, age_s) if age_s > -STARTING_S else math.inf
