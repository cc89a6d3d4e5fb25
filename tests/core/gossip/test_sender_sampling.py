"""Who sends: p_k ∝ n_k, water-filled so that Σ p_k = ρN and ρ/2 ≤ p_k ≤ 1 (docs/design/equations.md §1)."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossipseg.core.gossip.sender_sampling import SenderPool, water_level


def probabilities(cases: list[int], rho: float) -> list[float]:
    """What each site works out for itself, with all the others in its pool."""
    result = []
    for i, own in enumerate(cases):
        pool = SenderPool()
        for j, n in enumerate(cases):
            if j != i:
                pool.update(f"s{j}", n)
        result.append(pool.probability(own, rho))
    return result


def test_equal_sites_send_with_rho() -> None:
    assert probabilities([20, 20, 20, 20], 0.5) == pytest.approx([0.5] * 4)


def test_in_the_middle_p_is_proportional_to_the_cases() -> None:
    # Σn = 100, ρN = 2: c = 2/100
    assert probabilities([20, 20, 25, 35], 0.5) == pytest.approx([0.4, 0.4, 0.5, 0.7])


def test_by_hand_with_both_bounds() -> None:
    # 100 is capped at 1, both 1s lie on the floor of 0.25; 10 takes what is left of 2: 0.5
    assert probabilities([100, 10, 1, 1], 0.5) == pytest.approx([1.0, 0.5, 0.25, 0.25])


@given(
    cases=st.lists(st.integers(1, 5000), min_size=2, max_size=40),
    rho=st.floats(0.01, 1.0),
)
def test_the_sum_is_rho_n_within_the_bounds_and_in_the_order_of_the_cases(
    cases: list[int], rho: float
) -> None:
    p = probabilities(cases, rho)
    assert sum(p) == pytest.approx(rho * len(cases))
    assert all(rho / 2 - 1e-12 <= x <= 1 for x in p)
    for a, b in zip(sorted(zip(cases, p, strict=True)), sorted(zip(cases, p, strict=True))[1:], strict=False):
        assert a[1] <= b[1] + 1e-12


@given(cases=st.lists(st.integers(1, 300), min_size=2, max_size=30), rho=st.floats(0.05, 0.95))
def test_the_level_agrees_with_bisection(cases: list[int], rho: float) -> None:
    low, high = 0.0, 1.0
    for _ in range(200):
        mid = (low + high) / 2
        total = sum(min(1.0, max(rho / 2, mid * n)) for n in cases)
        low, high = (mid, high) if total < rho * len(cases) else (low, mid)
    level = water_level(Counter(cases), rho)
    for n in cases:
        assert min(1.0, max(rho / 2, level * n)) == pytest.approx(min(1.0, max(rho / 2, high * n)), abs=1e-9)


@pytest.mark.parametrize(("rho", "expected"), [(0.0, 0.0), (1.0, 1.0)])
def test_the_ends_of_the_range(rho: float, expected: float) -> None:
    assert probabilities([3, 30, 300], rho) == [expected] * 3


def test_alone_nobody_sends() -> None:
    assert SenderPool().probability(20, 0.5) == 0.0


def test_a_pool_forgets_who_is_gone() -> None:
    pool = SenderPool()
    pool.update("a", 10)
    pool.update("b", 10)
    pool.update("a", 0)
    assert list(pool.sites) == ["b"]
    assert pool.draw(random.Random(0), {"b"}) is None
    assert pool.draw(random.Random(0), set()) == "b"


def test_receivers_are_drawn_uniformly_whatever_their_cases() -> None:
    pool = SenderPool()
    for i in range(5):
        pool.update(f"s{i}", 1 + 100 * i)
    rng = random.Random(3)
    drawn = Counter(pool.draw(rng, {"s0"}) for _ in range(8000))
    assert set(drawn) == {"s1", "s2", "s3", "s4"}
    assert all(abs(n - 2000) < 200 for n in drawn.values())
