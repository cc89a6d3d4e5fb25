"""The swap from both sides, message by message: docs/design/swap.md."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gossipseg.core import effects as fx
from gossipseg.core import events as ev
from gossipseg.core import messages as ms
from gossipseg.core.exchange_times import ExchangeTimes
from gossipseg.core.gossip.set_aside import ROUNDS, SetAside
from gossipseg.core.gossip.swap_memory import SwapMemory
from gossipseg.core.params import GossipParams
from gossipseg.core.types import ExchangeId, Phase, Site, SwapTerms
from tests.core.rig import PRINT, SIGNED, TRAINING, Rig, alive, model, phase

SWAP = GossipParams(exchange="swap")


def rig_of(*sites: Site, round: int = 5, steps: int = 50, **changes: Any) -> Rig:
    """`me`, past its warm-up and running a round, among sites that are alive and agree."""
    changes.setdefault("gossip", SWAP)
    rig = Rig(sites, **changes).start()
    rig.meet(*sites)
    rig.ready(round=round, steps=steps)
    return rig


def terms_of(frm: Site, swap: ExchangeId, **changes: Any) -> SwapTerms:
    made = SwapTerms(swap, "f", PRINT, frm, "me", own_cases=30, partner_cases=10, steps=50, round=5)
    return replace(made, **changes)


def offer_of(frm: Site, number: int = 1, **changes: Any) -> ms.SwapOffer:
    return ms.SwapOffer(replace(terms_of(frm, ExchangeId(frm, number)), **changes))


def asked(rig: Rig) -> fx.Request:
    return rig.request(ms.SwapOffer)


def accepted(rig: Rig, request: fx.Request, **changes: Any) -> ExchangeId:
    """The asked site accepts."""
    swap: ExchangeId = request.body.terms.swap  # type: ignore[union-attr]
    rig.answer(request, ms.SwapOfferReply("accept", "", terms_of(request.to, swap, **changes)))
    return swap


def traded(rig: Rig, peer: Site, swap: ExchangeId) -> None:
    """Both snapshots are made, sent and admitted; the last effects are those of the admission."""
    rig.do(ev.SnapshotExported(swap, model("mine")))
    rig.answer(rig.request(ms.SwapSnapshot), ms.SwapSnapshotReply("accept"))
    rig.do(ev.TransferDone(rig.of(fx.StartTransfer)[0].id))
    rig.asks(peer, ms.SwapSnapshot(swap, model("theirs")))
    assert rig.reply() == ms.SwapSnapshotReply("accept")
    assert rig.node.expects(peer, model("theirs").hash) is not None
    rig.do(ev.ModelArrived(peer, model("theirs")))
    assert rig.of(fx.AdmitSnapshot) == [fx.AdmitSnapshot(swap, peer, model("theirs"))]
    rig.do(ev.SnapshotAdmitted(swap))


def in_doubt() -> tuple[Rig, ExchangeId]:
    """`me` has asked b, and has just said that it is ready."""
    rig = rig_of("b")
    rig.hears("b", alive("b", incarnation=2, cases=30))
    rig.round_done()
    swap = accepted(rig, asked(rig))
    traded(rig, "b", swap)
    return rig, swap


def trading(**changes: Any) -> tuple[Rig, ExchangeId]:
    """b has asked `me`; both have all that they need, and b has not said that it is ready."""
    rig = rig_of("b", "c", **changes)
    swap = ExchangeId("b", 1)
    rig.asks("b", offer_of("b"))
    traded(rig, "b", swap)
    return rig, swap


def order(rig: Rig, *kinds: type) -> list[type]:
    """The kinds of these effects, in their order."""
    return [type(e) for e in rig.out if isinstance(e, kinds)]


def restarted(rig: Rig, *sites: Site, **ready: Any) -> Rig:
    """A new daemon, with what the old one's last Persist holds."""
    again = Rig(sites or ("b",), gossip=SWAP, snapshot=rig.snapshot, **ready)  # type: ignore[attr-defined]
    return again.start()


