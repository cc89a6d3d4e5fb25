"""What a site trains for the rounds (round_schedule.py): from which model, which export, how long."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gossipseg.core import effects as fx
from gossipseg.core import events as ev
from gossipseg.core import messages as ms
from gossipseg.core.exchange_times import ExchangeTimes
from gossipseg.core.params import GossipParams
from gossipseg.core.types import Phase
from tests.core.rig import Rig, bare, model, phase
from tests.core.rounds_bench import (
    AT_1,
    LIST,
    PARAMS,
    RUN,
    arrives,
    asked,
    bench,
    common,
    order,
    prepare,
    proposal,
    trained,
    update,
    view,
    with_round_1,
)


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
    rig = bench(exchange_at=ExchangeTimes(3))
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
    assert alone == [fx.StartRound(2, None, True, ahead=-1)], (
        "it works towards round 1 of the federation still"
    )
    assert rig.notes("round_alone")
    rig.round_done(model("mine again", round=2))
    assert view(rig).delivered == ("me",), "it leads, and its own update is there"
    reply = asked(rig, "z", prepare(attempt=31))
    assert bare(reply.update) == update("mine again", round=1)


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


def goes_on_from(rig: Rig, round: int) -> None:
    """The global model of that round is committed, and here."""
    there = proposal(name=f"g{round}", round=round)
    rig.asks("z", ms.Commit(RUN, LIST, there))
    arrives(rig, "z", there)


def test_the_last_rounds_are_said_to_be_the_last() -> None:
    rig = bench(rounds=2, finetune_rounds=1)
    assert rig.node.phase is Phase.TRAINING
    rig.round_done(model("mine", round=1))
    goes_on_from(rig, 1)
    assert order(rig) == fx.StartRound(2, None, False, common(), finetuning=True)
    assert rig.node.phase is Phase.ENDING
    rig.round_done()
    assert rig.node.phase is Phase.FINISHED and len(rig.of(fx.Finished)) == 1
    assert asked(rig, "z", prepare(0, round=2)).waiting_for == "finished"
    assert len(rig.of(fx.Finished)) == 0


# ---------------------------------------------------------------- the last global model


def test_it_finishes_when_the_common_model_of_its_last_round_is_here() -> None:
    rig = bench(rounds=1)
    assert order(rig).export
    rig.round_done(model("mine", round=1))
    assert rig.node.phase is Phase.TRAINING and not rig.of(fx.Finished)
    assert not rig.of(fx.StartRound) and view(rig).state != "finished"
    goes_on_from(rig, 1)
    assert rig.node.phase is Phase.FINISHED and len(rig.of(fx.Finished)) == 1
    assert not rig.of(fx.StartRound), "no worker is given it"
    assert common().hash in rig.node.kept_models()


def test_it_finishes_at_once_when_too_few_can_contribute() -> None:
    rig = trained(rounds=1)
    for site in ("b", "z"):
        assert not rig.of(fx.Finished)
        rig.hears(site, info=phase(Phase.FAILED))
    assert rig.node.phase is Phase.FINISHED and len(rig.of(fx.Finished)) == 1
    rig.hears("b", info=AT_1)
    assert rig.node.phase is Phase.FINISHED, "it stays so"


def test_a_site_that_has_finished_with_the_last_common_model_is_no_reason_not_to_fetch_it() -> None:
    rig = trained(rounds=1)
    for site in ("b", "z"):
        rig.hears(site, info=replace(phase(Phase.FINISHED), committed=1))
    assert rig.node.phase is Phase.TRAINING and not rig.of(fx.Finished)


def test_it_finishes_without_it_when_it_has_waited_long_enough() -> None:
    rig = trained(rounds=1)
    for request in rig.requests(ms.Prepare):
        rig.fail(request)
    effects = rig.until(rig.now + PARAMS.alone_after_s)
    assert sum(isinstance(e, fx.Finished) for e in effects) == 1 and rig.node.phase is Phase.FINISHED


def test_a_pause_at_the_end_ends_with_the_last_common_model() -> None:
    rig = trained(rounds=1)
    rig.do(ev.Pause(True))
    assert rig.node.phase is Phase.PAUSED
    goes_on_from(rig, 1)
    assert rig.node.phase is Phase.FINISHED and len(rig.of(fx.Finished)) == 1


# ---------------------------------------------------------------- the federation's budget


@pytest.mark.parametrize(("finetune", "last"), [(0, 10), (2, 8)])
def test_a_common_model_beyond_the_budget_is_refused(finetune: int, last: int) -> None:
    """Who believed it would train no more."""
    rig = bench(federation_rounds=10, finetune_rounds=finetune)
    for number in (last + 1, 10**6):
        asked(rig, "z", ms.Commit(RUN, LIST, proposal(0, f"g{number}", round=number)))
        assert rig.notes("offence")[-1].reason == "beyond_budget"
    assert not rig.requests(ms.Fetch) and rig.node.last_round == 10
    asked(rig, "z", ms.Commit(RUN, LIST, proposal(0, "g", round=last)))
    assert rig.requests(ms.Fetch)


def test_it_says_why_it_finished_without_the_last_common_model() -> None:
    rig = trained(rounds=1)
    for request in rig.requests(ms.Prepare):
        rig.fail(request)
    rig.until(rig.now + PARAMS.alone_after_s)
    assert [n.reason for n in rig.notes("finished")] == ["no_common_model"]


def test_a_common_model_moves_the_end() -> None:
    """Own round 3 begins with the global model of round 7 of 10: it is round 8 of the federation."""
    rig = bench(ready=False, federation_rounds=10, finetune_rounds=2)
    rig.ready(round=1, steps=10, last_global="of round 1")
    goes_on_from(rig, 7)
    rig.round_done()
    assert not order(rig).finetuning and order(rig).export
    assert rig.node.last_round == 5
    rig.round_done(model("mine", round=3), ahead=5)
    goes_on_from(rig, 8)
    assert order(rig) == fx.StartRound(4, None, False, common("g8", 8), finetuning=True, ahead=5)
    rig.round_done(ahead=5)
    assert order(rig) == fx.StartRound(5, None, False, finetuning=True, ahead=5)
    rig.round_done(ahead=5)
    assert rig.node.phase is Phase.FINISHED and rig.node.round == 5


def test_after_a_restart_the_worker_says_where_it_stands() -> None:
    rig = bench(ready=False, federation_rounds=10)
    rig.ready(round=3, steps=30, last_global="of round 9", ahead=7)
    assert rig.node.phase is Phase.FINISHED
    rig = bench(ready=False, federation_rounds=10)
    rig.ready(round=12, steps=120, last_global="of round 7", ahead=-4)
    assert order(rig).export


@pytest.mark.parametrize(("own", "federation", "end"), [(1, 9, 1), (None, 1, 1), (9, 1, 1), (1, None, 1)])
def test_the_earlier_budget_counts(own: int | None, federation: int | None, end: int) -> None:
    rig = bench(rounds=own, federation_rounds=federation)
    rig.round_done(model("mine", round=1))
    goes_on_from(rig, 1)
    assert rig.node.phase is Phase.FINISHED and rig.node.round == end


def test_in_gossip_too_the_worker_says_how_far_ahead_the_federation_is() -> None:
    rig = Rig(federation_rounds=10, gossip=GossipParams(exchange="push", sender_rate=0.0)).start()
    rig.meet("b", "c", "d")
    rig.ready(round=0, steps=0)
    rig.round_done(ahead=8)
    assert rig.node.phase is Phase.TRAINING
    assert asked(rig, "b", ms.Offer(model("late"))).reason == "finished", "no later round could host it"
    rig.round_done(ahead=8)
    assert rig.node.phase is Phase.FINISHED and rig.node.round == 2


def test_what_a_worker_started_from_before_a_restart_is_not_taken_twice() -> None:
    snapshot = with_round_1()
    again = bench(ready=False, snapshot=snapshot)
    again.ready(round=2, steps=20, last_global=common().hash)
    assert order(again) == fx.StartRound(3, None, True)
    fresh = bench(ready=False, snapshot=snapshot)
    fresh.ready(round=1, steps=10)
    assert order(fresh).start_from == common()
