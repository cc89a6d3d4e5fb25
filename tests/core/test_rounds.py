"""One site in the rounds under a rotating coordinator: each rule on the bench, one message at a time.

The listed sites are b, me and z: in round 1 attempt 0 is me's to lead, 1 is z's and 2 is b's.
"""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from typing import Any

import pytest

from gossipseg.core import effects as fx
from gossipseg.core import events as ev
from gossipseg.core import messages as ms
from gossipseg.core.electorate import Electorate, run_of
from gossipseg.core.params import RoundsParams
from gossipseg.core.rounds_view import RoundsView
from gossipseg.core.stages import OVER, TRANSITIONS, Evidence, Stage
from gossipseg.core.types import ModelRef, Phase, Proposal, fingerprint
from tests.core.rig import PRINT, SIGNED, TRAINING, Rig, alive, bare, left, model, phase, suspect

SITES = ("b", "me", "z")
RUN = run_of("f", PRINT)
LIST = Electorate.of(SITES, None).key
PARAMS = RoundsParams(patience_s=20.0, deadline_s=100.0, alone_after_s=200.0)
AT_1 = replace(TRAINING, round=0, committed=0)


def common(name: str = "g1", round: int = 1) -> ModelRef:
    return replace(model(name, round=round), kind="global")


def update(name: str, round: int = 1) -> ModelRef:
    return replace(model(name, round=round), kind="update")


def proposal(attempt: int = 1, name: str = "g1", round: int = 1, **changes: Any) -> Proposal:
    given = {"contributors": ("b", "z"), "absent": (("me", "late"),), **changes}
    return Proposal(round, attempt, common(name, round), **given)


def prepare(attempt: int, round: int = 1, run: str = RUN, sites: str = LIST) -> ms.Prepare:
    return ms.Prepare(run, sites, round, attempt)


def accept(of: Proposal) -> ms.Accept:
    return ms.Accept(RUN, LIST, of)


def fetch(hash: str, kind: Any = "global", round: int = 1, attempt: int = 1) -> ms.Fetch:
    return ms.Fetch(RUN, LIST, kind, round, attempt, hash)


def bench(ready: bool = True, **changes: Any) -> Rig:
    """me, met with b and z; with its worker up and in its first round."""
    given = {"exchange": "rounds", "rounds_params": PARAMS, **changes}
    rig = Rig(("b", "z"), **given).start()
    rig.meet("b", "z", info=AT_1)
    if ready:
        rig.ready(round=0, steps=0)
    return rig


def trained(**changes: Any) -> Rig:
    """bench, with its first round done and its update there."""
    rig = bench(**changes)
    rig.round_done(model("mine", round=1))
    return rig


def order(rig: Rig) -> fx.StartRound:
    orders = rig.of(fx.StartRound)
    assert len(orders) == 1, rig.out
    return orders[0]


def view(rig: Rig) -> RoundsView:
    seen = rig.node.rounds_view
    assert seen is not None
    return seen


def state_of(rig: Rig, site: str) -> tuple[str, str]:
    return next((r.state, r.reason) for r in view(rig).rows if r.site == site)


def leads(rig: Rig) -> list[fx.Request]:
    """What its Prepare requests were when it began to lead."""
    assert rig.notes("round_led"), rig.out
    return rig.requests(ms.Prepare)


# ---------------------------------------------------------------- tables and values


def test_every_stage_can_be_reached_and_none_is_left_once_it_is_over() -> None:
    assert {Stage.ASKING, *TRANSITIONS.values()} == set(Stage)
    assert not [stage for stage, _ in TRANSITIONS if stage in OVER]
    for stage in set(Stage) - set(OVER):
        assert TRANSITIONS[stage, Evidence.GIVE_UP] is Stage.GIVEN_UP


def test_the_coordinator_rotates_by_round_and_attempt() -> None:
    electorate = Electorate.of(("z", "b", "me"), None)
    assert [electorate.coordinator(1, a) for a in range(4)] == ["me", "z", "b", "me"]
    assert [electorate.coordinator(r, 0) for r in range(4)] == ["b", "me", "z", "b"]


@pytest.mark.parametrize(
    ("sites", "set_to", "votes"),
    [(1, None, 1), (2, None, 2), (3, None, 2), (4, None, 3), (5, 4, 4), (5, 1, 3)],
)
def test_any_two_quorums_have_a_site_in_common(sites: int, set_to: int | None, votes: int) -> None:
    assert Electorate.of([str(i) for i in range(sites)], set_to).votes == votes


def test_the_run_stands_for_federation_and_contract() -> None:
    assert len({run_of("f", "a"), run_of("f", "b"), run_of("g", "a")}) == 3


# ---------------------------------------------------------------- training


