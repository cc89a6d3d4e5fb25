"""Swaps in virtual time: loss, duplication, delay, crashes at every message, many sites.

Two things are always asserted (SwapWorld.check). No swap is applied twice at a site. And what the weighted
sum Σ m·T has gained is exactly what local steps, copies, one-way meetings and one-sided swaps have added.
"""

from __future__ import annotations

from typing import Any

import pytest

from gossipseg.core import effects as fx
from gossipseg.core import events as ev
from gossipseg.core.assembly import DurableState
from gossipseg.core.exchange_times import ExchangeTimes
from gossipseg.core.params import GossipParams, MembershipParams
from tests.sim.simulator import Net, SimNode
from tests.sim.swap_world import SwapWorld

SWAP = GossipParams(exchange="swap")
QUIET = MembershipParams(probe_interval_s=10.0, probe_timeout_s=5.0)


def world(n: int = 8, **changes: Any) -> SwapWorld:
    given: dict[str, Any] = {
        "seed": 1,
        "gossip": SWAP,
        "noise": 0.01,
        "check_every": 1,
        "cases": lambda i: 20 + i,
    }
    return SwapWorld(n, **{**given, **changes})


def drain(sim: SwapWorld) -> None:
    """Begin no swap any more, let the open ones end, and check the books."""
    for site in sim.nodes:
        sim.tell(site, ev.Pause(True))
    sim.run(sim.now + 120)
    assert all(n.state is not None and n.state.swap is None for n in sim.nodes.values()), "a swap hangs"
    sim.check()


def run_on(sim: SwapWorld, seconds: float) -> None:
    """Restart what has crashed, let it settle without faults, and check the books."""
    sim.crash_when = sim.crash_applied = None
    sim.net = Net()
    sim.heal()
    sim.run(sim.now + 5)  # restarts under way
    for site, node in sim.nodes.items():
        if not node.up:
            sim.start(site)
    sim.run(sim.now + seconds)
    drain(sim)


# ---------------------------------------------------------------- without faults


def test_eight_sites_come_together_and_keep_the_weighted_mean() -> None:
    sim = world()
    sim.start_all()
    before = sim.spread()
    while min(n.worker.round for n in sim.nodes.values()) < 200:
        sim.run(sim.now + 250)
    drain(sim)
    assert sim.unbalanced() == 0.0, "every swap was applied at both"
    assert sim.weighted_sum() == pytest.approx(sim.expected_sum())
    assert sim.spread() < 0.01 * before
    rounds = sum(n.worker.round - SWAP.warmup_rounds for n in sim.nodes.values())
    assert 0.8 <= len(sim.books.applied) / rounds <= 1.25, "one swap a site and round, whoever began"


def test_one_is_open_at_a_time_and_the_busy_say_so() -> None:
    sim = world(round_s=lambda i: 5.0, model_bytes=60_000_000)
    open_now: dict[str, set[object]] = {s: set() for s in sim.nodes}
    sim.start_all()
    while sim.now < 300:
        sim.step()
        for site, node in sim.nodes.items():
            swap = node.state.swap if node.state is not None else None
            if swap is not None:
                open_now[site].add(swap.id)
    sim.check()
    exported = {site: [k for s, k in sim.books.exports if s == site] for site in sim.nodes}
    assert all(set(exported[s]) <= open_now[s] for s in sim.nodes), "a snapshot without an open swap"
    assert sim.events["swap_refused"] > 0


def test_two_sites_that_ask_each_other_at_once_make_one_swap() -> None:
    sim = world(2, net=Net(delay_s=(3.0, 3.0)), round_s=lambda i: 30.0)
    sim.start_all(within_s=0.1)
    sim.run(1000)
    sim.check()
    assert sim.unbalanced() == 0.0
    assert len(sim.by_swap()) >= 10


# ---------------------------------------------------------------- faults of the network


