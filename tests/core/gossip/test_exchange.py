"""The exchange from both sides: GML's protocol as docs/design/equations.md §1 has it."""

from __future__ import annotations

from typing import Any

import pytest

from gossipseg.core import effects as fx
from gossipseg.core import events as ev
from gossipseg.core import messages as ms
from gossipseg.core.effects import InboxEntry, Snapshot
from gossipseg.core.exchange_times import ExchangeTimes
from gossipseg.core.params import GossipParams
from gossipseg.core.types import Phase
from tests.core.gossip.rig import hosting, rig_of
from tests.core.rig import Rig, alive, bare, model, phase, suspect


def offered(rig: Rig) -> fx.Request:
    return rig.request(ms.Offer)


# ---------------------------------------------------------------- the sender


def test_a_sender_is_drawn_when_the_round_starts_and_offers_to_one_when_it_ends() -> None:
    # GML: "a sender picks ONE receiver uniformly at random, asks, and pushes only if the receiver accepts"
    rig = rig_of("b", "c", "d")
    assert rig.of(fx.StartRound) == [fx.StartRound(6, None, export=True)]
    rig.round_done(export=model("mine", round=6))
    offer = offered(rig)
    assert bare(offer.body.model) == model("mine", round=6)
    assert rig.of(fx.StartRound), "training does not wait for the answer"
    rig.answer(offer, ms.OfferReply("accept"))
    transfer = rig.of(fx.StartTransfer)[0]
    assert (transfer.to, transfer.model) == (offer.to, offer.body.model)
    assert [s.transferring for s in rig.node.sending] == [True]
    rig.do(ev.TransferDone(transfer.id))
    assert rig.node.sending == ()
    assert rig.node.count("sent") == rig.node.count("sent", offer.to) == 1


def test_every_peer_is_a_receiver_sooner_or_later() -> None:
    receivers = set()
    for seed in range(30):
        rig = rig_of("b", "c", "d", seed=seed)
        rig.round_done(export=model("mine", round=6))
        receivers.add(offered(rig).to)
    assert receivers == {"b", "c", "d"}


def test_a_busy_receiver_leads_to_up_to_two_others_and_then_to_none() -> None:
    rig = rig_of("b", "c", "d", "e")
    rig.round_done(export=model("mine", round=6))
    asked = []
    for _ in range(3):
        offer = offered(rig)
        asked.append(offer.to)
        rig.answer(offer, ms.OfferReply("busy", "busy"))
        assert rig.notes("offer_busy")[0].site == offer.to
    assert len(set(asked)) == 3
    assert not rig.requests(ms.Offer) and rig.node.sending == ()


def test_an_unanswered_offer_leads_to_another_site() -> None:
    rig = rig_of("b", "c")
    rig.round_done(export=model("mine", round=6))
    first = offered(rig)
    rig.fail(first)
    assert offered(rig).to != first.to


@pytest.mark.parametrize("reason", ["paused", "finished", "failed", "not_ready", "leaving"])
def test_a_site_that_takes_no_models_is_left_out_until_it_says_otherwise(reason: str) -> None:
    rig = rig_of("b")
    rig.round_done(export=model("mine", round=6))
    rig.answer(offered(rig), ms.OfferReply("reject", reason))
    rig.round_done(export=model("mine2", round=7))
    assert not rig.requests(ms.Offer)
    rig.hears("b")
    assert rig.round_done() is not None
    assert rig.of(fx.StartRound)[0].export


@pytest.mark.parametrize("state", [Phase.PAUSED, Phase.FINISHED, Phase.STARTING, Phase.FAILED])
def test_only_sites_in_training_are_asked(state: Phase) -> None:
    rig = rig_of("b", "c")
    rig.hears("c", info=phase(state))
    for n in range(6, 12):
        rig.round_done(export=model(f"m{n}", round=n))
        offer = offered(rig)
        assert offer.to == "b"
        rig.answer(offer, ms.OfferReply("busy"))


def test_suspects_and_the_dead_are_not_asked() -> None:
    rig = rig_of("b", "c")
    rig.hears("b", suspect("c", "b"))
    rig.round_done(export=model("mine", round=6))
    assert offered(rig).to == "b"


def test_a_site_not_yet_greeted_is_greeted_before_the_offer() -> None:
    rig = rig_of("b")
    rig.hears("b", alive("b", 2, nonce=99))
    rig.round_done(export=model("mine", round=6))
    assert not rig.requests(ms.Offer)
    greeting = rig.request(ms.Hello)
    rig.answer(greeting, ms.HelloReply(1, 1, "f", rig.node._ctx.contract, phase(Phase.TRAINING)))
    assert offered(rig).to == "b"