def test_it_trains_exports_and_waits() -> None:
    rig = bench()
    assert order(rig) == fx.StartRound(1, None, True)
    rig.round_done(model("mine", round=1))
    assert rig.of(fx.StartRound) == []
    kept = rig.of(fx.Persist)[0].snapshot.rounds
    assert kept is not None and (kept.update_round, bare(kept.update)) == (1, update("mine"))
    assert rig.node.kept_models() == {update("mine").hash}


def test_the_update_is_on_disk_before_anybody_hears_of_it() -> None:
    rig = trained()
    kinds = [type(e) for e in rig.out if isinstance(e, fx.Persist | fx.Request)]
    assert kinds[0] is fx.Persist and rig.requests(ms.Prepare)


def test_a_failed_export_costs_another_round() -> None:
    rig = bench()
    rig.round_done(None)
    assert order(rig) == fx.StartRound(2, None, True)


def test_it_waits_to_meet_others_before_its_first_round_but_not_for_ever() -> None:
    rig = Rig(("b", "z"), exchange="rounds", rounds_params=PARAMS).start()
    rig.ready(round=0, steps=0)
    assert rig.of(fx.StartRound) == [] and view(rig).state == "starting"
    effects = rig.until(rig.now + PARAMS.request_timeout_s)
    assert [e.round for e in effects if isinstance(e, fx.StartRound)] == [1]


def test_every_rounds_counts_from_the_common_model() -> None:
    rig = bench(every_rounds=3)
    assert not order(rig).export
    rig.round_done()
    assert not order(rig).export
    rig.round_done()
    assert order(rig).export


def test_without_a_common_model_it_trains_alone_at_last_and_replaces_its_update() -> None:
    rig = trained()
    for request in rig.requests(ms.Prepare):
        rig.fail(request)
    effects = rig.until(rig.now + PARAMS.alone_after_s)
    alone = [e for e in effects if isinstance(e, fx.StartRound)]
    assert alone == [fx.StartRound(2, None, True)] and rig.notes("round_alone")
    rig.round_done(model("mine again", round=2))
    assert rig.node.rounds_view.rows[1].state == "has_update"  # type: ignore[union-attr]
    reply = asked(rig, "z", prepare(attempt=31))
    assert bare(reply.update) == update("mine again", round=1)


def asked(rig: Rig, frm: str, body: ms.Request) -> Any:
    rig.asks(frm, body)
    return rig.reply()


@pytest.mark.parametrize("of", [Phase.FINISHED, Phase.ENDING, Phase.FAILED])
def test_when_too_few_sites_are_left_to_contribute_it_goes_on_at_once(of: Phase) -> None:
    rig = bench(rounds=9)
    for site in ("b", "z"):
        rig.hears(site, info=phase(of))
    rig.round_done(model("mine", round=1))
    assert order(rig) == fx.StartRound(2, None, False)
    assert [n.reason for n in rig.notes("round_alone")] == ["too_few_sites"]


def test_a_failed_site_that_trains_again_is_waited_for_again() -> None:
    rig = bench(rounds=9)
    for site in ("b", "z"):
        rig.hears(site, info=phase(Phase.FAILED))
    rig.hears("z", info=AT_1)
    rig.round_done(model("mine", round=1))
    assert not rig.of(fx.StartRound)


def test_the_last_rounds_are_said_to_be_the_last() -> None:
    rig = bench(rounds=2)
    assert rig.node.phase is Phase.TRAINING
    rig.round_done(model("mine", round=1))
    rig.asks("z", ms.Commit(RUN, LIST, proposal()))
    arrives(rig, "z", proposal())
    assert order(rig) == fx.StartRound(2, None, False, common())
    assert rig.node.phase is Phase.ENDING
    rig.round_done()
    assert rig.node.phase is Phase.FINISHED and len(rig.of(fx.Finished)) == 1
    assert asked(rig, "z", prepare(0, round=2)).waiting_for == "finished"
    assert len(rig.of(fx.Finished)) == 0


# ---------------------------------------------------------------- promises


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


@pytest.mark.parametrize(
    "body", [prepare(1), fetch(""), accept(proposal()), ms.Commit(RUN, LIST, proposal())]
)
def test_a_site_without_a_coordinator_refuses_the_words_of_one(body: ms.Request) -> None:
    rig = Rig(("b", "z")).start()
    assert asked(rig, "z", body).reason == "other_run"


# ---------------------------------------------------------------- storing


def arrives(rig: Rig, frm: str, of: Proposal) -> None:
    """The site has asked for its file, and it comes."""
    request = rig.request(ms.Fetch, frm)
    assert request.body.hash == of.model.hash
    assert rig.node.expects(frm, of.model.hash) == of.model
    rig.answer(request, ms.FetchReply("accept", "", of.model))
    rig.do(ev.TransferBegan(frm, of.model.hash))
    rig.do(ev.ModelArrived(frm, of.model))


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


