"""Files of a round on their way (transfers.py): those served to others, and those fetched."""

from __future__ import annotations

from dataclasses import replace

from gossipseg.core import effects as fx
from gossipseg.core import events as ev
from gossipseg.core import messages as ms
from tests.core.rig import Rig, bare
from tests.core.rounds_bench import (
    LIST,
    PARAMS,
    RUN,
    arrives,
    asked,
    bench,
    fetch,
    prepare,
    proposal,
    trained,
    update,
)


def test_its_update_goes_to_the_coordinator_of_the_promised_attempt_alone() -> None:
    rig = trained()
    hash = update("mine").hash
    reply = asked(rig, "z", fetch(hash, "update", attempt=1))
    assert bare(reply) == ms.FetchReply("accept", "", update("mine"))
    sent = rig.of(fx.StartTransfer)[0]
    assert bare((sent.to, sent.model)) == ("z", update("mine"))
    assert [(s.to, s.transferring) for s in rig.node.sending] == [("z", True)]
    rig.asks("z", fetch(hash, "update", attempt=1))
    assert rig.reply().verdict == "accept" and not rig.of(fx.StartTransfer), "it is on its way"
    assert asked(rig, "b", fetch(hash, "update", attempt=1)).reason == "not_coordinator"
    rig.asks("b", prepare(2))
    assert asked(rig, "z", fetch(hash, "update", attempt=1)).reason == "later_attempt"
    assert asked(rig, "b", fetch("0" * 64, "update", attempt=2)).reason == "not_here"
    rig.do(ev.TransferDone(sent.id))
    assert rig.node.sending == () and rig.notes("transfer_done")


def test_a_common_model_goes_to_any_listed_site_and_nothing_else_to_anybody() -> None:
    rig = bench()
    assert asked(rig, "b", fetch("")) == ms.FetchReply("reject", "not_here")
    p = proposal(1)
    rig.asks("z", ms.Commit(RUN, LIST, p))
    arrives(rig, "z", p)
    assert asked(rig, "b", fetch("")) == ms.FetchReply("accept", "", p.model, p)
    assert not rig.of(fx.StartTransfer), "it only asked which one"
    assert asked(rig, "b", fetch(p.model.hash)) == ms.FetchReply("accept", "", p.model)
    assert rig.of(fx.StartTransfer)[0].to == "b"
    assert asked(rig, "b", fetch(p.model.hash, "model")).verdict == "reject"
    assert asked(rig, "b", fetch("0" * 64)) == ms.FetchReply("reject", "not_here", None, p)


def test_no_more_files_than_allowed_are_on_their_way_out() -> None:
    rig = bench(rounds_params=replace(PARAMS, max_parallel_transfers=1))
    p = proposal(1)
    rig.asks("z", ms.Commit(RUN, LIST, p))
    arrives(rig, "z", p)
    rig.asks("b", fetch(p.model.hash))
    sent = rig.of(fx.StartTransfer)[0]
    assert asked(rig, "z", fetch(p.model.hash)) == ms.FetchReply("busy", "busy")
    rig.do(ev.TransferFailed(sent.id, "unreachable"))
    assert rig.notes("transfer_failed")
    assert asked(rig, "z", fetch(p.model.hash)).verdict == "accept"


def test_a_stream_turned_away_by_who_then_asked_for_it_again_is_begun_again() -> None:
    """A coordinator has restarted: it asks anew while the stream it has forgotten is still on its way."""
    rig = trained()
    hash = update("mine").hash
    rig.asks("z", fetch(hash, "update", attempt=1))
    first = rig.of(fx.StartTransfer)[0]
    rig.asks("z", fetch(hash, "update", attempt=1))
    rig.do(ev.TransferFailed(first.id, "not_offered"))
    second = rig.of(fx.StartTransfer)[0]
    assert (second.to, second.model.hash) == ("z", hash)
    rig.do(ev.TransferFailed(second.id, "not_offered"))
    assert not rig.of(fx.StartTransfer), "nobody has asked again"


def lost_stream(rig: Rig) -> list[fx.Request]:
    """Fetch requests until a while after the stream was last heard of."""
    quiet_s = 4 * PARAMS.request_timeout_s + PARAMS.poll_interval_s * 2
    return [
        r for r in rig.until(rig.now + quiet_s) if isinstance(r, fx.Request) and isinstance(r.body, ms.Fetch)
    ]


def test_a_lost_answer_does_not_stop_a_stream_that_has_begun() -> None:
    rig = bench()
    p = proposal(1)
    rig.asks("z", ms.Commit(RUN, LIST, p))
    request = rig.request(ms.Fetch)
    rig.do(ev.TransferBegan("z", p.model.hash))
    rig.fail(request)
    assert rig.node.expects("z", p.model.hash) == p.model
    rig.do(ev.ModelArrived("z", p.model))
    assert rig.node.info.committed == 1


def test_a_stream_that_falls_silent_is_asked_for_again() -> None:
    rig = bench()
    p = proposal(1)
    rig.asks("z", ms.Commit(RUN, LIST, p))
    rig.answer(rig.request(ms.Fetch), ms.FetchReply("accept", "", p.model))
    rig.do(ev.TransferBegan("z", p.model.hash))
    assert [r.to for r in lost_stream(rig)] == ["z"]


def test_a_busy_source_is_asked_again_and_a_broken_file_too() -> None:
    rig = bench()
    p = proposal(1)
    rig.asks("z", ms.Commit(RUN, LIST, p))
    rig.answer(rig.request(ms.Fetch), ms.FetchReply("busy", "busy"))
    assert rig.node.expects("z", p.model.hash) is None
    again = lost_stream(rig)
    assert [r.to for r in again][:1] == ["z"]
    rig.do(ev.ModelBroken("z", p.model.hash, "hash_mismatch"))
    assert rig.notes("model_broken") and rig.node.info.committed == 0
