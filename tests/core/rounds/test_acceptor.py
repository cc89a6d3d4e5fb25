"""What a site promises and stores (acceptor.py), and what it answers to coordinators (participant.py)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gossipseg.core import effects as fx
from gossipseg.core import events as ev
from gossipseg.core import messages as ms
from gossipseg.core.types import fingerprint
from tests.core.rig import SIGNED, Rig
from tests.core.rounds_bench import (
    LIST,
    PARAMS,
    RUN,
    accept,
    arrives,
    asked,
    bench,
    leads,
    prepare,
    proposal,
    trained,
    update,
    view,
    with_round_1,
)


def test_a_promise_is_on_disk_before_it_is_given() -> None:
    rig = bench()
    rig.asks("z", prepare(1))
    assert [type(e) for e in rig.out] == [fx.Persist, fx.Respond]
    record = rig.of(fx.Persist)[0].snapshot.rounds
    assert record is not None and (record.promised_round, record.promised_attempt) == (1, 1)
    assert rig.reply() == ms.PrepareReply(True, 1, waiting_for="training")


def test_the_same_promise_again_is_free() -> None:
    rig = bench()
    rig.asks("z", prepare(1))
    rig.asks("z", prepare(1))
    assert rig.of(fx.Persist) == [] and rig.reply().promise


def test_no_attempt_below_the_promised_one_is_listened_to() -> None:
    rig = bench()
    rig.asks("b", prepare(2))
    assert asked(rig, "z", prepare(1)) == ms.PrepareReply(False, 2, "later_attempt")
    assert asked(rig, "z", accept(proposal(1))) == ms.AcceptReply("reject", "later_attempt", 2)


def test_a_promise_outlives_a_restart() -> None:
    rig = bench()
    rig.asks("b", prepare(2))
    again = bench(snapshot=rig.of(fx.Persist)[0].snapshot)
    assert asked(again, "z", prepare(1)) == ms.PrepareReply(False, 2, "later_attempt")


def test_a_restarted_coordinator_leads_no_attempt_twice() -> None:
    rig = trained()
    assert leads(rig)
    record = rig.of(fx.Persist)[-1].snapshot
    again = bench(ready=False, snapshot=record)
    again.ready(round=1, steps=10)
    assert not again.notes("round_led") and view(again).coordinator == "z"


@pytest.mark.parametrize(
    ("frm", "body", "reason"),
    [
        ("b", prepare(1), "not_coordinator"),
        ("z", prepare(1, run=fingerprint(())), "other_run"),
        ("z", prepare(1, sites=fingerprint(())), "other_sites"),
        ("z", prepare(0, round=2), "behind"),
    ],
)
def test_who_is_not_followed_is_told_why(frm: str, body: ms.Prepare, reason: str) -> None:
    rig = bench()
    assert asked(rig, frm, body).reason == reason
    assert not rig.of(fx.Persist)


def test_another_run_is_noted_once() -> None:
    rig = bench()
    bad = prepare(1, run=fingerprint(()))
    rig.asks("z", bad)
    assert [(n.site, n.reason) for n in rig.notes("round_refused")] == [("z", "other_run")]
    rig.asks("z", bad)
    assert not rig.notes("round_refused")


def test_before_its_worker_has_reported_it_promises_nothing() -> None:
    rig = bench(ready=False)
    assert asked(rig, "z", prepare(1)) == ms.PrepareReply(False, -1, "not_ready")


def test_what_is_proposed_is_fetched_stored_and_then_acknowledged() -> None:
    rig = bench()
    p = proposal(1)
    assert asked(rig, "z", accept(p)) == ms.AcceptReply("missing", "", -1)
    assert rig.node.expects("z", p.model.hash) == p.model and rig.node.expects("b", p.model.hash) is None
    arrives(rig, "z", p)
    record = rig.of(fx.Persist)[0].snapshot.rounds
    assert record is not None and record.accepted == p and record.promised_attempt == 1
    assert rig.node.expects("z", p.model.hash) is None
    assert p.model.hash in rig.node.kept_models()
    assert asked(rig, "z", accept(p)) == ms.AcceptReply("stored", "", 1)
    assert rig.of(fx.Persist) == []


def test_what_is_stored_is_reported_with_a_promise() -> None:
    rig = bench()
    p = proposal(1)
    rig.asks("z", accept(p))
    arrives(rig, "z", p)
    assert asked(rig, "b", prepare(2)).accepted == p


def test_the_same_model_under_a_later_attempt_needs_no_second_fetch() -> None:
    rig = bench()
    rig.asks("z", accept(proposal(1)))
    arrives(rig, "z", proposal(1))
    assert asked(rig, "b", accept(proposal(2))) == ms.AcceptReply("stored", "", 2)
    record = rig.of(fx.Persist)[0].snapshot.rounds
    assert record is not None and record.accepted == proposal(2)


def test_a_file_that_comes_after_a_later_promise_is_not_stored() -> None:
    rig = bench()
    p = proposal(1)
    rig.asks("z", accept(p))
    request = rig.request(ms.Fetch)
    rig.asks("b", prepare(2))
    assert rig.node.expects("z", p.model.hash) is None
    rig.answer(request, ms.FetchReply("accept", "", p.model))
    assert asked(rig, "b", prepare(2)).accepted is None


def test_no_model_with_a_site_twice_is_stored_or_taken_for_committed() -> None:
    rig = bench()
    bad = proposal(1, contributors=("b", "b"))
    assert asked(rig, "z", accept(bad)).reason == "too_few_contributors"
    assert asked(rig, "z", ms.Commit(RUN, LIST, bad)) == ms.CommitReply("reject", "too_few_contributors")
    assert not rig.requests(ms.Fetch)


def test_a_file_beyond_the_limit_or_of_another_kind_is_not_fetched() -> None:
    rig = bench(max_model_bytes=999)
    assert asked(rig, "z", accept(proposal(1))).reason == "too_large"
    odd = replace(proposal(1), model=update("g1"))
    assert asked(bench(), "z", accept(odd)).reason == "other_model"


def test_what_another_contract_has_left_behind_is_forgotten() -> None:
    snapshot = with_round_1()
    changed = tuple((k, '"net2"' if k == "network.signature" else v) for k, v in SIGNED)
    again = Rig(("b", "z"), exchange="rounds", rounds_params=PARAMS, snapshot=snapshot).start()
    again.do(ev.WorkerReady(1, 10, 10, changed))
    assert [n.detail["committed"] for n in again.notes("rounds_forgotten")] == [1]
    assert again.node.info.committed == 0 and not again.node.kept_models()
