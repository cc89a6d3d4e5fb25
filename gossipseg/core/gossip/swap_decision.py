"""What becomes of an open swap: ready, committed or dropped, applied once; and the worker's orders for it.

The protocol, its messages and its failures: docs/design/swap.md.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

from gossipseg.core import events, messages
from gossipseg.core.budget import Budget
from gossipseg.core.context import Call, CallOutcome, Context
from gossipseg.core.effects import AdmitSnapshot, ApplySwap, ExportSnapshot
from gossipseg.core.gossip.exchange import describe
from gossipseg.core.gossip.open_swap import OpenSwap, Stage, Turn
from gossipseg.core.gossip.swap_memory import SwapMemory
from gossipseg.core.gossip.swap_turns import SwapTurns
from gossipseg.core.membership.members import Membership
from gossipseg.core.messages import SwapStanding
from gossipseg.core.params import GossipParams
from gossipseg.core.types import ExchangeId, Site

PROBE_SHARE = 4.0
"""Offer timeouts of silence after which a site asks its partner whether the swap is still open. After as many
without progress another site's offer displaces a swap that is only traded."""
DEADLY = 2
"""Deaths of the worker with an order for one swap after which the order is given up."""


class SwapDecision:
    """The one open swap and its end."""

    def __init__(
        self,
        ctx: Context,
        params: GossipParams,
        membership: Membership,
        *,
        turns: SwapTurns,
        budget: Budget,
        counts: Counter[tuple[str, Site]],
        memory: SwapMemory,
        open: OpenSwap | None,
    ) -> None:
        self._ctx, self._params, self._membership = ctx, params, membership
        self.turns, self._budget, self._counts, self.memory, self.open = turns, budget, counts, memory, open
        self.worker_up = False
        self.ask: Callable[[], None] = lambda: None
        """Ask the next peer if a swap is due; set by swap.py, like the next."""
        self.speak: Callable[[OpenSwap], None] = lambda open: None
        """Send the message that is next."""
        self.settled: Callable[[], None] = lambda: None
        """Called when a swap is over; set by assembly.py."""

    def opened(self, open: OpenSwap) -> None:
        """Begin to trade: the swap has been accepted."""
        self.turns.took_part()
        now = self._ctx.now
        open.deadline = now + self._params.transfer_timeout_s
        open.next_at = now + PROBE_SHARE * self._params.offer_timeout_s
        self.advanced(open)
        self._ctx.note("swap_opened", open.partner, part=open.part, weight=open.weight, **_named(open))
        self.order()
        self.progress(open)

    def advanced(self, open: OpenSwap) -> None:
        """Note that the trade goes on. Words alone do not hold the place: files and admissions do."""
        open.firm_until = self._ctx.now + PROBE_SHARE * self._params.offer_timeout_s

    def displaceable(self, open: OpenSwap) -> bool:
        """Whether the trade stands still, so that another site's offer may take its place."""
        still = open.transfer is None and self._ctx.now >= open.firm_until
        return open.stage is Stage.TRADING and still

    # -------------------------------------------------------------- the decision

    def progress(self, open: OpenSwap, *, answering: bool = False) -> None:
        """Say that this site is ready, or commit, if it has all that it needs. `answering`: the partner hears
        of it in an answer."""
        if open.stage is not Stage.TRADING or not open.fulfilled:
            return
        if open.asker:
            open.turn(Turn.READY)
            open.deadline = self._ctx.now + self._params.doubt_timeout_s
            self._ctx.persist()  # from here on the other site's word decides
            self.speak(open)
        elif open.partner_ready:
            self._commit(open)
            if not answering:
                self.tell(open.partner, open.id, "committed", "")

    def on_ready(self, frm: Site, token: int, body: messages.SwapReady) -> None:
        """Handle the asker's "ready": commit if all is here. Sent again, it asks for the outcome."""
        swap = body.swap
        self.outdate(frm, swap)
        open = self.open
        if open is not None and open.id == swap and open.partner == frm and not open.asker:
            open.partner_ready = True
            self.progress(open, answering=True)
        elif swap.asker == frm and self.memory.is_new(swap):
            self.memory.note(swap, "dropped")
            self._ctx.persist()  # its offer, should it still come, opens nothing
        self._ctx.respond(token, messages.SwapState(self._standing(frm, swap)))

    def on_told(self, frm: Site, token: int, body: messages.SwapTold) -> None:
        """Handle the partner's word of how the swap stands, and answer how it stands here."""
        swap = body.swap
        self.outdate(frm, swap)
        open = self.open
        if open is not None and open.id == swap and open.partner == frm:
            self._learn(open, body.standing, body.reason)
        elif swap.asker == frm and body.standing == "dropped" and self.memory.is_new(swap):
            self.memory.note(swap, "dropped")
        self._ctx.respond(token, messages.SwapState(self._standing(frm, swap)))

    def _standing(self, frm: Site, swap: ExchangeId) -> SwapStanding:
        open = self.open
        if open is not None and open.id == swap and open.partner == frm:
            return "committed" if open.stage is Stage.COMMITTED else "open"
        return self.memory.standing(swap) if swap.asker == frm else "dropped"

    def tell(self, to: Site, swap: ExchangeId, standing: SwapStanding, reason: str) -> None:
        """Tell how a swap stands here; the answer says how it stands there."""
        body = messages.SwapTold(swap, standing, reason)
        self._ctx.request(to, body, self._params.offer_timeout_s, self.on_state, swap)

    def on_state(self, call: Call, outcome: CallOutcome) -> None:
        """Handle the partner's answer on how the swap stands."""
        open = self.mine(call)
        if open is None:
            return
        if isinstance(outcome, messages.SwapState):
            self._membership.heard(call.to, None)
            self._learn(open, outcome.standing, outcome.reason)
        if open is self.open and open.stage is Stage.DOUBT:
            open.next_at = self._ctx.now + self._params.offer_timeout_s

    def _learn(self, open: OpenSwap, standing: SwapStanding, reason: str) -> None:
        """Take the partner's word. The site that was asked decides; the asker may drop until it is ready."""
        if standing == "committed" and open.stage is Stage.DOUBT:
            self._commit(open)
        elif standing == "dropped" and open.stage in (Stage.TRADING, Stage.DOUBT):
            self.drop(open, reason or "dropped_there", tell=False)

    def _commit(self, open: OpenSwap) -> None:
        """Decide, or learn, that the swap holds at both sites."""
        open.turn(Turn.COMMIT)
        open.deadline = open.next_at = math.inf
        if not open.asker:
            self.memory.note(open.id, "committed")
        self.turns.committed()
        self._ctx.note("swap_committed", open.partner, **_named(open))
        if open.takes:
            self._ctx.persist()  # before any answer, and before the worker applies it
            self.order()
        else:
            self.end(open)

    def on_applied(self, event: events.SwapApplied) -> bool:
        """Handle the worker's report of a committed swap."""
        open = self.current(event.swap, Stage.COMMITTED)
        if open is None:
            return True  # known since the worker's start
        if event.reason:
            self._lose(open, event.reason)
            return True
        if event.steps is not None:
            self._ctx.say(steps=event.steps)
        if event.ahead is not None:
            self._budget.ahead = event.ahead
        self.end(open)
        return True

    # -------------------------------------------------------------- the end

    def end(self, open: OpenSwap) -> None:
        """Close a swap that has done its part here."""
        what = {"mix": "mixed", "copy": "copied", "keep": "kept"}[open.part]
        self._counts[what, open.partner] += 1
        model = describe(open.theirs) if open.theirs is not None else {}
        self._ctx.note("swap_applied", open.partner, open.part, **_named(open), **model)
        open.turn(Turn.APPLIED)
        self._close()

    def _lose(self, open: OpenSwap, reason: str) -> None:
        """Give up a committed swap that the worker cannot apply: it holds at the other site alone."""
        self._counts["swap_lost", open.partner] += 1
        self._ctx.note("swap_lost", open.partner, reason, **_named(open))
        open.turn(Turn.APPLIED)
        self._close()

    def overdue(self, open: OpenSwap) -> None:
        """Drop a swap whose time is up. In doubt, the other site may have applied it."""
        if open.stage is Stage.DOUBT:
            self._counts["swap_in_doubt", open.partner] += 1
            self._ctx.note("swap_in_doubt", open.partner, "no_answer", **_named(open))
            self._give_up(open, "in_doubt", tell=True, ask=True)
        else:
            self.drop(open, "never_came")

    def drop(self, open: OpenSwap, reason: str, *, tell: bool = True, ask: bool = True) -> None:
        """Give a swap up that holds nowhere. `ask`: whether another peer may be asked in its place now."""
        self._counts["swap_dropped", open.partner] += 1
        self._ctx.note("swap_dropped", open.partner, reason, **_named(open))
        self._give_up(open, reason, tell=tell, ask=ask)

    def _give_up(self, open: OpenSwap, reason: str, *, tell: bool, ask: bool) -> None:
        if open.stage is not Stage.ASKING:
            self.turns.broken()
        open.turn(Turn.DROP)
        if not open.asker:
            self.memory.note(open.id, "dropped")
        self.open = None
        if tell:
            self.tell(open.partner, open.id, "dropped", reason)
        self._close(ask)

    def _close(self, ask: bool = True) -> None:
        self.open = None
        self.turns.closed()
        self._ctx.persist()
        if ask:
            self.ask()
        self.settled()

    # -------------------------------------------------------------- the worker

    def worker_ready(self, last_swap: ExchangeId | None) -> None:
        """Give the worker its orders again. Its checkpoint may include the swap already."""
        self.worker_up = True
        open = self.open
        if open is not None and open.stage is Stage.COMMITTED and last_swap == open.id:
            self.end(open)
        else:
            self.order()
            self.ask()

    def worker_lost(self, *, blamed: bool) -> None:
        """Give up a swap whose order kills the worker repeatedly. `blamed`: it did die."""
        had_order, self.worker_up = self.worker_up and blamed, False
        open = self.open
        if open is None or not had_order or not self._ordered(open):
            return
        open.losses += 1
        if open.losses < DEADLY:
            return
        if open.stage is Stage.TRADING:
            self.drop(open, "worker_lost")
        elif open.losses > DEADLY:
            self._lose(open, "worker_lost")

    def _ordered(self, open: OpenSwap) -> bool:
        """Whether the worker has an order for it."""
        if open.stage is Stage.COMMITTED:
            return open.takes
        exporting = open.exports and open.own is None
        return open.stage is Stage.TRADING and (exporting or (open.arrived and not open.admitted))

    def order(self) -> None:
        """Give the worker what is to be done now. A repeated order does no harm."""
        open = self.open
        if open is None or not self.worker_up:
            return
        effects = self._ctx.effects
        if open.stage is Stage.COMMITTED:
            if open.theirs is not None and open.part != "keep":
                own = open.own if open.part == "mix" else None
                effects.append(
                    ApplySwap(open.id, open.partner, open.part, open.weight, open.theirs, own, open.gives)
                )
        elif open.stage is Stage.TRADING:
            if open.exports and open.own is None:
                effects.append(ExportSnapshot(open.id, keeps=not open.takes))
            if open.arrived and not open.admitted and open.theirs is not None:
                effects.append(AdmitSnapshot(open.id, open.partner, open.theirs))

    # -------------------------------------------------------------- views

    def mine(self, call: Call) -> OpenSwap | None:
        """The open swap that a call was about."""
        return self.open if self.open is not None and self.open.id == call.about else None

    def current(self, swap: ExchangeId, stage: Stage) -> OpenSwap | None:
        """The open swap, if it has this name and is at this stage."""
        open = self.open
        return open if open is not None and open.id == swap and open.stage is stage else None

    def outdate(self, frm: Site, swap: ExchangeId) -> None:
        """Drop the swap that is open with an asker that has gone on to a later one."""
        open = self.open
        if open is None or open.stage is not Stage.TRADING or open.asker or open.partner != frm:
            return
        if swap.asker == frm and swap.number > open.id.number:
            self.drop(open, "given_up", tell=False, ask=False)


def _named(open: OpenSwap) -> dict[str, Any]:
    """The fields of a swap for the event log."""
    return {"number": open.id.number, "asker": open.id.asker}
