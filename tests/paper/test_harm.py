"""Harm under swaps, by peer (the equations of gossipseg/learn/exchange/harm.py), worked out by hand."""

from __future__ import annotations

import random

import pytest

from gossipseg.learn.exchange.harm import LAPSED, LOST, Harm, change_by_patient

PATIENTS = ("a", "b", "c", "d")


def by(*changes: float) -> dict[str, float]:
    return dict(zip(PATIENTS, changes, strict=False))


def test_the_change_is_by_patient() -> None:
    before, after = [1.0, 2.0, None, 1.0, float("nan")], [1.5, 1.5, 3.0, 1.25, 1.0]
    assert change_by_patient(before, after, ["a", "a", "b", "c", "c"]) == {"a": 0.0, "c": 0.25}


def test_a_loss_that_is_finite_no_more_is_the_worst_change() -> None:
    before, after = [1.0, 1.0, 1.0], [float("inf"), float("nan"), 1.0]
    assert change_by_patient(before, after, ["a", "b", "c"]) == {"a": LOST, "b": LOST, "c": 0.0}
    harm = Harm()
    lost = change_by_patient([1.0] * 3, [float("inf")] * 3, PATIENTS[:3])
    assert [bool(harm.note("west", lost)) for _ in range(3)] == [False, False, True]


def test_a_peer_that_has_left_is_waited_for_no_longer() -> None:
    """With south and one that was met once there is too little to compare west with, until that lapses."""
    harm = Harm()
    for _ in range(3):
        harm.note("south", by(0.0, 0.0, 0.0))
    harm.note("left", by(0.0, 0.0, 0.0))
    said = [harm.note("west", by(1.0, 1.0, 1.0)) for _ in range(LAPSED * 3 + 1)]
    assert set(said[:LAPSED]) == {""} and said[-1]


def test_three_swaps_that_raise_the_loss_are_harm() -> None:
    harm = Harm()
    for _ in range(3):
        assert harm.note("south", by(0.0, 0.0, 0.0)) == ""
    assert harm.note("west", by(0.2, 0.2, 0.2)) == harm.note("west", by(0.2, 0.2, 0.2)) == ""
    said = harm.note("west", by(0.2, 0.2, 0.2))
    assert "raised the validation loss by 0.200 ± 0.000 more than those of others, over 3 patients" in said


@pytest.mark.parametrize(
    "changes",
    [
        by(0.04, 0.04, 0.04),  # under 0.05
        by(0.3, 0.0, 0.0, 0.0),  # .075 ± .075
        by(0.9, 0.9),  # two patients
    ],
)
def test_what_is_small_or_may_be_chance_is_none(changes: dict[str, float]) -> None:
    harm = Harm()
    assert [harm.note("west", changes) for _ in range(4)] == [""] * 4


def test_what_all_swaps_do_is_no_peers_fault() -> None:
    """A model that has trained on is worse just after any swap."""
    harm = Harm()
    for _ in range(3):
        harm.note("south", by(0.3, 0.3, 0.3))
    assert [harm.note("west", by(0.3, 0.31, 0.29)) for _ in range(3)] == [""] * 3


def test_a_peer_must_stand_out_among_the_others() -> None:
    """Three others at 0, .1 and .2: their mean is .1, their standard deviation .1. The limit is .1 + .3."""
    harm = Harm()
    for _ in range(3):
        for peer, change in (("south", 0.0), ("east", 0.1), ("north", 0.2)):
            harm.note(peer, by(change, change, change))
    assert [harm.note("west", by(0.39, 0.39, 0.39)) for _ in range(3)] == [""] * 3
    assert [harm.note("west", by(0.3, 0.3, 0.3)) for _ in range(3)] == [""] * 3
    assert [bool(harm.note("west", by(0.41, 0.41, 0.41))) for _ in range(3)] == [False, False, True]


def test_one_bad_swap_is_no_harm() -> None:
    """Mean .3 above the others', but without the worst swap 0: the peer had just been spoilt itself."""
    harm = Harm()
    for _ in range(3):
        harm.note("south", by(0.0, 0.0, 0.0))
    assert [harm.note("west", by(c, c, c)) for c in (0.0, 0.9, 0.0)] == [""] * 3
    assert harm.note("west", by(0.1, 0.1, 0.1)), "two are"


def test_among_several_peers_it_waits_until_two_others_are_known() -> None:
    harm = Harm()
    for swap in range(3):
        harm.note("south", by(0.0, 0.0, 0.0))
        if swap < 2:
            harm.note("east", by(0.0, 0.0, 0.0))
        assert harm.note("west", by(0.5, 0.5, 0.5)) == ""
    harm.note("east", by(0.0, 0.0, 0.0))
    assert harm.note("west", by(0.5, 0.5, 0.5))


def test_only_the_last_three_count_and_survive_a_checkpoint() -> None:
    harm = Harm()
    for change in (9.0, 9.0, 0.0, 0.0):
        harm.note("west", by(change, change, change))
    again = Harm()
    again.load(harm.state())
    assert again.note("west", by(0.0, 0.0, 0.0)) == ""
    assert again.state()["kept"]["west"] == [by(0.0, 0.0, 0.0)] * 3


@pytest.mark.parametrize("seed", range(20))
def test_of_eight_sites_with_one_that_does_harm_it_alone_is_named(seed: int) -> None:
    """A hundred rounds, nine patients, noise of the size of the limit."""
    rng, harm, named = random.Random(seed), Harm(), set()
    for _ in range(100):
        for peer in "bcdefgh":
            shift = 0.4 if peer == "h" else 0.0
            if harm.note(peer, {str(p): shift + rng.gauss(0.02, 0.05) for p in range(9)}):
                named.add(peer)
    assert named == {"h"}
