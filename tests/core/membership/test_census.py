"""Medians over the other sites, kept in order: they are those of a walk over the whole list."""

from __future__ import annotations

from statistics import median

from hypothesis import given
from hypothesis import strategies as st

from gossipseg.core.membership.census import Ranked

SITES = "abcdef"
CHANGE = st.tuples(st.sampled_from(SITES), st.none() | st.integers(0, 5))


@given(st.lists(CHANGE, max_size=30), st.none() | st.sampled_from(SITES), st.none() | st.integers(0, 5))
def test_the_median_is_that_of_the_list(
    changes: list[tuple[str, int | None]], without: str | None, beside: int | None
) -> None:
    ranked, known = Ranked(), dict[str, int]()
    for site, value in changes:
        ranked.set(site, value)
        known.pop(site, None)
        if value is not None:
            known[site] = value
        assert ranked.values() == sorted(known.values())
    counted = [v for site, v in known.items() if site != without]
    counted += [] if beside is None else [beside]
    assert ranked.median(without=without, beside=beside) == (median(counted) if counted else None)