@pytest.fixture(autouse=True)
def disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each rig remembers its last Persist."""
    do = Rig.do

    def remember(self: Rig, event: ev.Event, at: float | None = None) -> list[fx.Effect]:
        out = do(self, event, at)
        for effect in out:
            if isinstance(effect, fx.Persist):
                self.snapshot = effect.snapshot  # type: ignore[attr-defined]
        return out

    monkeypatch.setattr(Rig, "do", remember)


# ---------------------------------------------------------------- the asker


def test_at_the_end_of_a_round_a_site_asks_one_peer_under_a_persisted_number() -> None:
    rig = rig_of("b", "c")
    assert rig.of(fx.StartRound) == [fx.StartRound(6, None, export=False)]
    rig.round_done()
    terms = asked(rig).body.terms  # type: ignore[union-attr]
    assert (terms.maker, terms.partner, terms.own_cases) == ("me", asked(rig).to, 10)
    assert terms.signature
    assert order(rig, fx.Persist, fx.Request)[-2:] == [fx.Persist, fx.Request]
    assert rig.snapshot.swaps.number == terms.swap.number == 1  # type: ignore[attr-defined]
    assert rig.of(fx.StartRound), "training does not wait"
    assert not rig.of(fx.ExportSnapshot), "nothing is exported before the other one accepts"


def test_the_whole_of_a_swap_as_the_asker() -> None:
    rig, swap = in_doubt()
    ready = rig.request(ms.SwapReady)
    assert ready.body == ms.SwapReady(swap)
    assert order(rig, fx.Persist, fx.Request) == [fx.Persist, fx.Request], "on disk before it says so"
    assert rig.snapshot.swaps.bound.committed is False  # type: ignore[attr-defined]
    assert rig.node.kept_models() == {model("mine").hash, model("theirs").hash}
    rig.answer(ready, ms.SwapState("committed"))
    assert order(rig, fx.Persist, fx.ApplySwap) == [fx.Persist, fx.ApplySwap]
    [apply] = rig.of(fx.ApplySwap)
    # m = 10 here and 30 there, by both views: w_j = 3/4
    assert (apply.part, apply.weight, apply.theirs) == ("mix", 0.75, model("theirs"))
    assert apply.gave, "the asked site has it"
    assert apply.own is not None and apply.own.hash == model("mine").hash
    rig.do(ev.SwapApplied(swap))
    assert rig.node.swap is None and rig.node.count("mixed", "b") == 1
    assert rig.snapshot.swaps.bound is None  # type: ignore[attr-defined]


def test_a_busy_peer_leads_to_up_to_two_others_and_then_to_none() -> None:
    rig = rig_of("b", "c", "d", "e")
    rig.round_done()
    seen, numbers = [], []
    for _ in range(3):
        request = asked(rig)
        seen.append(request.to)
        numbers.append(request.body.terms.swap.number)  # type: ignore[union-attr]
        rig.answer(request, ms.SwapOfferReply("busy", "busy"))
    assert len(set(seen)) == 3 and numbers == [1, 2, 3], "each offer has a number of its own"
    assert not rig.requests(ms.SwapOffer)
    rig.round_done()
    assert asked(rig)


def test_an_offer_without_an_answer_is_taken_back() -> None:
    """Its accept may have been lost: then the other site must not wait."""
    rig = rig_of("b", "c")
    rig.round_done()
    first = asked(rig)
    rig.fail(first)
    [told] = rig.requests(ms.SwapTold)
    assert told.to == first.to and told.body == ms.SwapTold(ExchangeId("me", 1), "dropped", "given_up")
    assert asked(rig).to != first.to


def test_who_was_asked_has_taken_part_and_does_not_ask_at_the_end_of_the_round() -> None:
    rig, swap = trading()
    rig.asks("b", ms.SwapReady(swap))
    rig.do(ev.SwapApplied(swap))
    rig.round_done()
    assert not rig.requests(ms.SwapOffer)
    rig.round_done()
    assert asked(rig), "the next round has its own"


EVERY_3 = ExchangeTimes(3)


def rounds_until_it_asks(rig: Rig) -> int:
    for n in range(1, 20):
        rig.round_done()
        if rig.requests(ms.SwapOffer):
            return n
    raise AssertionError("it never asks")


def swapped(rig: Rig, number: int) -> None:
    """b asks, and the swap is applied."""
    swap = ExchangeId("b", number)
    rig.asks("b", offer_of("b", number, steps=rig.node.info.steps))
    traded(rig, "b", swap)
    rig.asks("b", ms.SwapReady(swap))
    rig.do(ev.SwapApplied(swap))


def refused(rig: Rig) -> None:
    while found := rig.requests(ms.SwapOffer):
        rig.answer(found[0], ms.SwapOfferReply("busy", "busy"))


def test_a_round_that_is_not_due_asks_nobody_and_who_found_no_partner_asks_on() -> None:
    rig = rig_of("b", round=3, exchange_at=EVERY_3)
    assert rounds_until_it_asks(rig) == 1, "with no exchange behind it"
    refused(rig)
    assert rounds_until_it_asks(rig) == 1
    swap = accepted(rig, asked(rig))
    traded(rig, "b", swap)
    rig.answer(rig.request(ms.SwapReady), ms.SwapState("committed"))
    rig.do(ev.SwapApplied(swap))
    assert rounds_until_it_asks(rig) == 3, "from the swap on"


def test_a_swap_resets_the_clock_of_the_site_that_was_asked() -> None:
    """In round 6, and that is the round whose end it stands for: the next one is due at the end of 9."""
    rig = rig_of("b", round=2, exchange_at=EVERY_3)
    assert rounds_until_it_asks(rig) == 1
    swap = accepted(rig, asked(rig))
    traded(rig, "b", swap)
    rig.answer(rig.request(ms.SwapReady), ms.SwapState("committed"))
    rig.do(ev.SwapApplied(swap))
    rig.round_done()
    rig.round_done()
    swapped(rig, 1)
    assert rig.node.round == 5
    rig.round_done()
    assert not rig.requests(ms.SwapOffer)
    assert rounds_until_it_asks(rig) == 3


def test_a_swap_that_breaks_gives_its_clock_back() -> None:
    for late in (False, True):
        rig = rig_of("b", "c", round=2, exchange_at=EVERY_3)
        rounds_until_it_asks(rig)
        refused(rig)
        swapped(rig, 1)  # what was due
        rig.round_done()
        rig.round_done()
        rig.asks("b", offer_of("b", 2))
        assert rig.node.swap is not None
        if late:
            rig.round_done()
            assert not rig.requests(ms.SwapOffer), "the open one stands for this round's end"
        rig.asks("b", ms.SwapTold(ExchangeId("b", 2), "dropped", "given_up"))
        if not late:
            assert rig.node.swap is None
            rig.round_done()
        assert asked(rig).body.terms.swap.asker == "me", late  # type: ignore[union-attr]


def test_the_clock_survives_a_restart_and_a_worker_that_begins_anew() -> None:
    rig = rig_of("b", round=2, exchange_at=EVERY_3)
    rounds_until_it_asks(rig)
    refused(rig)
    swapped(rig, 1)
    rig.round_done()
    again = restarted(rig, exchange_at=EVERY_3)
    again.meet("b")
    again.ready(round=4, steps=40)
    assert rounds_until_it_asks(again) == 2, "3 and 6"
    again = restarted(rig, exchange_at=EVERY_3)
    again.meet("b")
    again.ready(round=0, steps=40)
    assert rounds_until_it_asks(again) == 3, "its state was lost: from the beginning"


def test_by_the_summed_rate_exchanges_are_often_early_and_seldom_late() -> None:
    times = ExchangeTimes.by_rate(0.2, [5.0, 5.0, 4.0, 3.0, 2.0, 1.0, 0.5, 0.25])
    assert times.ends == (1, 2, 4)
    rig = rig_of("b", round=0, steps=0, gossip=replace(SWAP, warmup_rounds=0), exchange_at=times)
    asks = []
    for number in range(1, 9):
        rig.round_done()
        if rig.requests(ms.SwapOffer):
            asks.append(number)
            refused(rig)
            swapped(rig, number)
    assert asks == [1, 2, 4]


def test_two_a_round_are_asked_one_after_the_other() -> None:
    rig = rig_of("b", "c", gossip=GossipParams(exchange="swap", swaps_per_round=2))
    rig.round_done()
    first = asked(rig)
    swap = accepted(rig, first)
    traded(rig, first.to, swap)
    rig.answer(rig.request(ms.SwapReady), ms.SwapState("committed"))
    assert not rig.requests(ms.SwapOffer), "one open at a time"
    rig.do(ev.SwapApplied(swap))
    assert asked(rig).to != first.to


@pytest.mark.parametrize("state", [Phase.PAUSED, Phase.FINISHED, Phase.STARTING, Phase.FAILED])
def test_only_sites_in_training_are_asked(state: Phase) -> None:
    rig = rig_of("b", "c")
    rig.hears("c", info=phase(state))
    rig.round_done()
    assert asked(rig).to == "b"
    rig.answer(asked(rig), ms.SwapOfferReply("reject", "paused"))
    assert not rig.requests(ms.SwapOffer)


def test_nobody_asks_in_its_warm_up_nor_after_its_last_round() -> None:
    rig = rig_of("b", round=0, steps=0, gossip=replace(SWAP, warmup_rounds=2))
    rig.hears("b", info=replace(TRAINING, round=1, steps=15))
    rig.round_done()
    assert not rig.requests(ms.SwapOffer)
    rig.round_done()
    assert rig.requests(ms.SwapOffer)
    rig = rig_of("b", rounds=6)
    rig.round_done()
    assert not rig.requests(ms.SwapOffer)
    assert rig.of(fx.Finished)


@pytest.mark.parametrize(
    "change", [{"maker": "x"}, {"contract": "x"}, {"fault": "terms_forged"}, {"own_cases": 0}]
)
def test_an_accept_with_wrong_terms_opens_nothing(change: dict[str, Any]) -> None:
    rig = rig_of("b")
    rig.round_done()
    accepted(rig, asked(rig), **change)
    assert rig.node.swap is None and not rig.of(fx.ExportSnapshot)
    assert rig.request(ms.SwapTold).body.standing == "dropped"  # type: ignore[union-attr]


# ---------------------------------------------------------------- in doubt


def test_in_doubt_it_asks_until_it_is_answered_and_takes_no_word_but_the_answer() -> None:
    rig, swap = in_doubt()
    rig.fail(rig.request(ms.SwapReady))
    rig.until(rig.now + SWAP.offer_timeout_s)
    again = rig.request(ms.SwapReady)
    rig.answer(again, ms.SwapState("open"))
    rig.asks("c", ms.SwapTold(swap, "dropped"))
    assert rig.node.swap is not None, "c has no say in it"
    rig.asks("b", ms.SwapTold(swap, "committed"))
    assert rig.of(fx.ApplySwap)


def test_in_doubt_a_drop_there_is_a_drop_here() -> None:
    rig, _ = in_doubt()
    rig.answer(rig.request(ms.SwapReady), ms.SwapState("dropped", "too_old"))
    assert rig.node.swap is None and not rig.of(fx.ApplySwap)
    assert rig.node.count("swap_dropped", "b") == 1


def test_in_doubt_neither_age_nor_the_partners_death_ends_it_but_the_time_does() -> None:
    rig, _ = in_doubt()
    for _ in range(SWAP.max_age_rounds + 3):
        rig.round_done()
    rig.meet("b", info=TRAINING)
    rig.hears("b", alive("b", incarnation=3, nonce=99))
    assert rig.node.swap is not None
    rig.until(rig.now + SWAP.doubt_timeout_s)
    assert rig.node.swap is None and rig.node.count("swap_in_doubt", "b") == 1


def test_after_a_restart_the_asker_in_doubt_asks_again_and_applies_once() -> None:
    rig, swap = in_doubt()
    again = restarted(rig)
    again.until(again.now + 0.1)
    ready = again.request(ms.SwapReady)
    assert ready.body == ms.SwapReady(swap)
    again.answer(ready, ms.SwapState("committed"))
    assert not again.of(fx.ApplySwap), "the worker is not up yet"
    again.ready()
    assert len(again.of(fx.ApplySwap)) == 1
    again.do(ev.SwapApplied(swap))
    again.do(ev.SwapApplied(swap))
    assert again.node.count("mixed") == 1


def test_a_swap_that_the_checkpoint_holds_is_not_ordered_again() -> None:
    rig, swap = in_doubt()
    rig.answer(rig.request(ms.SwapReady), ms.SwapState("committed"))
    again = restarted(rig)
    again.ready(last_swap=swap)
    assert not again.of(fx.ApplySwap)
    assert again.node.swap is None and again.node.count("mixed", "b") == 1


def test_before_it_is_ready_the_asker_forgets_the_swap_with_a_restart_but_not_its_number() -> None:
    rig = rig_of("b")
    rig.round_done()
    accepted(rig, asked(rig))
    again = restarted(rig)
    assert again.node.swap is None
    again.meet("b")
    again.ready()
    again.round_done()
    assert asked(again).body.terms.swap.number == 2  # type: ignore[union-attr]
    again.asks("b", ms.SwapSnapshot(ExchangeId("me", 1), model("theirs")))
    assert again.reply() == ms.SwapSnapshotReply("reject", "no_such_swap")


# ---------------------------------------------------------------- the site that is asked


def test_the_whole_of_a_swap_as_the_one_that_is_asked() -> None:
    rig = rig_of("b")
    rig.asks("b", offer_of("b"))
    swap = ExchangeId("b", 1)
    reply = rig.reply()
    assert reply.verdict == "accept" and reply.terms.maker == "me"
    assert order(rig, fx.Persist, fx.Respond) == [fx.Persist, fx.Respond]
    assert rig.of(fx.ExportSnapshot) == [fx.ExportSnapshot(swap)]
    traded(rig, "b", swap)
    assert not rig.of(fx.ApplySwap), "it waits for the asker"
    rig.asks("b", ms.SwapReady(swap))
    assert rig.reply() == ms.SwapState("committed")
    assert order(rig, fx.Persist, fx.ApplySwap, fx.Respond) == [fx.Persist, fx.ApplySwap, fx.Respond]
    assert rig.snapshot.swaps.bound.committed is True  # type: ignore[attr-defined]
    rig.asks("b", ms.SwapReady(swap))
    assert rig.reply() == ms.SwapState("committed") and not rig.of(fx.ApplySwap), "asked again, applied once"
    rig.do(ev.SwapApplied(swap))
    rig.asks("b", ms.SwapReady(swap))
    assert rig.reply() == ms.SwapState("committed"), "and long after"


def test_ready_before_its_own_admission_is_answered_later() -> None:
    rig = rig_of("b")
    swap = ExchangeId("b", 1)
    rig.asks("b", offer_of("b"))
    rig.do(ev.SnapshotExported(swap, model("mine")))
    rig.asks("b", ms.SwapSnapshot(swap, model("theirs")))
    rig.do(ev.ModelArrived("b", model("theirs")))
    rig.asks("b", ms.SwapReady(swap))
    assert rig.reply() == ms.SwapState("open")
    rig.do(ev.SnapshotAdmitted(swap))
    assert rig.request(ms.SwapTold).body == ms.SwapTold(swap, "committed")
    assert rig.of(fx.ApplySwap)


def test_a_repeated_offer_is_accepted_again_with_the_same_terms() -> None:
    rig = rig_of("b")
    rig.asks("b", offer_of("b"))
    first = rig.reply()
    rig.hears("b", alive("b", incarnation=2, cases=99))
    rig.asks("b", offer_of("b"))
    assert rig.reply() == first and not rig.of(fx.ExportSnapshot)


def test_asked_meanwhile_it_says_busy() -> None:
    rig, _ = trading()
    rig.asks("c", offer_of("c"))
    assert rig.reply() == ms.SwapOfferReply("busy", "busy")
    rig = rig_of("b", "c")
    rig.round_done()
    other = {"b": "c", "c": "b"}[asked(rig).to]
    rig.asks(other, offer_of(other))
    assert rig.reply().verdict == "busy", "while it asks, too"


def test_a_number_is_taken_once_whatever_became_of_it() -> None:
    rig, swap = trading()
    rig.asks("c", offer_of("c", 5))
    assert rig.reply().verdict == "busy"
    rig.asks("b", ms.SwapTold(swap, "dropped"))
    assert rig.node.swap is None
    for frm, number in (("b", 1), ("c", 5), ("c", 4)):
        rig.asks(frm, offer_of(frm, number))
        assert rig.reply() == ms.SwapOfferReply("reject", "old_number"), (frm, number)
    rig.asks("c", offer_of("c", 6))
    assert rig.reply().verdict == "accept"


def test_after_a_restart_what_was_open_is_dropped_and_stays_so() -> None:
    rig, swap = trading()
    again = restarted(rig, "b", "c")
    again.meet("b", "c")
    again.ready()
    again.asks("b", offer_of("b"))
    assert again.reply() == ms.SwapOfferReply("reject", "old_number")
    again.asks("b", ms.SwapReady(swap))
    assert again.reply() == ms.SwapState("dropped")
    assert not again.of(fx.ApplySwap)


def test_after_a_restart_what_was_committed_is_applied() -> None:
    rig, swap = trading()
    rig.asks("b", ms.SwapReady(swap))
    again = restarted(rig, "b", "c")
    again.asks("b", ms.SwapReady(swap))
    assert again.reply() == ms.SwapState("committed")
    again.ready()
    assert len(again.of(fx.ApplySwap)) == 1


def test_ready_for_a_swap_that_it_never_heard_of_is_dropped_for_good() -> None:
    rig = rig_of("b")
    rig.asks("b", ms.SwapReady(ExchangeId("b", 3)))
    assert rig.reply() == ms.SwapState("dropped")
    again = restarted(rig)
    again.meet("b")
    again.ready()
    again.asks("b", offer_of("b", 3))
    assert again.reply() == ms.SwapOfferReply("reject", "old_number"), "its offer came late"


def test_a_later_offer_shows_that_the_asker_has_given_up_the_open_one() -> None:
    rig, _ = trading()
    rig.asks("b", offer_of("b", 2))
    assert rig.reply().verdict == "accept"
    assert rig.node.swap is not None and rig.node.swap.id == ExchangeId("b", 2)


@pytest.mark.parametrize(("other", "verdict"), [("a", "accept"), ("z", "busy")])
def test_of_two_that_ask_each_other_the_lower_names_offer_holds(other: Site, verdict: str) -> None:
    rig = rig_of(other)
    rig.round_done()
    mine = asked(rig)
    rig.asks(other, offer_of(other))
    assert rig.reply().verdict == verdict
    if verdict == "accept":
        accepted(rig, mine)  # it crossed: the other one is told that the offer is taken back
        assert rig.request(ms.SwapTold).body == ms.SwapTold(ExchangeId("me", 1), "dropped", "given_up")
        assert rig.node.swap is not None and rig.node.swap.id == ExchangeId(other, 1)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"maker": "c"}, "terms_mismatch"),
        ({"partner": "c"}, "terms_mismatch"),
        ({"swap": ExchangeId("c", 1)}, "terms_mismatch"),
        ({"federation": "g"}, "terms_mismatch"),
        ({"contract": "x"}, "terms_mismatch"),
        ({"fault": "terms_forged"}, "terms_forged"),
        ({"own_cases": 0}, "no_cases"),
        ({"partner_cases": 0}, "no_cases"),
    ],
)
def test_offers_with_wrong_terms_are_rejected(change: dict[str, Any], reason: str) -> None:
    rig = rig_of("b", "c")
    rig.asks("b", offer_of("b", **change))
    assert rig.reply() == ms.SwapOfferReply("reject", reason)
    assert rig.node.swap is None


def test_forged_terms_are_an_offence() -> None:
    rig = rig_of("b", "c")
    rig.asks("b", offer_of("b", fault="terms_forged"))
    assert rig.node.count("offences", "b") == 1
    rig.asks("b", offer_of("b", 2, contract="x"))
    assert rig.node.count("offences", "b") == 1, "lists and contracts are not reloaded everywhere at once"


def test_a_site_that_is_paused_finished_or_warming_up_says_so() -> None:
    rig = rig_of("b")
    rig.do(ev.Pause(True))
    rig.asks("b", offer_of("b"))
    assert rig.reply() == ms.SwapOfferReply("reject", "paused")
    rig = rig_of("b", round=1, gossip=replace(SWAP, warmup_rounds=2))
    rig.asks("b", offer_of("b"))
    assert rig.reply() == ms.SwapOfferReply("reject", "warming_up")
    rig = rig_of("b", rounds=5)
    rig.asks("b", offer_of("b"))
    assert rig.reply() == ms.SwapOfferReply("reject", "finished")


# ---------------------------------------------------------------- what breaks


@pytest.mark.parametrize("asker", [True, False])
@pytest.mark.parametrize(("reason", "offences"), [("not_finite", 1), ("unrelated", 0), ("no_memory", 0)])
def test_a_snapshot_that_is_not_admitted_drops_the_swap_at_both(
    asker: bool, reason: str, offences: int
) -> None:
    rig = rig_of("b")
    if asker:
        rig.round_done()
        swap = accepted(rig, asked(rig))
    else:
        swap = ExchangeId("b", 1)
        rig.asks("b", offer_of("b"))
    rig.do(ev.SnapshotExported(swap, model("mine")))
    rig.asks("b", ms.SwapSnapshot(swap, model("theirs")))
    rig.do(ev.ModelArrived("b", model("theirs")))
    rig.do(ev.SnapshotAdmitted(swap, reason))
    assert rig.node.swap is None or rig.node.swap.id != swap
    assert ms.SwapTold(swap, "dropped", reason) in [r.body for r in rig.requests(ms.SwapTold)]
    assert rig.node.count("offences", "b") == offences
    rig.asks("b", ms.SwapReady(swap)) if not asker else None
    assert not rig.of(fx.ApplySwap)


def test_what_is_too_old_is_dropped() -> None:
    rig, swap = trading()
    for _ in range(SWAP.max_age_rounds):
        rig.round_done()
        assert rig.node.swap is not None and rig.node.swap.id == swap
    rig.round_done()
    assert ms.SwapTold(swap, "dropped", "too_old") in [r.body for r in rig.requests(ms.SwapTold)]
    rig.asks("b", ms.SwapReady(swap))
    assert rig.reply() == ms.SwapState("dropped")


def test_a_partner_that_restarted_or_is_quarantined_ends_what_is_not_bound() -> None:
    rig, _ = trading()
    rig.hears("b", alive("b", incarnation=2, nonce=99))
    assert rig.node.swap is None
    rig, swap = trading()
    rig.asks("b", ms.SwapReady(swap))
    rig.hears("b", alive("b", incarnation=2, nonce=99))
    assert rig.node.swap is not None, "it is committed"


def test_a_silent_partner_is_asked_how_the_swap_stands() -> None:
    rig, swap = trading()
    rig.until(rig.now + 4 * SWAP.offer_timeout_s)
    [probe] = rig.requests(ms.SwapTold)
    assert probe.body == ms.SwapTold(swap, "open")
    rig.answer(probe, ms.SwapState("dropped"))
    assert rig.node.swap is None


def test_a_snapshot_that_does_not_arrive_is_offered_again_and_given_up_in_the_end() -> None:
    rig = rig_of("b")
    swap = ExchangeId("b", 1)
    rig.asks("b", offer_of("b"))
    rig.do(ev.SnapshotExported(swap, model("mine")))
    rig.answer(rig.request(ms.SwapSnapshot), ms.SwapSnapshotReply("accept"))
    rig.do(ev.TransferFailed(rig.of(fx.StartTransfer)[0].id, "unreachable"))
    for pause_s in (10, 20, 40, 80):
        assert rig.node.swap is not None and rig.node.next_deadline() is not None
        effects = rig.until(rig.now + pause_s)
        [again] = [e for e in effects if isinstance(e, fx.Request) and isinstance(e.body, ms.SwapSnapshot)]
        rig.fail(again)
    assert rig.node.swap is None, "five failures are enough"


def test_a_snapshot_that_is_there_already_is_not_sent_again() -> None:
    rig, swap = trading()
    rig.asks("b", ms.SwapSnapshot(swap, model("theirs")))
    assert rig.reply() == ms.SwapSnapshotReply("here")
    rig.asks("b", ms.SwapSnapshot(swap, model("another")))
    assert rig.reply() == ms.SwapSnapshotReply("reject", "other_model")
    assert rig.node.swap is None and rig.node.count("offences", "b") == 1


def test_a_worker_that_cannot_export_ends_the_swap() -> None:
    rig = rig_of("b")
    rig.asks("b", offer_of("b"))
    rig.do(ev.SnapshotExported(ExchangeId("b", 1), None, "not_finite"))
    assert rig.node.swap is None
    assert rig.request(ms.SwapTold).body.reason == "not_finite"  # type: ignore[union-attr]


def test_a_lost_worker_gets_its_orders_again() -> None:
    rig = rig_of("b")
    swap = ExchangeId("b", 1)
    rig.asks("b", offer_of("b"))
    rig.do(ev.WorkerLost("killed"))
    rig.ready()
    assert rig.of(fx.ExportSnapshot) == [fx.ExportSnapshot(swap)]
    traded(rig, "b", swap)
    rig.asks("b", ms.SwapReady(swap))
    rig.do(ev.WorkerLost("killed"))
    assert rig.node.swap is not None, "what is committed is not given up with one death"
    rig.ready()
    assert [a.swap for a in rig.of(fx.ApplySwap)] == [swap]


def test_a_committed_swap_that_kills_the_worker_is_given_up_and_counted() -> None:
    rig, swap = trading()
    rig.asks("b", ms.SwapReady(swap))
    for _ in range(3):
        rig.do(ev.WorkerLost("killed"))
        rig.ready()
    assert rig.node.swap is None and rig.node.count("swap_lost", "b") == 1


@pytest.mark.parametrize("waits", [False, True])
def test_a_worker_that_dies_without_its_order_does_not_cost_a_committed_swap(waits: bool) -> None:
    rig, swap = trading()
    rig.asks("b", ms.SwapReady(swap))
    again = restarted(rig, "b", "c")
    for number in range(4):  # no graphics card yet, or data that are away
        again.do(ev.WorkerLost(f"not yet: {number}", waits=waits))
    assert again.node.swap is not None and not again.node.count("swap_lost")
    again.ready(round=5, steps=50)
    assert [e.swap for e in again.of(fx.ApplySwap)] == [swap]
    for number in range(4):
        again.do(ev.WorkerLost(f"data away: {number}", waits=True))
    assert again.node.swap is not None and not again.node.count("swap_lost")


def test_a_committed_swap_survives_the_last_failed_delivery() -> None:
    """The asker has the snapshot, and has said that it is ready: only the stream's answer was lost."""
    rig, swap = rig_of("b", "c"), ExchangeId("b", 1)
    rig.asks("b", offer_of("b"))
    rig.do(ev.SnapshotExported(swap, model("mine")))
    for _ in range(4):
        rig.fail(rig.request(ms.SwapSnapshot))
        assert rig.node.swap is not None
        rig.out = rig.until(rig.node.swap.next_at)
    rig.answer(rig.request(ms.SwapSnapshot), ms.SwapSnapshotReply("accept"))
    transfer = rig.of(fx.StartTransfer)[0].id
    rig.asks("b", ms.SwapSnapshot(swap, model("theirs")))
    rig.do(ev.ModelArrived("b", model("theirs")))
    rig.do(ev.SnapshotAdmitted(swap))
    rig.asks("b", ms.SwapReady(swap))
    assert rig.reply() == ms.SwapState("committed")
    rig.do(ev.TransferFailed(transfer, "not_offered"))
    assert rig.node.swap is not None and rig.node.swap.stage.value == "committed"