@pytest.mark.parametrize(
    ("contributors", "reason"),
    [(("b",), "too_few_contributors"), (("b", "x"), "unlisted_contributor"), (("b", "z"), "")],
)
def test_an_honest_coordinator_proposes_none_of_too_few(contributors: tuple[str, ...], reason: str) -> None:
    assert Electorate.of(SITES, None).fault(proposal(1, contributors=contributors)) == reason


@pytest.mark.parametrize("contributors", [("b",), ("b", "gone")])
def test_what_an_earlier_list_has_committed_is_taken_over(contributors: tuple[str, ...]) -> None:
    rig = bench()
    made = proposal(1, contributors=contributors, absent=())
    assert asked(rig, "z", ms.Commit(RUN, LIST, made)) == ms.CommitReply("known")
    arrives(rig, "z", made)
    assert view(rig).committed == 1


@pytest.mark.parametrize("others", [("b", "y", "z"), ("b",)])
def test_what_was_stored_is_still_reported_when_the_list_has_changed(others: tuple[str, ...]) -> None:
    rig = bench()
    asked(rig, "z", accept(proposal(1)))
    arrives(rig, "z", proposal(1))
    rig.do(ev.SitesChanged({site: f"{site}:1" for site in others}))
    electorate = Electorate.of(("me", *others), None)
    attempt = next(a for a in range(2, 9) if electorate.coordinator(1, a) == "b")
    reply = asked(rig, "b", prepare(attempt, sites=electorate.key))
    assert reply.promise and reply.accepted == proposal(1)


def test_a_file_beyond_the_limit_or_of_another_kind_is_not_fetched() -> None:
    rig = bench(max_model_bytes=999)
    assert asked(rig, "z", accept(proposal(1))).reason == "too_large"
    odd = replace(proposal(1), model=update("g1"))
    assert asked(bench(), "z", accept(odd)).reason == "other_model"


# ---------------------------------------------------------------- commits


def test_a_committed_model_is_fetched_and_the_next_round_starts_from_it() -> None:
    rig = trained()
    assert asked(rig, "z", ms.Commit(RUN, LIST, proposal(1))) == ms.CommitReply("known")
    arrives(rig, "z", proposal(1))
    effects = [type(e) for e in rig.out if isinstance(e, fx.Persist | fx.StartRound)]
    assert effects[0] is fx.Persist and effects[-1] is fx.StartRound
    assert order(rig) == fx.StartRound(2, None, True, common())
    assert rig.node.info.committed == 1
    note = rig.notes("round_committed")[0]
    assert note.site == "z" and note.detail["contributors"] == ["b", "z"]
    assert note.detail["absent"] == {"me": "late"}


def test_a_stored_model_that_is_committed_needs_no_fetch() -> None:
    rig = bench()
    rig.asks("z", accept(proposal(1)))
    arrives(rig, "z", proposal(1))
    rig.asks("z", ms.Commit(RUN, LIST, proposal(1)))
    assert rig.node.info.committed == 1 and not rig.requests(ms.Fetch)


def test_a_round_that_runs_when_its_model_is_committed_gives_no_update() -> None:
    rig = bench()
    rig.asks("z", ms.Commit(RUN, LIST, proposal(1)))
    arrives(rig, "z", proposal(1))
    assert not rig.of(fx.StartRound), "it finishes its own round"
    rig.round_done(model("too late", round=1))
    assert order(rig).start_from == common()
    reply = asked(rig, "z", prepare(0, round=2))
    assert (reply.update, reply.waiting_for) == (None, "training")


def test_it_learns_from_a_ping_that_it_is_behind_asks_which_and_fetches() -> None:
    rig = trained()
    rig.hears("b", info=replace(AT_1, committed=4))
    request = rig.request(ms.Fetch, "b")
    assert (request.body.hash, request.body.kind) == ("", "global")
    newest = proposal(0, "g4", round=4)
    rig.answer(request, ms.FetchReply("accept", "", newest.model, newest))
    arrives(rig, "b", newest)
    assert order(rig) == fx.StartRound(2, None, True, newest.model, settling_in=True)
    assert rig.node.info.committed == 4


def test_a_liars_word_that_a_newer_model_is_committed_stops_nobody_for_long() -> None:
    rig = bench()
    rig.hears("b", info=replace(AT_1, committed=10**9))
    rig.fail(rig.request(ms.Fetch, "b"))
    rig.round_done(model("mine", round=1))
    assert not view(rig).leading, "it would rather catch up"
    began, asked_b = rig.now, 1
    while not view(rig).leading and rig.now < began + 100:
        for request in rig.requests(ms.Fetch):
            asked_b += 1
            rig.answer(request, ms.FetchReply("reject", "not_here"))
        if not view(rig).leading:
            rig.do(ev.Tick(), at=rig.node.next_deadline())
            for ping in rig.requests(ms.Ping):
                rig.answer(ping, ms.Ack((), replace(AT_1, committed=10**9 if ping.to == "b" else 0)))
    assert asked_b == 3 and rig.now - began < PARAMS.patience_s


