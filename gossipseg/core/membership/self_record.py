"""This site's own membership record: announce, refute, leave."""

from __future__ import annotations

from dataclasses import replace

from gossipseg.core.context import Context
from gossipseg.core.membership.dissemination import Dissemination
from gossipseg.core.membership.suspicion import LocalHealth
from gossipseg.core.types import AliveRecord, LeftRecord, Record, Site, SuspectRecord, payload


class SelfRecord:
    """Announces and refutes by broadcasts, and lowers the local health when it has to refute."""

    def __init__(self, ctx: Context, news: Dissemination, health: LocalHealth) -> None:
        self._ctx, self._news, self._health = ctx, news, health
        self.leaving = False
        self.refuted: Site | None = None
        """Sites whose accusation this site has just refuted; the failure detector answers them at once."""
        self._foreign_lives: dict[int, int] = {}
        """How often each nonce of another daemon with this name was heard."""

    @property
    def incarnation(self) -> int:
        return self._news.own.incarnation

    def announce(self, incarnation: int) -> None:
        """Announce this site under a (new) incarnation, which is on disk before any peer hears of it."""
        own = self._news.own
        if self.leaving or not isinstance(own, AliveRecord):
            return
        draft = replace(own, incarnation=incarnation, cases=self._ctx.info.cases, signature=b"")
        self._news.own = replace(draft, signature=self._ctx.sign(payload(draft)))
        self._ctx.persist()
        self._news.add(self._news.own)

    def say_goodbye(self) -> None:
        """Announce that this site leaves; from now on it counts as left."""
        self.leaving = True
        draft = LeftRecord(self._ctx.site, self._news.own.nonce, self._news.own.incarnation)
        self._news.own = replace(draft, signature=self._ctx.sign(payload(draft)))
        self._news.add(self._news.own)

    def hear(self, record: Record, *, believed: bool = True) -> bool:
        """Refute an accusation of this site, or outbid another daemon of its name; False: no need to.

        `believed`: whether an accusation says something of this site's own health.
        """
        if self.leaving:
            return False
        own = self._news.own
        if isinstance(record, SuspectRecord):
            if record.incarnation != own.incarnation:
                return False
            self._health.change(+1 if believed else 0)
            self.announce(own.incarnation + 1)
            self.refuted = record.accuser
            return True
        if record.nonce == own.nonce or (record.incarnation, record.nonce) < (own.incarnation, own.nonce):
            return False
        lives = self._foreign_lives
        lives[record.nonce] = lives.get(record.nonce, 0) + 1
        if lives[record.nonce] > 1:
            # The first time may be a trace of an earlier run; a daemon that answers back is running now.
            self._ctx.note_seldom(
                "duplicate_site", self._ctx.site, "another daemon runs under this site's name"
            )
        self.announce(record.incarnation + 1)
        return True