def test_a_model_is_exported_at_the_rounds_at_which_an_exchange_is_due() -> None:
    rig = Rig(
        ("b",),
        gossip=GossipParams(exchange="push", sender_rate=1.0, warmup_rounds=2),
        exchange_at=ExchangeTimes(2),
    )
    rig.start()
    rig.meet("b")
    rig.ready(round=0, steps=0)
    orders = rig.of(fx.StartRound)
    for _ in range(6):
        rig.round_done()
        orders += rig.of(fx.StartRound)
    assert [o.round for o in orders if o.export] == [2, 4, 6]


def test_nothing_is_sent_during_the_warm_up() -> None:
    rig = rig_of("b", round=0, steps=0)
    exports = [rig.of(fx.StartRound)[0].export]
    for _ in range(3):
        rig.round_done()
        exports.append(rig.of(fx.StartRound)[0].export)
    # rounds 1, 2, 3, 4 with warmup_rounds = 2: two rounds are behind the model at the end of round 2
    assert exports == [False, True, True, True]


def test_no_more_models_go_out_at_once_than_allowed() -> None:
    rig = rig_of(
        "b", "c", "d", gossip=GossipParams(exchange="push", sender_rate=1.0, max_parallel_transfers=2)
    )
    for n in (6, 7):
        rig.round_done(export=model(f"m{n}", round=n))
        rig.answer(offered(rig), ms.OfferReply("accept"))
    rig.round_done(export=model("m8", round=8))
    assert not rig.requests(ms.Offer)
    assert rig.notes("model_dropped")[0].reason == "transfers_busy"
    assert len({s.to for s in rig.node.sending}) == 2


def test_a_failed_transfer_is_noted_and_not_repeated() -> None:
    rig = rig_of("b")
    rig.round_done(export=model("mine", round=6))
    rig.answer(offered(rig), ms.OfferReply("accept"))
    rig.do(ev.TransferFailed(rig.of(fx.StartTransfer)[0].id, "unreachable", "reset"))
    assert rig.notes("transfer_failed")[0].reason == "unreachable"
    assert rig.node.sending == () and rig.node.count("sent") == 0


def turned_away(reason: str = "not_offered") -> tuple[Rig, fx.StartTransfer]:
    """b, which has accepted a model, has forgotten it."""
    rig = rig_of("b", "c")
    rig.round_done(export=model("mine", round=6))
    rig.answer(offered(rig), ms.OfferReply("accept"))
    transfer = rig.of(fx.StartTransfer)[0]
    rig.do(ev.TransferFailed(transfer.id, reason))
    return rig, transfer


@pytest.mark.parametrize("reason", ["not_offered", "partial_damaged"])
def test_a_receiver_that_forgot_its_promise_is_offered_the_same_model_once_more(reason: str) -> None:
    rig, transfer = turned_away(reason)
    again = offered(rig)
    assert (again.to, again.body) == (transfer.to, ms.Offer(transfer.model)), "under the same manifest"
    assert transfer.model.hash in rig.node.kept_models()
    rig.answer(again, ms.OfferReply("accept"))
    second = rig.of(fx.StartTransfer)[0]
    assert (second.to, second.model) == (transfer.to, transfer.model)
    rig.do(ev.TransferFailed(second.id, reason))
    assert not rig.requests(ms.Offer) and rig.node.sending == (), "once"


def test_a_receiver_that_is_not_ready_yet_is_asked_a_few_times() -> None:
    rig, transfer = turned_away()
    asked, began = [offered(rig)], rig.now
    while rig.node.sending:
        rig.answer(asked[-1], ms.OfferReply("reject", "not_ready"))
        while rig.node.sending and not rig.requests(ms.Offer):
            rig.do(ev.Tick(), at=rig.node.next_deadline())
        asked += rig.requests(ms.Offer)
    assert {r.to for r in asked} == {transfer.to} and len(asked) == 5
    assert rig.now - began == 150 and rig.notes("offer_rejected")[0].reason == "not_ready"


@pytest.mark.parametrize("reply", [ms.OfferReply("busy", "busy"), ms.OfferReply("reject", "stale")])
def test_a_receiver_that_takes_it_no_more_is_left_alone(reply: ms.OfferReply) -> None:
    rig, _ = turned_away()
    rig.answer(offered(rig), reply)
    assert not rig.requests(ms.Offer) and rig.node.sending == ()


