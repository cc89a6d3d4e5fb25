"""Rounds under a rotating coordinator: what this site trains, what it answers, and when it leads.

What belongs here: the site's way through a federation round, the answers to a coordinator, whose turn it
is. What must not: what may be promised or stored (acceptor.py), how an attempt is led (coordinator.py),
how files come (fetching.py), the worker's states (training.py).

A site trains from the last committed common model, keeps its update, and waits for the next one. Every
handler only changes what is known; `settle`, called after each event, does what follows from it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from gossipseg.core import events, messages
from gossipseg.core.acceptor import Acceptor
from gossipseg.core.commons import Commons
from gossipseg.core.context import Context
from gossipseg.core.coordinator import Attempt, Stage
from gossipseg.core.effects import Aggregate, RoundsRecord, StartRound
from gossipseg.core.electorate import Electorate, run_of
from gossipseg.core.fetching import Fetcher, Serving
from gossipseg.core.member import Member
from gossipseg.core.membership import Membership
from gossipseg.core.params import RoundsParams
from gossipseg.core.plan import Plan
from gossipseg.core.rounds_view import RoundsView, SiteRow
from gossipseg.core.turns import Turns
from gossipseg.core.types import ModelRef, Phase, Proposal, Site

REFUSED = "refused_"
"""Begins the reason of a site whose update did not pass the worker's checks."""


class Worker(Protocol):
    """What the rounds need of training.py."""

    @property
    def free(self) -> bool:
        """The worker is up and has nothing to do."""
        ...

    def aggregate(self, effect: Aggregate) -> None: ...

    def resume(self) -> None:
        """Start the next round if the worker is idle and the plan has one; say the phase."""
        ...


