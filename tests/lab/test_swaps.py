"""Swaps in the lab: whole runs in which sites trade models between two steps, and the thread they need."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gossipseg.lab.simulation import virtual_time
from gossipseg.lab.simulation.lockstep import Lockstep
from gossipseg.lab.simulation.training import DataCache, Training
from gossipseg.learn import protocol
from gossipseg.learn.params import WorkerSpec
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
        while not work.advance():  # noqa: ASYNC110 - it is the virtual clock
            await asyncio.sleep(step_s)

    async def both() -> None:
        await asyncio.gather(one("a", 1.0), one("b", 1.5))

    virtual_time.run(both())
    assert sorted(seen, key=lambda x: x[2]) == seen
    assert {(n, t) for n, _, t in seen} == {("a", 0), ("a", 1), ("a", 2), ("b", 0), ("b", 1.5), ("b", 3)}


# ---------------------------------------------------------------- what a swap does to the weights


def test_after_a_swap_both_sites_have_the_weighted_mean(
    hospitals: Path, cache: DataCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sites that start apart and all but stand still: each mix moves both to their mean by training cases."""
    found: list[dict[str, tuple[float, int]]] = []
    trainings: dict[str, Training] = {}
    made, swap = Training.__init__, Training.swap

    def apart(self: Training, spec: WorkerSpec, *args: Any, **named: Any) -> None:
        made(self, spec, *args, **named)
        trainings[spec.site] = self
        for tensor in floating(self).values():
            tensor.add_(len(trainings) * 0.25)

    def seen(self: Training, order: protocol.SwapOrder) -> protocol.SwapReport:
        report = swap(self, order)
        if isinstance(order, protocol.ApplySwap):
            found.append({s: (value(t), t.trainer.site.cases) for s, t in trainings.items()})
        return report

    monkeypatch.setattr(Training, "__init__", apart)
    monkeypatch.setattr(Training, "swap", seen)
    label = SWAP[:-1] + ",training.learning_rate=1e-9,training.weight_decay=0]"
    rig.run(rig.plan(hospitals, label, rounds=6, steps=2), cache)
    sums = [sum(v * m for v, m in at.values()) for at in found]
    assert len(found) >= 6 and sums[1::2] == pytest.approx([sums[1]] * len(sums[1::2]), rel=2e-3)
    last = [v for v, _ in found[-1].values()]
    first = [v for v, _ in found[0].values()]
    assert max(last) - min(last) < 0.25 * (max(first) - min(first))


@torch.no_grad()
def floating(training: Training) -> dict[str, torch.Tensor]:
    weights = training.trainer.model_state.weights()
    return {name: t for name, t in weights.items() if t.is_floating_point() and t.dim() > 1}


def value(training: Training) -> float:
    """The mean of all weights."""
    return float(torch.cat([t.flatten() for t in floating(training).values()]).double().mean())
