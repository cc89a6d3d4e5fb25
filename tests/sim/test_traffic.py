"""What the exchange and the membership cost: models per round near ρ, messages per site flat in N."""

from __future__ import annotations

import pytest

from gossipseg.core.params import GossipParams
from tests.sim.simulator import Net, Simulator


def steady_rate(n: int) -> float:
    """Messages per site and second once everybody knows everybody (WAN preset, no training)."""
    sim = Simulator(n, seed=n, with_workers=False, keep_notes=False)
    sim.start_all()
    sim.run(150)
    before = sum(sum(x.sent.values()) for x in sim.nodes.values())
    sim.run(250)
    after = sum(sum(x.sent.values()) for x in sim.nodes.values())
    return (after - before) / n / 100


def test_messages_per_site_do_not_grow_with_the_federation() -> None:
    few, more, many = steady_rate(10), steady_rate(60), steady_rate(300)
    # one ping and one ack each way per 5 s, and a push/pull now and then
    assert 0.35 < few < 0.55
    assert more < 1.15 * few and many < 1.15 * few


@pytest.mark.parametrize("rho", [0.25, 0.5])
def test_about_rho_n_models_are_offered_in_a_round(rho: float) -> None:
    sim = Simulator(
        20,
        seed=5,
        gossip=GossipParams(exchange="push", sender_rate=rho, warmup_rounds=0, max_parallel_transfers=9),
        cases=lambda i: 10 + 3 * i,
        keep_notes=False,
    )
    sim.start_all()
    sim.run(1500)
    rounds = sum(n.worker.round for n in sim.nodes.values())
    first_offers = sum(n.sent["Offer"] for n in sim.nodes.values()) - sim.events["offer_busy"]
    assert first_offers / rounds == pytest.approx(rho, rel=0.2)


def test_large_sites_send_more_often() -> None:
    sim = Simulator(
        10, seed=6, cases=lambda i: 5 if i < 5 else 50, gossip=GossipParams(exchange="push", retries=0)
    )
    sim.start_all()
    sim.run(3000)
    small = sum(n.sent["Offer"] for n in list(sim.nodes.values())[:5])
    large = sum(n.sent["Offer"] for n in list(sim.nodes.values())[5:])
    # ρ = 0.5: the small ones lie on the floor of 0.25, the large ones send with 0.75
    assert large / small == pytest.approx(3.0, rel=0.35)


def test_inbox_and_retries_let_most_models_land() -> None:
    """docs/design/equations.md §1: without inbox or retry only ~41 % of sends land at N = 8, p = 0.5."""
    sim = Simulator(8, seed=7, net=Net(loss=0.01))
    sim.start_all()
    sim.run(2000)
    drawn = sim.events["transfer_done"] + sim.events["transfer_failed"]
    gave_up = sum(1 for n in sim.nodes.values() for _, x in n.notes if x.event == "offer_busy")
    assert sim.events["model_arrived"] / (drawn + gave_up) > 0.6
    assert sim.events["visit_merged"] >= 0.8 * sim.events["model_arrived"]