@pytest.mark.parametrize("seed", range(4))
def test_loss_duplication_and_delay(seed: int) -> None:
    net = Net(delay_s=(0.01, 15.0), loss=0.15, duplication=0.3, bytes_per_s=1e6)
    sim = world(seed=seed, net=net, membership=QUIET, rounds=None)
    sim.start_all()
    sim.run(2500)
    run_on(sim, 900)
    assert len(sim.books.applied) > 100
    # every message was retried until it was answered, within doubt_timeout_s
    assert sim.one_sided() == []
    assert sim.spread() < 1.0


@pytest.mark.parametrize("seed", range(3))
def test_a_partition_in_the_middle_of_swaps(seed: int) -> None:
    """Cut off for longer than doubt lasts: the asker drops, and the other may have committed."""
    net = Net(delay_s=(0.5, 2.0), bytes_per_s=8e6)
    impatient = GossipParams(exchange="swap", doubt_timeout_s=60.0)
    sim = world(seed=seed, net=net, gossip=impatient, round_s=lambda i: 4.0, membership=QUIET)
    sim.start_all()
    for k in range(12):
        sim.run(sim.now + 25)
        sim.partition([f"s{(k + i) % 8:04d}" for i in range(4)])
        sim.run(sim.now + 75)
        sim.heal()
    run_on(sim, 100)
    doubts = sum(n.state.count("swap_in_doubt") for n in sim.nodes.values() if n.state is not None)
    assert doubts > 0
    assert len(sim.one_sided()) <= doubts, "one-sided only where the asker was in doubt, and counted"


def lost_at(k: int) -> tuple[SwapWorld, str]:
    """The k-th message of a swap does not arrive; its kind."""
    sim, seen, lost = world(2, seed=5), [0], []

    def lose(node: SimNode, effect: fx.Effect) -> bool:
        body = effect.body if isinstance(effect, fx.Request | fx.Respond) else None
        if sim.now < 45 or lost or not type(body).__name__.startswith("Swap"):
            return False
        seen[0] += 1
        if seen[0] > k:
            lost.append(type(body).__name__)
        return bool(lost)

    sim.lose_when = lose
    sim.start_all(within_s=0.1)
    sim.run(150)
    drain(sim)
    return sim, lost[0]


def test_every_message_of_a_swap_may_be_lost() -> None:
    """One request or answer after the other is repeated, or the swap is dropped at both."""
    kinds = set()
    for k in range(40):
        sim, kind = lost_at(k)
        kinds.add(kind)
        assert sim.one_sided() == [], f"message {k}, {kind}"
        assert len(sim.by_swap()) >= 3, "swaps go on"
    assert {"SwapOffer", "SwapOfferReply", "SwapSnapshot", "SwapSnapshotReply", "SwapReady"} <= kinds
    assert "SwapState" in kinds


# ---------------------------------------------------------------- crashes at every message


def in_swap(node: SimNode, effect: fx.Effect) -> bool:
    """Whether an effect belongs to a swap: its messages, orders, files and records."""
    if isinstance(
        effect, fx.Persist | fx.ExportSnapshot | fx.AdmitSnapshot | fx.ApplySwap | fx.StartTransfer
    ):
        return True
    body = effect.body if isinstance(effect, fx.Request | fx.Respond) else None
    return type(body).__name__.startswith("Swap")


def crashed_at(k: int, down_s: float, n: int = 2, seed: int = 5) -> SwapWorld | None:
    """The k-th effect of a swap is replaced by a crash; None: there were fewer."""
    sim = world(n, seed=seed, round_s=lambda i: 20.0 + i)
    seen, victims = [0], []

    def crash(node: SimNode, effect: fx.Effect) -> bool:
        if sim.now < 45 or not in_swap(node, effect) or victims:
            return False
        seen[0] += 1
        if seen[0] <= k:
            return False
        victims.append(node.site)
        sim.at(sim.now + down_s, sim.start, node.site)
        return True

    sim.start_all(within_s=0.1)
    sim.crash_when = crash
    sim.run(110)
    if not victims:
        return None
    before = len(sim.books.applied)
    sim.run(sim.now + down_s)
    run_on(sim, 100)
    assert len(sim.books.applied) > before, "swaps go on afterwards"
    return sim


