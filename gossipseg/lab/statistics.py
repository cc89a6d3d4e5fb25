"""What the runs of a comparison say together: means, gains, traffic, and intervals by the paired bootstrap.

What belongs here: arithmetic on results.json. What must not: drawing, words, files.

A site's figure is the mean over its test cases; an algorithm's is the mean over sites, so that every site
counts once, however many cases it has.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from gossipseg.lab.variants import POOLED
from gossipseg.learn.patients import patient_of

RESAMPLES = 10_000
CONFIDENCE = 0.95
BOOTSTRAP_SEED = 0
"""Any fixed number: the same results give the same intervals."""
FLOOR, BASELINE = "local", "fedavg"
Document = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Spread:
    """A mean over replicates; `sd` is the sample standard deviation, None for a single one."""

    mean: float
    sd: float | None
    count: int


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean difference and the range that the patients at hand are compatible with."""

    mean: float
    low: float
    high: float
    cases: int
    patients: int

    @property
    def verdict(self) -> str:
        """better, worse or unclear; of one patient a site no other sample can be drawn."""
        if self.low == self.high:
            return "unclear"
        return "better" if self.low > 0 else "worse" if self.high < 0 else "unclear"


@dataclass(frozen=True, slots=True)
class Summary:
    """One algorithm."""

    algorithm: str
    overall: Spread | None
    by_site: Mapping[str, Spread]
    hd95: Spread | None
    dice_val_tail: Spread | None
    model_bytes: float
    """Over all sites, mean over replicates."""
    relative_bytes: float | None
    """In units of FedAvg's, measured or worked out."""
    worst_site: str | None
    worst_gain: float | None
    """The smallest of the sites' gains over training alone."""
    against: Mapping[str, Interval]
    """Reference → difference from it."""
    by_site_against_local: Mapping[str, Interval]
    gradient_evaluations: float
    seconds: float


def summarise(document: Document) -> list[Summary]:
    """Every algorithm of the document, in its order."""
    yardstick = fedavg_bytes(document)
    return [_summary(document, name, yardstick) for name in document["algorithms"]]


def as_json(values: Sequence[Any]) -> list[dict[str, Any]]:
    """Summaries or pairs for results.json."""
    return [asdict(value) for value in values]


def _summary(document: Document, name: str, yardstick: float | None) -> Summary:
    rows = rows_of(document, name)
    moved = per_run(rows, "model_bytes_out", sum)
    worst = worst_gain(document, name)
    references = [r for r in (FLOOR, BASELINE) if r != name and r in document["algorithms"]]
    compared = {r: difference(document, name, r) for r in references}
    by_site = site_differences(document, name, FLOOR) if name != FLOOR else {}
    return Summary(
        name,
        spread(per_run(rows, "dice_test", statistics.fmean)),
        {site: s for site in document["sites"] if (s := site_spread(rows, site)) is not None},
        spread(per_run(rows, "hd95", statistics.fmean)),
        spread(per_run(rows, "dice_val_tail", statistics.fmean)),
        statistics.fmean(moved) if moved else 0.0,
        statistics.fmean(moved) / yardstick if moved and yardstick and name != POOLED else None,
        worst[0] if worst else None,
        worst[1] if worst else None,
        {r: found for r, found in compared.items() if found is not None},
        {site: found for site, d in by_site.items() if (found := bootstrap({site: d})) is not None},
        statistics.fmean(per_run(rows, "gradient_evaluations", sum) or [0.0]),
        statistics.fmean(per_run(rows, "seconds", sum) or [0.0]),
    )


# ---------------------------------------------------------------- means


def rows_of(document: Document, algorithm: str) -> list[dict[str, Any]]:
    """The algorithm's rows, all replicates and sites."""
    return [row for row in document["runs"] if row["algorithm"] == algorithm]


Replicate = tuple[int, int]
"""(split, seed): one repetition of an algorithm."""


def replicate_of(row: Mapping[str, Any]) -> Replicate:
    """The repetition that a row is of."""
    return row.get("split", 0), row["seed"]


def replicates(document: Document) -> list[Replicate]:
    """All that a document holds, in their order."""
    return list(dict.fromkeys(replicate_of(row) for row in document["runs"]))


def per_run(rows: Sequence[Mapping[str, Any]], key: str, over_sites: Any) -> list[float]:
    """One figure for each replicate: `over_sites` of the sites' figures, those without one left out."""
    found: defaultdict[Replicate, list[float]] = defaultdict(list)
    for row in rows:
        if row[key] is not None:
            found[replicate_of(row)].append(row[key])
    return [float(over_sites(found[replicate])) for replicate in sorted(found)]


def spread(values: Sequence[float]) -> Spread | None:
    """Mean and sample standard deviation; None without values."""
    if not values:
        return None
    sd = statistics.stdev(values) if len(values) > 1 else None
    return Spread(statistics.fmean(values), sd, len(values))


def site_spread(rows: Sequence[Mapping[str, Any]], site: str) -> Spread | None:
    """Test Dice of one site over the replicates."""
    return spread([r["dice_test"] for r in rows if r["site"] == site and r["dice_test"] is not None])


