"""How long a cold `gossipctl` takes, and how much memory the network process holds while nothing happens.

Two real daemons on loopback; one round of training, then idle. Prints JSON. Times are beside those of
`python -c pass` in the same run; `cpu_s` (user and system) does not depend on what else the machine does.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.e2e.federation import Federation, federation

RUNS = 15
AIM_WALL_S = 0.5
AIM_RSS_BYTES = 120e6


def cold(command: Sequence[str], runs: int = RUNS) -> dict[str, float]:
    """Seconds of a command in a process of its own: wall (best and median) and CPU (median)."""
    # As installed: with compiled modules, which the first run writes if they are not there.
    env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    quiet = subprocess.DEVNULL
    subprocess.run(command, stdout=quiet, stderr=quiet, env=env, check=False)
    walls, cpus = [], []
    for _ in range(runs):
        begin = time.perf_counter()
        process = subprocess.Popen(command, stdout=quiet, stderr=quiet, env=env)
        _, status, usage = os.wait4(process.pid, 0)
        walls.append(time.perf_counter() - begin)
        cpus.append(usage.ru_utime + usage.ru_stime)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode in (0, 1), f"{command}: exit code {process.returncode}"
    return {
        "wall_best_s": round(min(walls), 4),
        "wall_median_s": round(statistics.median(walls), 4),
        "cpu_median_s": round(statistics.median(cpus), 4),
    }


def memory(pid: int) -> dict[str, int]:
    """Resident and proportional memory of a process, in bytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    rss = next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS"))
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    pss = next(int(line.split()[1]) * 1024 for line in rollup.splitlines() if line.startswith("Pss:"))
    return {"rss_bytes": rss, "pss_bytes": pss}


def measure(sites: Federation) -> dict[str, Any]:
    """Times and memory of a federation whose sites have finished training."""
    for site in sites.sites.values():
        site.start()
    for name in sites.sites:
        sites.until(f"{name} finished", lambda n=name: phase(sites, n) == "finished", 300)  # type: ignore[misc]
    north = sites["north"]
    gossipctl = [str(Path(sys.executable).with_name("gossipctl"))]
    commands = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "gossipctl status": [*gossipctl, "status", "--config", str(north.config)],
        "gossipctl peers --json": [*gossipctl, "peers", "--json", "--config", str(north.config)],
    }
    times = {name: cold(command) for name, command in commands.items()}
    idle = memory(north.pid)
    return {
        "bench": "ctl",
        "cold": times,
        "status_below_aim": times["gossipctl status"]["wall_best_s"] < AIM_WALL_S,
        "network_process_idle": idle,
        "rss_below_aim": idle["rss_bytes"] < AIM_RSS_BYTES,
        "load_1min": round(os.getloadavg()[0], 2),
    }


def phase(sites: Federation, name: str) -> str:
    """What a site says it is doing; empty while it does not answer."""
    status = sites[name].status()
    return status.phase if status else ""


def main() -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with (
        tempfile.TemporaryDirectory() as folder,
        federation(Path(folder), ("north", "south"), site={"rounds": 1}) as sites,
    ):
        print(json.dumps(measure(sites), indent=1))


if __name__ == "__main__":
    main()
