"""The same seed gives the same trace, in this process and in one whose hashes differ."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from gossipseg.core.params import membership_preset
from tests.sim.simulator import Net, Simulator

ROOT = Path(__file__).parents[2]
SCRIPT = "from tests.sim.test_replay import eventful; print(eventful(7))"


def eventful(seed: int) -> str:
    """The trace of a federation with everything in it."""
    sim = Simulator(
        12,
        seed=seed,
        trace=True,
        membership=membership_preset("lan"),
        net=Net(loss=0.05, duplication=0.05),
        cases=lambda i: 5 + 7 * i,
    )
    sim.start_all()
    sim.at(40.0, sim.crash, "s0003")
    sim.at(55.0, sim.partition, ["s0000", "s0001"], [f"s{i:04d}" for i in range(2, 12)])
    sim.at(80.0, sim.heal)
    sim.at(85.0, sim.start, "s0003")
    sim.at(90.0, sim.starve, "s0004", 6.0)
    sim.run(150)
    return sim.trace()


def test_the_same_seed_gives_the_same_trace() -> None:
    assert eventful(7) == eventful(7)


def test_another_seed_gives_another_trace() -> None:
    assert eventful(7) != eventful(8)


def test_the_trace_does_not_depend_on_the_hash_seed() -> None:
    traces = set()
    for hash_seed in ("0", "1234"):
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        )
        traces.add(done.stdout.strip())
    assert traces == {eventful(7)}
