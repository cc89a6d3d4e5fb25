"""The ends of budgets: what is exchanged last, who ends when, and with which model."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gossipseg.core import events as ev
from gossipseg.core.exchange_times import ExchangeTimes
from gossipseg.core.params import GossipParams
from gossipseg.core.types import Phase
from tests.sim.simulator import Net, SimNode, Simulator
from tests.sim.test_rounds import (
    CHAOS,
    LAN,
    QUICK,
    break_it,
    committed,
    federation,
    notes,
    on_disk,
    state,
    verify,
)


def ends(sim: Simulator, within_s: float) -> None:
    """From here on all sites come to the end, and stay there; then what must hold of the whole run does."""
    end = sim.now + within_s
    while sim.now < end and any(n.finished_at is None for n in sim.nodes.values()):
        sim.run(sim.now + 1)
    sim.run(sim.now + 20)
    assert {state(n).phase for n in sim.up()} == {Phase.FINISHED}
    verify(sim)


def position(node: SimNode) -> int:
    return node.worker.round + node.worker.ahead


@pytest.mark.parametrize(("finetune", "last_common"), [(0, 6), (1, 5), (2, 4), (5, 1)])
def test_fine_tuning_begins_with_the_last_common_model(finetune: int, last_common: int) -> None:
    """Six rounds: the last one that is trained together is combined, those trained alone are not."""
    sim = federation(3, seed=finetune, rounds=6, finetune_rounds=finetune)
    ends(sim, 300)
    assert {state(n).round for n in sim.up()} == {6}
    assert set(committed(sim).values()) == {last_common}
    common = {c.proposal.model.hash for c in sim.commits if c.proposal.round == last_common}
    assert len(common) == 1
    if finetune:
        assert {n.worker.last_global for n in sim.up()} == common, "the last global model was not taken"
    else:
        assert common.isdisjoint({n.worker.last_global for n in sim.up()}), "no worker is given it"
        assert all(common <= n.files for n in sim.up())
    assert not notes(sim, "round_passed") and not notes(sim, "round_alone")


def test_each_site_finishes_once_and_not_before_the_last_common_model_is_there() -> None:
    sim = federation(3, federation_rounds=4)
    ends(sim, 200)
    assert len(notes(sim, "finished")) == 3
    for node in sim.nodes.values():
        last = next(c.t for c in sim.commits if c.site == node.site and c.proposal.round == 4)
        assert node.finished_at == last


# ---------------------------------------------------------------- the federation's budget


@pytest.mark.parametrize("finetune", [0, 3])
def test_a_site_that_was_away_ends_with_the_others(finetune: int) -> None:
    orders: list[tuple[str, Any]] = []
    sim = federation(3, federation_rounds=16, finetune_rounds=finetune)
    sim.on_round = lambda node, order: orders.append((node.site, order))
    sim.run(40)
    sim.crash("s0000")
    sim.run(100)
    missed = on_disk(sim)
    sim.start("s0000")
    ends(sim, 300)
    late = sim.nodes["s0000"]
    assert late.worker.round < 16 - 3 and missed >= 7
    assert {position(n) for n in sim.nodes.values()} == {16}
    assert set(committed(sim).values()) == {16 - finetune}
    alone = [order for site, order in orders if site == "s0000" and order.finetuning]
    assert [order.round for order in alone] == [late.worker.round - finetune + 1 + i for i in range(finetune)]
    if finetune:
        assert alone[0].start_from.round == 13, "it begins with the last global model"


def test_a_site_that_trained_alone_ends_with_the_others() -> None:
    sim = federation(3, federation_rounds=30)
    sim.run(40)
    sim.partition(["s0000"], ["s0001", "s0002"])
    sim.run(200)
    sim.heal()
    ends(sim, 300)
    assert {position(n) for n in sim.nodes.values()} == {30}
    assert set(committed(sim).values()) == {30}


def test_sites_that_trained_alone_for_rounds_come_back_to_the_federations_count() -> None:
    """Nothing can be committed for a while: then their own rounds are more than the federation's."""
    sim = federation(4, seed=6, federation_rounds=40)
    sim.run(35)
    sim.partition(["s0000", "s0001"], ["s0002", "s0003"])
    sim.run(220)
    sim.heal()
    ends(sim, 600)
    assert set(committed(sim).values()) == {40}
    assert all(n.worker.round > 40 and position(n) == 40 for n in sim.nodes.values())