def test_training_ends_when_the_bound_swap_is_applied() -> None:
    rig, swap = trading(rounds=6)
    rig.asks("b", ms.SwapReady(swap))
    rig.round_done()
    assert not rig.of(fx.Finished)
    rig.do(ev.SwapApplied(swap))
    assert rig.of(fx.Finished)


def test_what_is_not_bound_ends_with_the_training() -> None:
    rig, swap = trading(rounds=6)
    rig.round_done()
    assert rig.of(fx.Finished)
    assert rig.request(ms.SwapTold).body == ms.SwapTold(swap, "dropped", "finished")


def test_leaving_says_goodbye_to_the_open_swap() -> None:
    rig, swap = trading()
    rig.do(ev.Leave())
    assert ms.SwapTold(swap, "dropped", "leaving") in [r.body for r in rig.requests(ms.SwapTold)]


# ---------------------------------------------------------------- young sites, one way


def test_a_young_site_takes_its_partners_model_over() -> None:
    rig = rig_of("b", round=1, steps=10)
    rig.asks("b", offer_of("b", steps=500))
    swap = ExchangeId("b", 1)
    assert rig.reply().terms.behind and not rig.of(fx.ExportSnapshot), "nothing of it is wanted"
    rig.asks("b", ms.SwapSnapshot(swap, model("theirs", steps=500)))
    rig.do(ev.ModelArrived("b", model("theirs", steps=500)))
    rig.do(ev.SnapshotAdmitted(swap))
    rig.asks("b", ms.SwapReady(swap))
    [apply] = rig.of(fx.ApplySwap)
    assert (apply.part, apply.weight, apply.own) == ("copy", 1.0, None)
    rig.do(ev.SwapApplied(swap, steps=500, ahead=40))
    assert rig.node.info.steps == 500 and rig.node.count("copied", "b") == 1


