"""What a user may see of the round under way. Reads the parts, changes none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gossipseg.core.context import Context
from gossipseg.core.membership.members import Membership
from gossipseg.core.rounds.rounds import Rounds
from gossipseg.core.rounds.stages import Stage
from gossipseg.core.types import Phase, Proposal, Site, UpdateTally


@dataclass(frozen=True, slots=True)
class SiteRow:
    """A listed site's part in the round under way, this site included."""

    site: Site
    state: str
    """The site's state as its coordinator sees it, or as far as it is known here.

    If this site leads or the coordinator reported it: delivered | fetching | has_update | training | asked |
    stored | left_out. Otherwise: coordinator, or the state of a member.
    """
    reason: str = ""


@dataclass(frozen=True, slots=True)
class RoundsView:
    """The round under way as this site sees it."""

    round: int
    attempt: int | None
    """The attempt under way; None: no site can lead."""
    coordinator: Site | None
    leading: bool
    state: str
    """This site's state, or its stage if it leads.

    starting | catching_up | training | waiting | alone | ending | finished | paused | failed. A leader's
    stage: asking | recovering | gathering | aggregating | storing.
    """
    reason: str
    """The reason in a few words; "" where the state says it."""
    quorum: int
    deadline_s: float | None
    """Seconds until sites that have not delivered are left out.

    None: the deadline is not set, or is not known here (`delivered` is None then).
    """
    delivered: tuple[Site, ...] | None
    """Sites whose updates the coordinator has; None: no report has come."""
    missing: tuple[SiteRow, ...]
    """The other sites; where `delivered` is None, the sites that cannot deliver as seen from here."""
    told_s: float | None
    """Age of the coordinator's last report; None: this site leads, or has no report."""
    committed: int
    rows: tuple[SiteRow, ...]
    last: Proposal | None
    """The newest global model known to be committed."""


def view_of(rounds: Rounds, ctx: Context, membership: Membership) -> RoundsView:
    """The round under way as this site sees it."""
    acceptor, attempt, rotation = rounds.acceptor, rounds.attempt, rounds.rotation
    state, reason = _own_state(rounds, ctx)
    word = rounds.progress_reports.of(acceptor.round, rotation.current) if attempt is None else None
    tally = attempt.tally() if attempt is not None else word.tally if word is not None else None
    told_s = ctx.now - word.at if word is not None else None
    told = _told(tally)
    rows = tuple(_row(rounds, ctx, membership, site, told) for site in acceptor.quorum.sites)
    return RoundsView(
        round=acceptor.round,
        attempt=attempt.attempt if attempt is not None else rotation.current,
        coordinator=ctx.site if attempt is not None else rotation.coordinator,
        leading=attempt is not None,
        state=state,
        reason=reason,
        quorum=acceptor.quorum.quorum,
        deadline_s=_left_s(tally, told_s or 0.0),
        delivered=tuple(r.site for r in rows if _delivered(told, r)) if told is not None else None,
        missing=_missing(rows, told),
        told_s=told_s,
        committed=acceptor.committed,
        rows=rows,
        last=acceptor.record.committed,
    )


def _own_state(rounds: Rounds, ctx: Context) -> tuple[str, str]:
    """(state, reason) of this site."""
    phase, running, update = ctx.info.phase, rounds.schedule.running, rounds.schedule.update
    if rounds.attempt is not None:
        delivered = len(rounds.attempt.collection.updates())
        return rounds.attempt.stage.value, f"{delivered} delivered"
    if phase is not Phase.TRAINING:
        return phase.value, ""
    if running is not None:
        return ("alone", "no global model came") if update is not None else ("training", "")
    if rounds.catch_up.behind:
        return "catching_up", f"round {rounds.catch_up.newest} is committed"
    if update is None:
        return "starting", "until other sites have answered"
    coordinator = rounds.rotation.coordinator
    if coordinator is None or not rounds.quorum_in_sight():
        return "waiting", "too few sites are there"
    return "waiting", f"for {coordinator}"


def _left_s(tally: UpdateTally | None, age_s: float) -> float | None:
    """Seconds left until the reported deadline, given the report's age."""
    if tally is None or tally.deadline_ms is None:
        return None
    return max(0.0, tally.deadline_ms / 1000 - age_s)


_Told = Mapping[Site, SiteRow]


def _told(tally: UpdateTally | None) -> _Told | None:
    """The rows of the sites in the coordinator's report."""
    if tally is None:
        return None
    delivered = {site: SiteRow(site, "delivered") for site in tally.delivered}
    return delivered | {site: SiteRow(site, "left_out", reason) for site, reason in tally.left_out}


def _delivered(told: _Told, row: SiteRow) -> bool:
    return row.site in told and told[row.site].state == "delivered"


def _missing(rows: tuple[SiteRow, ...], told: _Told | None) -> tuple[SiteRow, ...]:
    """The sites that have not delivered, as far as is known here."""
    if told is None:
        return tuple(row for row in rows if row.state == "left_out")
    return tuple(told.get(row.site, row) for row in rows if not _delivered(told, row))


def _row(rounds: Rounds, ctx: Context, membership: Membership, site: Site, told: _Told | None) -> SiteRow:
    attempt = rounds.attempt
    if attempt is not None and site != ctx.site:
        row = attempt.rows[site]
        stored = row.stored and attempt.stage is Stage.STORING
        return SiteRow(site, "stored") if stored else SiteRow(site, *attempt.collection.state_of(row))
    if told is not None and site in told:
        return told[site]
    if site == ctx.site:
        has_update = rounds.schedule.update is not None
        return SiteRow(site, "has_update" if has_update else _own_state(rounds, ctx)[0])
    state, objection = membership.members[site].state.value, rounds.rotation.objection(site)
    if told is None and objection:
        return SiteRow(site, "left_out", objection)
    if site == rounds.rotation.coordinator:
        return SiteRow(site, "coordinator")
    return SiteRow(site, state, objection if objection != state else "")
