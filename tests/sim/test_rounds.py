"""Rounds under a rotating coordinator in virtual time: what holds whatever breaks, and that it goes on.

Every run is checked as a whole: one global model for each round, of a quorum's updates, on a quorum's disks
when it was committed, made of this round's updates alone, each site's once.
"""

from __future__ import annotations

import copy
import functools
import random
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gossipseg.core import events as ev
from gossipseg.core import messages
from gossipseg.core.exchange_times import ExchangeTimes
from gossipseg.core.node import NodeState
from gossipseg.core.params import QuarantineParams, RoundsParams, membership_preset
from gossipseg.core.types import Proposal
from tests.sim.simulator import Net, SimNode, Simulator

LAN = membership_preset("lan")
QUICK = RoundsParams(
    deadline_s=40.0,
    patience_s=8.0,
    alone_after_s=90.0,
    poll_interval_s=1.0,
    request_timeout_s=2.0,
    transfer_timeout_s=60.0,
)


def federation(n: int = 3, seed: int = 0, **changes: Any) -> Simulator:
    """n sites on a LAN that train 6 s a round, checked after every step."""
    given: dict[str, Any] = {
        "check_every": 1,
        "membership": LAN,
        "exchange": "rounds",
        "rounds_params": QUICK,
        "round_s": lambda i: 6.0 + i,
        "model_bytes": 5_000_000,
    }
    sim = Simulator(n, seed=seed, **{**given, **changes})
    sim.start_all()
    return sim


