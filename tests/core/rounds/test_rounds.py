"""The rounds as a whole (rounds.py): where there are none, on leaving, on disk."""

from __future__ import annotations

import dataclasses

import pytest

from gossipseg.core import effects as fx
from gossipseg.core import events as ev
from gossipseg.core import messages as ms
from tests.core.rig import Rig
from tests.core.rounds_bench import (
    LIST,
    RUN,
    accept,
    asked,
    bench,
    fetch,
    prepare,
    proposal,
)


@pytest.mark.parametrize(
    "body", [prepare(1), fetch(""), accept(proposal()), ms.Commit(RUN, LIST, proposal())]
)
def test_a_site_without_a_coordinator_refuses_the_words_of_one(body: ms.Request) -> None:
    rig = Rig(("b", "z")).start()
    assert asked(rig, "z", body).reason == "other_run"


def test_a_site_that_leaves_promises_and_serves_nothing() -> None:
    rig = bench()
    rig.do(ev.Leave())
    assert asked(rig, "z", prepare(1)).reason == "leaving"
    assert asked(rig, "z", fetch("")).reason == "leaving"


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
