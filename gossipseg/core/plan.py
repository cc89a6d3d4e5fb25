"""What this site trains for the rounds: from which model, with which export, and when it waits no longer.

What belongs here: the way from a common model to an update, and the rounds trained alone. What must not:
the worker's states (training.py), messages, attempts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from gossipseg.core import events
from gossipseg.core.acceptor import Acceptor
from gossipseg.core.commons import Commons
from gossipseg.core.context import Context
from gossipseg.core.effects import StartRound
from gossipseg.core.member import Member
from gossipseg.core.params import RoundsParams
from gossipseg.core.types import ModelRef, Phase, Site


@dataclass(frozen=True, slots=True)
class Running:
    """The round that the worker is in."""

    towards: int
    """The federation round whose update it makes."""
    order: StartRound


class Plan:
    """`budget`: the site's rounds in all; None: it trains on."""

    def __init__(
        self,
        ctx: Context,
        params: RoundsParams,
        acceptor: Acceptor,
        commons: Commons,
        *,
        budget: int | None,
        every_rounds: int,
        finetune_rounds: int,
    ) -> None:
        self._ctx, self._params, self._acceptor, self._commons = ctx, params, acceptor, commons
        self._every = every_rounds
        self._finetune_from = budget - finetune_rounds + 1 if budget is not None else math.inf
        self._last_export = budget - max(finetune_rounds, 1) if budget is not None else math.inf
        """Nobody would go on from the common model that a later update is in."""
        self.running: Running | None = None
        self._last_global: str | None = None
        self._met: set[Site] = set()
        self._done: set[Site] = set()
        """Sites that will contribute no more, unless they are heard to train again."""
        self._meet_until = math.inf
        self._alone_at = math.inf
        self._caught_up_by = math.inf
        self._heard_at = -math.inf

    # -------------------------------------------------------------- what there is

    @property
    def update(self) -> ModelRef | None:
        """This site's update for the round it works towards."""
        record = self._acceptor.record
        return record.update if record.update_round == self._acceptor.round else None

    @property
    def hopeless(self) -> bool:
        """No quorum can contribute any more."""
        sites, quorum = self._acceptor.electorate.sites, self._acceptor.electorate.quorum
        return len(set(sites) - self._done) < quorum

    @property
    def ending(self) -> bool:
        """It trains its last rounds, from which no update comes."""
        next = self.running.order.round if self.running else self._ctx.info.round + 1
        if self.update is not None and self.running is None:
            return False
        return max(next, self._acceptor.record.base_round + self._every) > self._last_export

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
        """The worker is up, with weights that were last taken from that common model."""
        now = self._ctx.now
        self._last_global, self.running = last_global, None
        if self.update is not None and self.update.manifest is None:  # of an older version
            update = replace(self.update, round=self._acceptor.round)
            self._keep(self._acceptor.notary.sign(update, run=self._acceptor.run))
        if self._meet_until == math.inf:
            self._meet_until = now + self._params.request_timeout_s
        if self.update is not None and self._alone_at == math.inf:
            self._alone_at = now + self._params.alone_after_s

    def lost(self) -> None:
        self.running = None

    def heard(self) -> None:
        """An attempt at this round is under way."""
        self._heard_at = self._ctx.now

    def round_over(self, event: events.RoundFinished) -> None:
        """Keep the update. (The caller persists before anything is said of it.)"""
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
            self._keep(self._acceptor.notary.sign(update, run=self._acceptor.run))

    def _keep(self, update: ModelRef) -> None:
        self._acceptor.record = replace(self._acceptor.record, update_round=update.round, update=update)

    def committed(self) -> None:
        """There is a new common model to go on from."""
        self._alone_at = self._caught_up_by = math.inf

    # -------------------------------------------------------------- what is next

    def next_round(self, round: int, *, hold: bool) -> StartRound | None:
        """The worker's next order; None: wait. `hold`: the worker is about to combine updates."""
        if not self._acceptor.run or not self._joined() or self._catching_up():
            return None
        committed = self._acceptor.record.committed
        common = committed.model if committed is not None else None
        fresh = common is not None and common.hash != self._last_global
        settling_in = common is not None and common.round > 1 and self._last_global is None
        export = round <= self._last_export and not self.hopeless
        last_common = round == self._finetune_from and self.update is not None
        if last_common and not (self.hopeless or self._ctx.now >= self._alone_at):
            return None  # fine-tuning begins with the common model that this update goes into
        if round >= self._finetune_from:
            start = common if round == self._finetune_from else None
            order = StartRound(round, None, False, start, settling_in and start is not None, True)
        elif self.update is not None:
            if hold or not (self.hopeless or self._ctx.now >= self._alone_at):
                return None
            reason = "too_few_sites" if self.hopeless else "no_common_model"
            self._ctx.note("round_alone", None, reason, round=self._acceptor.round, own_round=round)
            order = StartRound(round, None, export)
        elif fresh:
            self._acceptor.change(base_round=round - 1)
            order = StartRound(round, None, export and self._every == 1, common, settling_in)
        else:
            done = round - self._acceptor.record.base_round
            order = StartRound(round, None, export and done >= self._every)
        self.running = Running(self._acceptor.round, order)
        return order

    def next_deadline(self) -> float:
        now = self._ctx.now
        return min(
            (t for t in (self._meet_until, self._alone_at, self._caught_up_by) if t > now), default=math.inf
        )

    def _joined(self) -> bool:
        """So many sites are met that one of them knows the newest common model; or none came."""
        enough = len(self._met) + 1 >= self._acceptor.electorate.votes
        return enough or self._ctx.now >= self._meet_until

    def _catching_up(self) -> bool:
        """A newer common model is to be had: better wait for it than train from an old one."""
        if not self._commons.behind:
            self._caught_up_by = math.inf
            return False
        if self._caught_up_by == math.inf:
            self._caught_up_by = self._ctx.now + self._params.alone_after_s
        return self._ctx.now < self._caught_up_by
