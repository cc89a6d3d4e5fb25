"""What one site tells another: records piggybacked on pings, and everything it believes in a push/pull."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from gossipseg.core.context import Context
from gossipseg.core.membership.member import Member
from gossipseg.core.params import MembershipParams
from gossipseg.core.site_pool import SitePool
from gossipseg.core.types import (
    AliveRecord,
    LeftRecord,
    MemberState,
    Record,
    Site,
    SuspectRecord,
)

RETRANSMIT_FACTOR = 4


def retransmit_limit(live: int) -> int:
    """Transmissions of a record by one site: 4·log10(N+1), rounded up."""
    return RETRANSMIT_FACTOR * math.ceil(math.log10(live + 1))


class Broadcasts:
    """A queue that prefers what was sent least often, and of that the newest."""

    __slots__ = ("_is_current", "_sent", "size")

    def __init__(self, is_current: Callable[[Record], bool]) -> None:
        self._sent: list[list[Record]] = [[]]
        """_sent[k]: records sent k times; the newest last."""
        self._is_current = is_current
        self.size = 0

    def add(self, record: Record) -> None:
        self._sent[0].append(record)
        self.size += 1

    def take(self, room: int, limit: int) -> tuple[Record, ...]:
        """Up to `room` records for one message; each is sent at most `limit` times."""
        if not self.size:
            return ()
        while len(self._sent) <= limit:
            self._sent.append([])
        taken: list[Record] = []
        moved: list[tuple[int, Record]] = []
        for k, tier in enumerate(self._sent):
            while tier and len(taken) < room:
                record = tier.pop()
                if not self._is_current(record):
                    self.size -= 1
                    continue
                taken.append(record)
                moved.append((k + 1, record))
            if len(taken) >= room:
                break
        for k, record in moved:
            if k < limit:
                self._sent[k].append(record)
            else:
                self.size -= 1
        return tuple(taken)


PUSH_PULL_FLAT_UP_TO = 32


class Dissemination:
    """The records that go out, this site's own among them. Reads the members, changes none."""

    def __init__(
        self,
        ctx: Context,
        params: MembershipParams,
        *,
        members: Mapping[Site, Member],
        live: SitePool,
        own: AliveRecord | LeftRecord,
    ) -> None:
        self._ctx, self._params, self._members, self._live = ctx, params, members, live
        self.own = own
        self._broadcasts = Broadcasts(self._is_current)
        self._limit_for = (-1, 0)

    def add(self, record: Record) -> None:
        """Queue a record for dissemination, up to the retransmit limit."""
        self._broadcasts.add(record)

    def piggyback_for(self, site: Site) -> tuple[Record, ...]:
        """Records to send with a message to `site`; accusations of that site come first, so that it can
        refute them."""
        live = len(self._live) + 1
        if live != self._limit_for[0]:
            self._limit_for = (live, retransmit_limit(live))
        news = self._broadcasts.take(self._params.gossip_records_per_message, self._limit_for[1])
        member = self._members.get(site)
        if member is None or member.state is MemberState.ALIVE or member.state is MemberState.UNSEEN:
            return news
        held: list[Record] = [r for r in (member.alive, member.left, member.accusation) if r is not None]
        return (*held, *news)

    def known(self) -> tuple[Record, ...]:
        """Everything this site believes, for a push/pull."""
        records: list[Record] = [self.own]
        # A site that missed a suspicion learns it from its next push/pull at the latest.
        forgotten = self._ctx.now - max(self._params.dead_kept_s, self.push_pull_interval_s())
        for member in self._members.values():
            state = member.state
            if state is MemberState.LEFT and member.left is not None:
                records.append(member.left)
            elif member.alive is None or (state is MemberState.DEAD and member.since <= forgotten):
                continue
            else:
                records.append(member.alive)  # first: accusations of an unknown incarnation are dropped
                if member.suspicion is not None:
                    records.extend(member.suspicion.accusers.values())
        return tuple(records)

    def push_pull_interval_s(self) -> float:
        """The interval grows with log2 N beyond 32 sites (memberlist's pushPullScale), as the message size
        does."""
        live = len(self._live) + 1
        few = PUSH_PULL_FLAT_UP_TO
        scale = 1 if live <= few else 1 + math.ceil(math.log2(live / few))
        return self._params.push_pull_interval_s * scale

    def _is_current(self, record: Record) -> bool:
        """Whether no newer record makes disseminating this one pointless."""
        if record.site == self._ctx.site:
            return record is self.own
        member = self._members.get(record.site)
        if member is None:
            return False
        if isinstance(record, SuspectRecord):
            return record.incarnation == member.incarnation and member.suspicion is not None
        return record is member.alive or record is member.left
