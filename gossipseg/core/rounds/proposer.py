"""One attempt at a round, as its coordinator leads it: ask, gather, aggregate, have stored, commit.

"Paxos Made Simple" (Lamport 2001): phase 1 is Prepare, phase 2 is Accept. The coordinator may choose the
value only where its quorum of promises reports none. Then it gathers the updates and has them aggregated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Protocol

from gossipseg.core import events, messages
from gossipseg.core.context import Call, CallOutcome, Context
from gossipseg.core.effects import Aggregate
from gossipseg.core.membership.members import Membership
from gossipseg.core.params import RoundsParams
from gossipseg.core.rounds.acceptor import Acceptor
from gossipseg.core.rounds.progress_report import told_by
from gossipseg.core.rounds.stages import OVER, TRANSITIONS, Stage, StageEvent
from gossipseg.core.rounds.transfers import Download, Downloads, Uploads
from gossipseg.core.rounds.update_collection import PeerProgress, RoundCache, UpdateCollection
from gossipseg.core.types import ModelRef, Phase, Proposal, Site, UpdateTally

HEARTBEAT_SHARE = 0.25
"""Interval of the coordinator's messages to a site that has done its part, as a share of the patience."""
POLLED_SITES = 32
"""Largest federation that is polled at the full rate. In a larger one each site is asked less often, to limit
the coordinator's messages."""


class ProposerHost(RoundCache, Protocol):
    """What an attempt needs from this site."""

    def worker_free(self) -> bool:
        """Whether the worker is free to aggregate updates."""
        ...

    def aggregate(self, effect: Aggregate) -> None:
        """Let the worker aggregate the updates."""
        ...

    def learn(self, proposal: Proposal, frm: Site) -> None:
        """Note that a site knows this model to be committed."""
        ...


