"""The swap, by hand: weights from both views of the cases, the step of T, the weighted mean that it keeps.

T_i += w_j·(Q(T_j^τ) − Q(T_i^τ)), w_j = m_j/(m_i+m_j). Rules and reasons: docs/design/swap.md.
"""

from __future__ import annotations

import random
from dataclasses import replace
from statistics import median
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossipseg.core.gossip.swap_terms import SwapPlan, capped_cases, is_behind, plan
from gossipseg.core.types import ExchangeId, SwapTerms, terms_payload

SWAP = ExchangeId("a", 7)


def terms(maker: str, own: int, partner: int, steps: int = 100, **changes: Any) -> SwapTerms:
    other = "b" if maker == "a" else "a"
    made = SwapTerms(SWAP, "f", "c", maker, other, own, partner, steps, steps // 10)
    return replace(made, **changes)


def mixed(t: float, own: float, theirs: float, weight: float) -> float:
    """What a worker does with effects.ApplySwap: `own` and `theirs` are the snapshots at τ."""
    return t + weight * (theirs - own)


# ---------------------------------------------------------------- by hand


def test_one_swap_by_hand() -> None:
    # m = 30 and 10: w_j at a is 1/4, at b 3/4. a sent 2 and stands at 2.5 now, b sent 6 and stands at 5.
    agreed = plan(terms("a", 30, 10), terms("b", 10, 30))
    assert agreed == SwapPlan("mix", "mix", 0.25, 0.75)
    a, b = mixed(2.5, 2.0, 6.0, 0.25), mixed(5.0, 6.0, 2.0, 0.75)
    assert (a, b) == (3.5, 2.0)
    # Σ m·T before the swap is 30·2.5 + 10·5 = 125, and so it is after it, local steps since τ included
    assert 30 * a + 10 * b == 30 * 2.5 + 10 * 5.0 == 125


def test_of_two_views_of_a_sites_cases_the_smaller_holds() -> None:
    # a claims 1000 and b counts it as 40; b claims 10 and a counts it as 8
    agreed = plan(terms("a", 1000, 8), terms("b", 10, 40))
    assert agreed is not None
    assert (agreed.asker_weight, agreed.asked_weight) == (8 / 48, 40 / 48)
    assert agreed.asker_weight + agreed.asked_weight == 1.0


@pytest.mark.parametrize(
    ("claimed", "others", "counted"),
    [
        (30, [10, 20, 30], 30),
        (10**9, [10, 20, 30], 80),  # 4 × the median
        (10**9, [10, 20], 60),
        (50, [10], 40),  # of two sites the other one is all there is
        (50, [0, 0, 10], 40),  # unknown counts do not count
        (50, [], 50),
        (0, [10], 0),
    ],
)
def test_cases_are_capped_at_four_times_the_median_of_the_others(
    claimed: int, others: list[int], counted: int
) -> None:
    known = [n for n in others if n > 0]
    assert capped_cases(claimed, median(known) if known else None) == counted


def test_without_cases_there_is_no_swap() -> None:
    assert plan(terms("a", 0, 10), terms("b", 10, 10)) is None
    assert plan(terms("a", 10, 10), terms("b", 10, 0)) is None


def test_a_young_site_takes_a_copy_and_its_partner_keeps_its_own() -> None:
    young, old = terms("a", 30, 10, steps=49, behind=True), terms("b", 10, 30)
    assert plan(young, old) == SwapPlan("copy", "keep", 1.0, 0.0)
    assert plan(replace(young, steps=50), old) == SwapPlan("mix", "mix", 0.25, 0.75), "half is not young"
    asked = terms("b", 10, 30, steps=0, behind=True)
    assert plan(terms("a", 30, 10), asked) == SwapPlan("keep", "copy", 0.0, 1.0)


def test_one_site_that_claims_many_steps_is_copied_by_nobody() -> None:
    typical = median([100, 110, 10**9])
    assert not is_behind(100, typical), "in the median the others have 110"
    honest, liar = terms("a", 30, 10, behind=is_behind(100, typical)), terms("b", 10, 30, 10**9)
    assert plan(honest, liar) == SwapPlan("mix", "mix", 0.25, 0.75)
    assert is_behind(0, 100) and is_behind(49, 100) and not is_behind(50, 100)
    assert not is_behind(0, None)


def test_one_way_the_asker_keeps_its_model_and_weighs_at_most_a_half() -> None:
    asked = terms("b", 10, 30, one_way=True)
    assert plan(terms("a", 30, 10), asked) == SwapPlan("keep", "mix", 0.0, 0.5)
    assert plan(terms("a", 10, 30), replace(asked, own_cases=30, partner_cases=10)) == SwapPlan(
        "keep", "mix", 0.0, 0.25
    )
    young = terms("a", 30, 10, steps=0, behind=True)
    assert plan(young, asked) is None, "nothing could come to it"


def test_what_is_signed_names_every_field() -> None:
    one = terms("a", 30, 10)
    signed = terms_payload(one)
    assert signed.startswith(b"gossipseg swap 1\n")
    changed = {"federation": "g", "contract": "d", "maker": "x", "partner": "x", "own_cases": 1, "steps": 1}
    changed |= {"partner_cases": 1, "round": 1, "behind": True, "one_way": True, "swap": ExchangeId("a", 8)}
    assert all(terms_payload(replace(one, **{k: v})) != signed for k, v in changed.items())
    assert terms_payload(replace(one, swap=ExchangeId("x", 7))) != signed
    assert terms_payload(replace(one, signature="ab", fault="forged")) == signed


# ---------------------------------------------------------------- properties


@given(
    st.integers(1, 10**6), st.integers(1, 10**6), st.integers(1, 10**6), st.integers(1, 10**6), st.booleans()
)
def test_the_weights_are_shares_and_both_sites_find_the_same(
    a: int, b: int, c: int, d: int, by: bool
) -> None:
    agreed = plan(terms("a", a, b), terms("b", c, d))
    assert agreed is not None
    assert 0 < agreed.asker_weight < 1 and 0 < agreed.asked_weight < 1
    assert agreed.asker_weight + agreed.asked_weight == pytest.approx(1.0)
    assert agreed.of(asker=by)[2] == (agreed.asker_weight if by else agreed.asked_weight)


@given(st.integers(2, 8), st.integers(0, 2**32), st.sampled_from([None, 8, 64]))
def test_the_weighted_mean_is_kept_over_random_graphs_with_steps_and_staleness(
    n: int, seed: int, grid: int | None
) -> None:
    """Random edges, one open swap a site, local steps at any time, both sides applied at different times.

    With a coarse Q the sum is kept as exactly as without.
    """
    rng = random.Random(seed)
    m = [rng.randrange(1, 40) for _ in range(n)]
    edges = [(i, j) for i in range(n) for j in range(i) if rng.random() < 0.6] or [(1, 0)]
    t = [rng.gauss(0, 10) for _ in range(n)]
    steps = [0.0] * n
    begun = sum(a * b for a, b in zip(m, t, strict=True))
    spread = max(t) - min(t)
    pending: dict[int, float] = {}

    def q(x: float) -> float:
        return x if grid is None else round(x * grid) / grid

    for _ in range(60 * n):
        i = rng.randrange(n)
        step = rng.gauss(0, 0.001)
        t[i], steps[i] = t[i] + step, steps[i] + step
        if rng.random() < 0.5 and pending:
            k = rng.choice(sorted(pending))
            t[k] += pending.pop(k)
        i, j = rng.choice(edges)
        if i not in pending and j not in pending:
            agreed = plan(
                replace(terms("a", m[i], m[j])),
                replace(terms("b", m[j], m[i])),
            )
            assert agreed is not None
            pending[i] = mixed(0.0, q(t[i]), q(t[j]), agreed.asker_weight)
            pending[j] = mixed(0.0, q(t[j]), q(t[i]), agreed.asked_weight)
    for k, change in pending.items():
        t[k] += change
    now = sum(a * b for a, b in zip(m, t, strict=True))
    own = sum(a * b for a, b in zip(m, steps, strict=True))
    assert now == pytest.approx(begun + own, abs=1e-6)
    if len(edges) >= n * (n - 1) // 2:  # surely connected
        assert max(t) - min(t) < max(0.5 * spread, 0.5)


def test_overlapping_swaps_from_one_snapshot_would_diverge() -> None:
    """Why one swap is open at a time: three swaps at once from one snapshot, at eight sites."""
    rng, t = random.Random(3), [float(i) for i in range(8)]
    for _ in range(60):
        change = [0.0] * 8
        for _ in range(12):  # three a site
            i, j = rng.sample(range(8), 2)
            change[i] += 0.5 * (t[j] - t[i])
            change[j] += 0.5 * (t[i] - t[j])
        t = [a + b for a, b in zip(t, change, strict=True)]
    assert max(t) - min(t) > 7.0