def test_the_older_partner_keeps_its_own() -> None:
    rig = rig_of("b")
    swap = ExchangeId("b", 1)
    rig.asks("b", offer_of("b", steps=10, behind=True))
    rig.do(ev.SnapshotExported(swap, model("mine")))
    rig.answer(rig.request(ms.SwapSnapshot), ms.SwapSnapshotReply("accept"))
    rig.asks("b", ms.SwapReady(swap))
    assert rig.reply() == ms.SwapState("committed") and not rig.of(fx.ApplySwap)
    assert rig.node.swap is None and rig.node.count("kept", "b") == 1


def deaf_to(rig: Rig, site: Site) -> None:
    """It calls in, and cannot be called."""
    for _ in range(6):
        rig.until(rig.now + 15)
        for request in list(rig.node._ctx.calls):  # white box: whatever was asked of it fails
            if rig.node._ctx.calls[request].to == site:
                rig.do(ev.RequestFailed(request, "unreachable"))
        rig.hears(site)


def test_a_site_that_cannot_be_dialled_is_met_one_way() -> None:
    rig = rig_of("b")
    rig.hears("b", alive("b", incarnation=2, cases=30))
    deaf_to(rig, "b")
    rig.asks("b", offer_of("b"))
    reply = rig.reply()
    assert reply.verdict == "accept" and reply.terms.one_way
    swap = ExchangeId("b", 1)
    rig.do(ev.SnapshotExported(swap, model("mine")))
    assert not rig.requests(ms.SwapSnapshot), "nothing can be sent there"
    rig.asks("b", ms.SwapSnapshot(swap, model("theirs")))
    rig.do(ev.ModelArrived("b", model("theirs")))
    rig.do(ev.SnapshotAdmitted(swap))
    rig.asks("b", ms.SwapReady(swap))
    [apply] = rig.of(fx.ApplySwap)
    assert (apply.part, apply.weight) == ("mix", 0.5), "3/4 by cases, a half at most"
    assert not apply.gave, "the own snapshot went nowhere"


