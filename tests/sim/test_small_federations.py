"""Federations of a few sites in virtual time: what a hospital's administrator would try."""

from __future__ import annotations

import itertools

import pytest

from gossipseg.core import events as ev
from gossipseg.core.params import GossipParams, membership_preset
from gossipseg.core.types import MemberState, Phase
from tests.sim.simulator import Net, SimNode, Simulator

LAN = membership_preset("lan")


def federation(n: int, seed: int = 0, **changes: object) -> Simulator:
    """n sites on a LAN, checked after every step."""
    return Simulator(n, seed=seed, check_every=1, membership=LAN, **changes)  # type: ignore[arg-type]


def states(sim: Simulator, of: str) -> set[str]:
    return {sim.believes(n.site, of).value for n in sim.up() if n.site != of}


def longest_gap_s(node: SimNode) -> float:
    times = [0.0, *node.round_times]
    return max(b - a for a, b in itertools.pairwise(times))


def notes(sim: Simulator, event: str) -> list[tuple[float, str, str | None]]:
    return [(t, n.site, note.site) for n in sim.nodes.values() for t, note in n.notes if note.event == event]


@pytest.mark.parametrize("n", [2, 3, 5, 8])
def test_sites_find_each_other_within_seconds(n: int) -> None:
    sim = federation(n)
    sim.start_all()
    sim.run(10)
    assert sim.wrong_views() == []


def test_all_sites_finish_and_each_has_learned_from_others() -> None:
    sim = federation(3, seed=1, rounds=12)
    sim.start_all()
    sim.run(600)
    for node in sim.nodes.values():
        assert node.finished_at is not None and node.worker.round == 12
        assert len(node.worker.visits) >= 1
        assert node.worker.heard_of.bit_count() >= 2
        assert node.state is not None and node.state.phase is Phase.FINISHED
    assert not sim.events["member_suspect"]


def test_a_killed_site_is_found_dead_comes_back_and_goes_on_at_its_round() -> None:
    sim = federation(4, seed=1)
    sim.start_all()
    sim.run(100)
    round = sim.nodes["s0002"].worker.round
    assert round >= 3
    sim.crash("s0002")
    # one pass over the list, the probe, its helpers, Lifeguard's longest timeout
    sim.run(100 + 3 * 1 + 2 + 6 * 4)
    assert states(sim, "s0002") == {"dead"}
    sim.start("s0002")
    sim.run(sim.now + 60)
    assert sim.wrong_views() == []
    assert sim.nodes["s0002"].worker.round > round
    restarted = sim.nodes["s0002"].state
    assert restarted is not None and restarted.round >= round
    assert all(longest_gap_s(n) < 50 for n in sim.nodes.values() if n.site != "s0002"), "others never wait"


def test_a_restart_faster_than_the_detector_is_seen_as_a_new_life() -> None:
    sim = federation(3)
    sim.start_all()
    sim.run(60)
    sim.crash("s0001")
    sim.at(61, sim.start, "s0001")
    sim.run(75)
    assert sim.wrong_views() == []
    assert not sim.events["duplicate_site"]


def test_a_lost_state_directory_does_not_lock_a_site_out() -> None:
    sim = federation(3, seed=2)
    sim.start_all()
    sim.run(60)
    for _ in range(3):  # its incarnation grows with each restart
        sim.crash("s0001")
        sim.start("s0001")
        sim.run(sim.now + 30)
    sim.crash("s0001")
    sim.nodes["s0001"].disk = None
    sim.start("s0001")
    sim.run(sim.now + 60)
    assert sim.wrong_views() == []


def test_a_late_joiner_takes_part() -> None:
    sim = federation(4, seed=3, gossip=GossipParams(exchange="push", sender_rate=0.8))
    for site in ("s0000", "s0001", "s0002"):
        sim.start(site)
    sim.run(200)
    assert states(sim, "s0003") == {"unseen"}
    sim.start("s0003")
    sim.run(210)
    assert sim.wrong_views() == []
    sim.run(400)
    late = sim.nodes["s0003"].worker
    assert late.visits and late.heard_of.bit_count() > 1


def test_a_site_that_leaves_is_known_to_have_left_and_not_to_be_dead() -> None:
    sim = federation(5, seed=4)
    sim.start_all()
    sim.run(60)
    sim.tell("s0001", ev.Leave())
    sim.run(60.3)
    sim.crash("s0001")
    sim.run(90)
    assert states(sim, "s0001") == {"left"}
    assert not sim.events["member_dead"]
    sim.start("s0001")
    sim.run(100)
    assert states(sim, "s0001") == {"alive"}


