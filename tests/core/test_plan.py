"""What a site trains for the rounds (plan.py): from which model, with which export, how long it waits."""

from __future__ import annotations

import pytest

from gossipseg.core import effects as fx
from gossipseg.core import messages as ms
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


def test_what_a_worker_started_from_before_a_restart_is_not_taken_twice() -> None:
    snapshot = with_round_1()
    again = bench(ready=False, snapshot=snapshot)
    again.ready(round=2, steps=20, last_global=common().hash)
    assert order(again) == fx.StartRound(3, None, True)
    fresh = bench(ready=False, snapshot=snapshot)
    fresh.ready(round=1, steps=10)
    assert order(fresh).start_from == common()
