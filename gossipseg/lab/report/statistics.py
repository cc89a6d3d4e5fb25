"""What the runs of a comparison show together: means, gains, traffic, and the tested claims.

A site's figure is the mean over its test cases. An algorithm's is the mean over sites, so that every site
counts once, however many cases it has.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from gossipseg.lab.plan.variants import POOLED
from gossipseg.lab.report.intervals import Differences, Interval, Replicate, bootstrap, holm, p_value
from gossipseg.learn.data.patients import patient_of

FLOOR, BASELINE = "local", "fedavg"
ALPHA = 0.05
"""Largest chance that any verdict of a comparison is wrong where no two algorithms differ."""
COUNTED = ("cases", "present", "detected", "missed", "false_alarms", "false_alarm_voxels")
Document = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ScoreSpread:
    """A mean over replicates; `sd` is the sample standard deviation, None for a single one."""

    mean: float
    sd: float | None
    count: int


@dataclass(frozen=True, slots=True)
class Claim(Interval):
    """A tested claim of the page: `algorithm` differs from `reference`."""

    algorithm: str
    reference: str
    p: float | None
    """Two-sided (intervals.p_value); None where nothing can be tested."""
    p_holm: float | None
    """p corrected for the number of claims of this results.json. The interval is not corrected."""

    @property
    def verdict(self) -> str:
        """better, worse or unclear, by the corrected p."""
        if self.p_holm is None or self.p_holm >= ALPHA:
            return "unclear"
        return "better" if self.mean > 0 else "worse"

    @property
    def turned(self) -> Claim:
        """The same claim about the reference against the algorithm."""
        return replace(
            self,
            algorithm=self.reference,
            reference=self.algorithm,
            mean=-self.mean,
            low=-self.high,
            high=-self.low,
        )


@dataclass(frozen=True, slots=True)
class Summary:
    """The figures of one algorithm."""

    algorithm: str
    overall: ScoreSpread | None
    by_site: Mapping[str, ScoreSpread]
    hd95: ScoreSpread | None
    dice_val_tail: ScoreSpread | None
    model_bytes: float
    """Over all sites, mean over replicates."""
    relative_bytes: float | None
    """In units of FedAvg's bytes, measured or computed."""
    worst_site: str | None
    worst_gain: float | None
    """The smallest of the sites' gains over training alone."""
    against: Mapping[str, Claim]
    """Reference → difference from it."""
    by_site_against_local: Mapping[str, Interval]
    """Differences of single sites. They are no claims: nothing is tested."""
    gradient_evaluations: float
    seconds: float


def summarise(document: Document, found: Sequence[Claim] | None = None) -> list[Summary]:
    """Every algorithm of the document, in its order; `found`: its claims, where they are known already."""
    yardstick = fedavg_bytes(document)
    found = claims(document) if found is None else found
    return [_summary(document, name, yardstick, found) for name in document["algorithms"]]


def as_json(values: Sequence[Any]) -> list[dict[str, Any]]:
    """Summaries or claims for results.json."""
    return [asdict(value) for value in values]


def _summary(document: Document, name: str, yardstick: float | None, found: Sequence[Claim]) -> Summary:
    rows = rows_of(document, name)
    moved = per_run(rows, "model_bytes_out", sum)
    worst = worst_gain(document, name)
    compared = {r: claim_of(found, name, r) for r in (FLOOR, BASELINE)}
    differences = site_differences(document, name, FLOOR) if name != FLOOR else {}
    by_site = {site: bootstrap(of_site(differences, site)) for site in document["sites"]}
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
        {r: claim for r, claim in compared.items() if claim is not None},
        {site: interval for site, interval in by_site.items() if interval is not None},
        statistics.fmean(per_run(rows, "gradient_evaluations", sum) or [0.0]),
        statistics.fmean(per_run(rows, "seconds", sum) or [0.0]),
    )


# ---------------------------------------------------------------- means


def rows_of(document: Document, algorithm: str) -> list[dict[str, Any]]:
    """The algorithm's rows, all replicates and sites."""
    return [row for row in document["runs"] if row["algorithm"] == algorithm]


def replicate_of(row: Mapping[str, Any]) -> Replicate:
    """The repetition of a row."""
    return row.get("split", 0), row["seed"]


def replicates(document: Document) -> list[Replicate]:
    """All repetitions of a document, in their order."""
    return list(dict.fromkeys(replicate_of(row) for row in document["runs"]))


def per_run(rows: Sequence[Mapping[str, Any]], key: str, over_sites: Any) -> list[float]:
    """One figure for each replicate: `over_sites` of the sites' figures, those without one left out."""
    found: defaultdict[Replicate, list[float]] = defaultdict(list)
    for row in rows:
        if row[key] is not None:
            found[replicate_of(row)].append(row[key])
    return [float(over_sites(found[replicate])) for replicate in sorted(found)]


def spread(values: Sequence[float]) -> ScoreSpread | None:
    """Mean and sample standard deviation; None without values."""
    if not values:
        return None
    sd = statistics.stdev(values) if len(values) > 1 else None
    return ScoreSpread(statistics.fmean(values), sd, len(values))


