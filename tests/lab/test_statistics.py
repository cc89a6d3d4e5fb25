"""Means, gains, traffic and claims against values worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gossipseg.lab.report import statistics
from gossipseg.lab.report.intervals import bootstrap, holm, p_value
from gossipseg.lab.report.statistics import Claim


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


def test_differences_are_paired_by_case_within_a_repetition() -> None:
    found = statistics.site_differences(TWO_SITES, "gcml", "local")
    assert found[0, 0] == {
        "a": {"p": {"p": pytest.approx(0.1)}, "q": {"q": pytest.approx(0.1)}},
        "b": {"r": {"r": pytest.approx(0.0)}},
    }
    assert found[0, 1]["a"] == {"p": {"p": pytest.approx(0.2)}, "q": {"q": pytest.approx(0.0)}}
    # seed 0: (0.1 + 0)/2 = 0.05; seed 1: (0.1 − 0.1)/2 = 0
    interval = bootstrap(found)
    assert interval is not None and interval.mean == pytest.approx(0.025)
    assert (interval.cases, interval.patients, interval.repetitions) == (3, 3, 2)


def test_a_repetition_that_only_one_of_them_has_does_not_count() -> None:
    runs = [r for r in TWO_SITES["runs"] if (r["algorithm"], r["seed"]) != ("local", 1)]
    found = statistics.site_differences(document(*runs), "gcml", "local")
    assert list(found) == [(0, 0)]
    (claim,) = statistics.claims(document(*runs))
    assert claim.repetitions == 1 and claim.mean == pytest.approx(0.05)


def test_cases_without_any_foreground_are_left_out() -> None:
    with_none = document(
        row("local", 0, "a", {"p": 0.5}),
        row("gcml", 0, "a", {"p": 0.6}),
    )
    for r in with_none["runs"]:
        r["cases"].append({"id": "empty", "dice": None})
    (claim,) = statistics.claims(with_none)
    assert claim.cases == 1


# ---------------------------------------------------------------- claims


def gains(algorithm: str, gain: float, *, seed: int = 0, scatter: float = 0.05) -> dict[str, Any]:
    """Ten patients at one site, each better by `gain` than 0.5, give or take."""
    dice = {f"p{i}": 0.5 + gain + scatter * (i - 4.5) / 4.5 for i in range(10)}
    return row(algorithm, seed, "a", dice)


FOUR = document(
    gains("local", 0.0, scatter=0.0), gains("gcml", 0.1), gains("fedavg", 0.2), gains("ditto", 0.3)
)


def pairs(found: list[Claim]) -> list[tuple[str, str]]:
    return [(claim.algorithm, claim.reference) for claim in found]


def test_only_what_the_page_claims_is_tested() -> None:
    """Each against `local` and against `fedavg`, these two against each other once, and what was named."""
    wanted = [
        ("gcml", "local"),
        ("fedavg", "local"),
        ("ditto", "local"),
        ("gcml", "fedavg"),
        ("ditto", "fedavg"),
    ]
    assert pairs(statistics.claims(FOUR)) == wanted
    named = {**FOUR, "named_claims": [["gcml", "ditto"], ["local", "gcml"], ["gcml", "not_run"]]}
    assert pairs(statistics.claims(named)) == [*wanted, ("gcml", "ditto")]
    local = statistics.summarise(FOUR)[0]
    assert local.against["fedavg"].mean == pytest.approx(-0.2)
    assert local.against["fedavg"].verdict == "worse"
    assert local.against["fedavg"].p_holm == statistics.claims(FOUR)[1].p_holm


def test_p_values_are_corrected_over_all_claims() -> None:
    found = statistics.claims(FOUR)
    assert [c.p_holm for c in found] == holm([c.p for c in found])
    assert [c.p for c in found] == [
        p_value(statistics.site_differences(FOUR, c.algorithm, c.reference)) for c in found
    ]


def test_a_verdict_falls_where_many_claims_are_made() -> None:
    """The same gain, the same interval: shown as one claim, not shown among eleven."""
    runs = [gains("local", 0.0, scatter=0.0), gains("gcml", 0.02, scatter=0.035)]
    (alone,) = statistics.claims(document(*runs))
    assert alone.p == alone.p_holm and alone.p is not None and 0.01 < alone.p < 0.05
    assert alone.verdict == "better"
    more = [gains(f"other{i}", 0.0) for i in range(10)]
    among = statistics.claims(document(*runs, *more))[0]
    assert (among.mean, among.low, among.high, among.p) == (alone.mean, alone.low, alone.high, alone.p)
    assert among.low > 0 and among.verdict == "unclear"
    assert among.p_holm == pytest.approx(11 * alone.p)


def test_the_sites_are_shown_by_intervals_of_their_own_that_are_no_claims() -> None:
    gcml = statistics.summarise(TWO_SITES)[1]
    assert not isinstance(gcml.by_site_against_local["a"], Claim)
    assert gcml.by_site_against_local["a"].mean == pytest.approx(0.1)
    assert gcml.by_site_against_local["b"].mean == pytest.approx(-0.05)
