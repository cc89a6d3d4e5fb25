"""Which site's turn it is to coordinate a round, as seen from here.

A wrong view costs time, never agreement.
"""

from __future__ import annotations

import math

from gossipseg.core.context import Context
from gossipseg.core.membership.members import Membership
from gossipseg.core.params import RoundsParams
from gossipseg.core.rounds.acceptor import Acceptor
from gossipseg.core.types import MemberState, Phase, Site

JITTER = 0.25
"""Largest random share by which patience differs, so that two sites seldom lose it together."""


HEARD_SHARE = 0.5
"""Share of the patience within which a recent message outweighs a suspicion. The suspected coordinator may
only be late with its pings, and giving up its attempt would lose the progress made."""


class LeaderRotation:
    """The attempt that this site expects to see led now."""

    def __init__(
        self, ctx: Context, params: RoundsParams, membership: Membership, acceptor: Acceptor
    ) -> None:
        self._ctx, self._params, self._membership, self._acceptor = ctx, params, membership, acceptor
        self._round = acceptor.round
        self._floor = 0
        self._met_by = math.inf
        """When sites that have not been met begin to count as absent."""
        self.current: int | None = None
        """The attempt whose coordinator should lead now; None: no site can lead, as far as is known."""
        self._quiet_at = math.inf
        self._waiting = False
        self._heard: tuple[int, float] | None = None
        """(attempt, time) of the last message from its coordinator as such."""

    def start(self) -> None:
        self._met_by = self._ctx.now + self._params.patience_s

    @property
    def coordinator(self) -> Site | None:
        if self.current is None:
            return None
        return self._acceptor.quorum.coordinator(self._round, self.current)

    def objection(self, site: Site) -> str:
        """Why another site cannot lead now; "" if it can."""
        member = self._membership.members.get(site)
        if member is None:
            return "unlisted"
        if member.state is MemberState.UNSEEN:
            return "" if self._ctx.now < self._met_by else "unseen"
        if member.state is not MemberState.ALIVE:
            return member.state.value
        if member.refused:
            return "contract_mismatch"
        if member.quarantined:
            return "quarantined"
        if member.info is not None and member.info.phase is not Phase.TRAINING:
            return member.info.phase.value
        return ""

    def heard(self, attempt: int) -> None:
        """Note that the coordinator works on the attempt."""
        self._heard = (attempt, self._ctx.now)
        if self.current is None or self.current <= attempt:
            self.progress()

    def progress(self) -> None:
        """Restart the patience of the current attempt."""
        share = 1 + JITTER * self._ctx.rng.random()
        self._quiet_at = self._ctx.now + share * self._params.patience_s

    def settle(self, *, mine: str, waiting: bool) -> None:
        """Choose the attempt. `mine`: why this site itself cannot lead. `waiting`: it has delivered all it
        can, and does not lead."""
        if self._round != self._acceptor.round:
            self._round, self._floor, self.current, self._heard = self._acceptor.round, 0, None, None
        if waiting and not self._waiting:
            self.progress()
        self._waiting = waiting
        if self.current is not None and waiting and self._ctx.now >= self._quiet_at:
            self.pass_on(self.current, "silent")
        current = self._first(mine)
        if current == self.current:
            return
        passed = self.coordinator
        if current is not None and self.current is not None and current > self.current and waiting:
            assert passed is not None
            why = mine if passed == self._ctx.site else self.objection(passed)
            self._note(passed, self.current, why or "later_attempt")
        self.current = current
        self.progress()

    def pass_on(self, attempt: int, reason: str) -> None:
        """Pass the turn to a later attempt: the current one has failed."""
        site = self._acceptor.quorum.coordinator(self._round, attempt)
        self._note(site, attempt, reason)
        self._floor, self.current = max(self._floor, attempt + 1), None

    def restarted(self, site: Site) -> None:
        """Note that a site has restarted: the attempt it led is over."""
        if self.current is not None and self.current == self._acceptor.promised and site == self.coordinator:
            self.pass_on(self.current, "restarted")

    def next_deadline(self) -> float:
        if self.current is None or not self._waiting:
            return math.inf
        believed = self._heard_until(self.current)
        return min(self._quiet_at, believed) if believed > self._ctx.now else self._quiet_at

    def _heard_until(self, attempt: int) -> float:
        """Until when a suspicion of the attempt's coordinator is ignored."""
        if self._heard is None or self._heard[0] != attempt:
            return -math.inf
        return self._heard[1] + HEARD_SHARE * self._params.patience_s

    def _first(self, mine: str) -> int | None:
        """The first attempt, from the floor on, whose coordinator can lead it.

        (The search covers all sites and one more: the floor may be this site's own attempt, promised before a
        restart.)
        """
        promised, quorum = self._acceptor.promised, self._acceptor.quorum
        floor = max(self._floor, self._acceptor.barred + 1)
        for attempt in range(floor, floor + len(quorum.sites) + 1):
            site = quorum.coordinator(self._round, attempt)
            if site == self._ctx.site:
                if not mine and attempt > promised:
                    return attempt
            elif self.objection(site) in ("", self._doubted(attempt)):
                return attempt
        return None

    def _doubted(self, attempt: int) -> str:
        """The objection that is ignored for the current coordinator."""
        return MemberState.SUSPECT.value if self._ctx.now < self._heard_until(attempt) else ""

    def _note(self, site: Site, attempt: int, reason: str) -> None:
        self._ctx.note("round_passed", site, reason, round=self._round, attempt=attempt)
