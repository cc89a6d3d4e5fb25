"""The validation guard's paired test (ALGORITHMS §0)."""

from __future__ import annotations

import math

import pytest

from gossipseg.learn.guard import harmful, mean_drop


def test_drop_and_error_by_hand() -> None:
    drop, error = mean_drop([0.9, 0.8, 0.7], [0.8, 0.6, 0.4])  # falls 0.1, 0.2, 0.3
    assert drop == pytest.approx(0.2)
    assert error == pytest.approx(0.1 / math.sqrt(3))


def test_a_clear_fall_is_harmful_and_a_small_one_is_not() -> None:
    assert harmful([0.8] * 5, [0.70, 0.71, 0.69, 0.70, 0.70], 0.05)
    assert not harmful([0.8] * 5, [0.76] * 5, 0.05)
    assert not harmful([0.5] * 5, [0.9] * 5, 0.05)


def test_a_noisy_fall_is_forgiven() -> None:
    # Mean fall 0.1, but one case of four carries it all: two standard errors are 0.2.
    assert not harmful([0.8] * 4, [0.8, 0.8, 0.8, 0.4], 0.05)


def test_cases_without_a_score_are_left_out() -> None:
    assert mean_drop([0.8, None, 0.5], [0.7, 0.2, None]) == (pytest.approx(0.1), 0.0)
    assert mean_drop([None], [None]) == (0.0, 0.0)
    assert not harmful([None], [0.1], 0.05)