@dataclass(slots=True)
class Proposer:
    """An attempt that this site leads. `settle` is called after every event; see the module docstring."""

    ctx: Context
    params: RoundsParams
    membership: Membership
    acceptor: Acceptor
    downloads: Downloads
    uploads: Uploads
    host: ProposerHost
    round: int
    attempt: int
    stage: Stage = Stage.ASKING
    reason: str = ""
    """Why the attempt was given up."""
    rows: dict[Site, PeerProgress] = field(default_factory=dict)
    collection: UpdateCollection = field(init=False)
    proposal: Proposal | None = None
    progress_at: float = 0.0
    began_at: float = 0.0

    def __post_init__(self) -> None:
        now = self.ctx.now
        self.began_at = self.progress_at = now
        others = (s for s in self.acceptor.quorum.sites if s != self.ctx.site)
        self.rows = {site: PeerProgress(site, ask_at=now) for site in others}
        self.collection = UpdateCollection(
            self.ctx,
            self.params,
            self.membership,
            self.acceptor,
            self.downloads,
            self.host,
            self.round,
            self.attempt,
            self.rows,
            began_at=now,
            progress=self._progress,
        )

    @property
    def over(self) -> bool:
        return self.stage in OVER

    @property
    def kept(self) -> list[ModelRef]:
        """Files that the store must keep."""
        models = [model for _, model in self.collection.chosen]
        models += [r.delivered for r in self.rows.values() if r.delivered is not None]
        return models + ([self.proposal.model] if self.proposal is not None else [])

    def settle(self) -> None:
        """Take every step that is due."""
        if self.over:
            return
        if reason := self._hopeless():
            self.give_up(reason)
            return
        if self.stage in (Stage.ASKING, Stage.GATHERING):
            self._count_promises()
        if self.stage is Stage.GATHERING and self.collection.settle() and self.host.worker_free():
            self._move(StageEvent.COMPLETE)
            self.host.aggregate(self.collection.close())
        if self.stage is Stage.STORING:
            self._count_stores()
        if not self.over:
            self._ask()

    def give_up(self, reason: str) -> None:
        self.reason = reason
        self._move(StageEvent.GIVE_UP)

    def _move(self, evidence: StageEvent) -> None:
        self.stage = TRANSITIONS[self.stage, evidence]
        self._progress()

    def _progress(self) -> None:
        """Restart the patience of the attempt."""
        self.progress_at = self.ctx.now

    # -------------------------------------------------------------- whether the attempt can succeed

    def _hopeless(self) -> str:
        """Why the attempt is to be given up; "" while it can succeed."""
        quorum, phase = self.acceptor.quorum, self.ctx.info.phase
        if self.acceptor.round != self.round:
            return "already_committed"
        if self.acceptor.promised != self.attempt:
            return "later_attempt"
        refusals = [r.refused for r in self.rows.values() if r.refused]
        if len(quorum.sites) - len(refusals) < quorum.size:
            return refusals[0]
        needs_worker = self.stage in (Stage.ASKING, Stage.GATHERING, Stage.AGGREGATING)
        if needs_worker and phase is not Phase.TRAINING:
            return phase.value
        if self._over_patience(self.began_at) and self._lately_agreed() + 1 < quorum.size:
            return "no_quorum"
        if self._at_work():
            self._progress()
        return self._why_stuck() if self._over_patience(self.progress_at) else ""

    def _over_patience(self, since: float) -> bool:
        """Whether the patience is over. (The sum is that of next_deadline: a difference may round to the
        other side.)"""
        return self.ctx.now >= since + self.params.patience_s

    def _lately_agreed(self) -> int:
        return sum(1 for r in self.rows.values() if not self._over_patience(r.agreed_at))

    def _at_work(self) -> bool:
        """Whether some operation is under way that will change what is known here."""
        if self.stage is Stage.AGGREGATING:
            return True
        if self.stage is Stage.STORING:
            assert self.proposal is not None
            return any(self.uploads.to(s, self.proposal.model.hash) for s in self.rows)
        if self.stage is Stage.RECOVERING:
            return any(self.downloads.streaming(w) for w in self.downloads.wants)
        return self.stage is Stage.GATHERING and self.collection.hopeful

    def _why_stuck(self) -> str:
        return {
            Stage.ASKING: "no_quorum",
            Stage.GATHERING: "too_few_updates",
            Stage.RECOVERING: "not_found",
        }.get(self.stage, "not_stored")

    def tally(self) -> UpdateTally:
        """Which sites have delivered, which are left out, and how long the others still have."""
        proposal = self.proposal
        return told_by(proposal) if proposal is not None else self.collection.tally()

    # -------------------------------------------------------------- asking

    def _ask(self) -> None:
        """Send Prepare until there is a model to store, then Accept; repeat as a sign of life."""
        due = [r for r in self.rows.values() if not r.asking and self.ctx.now >= r.ask_at]
        if not due:
            return
        body = self._question()
        for row in due:
            row.asking = True
            self.ctx.request(row.site, body, self.params.request_timeout_s, self._on_answer, (self, row))

    def _question(self) -> messages.Request:
        run, sites = self.acceptor.run, self.acceptor.quorum.key
        if self.stage is not Stage.STORING:
            return messages.Prepare(run, sites, self.round, self.attempt, self.tally())
        assert self.proposal is not None
        return messages.Accept(run, sites, self.proposal)

    def next_deadline(self) -> float:
        if self.over:
            return math.inf
        due = min((r.ask_at for r in self.rows.values() if not r.asking), default=math.inf)
        deadline = self.collection.deadline
        waiting = self.stage is Stage.GATHERING and deadline > self.ctx.now
        return min(due, self.progress_at + self.params.patience_s, deadline if waiting else math.inf)

    def _pause_s(self, row: PeerProgress) -> float:
        patience_s, poll_s = self.params.patience_s, self.params.poll_interval_s
        member = self.membership.members.get(row.site)
        if row.refused or member is None or not member.live:
            return patience_s
        if row.stored or (self.stage is not Stage.STORING and row.delivered is not None):
            return max(poll_s, HEARTBEAT_SHARE * patience_s)
        return min(poll_s * max(1.0, len(self.rows) / POLLED_SITES), HEARTBEAT_SHARE * patience_s)

    def _on_answer(self, call: Call, outcome: CallOutcome) -> None:
        attempt, row = call.about
        assert attempt is self
        row.asking = False
        row.ask_at = self.ctx.now + self._pause_s(row)
        if self.over:
            return
        if not isinstance(outcome, events.RequestFailed):
            row.heard_at = self.ctx.now
        if isinstance(outcome, messages.PrepareReply):
            self._on_prepared(row, outcome)
        elif isinstance(outcome, messages.AcceptReply):
            self._on_accepted(row, outcome)
        if isinstance(outcome, messages.PrepareReply) and self.stage is Stage.STORING:
            row.ask_at = self.ctx.now  # it was asked in the stage before

    def _on_prepared(self, row: PeerProgress, reply: messages.PrepareReply) -> None:
        if not reply.promise:
            self._refused(row, reply.reason, reply.committed)
            return
        if reply.accepted is not None and (fault := self._odd(reply.accepted)):
            self.ctx.refused(row.site, fault, reply.accepted.model)
            self._refused(row, fault, None)  # its promise does not count: passing over the model is then safe
            return
        row.agreed_at = self.ctx.now
        if not row.promised:
            self._progress()
        row.promised, row.accepted, row.refused = True, reply.accepted, ""
        row.update, row.waiting_for = reply.update, reply.waiting_for

    def _odd(self, accepted: Proposal) -> str:
        """Why an honest site cannot have stored the model for this round, or why the model may not come
        here."""
        if accepted.round != self.round or accepted.attempt >= self.attempt:
            return "other_model"
        return self.acceptor.fault(accepted)

    def _on_accepted(self, row: PeerProgress, reply: messages.AcceptReply) -> None:
        if reply.verdict == "reject":
            self._refused(row, reply.reason, reply.committed)
            return
        row.agreed_at = self.ctx.now
        if reply.verdict == "stored" and not row.stored:
            row.stored, row.promised = True, True
            self._progress()

    def _refused(self, row: PeerProgress, reason: str, committed: Proposal | None) -> None:
        if committed is not None:
            self.host.learn(committed, row.site)
        if reason in ("behind", "not_ready"):
            row.waiting_for = reason  # it will catch up
        elif reason != "already_committed":
            row.refused = reason or "reject"

    # -------------------------------------------------------------- phase 1: promises, and what they report

    def _count_promises(self) -> None:
        promised = [r for r in self.rows.values() if r.promised and not r.refused]
        if len(promised) + 1 < self.acceptor.quorum.size:
            return
        own = self.acceptor.accepted
        reported = [(r.accepted, r.site) for r in promised if r.accepted is not None]
        reported += [(own, self.ctx.site)] if own is not None else []
        if not reported:
            if self.stage is Stage.ASKING:
                self._move(StageEvent.PROMISED)
            return
        newest = max((proposal for proposal, _ in reported), key=lambda p: p.attempt)
        self._move(StageEvent.REPORTED)
        self.proposal = replace(newest, attempt=self.attempt)
        if self.acceptor.holds(newest.model.hash):
            self._propose(StageEvent.FOUND)
            return
        sources = [site for proposal, site in reported if proposal.model.hash == newest.model.hash]
        self.downloads.want(newest.model, self.round, newest.attempt, sources, self._on_found)

    def _on_found(self, want: Download, reason: str) -> None:
        if self.stage is not Stage.RECOVERING:
            return
        if reason:
            self.give_up("not_found")
        else:
            self._propose(StageEvent.FOUND)

    # -------------------------------------------------------------- the worker's result

    def on_aggregated(self, event: events.Aggregated) -> None:
        """Take the aggregated model. It must still be of a quorum's updates."""
        if self.stage is not Stage.AGGREGATING:
            return
        contributors = tuple(sorted(event.contributors))
        self.collection.refuse(event.refused)
        absent = self.collection.absent(contributors)
        model = replace(event.model, kind="global", round=self.round)
        model = self.acceptor.ledger.sign(model, run=self.acceptor.run, attempt=self.attempt)
        proposal = Proposal(self.round, self.attempt, model, contributors, absent)
        if reason := self.acceptor.fault(proposal) or self.acceptor.quorum.fault(proposal):
            self.give_up(reason)
            return
        self.proposal = proposal
        self._propose(StageEvent.MADE)

    def on_failed(self, event: events.AggregationFailed) -> None:
        """Handle updates that the worker could not aggregate."""
        if self.stage is Stage.AGGREGATING:
            self.collection.refuse(event.refused)
            self.give_up(event.reason or "aggregation_failed")

    # -------------------------------------------------------------- phase 2

    def _propose(self, evidence: StageEvent) -> None:
        """Store the model here first, then ask the others to store it."""
        assert self.proposal is not None
        if not self.acceptor.store(self.proposal):
            self.give_up("later_attempt")
            return
        self._move(evidence)
        for row in self.rows.values():
            row.ask_at = self.ctx.now

    def _count_stores(self) -> None:
        stored = 1 + sum(1 for r in self.rows.values() if r.stored)
        if stored >= self.acceptor.quorum.size:
            self._move(StageEvent.STORED)

    def transferred(self, to: Site) -> None:
        """Note that a file has reached a site, which may have stored it now."""
        row = self.rows.get(to)
        if row is not None and self.stage is Stage.STORING:
            row.ask_at = self.ctx.now