@pytest.mark.parametrize("seed", range(3))
def test_a_partition_splits_and_heals(seed: int) -> None:
    sim = federation(6, seed=seed)
    sim.start_all()
    sim.run(60)
    left, right = ["s0000", "s0001", "s0002"], ["s0003", "s0004", "s0005"]
    sim.partition(left, right)
    sim.run(160)
    for a in left:
        assert all(sim.believes(a, b) is MemberState.DEAD for b in right)
        assert all(sim.believes(a, b) is MemberState.ALIVE for b in left if b != a)
    sim.heal()
    # each push/pull interval dials one listed site that is not alive: three of them at most
    sim.run(160 + 4 * LAN.push_pull_interval_s)
    assert sim.wrong_views() == []
    assert all(longest_gap_s(n) < 50 for n in sim.nodes.values())


def test_sites_that_all_start_at_one_instant_before_anybody_listens_find_each_other() -> None:
    sim = federation(3)
    everybody = list(sim.nodes)
    sim.partition(*[[s] for s in everybody])
    sim.start_all(within_s=0.0)
    sim.run(30)
    sim.heal()
    sim.run(40)
    assert sim.wrong_views() == []


@pytest.mark.parametrize("seed", range(3))
def test_a_starved_site_is_not_declared_dead_and_accuses_nobody(seed: int) -> None:
    """Lifeguard's case: training takes the machine, and the loop stands still for seconds at a time."""
    sim = federation(8, seed=seed, net=Net(loss=0.01))
    sim.start_all()
    sim.run(30)
    t = 30.0
    while t < 300:
        sim.at(t, sim.starve, "s0003", 2.0)
        t += 3.5
    sim.run(300)
    accusations = [
        (t, who, whom) for t, who, whom in notes(sim, "member_suspect") if who == "s0003" and t < 300
    ]
    by_itself = [note for _, note in sim.nodes["s0003"].notes if note.reason == "no answer to this site"]
    assert by_itself == [], accusations
    assert notes(sim, "member_dead") == []
    starved = sim.nodes["s0003"].state
    assert starved is not None and starved.self_health > 0
    sim.run(360)
    assert sim.wrong_views() == []
    assert starved.self_health == 0, "it recovers"


def test_a_dead_worker_costs_its_round_and_nobody_elses() -> None:
    sim = federation(3, rounds=10)
    sim.start_all()
    for t in (50.0, 110.0, 150.0):
        sim.at(t, sim.kill_worker, "s0001")
    sim.run(600)
    assert all(n.worker.round == 10 for n in sim.nodes.values())
    assert all(len(set(n.worker.visits)) == len(n.worker.visits) for n in sim.nodes.values())
    assert not sim.events["member_suspect"], "its daemon never went away"


@pytest.mark.parametrize("seed", range(8))
def test_a_crash_at_any_instant_visits_no_model_twice_and_loses_no_round(seed: int) -> None:
    sim = federation(
        4,
        seed=seed,
        gossip=GossipParams(exchange="push", sender_rate=1.0),
        net=Net(loss=0.02, duplication=0.05),
    )
    sim.start_all()
    rounds: dict[str, int] = {}
    for i in range(14):
        site = f"s{i % 4:04d}"
        t = 40.0 + 17.3 * i
        sim.at(t, sim.crash_mid_step, site, sim.rng.randrange(6))
        sim.at(t + 12, lambda s: rounds.__setitem__(s, sim.nodes[s].worker.round), site)
        sim.at(t + 12.5, sim.crash, site)
        sim.at(t + 13, sim.start, site)
    sim.run(330)
    assert sim.events["crash_mid_step"] >= 10
    for node in sim.nodes.values():
        assert len(set(node.worker.visits)) == len(node.worker.visits), "visited twice"
        assert node.worker.round >= rounds[node.site]
    sim.run(400)
    assert sim.wrong_views() == []


def test_different_contracts_meet_stay_members_and_move_no_weights() -> None:
    sim = federation(3)
    odd = sim.nodes["s0002"].worker
    odd.contract = tuple((k, "0.1" if k == "training.lr" else v) for k, v in odd.contract)
    sim.start_all()
    sim.run(200)
    assert sim.wrong_views() == []
    state = sim.nodes["s0000"].state
    assert state is not None
    assert state.members["s0002"].refused == "training.lr: 0.003 here, 0.1 there"
    assert state.members["s0001"].refused == ""
    assert odd.visits == [] and odd.heard_of.bit_count() == 1
    assert sim.nodes["s0000"].worker.visits, "the others exchange"


def test_disjoint_protocols_meet_and_move_no_weights() -> None:
    sim = federation(3)
    for site in ("s0000", "s0001"):
        sim.start(site)
    sim.start("s0002", protocol=(2, 3))
    sim.run(120)
    state = sim.nodes["s0000"].state
    assert state is not None and state.members["s0002"].refused == "protocol: 1-1 here, 2-3 there"
    assert sim.nodes["s0002"].worker.visits == []


def test_a_slow_link_holds_up_nobodys_training() -> None:
    sim = federation(4, net=Net(bytes_per_s=100e3), model_bytes=50_000_000)  # 500 s a model
    sim.start_all()
    sim.run(900)
    assert all(longest_gap_s(n) < 50 for n in sim.nodes.values())
    assert sim.events["model_arrived"] > 0 and not sim.events["member_suspect"]
