"""Long runs that must stay flat: memory, file descriptors, disk.

    python -m tests.faults.soak real --minutes 20
    python -m tests.faults.soak virtual --weeks 2

`real`: three daemons with a small model that exchange models, on loopback. `virtual`: eight sites in the
simulator with loss, crashes and partitions. Exit code 1 when something grew. Nothing here is collected as a
test; test_soak.py runs both for a moment.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.e2e.federation import Site, federation
from tests.sim.simulator import Net, Simulator

NAMES = ("north", "south", "east")
WARM_UP_ROUNDS = 6
ALLOWED = {"MiB": (1.10, 8.0), "fds": (1.0, 4.0), "disk MiB": (1.15, 4.0)}
"""Of each figure: the median of the last third may be so many times that of the first third, plus so much."""


@dataclass
class Series:
    """One figure over time."""

    name: str
    unit: str
    values: list[float] = field(default_factory=list)

    @property
    def thirds(self) -> tuple[float, float]:
        n = max(1, len(self.values) // 3)
        return statistics.median(self.values[:n]), statistics.median(self.values[-n:])

    @property
    def flat(self) -> bool:
        first, last = self.thirds
        factor, slack = ALLOWED[self.unit]
        return last <= first * factor + slack

    def __str__(self) -> str:
        first, last = self.thirds
        verdict = "flat" if self.flat else "GROWS"
        return f"{self.name:<28} {first:9.1f} → {last:9.1f} {self.unit:<9} {verdict}"


def rss_mib(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize() / (1 << 20)


def descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def disk_mib(folder: Path) -> float:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:
            continue  # replaced meanwhile
    return total / (1 << 20)


def sample(site: Site, series: dict[str, Series]) -> None:
    status = site.status()
    if status is None or status.worker.pid is None:
        return
    figures = [
        ("daemon", "MiB", rss_mib(site.pid)),
        ("worker", "MiB", rss_mib(status.worker.pid)),
        ("daemon", "fds", float(descriptors(site.pid))),
        ("worker", "fds", float(descriptors(status.worker.pid))),
        ("state", "disk MiB", disk_mib(site.folder / "state")),
    ]
    for what, unit, value in figures:
        name = f"{site.name} {what} {unit}"
        series.setdefault(name, Series(f"{site.name} {what}", unit)).values.append(value)


def real(minutes: float, every_s: float = 2.0) -> list[Series]:
    """Real daemons for so long after their warm-up."""
    series: dict[str, Series] = {}
    with tempfile.TemporaryDirectory() as folder, federation(Path(folder), NAMES) as f:
        for site in f.sites.values():
            site.start()
        for name in NAMES:
            f.until_round(name, WARM_UP_ROUNDS)
        end = time.monotonic() + minutes * 60
        while (now := time.monotonic()) < end:
            for site in f.sites.values():
                sample(site, series)
            f.until("the next sample", lambda now=now: time.monotonic() >= now + every_s)
        for site in f.sites.values():
            status = site.status()
            assert status is not None
            print(f"{site.name}: {status.round} rounds, {status.accepted} merged, {status.sent} sent, "
                  f"{status.state}")  # fmt: skip
        assert {s.end() for s in f.sites.values()} == {0}
    return list(series.values())


def virtual(weeks: float, seed: int = 1) -> list[Series]:
    """The core for so long in virtual time, sampled each virtual hour."""
    sim = Simulator(8, seed=seed, net=Net(loss=0.01), keep_notes=False, round_s=lambda i: 600.0)
    memory, pending = Series("all sites", "MiB"), Series("waiting in the simulator", "fds")
    sim.start_all()
    begin, hours = time.monotonic(), max(6, round(weeks * 7 * 24))
    names = list(sim.nodes)
    for hour in range(hours):
        at = hour * 3600.0
        victim = names[hour % len(names)]
        sim.at(at + 600, sim.crash, victim)
        sim.at(at + 900, sim.start, victim)
        if hour % 5 == 0:
            sim.at(at + 1500, sim.partition, names[:3])
            sim.at(at + 2100, sim.heal)
        sim.run(at + 3600)
        memory.values.append(rss_mib(os.getpid()))
        pending.values.append(float(sim.scheduled))
        for node in sim.up():
            assert node.state is not None
            node.state.check_invariants()
    assert not sim.wrong_views(), "an hour after the last fault everybody sees right"
    print(f"{hours} virtual hours in {time.monotonic() - begin:.0f} s: {sim.steps} steps, "
          f"{sim.events['visit_merged']} models merged, {hours} crashes")  # fmt: skip
    for model in (memory, pending):
        del model.values[: len(model.values) // 6]  # the warm-up
    return [memory, pending]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True)
    kinds.add_parser("real").add_argument("--minutes", type=float, default=20.0)
    kinds.add_parser("virtual").add_argument("--weeks", type=float, default=2.0)
    args = parser.parse_args(arguments)
    series = real(args.minutes) if args.kind == "real" else virtual(args.weeks)
    for one in series:
        print(one)
    return 0 if all(one.flat for one in series) else 1


if __name__ == "__main__":
    sys.exit(main())
