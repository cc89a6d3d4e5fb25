"""How far ahead an attempt may be (acceptor.py): no further than time can have brought it."""

from __future__ import annotations

from dataclasses import replace

from gossipseg.core.rounds.quorum import QuorumConfig
from tests.core.rounds_bench import (
    PARAMS,
    SITES,
    accept,
    asked,
    bench,
    prepare,
    proposal,
)


def test_no_attempt_is_followed_that_time_cannot_have_brought() -> None:
    rig = bench()
    absurd = 3 * 10**8 + 2
    assert QuorumConfig.of(SITES, None).coordinator(1, absurd) == "b"
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