def test_a_restarted_receiver_takes_the_model_it_was_promised_again() -> None:
    rig = rig_of("b", "c")
    rig.asks("b", ms.Offer(model("x")))
    then = rig.of(fx.Persist)[-1:]
    again = rig_of("b", "c", **({"snapshot": then[0].snapshot} if then else {}))
    assert again.node.expects("b", model("x").hash) is None
    again.asks("b", ms.Offer(model("x")))
    assert again.reply() == ms.OfferReply("accept")
    assert again.node.expects("b", model("x").hash) == model("x")


def test_an_algorithm_without_exchange_neither_sends_nor_takes() -> None:
    rig = rig_of("b", exchange="none")
    assert not rig.of(fx.StartRound)[0].export
    rig.asks("b", ms.Offer(model()))
    assert rig.reply() == ms.OfferReply("reject", "exchanges_nothing")


# ---------------------------------------------------------------- the receiver


def test_an_accepted_model_arrives_waits_and_visits_exactly_once() -> None:
    rig = rig_of("b")
    rig.asks("b", ms.Offer(model()))
    assert rig.reply().verdict == "accept"
    assert rig.node.expects("b", model().hash) == model()
    assert rig.node.expects("c", model().hash) is None
    rig.do(ev.ModelArrived("b", model()))
    entry = InboxEntry("b", model(), 5)
    assert rig.of(fx.Persist)[0].snapshot.inbox == (entry,)
    assert rig.node.expects("b", model().hash) is None
    rig.round_done()
    assert rig.of(fx.StartRound)[0].visit == entry
    assert rig.node.visiting == entry and rig.node.inbox == ()
    rig.round_done(visit=ev.VisitResult(model().hash, "merged"))
    assert rig.notes("visit_merged")[0].site == "b"
    assert rig.of(fx.Persist)[0].snapshot.inbox == ()
    assert rig.of(fx.StartRound)[0].visit is None
    assert (rig.node.count("received"), rig.node.count("merged")) == (1, 1)


@pytest.mark.parametrize("outcome", ["merged", "refused", "kept_out"])
def test_what_became_of_a_visit_is_counted(outcome: Any) -> None:
    rig = hosting()
    rig.round_done(visit=ev.VisitResult(model().hash, outcome, "why"))
    assert rig.notes(f"visit_{outcome}")[0].reason == "why"
    assert rig.node.count(outcome, "b") == 1
    rig.round_done(reverted=model().hash)
    assert rig.notes("visit_reverted")[0].site == "b"


@pytest.mark.parametrize(
    ("reason", "event"),
    [("paused", ev.Pause(True)), ("not_ready", ev.WorkerLost("oom")), ("failed", ev.WorkerLost("oom", True))],
)
def test_a_site_that_does_not_train_refuses_with_the_reason(reason: str, event: ev.Event) -> None:
    rig = rig_of("b")
    rig.do(event)
    rig.asks("b", ms.Offer(model()))
    assert rig.reply() == ms.OfferReply("reject", reason)


def test_leaving_and_finished_sites_refuse() -> None:
    rig = rig_of("b", rounds=6)
    rig.asks("b", ms.Offer(model()))
    assert rig.reply() == ms.OfferReply("reject", "finished"), "no later round could host it"
    rig.round_done()
    assert rig.of(fx.Finished) and rig.node.phase is Phase.FINISHED
    rig.asks("b", ms.Offer(model()))
    assert rig.reply() == ms.OfferReply("reject", "finished")
    rig.do(ev.Leave())
    rig.asks("b", ms.Offer(model()))
    assert rig.reply() == ms.OfferReply("reject", "leaving")


def test_warming_up_refuses_but_a_late_joiner_with_nothing_behind_it_takes_one() -> None:
    rig = rig_of("b", round=1, steps=10)
    rig.asks("b", ms.Offer(model()))
    assert rig.reply() == ms.OfferReply("reject", "warming_up")
    rig = rig_of("b", round=0, steps=0)
    rig.asks("b", ms.Offer(model()))
    assert rig.reply().verdict == "accept"


def test_too_large_a_model_is_refused_before_a_byte_is_stored() -> None:
    rig = rig_of("b", max_model_bytes=999)
    rig.asks("b", ms.Offer(model(size=1000)))
    assert rig.reply() == ms.OfferReply("reject", "too_large")


