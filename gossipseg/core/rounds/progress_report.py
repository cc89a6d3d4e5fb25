"""What coordinators tell of the updates they gather: kept at the other sites, to be shown.

A word is nobody's proof: it is shown as its coordinator's, with its age.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from gossipseg.core.context import Context
from gossipseg.core.types import Proposal, UpdateTally


@dataclass(frozen=True, slots=True)
class Report:
    """What was told, and when (the core's clock)."""

    tally: UpdateTally
    at: float


class ProgressReports:
    """The last word. It is not kept on disk: the next one comes soon."""

    def __init__(self, ctx: Context, max_deadline_s: float) -> None:
        self._ctx, self._max_deadline_s = ctx, max_deadline_s
        self._of: tuple[int, int] | None = None
        self._word: Report | None = None

    def hear(self, round: int, attempt: int, tally: UpdateTally | None) -> None:
        """The coordinator of this attempt, which was followed, has told this; None: an older version."""
        if tally is not None and tally.deadline_ms is not None:
            tally = replace(tally, deadline_ms=min(tally.deadline_ms, round_ms(self._max_deadline_s)))
        self._of, self._word = (round, attempt), Report(tally, self._ctx.now) if tally is not None else None

    def of(self, round: int, attempt: int | None) -> Report | None:
        """What is known of this attempt; an earlier one's word says nothing of it."""
        return self._word if self._of == (round, attempt) else None


def told_by(proposal: Proposal) -> UpdateTally:
    """A global model says itself who is in it."""
    return UpdateTally(None, proposal.contributors, proposal.absent)


def round_ms(seconds: float) -> int:
    """Whole milliseconds, none below 0."""
    return max(0, round(1000 * seconds))
