"""Stages along a hypercube: the numbering, the partners, and who skips what."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gossipseg.core import effects as fx
from gossipseg.core import events as ev
from gossipseg.core import messages as ms
from gossipseg.core.exchange_times import ExchangeTimes
from gossipseg.core.gossip.hypercube import fingerprint_of, numbering, partner_of, stages
from gossipseg.core.params import GossipParams
from gossipseg.core.types import ExchangeId, Phase, Site, SwapTerms
from tests.core.rig import PRINT, Rig, phase

CUBE = GossipParams(exchange="swap", swaps_per_round="log2")
EIGHT = [f"s{i}" for i in range(8)]


@pytest.mark.parametrize(("n", "expected"), [(1, 0), (2, 1), (3, 2), (4, 2), (5, 3), (8, 3), (9, 4)])
def test_the_number_of_stages_is_log2_rounded_up(n: int, expected: int) -> None:
    assert stages(n) == expected


def test_the_numbering_is_the_same_at_every_site_and_another_in_each_round() -> None:
    order = numbering(EIGHT, "seed", 3)
    assert sorted(order) == EIGHT and order == numbering(reversed(EIGHT), "seed", 3)
    orders = {tuple(numbering(EIGHT, "seed", r)) for r in range(20)}
    assert len(orders) == 20 and order != numbering(EIGHT, "other", 3)


@pytest.mark.parametrize("n", [2, 4, 8, 16])
def test_of_a_power_of_two_everyone_has_everyones_model_after_the_last_stage(n: int) -> None:
    order = numbering([f"s{i}" for i in range(n)], "seed", 0)
    value = {s: float(i) for i, s in enumerate(sorted(order))}
    for stage in range(stages(n)):
        partners = {s: partner_of(order, s, stage) for s in order}
        assert all(p is not None and partners[p] == s for s, p in partners.items()), "pairs"
        value = {s: (value[s] + value[p]) / 2 for s, p in partners.items() if p is not None}
    assert set(value.values()) == {(n - 1) / 2}


def test_of_five_some_have_no_partner_at_a_stage() -> None:
    order = ["a", "b", "c", "d", "e"]
    assert [partner_of(order, "e", s) for s in range(3)] == [None, None, "a"]
    assert partner_of(order, "x", 0) is None


# ---------------------------------------------------------------- at a node


def cube_of(*others: Site) -> tuple[Rig, list[Site]]:
    """`me` at the end of its round 6, and the numbering of that round."""
    rig = Rig(others, gossip=CUBE).start()
    rig.meet(*others)
    rig.ready()
    rig.round_done()
    return rig, numbering(["me", *others], PRINT, 6)


def lower(order: list[Site], stage: int) -> bool:
    other = partner_of(order, "me", stage)
    return other is not None and order.index("me") < order.index(other)


def names(first_lower: bool) -> list[Site]:
    """Three peers with which `me` asks at the first stage, or is asked."""
    for i in range(100):
        others = [f"p{i}", f"q{i}", f"r{i}"]
        if lower(numbering(["me", *others], PRINT, 6), 0) is first_lower:
            return others
    raise AssertionError("no such names")


def offer_of(order: list[Site], stage: int, number: int = 1, **changes: Any) -> tuple[Site, ms.SwapOffer]:
    frm = partner_of(order, "me", stage)
    assert frm is not None
    made = SwapTerms(ExchangeId(frm, number), "f", PRINT, frm, "me", 10, 10, 60, 6)
    made = replace(made, position=6, stage=stage, living=fingerprint_of(order))
    return frm, ms.SwapOffer(replace(made, **changes))


def test_stages_are_of_rounds_at_which_an_exchange_is_due_and_of_no_others() -> None:
    others = names(True)  # at round 6 `me` asks
    for every, asks in ((1, True), (3, True), (4, False)):
        rig = Rig(others, gossip=CUBE, exchange_at=ExchangeTimes(every)).start()
        rig.meet(*others)
        rig.ready()
        assert rig.node.round == 5
        rig.round_done()
        assert bool(rig.requests(ms.SwapOffer)) == asks, every


def test_the_lower_number_asks_its_partner_with_stage_and_list() -> None:
    rig, order = cube_of(*names(True))
    request = rig.request(ms.SwapOffer)
    assert request.to == partner_of(order, "me", 0)
    terms = request.body.terms  # type: ignore[union-attr]
    assert (terms.position, terms.stage, terms.living) == (6, 0, fingerprint_of(order))


def test_a_busy_partner_is_asked_again_until_the_stage_is_over() -> None:
    rig, order = cube_of(*names(True))
    first = rig.request(ms.SwapOffer)
    began = rig.now
    rig.answer(first, ms.SwapOfferReply("busy", "busy"))
    assert not rig.requests(ms.SwapOffer)
    asked = []
    while rig.now < began + 4 * CUBE.offer_timeout_s:
        rig.until(rig.now + 1.0)
        for request in rig.requests(ms.SwapOffer):
            asked.append(request.to)
            rig.answer(request, ms.SwapOfferReply("busy", "busy"))
    assert asked.count(first.to) > 10
    assert order.index("me") != 0 or asked[-1] == partner_of(order, "me", 1), "then comes the next stage"


def test_another_list_of_the_living_skips_the_stage() -> None:
    rig, order = cube_of(*names(True))
    rig.answer(rig.request(ms.SwapOffer), ms.SwapOfferReply("reject", "other_list"))
    again = [r.to for r in rig.requests(ms.SwapOffer)]
    assert again == ([partner_of(order, "me", 1)] if lower(order, 1) else [])


def test_who_is_set_aside_here_keeps_its_number() -> None:
    """Everybody else counts it: a site that left it out would have another list than all others."""
    others = names(True)
    rig, order = cube_of(*others)
    harmful = next(s for s in others if s != partner_of(order, "me", 0))
    rig = Rig(tuple(others), gossip=CUBE).start()
    rig.meet(*others)
    rig.do(ev.HarmfulPeer(harmful, "0.2 above the others"))
    rig.ready()
    rig.round_done()
    assert rig.node.set_aside == {harmful}
    asked = rig.request(ms.SwapOffer)
    assert asked.to == partner_of(order, "me", 0) and asked.body.terms.living == fingerprint_of(order)


def test_the_higher_number_waits_to_be_asked() -> None:
    rig, order = cube_of(*names(False))
    assert not rig.requests(ms.SwapOffer)
    frm, offer = offer_of(order, 0)
    rig.asks(frm, offer)
    assert rig.reply().verdict == "accept" and rig.of(fx.ExportSnapshot)


@pytest.mark.parametrize(
    ("stage", "change", "reason"),
    [
        (0, {"living": "00"}, "other_list"),
        (0, {"living": ""}, "other_list"),
        (1, {}, "busy"),  # its own first stage is not over
        (0, {"position": 5}, "stage_over"),
        (0, {"position": 7}, "busy"),
    ],
)
def test_offers_of_another_stage_or_list(stage: int, change: dict[str, Any], reason: str) -> None:
    rig, order = cube_of(*names(False))
    frm, offer = offer_of(order, stage, **change)
    rig.asks(frm, offer)
    assert rig.reply().reason == reason
    assert rig.node.swap is None


def test_a_stage_whose_partner_never_asks_is_skipped() -> None:
    rig, order = cube_of(*names(False))
    effects = rig.until(rig.now + 4 * CUBE.offer_timeout_s + 1)
    asked = [e.to for e in effects if isinstance(e, fx.Request) and isinstance(e.body, ms.SwapOffer)]
    assert asked[:1] == ([partner_of(order, "me", 1)] if lower(order, 1) else [])


def test_a_site_whose_round_is_not_over_is_asked_all_the_same() -> None:
    others = names(False)
    rig = Rig(others, gossip=CUBE).start()
    rig.meet(*others)
    rig.ready()
    order = numbering(["me", *others], PRINT, 6)
    frm, offer = offer_of(order, 0)
    rig.asks(frm, offer)
    assert rig.reply().verdict == "accept"
    rig.asks(frm, ms.SwapTold(ExchangeId(frm, 1), "dropped"))
    rig.round_done()
    asked = [r.to for r in rig.requests(ms.SwapOffer)]
    assert asked == ([partner_of(order, "me", 1)] if lower(order, 1) else []), (
        "the first stage is not repeated"
    )


def test_a_partner_that_trains_no_more_is_skipped() -> None:
    rig = Rig(("b", "c"), gossip=CUBE).start()
    rig.meet("b", "c")
    rig.ready()
    rig.hears("c", info=phase(Phase.PAUSED))
    rig.round_done()
    order = numbering(["me", "b"], PRINT, 6)
    assert [r.to for r in rig.requests(ms.SwapOffer)] == (["b"] if order[0] == "me" else [])


def test_drawn_partners_and_a_hypercube_do_not_mix() -> None:
    rig = Rig(("b",), gossip=GossipParams(exchange="swap")).start()
    rig.meet("b")
    rig.ready()
    made = SwapTerms(ExchangeId("b", 1), "f", PRINT, "b", "me", 10, 10, 50, 5, living="ab")
    rig.asks("b", ms.SwapOffer(made))
    assert rig.reply() == ms.SwapOfferReply("reject", "other_numbering")