def test_a_site_that_names_a_newer_model_is_believed_again() -> None:
    rig = trained()
    rig.hears("b", info=replace(AT_1, committed=4))
    newest = proposal(0, "g4", round=4)
    for _ in range(2):
        rig.fail(rig.request(ms.Fetch, "b"))
        while not rig.requests(ms.Fetch):
            rig.do(ev.Tick(), at=rig.node.next_deadline())
    rig.answer(rig.request(ms.Fetch), ms.FetchReply("accept", "", newest.model, newest))
    arrives(rig, "b", newest)
    assert rig.node.info.committed == 4 and not rig.node._rounds.commons._strikes  # type: ignore[union-attr]


def test_a_refused_update_is_told_to_its_site() -> None:
    rig = bench()
    p = proposal(1, absent=(("me", "refused_not_finite"),))
    rig.asks("z", ms.Commit(RUN, LIST, p))
    arrives(rig, "z", p)
    assert [(n.site, n.reason) for n in rig.notes("update_refused")] == [("z", "not_finite")]


def test_an_old_coordinator_is_told_what_was_committed() -> None:
    rig = bench()
    p = proposal(1)
    rig.asks("z", ms.Commit(RUN, LIST, p))
    arrives(rig, "z", p)
    assert asked(rig, "b", prepare(2)) == ms.PrepareReply(False, -1, "already_committed", committed=p)
    old = proposal(2, "other")
    assert asked(rig, "b", accept(old)) == ms.AcceptReply("reject", "already_committed", -1, p)


def with_round_1() -> fx.Snapshot:
    """What is on a site's disk that has the first common model."""
    rig = bench()
    rig.asks("z", ms.Commit(RUN, LIST, proposal(1)))
    arrives(rig, "z", proposal(1))
    return rig.of(fx.Persist)[-1].snapshot


def test_what_a_worker_started_from_before_a_restart_is_not_taken_twice() -> None:
    snapshot = with_round_1()
    again = bench(ready=False, snapshot=snapshot)
    again.ready(round=2, steps=20, last_global=common().hash)
    assert order(again) == fx.StartRound(3, None, True)
    fresh = bench(ready=False, snapshot=snapshot)
    fresh.ready(round=1, steps=10)
    assert order(fresh).start_from == common()


def test_what_another_contract_has_left_behind_is_forgotten() -> None:
    snapshot = with_round_1()
    changed = tuple((k, '"net2"' if k == "network.signature" else v) for k, v in SIGNED)
    again = Rig(("b", "z"), exchange="rounds", rounds_params=PARAMS, snapshot=snapshot).start()
    again.do(ev.WorkerReady(1, 10, 10, changed))
    assert [n.detail["committed"] for n in again.notes("rounds_forgotten")] == [1]
    assert again.node.info.committed == 0 and not again.node.kept_models()


# ---------------------------------------------------------------- serving


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


def test_a_site_that_leaves_promises_and_serves_nothing() -> None:
    rig = bench()
    rig.do(ev.Leave())
    assert asked(rig, "z", prepare(1)).reason == "leaving"
    assert asked(rig, "z", fetch("")).reason == "leaving"


# ---------------------------------------------------------------- fetching


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


# ---------------------------------------------------------------- leading


def test_it_leads_with_its_update_and_a_promise_to_itself_on_disk() -> None:
    rig = trained()
    assert [r.to for r in leads(rig)] == ["b", "z"]
    at = rig.out.index(rig.notes("round_led")[0])
    persisted = [e for e in rig.out[:at] if isinstance(e, fx.Persist)][-1].snapshot.rounds
    assert persisted is not None and persisted.promised_attempt == 0
    assert (view(rig).state, view(rig).leading, view(rig).coordinator) == ("asking", True, "me")


def delivers(rig: Rig, asked: fx.Request) -> None:
    """Who was asked promises, has an update, and sends it."""
    made = update(f"of {asked.to}")
    rig.answer(asked, ms.PrepareReply(True, 0, update=made))
    rig.answer(rig.request(ms.Fetch, asked.to), ms.FetchReply("accept", "", made))
    rig.do(ev.ModelArrived(asked.to, made))


def gathered(*, refused: tuple[tuple[str, str], ...] = ()) -> Rig:
    """me leads round 1, and has let its worker combine the updates of all three."""
    rig = trained()
    first, second = leads(rig)
    delivers(rig, first)
    assert not rig.of(fx.Aggregate), "z may still deliver"
    assert view(rig).deadline_s == PARAMS.deadline_s
    delivers(rig, second)
    sites = tuple((s, update(u)) for s, u in (("b", "of b"), ("me", "mine"), ("z", "of z")))
    assert bare(rig.of(fx.Aggregate)) == [fx.Aggregate(1, 0, sites)]
    there = tuple(s for s in SITES if s not in dict(refused))
    rig.do(ev.Aggregated(1, 0, replace(common(), kind="global"), there, refused))
    return rig


