"""Intervals, p values and Holm's correction against values worked out by hand, and against chance."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from gossipseg.lab.report.intervals import Differences, bootstrap, holm, p_value

Values = dict[str, dict[str, float | list[float]]]


def repetitions(*sites: Values) -> Differences:
    """Of seeds 0, 1, …: site → patient → the difference of its case, or those of its cases."""
    return {
        (0, seed): {
            site: {p: dict(enumerate_cases(ds)) for p, ds in patients.items()}
            for site, patients in values.items()
        }
        for seed, values in enumerate(sites)
    }


def enumerate_cases(differences: float | list[float]) -> list[tuple[str, float]]:
    values = differences if isinstance(differences, list) else [differences]
    return [(str(i), value) for i, value in enumerate(values)]


def numbered(values: list[float]) -> dict[str, float | list[float]]:
    return {f"{i:03}": value for i, value in enumerate(values)}


def ends(differences: Differences) -> tuple[float, float, float]:
    found = bootstrap(differences)
    assert found is not None
    return found.mean, found.low, found.high


# ---------------------------------------------------------------- intervals: patients


def test_of_one_site_of_two_patients() -> None:
    """Drawn with replacement the mean of (0, 1) is 0, ½ or 1 with chances ¼, ½, ¼: the interval is all."""
    assert ends(repetitions({"a": {"p": 0.0, "q": 1.0}})) == (0.5, 0.0, 1.0)


def test_of_one_patient_a_site_no_other_sample_can_be_drawn() -> None:
    mean, low, high = ends(repetitions({"a": {"p": [0.1, 0.3]}, "b": {"q": 0.1}}))
    assert mean == low == high == pytest.approx(0.15)


def test_agrees_with_the_normal_interval_of_many_patients() -> None:
    values = np.random.default_rng(3).normal(0.02, 0.05, 400)
    _, low, high = ends(repetitions({"a": numbered([float(v) for v in values])}))
    half = 1.96 * values.std(ddof=1) / np.sqrt(len(values))
    assert low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_sites_count_once_each_however_many_cases_they_have() -> None:
    found = ends(repetitions({"big": numbered([0.1] * 99), "small": {"p": -0.3}}))
    assert found == (pytest.approx(-0.1), pytest.approx(-0.1), pytest.approx(-0.1))


def test_slices_of_a_patient_are_one_piece_of_evidence() -> None:
    """Ten slices of two patients: the interval is that of two patients, not of ten."""
    together = bootstrap(repetitions({"a": {"p": [0.0] * 5, "q": [1.0] * 5}}))
    apart = bootstrap(repetitions({"a": numbered([0.0] * 5 + [1.0] * 5)}))
    assert together is not None and apart is not None
    assert (together.low, together.high) == (0.0, 1.0)
    assert apart.low > 0.1
    assert (together.cases, together.patients, apart.patients) == (10, 2, 10)


def test_the_same_results_give_the_same_interval() -> None:
    data = repetitions({"a": {"p": 0.1, "q": 0.3, "r": -0.2}}, {"a": {"p": 0.2, "q": 0.1, "r": -0.1}})
    assert bootstrap(data) == bootstrap(data)
    assert bootstrap({}) is None and p_value({}) is None


# ---------------------------------------------------------------- intervals: repetitions


def test_the_interval_widens_where_repetitions_disagree() -> None:
    """All patients have one mean over the repetitions: drawing patients alone would show an interval of 0."""
    agreeing = repetitions(*[{"a": numbered([0.1] * 8)}] * 3)
    disagreeing = repetitions(*[{"a": numbered([gain] * 8)} for gain in (-0.1, 0.1, 0.3)])
    assert ends(agreeing) == tuple([pytest.approx(0.1)] * 3)
    # all three draws are the first repetition one time in 27, which is more than 2.5 %
    assert ends(disagreeing) == (pytest.approx(0.1), pytest.approx(-0.1), pytest.approx(0.3))


def test_repetitions_are_drawn_in_common_for_all_sites() -> None:
    """What a repetition gives to one site it takes from the other: in every draw the mean is the same."""
    up, down = numbered([0.2] * 4), numbered([-0.2] * 4)
    opposed = ends(repetitions({"a": up, "b": down}, {"a": down, "b": up}))
    assert opposed == (pytest.approx(0.0), pytest.approx(0.0), pytest.approx(0.0))
    together = ends(repetitions({"a": up, "b": up}, {"a": down, "b": down}))
    assert together == (pytest.approx(0.0), pytest.approx(-0.2), pytest.approx(0.2))


def test_ten_patients_and_three_seeds_are_not_thirty_patients() -> None:
    """Seeds that all say the same of the same patients bring no evidence: the interval is that of one."""
    patients = numbered([0.01 * i for i in range(10)])
    once, thrice = bootstrap(repetitions({"a": patients})), bootstrap(repetitions(*[{"a": patients}] * 3))
    assert once is not None and thrice is not None
    assert (thrice.low, thrice.high) == (pytest.approx(once.low), pytest.approx(once.high))
    assert (thrice.patients, thrice.cases, thrice.repetitions) == (10, 10, 3)


def test_a_repetition_counts_once_however_many_cases_it_tested() -> None:
    found = ends(repetitions({"a": numbered([0.1] * 30)}, {"a": {"p": 0.3, "q": 0.3}}))
    assert found[0] == pytest.approx(0.2)


def test_a_repetition_may_lack_a_site_and_test_other_patients() -> None:
    # first: (0.1 + 0.3)/2 = 0.2; second: 0.4 of `a` alone
    data = repetitions({"a": {"p": 0.1}, "b": {"q": 0.3}}, {"a": {"r": 0.4}})
    mean, low, high = ends(data)
    assert mean == pytest.approx(0.3)
    assert 0.1 <= low < mean < high <= 0.4


# ---------------------------------------------------------------- p values


def test_of_one_site_and_one_repetition_it_is_students_t_test() -> None:
    # mean 0.3, standard deviation 0.2: t = 0.3 / (0.2/√4) = 3 with 3 degrees of freedom
    # the density of t with 3 degrees of freedom has the tail ½ − (x/(1 + x²) + atan x)/π, x = t/√3
    deviation = 0.2 * math.sqrt(3 / 4)
    values = [0.3 + sign * deviation for sign in (1, 1, -1, -1)]
    x = 3 / math.sqrt(3)
    expected = 1 - 2 * (x / (1 + x * x) + math.atan(x)) / math.pi
    assert p_value(repetitions({"a": numbered(values)})) == pytest.approx(expected)


def test_where_only_repetitions_differ_it_is_students_t_test_over_them() -> None:
    # means 0.1, 0.2, 0.3: t = 0.2 / (0.1/√3) = 3.464 with 2 degrees of freedom: p = 1 − t/√(2 + t²)
    data = repetitions(*[{"a": numbered([gain] * 8)} for gain in (0.1, 0.2, 0.3)])
    t = 2 * math.sqrt(3)
    assert p_value(data) == pytest.approx(1 - t / math.sqrt(2 + t * t))
    _, low, _ = ends(data)
    assert low > 0, "three that agree in sign are no proof: one in four sets of three do so by chance"


def test_both_variances_add_up() -> None:
    """Two seeds, two patients, by hand: p differs by 0.1 from the mean, a seed by 0.05."""
    data = repetitions({"a": {"p": 0.25, "q": 0.05}}, {"a": {"p": 0.35, "q": 0.15}})
    # V_r = 2·0.05²/(2·1) = 0.0025; V_p = 2·(0.1/2·√2)² = 0.01; df = 0.0125²/(0.0025² + 0.01²) = 1.4706
    t = 0.2 / math.sqrt(0.0125)
    assert p_value(data) == pytest.approx(2 * stats.t.sf(t, 0.0125**2 / (0.0025**2 + 0.01**2)))


def test_nothing_is_tested_of_a_site_with_a_single_patient() -> None:
    many = numbered([0.1, 0.2, 0.15, 0.12, 0.18])
    assert p_value(repetitions({"a": many})) is not None
    assert p_value(repetitions({"a": many, "b": {"p": 0.1}})) is None
    assert p_value(repetitions(*[{"a": many, "b": {"p": 0.1}}] * 3)) is None
    assert p_value(repetitions({"a": numbered([0.0] * 5)})) is None, "two models that are the same"


def test_nothing_is_tested_of_a_site_with_one_patient_at_a_time() -> None:
    """Another one in each repetition: how patients differ cannot be told from how repetitions do."""
    many = numbered([0.1, 0.2, 0.15, 0.12, 0.18])
    assert p_value(repetitions({"b": {"p": 0.1}}, {"b": {"q": 0.2}}, {"b": {"r": 0.15}})) is None
    one_each: list[Values] = [{"a": many, "b": {"p": 0.1}}, {"a": many, "b": {"q": 0.2}}]
    assert p_value(repetitions(*one_each)) is None
    assert p_value(repetitions(*one_each, {"a": many, "b": {"p": 0.1, "q": 0.3}})) is not None


def test_the_degrees_of_freedom_are_of_the_patients_of_one_repetition() -> None:
    """Other patients in each: four in all, but two at a time tell how patients differ."""
    data = repetitions({"a": {"p": 0.25, "q": 0.05}}, {"a": {"r": 0.35, "s": 0.15}})
    # V_r = 2·0.05²/(2·1) = 0.0025, df 1; V_p = 4·(0.1·√2/(2·2))² = 0.005, df 2 − 1 = 1
    v_r, v_p = 0.0025, 4 * (0.1 / 2 / 2 * math.sqrt(2)) ** 2
    freedom = (v_r + v_p) ** 2 / (v_r**2 + v_p**2)
    assert p_value(data) == pytest.approx(2 * stats.t.sf(0.2 / math.sqrt(v_r + v_p), freedom))


@pytest.mark.parametrize(("by_repetition", "by_patient"), [(0.0, 1.0), (0.3, 1.0), (1.0, 0.3)])
@pytest.mark.parametrize("seeds", [1, 3, 5])
def test_without_any_difference_few_are_found(seeds: int, by_repetition: float, by_patient: float) -> None:
    """Three sites of eight patients; by chance 5 % are allowed, and of 300 sets up to 9 % may show."""
    rng = np.random.default_rng(1)
    found = 0
    for _ in range(300):
        whose = {site: rng.normal(0, by_patient, 8) for site in "abc"}
        shifts = rng.normal(0, by_repetition, seeds) if seeds > 1 else [0.0]
        data = repetitions(
            *(
                {s: numbered([*(d + shift + rng.normal(0, 0.3, 8))]) for s, d in whose.items()}
                for shift in shifts
            )
        )
        p = p_value(data)
        found += p is not None and p < 0.05
    assert found <= 27


# ---------------------------------------------------------------- Holm


def test_holms_table_by_hand() -> None:
    # in order: 0.005·4 = 0.02; 0.01·3 = 0.03; 0.03·2 = 0.06; 0.04·1 = 0.04, not below the one before: 0.06
    assert holm([0.01, 0.04, 0.03, 0.005]) == [pytest.approx(p) for p in (0.03, 0.06, 0.06, 0.02)]
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([0.03]) == [0.03]
    assert holm([]) == []


def test_a_claim_that_cannot_be_tested_is_still_one_of_them() -> None:
    assert holm([0.01, None, 0.02]) == [pytest.approx(0.03), None, pytest.approx(0.04)]
