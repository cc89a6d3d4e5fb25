"""Who is in the federation and in what state: records in, beliefs out (SWIM with suspicion, DSN 2002).

Only a site itself changes its incarnation (SWIM §4.2), so its records carry its own signature. Death follows
only from this site's own timer. Records of unlisted sites are dropped.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from enum import StrEnum

from gossipseg.core.context import Context
from gossipseg.core.membership import suspicion
from gossipseg.core.membership.census import Census
from gossipseg.core.membership.dissemination import Dissemination
from gossipseg.core.membership.member import Member
from gossipseg.core.membership.self_record import SelfRecord
from gossipseg.core.params import MembershipParams
from gossipseg.core.site_pool import SitePool
from gossipseg.core.types import (
    AliveRecord,
    LeftRecord,
    MemberState,
    PeerInfo,
    Phase,
    Record,
    Site,
    SuspectRecord,
    payload,
)

LAST_CALL_SHARE = 4.0
"""Ping timeouts between a suspect's last ping and its death."""
MAX_INCARNATION = 1 << 62
"""Largest accepted incarnation. Nobody restarts or refutes that often, and the number must fit the wire."""


class MemberEvent(StrEnum):
    """What can move a member from one state to another."""

    ALIVE = "alive"
    """An alive record of a newer incarnation."""
    SUSPECT = "suspect"
    """An accusation in the member's present incarnation."""
    TIMEOUT = "timeout"
    """A suspicion that was not refuted in time."""
    LEFT = "left"
    """The member's own goodbye, not older than what is known."""


TRANSITIONS: Mapping[tuple[MemberState, MemberEvent], MemberState] = {
    (MemberState.UNSEEN, MemberEvent.ALIVE): MemberState.ALIVE,
    (MemberState.SUSPECT, MemberEvent.ALIVE): MemberState.ALIVE,
    (MemberState.DEAD, MemberEvent.ALIVE): MemberState.ALIVE,
    (MemberState.LEFT, MemberEvent.ALIVE): MemberState.ALIVE,
    (MemberState.ALIVE, MemberEvent.SUSPECT): MemberState.SUSPECT,
    (MemberState.SUSPECT, MemberEvent.TIMEOUT): MemberState.DEAD,
    (MemberState.UNSEEN, MemberEvent.LEFT): MemberState.LEFT,
    (MemberState.ALIVE, MemberEvent.LEFT): MemberState.LEFT,
    (MemberState.SUSPECT, MemberEvent.LEFT): MemberState.LEFT,
    (MemberState.DEAD, MemberEvent.LEFT): MemberState.LEFT,
}
"""All changes of state; evidence without an entry changes none."""

NOTES: Mapping[MemberState, str] = {state: f"member_{state.value}" for state in MemberState}
ALIVE_REASONS: Mapping[MemberState, str] = {
    MemberState.UNSEEN: "joined",
    MemberState.SUSPECT: "refuted",
    MemberState.DEAD: "returned",
    MemberState.LEFT: "returned",
}


