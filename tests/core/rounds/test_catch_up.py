"""Global models as they come (catch_up.py): learnt of, fetched, believed in, committed."""

from __future__ import annotations

from dataclasses import replace

from gossipseg.core import effects as fx
from gossipseg.core import events as ev
from gossipseg.core import messages as ms
from tests.core.rig import model
from tests.core.rounds_bench import (
    AT_1,
    LIST,
    PARAMS,
    RUN,
    accept,
    arrives,
    asked,
    bench,
    common,
    order,
    prepare,
    proposal,
    trained,
    view,
)


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
    assert order(rig) == fx.StartRound(2, None, True, newest.model, settling_in=True, ahead=3)
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
    assert rig.node.info.committed == 4 and not rig.node._rounds.catch_up._strikes  # type: ignore[union-attr]


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
