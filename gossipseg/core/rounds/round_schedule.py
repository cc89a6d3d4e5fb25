"""What this site trains for the rounds: from which model, with which export, and how long it waits."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from gossipseg.core import events
from gossipseg.core.budget import Budget
from gossipseg.core.context import Context
from gossipseg.core.effects import StartRound
from gossipseg.core.exchange_times import ExchangeTimes
from gossipseg.core.membership.member import Member
from gossipseg.core.params import RoundsParams
from gossipseg.core.rounds.acceptor import Acceptor
from gossipseg.core.rounds.catch_up import CatchUp
from gossipseg.core.types import ModelRef, Phase, Site


@dataclass(frozen=True, slots=True)
class Running:
    """The round that the worker is in."""

    towards: int
    """The federation round for which it makes an update."""
    order: StartRound


class RoundSchedule:
    """When this site trains, waits and ends. The last round that all sites train together is aggregated, too,
    and a site finishes when that model is here. Rounds left over at the end, at which no exchange is due, are
    trained without."""

    def __init__(
        self,
        ctx: Context,
        params: RoundsParams,
        acceptor: Acceptor,
        catch_up: CatchUp,
        *,
        budget: Budget,
        times: ExchangeTimes,
        finetune_rounds: int,
    ) -> None:
        self._ctx, self._params, self._acceptor, self._catch_up = ctx, params, acceptor, catch_up
        self._budget, self._times, self._finetune = budget, times, finetune_rounds
        self._last_common = budget.last_common(times, finetune_rounds)
        self.running: Running | None = None
        self._last_global: str | None = None
        self._met: set[Site] = set()
        self._done: set[Site] = set()
        """Sites that will contribute no more, unless they report training again."""
        self._meet_until = math.inf
        self._alone_at = math.inf
        self._caught_up_by = math.inf
        self._heard_at = -math.inf

    # -------------------------------------------------------------- what is known

    @property
    def update(self) -> ModelRef | None:
        """This site's update for the round it works towards."""
        record = self._acceptor.record
        return record.update if record.update_round == self._acceptor.round else None

    @property
    def hopeless(self) -> bool:
        """Whether no quorum can contribute any more."""
        sites, quorum = self._acceptor.quorum.sites, self._acceptor.quorum.quorum
        return len(set(sites) - self._done) < quorum

    @property
    def missed(self) -> str:
        """Why the global model that includes this site's update is not here; "" if it is."""
        if self.update is None:
            return ""
        return "too_few_sites" if self.hopeless else "no_common_model"

    @property
    def waiting(self) -> bool:
        """Whether a global model is still to come that may include this site's update."""
        if self.update is None:
            return False
        return self._catching_up() or not (self.hopeless or self._ctx.now >= self._alone_at)

    @property
    def _last_together(self) -> float:
        """The last own round that is not trained alone."""
        return self._budget.last - self._finetune

    @property
    def _length(self) -> int:
        """Rounds to train towards the next global model."""
        return self._times.length(self._acceptor.round)

    def _exported(self, round: int) -> bool:
        """Whether an update of that own round could be aggregated."""
        return round <= self._last_together and self._acceptor.round <= self._last_common

    @property
    def ending(self) -> bool:
        """Whether the site trains its last rounds, from which no update comes."""
        next = self.running.order.round if self.running else self._ctx.info.round + 1
        if self.update is not None and self.running is None:
            return False
        return not self._exported(max(next, self._acceptor.record.base_round + self._length))

    # -------------------------------------------------------------- what happens

    def on_change(self, member: Member) -> None:
        info = member.info
        if info is None:
            return
        self._met.add(member.site)
        if info.phase in (Phase.FINISHED, Phase.ENDING, Phase.FAILED):
            self._done.add(member.site)
        elif info.phase in (Phase.TRAINING, Phase.PAUSED):
            self._done.discard(member.site)

    def ready(self, last_global: str | None) -> None:
        """Note that the worker is up, and which global model its weights were last taken from."""
        now = self._ctx.now
        self._last_global, self.running = last_global, None
        if self.update is not None and self.update.manifest is None:  # of an older version
            update = replace(self.update, round=self._acceptor.round)
            self._keep(self._acceptor.ledger.sign(update, run=self._acceptor.run))
        if self._meet_until == math.inf:
            self._meet_until = now + self._params.request_timeout_s
        if self.update is not None and self._alone_at == math.inf:
            self._alone_at = now + self._params.alone_after_s

    def lost(self) -> None:
        self.running = None

    def heard(self) -> None:
        """Note that an attempt at this round is under way."""
        self._heard_at = self._ctx.now

    def round_over(self, event: events.RoundFinished) -> None:
        """Keep the update. (The caller persists before any message mentions it.)"""
        running, self.running = self.running, None
        if running is None:
            return
        if running.order.start_from is not None:
            self._last_global = running.order.start_from.hash
        if running.towards != self._acceptor.round:
            return  # that round was committed meanwhile
        now, wait_s = self._ctx.now, self._params.alone_after_s
        if self.update is None or now - self._heard_at < wait_s:
            self._alone_at = now + wait_s
        if event.export is not None:
            update = replace(event.export, kind="update", round=running.towards)
            self._keep(self._acceptor.ledger.sign(update, run=self._acceptor.run))

    def _keep(self, update: ModelRef) -> None:
        self._acceptor.record = replace(self._acceptor.record, update_round=update.round, update=update)

    def committed(self) -> None:
        """Continue from a new global model."""
        self._alone_at = self._caught_up_by = math.inf

    # -------------------------------------------------------------- what is next

    def next_round(self, round: int, *, hold: bool) -> StartRound | None:
        """The worker's next order; None: wait. `hold`: the worker is about to aggregate updates."""
        if not self._acceptor.run or not self._joined() or self._catching_up():
            return None
        committed = self._acceptor.record.committed
        common = committed.model if committed is not None else None
        if self.update is not None and (hold or self.waiting):
            return None  # fine-tuning, too, begins with the global model that includes this update
        start = common if common is not None and self._takes(common, round) else None
        settling_in = start is not None and start.round > 1 and self._last_global is None
        if start is not None:
            self._budget.begin_at(self._times.end_of(start.round) + 1, round)
            self._acceptor.change(base_round=round - 1)
        if round > self._last_together:
            order = StartRound(round, None, False, start, settling_in, True)
        elif self.update is not None:
            self._ctx.note("round_alone", None, self.missed, round=self._acceptor.round, own_round=round)
            if not self.hopeless:  # the federation stands still, and this site with it
                self._budget.begin_at(self._times.end_of(self._acceptor.round), round)
            order = StartRound(round, None, self._exported(round) and not self.hopeless)
        else:
            enough = round - self._acceptor.record.base_round >= self._length
            export = enough and self._exported(round) and not self.hopeless
            order = StartRound(round, None, export, start, settling_in)
        order = replace(order, ahead=self._budget.ahead)
        self.running = Running(self._acceptor.round, order)
        return order

    def _takes(self, common: ModelRef, round: int) -> bool:
        """Whether that own round begins with the global model: it is new here, and fine-tuning has not
        begun."""
        if common.hash == self._last_global or round > self._last_together + 1:
            return False
        return self.update is None or round > self._last_together

    def next_deadline(self) -> float:
        now = self._ctx.now
        return min(
            (t for t in (self._meet_until, self._alone_at, self._caught_up_by) if t > now), default=math.inf
        )

    def _joined(self) -> bool:
        """Whether enough sites are met that one of them knows the newest global model, or the wait is
        over."""
        enough = len(self._met) + 1 >= self._acceptor.quorum.size
        return enough or self._ctx.now >= self._meet_until

    def _catching_up(self) -> bool:
        """Whether to wait for a newer available global model rather than train from an old one."""
        if not self._catch_up.behind:
            self._caught_up_by = math.inf
            return False
        if self._caught_up_by == math.inf:
            self._caught_up_by = self._ctx.now + self._params.alone_after_s
        return self._ctx.now < self._caught_up_by