class Rounds:
    """One site's part in the rounds under a rotating coordinator."""

    def __init__(
        self,
        ctx: Context,
        params: RoundsParams,
        membership: Membership,
        *,
        budget: int | None,
        every_rounds: int,
        finetune_rounds: int,
        max_model_bytes: int,
        record: RoundsRecord | None,
    ) -> None:
        self._ctx, self._params, self._membership = ctx, params, membership
        self.worker: Worker
        """Set by the node."""
        electorate = Electorate.of((ctx.site, *membership.members), params.quorum)
        self.acceptor = Acceptor(ctx, electorate, record or RoundsRecord(), max_model_bytes=max_model_bytes)
        self.fetcher = Fetcher(ctx, params, self.acceptor)
        self.serving = Serving(ctx, params)
        self.commons = Commons(ctx, params, membership, self.acceptor, self.fetcher, self._commit)
        self.turns = Turns(ctx, params, membership, self.acceptor)
        self.plan = Plan(
            ctx,
            params,
            self.acceptor,
            self.commons,
            budget=budget,
            every_rounds=every_rounds,
            finetune_rounds=finetune_rounds,
        )
        self.attempt: Attempt | None = None
        """Led by this site."""
        self.making: Aggregate | None = None
        """What the worker combines now, for whichever attempt."""
        self.collected: dict[str, ModelRef] = {}
        self._rest_until = -math.inf
        self._told: set[tuple[Site, str]] = set()
        ctx.say(committed=self.acceptor.committed)

    @property
    def members(self) -> Iterable[Site]:
        """The other listed sites."""
        return self._membership.members

    @property
    def limit(self) -> int:
        return self._params.max_parallel_transfers

    # -------------------------------------------------------------- what happens to this site

    def start(self) -> None:
        self.turns.start()

    def on_change(self, member: Member, ended: bool) -> None:
        """Something about a member changed; `ended`: the life known so far is over."""
        self.plan.on_change(member)
        if ended:
            self.turns.restarted(member.site)
            self.commons.forget(member.site)

    def set_sites(self, sites: Iterable[Site]) -> None:
        """The list was reloaded: `sites` are the others."""
        self.acceptor.relist(Electorate.of((self._ctx.site, *sites), self._params.quorum))
        if self.attempt is not None:
            self._end("sites_changed")

    def ready(self, event: events.WorkerReady) -> None:
        """The worker is up, the contract known. (The caller persists.)"""
        self.acceptor.begin(run_of(self._ctx.federation, self._ctx.info.contract))
        self.making = None
        self.plan.ready(event.last_global)

    def lost(self) -> None:
        """The worker died: what it did is lost."""
        self.plan.lost()
        self.making = None
        if self.attempt is not None and self.attempt.stage is Stage.AGGREGATING:
            self._end("worker_lost")

    def leave(self) -> None:
        if self.attempt is not None:
            self._end("leaving")
        self.fetcher.drop(lambda want: False)

    def on_aggregated(self, event: events.Aggregated | events.AggregationFailed) -> bool:
        """False: nothing of the kind was asked for."""
        making, self.making = self.making, None
        if making is None or (making.round, making.attempt) != (event.round, event.attempt):
            return False
        attempt = self.attempt
        if attempt is not None and (attempt.round, attempt.attempt) == (event.round, event.attempt):
            if isinstance(event, events.Aggregated):
                attempt.on_aggregated(event)
            else:
                attempt.on_failed(event)
        return True

    def on_transfer(self, event: events.TransferDone | events.TransferFailed) -> bool:
        """False: it is none of a round's."""
        transfer = self.serving.ended(event)
        if transfer is not None and self.attempt is not None:
            self.attempt.transferred(transfer.to)
        return transfer is not None

    # -------------------------------------------------------------- what follows from it

    def settle(self) -> None:
        """Do whatever is due now, until nothing is."""
        for _ in range(8):
            before = self._mark()
            self._settle_once()
            if self._mark() == before:
                return

    def _mark(self) -> tuple[object, ...]:
        attempt = self.attempt
        stage = (attempt.attempt, attempt.stage) if attempt is not None else None
        return self.acceptor.record, stage, self.turns.current, self.worker.free, len(self.fetcher.wants)

    def _settle_once(self) -> None:
        self.commons.settle()
        self._lead()
        self.fetcher.drop(self._still_wanted)
        self.fetcher.settle()
        self.worker.resume()

    def _still_wanted(self, want: Any) -> bool:
        attempt = self.attempt
        if want.model.kind == "update":
            return attempt is not None and attempt.round == want.round
        recovering = attempt is not None and attempt.stage is Stage.RECOVERING
        return self.commons.wanted(want.model.hash) or (recovering and want.round == self.acceptor.round)

    def _lead(self) -> None:
        attempt = self.attempt
        if attempt is not None:
            attempt.settle()
            if attempt.stage is Stage.COMMITTED:
                assert attempt.proposal is not None
                self.attempt = None
                self._commit(attempt.proposal)
                self.commons.announce(attempt.proposal)
            elif attempt.over:
                self._end(attempt.reason)
        able = self.plan.update is not None and self._ctx.info.phase is Phase.TRAINING
        waiting = able and self.attempt is None and self._quorum_in_sight()
        self.turns.settle(mine=self._why_not_me(), waiting=waiting)
        mine = self.turns.coordinator == self._ctx.site
        if mine and waiting and self._ctx.now >= self._rest_until:
            self._begin()

    def _why_not_me(self) -> str:
        if self._ctx.info.phase is not Phase.TRAINING:
            return self._ctx.info.phase.value
        return "" if self.acceptor.run and self.attempt is None else "leading"

    def _quorum_in_sight(self) -> bool:
        there = sum(1 for s in self._membership.members if not self.turns.objection(s) or self._votes(s))
        return there + 1 >= self.acceptor.electorate.votes

    def _votes(self, site: Site) -> bool:
        """It may be unable to lead, or to contribute, and yet store."""
        return site in self._membership.alive and not self._membership.members[site].refused

    def _begin(self) -> None:
        round, number = self.acceptor.round, self.turns.current
        assert number is not None and number > self.acceptor.promised
        self.acceptor.change(promised_round=round, promised_attempt=number)
        self._ctx.note("round_led", None, "", round=round, attempt=number)
        self.attempt = Attempt(
            self._ctx,
            self._params,
            self._membership,
            self.acceptor,
            self.fetcher,
            self.serving,
            self,
            round,
            number,
        )
        self.plan.heard()
        self.attempt.settle()

    def _end(self, reason: str) -> None:
        """This site's attempt has come to nothing: the next one's turn."""
        attempt, self.attempt = self.attempt, None
        assert attempt is not None
        if not attempt.over:
            attempt.give_up(reason)
        if attempt.round != self.acceptor.round:
            return
        # Where every site has tried in vain already, the next tries come later and later.
        tries = attempt.attempt // len(self.acceptor.electorate.sites)
        self._rest_until = self._ctx.now + min(8, tries) * self._params.patience_s
        if self.turns.current is None or self.turns.current <= attempt.attempt:
            self.turns.current = attempt.attempt
            self.turns.pass_on(reason)

    def _commit(self, proposal: Proposal) -> None:
        """A quorum has stored it, and it is here."""
        coordinator = self.acceptor.electorate.coordinator(proposal.round, proposal.attempt)
        if not self.acceptor.commit(proposal):
            return
        self.plan.committed()
        self.collected = {}
        self._ctx.note(
            "round_committed",
            coordinator,
            "",
            round=proposal.round,
            attempt=proposal.attempt,
            hash=proposal.model.hash,
            contributors=list(proposal.contributors),
            absent=dict(proposal.absent),
        )
        refused = dict(proposal.absent).get(self._ctx.site, "")
        if refused.startswith(REFUSED):
            self._ctx.note("update_refused", coordinator, refused.removeprefix(REFUSED), round=proposal.round)

    def next_deadline(self) -> float:
        due = [
            self.commons.next_deadline(),
            self.fetcher.next_deadline(),
            self.turns.next_deadline(),
            self.plan.next_deadline(),
        ]
        if self.attempt is not None:
            due.append(self.attempt.next_deadline())
        elif self._rest_until > self._ctx.now:
            due.append(self._rest_until)
        return min(due)

    # -------------------------------------------------------------- the worker (coordinator.Shop)

    def worker_free(self) -> bool:
        return self.worker.free and self.making is None

    def aggregate(self, effect: Aggregate) -> None:
        self.making = effect
        self.worker.aggregate(effect)

    def learn(self, proposal: Proposal, frm: Site) -> None:
        self.commons.learn(proposal, frm)

    def next_round(self, round: int) -> StartRound | None:
        """The worker's next order, for training.py; None: wait."""
        attempt = self.attempt
        hold = attempt is not None and (
            attempt.stage is Stage.AGGREGATING
            or (attempt.stage is Stage.GATHERING and attempt.delivered >= self.acceptor.electorate.quorum)
        )
        return self.plan.next_round(round, hold=hold)

    # -------------------------------------------------------------- what a coordinator asks

    def on_request(self, frm: Site, token: int, body: messages.Request) -> None:
        """Prepare, Fetch, Accept or Commit."""
        reason = self._stranger(frm, body)
        if reason:
            self._ctx.respond(token, refusal(body, reason))
            return
        self._ctx.respond(token, ANSWERS[type(body)](self, frm, body))

    def _stranger(self, frm: Site, body: Any) -> str:
        reason = self.acceptor.stranger(frm, body.run, body.sites)
        if reason in ("other_run", "other_sites") and (frm, reason) not in self._told:
            self._told.add((frm, reason))
            self._ctx.note("round_refused", frm, reason)
        if not reason and self._ctx.info.phase is Phase.LEAVING:
            return "leaving"
        return reason

    def _on_prepare(self, frm: Site, body: messages.Prepare) -> messages.PrepareReply:
        acceptor = self.acceptor
        reason = acceptor.prepare(frm, body)
        if reason == "behind":
            self.commons.hint(frm, body.round - 1)
        if reason:
            committed = acceptor.record.committed if reason == "already_committed" else None
            return messages.PrepareReply(False, acceptor.promised, reason, committed=committed)
        self._heard_of(body.attempt)
        phase = self._ctx.info.phase
        update = self.plan.update if phase is not Phase.FINISHED else None
        waiting_for = "" if update is not None else WAITING_FOR.get(phase, phase.value)
        return messages.PrepareReply(
            True, acceptor.promised, "", acceptor.accepted, None, update, waiting_for
        )

    def _heard_of(self, attempt: int) -> None:
        """Its coordinator is at work on this round's attempt, the latest there is."""
        self.plan.heard()
        own = self.attempt
        if own is not None and own.attempt < attempt:
            self._end("later_attempt")
        if self.turns.current is None or self.turns.current <= attempt:
            self.turns.progress()

    def _on_fetch(self, frm: Site, body: messages.Fetch) -> messages.FetchReply:
        acceptor = self.acceptor
        committed = acceptor.record.committed
        if body.kind == "global" and not body.hash:
            if committed is None:
                return messages.FetchReply("reject", "not_here")
            return messages.FetchReply("accept", "", committed.model, committed)
        model, reason = self._update_for(frm, body) if body.kind == "update" else self._common(body)
        if model is None:
            return messages.FetchReply("reject", reason, None, committed)
        if not self.serving.start(frm, model):
            return messages.FetchReply("busy", "busy")
        return messages.FetchReply("accept", "", model)

    def _update_for(self, frm: Site, body: messages.Fetch) -> tuple[ModelRef | None, str]:
        """This site's own update: for the coordinator of the attempt promised last, nobody else."""
        acceptor, update = self.acceptor, self.plan.update
        if acceptor.electorate.coordinator(body.round, body.attempt) != frm:
            return None, "not_coordinator"
        if body.round != acceptor.round or update is None or update.hash != body.hash:
            return None, "not_here"
        return (update, "") if body.attempt >= acceptor.promised else (None, "later_attempt")

    def _common(self, body: messages.Fetch) -> tuple[ModelRef | None, str]:
        """A common model that is stored here, for any listed site."""
        proposal = self.acceptor.holds(body.hash) if body.kind == "global" else None
        return (proposal.model, "") if proposal is not None else (None, "not_here")

    def _on_accept(self, frm: Site, body: messages.Accept) -> messages.AcceptReply:
        acceptor, proposal = self.acceptor, body.proposal
        reason = acceptor.objection(frm, proposal)
        if reason == "behind":
            self.commons.hint(frm, proposal.round - 1)
        if reason:
            committed = acceptor.record.committed if reason == "already_committed" else None
            return messages.AcceptReply("reject", reason, acceptor.promised, committed)
        if acceptor.holds(proposal.model.hash):
            acceptor.store(proposal)
            self._heard_of(proposal.attempt)
            return messages.AcceptReply("stored", "", acceptor.promised)
        self._heard_of(proposal.attempt)
        self.commons.offer(proposal, frm)
        return messages.AcceptReply("missing", "", acceptor.promised)

    def _on_commit(self, frm: Site, body: messages.Commit) -> messages.CommitReply:
        reason = self.acceptor.fault(body.proposal)
        if reason:
            return messages.CommitReply("reject", reason)
        self.commons.learn(body.proposal, frm)
        return messages.CommitReply("known")

    # -------------------------------------------------------------- files

    def expects(self, frm: Site, hash: str) -> ModelRef | None:
        """The file whose stream may come from `frm` now."""
        return self.fetcher.expected(frm, hash)

    def kept_models(self) -> list[ModelRef]:
        """Files that the store must not collect."""
        record, running = self.acceptor.record, self.plan.running
        models = [p.model for p in (record.committed, record.accepted) if p is not None]
        models += [record.update] if record.update is not None else []
        models += list(self.collected.values()) + (self.attempt.kept if self.attempt is not None else [])
        models += [model for _, model in self.making.updates] if self.making is not None else []
        models += [t.model for t in self.serving.transfers.values()]
        models += [w.model for w in self.fetcher.wants.values()]
        if running is not None and running.order.start_from is not None:
            models.append(running.order.start_from)
        return models

    # -------------------------------------------------------------- the view

    def view(self) -> RoundsView:
        acceptor, attempt, turns = self.acceptor, self.attempt, self.turns
        state, reason = self._state()
        deadline = attempt.deadline if attempt is not None else math.inf
        return RoundsView(
            round=acceptor.round,
            attempt=attempt.attempt if attempt is not None else turns.current,
            coordinator=self._ctx.site if attempt is not None else turns.coordinator,
            leading=attempt is not None,
            state=state,
            reason=reason,
            quorum=acceptor.electorate.quorum,
            deadline_s=max(0.0, deadline - self._ctx.now) if deadline < math.inf else None,
            committed=acceptor.committed,
            rows=tuple(self._row(site) for site in acceptor.electorate.sites),
            last=acceptor.record.committed,
        )

    def _state(self) -> tuple[str, str]:
        """(state, reason) of this site."""
        phase, running = self._ctx.info.phase, self.plan.running
        if self.attempt is not None:
            return self.attempt.stage.value, f"{self.attempt.delivered} delivered"
        if phase is not Phase.TRAINING:
            return phase.value, ""
        if running is not None:
            alone = self.plan.update is not None
            return ("alone", "no common model came") if alone else ("training", "")
        if self.commons.behind:
            return "catching_up", f"round {self.commons.newest} is committed"
        if self.plan.update is None:
            return "starting", "waiting for other sites to answer"
        coordinator = self.turns.coordinator
        if coordinator is None or not self._quorum_in_sight():
            return "waiting", "too few sites are there"
        return "waiting", f"for {coordinator}"

    def _row(self, site: Site) -> SiteRow:
        attempt, me = self.attempt, site == self._ctx.site
        if attempt is not None and not me:
            row = attempt.rows[site]
            if row.stored and attempt.stage is Stage.STORING:
                return SiteRow(site, "stored")
            return SiteRow(site, *attempt.state_of(row))
        if me:
            return SiteRow(site, "has_update" if self.plan.update is not None else self._state()[0])
        if site == self.turns.coordinator:
            return SiteRow(site, "coordinator")
        member = self._membership.members.get(site)
        if member is None:
            return SiteRow(site, "left_out", "unlisted")
        if reason := self.turns.objection(site):
            return SiteRow(site, "left_out", reason)
        return SiteRow(site, member.state.value, member.reason)


WAITING_FOR: Mapping[Phase, str] = {Phase.STARTING: "not_ready"}
_Answer = Callable[[Rounds, Site, Any], messages.Reply]
ANSWERS: Mapping[type, _Answer] = {
    messages.Prepare: Rounds._on_prepare,
    messages.Fetch: Rounds._on_fetch,
    messages.Accept: Rounds._on_accept,
    messages.Commit: Rounds._on_commit,
}
"""Who answers which request."""


def refusal(body: messages.Request, reason: str) -> messages.Reply:
    """No, whatever is asked."""
    match body:
        case messages.Prepare():
            return messages.PrepareReply(False, -1, reason)
        case messages.Fetch():
            return messages.FetchReply("reject", reason)
        case messages.Accept():
            return messages.AcceptReply("reject", reason)
    return messages.CommitReply("reject", reason)
