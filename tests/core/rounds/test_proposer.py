"""Leading an attempt (proposer.py, stages.py): asked, combined, stored, committed, or given up."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gossipseg.core import effects as fx
from gossipseg.core import events as ev
from gossipseg.core import messages as ms
from gossipseg.core.rounds.quorum import QuorumConfig
from gossipseg.core.rounds.stages import OVER, TRANSITIONS, Stage, StageEvent
from gossipseg.core.types import Phase, Proposal
from tests.core.rig import Rig, bare, model, phase
from tests.core.rounds_bench import (
    AT_1,
    PARAMS,
    SITES,
    arrives,
    bench,
    common,
    gathered,
    leads,
    order,
    prepare,
    proposal,
    state_of,
    trained,
    update,
    view,
)


def test_every_stage_can_be_reached_and_none_is_left_once_it_is_over() -> None:
    assert {Stage.ASKING, *TRANSITIONS.values()} == set(Stage)
    assert not [stage for stage, _ in TRANSITIONS if stage in OVER]
    for stage in set(Stage) - set(OVER):
        assert TRANSITIONS[stage, StageEvent.GIVE_UP] is Stage.GIVEN_UP


def test_it_leads_with_its_update_and_a_promise_to_itself_on_disk() -> None:
    rig = trained()
    assert [r.to for r in leads(rig)] == ["b", "z"]
    at = rig.out.index(rig.notes("round_led")[0])
    persisted = [e for e in rig.out[:at] if isinstance(e, fx.Persist)][-1].snapshot.rounds
    assert persisted is not None and persisted.promised_attempt == 0
    assert (view(rig).state, view(rig).leading, view(rig).coordinator) == ("asking", True, "me")


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
    quorum = QuorumConfig.of((*sites, "me"), None)
    attempt = next(a for a in range(5) if quorum.coordinator(1, a) == "me")
    for earlier in range(attempt):
        rig.hears(quorum.coordinator(1, earlier), info=phase(Phase.PAUSED))
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


def test_with_too_few_good_updates_the_attempt_is_given_up() -> None:
    rig = gathered(refused=(("b", "not_finite"), ("z", "not_finite")))
    assert not rig.requests(ms.Accept) and not view(rig).leading
    assert [(n.site, n.reason) for n in rig.notes("round_passed")] == [("me", "too_few_contributors")]
    assert view(rig).coordinator == "z"


def test_what_an_earlier_attempt_has_stored_is_proposed_again() -> None:
    """The highest attempt among the reported ones, its model fetched where it is."""
    rig = bench(sites={"b": "b:1", "c": "c:1", "z": "z:1"})
    rig.meet("c", info=AT_1)
    quorum = QuorumConfig.of(("b", "c", "me", "z"), None)
    rig.round_done(model("mine", round=1))
    turn = next(a for a in range(4) if quorum.coordinator(1, a) == "me")
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
