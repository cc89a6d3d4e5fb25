"""Whose turn it is to lead (leader_rotation.py): passing over, patience, suspicion."""

from __future__ import annotations

import pytest

from gossipseg.core import effects as fx
from gossipseg.core import events as ev
from gossipseg.core import messages as ms
from gossipseg.core.types import Phase
from tests.core.rig import Rig, alive, phase, suspect
from tests.core.rounds_bench import (
    AT_1,
    PARAMS,
    bench,
    leads,
    prepare,
    trained,
    view,
)


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
