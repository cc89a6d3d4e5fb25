"""Progress reports of coordinators: which updates they have. Other sites keep and show them.

A report proves nothing: it is shown as its coordinator's, with its age.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from gossipseg.core.context import Context
from gossipseg.core.types import Proposal, UpdateTally


@dataclass(frozen=True, slots=True)
class Report:
    """A report, and when it came (the core's clock)."""

    tally: UpdateTally
    at: float


class ProgressReports:
    """The last report. It is not kept on disk: the next one comes soon."""

    def __init__(self, ctx: Context, max_deadline_s: float) -> None:
        self._ctx, self._max_deadline_s = ctx, max_deadline_s
        self._of: tuple[int, int] | None = None
        self._word: Report | None = None

    def hear(self, round: int, attempt: int, tally: UpdateTally | None) -> None:
        """Keep the report of an attempt that this site follows; None: an older version sent none."""
        if tally is not None and tally.deadline_ms is not None:
            tally = replace(tally, deadline_ms=min(tally.deadline_ms, round_ms(self._max_deadline_s)))
        self._of, self._word = (round, attempt), Report(tally, self._ctx.now) if tally is not None else None

    def of(self, round: int, attempt: int | None) -> Report | None:
        """What is known of this attempt; an earlier attempt's report does not count."""
        return self._word if self._of == (round, attempt) else None


def told_by(proposal: Proposal) -> UpdateTally:
    """The report that a global model implies: it names its own contributors."""
    return UpdateTally(None, proposal.contributors, proposal.absent)


def round_ms(seconds: float) -> int:
    """Whole milliseconds, none below 0."""
    return max(0, round(1000 * seconds))
