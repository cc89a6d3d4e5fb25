"""When the worker runs the next round, with which visitor, and what became of it.

In gossip there is no barrier: a round starts when the last one is done, whatever the other sites do. Under a
coordinator round_schedule.py says when, and from which model.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any

from gossipseg.core import events
from gossipseg.core.budget import Budget
from gossipseg.core.context import Context
from gossipseg.core.effects import Aggregate, Finished, Snapshot, StartRound
from gossipseg.core.gossip.exchange import GossipExchange, describe
from gossipseg.core.gossip.swap import SwapExchange
from gossipseg.core.membership.members import Membership
from gossipseg.core.offences import DICE, verdict_is_offence
from gossipseg.core.personal.personal import PersonalModels
from gossipseg.core.rounds.rounds import Rounds
from gossipseg.core.types import Phase, Site

REMEMBERED_VISITORS = 8
"""Number of remembered visitors: a visitor's effect may be undone some rounds later."""


class WorkerPhase(StrEnum):
    """The training worker as the core sees it."""

    ABSENT = "absent"
    IDLE = "idle"
    RUNNING = "running"
    AGGREGATING = "aggregating"
    FAILED = "failed"


class WorkerState:
    """The worker's state, the rounds behind it, and the phase this site tells its peers."""

    def __init__(
        self,
        ctx: Context,
        gossip: GossipExchange,
        membership: Membership,
        *,
        budget: Budget,
        snapshot: Snapshot,
        coordinated: Rounds | None = None,
        swaps: SwapExchange | None = None,
        dice_run: int | None = None,
    ) -> None:
        """`dice_run`: consecutive models that only do worse here which make an offence; None: never."""
        self._ctx, self._gossip, self._membership = ctx, gossip, membership
        self._coordinated, self._swaps = coordinated, swaps
        self._budget = budget
        self.personal: PersonalModels | None = None
        """Personal models that travel; set by assembly.py."""
        self.worker = WorkerPhase.ABSENT
        self.paused = snapshot.paused
        self.leaving = False
        self._over = False
        """Whether the site has finished since the worker started: nothing brings it back."""
        self._visitors: dict[str, Site] = {}
        self._dice_run = dice_run
        self._worse: Counter[Site] = Counter()
        """Consecutive models of a site that did worse here; forgotten when the daemon ends."""
        self._lost_with = ""
        """Hash of the visitor during which the worker last died."""
        self._say_phase()
        ctx.say(round=snapshot.round, steps=snapshot.steps)
        ctx.own_steps = snapshot.steps

    @property
    def finished(self) -> bool:
        """Whether the site has finished.

        That is: the budget is used up, and the worker has said so since it started. The global model with its
        last update is here, or cannot be had. No swap is left that must be applied.
        """
        if self.worker is not WorkerPhase.IDLE or not self._spent:
            return False
        if self._swaps is not None and self._swaps.binding:
            return False
        return self._over or self._coordinated is None or not self._coordinated.waiting

    @property
    def _spent(self) -> bool:
        """No round is left to train."""
        return self._ctx.info.round >= self._budget.last

    @property
    def last_round(self) -> int | None:
        """The own round at whose end this site finishes, by its present state; None: no end."""
        last = self._budget.last
        return None if last == math.inf else int(last)

    def handle(self, event: events.Event) -> bool:
        """Handle a worker's event; False: the event fits no state of the worker."""
        action = TABLE.get((self.worker, type(event)))
        return action(self, event) if action is not None else False

    def pause(self, paused: bool) -> None:
        if paused == self.paused:
            return
        self.paused = paused
        self._ctx.note("paused" if paused else "resumed")
        self._say_phase()
        if paused and self._swaps is not None:
            self._swaps.pause()
        self._ctx.persist()
        self._go_on()

    def leave(self) -> None:
        self.leaving = True
        self._say_phase()

    # -------------------------------------------------------------- for the coordinator (rounds.WorkerPort)

    @property
    def free(self) -> bool:
        """Whether the worker is up and idle."""
        return self.worker is WorkerPhase.IDLE and not self.paused and not self.leaving and not self.finished

    def aggregate(self, effect: Aggregate) -> None:
        """Let the worker aggregate updates."""
        self.worker = WorkerPhase.AGGREGATING
        self._ctx.effects.append(effect)

    def resume(self) -> None:
        """Start the next round if there is one to start now, or finish."""
        self._go_on()
        self._say_phase()

    # -------------------------------------------------------------- the worker's events

    def _ready(self, event: events.WorkerReady) -> bool:
        ctx, gossip = self._ctx, self._gossip
        if self.worker is not WorkerPhase.ABSENT:
            self._lose()  # it restarted without having been seen to die
        self.worker, self._over, self._budget.ahead = WorkerPhase.IDLE, False, event.ahead
        first_cases = event.cases != ctx.info.cases
        ctx.say(round=event.round, steps=event.steps, cases=event.cases)
        ctx.own_steps = event.steps if event.own_steps is None else event.own_steps
        ctx.contract_known(event.contract)
        gossip.last_visit = event.last_visit
        if self._coordinated is not None:
            self._coordinated.ready(event)
        if event.last_visit is not None:
            # Exactly once: the checkpoint includes this visit, its report was lost.
            visited = gossip.inbox.remove(event.last_visit)
            if visited is not None:
                ctx.note("model_dropped", visited.frm, "already_visited", **describe(visited.model))
        self._say_phase()
        if self._swaps is not None:
            self._swaps.turns.aside.begin(event.round)
            self._swaps.decision.worker_ready(event.last_swap)
        if self.personal is not None:
            self.personal.worker_ready(event)
        if first_cases:
            self._membership.self_record.announce(self._membership.self_record.incarnation + 1)
        else:
            ctx.persist()
        self._go_on()
        return True

    def _lost(self, event: events.WorkerLost) -> bool:
        if self.finished:
            if self.personal is not None:
                self.personal.worker_lost(final=event.final, blamed=not event.waits)
            return True  # it has nothing left to do
        self._lose(final=event.final, blamed=not event.waits)
        if event.final:
            self.worker = WorkerPhase.FAILED
        self._say_phase()
        return True

    def _lose(self, *, final: bool = False, blamed: bool = True) -> None:
        self.worker = WorkerPhase.ABSENT
        gossip = self._gossip
        gossip.running_round = None
        if self.personal is not None:
            self.personal.worker_lost(final=final, blamed=blamed and gossip.inbox.visiting is None)
        if self._swaps is not None:
            self._swaps.decision.worker_lost(blamed=blamed)
        if self._coordinated is not None:
            self._coordinated.lost()
        visitor = gossip.inbox.visiting
        if visitor is None:
            return
        if visitor.model.hash == self._lost_with:
            # Twice in a row: it may be the cause (no memory for two models), and must not end all training.
            gossip.inbox.visiting = None
            gossip.dropped(visitor, "worker_lost")
            self._ctx.persist()
        self._lost_with = visitor.model.hash
        gossip.inbox.put_back()

    def _round_finished(self, event: events.RoundFinished) -> bool:
        ctx, gossip = self._ctx, self._gossip
        if event.round != gossip.running_round:
            return False
        self.worker, gossip.running_round, self._budget.ahead = WorkerPhase.IDLE, None, event.ahead
        ctx.say(round=event.round, steps=event.steps)
        ctx.own_steps = event.steps if event.own_steps is None else event.own_steps
        self._visit_over(event)
        if event.reverted is not None:
            frm = self._visitors.get(event.reverted)
            gossip.counts["reverted", frm or ""] += 1
            ctx.note("visit_reverted", frm, "validation", hash=event.reverted)
            if frm is not None:
                self._weigh(frm, "kept_out", "validation")
        if self._coordinated is not None:
            self._coordinated.schedule.round_over(event)
        ctx.persist()
        gossip.round_over()
        if event.export is not None and self._coordinated is None:
            gossip.send(event.export)
        if self._swaps is not None:
            self._swaps.round_over(event.round)
        if self.personal is not None:
            self.personal.round_over(event.round)
        self._go_on()
        return True

    def _aggregated(self, event: events.Aggregated | events.AggregationFailed) -> bool:
        if self._coordinated is None:
            return False
        self.worker = WorkerPhase.IDLE
        return self._coordinated.on_aggregated(event)

    def _visit_over(self, event: events.RoundFinished) -> None:
        gossip, result = self._gossip, event.visit
        visitor, gossip.inbox.visiting = gossip.inbox.visiting, None
        if visitor is None:
            return
        gossip.last_visit = visitor.model.hash
        if result is None:
            gossip.dropped(visitor, "not_visited")
            return
        self._visitors[result.hash] = visitor.frm
        while len(self._visitors) > REMEMBERED_VISITORS:
            del self._visitors[next(iter(self._visitors))]
        gossip.counts[result.outcome, visitor.frm] += 1
        detail = {**describe(visitor.model), "at_round": event.round}
        if result.detail:
            detail["detail"] = result.detail
        self._ctx.note(f"visit_{result.outcome}", visitor.frm, result.reason, **detail)
        self._weigh(visitor.frm, result.outcome, result.reason)

    def _weigh(self, site: Site, outcome: str, reason: str) -> None:
        """Count an offence of the site if the worker's verdict on its model is one."""
        if reason in DICE:
            self._worse[site] += 1
            if self._dice_run is not None and self._worse[site] >= self._dice_run:
                del self._worse[site]
                self._ctx.offence(site, reason)
        elif outcome == "merged":
            self._worse.pop(site, None)
        elif outcome == "refused" and verdict_is_offence(reason):
            self._ctx.offence(site, reason)

    # -------------------------------------------------------------- continuing

    def _go_on(self) -> None:
        """Start the next round, or report that there is none."""
        ctx, gossip = self._ctx, self._gossip
        if self.worker is not WorkerPhase.IDLE or self.leaving:
            return
        if self.finished:
            self._finish()
            return
        if self.paused or self._spent:
            return
        round = ctx.info.round + 1
        if self._coordinated is not None:
            if (order := self._coordinated.next_round(round)) is not None:
                self.worker, gossip.running_round = WorkerPhase.RUNNING, round
                ctx.effects.append(order)
            return
        visitor, dropped = gossip.inbox.take(ctx.info.round, ctx.own_steps)
        for entry, reason in dropped:
            gossip.dropped(entry, reason)
        if dropped:
            ctx.persist()
        export = gossip.draws_to_send(round)
        self.worker, gossip.running_round = WorkerPhase.RUNNING, round
        ctx.effects.append(StartRound(round, visitor, export))

    def _finish(self) -> None:
        """Report once that no round is left."""
        ctx = self._ctx
        if self._over:
            return
        self._over = True
        self._gossip.drop_waiting("finished")
        self._say_phase()
        ctx.persist()
        missed = self._coordinated.schedule.missed if self._coordinated is not None else ""
        ctx.note("finished", None, missed, round=ctx.info.round)
        ctx.effects.append(Finished())

    def _say_phase(self) -> None:
        phase = self._phase()
        if phase is not self._ctx.info.phase:
            self._ctx.say(phase=phase)

    def _phase(self) -> Phase:
        if self.leaving:
            return Phase.LEAVING
        if self.worker is WorkerPhase.FAILED:
            return Phase.FAILED
        if self.finished:
            return Phase.FINISHED
        if self.paused:
            return Phase.PAUSED
        if self.worker is WorkerPhase.ABSENT:
            return Phase.STARTING
        ending = self._coordinated is not None and self._coordinated.schedule.ending
        return Phase.ENDING if ending else Phase.TRAINING


