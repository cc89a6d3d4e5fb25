"""Means, gains, traffic and intervals against values worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gossipseg.lab import statistics
from gossipseg.lab.statistics import bootstrap


def row(algorithm: str, seed: int, site: str, dice: dict[str, float], **more: Any) -> dict[str, Any]:
    return {
        "algorithm": algorithm,
        "seed": seed,
        "site": site,
        "dice_test": sum(dice.values()) / len(dice),
        "dice_val_tail": 0.5,
        "hd95": 3.0,
        "model_bytes_out": 0,
        "gradient_evaluations": 10,
        "seconds": 1.0,
        "wire_model_bytes": 100,
        "cases": [{"id": case, "dice": value} for case, value in dice.items()],
        **more,
    }


def document(*runs: dict[str, Any], rounds: int = 5, fedavg_model_bytes: int | None = 100) -> dict[str, Any]:
    """`fedavg_model_bytes` None: FedAvg cannot train the federation's network."""
    names = list(dict.fromkeys(r["algorithm"] for r in runs))
    sites = list(dict.fromkeys(r["site"] for r in runs))
    settings = {"rounds": rounds, "federation": {"network": {"name": "sanet"}}}
    found = {"runs": list(runs), "algorithms": names, "sites": sites, "settings": settings}
    return {**found, "fedavg_model_bytes": fedavg_model_bytes}


TWO_SITES = document(
    row("local", 0, "a", {"p": 0.5, "q": 0.7}),
    row("local", 0, "b", {"r": 0.4}),
    row("local", 1, "a", {"p": 0.5, "q": 0.5}),
    row("local", 1, "b", {"r": 0.6}),
    row("gcml", 0, "a", {"p": 0.6, "q": 0.8}, model_bytes_out=300),
    row("gcml", 0, "b", {"r": 0.4}, model_bytes_out=100),
    row("gcml", 1, "a", {"p": 0.7, "q": 0.5}, model_bytes_out=200),
    row("gcml", 1, "b", {"r": 0.5}, model_bytes_out=200),
)


def test_means_over_sites_then_seeds() -> None:
    local, gcml = statistics.summarise(TWO_SITES)
    # seed 0: (0.6 + 0.4)/2 = 0.5; seed 1: (0.5 + 0.6)/2 = 0.55
    assert local.overall is not None and gcml.overall is not None
    assert local.overall.mean == pytest.approx(0.525)
    assert local.overall.sd == pytest.approx(0.05 / np.sqrt(2))
    # seed 0: (0.7 + 0.4)/2 = 0.55; seed 1: (0.6 + 0.5)/2 = 0.55
    assert (gcml.overall.mean, gcml.overall.sd) == (pytest.approx(0.55), pytest.approx(0.0))
    assert gcml.by_site["a"].mean == pytest.approx(0.65)


def test_the_worst_sites_gain_over_training_alone() -> None:
    # a: 0.65 − 0.55 = +0.10; b: 0.45 − 0.50 = −0.05
    assert statistics.worst_gain(TWO_SITES, "gcml") == ("b", pytest.approx(-0.05))
    assert statistics.worst_gain(TWO_SITES, "local") is None


def test_bytes_in_units_of_fedavg_that_was_not_run() -> None:
    # 2 sites, 5 rounds: 2·(2−1)·5 = 10 models of 100 bytes; gcml moved 400 bytes a run
    assert statistics.fedavg_models(2, 5) == 10
    assert statistics.summarise(TWO_SITES)[1].relative_bytes == pytest.approx(400 / 1000)


def test_an_algorithm_that_sends_a_part_is_held_against_the_whole_model() -> None:
    # as above, fedsca sending adapters of 12 bytes: ten are 12 % of ten models, not all of FedAvg's bytes
    sent = {"model_bytes_out": 60, "wire_model_bytes": 12}
    runs = [row("fedsca", 0, site, {"p": 0.5}, **sent) for site in ("a", "b")]
    assert statistics.summarise(document(*runs))[0].relative_bytes == pytest.approx(0.12)
    assert statistics.summarise(document(*runs, fedavg_model_bytes=None))[0].relative_bytes is None


def test_results_of_an_earlier_version_say_nothing_of_a_fedavg_that_was_not_run() -> None:
    older = {key: value for key, value in TWO_SITES.items() if key != "fedavg_model_bytes"}
    assert statistics.summarise(older)[1].relative_bytes is None


def test_bytes_in_units_of_fedavg_as_it_was_measured() -> None:
    runs = [*TWO_SITES["runs"]]
    runs += [row("fedavg", 0, s, {"p": 0.5}, model_bytes_out=250) for s in ("a", "b")]
    gcml, fedavg = statistics.summarise(document(*runs))[1:]
    assert gcml.relative_bytes == pytest.approx(400 / 500)
    assert fedavg.relative_bytes == pytest.approx(1.0)


