"""Rounds under a rotating coordinator (docs/design/why-consensus.md).

A site trains from the last committed global model, keeps its update, and waits for the next one. Every
handler only changes what is known. `settle`, called after each event, acts on it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Protocol

from gossipseg.core import events, messages
from gossipseg.core.budget import Budget
from gossipseg.core.context import Context
from gossipseg.core.effects import Aggregate, RoundsRecord, StartRound
from gossipseg.core.exchange_times import ExchangeTimes
from gossipseg.core.manifests import ManifestLedger
from gossipseg.core.membership.member import Member
from gossipseg.core.membership.members import Membership
from gossipseg.core.params import RoundsParams
from gossipseg.core.rounds.acceptor import Acceptor
from gossipseg.core.rounds.catch_up import CatchUp
from gossipseg.core.rounds.leader_rotation import LeaderRotation
from gossipseg.core.rounds.participant import Participant
from gossipseg.core.rounds.progress_report import ProgressReports
from gossipseg.core.rounds.proposer import Proposer
from gossipseg.core.rounds.quorum import QuorumConfig, run_of
from gossipseg.core.rounds.round_schedule import RoundSchedule
from gossipseg.core.rounds.stages import Stage
from gossipseg.core.rounds.transfers import Downloads, Uploads
from gossipseg.core.types import ModelRef, Phase, Proposal, Site, UpdateTally

REFUSED = "refused_"
"""Prefix of the reason where a site's update failed the worker's checks."""


class WorkerPort(Protocol):
    """What the rounds need of worker_state.py."""

    @property
    def free(self) -> bool:
        """Whether the worker is up and idle."""
        ...

    def aggregate(self, effect: Aggregate) -> None: ...

    def resume(self) -> None:
        """Start the next round if the worker is idle and the schedule has one; report the phase."""
        ...


class Rounds:
    """One site's part in the rounds under a rotating coordinator."""

    def __init__(
        self,
        ctx: Context,
        params: RoundsParams,
        membership: Membership,
        *,
        budget: Budget,
        times: ExchangeTimes,
        finetune_rounds: int,
        max_model_bytes: int,
        record: RoundsRecord | None,
        ledger: ManifestLedger,
    ) -> None:
        self._ctx, self._params, self._membership = ctx, params, membership
        self._times = times
        self.worker: WorkerPort
        """Set by assembly.py."""
        quorum = QuorumConfig.of((ctx.site, *membership.members), params.quorum)
        self.acceptor = Acceptor(
            ctx,
            quorum,
            record or RoundsRecord(),
            ledger,
            max_model_bytes=max_model_bytes,
            patience_s=params.patience_s,
            last_round=budget.last_common(times, finetune_rounds),
        )
        self.downloads = Downloads(ctx, params, self.acceptor)
        self.uploads = Uploads(ctx, params)
        self.catch_up = CatchUp(ctx, params, membership, self.acceptor, self.downloads, self._commit)
        self.rotation = LeaderRotation(ctx, params, membership, self.acceptor)
        self.progress_reports = ProgressReports(ctx, params.deadline_s)
        self.schedule = RoundSchedule(
            ctx,
            params,
            self.acceptor,
            self.catch_up,
            budget=budget,
            times=times,
            finetune_rounds=finetune_rounds,
        )
        self.attempt: Proposer | None = None
        """The attempt that this site leads."""
        self.making: Aggregate | None = None
        """What the worker aggregates now, for whichever attempt."""
        self.collected: dict[Site, ModelRef] = {}
        self.condemned: set[str] = set()
        self._counted_from: int | None = None
        """This site's own rounds at the last global model, or when its worker first came up."""
        self._rest_until = -math.inf
        self._in_vain = 0
        """Attempts at this round that this site has led."""
        self._participant = Participant(
            ctx,
            self.acceptor,
            self.schedule,
            self.catch_up,
            self.uploads,
            self._heard_of,
            membership.quarantined,
        )
        ctx.say(committed=self.acceptor.committed)

    @property
    def members(self) -> Iterable[Site]:
        """The other listed sites."""
        return self._membership.members

    @property
    def limit(self) -> int:
        """Parallel file transfers: outgoing files, and incoming updates."""
        return self._params.max_parallel_transfers

    # -------------------------------------------------------------- events of this site

    def start(self) -> None:
        self.rotation.start()

    def on_change(self, member: Member, ended: bool) -> None:
        """Handle a member's change; `ended`: the incarnation known so far is over."""
        self.schedule.on_change(member)
        if ended:
            self.rotation.restarted(member.site)
            self.catch_up.forget(member.site)

    def shun(self, site: Site) -> None:
        """Drop a quarantined site's transfers and hints."""
        self.downloads.shun(site)

    def set_sites(self, sites: Iterable[Site]) -> None:
        """Apply a reloaded list: `sites` are the others."""
        quorum = QuorumConfig.of((self._ctx.site, *sites), self._params.quorum)
        if quorum == self.acceptor.quorum:
            return  # addresses or keys
        self.acceptor.relist(quorum)
        self.catch_up.offered = None  # its coordinator asked by the old list
        if self.attempt is not None:
            self._end("sites_changed")

    def ready(self, event: events.WorkerReady) -> None:
        """Begin: the worker is up, and the contract is known. (The caller persists.)"""
        self.acceptor.begin(run_of(self._ctx.federation, self._ctx.info.contract))
        self.making = None
        self.schedule.ready(event.last_global)

    def lost(self) -> None:
        """Handle the worker's death: its unfinished work is lost."""
        self.schedule.lost()
        self.making = None
        if self.attempt is not None and self.attempt.stage is Stage.AGGREGATING:
            self._end("worker_lost")

    def leave(self) -> None:
        if self.attempt is not None:
            self._end("leaving")
        self.downloads.drop(lambda want: False)

    def on_aggregated(self, event: events.Aggregated | events.AggregationFailed) -> bool:
        """Take the worker's aggregate; False: none was ordered."""
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
        """Handle the end of a transfer; False: it is not one of a round."""
        transfer = self.uploads.ended(event)
        if transfer is not None and self.attempt is not None:
            self.attempt.transferred(transfer.to)
        return transfer is not None

    # -------------------------------------------------------------- consequences

    def settle(self) -> None:
        """Act until nothing more is due."""
        for _ in range(8):
            before = self._mark()
            self._settle_once()
            if self._mark() == before:
                return

    def _mark(self) -> tuple[object, ...]:
        attempt = self.attempt
        stage = (attempt.attempt, attempt.stage) if attempt is not None else None
        return self.acceptor.record, stage, self.rotation.current, self.worker.free, len(self.downloads.wants)

    def _settle_once(self) -> None:
        self.catch_up.settle()
        self._lead()
        self.downloads.drop(self._still_wanted)
        self.downloads.settle()
        self.worker.resume()

    def _still_wanted(self, want: Any) -> bool:
        attempt = self.attempt
        if want.model.kind == "update":
            return attempt is not None and attempt.round == want.round
        recovering = attempt is not None and attempt.stage is Stage.RECOVERING
        return self.catch_up.wanted(want.model.hash) or (recovering and want.round == self.acceptor.round)

    def _lead(self) -> None:
        attempt = self.attempt
        if attempt is not None:
            attempt.settle()
            if attempt.stage is Stage.COMMITTED:
                assert attempt.proposal is not None
                self.attempt = None
                self._commit(attempt.proposal)
                self.catch_up.announce(attempt.proposal)
            elif attempt.over:
                self._end(attempt.reason)
        able = self.schedule.update is not None and self._ctx.info.phase is Phase.TRAINING
        waiting = able and self.attempt is None and not self.catch_up.behind and self.quorum_in_sight()
        self.rotation.settle(mine=self._why_not_me(), waiting=waiting)
        mine = self.rotation.coordinator == self._ctx.site
        if mine and waiting and self._ctx.now >= self._rest_until:
            self._begin()

    def _why_not_me(self) -> str:
        if self._ctx.info.phase is not Phase.TRAINING:
            return self._ctx.info.phase.value
        return "" if self.acceptor.run and self.attempt is None else "leading"

    def quorum_in_sight(self) -> bool:
        there = sum(
            1 for s in self._membership.members if not self.rotation.objection(s) or self._can_store(s)
        )
        return there + 1 >= self.acceptor.quorum.size

    def out_of_sight(self) -> list[tuple[Site, str]]:
        """The other sites that can neither lead (or contribute) nor store, and why."""
        found = ((s, self.rotation.objection(s)) for s in self._membership.members if not self._can_store(s))
        return [(site, objection) for site, objection in found if objection]

    def count_from_here(self) -> None:
        """Start to count own rounds without a global model, unless they are counted already: the worker is
        up."""
        if self._counted_from is None:
            self._counted_from = self._ctx.info.round

    @property
    def due_since_commit(self) -> int | None:
        """Exchanges that were due since the last global model; None: the worker has not been up.

        Once an update waits, each round that is trained alone makes it anew, and is due.
        """
        if self._counted_from is None:
            return None
        trained = self._ctx.info.round - self._counted_from
        return max(0, trained - self._times.length(self.acceptor.round) + 1)

    @property
    def each_round(self) -> bool:
        """Whether an exchange is due at each round's end."""
        return self._times.each_round

    def _can_store(self, site: Site) -> bool:
        """Whether the site can store a model; it may be unable to lead or to contribute, and yet store."""
        return site in self._membership.alive and not self._membership.members[site].refused

    def _begin(self) -> None:
        round, number = self.acceptor.round, self.rotation.current
        assert number is not None and number > self.acceptor.promised
        self.acceptor.promise(number)
        self._ctx.note("round_led", None, "", round=round, attempt=number)
        self.attempt = Proposer(
            self._ctx,
            self._params,
            self._membership,
            self.acceptor,
            self.downloads,
            self.uploads,
            self,
            round,
            number,
        )
        self.schedule.heard()
        self.attempt.settle()

    def _end(self, reason: str) -> None:
        """End this site's failed attempt: the next site's turn."""
        attempt, self.attempt = self.attempt, None
        assert attempt is not None
        if not attempt.over:
            attempt.give_up(reason)
        if attempt.round != self.acceptor.round:
            return
        # Where this site has failed before, its next attempts come later and later. (The attempt's number
        # says less: other sites may have raised it.)
        self._rest_until = self._ctx.now + min(8, self._in_vain) * self._params.patience_s
        self._in_vain += 1
        self.rotation.pass_on(attempt.attempt, reason)

    def _commit(self, proposal: Proposal) -> None:
        """Commit a model that a quorum has stored and that is here."""
        coordinator = self.acceptor.quorum.coordinator(proposal.round, proposal.attempt)
        if not self.acceptor.commit(proposal):
            return
        self.schedule.committed()
        self.collected, self.condemned, self._in_vain = {}, set(), 0
        self._counted_from = self._ctx.info.round
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
            self.catch_up.next_deadline(),
            self.downloads.next_deadline(),
            self.rotation.next_deadline(),
            self.schedule.next_deadline(),
        ]
        if self.attempt is not None:
            due.append(self.attempt.next_deadline())
        elif self._rest_until > self._ctx.now:
            due.append(self._rest_until)
        return min(due)

    # -------------------------------------------------------------- the worker (proposer.ProposerHost)

    def worker_free(self) -> bool:
        return self.worker.free and self.making is None

    def aggregate(self, effect: Aggregate) -> None:
        self.making = effect
        self.worker.aggregate(effect)

    def learn(self, proposal: Proposal, frm: Site) -> None:
        self.catch_up.learn(proposal, frm)

    def next_round(self, round: int) -> StartRound | None:
        """The worker's next order, for worker_state.py; None: wait."""
        return self.schedule.next_round(round, hold=self._holding)

    @property
    def waiting(self) -> bool:
        """Whether a global model is to come that may include this site's update."""
        return self.schedule.update is not None and (self._holding or self.schedule.waiting)

    @property
    def _holding(self) -> bool:
        """Whether the worker is about to aggregate updates."""
        attempt = self.attempt
        return attempt is not None and (
            attempt.stage is Stage.AGGREGATING
            or (attempt.stage is Stage.GATHERING and attempt.collection.enough)
        )

    # -------------------------------------------------------------- requests of coordinators

    def on_request(self, frm: Site, token: int, body: messages.Request) -> None:
        """Answer Prepare, Fetch, Accept or Commit."""
        self._ctx.respond(token, self._participant.to(frm, body))

    def _heard_of(self, attempt: int, tally: UpdateTally | None) -> None:
        """Note that the coordinator of this round's latest attempt works on it."""
        self.progress_reports.hear(self.acceptor.round, attempt, tally)
        self.schedule.heard()
        own = self.attempt
        if own is not None and own.attempt < attempt:
            self._end("later_attempt")
        self.rotation.heard(attempt)

    # -------------------------------------------------------------- files

    def expects(self, frm: Site, hash: str) -> ModelRef | None:
        """The file whose stream may come from `frm` now."""
        return self.downloads.expected(frm, hash)

    def kept_models(self) -> list[ModelRef]:
        """Files that the store must not collect."""
        record, running = self.acceptor.record, self.schedule.running
        models = [p.model for p in (record.committed, record.accepted) if p is not None]
        models += [record.update] if record.update is not None else []
        models += list(self.collected.values()) + (self.attempt.kept if self.attempt is not None else [])
        models += [model for _, model in self.making.updates] if self.making is not None else []
        models += [t.model for t in self.uploads.transfers.values()]
        models += [w.model for w in self.downloads.wants.values()]
        if running is not None and running.order.start_from is not None:
            models.append(running.order.start_from)
        return models