def site_spread(rows: Sequence[Mapping[str, Any]], site: str) -> ScoreSpread | None:
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
    """The last similarity matrix of a coordinator in the first repetition: {round, sites, matrix}.

    None where the algorithm compares no sites.
    """
    rows = [row for row in rows_of(document, algorithm) if row.get("similarity")]
    first = min(map(replicate_of, rows), default=None)
    found = [row["similarity"] for row in rows if replicate_of(row) == first]
    return max(found, key=lambda similarity: similarity["round"]) if found else None


def found_counts(document: Document, algorithm: str) -> dict[str, dict[str, int]]:
    """Class → how often it was found (evaluation.scoring.Counts), added up over replicates and sites."""
    found: dict[str, dict[str, int]] = {}
    for row in rows_of(document, algorithm):
        for label, counts in row.get("counts", {}).items():
            mine = found.setdefault(label, dict.fromkeys(COUNTED, 0))
            for key in COUNTED:
                mine[key] += counts[key]
    return found


def class_mean(document: Document, algorithm: str, key: str, label: str) -> float | None:
    """Mean over replicates and sites of a figure that rows hold by class; None where no row has it."""
    values = [row.get(key, {}).get(label) for row in rows_of(document, algorithm)]
    known = [v for v in values if v is not None]
    return statistics.fmean(known) if known else None


def fedavg_bytes(document: Document) -> float | None:
    """Bytes of models that FedAvg moves in a run: measured, or computed from its model's size.

    The size is of its model of the federation's network. None where the size is not known, or no bytes move.
    """
    measured = per_run(rows_of(document, BASELINE), "model_bytes_out", sum)
    if any(measured):
        return statistics.fmean(measured)
    size = document.get("fedavg_model_bytes")
    models = fedavg_models(len(document["sites"]), document["settings"]["rounds"])
    return models * float(size) if models and size else None


def fedavg_models(sites: int, rounds: int) -> int:
    """Models that FedAvg moves under a rotating coordinator: per round, N−1 to the coordinator and N−1 from
    it.

    The last round counts, too: its global model is kept.
    """
    return 2 * (sites - 1) * rounds


# ---------------------------------------------------------------- claims


def claims(document: Document) -> list[Claim]:
    """All claims of the page, tested together.

    They are every algorithm against `local` and against `fedavg`, and the pairs named for this comparison
    (`named_claims`). A pair without a case in common has none.
    """
    compared = {pair: site_differences(document, *pair) for pair in _family(document)}
    compared = {pair: differences for pair, differences in compared.items() if differences}
    ps = [p_value(differences) for differences in compared.values()]
    found = []
    for (pair, differences), p, p_holm in zip(compared.items(), ps, holm(ps), strict=True):
        interval = bootstrap(differences)
        assert interval is not None
        found.append(Claim(**asdict(interval), algorithm=pair[0], reference=pair[1], p=p, p_holm=p_holm))
    return found


def _family(document: Document) -> list[tuple[str, str]]:
    """(algorithm, reference) of all claims; no two of them are of the same two algorithms."""
    names = document["algorithms"]
    wanted = [(name, reference) for reference in (FLOOR, BASELINE) for name in names if name != reference]
    wanted += [(name, reference) for name, reference in document.get("named_claims", [])]
    found: dict[frozenset[str], tuple[str, str]] = {}
    for pair in wanted:
        if set(pair) <= set(names):
            found.setdefault(frozenset(pair), pair)
    return list(found.values())


def claim_of(found: Sequence[Claim], algorithm: str, reference: str) -> Claim | None:
    """The claim about these two, as seen from the first; None where there is none."""
    for claim in found:
        if (claim.algorithm, claim.reference) == (algorithm, reference):
            return claim
        if (claim.algorithm, claim.reference) == (reference, algorithm):
            return claim.turned
    return None


def site_differences(document: Document, algorithm: str, reference: str) -> Differences:
    """Differences paired by case, in the repetitions that both algorithms have."""
    mine, other = _case_dice(document, algorithm), _case_dice(document, reference)
    patients = _patients(document, {(site, case) for _, site, case in mine})
    found: dict[Replicate, dict[str, dict[str, dict[str, float]]]] = {}
    for replicate, site, case in sorted(mine.keys() & other.keys()):
        difference = mine[replicate, site, case] - other[replicate, site, case]
        sites = found.setdefault(replicate, {})
        sites.setdefault(site, {}).setdefault(patients[site, case], {})[case] = difference
    return dict(found)


def of_site(differences: Differences, site: str) -> Differences:
    """The differences of one site, in its repetitions."""
    return {r: {site: sites[site]} for r, sites in differences.items() if site in sites}


def _case_dice(document: Document, algorithm: str) -> dict[tuple[Replicate, str, str], float]:
    """(repetition, site, case) → test Dice."""
    return {
        (replicate_of(row), row["site"], case["id"]): case["dice"]
        for row in rows_of(document, algorithm)
        for case in row["cases"]
        if case["dice"] is not None
    }


def _patients(document: Document, cases: Collection[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """(site, case) → patient: from the rows, else (one-shot, earlier versions) from the name alone."""
    found = {(site, case): patient_of(case) for site, case in cases}
    for row in document["runs"]:
        found |= {(row["site"], case): patient for case, patient in row.get("patients", {}).items()}
    return found