@pytest.mark.parametrize("down_s", [0.5, 5.0, 200.0])
def test_a_crash_at_every_effect_of_a_swap(down_s: float) -> None:
    """kill -9 before each message, record and order, at either site: both apply the swap or neither does."""
    k = 0
    while k < 80 and (sim := crashed_at(k, down_s)) is not None:
        assert sim.one_sided() == [], f"effect {k}"
        k += 1
    assert k > 30, "the whole of a swap, at both sites"


def test_a_crash_between_checkpoint_and_report() -> None:
    """The checkpoint names the swap: it is not applied again."""
    sim = world(4)
    crashes = [0]

    def crash(node: SimNode) -> bool:
        crashes[0] += 1
        if crashes[0] % 3 == 0:
            sim.at(sim.now + 4.0, sim.start, node.site)
            return True
        return False

    sim.crash_applied = crash
    sim.start_all()
    sim.run(1500)
    run_on(sim, 300)
    assert crashes[0] > 60
    assert sim.one_sided() == []


@pytest.mark.parametrize("seed", range(3))
def test_random_crashes_of_daemons_and_workers_under_loss(seed: int) -> None:
    sim = world(seed=seed, net=Net(delay_s=(0.01, 3.0), loss=0.1, duplication=0.2, bytes_per_s=2e6))
    sim.start_all()
    for _ in range(30):
        crash_somebody(sim)
    run_on(sim, 300)
    assert len(sim.books.applied) > 100
    assert sim.one_sided() == [], "all were back within doubt_timeout_s"


def crash_somebody(sim: SwapWorld) -> None:
    """After a while a daemon or a worker dies, and comes back."""
    sim.run(sim.now + 20 + 40 * sim.rng.random())
    site = f"s{sim.rng.randrange(8):04d}"
    if sim.rng.random() < 0.4:
        sim.kill_worker(site, 10.0)
    elif sim.nodes[site].up:
        sim.crash_mid_step(site, sim.rng.randrange(4))
        sim.run(sim.now + 15)
        if not sim.nodes[site].up:
            sim.start(site)


def test_eight_sites_over_two_hundred_rounds_of_all_faults() -> None:
    """Loss, duplication, random delays and crashes together: the sum stays, and the sites come together."""
    sim = world(seed=5, net=Net(delay_s=(0.01, 3.0), loss=0.1, duplication=0.2, bytes_per_s=2e6))
    sim.start_all()
    before = sim.spread()
    while min(n.worker.round for n in sim.nodes.values()) < 200:
        crash_somebody(sim)
    run_on(sim, 300)
    assert sim.one_sided() == []
    alone = [sides[0].part for sides in sim.by_swap().values() if len(sides) == 1]
    assert set(alone) <= {"copy"} and len(alone) < 0.05 * len(sim.books.applied)
    assert sim.spread() < 0.05 * before


def test_a_site_that_never_comes_back_leaves_a_counted_doubt() -> None:
    """The one that was asked commits and is lost before its answer leaves it. The asker drops in the end."""
    sim = world(2)

    def crash(node: SimNode, effect: fx.Effect) -> bool:
        return isinstance(effect, fx.Respond) and getattr(effect.body, "standing", "") == "committed"

    sim.start_all(within_s=0.1)
    sim.crash_when = crash
    sim.run(200)
    [dead] = [s for s, n in sim.nodes.items() if not n.up]
    [asker] = [n for n in sim.up()]
    assert asker.state is not None and asker.state.swap is not None
    assert asker.state.swap.stage.value == "doubt"
    assert asker.worker.round > 3, "training does not wait"
    sim.run(sim.now + SWAP.doubt_timeout_s)
    assert asker.state.swap is None
    assert asker.state.count("swap_in_doubt", dead) == 1
    # It comes back after all, and applies what it has committed: one-sided, and counted once.
    run_on(sim, 300)
    assert len(sim.one_sided()) == 1
    assert sim.unbalanced() != 0.0


