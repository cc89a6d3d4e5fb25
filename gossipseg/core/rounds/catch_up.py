"""Catch-up on global models: which one is the newest, fetching it, and telling others of a commit."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from gossipseg.core import messages
from gossipseg.core.context import Call, CallOutcome, Context
from gossipseg.core.membership.members import Membership
from gossipseg.core.params import RoundsParams
from gossipseg.core.rounds.acceptor import Acceptor
from gossipseg.core.rounds.transfers import Download, Downloads
from gossipseg.core.types import Proposal, Site

STRIKES = 3
"""Times a site may fail to name or send the newer global model that it announced. Then its announcements are
ignored for a while: otherwise one liar could keep every site from leading."""
DOUBT_S, LONGEST_DOUBT_S = 60.0, 3600.0
TELLINGS = 3
"""Notices of a commit per site; after that the site learns of the commit from pings."""


@dataclass(slots=True)
class CommitNotice:
    """The notices to one site of the newest commit."""

    left: int = TELLINGS
    at: float = 0.0
    asking: bool = False


class CatchUp:
    """Finds and fetches newer global models. `on_here(proposal)` is called when a committed model's file has
    come."""

    def __init__(
        self,
        ctx: Context,
        params: RoundsParams,
        membership: Membership,
        acceptor: Acceptor,
        downloads: Downloads,
        on_here: Callable[[Proposal], None],
    ) -> None:
        self._ctx, self._params, self._membership = ctx, params, membership
        self._acceptor, self._downloads, self._on_here = acceptor, downloads, on_here
        self.known: Proposal | None = None
        """The committed model whose file is not here yet."""
        self.offered: Proposal | None = None
        """The model that a coordinator wants stored, whose file is not here yet."""
        self._hints: dict[Site, int] = {}
        """Newest committed round, by site that stated it in a message of a round."""
        self._strikes: dict[Site, int] = {}
        self._doubted_until: dict[Site, float] = {}
        self._asking = False
        self._ask_at = -math.inf
        self._telling: dict[Site, CommitNotice] = {}
        self._told: Proposal | None = None

    # -------------------------------------------------------------- what is known

    def committed_at(self, site: Site) -> int:
        """The newest round that a live site of this run says is committed."""
        member = self._membership.members.get(site)
        if member is None or not member.live or member.refused or member.quarantined:
            return 0
        if self._ctx.now < self._doubted_until.get(site, -math.inf):
            return 0
        info = member.info
        same = info is not None and info.contract != "" and info.contract == self._ctx.info.contract
        return max(info.committed if info is not None and same else 0, self._hints.get(site, 0))

    @property
    def newest(self) -> int:
        """The newest round that a reachable site knows to be committed."""
        return max((self.committed_at(s) for s in self._membership.members), default=0)

    @property
    def behind(self) -> bool:
        """Whether a newer global model than this site's own is available."""
        return self.newest > self._acceptor.committed

    def hint(self, site: Site, round: int) -> None:
        """Note from a message that `frm` knows this round to be committed."""
        self._hints[site] = max(round, self._hints.get(site, 0))

    def forget(self, site: Site) -> None:
        """Forget a restarted site's hints: its disk may be empty."""
        self._hints.pop(site, None)
        self._believe(site)

    def _believe(self, site: Site) -> None:
        self._strikes.pop(site, None)
        self._doubted_until.pop(site, None)

    def _doubt(self, site: Site) -> None:
        """Count a failure of a site to name or send the newer model that it announced."""
        strikes = self._strikes[site] = self._strikes.get(site, 0) + 1
        if strikes >= STRIKES:
            self._hints.pop(site, None)
            pause_s = min(LONGEST_DOUBT_S, DOUBT_S * 2 ** min(16, strikes - STRIKES))
            self._doubted_until[site] = self._ctx.now + pause_s

    def learn(self, proposal: Proposal, frm: Site) -> None:
        """Note that `frm` knows the model to be committed."""
        if proposal.round <= self._acceptor.committed:
            return
        if fault := self._acceptor.fault(proposal):
            self._ctx.refused(frm, fault, proposal.model)
            return
        self.hint(frm, proposal.round)
        if self._acceptor.holds(proposal.model.hash):
            self._on_here(proposal)
        elif self.known is None or proposal.round > self.known.round:
            self.known = proposal

    def offer(self, proposal: Proposal, frm: Site) -> None:
        """Note that the coordinator `frm` wants the model stored; its file is to be fetched there."""
        self.offered = proposal
        self._want(proposal, [frm])

    def wanted(self, hash: str) -> bool:
        return any(p is not None and p.model.hash == hash for p in (self.known, self.offered))

    # -------------------------------------------------------------- fetching

    def settle(self) -> None:
        if self.known is not None and self.known.round <= self._acceptor.committed:
            self.known = None
        offered = self.offered
        if offered is not None and (
            offered.round != self._acceptor.round or offered.attempt <= self._acceptor.barred
        ):
            self.offered = None
        if self._acceptor.run and self._ctx.now >= self._ask_at and self.behind:
            self._catch_up()
        self._tell()

    def _catch_up(self) -> None:
        wanted = self.known.round if self.known is not None else self._acceptor.committed + 1
        sources = [s for s in self._membership.members if self.committed_at(s) >= wanted]
        if not sources:
            return
        self._ctx.rng.shuffle(sources)
        if self.known is not None:
            if self.known.model.hash not in self._downloads.wants:
                self._want(self.known, sources)
        elif not self._asking:
            self._asking = True
            newest = max(sources, key=self.committed_at)
            body = messages.Fetch(self._acceptor.run, self._acceptor.quorum.key, "global", wanted, 0, "")
            self._ctx.request(newest, body, self._params.request_timeout_s, self._on_named)

    def _on_named(self, call: Call, outcome: CallOutcome) -> None:
        self._asking = False
        self._ask_later()
        if isinstance(outcome, messages.FetchReply) and outcome.proposal is not None:
            self.learn(outcome.proposal, call.to)
            if self.known is not None:
                self._ask_at = self._ctx.now
        if self.known is None and self.committed_at(call.to) > self._acceptor.committed:
            self._doubt(call.to)

    def _ask_later(self) -> None:
        self._ask_at = self._ctx.now + self._params.poll_interval_s * (0.5 + self._ctx.rng.random())

    def _want(self, proposal: Proposal, sources: list[Site]) -> None:
        self._downloads.want(proposal.model, proposal.round, proposal.attempt, sources, self.on_global)

    def on_global(self, want: Download, reason: str) -> None:
        """Handle a global model whose file has come, or cannot be had."""
        hash = want.model.hash
        if reason:
            if self.known is not None and self.known.model.hash == hash:
                self.known = None  # ask again which one is the newest
                self._ask_later()
                for site in want.sources:
                    self._doubt(site)
            return
        known, offered = self.known, self.offered
        if known is not None and known.model.hash == hash:
            self.known = None
            self._believe(want.frm)
            self._on_here(known)
        elif offered is not None and offered.model.hash == hash:
            self.offered = None
            self._acceptor.store(offered)

    # -------------------------------------------------------------- telling

    def announce(self, proposal: Proposal) -> None:
        """Tell every site that the model is committed."""
        self._told = proposal
        others = [s for s in self._acceptor.quorum.sites if s != self._ctx.site]
        self._telling = {site: CommitNotice(at=self._ctx.now) for site in others}

    def _tell(self) -> None:
        if self._told is None or self._told != self._acceptor.record.committed:
            self._telling = {}
        for site, telling in self._telling.items():
            if not telling.asking and self._ctx.now >= telling.at:
                assert self._told is not None
                telling.asking = True
                telling.left -= 1
                body = messages.Commit(self._acceptor.run, self._acceptor.quorum.key, self._told)
                self._ctx.request(site, body, self._params.request_timeout_s, self._on_told, telling)

    def _on_told(self, call: Call, outcome: CallOutcome) -> None:
        telling: CommitNotice = call.about
        telling.asking = False
        telling.at = self._ctx.now + self._params.request_timeout_s
        over = isinstance(outcome, messages.CommitReply) or not telling.left
        if over and self._telling.get(call.to) is telling:
            del self._telling[call.to]

    def next_deadline(self) -> float:
        due = min((t.at for t in self._telling.values() if not t.asking), default=math.inf)
        if not self._asking and self._ask_at > self._ctx.now and self.behind:
            due = min(due, self._ask_at)
        return due
