"""The validation guard: was a visit harmful? Judged one further local round later.

What belongs here: what is needed to undo a visit. What must not: the comparison of scores (paired.py),
scoring, restoring.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gossipseg.learn.paired import CaseScores, paired_drop


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


def harmful(before: CaseScores, after: CaseScores, guard_drop: float) -> bool:
    """Whether the fall exceeds max(guard_drop, 2 standard errors), case by case.

    The rule of earlier versions, for as long as reception.py does not tell whose the cases are (paired.py).
    """
    drop = paired_drop(before, after, [str(i) for i in range(len(before))])
    return drop.mean > max(guard_drop, 2 * (drop.standard_error or 0.0))
