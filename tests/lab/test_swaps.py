"""Swaps in the lab: whole runs in which sites trade models between two steps, and the thread they need."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from gossipseg.lab.simulation import virtual_time
from gossipseg.lab.simulation.lockstep import Lockstep
from gossipseg.lab.simulation.training import DataCache
from tests.lab import rig

SWAP = "gossip_average[gossip.exchange=swap,gossip.warmup_rounds=0,training.personal=none]"


@pytest.fixture(scope="module")
def cache() -> DataCache:
    return DataCache()


def test_sites_swap_about_once_a_round_and_nothing_is_lost(hospitals: Path, cache: DataCache) -> None:
    rows = rig.run(rig.plan(hospitals, SWAP, rounds=5, steps=4), cache)
    for row in rows.values():
        swaps = row["swaps"]
        assert row["rounds"] == 5 and swaps["mixed"] + swaps["copied"] + swaps["kept"] >= 2
        assert swaps["swap_in_doubt"] == swaps["swap_lost"] == 0
        assert row["merged"] == swaps["mixed"] + swaps["copied"] and not row["warnings"]
        assert row["model_bytes_out"] >= row["merged"] * row["wire_model_bytes"] / 2
    mixed = sum(row["swaps"]["mixed"] for row in rows.values())
    assert mixed >= 4 and mixed % 2 == 0, "a swap that mixes at one site mixes at the other"


@pytest.mark.slow
def test_swaps_are_the_same_twice(hospitals: Path, cache: DataCache) -> None:
    made = rig.plan(hospitals, SWAP, rounds=4, steps=6)
    first, again = rig.run(made, cache), rig.run(made, DataCache())
    assert sum(row["merged"] for row in first.values()) > 0
    assert rig.timeless(first) == rig.timeless(again)


@pytest.mark.slow
@pytest.mark.parametrize("label", ["gcml[gossip.exchange=swap]", SWAP[:-1] + ",gossip.swaps_per_round=log2]"])
def test_other_algorithms_and_the_hypercube_swap_too(hospitals: Path, cache: DataCache, label: str) -> None:
    rows = rig.run(rig.plan(hospitals, label, rounds=6, steps=6), cache)
    assert sum(row["merged"] for row in rows.values()) > 0


@pytest.mark.slow
def test_what_a_malicious_site_swaps_is_refused(hospitals: Path, cache: DataCache) -> None:
    made = rig.plan(hospitals, SWAP, rounds=4, steps=6, adversary=("north:nan",))
    rows = rig.run(made, cache)
    assert rows and all("north" not in row["merged_from"] for row in rows.values())
    assert sum(row["notes"].get("visit_refused", 0) for row in rows.values()) > 0


# ---------------------------------------------------------------- the thread


def counted(pause: Callable[[], None], seen: list[int]) -> str:
    for i in range(3):
        pause()
        seen.append(i)
    return "done"


def test_work_runs_only_while_it_is_waited_for() -> None:
    seen: list[int] = []
    work = Lockstep(lambda pause: counted(pause, seen))
    assert seen == [] and not work.advance()
    found = []
    while not work.advance():
        found.append(list(seen))
    assert found == [[0], [0, 1]] and seen == [0, 1, 2] and work.result == "done"
    work.abandon()


def test_what_the_work_raises_is_raised() -> None:
    def broken(pause: Callable[[], None]) -> None:
        raise ValueError("no such batch")

    with pytest.raises(ValueError, match="no such batch"):
        Lockstep(broken).advance()


def test_abandoned_work_ends_where_it_is_held() -> None:
    seen: list[int] = []
    before = threading.active_count()
    for steps in range(3):
        work = Lockstep(lambda pause: counted(pause, seen))
        for _ in range(steps):
            work.advance()
        work.abandon()
    assert threading.active_count() == before and seen == [0]


def test_two_works_take_turns_in_virtual_time() -> None:
    seen: list[tuple[str, int, float]] = []

    async def one(name: str, step_s: float) -> None:
        loop = asyncio.get_running_loop()

        def steps(pause: Callable[[], None]) -> None:
            for i in range(3):
                seen.append((name, i, loop.time()))
                pause()

        work = Lockstep(steps)
        while not work.advance():
            await asyncio.sleep(step_s)

    async def both() -> None:
        await asyncio.gather(one("a", 1.0), one("b", 1.5))

    virtual_time.run(both())
    assert sorted(seen, key=lambda x: x[2]) == seen
    assert {(n, t) for n, _, t in seen} == {("a", 0), ("a", 1), ("a", 2), ("b", 0), ("b", 1.5), ("b", 3)}
