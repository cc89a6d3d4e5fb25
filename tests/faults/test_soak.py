"""The soak for a moment: that it runs, and that it would see growth. The long ones are run by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.faults.soak import Series, real, virtual


def test_growth_is_seen() -> None:
    assert Series("daemon", "MiB", [100.0 + (i % 3) for i in range(60)]).flat
    assert not Series("daemon", "MiB", [100.0 + i for i in range(60)]).flat
    assert not Series("daemon", "fds", [20.0 + i // 6 for i in range(60)]).flat


@pytest.mark.slow
@pytest.mark.faults
def test_two_virtual_days_stay_flat(seen: Callable[[str], None]) -> None:
    series = virtual(2 / 7)
    assert all(one.flat for one in series), [str(one) for one in series]
    seen("; ".join(" ".join(str(one).split()) for one in series))


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.faults
def test_a_minute_of_real_daemons_stays_flat(seen: Callable[[str], None]) -> None:
    """Models are kept for a minute after their use: disk says something in longer runs alone."""
    series = [one for one in real(1.0) if one.unit != "disk MiB"]
    assert all(one.flat for one in series), [str(one) for one in series]
    seen("; ".join(" ".join(str(one).split()) for one in series if one.name.startswith("north")))