def test_the_last_similarity_of_the_first_repetition_is_shown() -> None:
    def found(round: int) -> dict[str, Any]:
        return {"similarity": {"round": round, "sites": ["a", "b"], "matrix": [[1.0, 0.5], [0.5, 1.0]]}}

    runs = [row("fedsca", 1, "a", {"p": 0.5}, **found(9)), row("fedsca", 0, "a", {"p": 0.5}, **found(3))]
    runs += [row("fedsca", 0, "b", {"p": 0.5}, **found(4)), row("fedavg", 0, "a", {"p": 0.5})]
    shown = statistics.last_similarity(document(*runs), "fedsca")
    assert shown is not None and shown["round"] == 4
    assert statistics.last_similarity(document(*runs), "fedavg") is None


def test_differences_are_paired_by_case_and_averaged_over_the_seeds_of_both() -> None:
    # p: seeds +0.1, +0.2 → +0.15; q: +0.1, 0 → +0.05; r: 0, −0.1 → −0.05
    found = statistics.site_differences(TWO_SITES, "gcml", "local")
    assert found["a"] == {"p": [pytest.approx(0.15)], "q": [pytest.approx(0.05)]}
    assert found["b"] == {"r": [pytest.approx(-0.05)]}
    interval = statistics.difference(TWO_SITES, "gcml", "local")
    assert interval is not None
    assert interval.mean == pytest.approx((0.10 - 0.05) / 2)
    assert (interval.cases, interval.patients) == (3, 3)


def test_a_seed_that_only_one_of_them_has_does_not_count() -> None:
    runs = [r for r in TWO_SITES["runs"] if (r["algorithm"], r["seed"]) != ("local", 1)]
    found = statistics.site_differences(document(*runs), "gcml", "local")
    assert found["a"]["p"] == [pytest.approx(0.1)]


def test_the_bootstrap_of_one_site_of_two_patients() -> None:
    """Drawn with replacement the mean of (0, 1) is 0, ½ or 1 with chances ¼, ½, ¼: the interval is all."""
    interval = bootstrap({"a": {"p": [0.0], "q": [1.0]}})
    assert interval is not None
    assert (interval.mean, interval.low, interval.high) == (0.5, 0.0, 1.0)
    assert interval.verdict == "unclear"


@pytest.mark.parametrize("sites", [{"a": {"p": [0.2]}}, {"a": {"p": [0.1, 0.3]}, "b": {"q": [0.1]}}])
def test_one_patient_a_site_shows_nothing(sites: dict[str, dict[str, list[float]]]) -> None:
    interval = bootstrap(sites)
    assert interval is not None
    assert interval.low == interval.high > 0
    assert interval.verdict == "unclear"


def test_the_bootstrap_agrees_with_the_normal_interval_of_many_patients() -> None:
    values = np.random.default_rng(3).normal(0.02, 0.05, 400)
    interval = bootstrap({"a": {str(i): [float(v)] for i, v in enumerate(values)}})
    assert interval is not None
    half = 1.96 * values.std(ddof=1) / np.sqrt(len(values))
    assert interval.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.1 * half)
    assert interval.verdict == "better"


def test_sites_count_once_each_however_many_cases_they_have() -> None:
    many = {str(i): [0.1] for i in range(99)}
    interval = bootstrap({"big": many, "small": {"p": [-0.3]}})
    assert interval is not None
    assert interval.mean == pytest.approx((0.1 - 0.3) / 2)
    assert (interval.low, interval.high) == (pytest.approx(-0.1), pytest.approx(-0.1))


def test_slices_of_a_patient_are_one_piece_of_evidence() -> None:
    """Ten slices of two patients: the interval is that of two patients, not of ten."""
    slices = {"p": [0.0] * 5, "q": [1.0] * 5}
    apart = {f"{p}{i}": [v] for p, vs in slices.items() for i, v in enumerate(vs)}
    together, independent = bootstrap({"a": slices}), bootstrap({"a": apart})
    assert together is not None and independent is not None
    assert (together.low, together.high) == (0.0, 1.0)
    assert independent.low > 0.1
    assert (together.cases, together.patients, independent.patients) == (10, 2, 10)


def test_every_two_algorithms_are_compared_once() -> None:
    runs = [*TWO_SITES["runs"]]
    runs += [row("fedavg", s, "a", {"p": 0.9, "q": 0.9}) for s in (0, 1)]
    found = statistics.pairs(document(*runs))
    assert [(p.first, p.second) for p in found] == [
        ("local", "gcml"),
        ("local", "fedavg"),
        ("gcml", "fedavg"),
    ]
    # p: 0.5 − 0.9 and 0.5 − 0.9 → −0.4; q: 0.7 − 0.9 and 0.5 − 0.9 → −0.3; b is not shared
    assert found[1].interval.mean == pytest.approx(-0.35)
    assert found[1].interval.verdict == "worse"


def test_the_same_results_give_the_same_interval() -> None:
    data = {"a": {"p": [0.1], "q": [0.3], "r": [-0.2]}}
    assert bootstrap(data) == bootstrap(data)
    assert bootstrap({}) is None


def test_cases_without_any_foreground_are_left_out() -> None:
    with_none = document(
        row("local", 0, "a", {"p": 0.5}),
        row("gcml", 0, "a", {"p": 0.6}),
    )
    for r in with_none["runs"]:
        r["cases"].append({"id": "empty", "dice": None})
    interval = statistics.difference(with_none, "gcml", "local")
    assert interval is not None
    assert interval.cases == 1
