"""kill -9 at random instants: of the daemon, of its worker, alone and among peers."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gossipseg.store import Checkpoints, read_events
from tests.e2e.federation import Federation, Site, federation
from tests.learn.harness import same

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.faults]
SEED = 20260
ROUNDS = 6
STEPS = 10
LOCAL: dict[str, Any] = {
    "algorithm": {"name": "local"},
    "training": {"steps_per_round": STEPS, "batch_size": 2, "learning_rate": 0.002},
    "site": {"rounds": ROUNDS},
}


def newest_state(site: Site) -> dict[str, Any]:
    """The newest checkpoint; without the generator's state, which every step seeds anew."""
    path = Checkpoints(site.folder / "state" / "checkpoint").newest()[0]
    state: dict[str, Any] = torch.load(path, weights_only=True)
    del state["rng"], state["digest"]  # the digest is over all, the generator's state included
    return state


def phase(site: Site) -> str:
    status = site.status()
    return status.phase if status else ""


def uninterrupted(root: Path) -> dict[str, Any]:
    with federation(root, ["north"], **LOCAL) as f:
        f["north"].start()
        f.until("finished", lambda: phase(f["north"]) == "finished")
        assert f["north"].end() == 0
        return newest_state(f["north"])


def times_ready(site: Site) -> int:
    """From the file: nobody answers while the daemon is dead."""
    log = read_events(site.folder / "state" / "events.jsonl", 100_000)
    return sum(1 for e in log if e["event"] == "worker_ready")


def steps_done(site: Site) -> int:
    """Of the whole run, as the daemon knows; -1 while it does not answer or has no worker yet."""
    status = site.status()
    if status is None or status.phase == "starting":
        return -1
    return status.round * STEPS + status.step


def finished_before(f: Federation, site: Site, step: int, delay_s: float) -> bool:
    """Let it run to this step and a moment longer; whether it has finished its rounds by then."""
    f.until(f"step {step}", lambda: phase(site) == "finished" or steps_done(site) >= step)
    end = time.monotonic() + delay_s
    f.until("a moment", lambda: phase(site) == "finished" or time.monotonic() >= end)
    return phase(site) == "finished"


def assert_no_finished_round_is_lost(site: Site) -> tuple[int, int]:
    """(lives, rounds told of); every life starts at the end of the last round told of, or later."""
    told, lives = 0, 0
    log = site.events("round_finished", "worker_ready")
    for event in log:
        if event["event"] == "worker_ready":
            lives += 1
            assert event["round"] >= told, (event, told)
        else:
            told = event["round"]
    often = Counter(e["round"] for e in log if e["event"] == "round_finished")
    assert max(often.values()) == 1, f"a finished round was trained again: {often}"
    return lives, len(often)


def test_kill_9_of_the_daemon_at_random_instants_changes_no_bit(
    tmp_path: Path, seen: Callable[[str], None]
) -> None:
    rng = random.Random(SEED)
    whole = uninterrupted(tmp_path / "whole")
    with federation(tmp_path / "killed", ["north"], **LOCAL) as f:
        north, kills = f["north"], 0
        while True:
            began = times_ready(north)
            north.start()
            if rng.random() < 0.25:  # while it still starts
                end = time.monotonic() + rng.uniform(0.0, 5.0)
                f.until("a moment", lambda end=end: time.monotonic() >= end)
            else:
                f.until(
                    "the worker is back",
                    lambda began=began: times_ready(north) > began or phase(north) == "finished",
                )
                further = steps_done(north) + rng.randrange(2 * STEPS)
                if finished_before(f, north, further, rng.uniform(0.0, 0.3)):
                    break
            north.end(signal.SIGKILL)
            kills += 1
            assert kills < 60, f"no progress (seed {SEED})"
        lives, rounds = assert_no_finished_round_is_lost(north)
        assert north.end() == 0
        assert same(newest_state(north), whole), f"seed {SEED}"
        assert kills >= 2
        seen(f"{kills} kills, {lives} starts of the worker, {rounds} of {ROUNDS} ends of rounds logged, "
             "state equal bit for bit")  # fmt: skip


def test_kill_9_of_the_worker_at_random_instants_changes_no_bit(
    tmp_path: Path, seen: Callable[[str], None]
) -> None:
    rng = random.Random(SEED + 1)
    whole = uninterrupted(tmp_path / "whole")
    with federation(tmp_path / "killed", ["north"], **LOCAL) as f:
        north, kills = f["north"], 0
        north.start()
        while True:
            f.until("the worker is back", lambda kills=kills: times_ready(north) > kills)
            further = max(0, steps_done(north)) + rng.randrange(2 * STEPS)
            if finished_before(f, north, further, rng.uniform(0.0, 0.3)):
                break
            os.kill(worker_pid(north), signal.SIGKILL)
            kills += 1
        lives, rounds = assert_no_finished_round_is_lost(north)
        assert lives == kills + 1 and len(north.events("daemon_started")) == 1
        assert north.end() == 0
        assert same(newest_state(north), whole), f"seed {SEED + 1}"
        assert kills >= 2
        seen(f"{kills} kills, {rounds} of {ROUNDS} ends of rounds logged, state equal bit for bit")


def test_kill_9_among_peers_merges_no_model_twice(tmp_path: Path, seen: Callable[[str], None]) -> None:
    rng = random.Random(SEED + 2)
    training = {"steps_per_round": 10, "batch_size": 2, "learning_rate": 0.002}
    with federation(tmp_path, ["north", "south"], training=training) as f:
        north, south = f["north"], f["south"]
        for site in (north, south):
            site.start()
        for number in range(6):
            before = f.round_of("north")
            f.until("north gets further", lambda before=before: f.round_of("north") > max(1, before))
            end = time.monotonic() + rng.uniform(0.0, 3.0)
            f.until("a moment", lambda end=end: time.monotonic() >= end)
            victim = (signal.SIGKILL, north.pid) if number % 2 else (signal.SIGKILL, worker_pid(north))
            if victim[1] == north.pid:
                north.end(signal.SIGKILL)
                north.start()
                f.until("north answers", lambda: north.status() is not None)
            else:
                os.kill(victim[1], signal.SIGKILL)
                f.until(
                    "the death is noted", lambda: phase(north) != "training" or north.events("worker_lost")
                )
        at = f.round_of("north")
        f.until("two more rounds", lambda: f.round_of("north") >= at + 2)
        log = north.events()
        arrived = {e["hash"] for e in log if e["event"] == "model_arrived"}
        outcomes = Counter(
            e["hash"] for e in log if e["event"] in ("visit_merged", "visit_refused", "visit_kept_out")
        )
        assert outcomes and max(outcomes.values()) == 1, outcomes
        assert set(outcomes) <= arrived
        assert [e for e in log if e["event"] == "internal_error"] == []
        assert [s.end() for s in (north, south)] == [0, 0]
        visits = newest_state(north)["history"]["visits"]
        assert visits <= len(arrived), "a model visited twice"
        seen(f"6 kills; {len(arrived)} models accepted, {visits} visits in the model's history, "
             f"{len(outcomes)} logged, none twice")  # fmt: skip


def worker_pid(site: Site) -> int:
    status = site.status()
    assert status is not None and status.worker.pid is not None
    return status.worker.pid