def test_it_combines_what_all_have_sent_and_commits_what_a_quorum_has_stored() -> None:
    rig = gathered()
    stored = rig.of(fx.Persist)[0].snapshot.rounds
    offers = rig.requests(ms.Accept)
    assert stored is not None and stored.accepted == offers[0].body.proposal, "stored here first"
    assert bare(offers[0].body.proposal) == Proposal(1, 0, common(), SITES)
    rig.answer(offers[0], ms.AcceptReply("missing", "", 0))
    assert rig.node.info.committed == 0
    rig.answer(offers[1], ms.AcceptReply("stored", "", 0))
    assert rig.node.info.committed == 1 and not view(rig).leading
    kinds = [type(e) for e in rig.out]
    assert kinds.index(fx.Persist) < min(rig.out.index(r) for r in rig.requests(ms.Commit))
    assert [r.to for r in rig.requests(ms.Commit)] == ["b", "z"]
    assert bare(order(rig)) == fx.StartRound(2, None, True, common())


def test_one_site_that_says_twice_that_it_has_stored_counts_once() -> None:
    sites = ("b", "c", "y", "z")
    rig = Rig(sites, exchange="rounds", rounds_params=PARAMS).start()
    rig.meet(*sites, info=AT_1)
    rig.ready(round=0, steps=0)
    rig.round_done(model("mine", round=1))
    electorate = Electorate.of((*sites, "me"), None)
    attempt = next(a for a in range(5) if electorate.coordinator(1, a) == "me")
    for earlier in range(attempt):
        rig.hears(electorate.coordinator(1, earlier), info=phase(Phase.PAUSED))
    stored = proposal(0, contributors=("b", "c", "z"))
    for request in leads(rig)[:2]:
        rig.answer(request, ms.PrepareReply(True, attempt, accepted=stored))
    arrives(rig, rig.request(ms.Fetch).to, stored)
    first = rig.requests(ms.Accept)[0]
    rig.answer(first, ms.AcceptReply("stored", "", attempt))
    again = [r for r in rig.until(rig.now + PARAMS.patience_s / 2) if getattr(r, "to", "") == first.to]
    for request in again:
        if isinstance(request.body, ms.Accept):
            rig.answer(request, ms.AcceptReply("stored", "", attempt))
    assert rig.node.info.committed == 0, "two of five"
    assert view(rig).leading and state_of(rig, first.to) == ("stored", "")


def test_an_update_that_fails_the_checks_is_left_out_with_the_reason() -> None:
    rig = gathered(refused=(("z", "not_finite"),))
    made = rig.requests(ms.Accept)[0].body.proposal
    assert (made.contributors, made.absent) == (("b", "me"), (("z", "refused_not_finite"),))


def test_with_too_few_good_updates_the_attempt_is_given_up() -> None:
    rig = gathered(refused=(("b", "not_finite"), ("z", "not_finite")))
    assert not rig.requests(ms.Accept) and not view(rig).leading
    assert [(n.site, n.reason) for n in rig.notes("round_passed")] == [("me", "too_few_contributors")]
    assert view(rig).coordinator == "z"


def test_a_site_still_in_training_is_waited_for_until_the_deadline() -> None:
    rig = trained()
    first, second = leads(rig)
    rig.answer(second, ms.PrepareReply(True, 0, waiting_for="training"))
    delivers(rig, first)
    assert (state_of(rig, "z"), state_of(rig, "b")) == (("training", ""), ("delivered", ""))
    end, made = rig.now + PARAMS.deadline_s, []
    while not made:
        due = rig.node.next_deadline()
        assert due is not None and due <= end
        rig.do(ev.Tick(), at=due)
        made = rig.of(fx.Aggregate)
        for r in rig.of(fx.Request):
            if isinstance(r.body, ms.Prepare):
                here = {"update": update("of b")} if r.to == "b" else {"waiting_for": "training"}
                rig.answer(r, ms.PrepareReply(True, 0, **here))
            elif isinstance(r.body, ms.Ping):
                rig.answer(r, ms.Ack((), AT_1))
    assert rig.now == end and [s for s, _ in made[0].updates] == ["b", "me"]
    rig.do(ev.Aggregated(1, 0, common(), ("b", "me")))
    assert rig.requests(ms.Accept)[0].body.proposal.absent == (("z", "late"),)


@pytest.mark.parametrize("why", ["paused", "finished", "failed", "ending", "left"])
def test_who_cannot_deliver_is_not_waited_for(why: str) -> None:
    rig = one_in_training()
    if why == "left":
        rig.hears("b", left("z"))
    else:
        rig.hears("z", info=phase(Phase(why)))
    assert rig.of(fx.Aggregate) and state_of(rig, "z") == ("left_out", why)


