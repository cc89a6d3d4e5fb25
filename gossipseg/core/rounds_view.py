"""What a user may see of the round under way. Values only."""

from __future__ import annotations

from dataclasses import dataclass

from gossipseg.core.types import Proposal, Site


@dataclass(frozen=True, slots=True)
class SiteRow:
    """A listed site's part in the round under way, this site included."""

    site: Site
    state: str
    """delivered | fetching | has_update | training | asked | stored | left_out; of sites that another one
    asks: coordinator | alive, or why it can do nothing (dead, paused …)."""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class RoundsView:
    """The round under way as this site sees it."""

    round: int
    attempt: int | None
    """None: nobody can lead."""
    coordinator: Site | None
    leading: bool
    state: str
    """starting | catching_up | training | waiting | alone | ending | finished | paused | failed, or a
    leader's stage: asking | recovering | gathering | aggregating | storing."""
    reason: str
    """Why, in a word or two; "" where the state says it."""
    quorum: int
    deadline_s: float | None
    """Seconds until sites that have not delivered are left out; None: no quorum has delivered yet."""
    committed: int
    rows: tuple[SiteRow, ...]
    last: Proposal | None
    """The newest common model known to be committed."""
