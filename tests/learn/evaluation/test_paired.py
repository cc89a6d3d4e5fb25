"""Paired comparison by patient: by hand, on series of sites that meet nobody, and on a model that does harm.

A window is the mean over three rounds; a judgement compares two neighbouring windows that do not overlap.
"""

from __future__ import annotations

import json
import math
import random
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from gossipseg.learn.evaluation.paired import (
    CaseScores,
    Drop,
    by_patient,
    harmful,
    paired_drop,
    student_quantile,
)

K = 3
SEEDS = 100
GUARD_DROP = 0.05
RECORDED = Path(__file__).with_name("recorded_scores.json")


# ---------------------------------------------------------------- by hand


def test_drop_and_error_by_hand() -> None:
    """Five cases of three patients.

    | patient | falls            | mean |
    |---------|------------------|------|
    | a       | 0.10, 0.30       | 0.20 |
    | b       | 0.40             | 0.40 |
    | c       | −0.05, 0.05      | 0.00 |

    Mean 0.2, deviation 0.2, error 0.2/√3. Case by case it would be 0.16 and 0.083.
    """
    drop = paired_drop([0.9, 0.8, 0.7, 0.5, 0.5], [0.8, 0.5, 0.3, 0.55, 0.45], "aabcc")
    assert (drop.mean, drop.patients) == (pytest.approx(0.2), 3)
    assert drop.standard_error == pytest.approx(0.2 / math.sqrt(3))


def test_a_single_patient_has_no_error_rather_than_none_at_all() -> None:
    assert paired_drop([0.8, 0.6], [0.7, 0.4], "aa") == Drop(pytest.approx(0.15), None, 1)
    assert paired_drop([], [], "") == Drop(0.0, None, 0)


def test_cases_without_a_score_on_both_sides_are_left_out() -> None:
    nan, inf = float("nan"), float("inf")
    before, after = [0.8, None, 0.5, nan, 0.5, 0.6], [0.7, 0.2, None, 0.1, inf, 0.4]
    assert paired_drop(before, after, "abcdef").patients == 2
    assert paired_drop(before, after, "abcdef").mean == pytest.approx(0.15)
    assert by_patient([0.5, None, 0.7, 0.1], ["b", "a", "b", "c"]) == pytest.approx([0.6, 0.1])
    with pytest.raises(ValueError, match="zip"):
        paired_drop([0.5, 0.5], [0.4, 0.4], "a")


def test_the_quantile_is_that_of_the_tables() -> None:
    for dof, value in ((1, 63.657), (2, 9.925), (4, 4.604), (9, 3.250), (120, 2.617)):
        assert student_quantile(dof) == pytest.approx(value, abs=5e-4)


def test_a_clear_fall_is_harmful_and_a_small_one_or_a_rise_is_not() -> None:
    assert harmful([0.8] * 5, [0.70, 0.71, 0.69, 0.70, 0.70], "abcde", GUARD_DROP)
    assert not harmful([0.8] * 5, [0.76] * 5, "abcde", GUARD_DROP)
    assert not harmful([0.5] * 5, [0.9] * 5, "abcde", GUARD_DROP)


def test_fewer_than_three_patients_never_judge() -> None:
    assert not harmful([0.9] * 6, [0.0] * 6, "aaabbb", GUARD_DROP)
    assert harmful([0.9] * 6, [0.0] * 6, "aabbcc", GUARD_DROP)
    assert not harmful([0.9, 0.9, None], [0.0, 0.0, 0.0], "abc", GUARD_DROP)


def test_the_fall_must_exceed_students_t_of_its_error() -> None:
    """Falls m−0.01, m and m+0.01 of three patients: error 0.01/√3, times 9.925: 0.0573."""
    for mean, wanted in ((0.0570, False), (0.0576, True)):
        after = [0.8 - mean + d for d in (-0.01, 0, 0.01)]
        assert harmful([0.8] * 3, after, "abc", GUARD_DROP) is wanted


def test_from_five_on_changes_without_a_merge_raise_the_limit() -> None:
    """0 … 0.04: deviation 0.0158, times 4.604·√(6/5): 0.0797. Four changes say nothing."""
    for fall, wanted in ((0.0796, False), (0.0799, True)):
        after = [0.8 - fall] * 4
        assert harmful([0.8] * 4, after, "abcd", GUARD_DROP, [0.0, 0.01, 0.02, 0.03, 0.04]) is wanted
        assert harmful([0.8] * 4, after, "abcd", GUARD_DROP, [0.9, -0.9, 0.9, -0.9])


# ---------------------------------------------------------------- series


@dataclass(frozen=True)
class Series:
    """A site that meets nobody: whose its cases are, and their Dice in each window."""

    patients: Sequence[str]
    windows: Sequence[CaseScores]

    def judgements(self) -> Iterator[int]:
        """The index of each window that has a later one to be compared with."""
        return iter(range(len(self.windows) - K))

    def free_changes(self, at: int, first: int = 0) -> list[float]:
        """Mean changes between neighbouring windows up to `at`, from `first` on."""
        ends = range(at, first + K - 1, -K)[:8]
        return [-paired_drop(self.windows[i - K], self.windows[i], self.patients).mean for i in ends]

    def condemned(self, at: int, free_changes: Sequence[float] = ()) -> bool:
        before, after = self.windows[at], self.windows[at + K]
        return harmful(before, after, self.patients, GUARD_DROP, free_changes)

    def caught(self, at: int, fall: float, free_changes: Sequence[float] = ()) -> bool:
        """Whether a visit is condemned that costs each case so much of what it would have had."""
        after = [None if dice is None else dice - fall for dice in self.windows[at + K]]
        return harmful(self.windows[at], after, self.patients, GUARD_DROP, free_changes)