def one_in_training() -> Rig:
    """me leads; b has delivered, z trains and has just said so."""
    rig = trained()
    first, second = leads(rig)
    delivers(rig, first)
    rig.answer(second, ms.PrepareReply(True, 0, waiting_for="training"))
    assert not rig.of(fx.Aggregate)
    return rig


def test_a_suspect_is_not_waited_for_unless_it_has_just_answered() -> None:
    rig = one_in_training()
    rig.hears("b", suspect("z", "b"))
    assert not rig.of(fx.Aggregate) and state_of(rig, "z") == ("training", "")
    made = [e for e in rig.until(rig.now + PARAMS.patience_s / 2 + 0.1) if isinstance(e, fx.Aggregate)]
    assert [s for s, _ in made[0].updates] == ["b", "me"]


def test_what_an_earlier_attempt_has_stored_is_proposed_again() -> None:
    """The highest attempt among the reported ones, its model fetched where it is."""
    rig = bench(sites={"b": "b:1", "c": "c:1", "z": "z:1"})
    rig.meet("c", info=AT_1)
    electorate = Electorate.of(("b", "c", "me", "z"), None)
    rig.round_done(model("mine", round=1))
    turn = next(a for a in range(4) if electorate.coordinator(1, a) == "me")
    assert turn == 1 and not rig.notes("round_led")
    rig.hears("c", info=phase(Phase.PAUSED))
    assert rig.notes("round_led") and rig.notes("round_passed")[0].reason == "paused"
    calls = {r.to: r for r in rig.requests(ms.Prepare)}
    low = Proposal(1, 0, common("low"), ("b", "c", "z"), (("me", "late"),))
    high = replace(low, attempt=0, model=common("high"))
    rig.answer(calls["b"], ms.PrepareReply(True, 1, accepted=replace(low, attempt=-1)))
    rig.answer(calls["c"], ms.PrepareReply(True, 1, accepted=high))
    request = rig.request(ms.Fetch)
    assert (request.to, request.body.hash, request.body.kind) == ("c", high.model.hash, "global")
    assert view(rig).state == "recovering"
    rig.answer(request, ms.FetchReply("accept", "", high.model))
    rig.do(ev.ModelArrived("c", high.model))
    assert {r.body.proposal for r in rig.requests(ms.Accept)} == {replace(high, attempt=1)}
    assert not rig.of(fx.Aggregate)


@pytest.mark.parametrize(
    ("reported", "reason"),
    [
        (proposal(0, round=2), "other_model"),
        (proposal(1), "other_model"),
        (replace(proposal(0), model=update("g1")), "other_model"),
        (replace(proposal(-1), model=replace(common(), size_bytes=3 << 30)), "too_large"),
    ],
)
def test_a_site_that_reports_what_it_cannot_have_stored_is_left_out(reported: Proposal, reason: str) -> None:
    rig = trained()
    first, second = leads(rig)
    rig.answer(first, ms.PrepareReply(True, 0, accepted=reported))
    assert not rig.requests(ms.Fetch)
    assert view(rig).state == "asking" and state_of(rig, "b") == ("left_out", reason)
    rig.answer(second, ms.PrepareReply(True, 0, waiting_for="training"))
    assert view(rig).state == "gathering"


def test_of_each_site_only_the_newest_update_is_kept() -> None:
    """Where no quorum comes together for days the sites train alone, and each has ever newer updates."""
    rig = trained()

    def collect(name: str, attempt: int) -> None:
        rig.answer(rig.request(ms.Prepare, "b"), ms.PrepareReply(True, attempt, update=update(name)))
        rig.answer(rig.request(ms.Fetch, "b"), ms.FetchReply("accept", "", update(name)))
        rig.do(ev.ModelArrived("b", update(name)))

    collect("first", 0)
    assert update("first").hash in rig.node.kept_models()
    rig.do(ev.Pause(True))
    for site in ("b", "z"):
        rig.hears(site, info=phase(Phase.PAUSED))
    rig.do(ev.Pause(False))
    assert view(rig).attempt == 3 and view(rig).leading
    collect("second", 3)
    assert update("second").hash in rig.node.kept_models()
    assert update("first").hash not in rig.node.kept_models()


def test_it_gives_way_to_a_later_attempt() -> None:
    rig = trained()
    assert leads(rig)
    rig.asks("b", prepare(2))
    assert rig.reply().promise and not view(rig).leading
    assert view(rig).coordinator == "b"


def test_it_gives_up_when_a_quorum_follows_a_later_attempt() -> None:
    rig = trained()
    for request in leads(rig):
        rig.answer(request, ms.PrepareReply(False, 4, "later_attempt"))
    assert not view(rig).leading


def test_one_site_that_follows_another_is_only_left_out() -> None:
    """A site that was cut off and has tried to lead must not stop a quorum that can go on."""
    rig = trained()
    first, _ = leads(rig)
    rig.answer(first, ms.PrepareReply(False, 4, "later_attempt"))
    assert view(rig).leading and state_of(rig, "b") == ("left_out", "later_attempt")


