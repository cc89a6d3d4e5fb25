"""What follows from offences: they are counted, the peer is quarantined, and admitted again later."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from gossipseg.core.context import Context
from gossipseg.core.gossip.exchange import GossipExchange
from gossipseg.core.membership.members import Membership
from gossipseg.core.quarantine import PeerRecordSnapshot, Quarantine
from gossipseg.core.rounds.rounds import Rounds
from gossipseg.core.types import Site


class QuarantineEnforcer:
    """Keeps quarantined peers out of both exchanges."""

    def __init__(
        self,
        ctx: Context,
        quarantine: Quarantine,
        membership: Membership,
        gossip: GossipExchange,
        rounds: Rounds | None,
        counts: Counter[tuple[str, Site]],
        remembered: tuple[PeerRecordSnapshot, ...],
    ) -> None:
        self._ctx, self.quarantine, self._membership = ctx, quarantine, membership
        self._gossip, self._rounds, self._counts = gossip, rounds, counts
        self._remembered = remembered
        """Read from disk, as seconds until and since; applied once the clock of the start is known."""

    def start(self) -> None:
        """Continue from the state that the last run saved."""
        self.quarantine.restore(self._remembered, self._ctx.now)
        self._remembered = ()
        self.quarantine.forget(self._membership.members)
        for site in self._membership.members:
            if self.quarantine.until(site) is not None:
                self._shut_out(site)

    def settle(self) -> None:
        """Admit the peers whose quarantine is over."""
        if self._ctx.now < self.quarantine.next_deadline():
            return
        for site in self.quarantine.settle(self._ctx.now):
            self._let_in(site)
            self._ctx.note("quarantine_over", site)

    def judge(self) -> bool:
        """Count the offences of this step; True: there were some."""
        ctx = self._ctx
        offences, ctx.offences = ctx.offences, []
        for site, reason in offences:
            if site not in self._membership.members:
                continue
            self._counts["offences", site] += 1
            ctx.note("offence", site, reason)
            if self.quarantine.offend(site, reason, ctx.now):
                self._shut_out(site)
                until = self.quarantine.until(site)
                ctx.note("peer_quarantined", site, reason, seconds=(until or ctx.now) - ctx.now)
        if offences:
            ctx.persist()
        return bool(offences)

    def lift(self, site: Site) -> None:
        """Clear a peer's record, on an operator's order. (The caller persists.)"""
        lifted = self.quarantine.lift(site)
        self._let_in(site)
        self._ctx.note("quarantine_lifted", site, "" if lifted else "was_in_none")

    def keep(self, listed: Iterable[Site]) -> None:
        """Only these sites are listed now."""
        self.quarantine.forget(listed)

    def next_deadline(self) -> float:
        return self.quarantine.next_deadline()

    def records(self) -> tuple[PeerRecordSnapshot, ...]:
        """What must survive a restart."""
        return self._remembered or self.quarantine.records(self._ctx.now)

    def next_s(self, site: Site) -> float:
        """How long the site's next quarantine would last."""
        conduct = self.quarantine.conducts().get(site)
        return self.quarantine.duration_s(conduct.steps if conduct is not None else 0)

    def _shut_out(self, site: Site) -> None:
        member = self._membership.members[site]
        member.quarantined_until = self.quarantine.until(site)
        member.offence = self.quarantine.reason(site)
        self._gossip.shun(site)
        if self._rounds is not None:
            self._rounds.shun(site)
        self._membership.changed(member)

    def _let_in(self, site: Site) -> None:
        member = self._membership.members.get(site)
        if member is not None:
            member.quarantined_until, member.offence = None, ""
            self._membership.changed(member)
