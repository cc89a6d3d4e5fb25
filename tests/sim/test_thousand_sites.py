"""A hundred and a thousand sites with loss, a partition and churn, in one thread."""

from __future__ import annotations

import pytest

from gossipseg.core.membership.suspicion import minimum_timeout_s
from gossipseg.core.params import GossipParams, MembershipParams
from gossipseg.core.types import MemberState
from tests.sim.simulator import Net, Simulator

PARAMS = MembershipParams()


def deceived(sim: Simulator, dead: list[str]) -> list[tuple[str, str]]:
    """Who still takes whom for alive."""
    gone = (MemberState.DEAD, MemberState.UNSEEN)
    return [(n.site, v) for n in sim.up() for v in dead if sim.believes(n.site, v) not in gone]


@pytest.mark.parametrize(
    ("n", "settled_s"), [(100, 800), pytest.param(1000, 300, marks=pytest.mark.slow)], ids=["100", "1000"]
)
def test_many_sites_with_loss_partition_and_churn(n: int, settled_s: int) -> None:
    """Of a hundred sites twenty that come and go are a fifth: they take longer to agree."""
    sim = Simulator(
        n,
        seed=2024,
        net=Net(loss=0.01, duplication=0.01),
        gossip=GossipParams(exchange="push", sender_rate=0.5),
        cases=lambda i: 5 + i % 40,
        keep_notes=False,
    )
    sim.start_all(within_s=5.0)
    sim.run(150)
    assert len(sim.wrong_views()) < n * n * 0.001, "views converge"

    # a crash is known when it was probed, told round, confirmed, and its suspicion has run out
    victims = [f"s{i:04d}" for i in range(0, 50, 10)]
    for site in victims:
        sim.crash(site)
    sim.run(sim.now + 120 + minimum_timeout_s(n, PARAMS))
    assert len(deceived(sim, victims)) <= 0.001 * n * len(victims)
    assert sim.events["member_dead"] <= len(victims) * n, "nobody else was declared dead"

    # a minority is cut off, and comes back
    minority = [f"s{i:04d}" for i in range(n // 2, n // 2 + 15)]
    sim.partition(minority)
    sim.run(sim.now + 40)
    sim.heal()
    for i in range(20):  # churn meanwhile
        sim.at(sim.now + 3 * i, sim.crash_mid_step, f"s{n * 6 // 10 + i:04d}", i % 4)
        sim.at(sim.now + 3 * i + 10, sim.crash, f"s{n * 6 // 10 + i:04d}")
        sim.at(sim.now + 3 * i + 20, sim.start, f"s{n * 6 // 10 + i:04d}")
    sim.run(sim.now + settled_s)
    assert not deceived(sim, victims), "a push/pull later the last ones know"
    assert len(sim.wrong_views()) < n * n * 0.0001, "no live site is held for dead after healing"
    for node in sim.up()[:: n // 10]:
        assert node.state is not None
        node.state.check_invariants()

    # models spread, nobody waited, none visited twice
    reached = sorted(one.worker.heard_of.bit_count() for one in sim.nodes.values())
    assert reached[n // 2] >= 10
    assert all(len(set(one.worker.visits)) == len(one.worker.visits) for one in sim.nodes.values())
    steady = [one for one in sim.up() if one.life == 1]
    assert min(one.worker.round for one in steady) >= sim.now / (2 * 20 * 1.1) - 2
