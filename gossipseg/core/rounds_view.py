"""What a user may see of the round under way. Reads the parts, changes none."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gossipseg.core.context import Context
from gossipseg.core.membership import Membership
from gossipseg.core.stages import Stage
from gossipseg.core.types import Phase, Proposal, Site

if TYPE_CHECKING:
    from gossipseg.core.rounds import Rounds


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


def view_of(rounds: Rounds, ctx: Context, membership: Membership) -> RoundsView:
    """The round under way as this site sees it."""
    acceptor, attempt, turns = rounds.acceptor, rounds.attempt, rounds.turns
    state, reason = _own_state(rounds, ctx)
    deadline = attempt.gathering.deadline if attempt is not None else math.inf
    return RoundsView(
        round=acceptor.round,
        attempt=attempt.attempt if attempt is not None else turns.current,
        coordinator=ctx.site if attempt is not None else turns.coordinator,
        leading=attempt is not None,
        state=state,
        reason=reason,
        quorum=acceptor.electorate.quorum,
        deadline_s=max(0.0, deadline - ctx.now) if deadline < math.inf else None,
        committed=acceptor.committed,
        rows=tuple(_row(rounds, ctx, membership, site) for site in acceptor.electorate.sites),
        last=acceptor.record.committed,
    )


def _own_state(rounds: Rounds, ctx: Context) -> tuple[str, str]:
    """(state, reason) of this site."""
    phase, running, update = ctx.info.phase, rounds.plan.running, rounds.plan.update
    if rounds.attempt is not None:
        delivered = len(rounds.attempt.gathering.updates())
        return rounds.attempt.stage.value, f"{delivered} delivered"
    if phase is not Phase.TRAINING:
        return phase.value, ""
    if running is not None:
        return ("alone", "no common model came") if update is not None else ("training", "")
    if rounds.commons.behind:
        return "catching_up", f"round {rounds.commons.newest} is committed"
    if update is None:
        return "starting", "until other sites have answered"
    coordinator = rounds.turns.coordinator
    if coordinator is None or not rounds.quorum_in_sight():
        return "waiting", "too few sites are there"
    return "waiting", f"for {coordinator}"


def _row(rounds: Rounds, ctx: Context, membership: Membership, site: Site) -> SiteRow:
    if site == ctx.site:
        has_update = rounds.plan.update is not None
        return SiteRow(site, "has_update" if has_update else _own_state(rounds, ctx)[0])
    attempt, member = rounds.attempt, membership.members[site]
    if attempt is not None:
        row = attempt.rows[site]
        stored = row.stored and attempt.stage is Stage.STORING
        return SiteRow(site, "stored") if stored else SiteRow(site, *attempt.gathering.state_of(row))
    if reason := rounds.turns.objection(site):
        return SiteRow(site, "left_out", reason)
    return SiteRow(site, "coordinator" if site == rounds.turns.coordinator else member.state.value)