def worst_gain(document: Document, algorithm: str) -> tuple[str, float] | None:
    """The site that gains least over training alone, and how much; None without `local` to compare with."""
    if algorithm == FLOOR or FLOOR not in document["algorithms"]:
        return None
    mine, alone = rows_of(document, algorithm), rows_of(document, FLOOR)
    gains = {}
    for site in document["sites"]:
        a, b = site_spread(mine, site), site_spread(alone, site)
        if a is not None and b is not None:
            gains[site] = a.mean - b.mean
    return min(gains.items(), key=lambda item: item[1]) if gains else None


def last_similarity(document: Document, algorithm: str) -> Mapping[str, Any] | None:
    """The last one that a coordinator of the first repetition found: {round, sites, matrix}; None where the
    algorithm compares no sites."""
    rows = [row for row in rows_of(document, algorithm) if row.get("similarity")]
    first = min(map(replicate_of, rows), default=None)
    found = [row["similarity"] for row in rows if replicate_of(row) == first]
    return max(found, key=lambda similarity: similarity["round"]) if found else None


def fedavg_bytes(document: Document) -> float | None:
    """Bytes of models that FedAvg moves in a run: measured where it was run, else worked out from the size
    of its model of the federation's network; None where that is not known, or would be nothing."""
    measured = per_run(rows_of(document, BASELINE), "model_bytes_out", sum)
    if any(measured):
        return statistics.fmean(measured)
    size = document.get("fedavg_model_bytes")
    models = fedavg_models(len(document["sites"]), document["settings"]["rounds"])
    return models * float(size) if models and size else None


def fedavg_models(sites: int, rounds: int) -> int:
    """Models that FedAvg moves under a rotating coordinator: N−1 to it and N−1 from it after each round, the
    last one too, whose common model is kept."""
    return 2 * (sites - 1) * rounds


# ---------------------------------------------------------------- the paired bootstrap

Differences = Mapping[str, Sequence[float]]
"""Patient → differences of its cases."""


def difference(document: Document, algorithm: str, reference: str) -> Interval | None:
    """The mean difference of test Dice, paired by case; None where no case can be paired."""
    return bootstrap(site_differences(document, algorithm, reference))


@dataclass(frozen=True, slots=True)
class Pair:
    """Two algorithms: by how much the first is better than the second."""

    first: str
    second: str
    interval: Interval


def pairs(document: Document) -> list[Pair]:
    """Every two algorithms that share cases, in the document's order."""
    names = document["algorithms"]
    return [
        Pair(first, second, found)
        for i, first in enumerate(names)
        for second in names[i + 1 :]
        if (found := difference(document, first, second)) is not None
    ]


def site_differences(document: Document, algorithm: str, reference: str) -> dict[str, Differences]:
    """Site → patient → differences of its cases, each averaged over the replicates that both were run in."""
    mine, other = _case_dice(document, algorithm), _case_dice(document, reference)
    patients = _patients(document, mine)
    found: dict[str, dict[str, list[float]]] = {}
    for (site, case), scores in mine.items():
        shared = scores.keys() & other.get((site, case), {}).keys()
        if shared:
            d = statistics.fmean(scores[r] - other[site, case][r] for r in sorted(shared))
            found.setdefault(site, {}).setdefault(patients[site, case], []).append(d)
    return dict(found)


def _case_dice(document: Document, algorithm: str) -> dict[tuple[str, str], dict[Replicate, float]]:
    """(site, case) → replicate → test Dice."""
    found: dict[tuple[str, str], dict[Replicate, float]] = {}
    for row in rows_of(document, algorithm):
        for case in row["cases"]:
            if case["dice"] is not None:
                found.setdefault((row["site"], case["id"]), {})[replicate_of(row)] = case["dice"]
    return found


def _patients(document: Document, cases: Collection[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """(site, case) → patient: as the rows have it, else (one-shot, earlier versions) by the name alone."""
    found = {(site, case): patient_of(case) for site, case in cases}
    for row in document["runs"]:
        found |= {(row["site"], case): patient for case, patient in row.get("patients", {}).items()}
    return found


def bootstrap(
    by_site: Mapping[str, Differences], *, resamples: int = RESAMPLES, seed: int = BOOTSTRAP_SEED
) -> Interval | None:
    """Percentile interval of the mean over sites of the sites' means over cases.

    Patients are drawn with replacement within each site, with all of their cases: cases of one patient are
    alike, and count as one piece of evidence. None without any difference.
    """
    sites = {site: patients for site, patients in sorted(by_site.items()) if patients}
    if not sites:
        return None
    rng = np.random.default_rng(seed)
    drawn, means, cases = np.zeros(resamples), [], 0
    for patients in sites.values():
        sums = np.array([sum(ds) for ds in patients.values()], float)
        counts = np.array([len(ds) for ds in patients.values()], float)
        index = rng.integers(0, len(sums), (resamples, len(sums)))
        drawn += sums[index].sum(1) / counts[index].sum(1) / len(sites)
        means.append(sums.sum() / counts.sum())
        cases += int(counts.sum())
    edge = (1 - CONFIDENCE) / 2
    low, high = np.quantile(drawn, [edge, 1 - edge])
    return Interval(
        float(np.mean(means)), float(low), float(high), cases, sum(len(p) for p in sites.values())
    )