LEVEL = 15
"""From this window on a synthetic curve has levelled off."""


def synthetic(seed: int, rounds: int = 48) -> Series:
    """3 to 10 patients with one to three cases each; Dice rises to 0.5 … 0.8 and levels off.

    In each round a shock of 0.03 is shared by all patients, one of 0.05 is a patient's, one of 0.03 a case's;
    patients lie 0.1 apart. A recorded site's mean moves by 0.01 to 0.04 (standard deviation) between windows,
    these by 0.03.
    """
    rng = random.Random(seed)
    patients = [f"p{i}" for i in range(rng.randint(3, 10)) for _ in range(rng.randint(1, 3))]
    top, pace = rng.uniform(0.5, 0.8), rng.uniform(3, 8)
    level = {patient: rng.gauss(0, 0.1) for patient in patients}
    single = []
    for number in range(1, rounds + 1):
        mean = top * (1 - math.exp(-number / pace)) + rng.gauss(0, 0.03)
        own = {patient: mean + level[patient] + rng.gauss(0, 0.05) for patient in level}
        single.append([min(1.0, max(0.0, own[patient] + rng.gauss(0, 0.03))) for patient in patients])
    windows = [
        [statistics.fmean(case) for case in zip(*single[i : i + K], strict=True)]
        for i in range(rounds - K + 1)
    ]
    return Series(patients, windows)


@pytest.fixture(scope="module")
def alone() -> list[Series]:
    return [synthetic(seed) for seed in range(SEEDS)]


@pytest.mark.parametrize("first", [0, LEVEL])
def test_of_sites_that_meet_nobody_less_than_a_hundredth_is_condemned(
    alone: list[Series], first: int
) -> None:
    """With the newest eight changes seen without a merge, where there are five: 2 of 2800 judgements; 1 of
    1300 with only those since the curve levelled off."""
    found = [
        (seed, at, series.condemned(at, changes))
        for seed, series in enumerate(alone)
        for at in series.judgements()
        if len(changes := series.free_changes(at, first)) >= 5
    ]
    bad = [(seed, at) for seed, at, condemned in found if condemned]
    assert len(found) > 1000 and len(bad) < 0.01 * len(found), f"(seed, window): {bad} of {len(found)}"


def test_as_the_guard_goes_by_it_less_than_a_hundredth_is_condemned(alone: list[Series]) -> None:
    """With the changes that are known by then, few or none at first: 3 of 4300."""
    found = [
        (seed, at, series.condemned(at, series.free_changes(at)))
        for seed, series in enumerate(alone)
        for at in series.judgements()
    ]
    bad = [(seed, at) for seed, at, condemned in found if condemned]
    assert len(bad) < 0.01 * len(found), f"(seed, window): {bad} of {len(found)}"


def test_without_such_changes_it_is_about_a_hundredth(alone: list[Series]) -> None:
    """42 of 4300 (1.0 %): the standard error does not see what shakes all patients at once; guard_drop alone
    stands against it. (The rule before, over single rounds and with 2 standard errors by case, has 12 %.)"""
    found = [(s, at, series.condemned(at)) for s, series in enumerate(alone) for at in series.judgements()]
    bad = [(seed, at) for seed, at, condemned in found if condemned]
    assert len(bad) < 0.02 * len(found), f"(seed, window): {bad} of {len(found)}"


@pytest.mark.parametrize(("changes", "least"), [(0, 93), (4, 93), (5, 88), (8, 93)])
def test_a_truly_harmful_model_is_still_caught(alone: list[Series], changes: int, least: int) -> None:
    """It costs each patient 0.3, once training has levelled off. Of 100 seeds 97 catch it without changes to
    go by; 93 and 97 with the newest 5 and 8 of them.

    Three changes alone would be a weak witness (47 seeds): 9.925·√(4/3) is 11.5 deviations. Those of the rise
    are worse, for their spread is the rise's: with the first 5 and 8 of a training 22 and 64 seeds catch it.
    """
    at = LEVEL + 27
    missed = [
        seed
        for seed, series in enumerate(alone)
        if not series.caught(at, 0.3, series.free_changes(at, LEVEL)[:changes])
    ]
    assert SEEDS - len(missed) >= least, f"missed with seeds {missed}"


# ---------------------------------------------------------------- recorded series


@pytest.fixture(scope="module")
def recorded() -> dict[str, Series]:
    """What record_scores.py wrote of sites that met nobody."""
    if not RECORDED.is_file():
        pytest.skip(f"{RECORDED.name} is not there: tests/learn/record_scores.py records it from real data")
    sites = json.loads(RECORDED.read_text())["sites"]
    return {name: Series(site["patients"], site["rounds"]) for name, site in sites.items()}


def test_of_recorded_sites_that_met_nobody_less_than_a_hundredth_is_condemned(
    recorded: dict[str, Series],
) -> None:
    """0 of 145, with and without earlier changes to go by. (The rule before has 7 of 204 on these trainings,
    3 of them at the site with two patients, where nothing is judged now.)"""
    found = [
        (name, at, series.condemned(at, series.free_changes(at)))
        for name, series in recorded.items()
        if len(set(series.patients)) >= 3
        for at in series.judgements()
    ]
    bad = [(name, at) for name, at, condemned in found if condemned]
    assert found and len(bad) < 0.01 * len(found), f"(site, window): {bad} of {len(found)}"
