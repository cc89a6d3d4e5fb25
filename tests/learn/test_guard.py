"""The rule that the guard goes by while it is not told whose the cases are."""

from __future__ import annotations

from gossipseg.learn.guard import harmful


def test_a_clear_fall_is_harmful_and_a_small_one_is_not() -> None:
    assert harmful([0.8] * 5, [0.70, 0.71, 0.69, 0.70, 0.70], 0.05)
    assert not harmful([0.8] * 5, [0.76] * 5, 0.05)
    assert not harmful([0.5] * 5, [0.9] * 5, 0.05)


def test_a_noisy_fall_is_forgiven() -> None:
    # Mean fall 0.1, but one case of four carries it all: two standard errors are 0.2.
    assert not harmful([0.8] * 4, [0.8, 0.8, 0.8, 0.4], 0.05)


def test_cases_without_a_score_are_left_out() -> None:
    assert not harmful([None], [0.1], 0.05)
    assert harmful([0.8, None], [0.7, 0.9], 0.05)