# ---------------------------------------------------------------- young sites


def test_a_late_joiner_takes_a_model_over_with_its_round() -> None:
    sim = world(5, start=lambda i: 100.0 if i == 4 else float(i), federation_rounds=80)
    for site in list(sim.nodes)[:4]:
        sim.start(site)
    sim.run(700)
    late = sim.nodes["s0004"]
    sim.start("s0004")
    sim.run(1000)
    sim.check()
    copies = [a for a in sim.books.applied if a.site == "s0004" and a.part == "copy"]
    assert len(copies) == 1, "once; then it is no longer young"
    assert sim.books.applied and sim.live["s0004"].t < 4.0
    assert late.worker.round + late.worker.ahead >= 30, "with its round"
    assert [a for a in sim.books.applied if a.part == "copy"] == copies, "the partner keeps its own"


# ---------------------------------------------------------------- along a hypercube


def test_eight_equal_sites_reach_the_exact_mean_in_log2_stages() -> None:
    cube = GossipParams(exchange="swap", swaps_per_round="log2")
    sim = world(gossip=cube, noise=0.0, cases=lambda i: 20, round_s=lambda i: 60.0, net=Net((0.005, 0.02)))
    sim.start_all(within_s=0.1)
    while min(n.worker.round for n in sim.nodes.values()) < 6:
        sim.run(sim.now + 10)
    drain(sim)
    assert sim.spread() < 0.01, "all have the mean after a few rounds"
    assert sim.weighted_sum() == pytest.approx(8 * 20 * 3.5)
    per_round = len(sim.books.applied) / (8 * (6 - cube.warmup_rounds))
    assert 2.5 <= per_round <= 4.0, "three stages a round"


@pytest.mark.parametrize(("n", "seed"), [(2, 0), (3, 1), (6, 2), (8, 3)])
def test_a_hypercube_with_gaps_loss_and_crashes_keeps_the_sum(n: int, seed: int) -> None:
    cube = GossipParams(exchange="swap", swaps_per_round="log2")
    sim = world(n, gossip=cube, seed=seed, net=Net(loss=0.05, duplication=0.1))
    sim.start_all()
    for _ in range(15):
        sim.run(sim.now + 40)
        site = f"s{sim.rng.randrange(n):04d}"
        sim.crash(site)
        sim.run(sim.now + 10)
        sim.start(site)
    run_on(sim, 300)
    assert sim.one_sided() == []
    assert sim.spread() < 1.0


# ---------------------------------------------------------------- many sites


@pytest.mark.slow
def test_a_thousand_sites_over_two_hundred_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exchange is due at every fourth round's end. Nobody crashes here, so nothing is written: the
    snapshots would be half of the time."""
    monkeypatch.setattr(DurableState, "persist", lambda self: None)
    sim = SwapWorld(
        1000,
        seed=11,
        gossip=SWAP,
        noise=0.01,
        cases=lambda i: 10 + i % 30,
        start=lambda i: float(i % 100),
        round_s=lambda i: 20.0,
        net=Net(loss=0.01, duplication=0.01),
        membership=MembershipParams(probe_interval_s=120.0, probe_timeout_s=10.0, push_pull_interval_s=600.0),
        keep_notes=False,
        exchange_at=ExchangeTimes(every_rounds=4),
    )
    sim.start_all(within_s=5.0)
    spreads = []
    while min(n.worker.round for n in sim.nodes.values()) < 200:
        sim.run(sim.now + 250)
        spreads.append(sim.spread())
    drain(sim)
    assert sim.one_sided() == []
    assert sim.unbalanced() == 0.0 and sim.weighted_sum() == pytest.approx(sim.expected_sum())
    assert len(sim.books.applied) > 1000 * 200 / 4, "a swap a site each time that one is due"
    half = len(spreads) // 2
    assert max(spreads[half:]) < 0.01 * 99, f"it falls, and stays where local steps keep it: {spreads}"