class Membership:
    """The members, the running suspicions and the records to disseminate."""

    def __init__(
        self,
        ctx: Context,
        params: MembershipParams,
        *,
        sites: Mapping[Site, str],
        address: str,
        incarnation: int,
    ) -> None:
        self._ctx, self._params = ctx, params
        self.members: dict[Site, Member] = {
            s: Member(s, address=sites[s]) for s in sorted(sites) if s != ctx.site
        }
        self.live = SitePool()
        """Alive or suspect members: the sites that are probed."""
        self.alive = SitePool()
        self.down: dict[Site, None] = dict.fromkeys(self.members)
        """Listed sites that are not live, the longest undialled first."""
        self.joined: list[Site] = []
        """Newly alive members that the failure detector has not seen yet."""
        self.census = Census()
        self.health = suspicion.LocalHealth(params.max_self_health)
        self.false_alarms = suspicion.FalseAlarms()
        self.watchers: list[Callable[[Member, bool], None]] = []
        """Called in this order with the arguments of `changed`."""
        own = AliveRecord(ctx.site, ctx.rng.getrandbits(62) + 1, incarnation, address, 0)
        self.news = Dissemination(ctx, params, members=self.members, live=self.live, own=own)
        self.self_record = SelfRecord(ctx, self.news, self.health)
        self._timers: list[tuple[float, Site]] = []
        self._grace_until = 0.0
        self._last_call_s = LAST_CALL_SHARE * params.probe_timeout_s

    # -------------------------------------------------------------- records

    def receive(self, records: Iterable[Record], synced_with: Site | None = None) -> int:
        """Take in verified records; returns how many changed something.

        Records that changed something are disseminated. Of the alive records in a push/pull (`synced_with`),
        only that site's own is. The others have been disseminated already, and a newcomer would repeat the
        whole list to everybody.
        """
        members, changed = self.members, 0
        for record in records:
            if not 0 < record.incarnation < MAX_INCARNATION:
                continue
            if record.site == self._ctx.site:
                changed += self._hear_of_itself(record)
                continue
            member = members.get(record.site)
            if member is None or member.alive is record:
                continue
            if isinstance(record, AliveRecord):
                if record.incarnation >= member.incarnation:
                    spread = synced_with is None or record.site == synced_with
                    changed += self._is_alive(member, record, spread)
            elif isinstance(record, LeftRecord):
                changed += self._has_left(member, record)
            else:
                changed += self._is_accused(member, record)
        return changed

    def _hear_of_itself(self, record: Record) -> bool:
        """Refute an accusation always; how well this site is, an accuser says whom others would believe."""
        if not isinstance(record, SuspectRecord):
            return self.self_record.hear(record)
        believed = not self.false_alarms.disbelieved(record.accuser, record.site, self._ctx.now)
        changed = self.self_record.hear(record, believed=believed)
        if changed:
            self.false_alarms.refuted(record.accuser, record.site, self._ctx.now, self._shortest_s)
        return changed

    @property
    def _shortest_s(self) -> float:
        """The shortest suspicion now."""
        return suspicion.minimum_timeout_s(len(self.live) + 1, self._params)

    def accuse(self, site: Site) -> bool:
        """Suspect `site`, which this site could not reach directly or through others; False: nothing
        changed."""
        member = self.members.get(site)
        if member is None or not member.live:
            return False
        me = self._ctx.site
        if member.suspicion is not None and me in member.suspicion.accusers:
            return False
        draft = SuspectRecord(site, member.incarnation, me)
        return self._is_accused(member, replace(draft, signature=self._ctx.sign(payload(draft))))

    def _is_alive(self, member: Member, record: AliveRecord, spread: bool) -> bool:
        newer = record.incarnation > member.incarnation
        tie = record.incarnation == member.incarnation and record.nonce > member.nonce
        if not newer and not (tie and member.state is not MemberState.LEFT):
            return False
        ended = member.nonce not in (0, record.nonce)
        if ended:
            self._new_life(member, record.nonce)
        member.incarnation, member.nonce, member.alive = record.incarnation, record.nonce, record
        member.address, member.cases = record.address, record.cases
        if newer and member.suspicion is not None:
            for accuser in member.suspicion.accusers.keys() - {self._ctx.site}:
                self.false_alarms.refuted(accuser, member.site, self._ctx.now, self._shortest_s)
        if newer:
            self._move(member, MemberEvent.ALIVE, ALIVE_REASONS.get(member.state, ""))
        if spread:
            self.news.add(record)
        self.changed(member, ended=ended)
        return True

    def _new_life(self, member: Member, nonce: int) -> None:
        if nonce == member.previous_nonce:
            self._ctx.note_seldom(
                "duplicate_site", member.site, "two running daemons take turns under this name"
            )
        member.previous_nonce = member.nonce
        member.agreed, member.hello_for, member.greeting = False, None, False

    def _has_left(self, member: Member, record: LeftRecord) -> bool:
        same_life = record.nonce == member.nonce
        if record.incarnation < member.incarnation or (
            record.incarnation == member.incarnation and not same_life
        ):
            return False
        if member.state is MemberState.LEFT and record.incarnation == member.incarnation:
            return False
        member.incarnation, member.nonce, member.left = record.incarnation, record.nonce, record
        self._move(member, MemberEvent.LEFT, "left")
        self.news.add(record)
        self.changed(member, ended=True)
        return True

    def _is_accused(self, member: Member, record: SuspectRecord) -> bool:
        listed = record.accuser in self.members or record.accuser == self._ctx.site
        if not listed or record.accuser == record.site or record.incarnation != member.incarnation:
            return False
        now = self._ctx.now
        if self.false_alarms.disbelieved(record.accuser, member.site, now):
            return False
        if member.state is MemberState.ALIVE:
            member.suspicion = suspicion.begin(record, len(self.live) + 1, now, self._params)
            by = "this site" if record.accuser == self._ctx.site else record.accuser
            self._move(member, MemberEvent.SUSPECT, f"no answer to {by}")
            self.changed(member)
        elif member.state is not MemberState.SUSPECT or member.suspicion is None:
            return False
        else:
            heard = member.last_heard
            not_before = heard + member.suspicion.minimum_s if heard is not None else 0.0
            if not suspicion.confirm(member.suspicion, record, not_before):
                return False
        heapq.heappush(self._timers, (member.suspicion.deadline - self._last_call_s, member.site))
        self.news.add(record)
        return True

    def changed(self, member: Member, *, ended: bool = False) -> None:
        """Report a member's change; `ended`: the incarnation known so far is over."""
        self.census.update(member)
        for watcher in self.watchers:
            watcher(member, ended)

    def quarantined(self, site: Site) -> bool:
        """Whether nothing is accepted from the site now."""
        member = self.members.get(site)
        return member is not None and member.quarantined

    # -------------------------------------------------------------- direct contact and time

    def heard(self, site: Site, info: PeerInfo | None) -> Member | None:
        """Note a message from `site` just now (authenticated by the connection)."""
        member = self.members.get(site)
        if member is None:
            return None
        now = self._ctx.now
        member.last_heard = now
        if member.blocked:
            member.blocked, member.refused = False, ""
            self.changed(member)
        if member.suspicion is not None and member.state is MemberState.SUSPECT:
            held = member.suspicion
            held.deadline, held.called = max(held.deadline, now + held.minimum_s), False
        old = member.info
        if info is None or info is old:
            return member
        member.info = info
        self.census.update(member)
        self._compare_lists(member, old)
        recount = info.cases not in (0, member.cases)
        if recount:
            member.cases = info.cases
        if recount or old is None or old.phase is not info.phase or old.contract != info.contract:
            self.changed(member)
        return member

    def _compare_lists(self, member: Member, old: PeerInfo | None) -> None:
        """Note once when a site's list becomes different from this site's."""
        ours, theirs = self._ctx.info.listed, member.info.listed if member.info is not None else ""
        if ours and theirs and theirs != ours and (old is None or old.listed != theirs):
            self._ctx.note("lists_differ", member.site, f"{theirs} there, {ours} here")

    def learn_phase(self, member: Member, phase: Phase) -> None:
        """Take the phase from an answer that carries no PeerInfo."""
        if member.info is not None and member.info.phase is not phase:
            member.info = replace(member.info, phase=phase)
            self.changed(member)

    def block(self, site: Site, reason: str, detail: str) -> None:
        """Record a failed authentication: `site` shows the wrong key (untrusted), or rejects ours
        (refused)."""
        member = self.members.get(site)
        if member is None:
            return
        text = f"{reason}: {detail}" if detail else reason
        if member.refused == text:
            return
        member.blocked, member.refused = True, text
        self._ctx.note("peer_refused", site, text)
        self.changed(member)

    def stalled(self) -> None:
        """Extend the suspicions: this site's own event loop stalled, and may have missed refutations."""
        self.health.change(+1)
        self._grace_until = self._ctx.now + self._params.probe_interval_s

    def expire(self) -> list[Site]:
        """Declare the suspects dead whose time is over; returns those whose time is nearly over.

        The latter are to be pinged once more: a lost refutation must not make a live site dead.
        """
        now, timers, calls = self._ctx.now, self._timers, []
        while timers and timers[0][0] <= now:
            _, site = heapq.heappop(timers)
            member = self.members.get(site)
            held = member.suspicion if member is not None else None
            if member is None or held is None or member.state is not MemberState.SUSPECT:
                continue
            due = max(held.deadline, self._grace_until)
            if not held.called and now >= due - self._last_call_s:
                held.called = True
                held.deadline = due = max(due, now + self._last_call_s)
                calls.append(site)
            if due > now:
                heapq.heappush(timers, (due if held.called else due - self._last_call_s, site))
                continue
            waited_s = now - held.started
            self._move(member, MemberEvent.TIMEOUT, f"suspected for {waited_s:.1f} s and did not refute")
            self.changed(member, ended=True)
        return calls

    def next_deadline(self) -> float | None:
        return self._timers[0][0] if self._timers else None

    # -------------------------------------------------------------- the list and the states

    def set_sites(self, sites: Mapping[Site, str]) -> list[Site]:
        """Take the reloaded list; returns the sites that are no longer in it."""
        removed = [s for s in self.members if s not in sites]
        for site in removed:
            member = self.members.pop(site)
            self.live.discard(site)
            self.alive.discard(site)
            self.down.pop(site, None)
            member.state, member.reason = MemberState.LEFT, "no longer listed"
            self.changed(member, ended=True)
            self.census.forget(site)
        for site in sorted(sites.keys() - {self._ctx.site}):
            known = self.members.get(site)
            if known is None:
                self.members[site] = Member(site, address=sites[site], since=self._ctx.now)
                self.down[site] = None
            elif known.alive is None:  # it has not said itself where it is
                known.address = sites[site]
        return removed

    def _move(self, member: Member, evidence: MemberEvent, reason: str) -> None:
        state = TRANSITIONS.get((member.state, evidence))
        if state is None:
            return
        if state is not MemberState.SUSPECT and state is not MemberState.DEAD:
            member.suspicion = None
        was_live = member.live
        member.state, member.reason, member.since = state, reason, self._ctx.now
        if state is MemberState.ALIVE:
            member.left = None
            self.alive.add(member.site)
        else:
            self.alive.discard(member.site)
        if member.live and not was_live:
            self.live.add(member.site)
            self.down.pop(member.site, None)
            self.joined.append(member.site)
        elif was_live and not member.live:
            self.live.discard(member.site)
            self.down[member.site] = None
        self._ctx.note(NOTES[state], member.site, reason)
