"""When exchanges are due (core/exchange_times.py), worked out by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossipseg.core.exchange_times import ExchangeTimes

FALLING = [4.0, 3.0, 2.0, 1.0]
"""Sums after each round: 0.4, 0.7, 0.9, 1.0 of the whole."""


@pytest.mark.parametrize(
    ("share", "ends"),
    [
        (0.4, (1, 3)),  # 0.4; then 0.9 − 0.4 = 0.5
        (0.3, (1, 2, 4)),  # 0.4; 0.7 − 0.4 = 0.3; 1.0 − 0.7 = 0.3
        (0.5, (2,)),  # 0.7; the 0.3 that is left is no half
        (1.0, (4,)),
        (0.1, (1, 2, 3, 4)),
    ],
)
def test_an_exchange_each_time_the_share_is_reached(share: float, ends: tuple[int, ...]) -> None:
    times = ExchangeTimes.by_rate(share, FALLING)
    assert times.ends == ends
    assert tuple(r for r in range(1, 5) if times.is_end(r)) == ends
    assert [times.end_of(n + 1) for n in range(len(ends))] == list(ends)


def test_under_a_constant_rate_the_share_is_one_of_the_rounds() -> None:
    for parts in (1, 2, 3, 5, 6, 10, 30):  # 1/3 and its like are rounded
        times = ExchangeTimes.by_rate(1 / parts, [0.1] * 60)
        assert times.ends == tuple(range(60 // parts, 61, 60 // parts)), parts


def test_every_third_round() -> None:
    times = ExchangeTimes(3)
    assert [r for r in range(1, 11) if times.is_end(r)] == [3, 6, 9]
    assert [times.until(r) for r in range(7)] == [0, 0, 0, 1, 1, 1, 2]
    assert (times.end_of(0), times.end_of(2), times.length(2), times.longest) == (0, 6, 3, 3)
    assert times.is_due(7, 4) and not times.is_due(6, 4)
    assert ExchangeTimes().each_round and not times.each_round


def test_rounds_before_an_exchange_and_after_the_last() -> None:
    times = ExchangeTimes.by_rate(0.4, FALLING)
    assert [times.length(n) for n in (1, 2, 3)] == [1, 2, 1]
    assert [times.until(r) for r in range(6)] == [0, 1, 1, 2, 2, 2]
    assert (times.end_of(0), times.end_of(3), times.longest) == (0, 4, 2)
    assert not times.each_round


def test_a_clock_that_an_exchange_has_reset_goes_by_what_was_summed_up_since() -> None:
    times = ExchangeTimes.by_rate(0.3, FALLING)
    assert times.is_due(1, 0) and times.is_due(2, 1)
    assert not times.is_due(3, 2), "0.2"
    assert times.is_due(4, 2), "0.3"
    assert not times.is_due(9, 3), "0.1, and nothing after the last round"


@given(
    rates=st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=80),
    share=st.floats(0.001, 1.0),
)
def test_no_more_than_the_share_allows_and_none_is_late(rates: list[float], share: float) -> None:
    times = ExchangeTimes.by_rate(share, rates)
    assert len(times.ends) <= 1 / share + 1e-6
    last = 0
    for round in range(1, len(rates) + 1):
        assert times.is_end(round) == times.is_due(round, last)
        if times.is_end(round):
            last = round
    assert times.until(len(rates)) == len(times.ends)
    assert ExchangeTimes.by_rate(1.0, rates).ends == (len(rates),)
