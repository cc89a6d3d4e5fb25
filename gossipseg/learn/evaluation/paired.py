"""Scores of two models on the same cases, compared patient by patient. Torch-free.

Images of one patient err alike: patients count, not cases, or a standard error comes out too small (1.4 times
on a site with two to four slices a patient).
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeGuard

CaseScores = Sequence[float | None]
"""Mean Dice of each case, in a fixed order; None where it is undefined."""

LEAST_PATIENTS = 3
"""Patients with a score of both models, for any choice by validation: fewer say nothing of the next."""

LEAST_CHANGES = 5
"""Changes seen without a merge. With three, 9.9·√(4/3) standard deviations would hide all harm: a
fall of 0.3 on every patient is then seen in half of the trainings, with five in nine of ten."""

CONFIDENCE = 0.995
"""One-sided: how seldom chance alone may pass a limit is one minus this."""


@dataclass(frozen=True, slots=True)
class Drop:
    """By how much the mean Dice fell; negative where it rose."""

    mean: float
    """Over the patients, of each patient's mean fall; 0 without a patient."""
    standard_error: float | None
    """Standard error of that mean; None with fewer than two patients, who have no spread."""
    patients: int
    """Those with a case that has a finite score on both sides."""


def paired_drop(before: CaseScores, after: CaseScores, patients: Sequence[str]) -> Drop:
    """The fall from `before` to `after`. `patients`: whose each case is; all three in one order."""
    both = zip(before, after, strict=True)
    means = by_patient([b - a if _finite(b) and _finite(a) else None for b, a in both], patients)
    error = statistics.stdev(means) / math.sqrt(len(means)) if len(means) > 1 else None
    return Drop(statistics.fmean(means) if means else 0.0, error, len(means))


def by_patient(scores: CaseScores, patients: Sequence[str]) -> list[float]:
    """Each patient's mean over the cases with a finite score; who has none is left out."""
    found: dict[str, list[float]] = {}
    for score, patient in zip(scores, patients, strict=True):
        if _finite(score):
            found.setdefault(patient, []).append(score)
    return [statistics.fmean(values) for values in found.values()]


def harmful(
    before: CaseScores,
    after: CaseScores,
    patients: Sequence[str],
    guard_drop: float,
    free_changes: Sequence[float] = (),
) -> bool:
    """Whether a merge did harm: with n patients and r changes, the mean fall is above
    max(guard_drop, t_{n−1}·SE, t_{r−1}·SD·√(1 + 1/r)), t the one-sided 99.5 % quantile of Student's t.

    `free_changes`: mean changes seen over windows of rounds without a merge that do not overlap; SD is their
    standard deviation. Their term counts from LEAST_CHANGES on: it sees what shakes all patients at once,
    which the standard error cannot. Fewer than LEAST_PATIENTS patients: never.
    """
    drop = paired_drop(before, after, patients)
    if drop.standard_error is None or drop.patients < LEAST_PATIENTS:
        return False
    limits = [guard_drop, student_quantile(drop.patients - 1) * drop.standard_error]
    r = len(free_changes)
    if r >= LEAST_CHANGES:
        limits.append(student_quantile(r - 1) * statistics.stdev(free_changes) * math.sqrt(1 + 1 / r))
    return drop.mean > max(limits)


@functools.cache
def student_quantile(dof: int) -> float:
    """What Student's t with `dof` degrees of freedom (1 or more) exceeds with probability 0.5 %."""
    from scipy.special import stdtrit  # takes long to import, and most processes never ask

    return float(stdtrit(dof, CONFIDENCE))


def _finite(score: float | None) -> TypeGuard[float]:
    return score is not None and math.isfinite(score)