def test_rounds_trained_alone_use_nothing_up_of_the_federations_budget() -> None:
    """Half of the sites are away for longer than the budget takes; then all of it is trained together."""
    sim = federation(4, seed=6, federation_rounds=10)
    sim.run(35)
    sim.partition(["s0000", "s0001"], ["s0002", "s0003"])
    sim.run(600)
    assert not notes(sim, "finished")
    sim.heal()
    ends(sim, 600)
    assert set(committed(sim).values()) == {10}
    assert all(n.worker.round > 20 and position(n) == 10 for n in sim.nodes.values())


def late(started: int = 3, **changes: Any) -> Simulator:
    """Four sites, of which the last has not been started yet."""
    given: dict[str, Any] = {"exchange": "rounds", "rounds_params": QUICK, **changes}
    sim = Simulator(4, seed=1, check_every=1, membership=LAN, round_s=lambda i: 6.0, **given)
    for site in list(sim.nodes)[:started]:
        sim.start(site)
    return sim


def test_a_late_joiner_under_a_coordinator_ends_with_the_others() -> None:
    sim = late(federation_rounds=12)
    sim.run(60)
    sim.start("s0003")
    ends(sim, 200)
    assert sim.nodes["s0003"].worker.round < 9
    assert {position(n) for n in sim.nodes.values()} == {12}
    assert len(next(c.proposal for c in sim.commits if c.proposal.round == 12).contributors) == 4


def test_who_comes_when_all_is_over_trains_one_round_from_the_last_common_model() -> None:
    orders: list[Any] = []
    sim = late(federation_rounds=5)
    sim.run(100)
    assert on_disk(sim) == 5
    sim.on_round = lambda node, order: orders.append(order)
    sim.start("s0003")
    ends(sim, 60)
    assert [(o.round, o.export, o.start_from.round) for o in orders] == [(1, False, 5)]


@pytest.mark.parametrize(("every", "rounds", "common"), [(3, 9, 3), (3, 10, 3), (2, 7, 3)])
def test_rounds_left_over_are_trained_without_exchange(every: int, rounds: int, common: int) -> None:
    sim = federation(3, federation_rounds=rounds, exchange_at=ExchangeTimes(every))
    ends(sim, 300)
    assert set(committed(sim).values()) == {common}
    assert {n.worker.round for n in sim.nodes.values()} == {rounds}


def test_left_over_rounds_before_fine_tuning_are_not_trained_twice() -> None:
    sim = federation(3, federation_rounds=10, exchange_at=ExchangeTimes(3), finetune_rounds=2)
    ends(sim, 300)
    assert set(committed(sim).values()) == {2}
    assert {n.worker.round for n in sim.nodes.values()} == {10}


def test_a_budget_of_its_own_may_end_earlier() -> None:
    sim = federation(3, federation_rounds=9)
    sim.nodes["s0001"].rounds = 4
    sim.crash("s0001")
    ends(sim, 300)
    assert {s: n.worker.round for s, n in sim.nodes.items()} == {"s0000": 9, "s0001": 4, "s0002": 9}
    assert set(committed(sim).values()) == {9}


def test_a_late_joiner_in_gossip_takes_the_round_of_the_model_that_it_takes_over() -> None:
    sim = late(
        2,
        exchange="gossip",
        federation_rounds=40,
        gossip=GossipParams(exchange="push", sender_rate=0.9, warmup_rounds=1),
    )
    sim.run(120)
    for site, until in (("s0002", 170), ("s0003", 600)):
        sim.start(site)
        sim.run(until)
    behind = sim.nodes["s0002"].worker.ahead, sim.nodes["s0003"].worker.ahead
    assert behind[0] >= 10 and behind[1] > behind[0]
    assert {position(n) for n in sim.nodes.values()} == {40}
    ended = [n.finished_at for n in sim.nodes.values()]
    assert max(ended) - min(ended) < 60, "it ends about when the others do"  # type: ignore[type-var,operator]