def test_the_asker_of_a_one_way_meeting_only_gives() -> None:
    rig = rig_of("b")
    rig.round_done()
    swap = accepted(rig, asked(rig), one_way=True)
    assert rig.of(fx.ExportSnapshot) == [fx.ExportSnapshot(swap, keeps=True)]
    rig.do(ev.SnapshotExported(swap, model("mine")))
    rig.answer(rig.request(ms.SwapSnapshot), ms.SwapSnapshotReply("accept"))
    rig.do(ev.TransferDone(rig.of(fx.StartTransfer)[0].id))
    rig.answer(rig.request(ms.SwapReady), ms.SwapState("committed"))
    assert not rig.of(fx.ApplySwap) and rig.node.count("kept", "b") == 1


# ---------------------------------------------------------------- harm, push


def test_a_harmful_peer_is_set_aside_for_a_while_and_a_third_of_them_at_most() -> None:
    rig = rig_of("b", "c", "d", "e")
    rig.do(ev.HarmfulPeer("b", "0.2 above the others"))
    assert rig.node.set_aside == {"b"}
    rig.do(ev.HarmfulPeer("c"))
    assert rig.node.set_aside == {"b"} and rig.notes("peer_harmful")[0].reason == "limit"
    rig.asks("b", offer_of("b"))
    assert rig.reply() == ms.SwapOfferReply("reject", "set_aside")
    for _ in range(8):
        rig.round_done()
        while rig.requests(ms.SwapOffer):
            assert asked(rig).to != "b"
            rig.answer(asked(rig), ms.SwapOfferReply("reject", "warming_up"))
    again = restarted(rig, "b", "c", "d", "e")
    assert again.node.set_aside == {"b"}