def test_a_model_that_waits_visits_or_has_visited_is_a_duplicate() -> None:
    rig = rig_of("b")
    rig.asks("b", ms.Offer(model()))
    rig.do(ev.ModelArrived("b", model()))
    for result in (None, None, ev.VisitResult(model().hash, "merged")):
        rig.asks("b", ms.Offer(model(round=99)))
        assert rig.reply() == ms.OfferReply("reject", "duplicate")
        rig.round_done(visit=result)
    rig.asks("b", ms.Offer(model(round=99)))
    assert rig.reply() == ms.OfferReply("reject", "duplicate")


# ---------------------------------------------------------------- crashes and pauses


def test_a_model_whose_visit_the_checkpoint_knows_is_not_visited_again() -> None:
    entry = InboxEntry("b", model(), 5)
    rig = Rig(("b",), snapshot=Snapshot(3, 5, 50, (entry,))).start()
    rig.ready(round=6, steps=60, last_visit=model().hash)
    assert rig.of(fx.StartRound)[0].visit is None
    assert rig.of(fx.Persist)[-1].snapshot.inbox == ()


def test_a_visitor_under_which_the_worker_dies_twice_does_not_end_all_training() -> None:
    rig = hosting()
    rig.do(ev.WorkerLost("oom"))
    rig.ready(round=6, steps=60)
    rig.do(ev.WorkerLost("oom"))
    assert rig.notes("model_dropped")[0].reason == "worker_lost"
    assert rig.of(fx.Persist)[-1].snapshot.inbox == ()
    rig.ready(round=6, steps=60)
    assert rig.of(fx.StartRound)[0].visit is None


def test_a_model_of_a_site_that_was_removed_while_this_one_was_down_does_not_visit() -> None:
    entry = InboxEntry("b", model(), 5)
    rig = Rig(("c",), snapshot=Snapshot(3, 5, 50, (entry,))).start()
    rig.ready()
    assert rig.node.inbox == () and rig.of(fx.StartRound)[0].visit is None


def test_a_pause_lets_the_round_end_and_starts_no_other_until_resumed() -> None:
    rig = rig_of("b")
    rig.do(ev.Pause(True))
    assert rig.notes("paused") and rig.of(fx.Persist)[0].snapshot.paused
    rig.round_done(export=model("mine", round=6))
    assert not rig.requests(ms.Offer) and not rig.of(fx.StartRound)
    assert rig.notes("model_dropped")[0].reason == "paused"
    rig.do(ev.Pause(True))
    assert rig.out == []
    rig.do(ev.Pause(False))
    assert rig.notes("resumed") and rig.of(fx.StartRound)[0].round == 7


def test_a_pause_survives_a_restart() -> None:
    rig = Rig(("b",), snapshot=Snapshot(3, 5, 50, (), paused=True)).start()
    rig.ready()
    assert rig.node.phase is Phase.PAUSED and not rig.of(fx.StartRound)


def test_counters_survive_a_restart() -> None:
    rig = rig_of("b")
    rig.asks("b", ms.Offer(model()))
    rig.do(ev.ModelArrived("b", model()))
    snapshot = rig.of(fx.Persist)[-1].snapshot
    again = Rig(("b",), snapshot=snapshot)
    assert again.node.count("received", "b") == 1


def test_the_budget_ends_training_and_what_still_waits_is_dropped() -> None:
    rig = rig_of("b", rounds=7)
    rig.round_done(export=model("mine", round=6))
    rig.asks("b", ms.Offer(model(steps=70)))
    assert rig.reply().reason == "finished"
    rig.round_done(export=model("last", round=7))
    assert rig.of(fx.Finished) and rig.notes("finished")
    assert not rig.of(fx.StartRound)
    rig.do(ev.WorkerLost("exited"))
    assert rig.node.phase is Phase.FINISHED


def test_models_in_use_are_kept_from_the_garbage_collector() -> None:
    rig = rig_of("b", "c")
    rig.asks("b", ms.Offer(model("in")))
    rig.round_done(export=model("out", round=6))
    assert rig.node.kept_models() == {model("in").hash, model("out").hash}


def test_a_removed_sites_waiting_model_is_dropped() -> None:
    rig = rig_of("b", "c")
    rig.asks("b", ms.Offer(model()))
    rig.do(ev.ModelArrived("b", model()))
    rig.do(ev.SitesChanged({"c": "c:1"}))
    assert rig.node.inbox == () and rig.notes("model_dropped")[0].reason == "no_longer_listed"
