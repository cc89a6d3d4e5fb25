"""The validation guard: was a visit harmful? Judged one further local round later.

What belongs here: the paired comparison and what is needed to undo a visit.
What must not: scoring, restoring.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

CaseScores = Sequence[float | None]
"""Mean Dice of each validation case, in a fixed order; None where it is undefined."""


@dataclass(frozen=True, slots=True)
class Guard:
    """A visit that has not been judged yet."""

    hash: str
    frm: str
    judge_round: int
    """Judged when the training steps of this round are done, before any further merge."""
    before: list[float | None]
    """Validation Dice of the training model before the visit, by case."""
    steps: int
    snapshot: dict[str, Any]
    """Weights, optimizer, scaler and EMA (student.snapshot) as they were, with `steps` behind them."""
    own_steps: int | None = None
    """Those of them that the site took itself; None in the checkpoint of an earlier version."""


def mean_drop(before: CaseScores, after: CaseScores) -> tuple[float, float]:
    """By how much the mean Dice fell over the cases scored both times, and that mean's standard error.

    (0, 0) without such cases; the error of a single case counts as 0.
    """
    falls = [
        b - a
        for b, a in zip(before, after, strict=True)
        if b is not None and a is not None and math.isfinite(b) and math.isfinite(a)
    ]
    if not falls:
        return 0.0, 0.0
    error = statistics.stdev(falls) / math.sqrt(len(falls)) if len(falls) > 1 else 0.0
    return statistics.fmean(falls), error


def harmful(before: CaseScores, after: CaseScores, guard_drop: float) -> bool:
    """Whether the fall exceeds max(guard_drop, 2 standard errors) (ALGORITHMS §0)."""
    drop, error = mean_drop(before, after)
    return drop > max(guard_drop, 2 * error)
