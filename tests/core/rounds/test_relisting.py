"""The list of sites changes amid the rounds: what holds of what was promised and stored under the old one."""

from __future__ import annotations

import pytest

from gossipseg.core import effects as fx
from gossipseg.core import events as ev
from gossipseg.core import messages as ms
from gossipseg.core.rounds.quorum import QuorumConfig
from tests.core.rig import Rig
from tests.core.rounds_bench import (
    AT_1,
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
    view,
)


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
    quorum = QuorumConfig.of(("me", *others), None)
    attempt = next(a for a in range(2, 9) if quorum.coordinator(1, a) == "b")
    reply = asked(rig, "b", prepare(attempt, sites=quorum.key))
    assert reply.promise and reply.accepted == proposal(1)


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
    quorum = QuorumConfig.of(("b", "me", "y", "z"), None)
    other = quorum.coordinator(1, 2)
    assert other != "b"
    rig.meet(other, info=AT_1)
    assert asked(rig, other, prepare(2, sites=quorum.key)).reason == "later_attempt"
    theirs = ms.Accept(RUN, quorum.key, proposal(2))
    assert asked(rig, other, theirs).reason == "later_attempt"
    kept = rig.node._rounds.acceptor.record  # type: ignore[union-attr]
    assert kept.promised_sites == LIST and kept.accepted is None
    later = quorum.coordinator(1, 3)
    assert asked(rig, later, prepare(3, sites=quorum.key)).promise
    assert asked(rig, later, prepare(3, sites=quorum.key)).promise, "and again"


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
    quorum = QuorumConfig.of(("b", "me", "y", "z"), None)
    assert asked(again, quorum.coordinator(1, 2), prepare(2, sites=quorum.key)).reason


def test_new_addresses_alone_do_not() -> None:
    rig = trained()
    assert leads(rig)
    rig.do(ev.SitesChanged({"b": "b:2", "z": "z:2"}))
    assert view(rig).leading