def test_who_was_set_aside_in_a_training_that_is_gone_is_forgotten_at_the_start() -> None:
    """Else it would be aside again when this training comes to that round."""
    then = fx.Snapshot(1, 5, 50, swaps=fx.SwapRecord(aside=(("b", 530), ("c", 20))))
    rig = rig_of("b", "c", snapshot=then)
    swaps = rig.snapshot.swaps  # type: ignore[attr-defined]
    assert swaps.aside == (("c", 20),) and rig.node.set_aside == {"c"}


def test_with_a_single_peer_harm_is_only_noted() -> None:
    rig = rig_of("b")
    rig.do(ev.HarmfulPeer("b"))
    assert rig.notes("peer_harmful")[0].reason == "single_peer" and rig.node.set_aside == frozenset()


def test_set_aside_counts_rounds() -> None:
    aside = SetAside()
    assert [aside.add(s, 10, 6) for s in ("a", "b", "c")] == ["", "", "limit"]
    assert aside.now(10 + ROUNDS - 1) == {"a", "b"} and aside.now(10 + ROUNDS) == frozenset()
    assert aside.add("c", 10 + ROUNDS, 6) == ""
    aside.keep(["c"], 10 + ROUNDS)
    assert aside.records() == (("c", 10 + 2 * ROUNDS),)
    assert SetAside().add("a", 0, 2) == "", "of two peers one"
    lost = SetAside([("a", 500)])
    assert lost.now(3) == frozenset(), "of a training whose checkpoint is gone"
    lost.begin(3)
    assert lost.now(490) == frozenset()
    again = SetAside([("a", 40), ("b", 71), ("c", 71), ("d", 71)])
    assert again.add("a", 42, 9) == "limit", "its first time is over, and three others are aside"


