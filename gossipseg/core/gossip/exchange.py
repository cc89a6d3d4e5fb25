"""The exchange of models by GML's protocol: draw, offer, accept, busy or reject, transfer.

Its equations: docs/design/equations.md §1.

"A sender picks ONE receiver uniformly at random, asks, and pushes only if the receiver accepts" (2401.06180
as quoted there). Training never waits for any of this.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from gossipseg.core import events, messages
from gossipseg.core.budget import Budget
from gossipseg.core.context import Call, CallOutcome, Context
from gossipseg.core.effects import InboxEntry, StartTransfer
from gossipseg.core.events import RequestFailed
from gossipseg.core.exchange_times import ExchangeTimes
from gossipseg.core.gossip.inbox import Inbox, is_stale
from gossipseg.core.gossip.sender_sampling import SenderPool
from gossipseg.core.manifests import ManifestLedger
from gossipseg.core.membership.handshake import Handshake
from gossipseg.core.membership.member import Member
from gossipseg.core.membership.members import Membership
from gossipseg.core.params import GossipParams
from gossipseg.core.types import ModelRef, Phase, Site

PHASE_REFUSALS = {
    Phase.STARTING: "not_ready",
    Phase.PAUSED: "paused",
    Phase.FAILED: "failed",
    Phase.FINISHED: "finished",
    Phase.LEAVING: "leaving",
}
"""Why a site in this phase takes no model."""
REFUSED_PHASE = {reason: phase for phase, reason in PHASE_REFUSALS.items()}
AGAIN = frozenset({"not_offered", "partial_damaged"})
"""Reasons for which an accepted transfer is offered once more. The receiver has restarted and forgotten its
promise, or its partial file was damaged. Its part of the file is useful only if the same model is offered
again."""
AGAIN_TRIES = 5
"""Repeated offers of one model. A receiver that has just started accepts none before its worker is up; each
pause is twice the last."""


@dataclass(slots=True)
class OutgoingOffer:
    """A model that looks for its receiver, or is being sent to it."""

    model: ModelRef
    tries_left: int
    tried: set[Site] = field(default_factory=set)
    to: Site = ""
    transferring: bool = False
    again: int = 0
    """Number of repeated offers to the same site; see AGAIN."""
    again_at: float = math.inf
    """Time of the next repeated offer."""


def describe(model: ModelRef) -> dict[str, Any]:
    """The fields of a model for the event log."""
    return {"hash": model.hash, "bytes": model.size_bytes, "round": model.round}


class GossipExchange:
    """Both sides of the exchange, its inbox and its counters."""

    def __init__(
        self,
        ctx: Context,
        params: GossipParams,
        membership: Membership,
        handshake: Handshake,
        *,
        exchanges: bool,
        budget: Budget,
        times: ExchangeTimes,
        max_model_bytes: int,
        inbox: Inbox,
        counts: Counter[tuple[str, Site]],
        ledger: ManifestLedger,
    ) -> None:
        self._ctx, self._params, self._membership, self._handshake = ctx, params, membership, handshake
        self._exchanges, self._budget, self._times = exchanges, budget, times
        self._max_model_bytes = max_model_bytes
        self.inbox, self.counts, self._ledger = inbox, counts, ledger
        self.pool = SenderPool()
        self.outgoing: list[OutgoingOffer] = []
        self._transfers: dict[int, OutgoingOffer] = {}
        self._offered: dict[Site, int] = {}
        """Sequence number of the newest model offered to a site; an older one would be a replay there."""
        self.running_round: int | None = None
        """The round that the worker is in; set by worker_state.py."""
        self.last_visit: str | None = None
        self.due = 0
        """Rounds past the warm-up, since the daemon started, at whose end an exchange was due."""

    def on_change(self, member: Member, ended: bool) -> None:
        """Handle a member's change; `ended`: the incarnation known so far is over."""
        self.pool.update(member.site, member.cases if member.exchanges_now else 0)
        if ended:
            held = self.inbox.release(member.site)
            if held is not None:
                self._note_drop(held.frm, held.model, "sender_gone")

    # -------------------------------------------------------------- sending

    def draws_to_send(self, round: int) -> bool:
        """Whether this site sends at the end of `round`: S ~ Bernoulli(p) past the warm-up, if due."""
        if not self._exchanges or round < self._params.warmup_rounds:
            return False
        if not self._times.is_end(round + self._budget.ahead):
            return False
        p = self.pool.probability(self._ctx.info.cases, self._params.sender_rate)
        return p > 0 and self._ctx.rng.random() < p

    def round_over(self) -> None:
        """Count an exchange that was due, for the alarms about silence."""
        round = self._ctx.info.round
        self.due += round > self._params.warmup_rounds and self._times.is_end(round + self._budget.ahead)

    def send(self, model: ModelRef) -> None:
        """Look for a receiver of a newly exported model."""
        if self._ctx.info.phase in (Phase.PAUSED, Phase.FAILED, Phase.LEAVING):
            self._note_drop(None, model, self._ctx.info.phase.value)
        elif len(self.outgoing) >= self._params.max_parallel_transfers:
            self._note_drop(None, model, "transfers_busy")
        else:
            outgoing = OutgoingOffer(self._ledger.sign(model), tries_left=1 + self._params.retries)
            self._ctx.persist()  # its number is never used again
            self.outgoing.append(outgoing)
            self._offer_next(outgoing)

    def _offer_next(self, out: OutgoingOffer) -> None:
        """Offer to a site not tried yet; give up for this round when no site or no try is left."""
        busy_with = {o.to for o in self.outgoing if o is not out}
        busy_with |= {site for site, newest in self._offered.items() if newest > _number(out.model)}
        while out.tries_left > 0:
            site = self.pool.draw(self._ctx.rng, out.tried | busy_with)
            if site is None:
                break
            out.to = site
            out.tried.add(site)
            member = self._membership.members[site]
            if self._handshake.compatible(member):
                self._offer(out)
                return
            if not member.agreed:
                self._handshake.greet(member, self._params.offer_timeout_s, self._on_greeted, out)
                return
        if not out.tried:
            self._note_drop(None, out.model, "nobody_to_send_to")
        self.outgoing.remove(out)

    def _on_greeted(self, call: Call, outcome: CallOutcome) -> None:
        out: OutgoingOffer = call.about
        member = self._handshake.settle(call, outcome)
        if member is not None and member.exchanges_now and self._handshake.compatible(member):
            self._offer(out)
        else:
            self._offer_next(out)

    def _offer(self, out: OutgoingOffer) -> None:
        out.tries_left -= 1
        self._ctx.note("offer_sent", out.to, **describe(out.model))
        self._offered[out.to] = _number(out.model)
        body = messages.Offer(out.model)
        self._ctx.request(out.to, body, self._params.offer_timeout_s, self._on_answer, out)

    def _on_answer(self, call: Call, outcome: CallOutcome) -> None:
        out: OutgoingOffer = call.about
        if out.again and not (isinstance(outcome, messages.OfferReply) and outcome.verdict == "accept"):
            self._refused_again(out, outcome)
        elif isinstance(outcome, messages.OfferReply):
            self._membership.heard(call.to, None)
            if outcome.verdict == "accept":
                self._transfer(out)
                return
            event = "offer_busy" if outcome.verdict == "busy" else "offer_rejected"
            self._ctx.note(event, call.to, outcome.reason, **describe(out.model))
            self._learn_phase(call.to, outcome.reason)
            self._offer_next(out)
        elif isinstance(outcome, RequestFailed):
            self._ctx.note("offer_rejected", call.to, outcome.reason, **describe(out.model))
            self._offer_next(out)

    def _refused_again(self, out: OutgoingOffer, outcome: CallOutcome) -> None:
        """Handle a refusal by the receiver of an interrupted transfer: not now, or not at all."""
        reason = getattr(outcome, "reason", "")
        soon = isinstance(outcome, RequestFailed) or reason == "not_ready"
        if soon and out.again < AGAIN_TRIES:
            out.again_at = self._ctx.now + self._params.offer_timeout_s * 2 ** (out.again - 1)
            return
        self._ctx.note("offer_rejected", out.to, reason, **describe(out.model))
        self.outgoing.remove(out)

    def _offer_again(self, out: OutgoingOffer) -> None:
        """Offer to the same site again, so that the bytes it already has are not sent twice."""
        member = self._membership.members.get(out.to)
        barred = member is None or member.refused or member.quarantined
        if barred or self._ctx.info.phase in (Phase.PAUSED, Phase.FAILED, Phase.LEAVING):
            self.outgoing.remove(out)
            return
        out.again, out.again_at = out.again + 1, math.inf
        self._offer(out)

    def _learn_phase(self, site: Site, reason: str) -> None:
        """Exclude the site, which accepts no models now, until it reports another phase."""
        member = self._membership.members.get(site)
        phase = REFUSED_PHASE.get(reason)
        if member is not None and member.info is not None and phase is not None:
            self._membership.learn_phase(member, phase)

    def _transfer(self, out: OutgoingOffer) -> None:
        ctx = self._ctx
        ctx.note("offer_accepted", out.to, **describe(out.model))
        if ctx.info.phase is Phase.LEAVING:
            self.outgoing.remove(out)
            return
        out.transferring = True
        id = ctx.next_id()
        self._transfers[id] = out
        ctx.effects.append(StartTransfer(id, out.to, out.model))

    def receiver(self, id: int) -> Site:
        """The site that a transfer goes to; "" where no transfer has this number."""
        out = self._transfers.get(id)
        return out.to if out is not None else ""

    def on_transfer(self, event: events.TransferDone | events.TransferFailed) -> bool:
        """Handle the outcome of a transfer; False: no such transfer."""
        out = self._transfers.pop(event.id, None)
        if out is None:
            return False
        if isinstance(event, events.TransferDone):
            self.outgoing.remove(out)
            self.counts["sent", out.to] += 1
            self._ctx.note("transfer_done", out.to, **describe(out.model))
            self._ctx.persist()
        else:
            self._ctx.note(
                "transfer_failed", out.to, event.reason, detail=event.detail, **describe(out.model)
            )
            out.transferring = False
            if event.reason in AGAIN and not out.again:
                self._offer_again(out)
            else:
                self.outgoing.remove(out)
        return True

    # -------------------------------------------------------------- receiving

    def on_offer(self, frm: Site, token: int, body: messages.Offer) -> None:
        reason = self._why_not(frm, body.model)
        if not reason and not self.inbox.reserve(frm, body.model, self._ctx.now):
            reason = "busy"
        if not reason:
            if self._ledger.accept(body.model):
                self._ctx.persist()
            reply = messages.OfferReply("accept")
            self._ctx.note("offer_in_accepted", frm, **describe(body.model))
        elif reason == "busy":
            reply = messages.OfferReply("busy", reason)
            self._ctx.note("offer_in_busy", frm, reason, **describe(body.model))
        else:
            reply = messages.OfferReply("reject", reason)
            self._ctx.note("offer_in_rejected", frm, reason, **describe(body.model))
            self._ctx.refused(frm, reason, body.model)
        self._ctx.respond(token, reply)

    def _why_not(self, frm: Site, model: ModelRef) -> str:
        """The reason to reject an offer, or ""."""
        info = self._ctx.info
        member = self._membership.members.get(frm)
        if not self._exchanges:
            return "exchanges_nothing"
        if info.phase in PHASE_REFUSALS:
            return PHASE_REFUSALS[info.phase]
        if self.running_round is not None and self.running_round >= self._budget.last:
            return "finished"  # no later round could host it
        if member is None or member.refused:
            return "contract_mismatch"
        if member.quarantined:
            return "quarantined"
        if not self._handshake.compatible(member):
            if not member.agreed and not member.greeting:
                self._handshake.greet(member, self._params.offer_timeout_s)
            return "not_ready"
        if self.inbox.holds(model.hash) or model.hash == self.last_visit:
            return "duplicate"
        if fault := self._ledger.fault_of_model(frm, model):
            return fault
        if model.size_bytes > self._max_model_bytes:
            return "too_large"
        if 0 < info.round < self._params.warmup_rounds:
            return "warming_up"  # with no round behind it a late joiner may take one over at once
        if is_stale(model.steps, self._ctx.own_steps):
            return "stale"
        return ""

    def on_arrived(self, event: events.ModelArrived) -> None:
        expected = self.inbox.expected(event.frm, event.model.hash)  # with its maker's signed manifest
        promised, replaced = self.inbox.arrive(event.frm, event.model, self._ctx.info.round)
        entry = InboxEntry(event.frm, expected or event.model, self._ctx.info.round)
        if not promised:
            self.dropped(entry, "not_expected")
            return
        self.counts["received", event.frm] += 1
        self._ledger.arrived(entry.model)
        self._ctx.note("model_arrived", event.frm, **describe(event.model))
        for old in replaced:
            self.dropped(old, "replaced")
        if self._ctx.info.phase is Phase.FINISHED:
            self.drop_waiting("finished")
        self._ctx.persist()

    def on_broken(self, event: events.ModelBroken) -> None:
        """Handle a promised model that failed its checks, or whose stream ended for good."""
        if self.inbox.release(event.frm, event.hash) is None:
            return
        self.counts["refused", event.frm] += 1
        self._ctx.note("model_broken", event.frm, event.reason, hash=event.hash, detail=event.detail)
        self._ctx.refused(event.frm, event.reason, None)

    def shun(self, site: Site) -> None:
        """Cancel what a quarantined site was promised, and drop its waiting models."""
        held = self.inbox.release(site)
        if held is not None:
            self._note_drop(held.frm, held.model, "quarantined")
        self.drop_waiting("quarantined", site)

    def expire(self) -> None:
        held = self.inbox.reserved
        if held is not None and self._ctx.now >= held.deadline:
            self.inbox.release(held.frm)
            self._note_drop(held.frm, held.model, "never_came")
            if (member := self._membership.members.get(held.frm)) is not None:
                member.takes.fails(self._ctx.now, "never_came")
        for out in [o for o in self.outgoing if self._ctx.now >= o.again_at]:
            self._offer_again(out)

    def next_deadline(self) -> float:
        due = self.inbox.reserved.deadline if self.inbox.reserved else math.inf
        return min(due, min((o.again_at for o in self.outgoing), default=math.inf))

    def dropped(self, entry: InboxEntry, reason: str) -> None:
        """Count and note a model that was dropped without a visit."""
        self.counts["dropped", entry.frm] += 1
        self._note_drop(entry.frm, entry.model, reason)

    def _note_drop(self, frm: Site | None, model: ModelRef, reason: str) -> None:
        self._ctx.note("model_dropped", frm, reason, **describe(model))

    def drop_waiting(self, reason: str, frm: Site | None = None) -> None:
        """Drop the waiting models, or those of one site."""
        for entry in tuple(self.inbox.waiting):
            if frm is None or entry.frm == frm:
                self.inbox.remove(entry.model.hash)
                self.dropped(entry, reason)


def _number(model: ModelRef) -> int:
    return model.manifest.sequence if model.manifest is not None else 0