_Action = Callable[[WorkerState, Any], bool]
TABLE: Mapping[tuple[WorkerPhase, type], _Action] = {
    (WorkerPhase.ABSENT, events.WorkerReady): WorkerState._ready,
    (WorkerPhase.IDLE, events.WorkerReady): WorkerState._ready,
    (WorkerPhase.RUNNING, events.WorkerReady): WorkerState._ready,
    (WorkerPhase.AGGREGATING, events.WorkerReady): WorkerState._ready,
    (WorkerPhase.FAILED, events.WorkerReady): WorkerState._ready,
    (WorkerPhase.ABSENT, events.WorkerLost): WorkerState._lost,
    (WorkerPhase.IDLE, events.WorkerLost): WorkerState._lost,
    (WorkerPhase.RUNNING, events.WorkerLost): WorkerState._lost,
    (WorkerPhase.AGGREGATING, events.WorkerLost): WorkerState._lost,
    (WorkerPhase.FAILED, events.WorkerLost): WorkerState._lost,
    (WorkerPhase.AGGREGATING, events.Aggregated): WorkerState._aggregated,
    (WorkerPhase.AGGREGATING, events.AggregationFailed): WorkerState._aggregated,
    (WorkerPhase.RUNNING, events.RoundFinished): WorkerState._round_finished,
}
"""The worker's events in each state. Any other event is an error in tests and a note in production."""