def test_push_and_swap_refuse_each_other() -> None:
    rig = rig_of("b")
    rig.asks("b", ms.Offer(model()))
    assert rig.reply() == ms.OfferReply("reject", "exchanges_nothing")
    rig = rig_of("b", gossip=GossipParams(exchange="push"))
    for body, reply in (
        (offer_of("b"), ms.SwapOfferReply("reject", "exchanges_nothing")),
        (ms.SwapSnapshot(ExchangeId("b", 1), model()), ms.SwapSnapshotReply("reject", "no_such_swap")),
        (ms.SwapReady(ExchangeId("b", 1)), ms.SwapState("dropped", "exchanges_nothing")),
        (ms.SwapTold(ExchangeId("b", 1), "open"), ms.SwapState("dropped", "exchanges_nothing")),
    ):
        rig.asks("b", body)
        assert rig.reply() == reply


def test_the_memory_keeps_the_newest_number_of_each_asker() -> None:
    memory = SwapMemory(fx.SwapRecord(3, (fx.SwapSeen("a", 5, "open"), fx.SwapSeen("b", 2, "committed"))), 2)
    assert memory.next_number() == 4
    assert memory.standing(ExchangeId("a", 5)) == "dropped", "nothing open survives a restart"
    assert memory.standing(ExchangeId("b", 2)) == "committed"
    assert memory.is_new(ExchangeId("a", 6)) and not memory.is_new(ExchangeId("a", 5))
    assert not memory.note(ExchangeId("a", 4), "open")
    memory.keep(["b"])
    assert [s.asker for s in memory.seen()] == ["b"]
    assert SwapMemory(fx.SwapRecord(3), 100).next_number() == 101, "a clock's floor, where the disk was lost"


def test_a_copy_of_an_offer_does_not_undo_what_is_known_of_it() -> None:
    rig, swap = trading()
    rig.asks("b", ms.SwapReady(swap))
    rig.do(ev.SwapApplied(swap))
    rig.do(ev.Pause(True))
    rig.asks("b", offer_of("b"))
    rig.asks("b", ms.SwapReady(swap))
    assert rig.reply() == ms.SwapState("committed")


def test_a_site_that_has_lost_its_numbers_is_heard_again_once_its_record_is_cleared() -> None:
    rig = rig_of("b", "c")
    rig.asks("b", offer_of("b", number=1_750))
    rig.asks("b", ms.SwapTold(ExchangeId("b", 1_750), "dropped", "x"))
    rig.asks("b", offer_of("b", number=3))
    assert rig.reply() == ms.SwapOfferReply("reject", "old_number")
    rig.do(ev.LiftQuarantine("b"))
    rig.asks("b", offer_of("b", number=4))
    assert rig.reply().verdict == "accept"  # type: ignore[union-attr]
    rig.asks("b", ms.SwapTold(ExchangeId("b", 4), "dropped", "x"))
    rig.asks("b", offer_of("b", number=3))
    assert rig.reply() == ms.SwapOfferReply("reject", "old_number"), "its new numbers count from here"
    rig, swap = trading()
    rig.asks("b", ms.SwapReady(swap))
    rig.do(ev.SwapApplied(swap))
    rig.do(ev.LiftQuarantine("b"))
    rig.asks("b", ms.SwapReady(swap))
    assert rig.reply() == ms.SwapState("committed"), "what is in the weights stays known"


def test_only_the_asker_may_say_that_it_is_ready() -> None:
    rig, swap = trading()
    rig.asks("c", ms.SwapReady(swap))
    assert rig.reply() == ms.SwapState("dropped") and not rig.of(fx.ApplySwap)
    rig.asks("c", ms.SwapTold(swap, "dropped"))
    assert rig.reply() == ms.SwapState("dropped") and rig.node.swap is not None


def test_a_swap_that_was_dropped_does_not_count_as_taking_part() -> None:
    rig, swap = trading()
    rig.asks("b", ms.SwapTold(swap, "dropped"))
    rig.round_done()
    assert asked(rig)


def test_the_number_of_a_snapshots_manifest_is_on_disk_before_it_is_told() -> None:
    rig = rig_of("b")
    rig.asks("b", offer_of("b"))
    rig.do(ev.SnapshotExported(ExchangeId("b", 1), model("mine")))
    assert order(rig, fx.Persist, fx.Request) == [fx.Persist, fx.Request]
    told = rig.request(ms.SwapSnapshot).body
    assert isinstance(told, ms.SwapSnapshot) and told.model.manifest is not None
    assert rig.snapshot.sequence == told.model.manifest.sequence  # type: ignore[attr-defined]


def test_the_giving_side_in_doubt_also_asks_after_a_restart() -> None:
    rig = rig_of("b")
    rig.round_done()
    swap = accepted(rig, asked(rig), one_way=True)
    rig.do(ev.SnapshotExported(swap, model("mine")))
    rig.answer(rig.request(ms.SwapSnapshot), ms.SwapSnapshotReply("accept"))
    rig.do(ev.TransferDone(rig.of(fx.StartTransfer)[0].id))
    again = restarted(rig)
    again.ready()
    again.until(again.now + 0.1)
    assert again.node.swap is not None
    again.asks("b", ms.SwapTold(swap, "committed"))
    assert again.node.swap is None and not again.of(fx.ApplySwap) and again.node.count("kept", "b") == 1


def test_a_peer_that_only_talks_does_not_hold_the_place() -> None:
    """Accepted, and then no file comes: after a while another site's offer takes the place."""
    rig = rig_of("b", "c")
    rig.asks("b", offer_of("b"))
    rig.asks("c", offer_of("c", 1))
    assert rig.reply().verdict == "busy"
    for _ in range(4):
        rig.until(rig.now + 10.1)
        rig.asks("b", ms.SwapTold(ExchangeId("b", 1), "open"))
        assert rig.reply() == ms.SwapState("open")
    rig.asks("c", offer_of("c", 2))
    assert rig.reply().verdict == "accept"
    told = [r.body for r in rig.requests(ms.SwapTold, "b")]
    assert told == [ms.SwapTold(ExchangeId("b", 1), "dropped", "displaced")]


