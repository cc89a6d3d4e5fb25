"""Updates as their coordinator collects them (update_collection.py): delivered, waited for, left out."""

from __future__ import annotations

import pytest

from gossipseg.core import effects as fx
from gossipseg.core import events as ev
from gossipseg.core import messages as ms
from gossipseg.core.types import Phase
from tests.core.rig import Rig, left, phase, suspect
from tests.core.rounds_bench import (
    AT_1,
    PARAMS,
    common,
    delivers,
    gathered,
    leads,
    state_of,
    trained,
    update,
    view,
)


def test_an_update_that_fails_the_checks_is_left_out_with_the_reason() -> None:
    rig = gathered(refused=(("z", "not_finite"),))
    made = rig.requests(ms.Accept)[0].body.proposal
    assert (made.contributors, made.absent) == (("b", "me"), (("z", "refused_not_finite"),))


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
