"""A thousand sites with loss, a partition and churn, in one thread and well under a minute."""

from __future__ import annotations

import pytest

from gossipseg.core.membership.suspicion import minimum_timeout_s
from gossipseg.core.params import GossipParams, MembershipParams
from gossipseg.core.types import MemberState
from tests.sim.simulator import Net, Simulator

N = 1000
PARAMS = MembershipParams()


def deceived(sim: Simulator, dead: list[str]) -> list[tuple[str, str]]:
    """Who still takes whom for alive."""
    gone = (MemberState.DEAD, MemberState.UNSEEN)
    return [(n.site, v) for n in sim.up() for v in dead if sim.believes(n.site, v) not in gone]


@pytest.mark.slow
def test_a_thousand_sites_with_loss_partition_and_churn() -> None:
    sim = Simulator(
        N,
        seed=2024,
        net=Net(loss=0.01, duplication=0.01),
        gossip=GossipParams(sender_rate=0.5),
        cases=lambda i: 5 + i % 40,
        keep_notes=False,
    )
    sim.start_all(within_s=5.0)
    sim.run(150)
    assert len(sim.wrong_views()) < N * N * 0.001, "views converge"

    # a crash is known when it was probed, told round, confirmed, and its suspicion has run out
    victims = [f"s{i:04d}" for i in range(0, 50, 10)]
    for site in victims:
        sim.crash(site)
    sim.run(sim.now + 120 + minimum_timeout_s(N, PARAMS))
    assert len(deceived(sim, victims)) <= 0.001 * N * len(victims)
    assert sim.events["member_dead"] <= len(victims) * N, "nobody else was declared dead"

    # a minority is cut off, and comes back
    minority = [f"s{i:04d}" for i in range(500, 515)]
    sim.partition(minority)
    sim.run(sim.now + 40)
    sim.heal()
    for i in range(20):  # churn meanwhile
        sim.at(sim.now + 3 * i, sim.crash_mid_step, f"s{600 + i:04d}", i % 4)
        sim.at(sim.now + 3 * i + 10, sim.crash, f"s{600 + i:04d}")
        sim.at(sim.now + 3 * i + 20, sim.start, f"s{600 + i:04d}")
    sim.run(sim.now + 300)
    assert not deceived(sim, victims), "a push/pull later the last ones know"
    assert len(sim.wrong_views()) < N * N * 0.0001, "no live site is held for dead after healing"
    for node in sim.up()[::100]:
        assert node.state is not None
        node.state.check_invariants()

    # models spread, nobody waited, none visited twice
    reached = sorted(n.worker.heard_of.bit_count() for n in sim.nodes.values())
    assert reached[N // 2] >= 10
    assert all(len(set(n.worker.visits)) == len(n.worker.visits) for n in sim.nodes.values())
    steady = [n for n in sim.up() if n.life == 1]
    assert min(n.worker.round for n in steady) >= sim.now / (2 * 20 * 1.1) - 2
