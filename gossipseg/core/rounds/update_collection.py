"""The updates of a round, as an attempt's coordinator gathers them: which sites deliver, which are left out
and why."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from gossipseg.core.context import Context
from gossipseg.core.effects import Aggregate
from gossipseg.core.membership.member import Member
from gossipseg.core.membership.members import Membership
from gossipseg.core.offences import verdict_is_offence
from gossipseg.core.params import RoundsParams
from gossipseg.core.rounds.acceptor import Acceptor
from gossipseg.core.rounds.leader_rotation import HEARD_SHARE
from gossipseg.core.rounds.progress_report import round_ms
from gossipseg.core.rounds.transfers import Download, Downloads
from gossipseg.core.types import MemberState, ModelRef, Proposal, Site, UpdateTally

COMING = ("training", "has_update", "fetching")
"""States of sites that will deliver."""
CANNOT = ("paused", "failed", "finished", "ending", "leaving")
"""Reasons for having no update that will not pass soon."""


@dataclass(slots=True)
class PeerProgress:
    """Another site's progress in an attempt."""

    site: Site
    promised: bool = False
    stored: bool = False
    refused: str = ""
    """Why the site makes no promise, for the whole attempt."""
    waiting_for: str = ""
    """Why the site has no update yet, by its own report."""
    update: ModelRef | None = None
    delivered: ModelRef | None = None
    failed: str = ""
    """Why the site's update will not be in the model."""
    broken: int = 0
    accepted: Proposal | None = None
    heard_at: float = -math.inf
    """When the site last answered at all."""
    agreed_at: float = -math.inf
    """When the site last agreed: it promised, stored, or was about to store."""
    asking: bool = False
    ask_at: float = 0.0


def state_of(
    row: PeerProgress, member: Member | None, *, fetching: bool, lately: bool, quiet: bool
) -> tuple[str, str]:
    """(state, reason) of a site while updates are gathered; with a reason the site will not deliver.

    `fetching`: its update is asked for. `lately`: it has just answered, whatever others suspect. `quiet`: it
    has answered nothing for longer than the patience.
    """
    if row.delivered is not None:
        return "delivered", ""
    if row.failed or row.refused:
        return "left_out", row.failed or row.refused
    if member is None:
        return "left_out", "unlisted"
    if member.state is not MemberState.ALIVE and not (lately and member.state is MemberState.SUSPECT):
        return "left_out", member.state.value
    if row.update is not None:
        return ("fetching" if fetching else "has_update"), ""
    if member.refused:
        return "left_out", "contract_mismatch"
    phase = member.info.phase.value if member.info is not None else ""
    if phase in CANNOT or row.waiting_for in CANNOT:
        return "left_out", phase if phase in CANNOT else row.waiting_for
    if quiet:
        return "left_out", "no_answer"
    return ("training" if row.promised or row.waiting_for else "asked"), ""


MAX_BROKEN = 3
"""Failed fetches of a site's update before the site is left out of the attempt."""


class RoundCache(Protocol):
    """What is kept between attempts at a round."""

    collected: dict[Site, ModelRef]
    """Each site's newest update of this round that is here, also from an earlier attempt."""
    condemned: set[str]
    """Hashes of updates of this round that the worker has rejected."""