def test_without_a_quorum_of_answers_it_gives_up_in_time() -> None:
    rig = trained()
    began = rig.now
    for request in leads(rig):
        rig.fail(request)
    while view(rig).leading:
        for e in rig.do(ev.Tick(), at=rig.node.next_deadline()):
            if isinstance(e, fx.Request) and isinstance(e.body, ms.Prepare):
                rig.fail(e)
    assert rig.now - began <= PARAMS.patience_s + 1
    assert [n.reason for n in rig.notes("round_passed")] == ["no_quorum"]


def test_a_pause_or_a_dead_worker_ends_the_attempt() -> None:
    rig = trained()
    assert leads(rig)
    rig.do(ev.Pause(True))
    assert not view(rig).leading and view(rig).state == "paused"
    other = trained()
    other.do(ev.WorkerLost("killed"))
    assert not view(other).leading


def test_a_failed_aggregation_ends_the_attempt_with_its_reason() -> None:
    rig = trained()
    first, second = leads(rig)
    for request, site in ((first, "b"), (second, "z")):
        rig.answer(request, ms.PrepareReply(True, 0, update=update(site)))
        rig.answer(rig.request(ms.Fetch, site), ms.FetchReply("accept", "", update(site)))
        rig.do(ev.ModelArrived(site, update(site)))
    assert rig.of(fx.Aggregate)
    rig.do(ev.AggregationFailed(1, 0, "disk_full"))
    assert [n.reason for n in rig.notes("round_passed")] == ["disk_full"]


def test_a_changed_list_ends_the_attempt_and_old_words_are_refused() -> None:
    rig = trained()
    assert leads(rig)
    rig.do(ev.SitesChanged({"b": "b:1", "z": "z:1", "new": "new:1"}))
    assert asked(rig, "z", prepare(5)).reason == "other_sites"
    assert [r.site for r in view(rig).rows] == ["b", "me", "new", "z"]


def test_one_number_has_one_coordinator_whatever_becomes_of_the_list() -> None:
    """b led attempt 2 of b, me and z; when y is listed, too, attempt 2 is another site's."""
    rig = bench()
    assert asked(rig, "b", prepare(2)).promise
    rig.do(ev.SitesChanged({"b": "b:1", "y": "y:1", "z": "z:1"}))
    electorate = Electorate.of(("b", "me", "y", "z"), None)
    other = electorate.coordinator(1, 2)
    assert other != "b"
    rig.meet(other, info=AT_1)
    assert asked(rig, other, prepare(2, sites=electorate.key)).reason == "later_attempt"
    theirs = ms.Accept(RUN, electorate.key, proposal(2))
    assert asked(rig, other, theirs).reason == "later_attempt"
    kept = rig.node._rounds.acceptor.record  # type: ignore[union-attr]
    assert kept.promised_sites == LIST and kept.accepted is None
    later = electorate.coordinator(1, 3)
    assert asked(rig, later, prepare(3, sites=electorate.key)).promise
    assert asked(rig, later, prepare(3, sites=electorate.key)).promise, "and again"


def test_what_a_coordinator_by_the_old_list_offered_is_not_stored_by_the_new_one() -> None:
    rig = bench()
    rig.asks("z", accept(proposal(1)))
    request = rig.request(ms.Fetch)
    rig.do(ev.SitesChanged({"b": "b:1", "y": "y:1", "z": "z:1"}))
    rig.answer(request, ms.FetchReply("accept", "", proposal(1).model))
    assert rig.node.expects("z", proposal(1).model.hash) is None


def test_a_promise_under_another_list_outlives_a_restart() -> None:
    rig = bench()
    rig.asks("b", prepare(2))
    snapshot = rig.of(fx.Persist)[-1].snapshot
    again = Rig(("b", "y", "z"), exchange="rounds", rounds_params=PARAMS, snapshot=snapshot).start()
    again.meet("b", "y", "z", info=AT_1)
    again.ready(round=0, steps=0)
    electorate = Electorate.of(("b", "me", "y", "z"), None)
    assert asked(again, electorate.coordinator(1, 2), prepare(2, sites=electorate.key)).reason


def test_no_attempt_is_followed_that_time_cannot_have_brought() -> None:
    rig = bench()
    absurd = 3 * 10**8 + 2
    assert Electorate.of(SITES, None).coordinator(1, absurd) == "b"
    assert asked(rig, "b", prepare(absurd)).reason == "absurd_attempt"
    made = replace(proposal(1), attempt=absurd)
    assert asked(rig, "b", accept(made)).reason == "absurd_attempt"
    assert rig.node.count("offences", "b") == 2
    assert asked(rig, "z", prepare(1)).promise and not rig.node.count("offences", "z")


def test_a_site_that_was_down_for_a_week_follows_those_that_have_tried_meanwhile() -> None:
    week = 3 * int(7 * 86400 / PARAMS.patience_s)
    rig = bench()
    assert asked(rig, "b", prepare(week + 2)).promise
    assert asked(rig, "z", prepare(week + 4)).promise