def test_a_trade_that_goes_on_holds_the_place_and_so_does_what_is_bound() -> None:
    rig = rig_of("b", "c")
    swap = ExchangeId("b", 1)
    rig.asks("b", offer_of("b"))
    rig.asks("b", ms.SwapSnapshot(swap, model("theirs")))
    for number in range(1, 5):
        rig.until(rig.now + 30)
        rig.do(ev.TransferBegan("b", model("theirs").hash))
        rig.asks("c", offer_of("c", number))
        assert rig.reply().verdict == "busy"
    rig, swap = trading()
    rig.asks("b", ms.SwapReady(swap))
    rig.until(rig.now + 100)
    rig.asks("c", offer_of("c"))
    assert rig.reply().verdict == "busy" and rig.node.swap is not None


# ---------------------------------------------------------------- a pause


def test_a_pause_drops_what_is_trading_and_tells_the_partner() -> None:
    rig, swap = trading()
    rig.do(ev.Pause(True))
    assert rig.node.swap is None
    told = rig.request(ms.SwapTold).body
    assert told == ms.SwapTold(swap, "dropped", "paused")
    assert not rig.requests(ms.SwapOffer), "a paused site asks nobody in its place"


@pytest.mark.parametrize("event", [ev.Pause(True), ev.TransferWindow(False)])
def test_who_is_greeted_is_not_asked_after_a_pause_or_outside_of_the_hours(event: ev.Event) -> None:
    names = [f"p{number:02}" for number in range(34)]  # more than are greeted at the start
    rig = Rig(names, gossip=SWAP).start()
    for name in names:
        rig.hears(name, alive(name))
        for greeting in rig.requests(ms.Hello):
            rig.fail(greeting)
    rig.ready(round=5, steps=50)
    rig.round_done()
    (greeting,) = rig.requests(ms.Hello)
    rig.do(event)
    rig.answer(greeting, ms.HelloReply(1, 1, "f", SIGNED, TRAINING))
    assert not rig.requests(ms.SwapOffer) and rig.node.swap is None


def test_a_pause_leaves_a_doubt_open() -> None:
    rig, swap = in_doubt()
    rig.do(ev.Pause(True))
    assert rig.node.swap is not None and rig.node.swap.id == swap


# ---------------------------------------------------------------- the hours in which a site may send


def test_outside_of_its_hours_a_site_neither_asks_nor_is_asked() -> None:
    rig = rig_of("b", "c")
    rig.do(ev.TransferWindow(False))
    assert rig.node.swaps_wait
    for _ in range(25):
        rig.round_done()
        assert not rig.requests(ms.SwapOffer)
    rig.asks("b", offer_of("b"))
    assert rig.reply() == ms.SwapOfferReply("reject", "window_closed")
    assert "nothing_sent" not in {c.code for c in rig.node.concerns(rig.now)}, "no alarm"
    rig.do(ev.TransferWindow(True))
    assert asked(rig) and not rig.node.swaps_wait, "at once, for the one that is due"


def test_peers_outside_of_their_hours_are_no_alarm_but_other_refusals_are() -> None:
    for reason, alarm in (("window_closed", False), ("warming_up", True)):
        rig = rig_of("b")
        rig.meet("b")
        for _ in range(25):
            rig.round_done()
            rig.answer(asked(rig), ms.SwapOfferReply("reject", reason))
        codes = {c.code for c in rig.node.concerns(rig.now)}
        assert ("nothing_sent" in codes) is alarm, reason


def test_hours_of_peers_take_an_exchange_that_was_due_back_once() -> None:
    """The alarm comes as soon as ever, however long the peers' hours were over before."""
    rig = rig_of("b", exchange_at=ExchangeTimes(every_rounds=5))

    def rounds(n: int, reason: str) -> int:
        """How many rounds it takes until the alarm."""
        for number in range(n):
            if any(c.code == "nothing_sent" for c in rig.node.concerns(rig.now)):
                return number
            rig.round_done()
            while rig.requests(ms.SwapOffer):
                rig.answer(asked(rig), ms.SwapOfferReply("reject", reason))
        return n

    fresh = rounds(500, "warming_up")
    rig = rig_of("b", exchange_at=ExchangeTimes(every_rounds=5))
    assert rounds(200, "window_closed") == 200
    assert rounds(500, "warming_up") <= fresh < 500


def test_what_is_not_on_its_way_when_the_hours_end_is_dropped_at_both() -> None:
    rig = rig_of("b")
    swap = ExchangeId("b", 1)
    rig.asks("b", offer_of("b"))
    rig.do(ev.TransferWindow(False))
    assert rig.node.swap is None
    assert rig.request(ms.SwapTold).body == ms.SwapTold(swap, "dropped", "window_closed")
    rig = rig_of("b")
    rig.round_done()
    request = asked(rig)
    rig.do(ev.TransferWindow(False))
    assert rig.node.swap is None, "an offer is taken back"
    accepted(rig, request)
    assert rig.node.swap is None and not rig.of(fx.ExportSnapshot), "its accept comes too late"


def test_what_is_on_its_way_or_bound_when_the_hours_end_goes_on() -> None:
    rig = rig_of("b")
    rig.asks("b", offer_of("b"))
    rig.do(ev.SnapshotExported(ExchangeId("b", 1), model("mine")))
    rig.answer(rig.request(ms.SwapSnapshot), ms.SwapSnapshotReply("accept"))
    rig.do(ev.TransferWindow(False))
    assert rig.node.swap is not None
    rig.do(ev.TransferDone(rig.node.swap.transfer or 0))
    assert rig.node.swap.delivered
    rig, _ = in_doubt()
    rig.do(ev.TransferWindow(False))
    assert rig.node.swap is not None and rig.node.swap.binding


def test_a_transfer_that_its_hours_have_missed_drops_the_swap_at_once() -> None:
    rig = rig_of("b")
    rig.asks("b", offer_of("b"))
    rig.do(ev.SnapshotExported(ExchangeId("b", 1), model("mine")))
    rig.answer(rig.request(ms.SwapSnapshot), ms.SwapSnapshotReply("accept"))
    rig.do(ev.TransferFailed(rig.of(fx.StartTransfer)[0].id, "window_closed"))
    assert rig.node.swap is None
    assert rig.request(ms.SwapTold).body.reason == "window_closed"  # type: ignore[union-attr]