@dataclass(slots=True)
class UpdateCollection:
    """Gathers updates. `progress` is called when an update has come, and when there are enough."""

    ctx: Context
    params: RoundsParams
    membership: Membership
    acceptor: Acceptor
    downloads: Downloads
    cache: RoundCache
    round: int
    attempt: int
    rows: Mapping[Site, PeerProgress]
    began_at: float
    progress: Callable[[], None]
    deadline: float = math.inf
    """When sites that have not delivered are left out; set when a quorum has delivered."""
    chosen: tuple[tuple[Site, ModelRef], ...] = ()
    """The updates that the worker aggregates."""
    _left_out: dict[Site, str] = field(default_factory=dict)

    # -------------------------------------------------------------- what is known

    def updates(self) -> dict[Site, ModelRef]:
        """The updates that are here, one for each site, this one's own among them."""
        record = self.acceptor.record
        updates = {r.site: r.delivered for r in self.rows.values() if r.delivered is not None}
        if record.update is not None and record.update_round == self.round:
            updates[self.ctx.site] = record.update
        return updates

    @property
    def enough(self) -> bool:
        """Whether a quorum has delivered."""
        return len(self.updates()) >= self.acceptor.quorum.quorum

    @property
    def hopeful(self) -> bool:
        """Whether there are enough updates, or another one will come."""
        return self.enough or any(state in COMING for state, _ in self._states().values())

    def state_of(self, row: PeerProgress) -> tuple[str, str]:
        """(state, reason) of a site; with a reason it will not deliver."""
        patience_s, now = self.params.patience_s, self.ctx.now
        want = self.downloads.wants.get(row.update.hash) if row.update is not None else None
        quiet = now >= max(row.heard_at, self.began_at) + patience_s
        lately = now < row.heard_at + HEARD_SHARE * patience_s
        fetching = want is not None and want.frm != ""
        if row.delivered is None and self.membership.quarantined(row.site):
            return "left_out", "quarantined"
        member = self.membership.members.get(row.site)
        return state_of(row, member, fetching=fetching, lately=lately, quiet=quiet)

    def _states(self) -> dict[Site, tuple[str, str]]:
        return {row.site: self.state_of(row) for row in self.rows.values()}

    def tally(self) -> UpdateTally:
        """The progress report for the other sites. Once the choice is made, later updates change nothing."""
        if self.chosen:
            delivered = tuple(s for s, _ in self.chosen if s not in self._left_out)
            return UpdateTally(None, delivered, tuple(sorted(self._left_out.items())))
        left_out = ((s, reason) for s, (_, reason) in self._states().items() if reason)
        left_ms = round_ms(self.deadline - self.ctx.now) if self.deadline < math.inf else None
        return UpdateTally(left_ms, tuple(sorted(self.updates())), tuple(sorted(left_out)))

    # -------------------------------------------------------------- gathering

    def settle(self) -> bool:
        """Fetch the available updates; True: a quorum has delivered, and no other site is waited for."""
        for row in self.rows.values():
            self._fetch(row)
        enough = self.enough
        if enough and self.deadline == math.inf:
            self.deadline = self.ctx.now + self.params.deadline_s
            self.progress()
        pending = any(state != "delivered" and not reason for state, reason in self._states().values())
        return enough and (not pending or self.ctx.now >= self.deadline)

    def close(self) -> Aggregate:
        """Hand the updates to the worker; the other sites are left out."""
        self.chosen = tuple(sorted(self.updates().items()))
        states = self._states().items()
        self._left_out = {s: reason or "late" for s, (state, reason) in states if state != "delivered"}
        return Aggregate(self.round, self.attempt, self.chosen)

    def _fetch(self, row: PeerProgress) -> None:
        update = row.update
        if update is None or row.delivered is not None or row.failed or row.refused:
            return
        if self.membership.quarantined(row.site):
            return
        if reason := self._unfit(row.site, update):
            row.failed = reason
            self.ctx.refused(row.site, reason, update)
        elif (here := self.cache.collected.get(row.site)) is not None and here.hash == update.hash:
            row.delivered = here
        elif update.hash not in self.downloads.wants:
            if self.acceptor.ledger.accept(update):
                self.ctx.persist()
            self.downloads.want(update, self.round, self.attempt, [row.site], self._on_update, row)

    def _unfit(self, site: Site, update: ModelRef) -> str:
        """Why a site's update is not fetched; "" if it is."""
        if update.kind != "update":
            return "other_model"
        acceptor = self.acceptor
        fault = acceptor.ledger.fault_of_update(site, update, acceptor.run, self.round)
        return fault or ("too_large" if acceptor.too_large(update) else "")

    def _on_update(self, want: Download, reason: str) -> None:
        row: PeerProgress = want.about
        if not reason:
            self.cache.collected[row.site] = row.delivered = want.model
            self.progress()
            return
        row.broken += 1
        row.update, row.ask_at = None, self.ctx.now  # perhaps it has another one by now
        row.failed = reason if row.broken >= MAX_BROKEN else ""

    # -------------------------------------------------------------- the worker's result

    def refuse(self, refused: tuple[tuple[Site, str], ...]) -> None:
        """Drop sites' updates that the worker could not use."""
        for site, reason in refused:
            self._left_out[site] = f"refused_{reason}"[:64]
            hash = dict(self.chosen)[site].hash if site in dict(self.chosen) else ""
            if site != self.ctx.site and verdict_is_offence(reason) and hash not in self.cache.condemned:
                self.cache.condemned.add(hash)  # the same update comes again in the next attempt
                self.ctx.offence(site, reason)

    def absent(self, contributors: tuple[Site, ...]) -> tuple[tuple[Site, str], ...]:
        """The listed sites that are not in the model, with the reason."""
        for site, _ in self.chosen:
            if site not in contributors:
                self._left_out.setdefault(site, "not_used")
        return tuple(sorted(self._left_out.items()))