def verify(sim: Simulator) -> None:
    """What must hold of a whole run, whatever happened in it."""
    n = len(sim.nodes)
    quorum = sim.rounds_params.quorum or n // 2 + 1
    quorum_size = max(quorum, n // 2 + 1)
    of_round: dict[int, str] = {}
    for c in sim.commits:
        hash, round = c.proposal.model.hash, c.proposal.round
        assert of_round.setdefault(round, hash) == hash, f"two global models of round {round}"
        assert len(c.stored_by) >= quorum_size, f"round {round} committed on {sorted(c.stored_by)} alone"
        sites = [site for site, _ in sim.contents[hash]]
        assert len(set(sites)) == len(sites) >= quorum, f"round {round} is made of {sites}"
        assert c.proposal.contributors == tuple(sorted(sites))
    for round, hash in of_round.items():
        for site, update in sim.contents[hash]:
            made = sim.updates[update]
            assert (made.site, made.base) == (site, of_round.get(round - 1)), f"round {round}: {made}"


def state(node: SimNode) -> NodeState:
    assert node.state is not None
    return node.state


def committed(sim: Simulator) -> dict[str, int]:
    return {n.site: state(n).info.committed for n in sim.up()}


def on_disk(sim: Simulator) -> int:
    """The newest round that any site has ever put on disk as committed."""
    return max((c.proposal.round for c in sim.commits), default=0)


def goes_on(sim: Simulator, within_s: float, rounds: int = 2) -> None:
    """From here on all running sites close rounds together, within that time."""
    target = on_disk(sim) + rounds
    end = sim.now + within_s
    while sim.now < end and min(committed(sim).values()) < target:
        sim.run(sim.now + 1)
    assert min(committed(sim).values()) >= target, (target, committed(sim))
    verify(sim)


def notes(sim: Simulator, event: str) -> list[tuple[float, str, Any]]:
    return [(t, n.site, note) for n in sim.nodes.values() for t, note in n.notes if note.event == event]


def until_led(sim: Simulator, round: int) -> str:
    """Run until somebody leads that round; returns who."""
    while sim.now < 600:
        for _, site, note in notes(sim, "round_led"):
            if note.detail["round"] == round:
                return site
        sim.step()
    raise AssertionError("nobody leads")


# ---------------------------------------------------------------- all is well


@pytest.mark.parametrize("n", [1, 2, 3, 4, 7])
def test_sites_close_rounds_together(n: int) -> None:
    sim = federation(n, seed=n)
    sim.run(20)
    goes_on(sim, 100, rounds=5)
    first = {c.proposal.round: c.proposal for c in reversed(sim.commits)}
    assert all(len(p.contributors) == n and p.attempt == 0 for p in first.values())
    assert not sim.events["round_passed"] and not sim.events["round_alone"]


def test_the_coordinator_rotates() -> None:
    sim = federation(3)
    sim.run(60)
    leaders = [site for _, site, _ in sorted(notes(sim, "round_led"), key=lambda x: x[0])]
    assert leaders[:4] == ["s0001", "s0002", "s0000", "s0001"]


# ---------------------------------------------------------------- the coordinator dies


BRINKS = ((3, 11), (3, 12), (4, 1), (5, 2))
"""(sites, seed) of the federations whose coordinator of round 3 dies."""
RESTARTS_S = (None, 3.0, 25.0)
"""It stays away, or is back so long after its death."""


@functools.cache
def brink(n: int, seed: int) -> tuple[Simulator, str]:
    """(The federation one event before somebody begins to lead round 3, who that will be.)"""
    sim = federation(n, seed=seed)
    played = 0
    while not any(note.detail["round"] == 3 for _, _, note in notes(sim, "round_led")):
        sim.step()
        played += 1
    leader = next(site for _, site, note in notes(sim, "round_led") if note.detail["round"] == 3)
    sim = federation(n, seed=seed)
    for _ in range(played - 1):
        sim.step()
    return sim, leader


def dies_after(n: int, seed: int, effects: int) -> tuple[Simulator, str]:
    """(The federation whose leader of round 3 dies after so many of its effects, that leader.)

    The count begins with the step in which it begins to lead.
    """
    start, leader = brink(n, seed)
    sim = copy.deepcopy(start)
    sim.crash_mid_step(leader, effects)
    while sim.nodes[leader].up and sim.now < 200:
        sim.step()
    assert not sim.nodes[leader].up
    return sim, leader


def closed_everywhere(sim: Simulator) -> bool:
    return {c.site for c in sim.commits if c.proposal.round == 3} == set(sim.nodes)


@pytest.mark.parametrize(("n", "seed"), BRINKS)
def test_the_deaths_tried_begin_with_the_promise_and_each_single_prepare(n: int, seed: int) -> None:
    start, leader = brink(n, seed)
    before, seen = start.nodes[leader].sent["Prepare"], set()
    for effects in range(n + 4):
        sim, _ = dies_after(n, seed, effects)
        disk = sim.nodes[leader].disk
        assert disk is not None and disk.rounds is not None
        promised = (disk.rounds.promised_round, disk.rounds.promised_attempt) == (3, 0)
        seen.add((promised, sim.nodes[leader].sent["Prepare"] - before))
    assert seen >= {(False, 0)} | {(True, prepares) for prepares in range(n)}


@pytest.mark.parametrize("restart_after_s", [None, 3.0, pytest.param(25.0, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("n", "seed"), BRINKS)
def test_a_coordinator_may_die_after_each_of_its_words(
    n: int, seed: int, restart_after_s: float | None
) -> None:
    """From the last thing it does before the round to the first after all have closed it. (Of more than three
    sites each death is tried with one of the restarts.)"""
    first = 0 if n == 3 else RESTARTS_S.index(restart_after_s)
    for effects in range(first, 40 * n, 1 if n == 3 else 3):
        sim, leader = dies_after(n, seed, effects)
        over = closed_everywhere(sim)
        if restart_after_s is not None:
            sim.at(sim.now + restart_after_s, sim.start, leader)
            sim.run(sim.now + restart_after_s)
        goes_on(sim, 120)
        if over:
            return
    raise AssertionError("the round outlasts the deaths that are tried")


def test_the_coordinator_and_then_its_successor_die() -> None:
    sim = federation(5, seed=3)
    first = until_led(sim, 3)
    sim.crash(first)
    attempts = {note.detail["attempt"] for _, _, note in notes(sim, "round_led")}
    while not {note.detail["attempt"] for _, _, note in notes(sim, "round_led")} > attempts:
        sim.step()
    second = max(notes(sim, "round_led"), key=lambda x: x[0])[1]
    assert second != first
    sim.crash(second)
    sim.run(sim.now + 60)
    goes_on(sim, 200)
    sim.start(first)
    sim.start(second)
    sim.run(sim.now + 20)
    goes_on(sim, 100)


# ---------------------------------------------------------------- the network breaks


def test_a_majority_goes_on_and_a_minority_trains_alone_until_it_is_healed() -> None:
    sim = federation(5, seed=5)
    sim.run(40)
    minority, majority = ["s0000", "s0001"], ["s0002", "s0003", "s0004"]
    before = on_disk(sim)
    sim.partition(minority, majority)
    sim.run(40 + 3 * QUICK.alone_after_s)
    views = committed(sim)
    assert all(views[s] <= before + 1 for s in minority), "nothing is committed without a quorum"
    assert all(views[s] >= before + 5 for s in majority), "a majority closes rounds without the others"
    last = max((c for c in sim.commits if c.site == "s0002"), key=lambda c: c.proposal.round)
    assert {s for s, _ in last.proposal.absent} == set(minority)
    alone = [site for _, site, _ in notes(sim, "round_alone")]
    assert set(alone) == set(minority) and len(alone) > 10, "once alone, they train on without a break"
    sim.heal()
    sim.run(sim.now + 60)
    goes_on(sim, 60)
    latest = max(sim.commits, key=lambda c: c.proposal.round).proposal
    assert len(latest.contributors) == 5


def test_an_even_split_commits_nothing_and_heals() -> None:
    sim = federation(4, seed=6)
    sim.run(35)
    sim.partition(["s0000", "s0001"], ["s0002", "s0003"])
    sim.run(45)
    before = on_disk(sim)
    sim.run(250)
    assert on_disk(sim) == before
    assert {site for _, site, _ in notes(sim, "round_alone")} == set(sim.nodes)
    sim.heal()
    sim.run(sim.now + 40)
    goes_on(sim, 60)


def test_an_attempt_that_is_far_on_outlives_a_suspicion() -> None:
    """Pings that are often too late make suspects of sites that do their work."""
    sim = federation(3, seed=3, net=Net(delay_s=(0.005, 0.8), duplication=0.2))
    for node in sim.nodes.values():
        node.worker.aggregate_s = 20.0
    sim.run(400)
    verify(sim)
    assert sim.events["member_suspect"] > 100
    assert on_disk(sim) >= 8
    assert sim.events["round_led"] <= 1.3 * on_disk(sim) + 1, "hardly an attempt was in vain"


@pytest.mark.parametrize("seed", range(6))
def test_lost_doubled_and_late_messages_cost_time_only(seed: int) -> None:
    sim = federation(4, seed=seed, net=Net(delay_s=(0.005, 1.5), loss=0.15, duplication=0.3))
    sim.run(100)
    goes_on(sim, 400, rounds=4)


# ---------------------------------------------------------------- who takes part, and who does not


def proposal_of(sim: Simulator, round: int) -> Proposal:
    return next(c.proposal for c in sim.commits if c.proposal.round == round)


def test_a_site_that_is_too_slow_is_left_out_at_the_deadline() -> None:
    sim = federation(3, round_s=lambda i: 300.0 if i == 2 else 6.0)
    sim.run(30)
    assert on_disk(sim) == 0, "a quorum has delivered; the third is alive and may still deliver"
    sim.run(30 + QUICK.deadline_s)
    first = proposal_of(sim, 1)
    assert first.contributors == ("s0000", "s0001") and first.absent == (("s0002", "late"),)
    sim.run(700)
    slow = sim.nodes["s0002"]
    assert slow.worker.last_global is not None, "it goes on from the newest global model"
    verify(sim)


def test_an_update_that_fails_the_checks_is_left_out_and_its_site_told() -> None:
    sim = federation(4)
    sim.refused_updates = {"s0003"}
    sim.run(60)
    goes_on(sim, 60)
    assert proposal_of(sim, 1).absent == (("s0003", "refused_not_finite"),)
    told = notes(sim, "update_refused")
    assert {site for _, site, _ in told} == {"s0003"} and told[0][2].reason == "not_finite"
    assert state(sim.nodes["s0003"]).info.committed >= 3, "it stays in the federation"


def test_when_all_updates_fail_nothing_is_committed_and_nobody_hangs() -> None:
    sim = federation(3, quarantine=QuarantineParams(offences=1000))
    sim.refused_updates = {"s0001", "s0002"}
    sim.run(60 + 3 * QUICK.alone_after_s)
    assert not sim.commits
    assert {site for _, site, _ in notes(sim, "round_alone")} == set(sim.nodes)
    led = len(notes(sim, "round_led"))
    assert led < sim.now / 4, f"{led} attempts: the sites do not hurry in vain"
    sim.refused_updates = set()
    goes_on(sim, 200)


def test_a_site_whose_updates_are_bad_is_shut_out_for_a_while_and_comes_back() -> None:
    sim = federation(4, quarantine=QuarantineParams(offences=2, first_s=100.0))
    sim.refused_updates = {"s0001"}
    sim.run(240)
    who = {note.site for _, _, note in notes(sim, "peer_quarantined")}
    assert who == {"s0001"}, who
    absent = [dict(c.proposal.absent).get("s0001") for c in sim.commits]
    assert "quarantined" in absent and "refused_not_finite" in absent
    goes_on(sim, 60)
    sim.refused_updates = set()
    sim.run(sim.now + 400)
    assert notes(sim, "quarantine_over")
    last = max(sim.commits, key=lambda c: c.proposal.round).proposal
    assert "s0001" in last.contributors, last
    verify(sim)


def test_a_paused_site_is_passed_over_and_left_out() -> None:
    sim = federation(3)
    sim.run(25)
    sim.tell("s0002", ev.Pause(True))
    goes_on(sim, 100, rounds=4)
    latest = max(sim.commits, key=lambda c: c.proposal.round).proposal
    assert dict(latest.absent) == {"s0002": "paused"}
    sim.tell("s0002", ev.Pause(False))
    sim.run(sim.now + 30)
    goes_on(sim, 60)
    assert len(max(sim.commits, key=lambda c: c.proposal.round).proposal.contributors) == 3


def test_a_site_whose_training_has_failed_still_votes() -> None:
    sim = federation(3)
    sim.run(25)
    sim.nodes["s0002"].worker.running += 1
    sim.tell("s0002", ev.WorkerLost("out of memory", final=True))
    goes_on(sim, 100, rounds=3)
    sim.crash("s0001")
    sim.run(sim.now + 60)
    before = on_disk(sim)
    sim.run(sim.now + 60)
    assert on_disk(sim) == before, "one site alone is no quorum of contributors"


def test_a_late_site_fetches_the_common_model_before_it_trains() -> None:
    sim = Simulator(
        4,
        seed=1,
        check_every=1,
        membership=LAN,
        exchange="rounds",
        rounds_params=QUICK,
        model_bytes=5_000_000,
    )
    for site in ("s0000", "s0001", "s0002"):
        sim.start(site)
    sim.run(150)
    newest = on_disk(sim)
    assert newest >= 2
    orders: list[Any] = []
    sim.on_round = lambda node, order: orders.append((node.site, order))
    sim.start("s0003")
    sim.run(sim.now + 20)
    first = next(order for site, order in orders if site == "s0003")
    assert first.round == 1 and first.settling_in
    assert first.start_from is not None and first.start_from.round >= newest
    sim.run(sim.now + 60)
    assert len(max(sim.commits, key=lambda c: c.proposal.round).proposal.contributors) == 4
    verify(sim)


def test_a_restarted_site_takes_the_newest_model_and_is_back() -> None:
    sim = federation(3)
    sim.run(40)
    sim.crash("s0000")
    sim.run(150)
    assert on_disk(sim) >= 5
    sim.start("s0000")
    sim.run(165)
    assert state(sim.nodes["s0000"]).info.committed >= on_disk(sim) - 1
    goes_on(sim, 60)


def test_a_lost_state_directory_does_not_lock_a_site_out() -> None:
    sim = federation(3)
    sim.run(60)
    sim.crash("s0001")
    node = sim.nodes["s0001"]
    node.disk, node.files, node.worker.last_global, node.worker.round = None, set(), None, 0
    sim.start("s0001")
    sim.run(sim.now + 20)
    goes_on(sim, 60)


def test_all_restart_at_once() -> None:
    sim = federation(4)
    sim.run(60)
    before = on_disk(sim)
    for site in sim.nodes:
        sim.crash(site)
    sim.run(62)
    sim.start_all()
    sim.run(65)
    assert set(committed(sim).values()) == {before}
    goes_on(sim, 100, rounds=3)


# ---------------------------------------------------------------- the budget


@pytest.mark.parametrize(("every", "finetune", "common"), [(1, 0, 10), (1, 3, 7), (3, 0, 3), (2, 4, 3)])
def test_the_last_rounds_are_trained_alone(every: int, finetune: int, common: int) -> None:
    sim = Simulator(
        3,
        seed=2,
        check_every=1,
        membership=LAN,
        exchange="rounds",
        rounds_params=QUICK,
        exchange_at=ExchangeTimes(every),
        finetune_rounds=finetune,
        rounds=10,
        round_s=lambda i: 6.0 + i,
    )
    orders: list[tuple[str, Any]] = []
    sim.on_round = lambda node, order: orders.append((node.site, order))
    sim.start_all()
    sim.run(400)
    assert all(n.finished_at is not None for n in sim.nodes.values())
    assert on_disk(sim) == common
    assert not sim.events["round_alone"] and not sim.events["round_passed"]
    mine = [order for site, order in orders if site == "s0000"]
    assert [o.round for o in mine] == list(range(1, 11))
    assert [o.finetuning for o in mine] == [r > 10 - finetune for r in range(1, 11)]
    if every * common < 10:
        last = mine[every * common]
        assert last.start_from is not None and last.start_from.round == common
    exports = [o.round for o in mine if o.export]
    assert exports == [every * (i + 1) for i in range(common)]
    verify(sim)


def test_sites_go_on_alone_at_once_when_too_few_are_left_to_contribute() -> None:
    sim = budgets(4, 4, 9)
    sim.run(150)
    assert all(n.finished_at is not None for n in sim.nodes.values())
    assert sim.nodes["s0002"].finished_at < QUICK.alone_after_s  # type: ignore[operator]
    assert on_disk(sim) == 4


def budgets(*rounds: int) -> Simulator:
    sim = Simulator(
        len(rounds),
        seed=4,
        check_every=1,
        membership=LAN,
        exchange="rounds",
        rounds_params=QUICK,
        round_s=lambda i: 6.0,
    )
    for node, budget in zip(sim.nodes.values(), rounds, strict=True):
        node.rounds = budget
    sim.start_all()
    return sim


def test_finished_sites_still_vote() -> None:
    """Two of five have a small budget: three contribute, and a quorum of promises is easily there."""
    sim = budgets(3, 3, 9, 9, 9)
    sim.run(200)
    assert on_disk(sim) == 9
    last = proposal_of(sim, 9)
    assert dict(last.absent) == {"s0000": "finished", "s0001": "finished"}
    assert {c.site for c in sim.commits if c.proposal.round == 9} == set(sim.nodes)


# ---------------------------------------------------------------- what Paxos is for


def at_stage(stage: str, **changes: Any) -> tuple[Simulator, str, str, str]:
    """Three sites, round 3 at this stage: (federation, its leader, the next in turn, the third)."""
    sim = federation(3, seed=11, **changes)
    leader = until_led(sim, round=3)
    second, third = (f"s{(int(leader[1:]) + i) % 3:04d}" for i in (1, 2))
    view = state(sim.nodes[leader]).rounds_view
    while view is None or view.state != stage:
        sim.step()
        view = state(sim.nodes[leader]).rounds_view
    return sim, leader, second, third


def test_what_may_have_been_committed_is_proposed_again() -> None:
    """The leader and the third have stored it, and the leader has committed it and is gone."""
    sim, leader, second, third = at_stage("storing")
    sim.partition([leader, third], [second])
    while on_disk(sim) < 3:
        sim.step()
    sim.partition([leader], [second], [third])
    sim.run(sim.now + 2)
    assert committed(sim)[third] == 2, "only the leader knows"
    sim.crash(leader)
    sim.heal()
    goes_on(sim, 120, rounds=1)
    again = next(c.proposal for c in sim.commits if c.site == second and c.proposal.round == 3)
    assert again.attempt > 0 and leader in again.contributors
    sim.start(leader)
    sim.run(sim.now + 20)
    goes_on(sim, 60)


def test_who_has_promised_a_later_attempt_stores_no_earlier_one() -> None:
    """The second cannot hear the leader, loses patience and leads: when the leader's model is made at last,
    the third has promised to follow the second. Whoever closes the round first is then cut off."""
    sim, leader, second, third = at_stage("gathering")
    sim.nodes[leader].worker.aggregate_s, sim.nodes[second].worker.aggregate_s = 12.0, 15.0
    sim.cut(leader, second)
    sim.run(sim.now + 19)
    view = state(sim.nodes[second]).rounds_view
    assert view is not None and (view.state, view.leading) == ("aggregating", True)
    while on_disk(sim) < 3:
        sim.step()
    first = next(c for c in sim.commits if c.proposal.round == 3)
    sim.partition([first.site], [s for s in (leader, second, third) if s != first.site])
    sim.run(sim.now + 60)
    verify(sim)
    assert first.proposal.attempt > 0
    sim.heal()
    goes_on(sim, 100)


def test_a_minority_that_has_stored_a_model_takes_the_other_one() -> None:
    sim, leader, second, third = at_stage("storing")
    stored = state(sim.nodes[leader]).rounds_view
    assert stored is not None
    sim.partition([leader], [second, third])
    sim.run(sim.now + 60)
    assert committed(sim)[leader] == 2 and committed(sim)[second] >= 3
    sim.heal()
    sim.run(sim.now + 20)
    goes_on(sim, 60)


# ---------------------------------------------------------------- the list, and numbers out of reach


@pytest.mark.parametrize("seed", range(5))
def test_a_list_that_changes_amid_the_rounds_splits_none(seed: int) -> None:
    """A fourth site is listed, removed and listed again, at each site some seconds apart, over bad lines."""
    sim = federation(4, seed=seed)
    rng, everybody = random.Random(seed), sorted(sim.nodes)

    def relist(site: str, listed: list[str]) -> None:
        others = {s: a for s, a in sim.addresses.items() if s != site and s in listed}
        sim.tell(site, ev.SitesChanged(others))

    for site in everybody[:3]:
        sim.at(1.5, relist, site, everybody[:3])
    for n in range(3):
        at = 20.0 + 30 * n
        for site in everybody[:3]:
            sim.at(at + 12 * rng.random(), relist, site, everybody[: 3 + (n + 1) % 2])
        sim.at(at + 10 * rng.random(), sim.cut, *rng.sample(everybody, 2))
        sim.at(at + 26, sim.heal)
    sim.run(110)
    before = on_disk(sim)
    sim.run(240)
    of_round: dict[int, set[str]] = {}
    for c in sim.commits:
        of_round.setdefault(c.proposal.round, set()).add(c.proposal.model.hash)
    assert all(len(hashes) == 1 for hashes in of_round.values())
    assert on_disk(sim) >= before + 2


def test_a_site_that_prepares_absurd_attempts_is_shut_out_and_the_rounds_go_on() -> None:
    sim = federation(3, seed=4, quarantine=QuarantineParams(offences=3, first_s=1000.0))
    bad = "s0002"
    sim.run(20)
    honest = [s for s in sim.nodes if s != bad]
    for n in range(6):
        for at, site in enumerate(honest):
            sim.at(20 + n + 0.1 * at, prepares, sim, bad, site, 10**9 - 100 * n)
    sim.run(30)
    for site in honest:
        assert state(sim.nodes[site]).quarantined(bad)
        assert not state(sim.nodes[site]).quarantined(next(s for s in honest if s != site))
    before = on_disk(sim)
    sim.run(120)
    assert on_disk(sim) >= before + 4
    assert all(c.proposal.attempt < 10 for c in sim.commits)


def prepares(sim: Simulator, frm: str, to: str, least: int) -> None:
    """`frm`'s next turn from this attempt on, told to one site."""
    acceptor = state(sim.nodes[to])._rounds.acceptor  # type: ignore[union-attr]
    quorum, round = acceptor.quorum, acceptor.round
    attempt = next(a for a in range(least, least + 9) if quorum.coordinator(round, a) == frm)
    body = messages.Prepare(acceptor.run, quorum.key, round, attempt)
    sim.inject(to, frm, body)


# ---------------------------------------------------------------- anything


CHAOS = st.lists(
    st.tuples(
        st.floats(0.5, 12.0),
        st.sampled_from(
            ["crash", "mid_step", "partition", "cut", "heal", "start", "starve", "worker", "pause"]
        ),
        st.integers(0, 4),
        st.integers(0, 25),
    ),
    max_size=14,
)


def break_it(sim: Simulator, what: str, which: int, how: int) -> None:
    names = sorted(sim.nodes)
    node = sim.nodes[names[which % len(names)]]
    match what:
        case "crash":
            sim.crash(node.site)
        case "mid_step":
            sim.crash_mid_step(node.site, how)
        case "start" if not node.up:
            sim.start(node.site)
        case "partition":
            cut = 1 + how % (len(names) - 1)
            turned = names[which % len(names) :] + names[: which % len(names)]
            sim.partition(turned[:cut], turned[cut:])
        case "cut":
            sim.cut(node.site, names[(which + 1 + how % (len(names) - 1)) % len(names)])
        case "heal":
            sim.heal()
        case "starve" if node.up:
            sim.starve(node.site, 0.2 * how)
        case "worker":
            sim.kill_worker(node.site, 3.0)
        case "pause":
            sim.tell(node.site, ev.Pause(how % 2 == 0))


def chaos(seed: int, n: int, bad_net: bool, faults: list[tuple[float, str, int, int]]) -> Simulator:
    net = Net(delay_s=(0.005, 0.8), loss=0.08, duplication=0.2) if bad_net else Net()
    sim = federation(n, seed=seed, net=net)
    for node in sim.nodes.values():
        node.worker.aggregate_s = sim.rng.choice((0.5, 3.0, 20.0))
    sim.run(20)
    for pause_s, what, which, how in faults:
        sim.run(sim.now + pause_s)
        break_it(sim, what, which, how)
    sim.heal()
    sim.net = replace(net, loss=0.0)
    for node in sim.nodes.values():
        node.crash_within = None
        if not node.up:
            sim.start(node.site)
        sim.tell(node.site, ev.Pause(False))
    verify(sim)
    sim.run(sim.now + 60)
    goes_on(sim, 200)
    return sim


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.integers(2, 5), st.booleans(), CHAOS)
def test_whatever_breaks_one_model_is_common_and_all_go_on(
    seed: int, n: int, bad_net: bool, faults: list[tuple[float, str, int, int]]
) -> None:
    chaos(seed, n, bad_net, faults)