# ---------------------------------------------------------------- what may break at the end


def waiting(sim: Simulator) -> list[str]:
    """Sites that have trained all their rounds and wait."""
    return [n.site for n in sim.up() if position(n) == 4 and state(n).phase is Phase.TRAINING]


@pytest.mark.parametrize("effects", range(0, 60, 4))
@pytest.mark.parametrize("back_after_s", [None, 4.0])
def test_the_last_coordinator_may_die_after_each_of_its_words(
    effects: int, back_after_s: float | None
) -> None:
    sim = federation(3, seed=effects, federation_rounds=4)
    while not any(note.detail["round"] == 4 for _, _, note in notes(sim, "round_led")):
        sim.step()
    leader = next(site for _, site, note in notes(sim, "round_led") if note.detail["round"] == 4)
    sim.crash_mid_step(leader, effects)
    while sim.nodes[leader].up and sim.now < 100:
        sim.step()
    sim.run(sim.now + (back_after_s or 40))
    if not sim.nodes[leader].up:
        sim.start(leader)
    ends(sim, 200)
    assert set(committed(sim).values()) == {4}


def test_a_site_that_restarts_while_it_waits_waits_on() -> None:
    sim = federation(3, federation_rounds=4, round_s=lambda i: 6.0 if i < 2 else 20.0)
    while "s0000" not in waiting(sim):
        sim.step()
    sim.crash("s0000")
    sim.run(sim.now + 2)
    sim.start("s0000")
    sim.run(sim.now + 4)
    assert "s0000" in waiting(sim)
    ends(sim, 200)
    assert set(committed(sim).values()) == {4}


def test_a_worker_that_dies_while_its_site_waits_is_no_failure() -> None:
    sim = federation(3, federation_rounds=4, round_s=lambda i: 6.0 if i < 2 else 20.0)
    while "s0000" not in waiting(sim):
        sim.step()
    sim.kill_worker("s0000")
    ends(sim, 200)
    assert set(committed(sim).values()) == {4}


def test_where_the_others_have_vanished_it_finishes_when_it_has_waited_enough() -> None:
    sim = federation(3, federation_rounds=4)
    while "s0000" not in waiting(sim):
        sim.step()
    for site in ("s0001", "s0002"):
        sim.crash(site)
    began = sim.now
    sim.run(began + 3 * QUICK.alone_after_s)
    ended = sim.nodes["s0000"].finished_at
    assert ended is not None and ended - began > 0.9 * QUICK.alone_after_s
    for site in ("s0001", "s0002"):
        sim.start(site)
    ends(sim, 200)


@pytest.mark.parametrize("seed", range(6))
def test_over_bad_lines_all_end_with_the_last_common_model(seed: int) -> None:
    net = Net(delay_s=(0.005, 1.0), loss=0.1, duplication=0.2)
    sim = federation(4, seed=seed, net=net, federation_rounds=5)
    ends(sim, 500)
    assert set(committed(sim).values()) == {5}


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.integers(2, 5), st.integers(0, 2), st.integers(1, 2), CHAOS)
def test_whatever_breaks_all_end_together_with_one_model(
    seed: int, n: int, finetune: int, every: int, faults: list[tuple[float, str, int, int]]
) -> None:
    sim = federation(
        n, seed=seed, federation_rounds=6, finetune_rounds=finetune, exchange_at=ExchangeTimes(every)
    )
    sim.run(20)
    for pause_s, what, which, how in faults:
        sim.run(sim.now + pause_s)
        break_it(sim, what, which, how)
    sim.heal()
    for node in sim.nodes.values():
        node.crash_within = None
        if not node.up:
            sim.start(node.site)
        sim.tell(node.site, ev.Pause(False))
    ends(sim, 600)
    assert len(set(committed(sim).values())) == 1
    assert {position(node) for node in sim.nodes.values()} == {6}
