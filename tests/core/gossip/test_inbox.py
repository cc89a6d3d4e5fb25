"""The one place for an incoming model: staleness, ageing, promises that are kept and those that are not."""

from __future__ import annotations

from typing import Any

import pytest

from gossipseg.core import effects as fx
from gossipseg.core import events as ev
from gossipseg.core import messages as ms
from gossipseg.core.effects import InboxEntry, Snapshot
from gossipseg.core.params import GossipParams
from gossipseg.core.types import Phase
from tests.core.gossip.rig import hosting, rig_of
from tests.core.rig import alive, left, model


@pytest.mark.parametrize(("steps", "verdict"), [(25, "accept"), (24, "reject")])
def test_a_model_with_under_half_the_steps_is_stale(steps: int, verdict: str) -> None:
    rig = rig_of("b", steps=50)
    rig.asks("b", ms.Offer(model(steps=steps)))
    assert rig.reply().verdict == verdict
    assert rig.reply().reason == ("" if verdict == "accept" else "stale")


def test_steps_that_others_claimed_make_no_honest_model_stale() -> None:
    rig = rig_of("b", steps=50)
    rig.do(ev.RoundFinished(rig.node.round + 1, 10**12, 0.5, own_steps=60))
    for steps, verdict in ((29, "reject"), (30, "accept")):
        rig.asks("b", ms.Offer(model(steps=steps)))
        assert rig.reply().verdict == verdict
    rig.do(ev.ModelArrived("b", model(steps=30)))
    rig.do(ev.RoundFinished(rig.node.round + 1, 10**12 + 10, 0.5, own_steps=60))
    assert rig.of(fx.StartRound)[0].visit is not None


def test_a_model_that_became_stale_while_it_waited_is_dropped_unvisited() -> None:
    rig = rig_of("b", steps=50)
    rig.asks("b", ms.Offer(model(steps=26)))
    rig.do(ev.ModelArrived("b", model(steps=26)))
    rig.round_done()  # 60 steps now
    assert rig.of(fx.StartRound)[0].visit is None
    assert rig.notes("model_dropped")[0].reason == "stale"


def test_a_model_that_waited_too_long_is_dropped_unvisited() -> None:
    old = InboxEntry("b", model(), arrived_round=1)
    rig = rig_of("b", round=5, snapshot=Snapshot(incarnation=1, round=5, steps=50, inbox=(old,)))
    assert rig.of(fx.StartRound)[0].visit is None
    assert rig.notes("model_dropped")[0].reason == "too_old"
    assert rig.of(fx.Persist)[-1].snapshot.inbox == ()


def test_the_inbox_holds_one() -> None:
    rig = rig_of("b", "c")
    rig.asks("b", ms.Offer(model("1")))
    rig.asks("c", ms.Offer(model("2")))
    assert rig.reply() == ms.OfferReply("busy", "busy")
    rig.do(ev.ModelArrived("b", model("1")))
    rig.asks("c", ms.Offer(model("2")))
    assert rig.reply() == ms.OfferReply("busy", "busy")
    rig.round_done()
    rig.asks("c", ms.Offer(model("2", steps=60)))
    assert rig.reply().verdict == "accept", "the first one visits now: its place is free"


def test_a_newer_model_of_the_same_peer_replaces_the_older() -> None:
    rig = rig_of("b")
    rig.asks("b", ms.Offer(model("1", round=5)))
    rig.do(ev.ModelArrived("b", model("1", round=5)))
    rig.asks("b", ms.Offer(model("0", round=5)))
    assert rig.reply().verdict == "busy", "not newer"
    rig.asks("b", ms.Offer(model("2", round=6)))
    assert rig.reply().verdict == "accept"
    rig.do(ev.ModelArrived("b", model("2", round=6)))
    assert [e.model for e in rig.node.inbox] == [model("2", round=6)]
    assert rig.notes("model_dropped")[0].reason == "replaced"


def test_the_same_offer_again_is_accepted_again() -> None:
    rig = rig_of("b")
    for _ in range(2):  # the first answer may have been lost
        rig.asks("b", ms.Offer(model()))
        assert rig.reply().verdict == "accept"


def test_a_promise_ends_at_its_deadline() -> None:
    rig = rig_of("b", gossip=GossipParams(exchange="push", transfer_timeout_s=300))
    rig.asks("b", ms.Offer(model()))
    promised = rig.now
    rig.until(promised + 299)
    assert rig.node.reserved is not None
    rig.until(promised + 301)
    assert rig.node.reserved is None and rig.node.expects("b", model().hash) is None


def test_a_promise_whose_stream_never_began_gives_way_to_another_site() -> None:
    rig = rig_of("b", "c")
    rig.asks("b", ms.Offer(model("1")))
    rig.now += 39
    rig.asks("c", ms.Offer(model("2")))
    assert rig.reply().verdict == "busy"
    rig.now += 2
    rig.asks("c", ms.Offer(model("2")))
    assert rig.reply().verdict == "accept"
    rig.do(ev.ModelArrived("b", model("1")))
    assert rig.node.inbox == () and rig.notes("model_dropped")[0].reason == "not_expected"


def test_offers_again_and_again_do_not_hold_the_place() -> None:
    rig = rig_of("b", "c")
    for i in range(5):
        rig.asks("b", ms.Offer(model("1" if i % 2 else "3", round=5 + i)))
        assert rig.reply().verdict == "accept"
        rig.now += 9
    rig.asks("c", ms.Offer(model("2")))
    assert rig.reply().verdict == "accept"


def test_a_stream_that_began_is_not_displaced() -> None:
    rig = rig_of("b", "c")
    rig.asks("b", ms.Offer(model("1")))
    for _ in range(5):  # it goes on
        rig.do(ev.TransferBegan("b", model("1").hash))
        rig.now += 39
        rig.asks("c", ms.Offer(model("2")))
        assert rig.reply().verdict == "busy"


def test_a_stream_that_came_to_a_halt_gives_way_in_the_end() -> None:
    rig = rig_of("b", "c")
    rig.asks("b", ms.Offer(model("1")))
    rig.do(ev.TransferBegan("b", model("1").hash))
    rig.now += 41
    rig.asks("c", ms.Offer(model("2")))
    assert rig.reply().verdict == "accept"


@pytest.mark.parametrize("record", [alive("b", 2, nonce=99), left("b", 1)])
def test_a_promise_ends_with_the_senders_life(record: Any) -> None:
    rig = rig_of("b", "c")
    rig.asks("b", ms.Offer(model()))
    rig.hears("c", record)
    assert rig.node.reserved is None
    assert rig.notes("model_dropped")[0].reason == "sender_gone"


def test_a_broken_model_frees_the_place_and_is_counted() -> None:
    rig = rig_of("b")
    rig.asks("b", ms.Offer(model()))
    rig.do(ev.ModelBroken("b", model().hash, "hash_mismatch"))
    assert rig.notes("model_broken")[0].reason == "hash_mismatch"
    assert rig.node.reserved is None and rig.node.count("refused", "b") == 1


def test_a_model_whose_visit_was_cut_off_visits_again() -> None:
    rig = hosting()
    rig.do(ev.WorkerLost("oom"))
    assert rig.node.phase is Phase.STARTING and rig.node.visiting is None
    rig.ready(round=6, steps=60)
    assert rig.of(fx.StartRound)[0].visit == InboxEntry("b", model(), 5)