def test_far_steps_use_themselves_up_and_shut_nobody_out() -> None:
    """b goes as far ahead as it may, again and again; z, whose turn is next, is followed all the same."""
    rig, attempt, step = bench(), 2, 300_000
    while asked(rig, "b", prepare(attempt + step)).promise:
        attempt += step
        assert attempt < 1 << 24, "near the end of the numbers"
    assert rig.reply().reason == "attempt_too_far" and not rig.node.count("offences")
    assert asked(rig, "z", prepare(attempt + 2)).promise
    rig.now += 86400.0
    assert asked(rig, "b", prepare(attempt + 99_999)).promise, "a day makes room again"


def test_new_addresses_alone_do_not() -> None:
    rig = trained()
    assert leads(rig)
    rig.do(ev.SitesChanged({"b": "b:2", "z": "z:2"}))
    assert view(rig).leading


# ---------------------------------------------------------------- turns


def waiting_for_z() -> Rig:
    """In round 1 the next in turn after me is z: me has led in an earlier life."""
    first = trained()
    again = bench(ready=False, snapshot=first.of(fx.Persist)[-1].snapshot)
    again.ready(round=1, steps=10)
    assert view(again).coordinator == "z"
    return again


@pytest.mark.parametrize("of", [Phase.PAUSED, Phase.FAILED, Phase.FINISHED, Phase.ENDING, Phase.STARTING])
def test_a_site_that_cannot_lead_is_passed_over_at_once(of: Phase) -> None:
    rig = waiting_for_z()
    rig.hears("z", info=phase(of))
    assert view(rig).coordinator == "b"
    assert [(n.site, n.reason) for n in rig.notes("round_passed")] == [("z", of.value)]


def test_a_silent_coordinator_is_passed_over_when_patience_is_over() -> None:
    rig = waiting_for_z()
    begin = rig.now
    while view(rig).coordinator == "z":
        rig.do(ev.Tick(), at=rig.node.next_deadline())
        for r in rig.requests(ms.Ping):
            rig.answer(r, ms.Ack((), AT_1))
    waited_s = rig.now - begin
    assert PARAMS.patience_s <= waited_s <= 1.25 * PARAMS.patience_s
    assert [(n.site, n.reason) for n in rig.notes("round_passed")] == [("z", "silent")]


def test_a_coordinator_that_is_heard_of_is_not() -> None:
    rig = waiting_for_z()
    end = rig.now + 3 * PARAMS.patience_s
    while rig.now < end:
        rig.asks("z", prepare(1))
        assert view(rig).coordinator == "z"
        rig.until(rig.now + PARAMS.patience_s / 2)
        rig.hears("z", info=AT_1)
        rig.hears("b", info=AT_1)


def test_a_coordinator_that_is_suspected_is_passed_over_at_once() -> None:
    rig = waiting_for_z()
    rig.hears("b", suspect("z", "b"))
    assert view(rig).coordinator == "b"
    assert [(n.site, n.reason) for n in rig.notes("round_passed")] == [("z", "suspect")]


def test_unless_it_was_just_heard_of() -> None:
    rig = waiting_for_z()
    rig.asks("z", prepare(1))
    rig.hears("b", suspect("z", "b"))
    assert view(rig).coordinator == "z"
    rig.until(rig.now + PARAMS.patience_s / 2 - 0.1)
    assert view(rig).coordinator == "z"
    rig.until(rig.now + 0.2)
    assert view(rig).coordinator == "b"


def test_a_restarted_site_leads_again_when_nobody_else_can() -> None:
    rig = waiting_for_z()
    rig.hears("z", info=phase(Phase.PAUSED))
    rig.hears("b", info=phase(Phase.PAUSED))
    assert view(rig).coordinator == "me" and view(rig).attempt == 3
    assert leads(rig)


def test_a_restarted_coordinator_has_lost_its_attempt() -> None:
    rig = waiting_for_z()
    rig.asks("z", prepare(1))
    rig.hears("z", alive("z", incarnation=2, nonce=8), info=AT_1)
    assert [(n.site, n.reason) for n in rig.notes("round_passed")] == [("z", "restarted")]
    assert view(rig).coordinator == "b"


# ---------------------------------------------------------------- what is kept and shown


def test_the_record_holds_all_that_must_survive() -> None:
    names = [f.name for f in dataclasses.fields(fx.RoundsRecord)]
    assert names == [
        "committed", "promised_round", "promised_attempt", "promised_sites", "accepted",
        "update_round", "update", "base_round", "run",
    ]  # fmt: skip


def test_without_a_coordinator_there_is_no_view_and_no_record() -> None:
    rig = Rig().start()
    rig.ready()
    assert rig.node.rounds_view is None
    assert all(p.snapshot.rounds is None for p in rig.of(fx.Persist))
