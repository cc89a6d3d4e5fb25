"""The symmetric exchange: two sites trade snapshots of their shared models, and both mix or neither does.

The protocol, its messages and its failures: docs/design/swap.md. In short: the asker offers, both export and
send, each one's worker admits the other's snapshot, the asker says that it is ready, and the site that was
asked commits. Until then either may drop the swap. From "ready" on the asker is in doubt, and the other's
answer decides.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from gossipseg.core import events, messages
from gossipseg.core.budget import Budget
from gossipseg.core.context import Call, CallOutcome, Context
from gossipseg.core.effects import AdmitSnapshot, ApplySwap, ExportSnapshot, StartTransfer, SwapRecord
from gossipseg.core.events import RequestFailed
from gossipseg.core.gossip.exchange import PHASE_REFUSALS, REFUSED_PHASE, describe
from gossipseg.core.gossip.open_swap import OpenSwap, Stage, Turn, restored
from gossipseg.core.gossip.set_aside import ROUNDS
from gossipseg.core.gossip.swap_memory import SwapMemory
from gossipseg.core.gossip.swap_signing import SwapSigner
from gossipseg.core.gossip.swap_terms import plan
from gossipseg.core.gossip.swap_turns import SwapTurns
from gossipseg.core.manifests import ManifestLedger
from gossipseg.core.membership.handshake import Handshake
from gossipseg.core.membership.member import Member
from gossipseg.core.membership.members import Membership
from gossipseg.core.messages import SwapStanding
from gossipseg.core.offences import is_offence, verdict_is_offence
from gossipseg.core.params import GossipParams
from gossipseg.core.types import ExchangeId, ModelRef, Site, SwapTerms

PROBE_SHARE = 4.0
"""Offer timeouts of silence after which a site asks its partner whether the swap is still open."""
TRIES = 5
"""Failed attempts to deliver a snapshot after which the swap is dropped; each pause is twice the last."""
DEADLY = 2
"""Deaths of the worker with an order for one swap after which the order is given up."""
DEAF_CALLS = 3
DEAF_S = 60.0
"""Failed calls in a row to a site that calls in itself, and their span in seconds. After them the site counts
as one that cannot be dialled."""


class SwapExchange:
    """Both sides of the swap."""

    def __init__(
        self,
        ctx: Context,
        params: GossipParams,
        membership: Membership,
        handshake: Handshake,
        *,
        turns: SwapTurns,
        budget: Budget,
        max_model_bytes: int,
        counts: Counter[tuple[str, Site]],
        ledger: ManifestLedger,
        record: SwapRecord,
        floor: int,
    ) -> None:
        self._ctx, self._params, self._membership, self._handshake = ctx, params, membership, handshake
        self.turns, self._budget, self._max_model_bytes = turns, budget, max_model_bytes
        self._counts, self._ledger = counts, ledger
        self._signer = SwapSigner(ctx, membership)
        self.memory = SwapMemory(record, floor)
        self.open: OpenSwap | None = None
        if record.bound is not None:
            self.open = restored(record.bound, ctx.site)
        self._transfers: dict[int, tuple[Site, ModelRef]] = {}
        self._worker_up = False
        self.settled: Callable[[], None] = lambda: None
        """Called when a swap is over; set by worker_state.py."""

    def record(self) -> SwapRecord:
        """What must survive a restart."""
        bound = self.open.bound() if self.open is not None else None
        return SwapRecord(self.memory.number, self.memory.seen(), bound, self.turns.aside.records())

    @property
    def binding(self) -> bool:
        """Whether training may not end yet: a swap is committed here, or in doubt."""
        return self.open is not None and self.open.binding

    # -------------------------------------------------------------- the site's own events

    def start(self) -> None:
        """Go on with the swap that the last run left."""
        open, now = self.open, self._ctx.now
        if open is not None and open.stage is Stage.DOUBT:
            open.deadline, open.next_at = now + self._params.doubt_timeout_s, now

    def worker_ready(self, last_swap: ExchangeId | None) -> None:
        """Give the worker its orders again. Its checkpoint may include the swap already."""
        self._worker_up = True
        open = self.open
        if open is not None and open.stage is Stage.COMMITTED and last_swap == open.id:
            self._end(open)
        else:
            self._order()

    def worker_lost(self) -> None:
        self._worker_up = False
        open = self.open
        if open is None or not self._ordered(open):
            return
        open.losses += 1
        if open.losses < DEADLY:
            return
        if open.stage is Stage.TRADING:
            self._drop(open, "worker_lost")
        elif open.losses > DEADLY:
            self._lose(open, "worker_lost")

    def round_over(self, round: int, due: bool) -> None:
        """Drop what is too old, and ask for a swap if one is due."""
        self.turns.round_over(due)
        open = self.open
        if open is not None and not open.binding:
            if self.turns.over:
                self._drop(open, "finished")
            elif round - open.began_round > self._params.max_age_rounds:
                self._drop(open, "too_old")
        self._ask()

    def leave(self) -> None:
        """Drop what is not bound; the rest waits for the next start."""
        if self.open is not None and not self.open.binding:
            self._drop(self.open, "leaving")

    def on_change(self, member: Member, ended: bool) -> None:
        """Drop the swap with a member whose run is over, or that is out; its answer still decides a doubt."""
        open = self.open
        if open is None or open.partner != member.site or open.binding:
            return
        if ended or not member.live or member.quarantined or member.refused:
            self._drop(open, "quarantined" if member.quarantined else "partner_gone")

    def on_harm(self, event: events.HarmfulPeer) -> bool:
        """Set a peer aside whose swaps did harm here, or only note it."""
        round, peers = self._ctx.info.round, len(self._membership.members)
        why_not = self.turns.aside.add(event.site, round, peers)
        self._ctx.note("peer_harmful", event.site, why_not, detail=event.detail)
        if not why_not:
            self._ctx.note("peer_set_aside", event.site, rounds=ROUNDS)
            self._ctx.persist()
        return True

    def keep(self, listed: Iterable[Site]) -> None:
        """Only these sites are listed now. (The caller persists.)"""
        self.memory.keep(listed)
        self.turns.aside.keep(listed, self._ctx.info.round)

    def expire(self) -> None:
        """Do what is due by the clock."""
        open, now = self.open, self._ctx.now
        if open is None:
            return
        if now >= open.deadline:
            self._drop(open, "in_doubt" if open.stage is Stage.DOUBT else "never_came")
        elif now >= open.next_at:
            self._speak(open)

    def next_deadline(self) -> float:
        return min(self.open.deadline, self.open.next_at) if self.open is not None else math.inf

    # -------------------------------------------------------------- asking

    def _ask(self) -> None:
        """Ask the next peer, if a swap is due and none is open."""
        while self.open is None and self._worker_up:
            site = self.turns.next_peer()
            if site is None:
                return
            member = self._membership.members[site]
            if self._handshake.compatible(member):
                self._offer(site)
                return
            if not member.agreed and not member.greeting:
                self._handshake.greet(member, self._params.offer_timeout_s, self._on_greeted)
                return

    def _on_greeted(self, call: Call, outcome: CallOutcome) -> None:
        member = self._handshake.settle(call, outcome)
        if self.open is not None:
            return
        if member is not None and member.exchanges_now and self._handshake.compatible(member):
            self._offer(member.site)
        else:
            self._ask()

    def _offer(self, site: Site) -> None:
        ctx = self._ctx
        id = ExchangeId(ctx.site, self.memory.next_number())
        terms = self._signer.sign(id, site, behind=self.turns.behind())
        self.open = OpenSwap(
            id, site, asker=True, stage=Stage.ASKING, began_round=ctx.info.round, deadline=math.inf
        )
        self.open.terms = terms
        ctx.persist()  # its number is never used again
        ctx.note("swap_asked", site, number=id.number)
        ctx.request(site, messages.SwapOffer(terms), self._params.offer_timeout_s, self._on_answer, id)

    def _on_answer(self, call: Call, outcome: CallOutcome) -> None:
        open = self._mine(call)
        accepted = isinstance(outcome, messages.SwapOfferReply) and outcome.verdict == "accept"
        if open is None or open.stage is not Stage.ASKING:
            if accepted:  # too late: this site has given up the offer
                self._tell(call.to, call.about, "dropped", "given_up")
            return
        if isinstance(outcome, messages.SwapOfferReply) and outcome.verdict == "accept":
            self._membership.heard(call.to, None)
            self._accepted(open, outcome.terms)
            return
        reason = getattr(outcome, "reason", "")
        self._ctx.note("swap_refused", call.to, reason, number=open.id.number)
        self.open = None
        if isinstance(outcome, RequestFailed):
            self._tell(call.to, open.id, "dropped", "given_up")  # the accept may have been lost
        else:
            self._membership.heard(call.to, None)
            self._learn_phase(call.to, reason)
        self._ask()

    def _accepted(self, open: OpenSwap, theirs: SwapTerms | None) -> None:
        fault = self._signer.fault(theirs, open.id, open.partner)
        if fault or theirs is None or open.terms is None:
            self._ctx.refused(open.partner, fault, None)
            self._drop(open, fault)
            return
        agreed = plan(open.terms, theirs)
        if agreed is None:
            self._drop(open, "no_plan")
            return
        open.part, open.their_part, open.weight = agreed.of(asker=True)
        open.turn(Turn.ACCEPTED)
        self._opened(open)

    def _learn_phase(self, site: Site, reason: str) -> None:
        """Exclude a site that says that it takes no part now, until it reports another phase."""
        member, phase = self._membership.members.get(site), REFUSED_PHASE.get(reason)
        if member is not None and member.info is not None and phase is not None:
            self._membership.learn_phase(member, phase)

    # -------------------------------------------------------------- being asked

    def on_offer(self, frm: Site, token: int, body: messages.SwapOffer) -> None:
        terms = body.terms
        self._outdate(frm, terms.swap)
        open = self.open
        if open is not None and open.id == terms.swap and open.partner == frm and open.terms is not None:
            reply = messages.SwapOfferReply("accept", "", open.terms)  # the first answer may have been lost
            self._ctx.respond(token, reply)
            return
        reason = self._why_not(frm, terms)
        if not reason and open is not None and not self._gives_way(open, frm):
            reason = "busy"
        ours = self._signer.sign(terms.swap, frm, behind=self.turns.behind(), one_way=self._cannot_dial(frm))
        agreed = plan(terms, ours) if not reason else None
        if not reason and agreed is None:
            reason = "cannot_dial" if ours.one_way else "no_cases"
        if agreed is None:
            self._refuse(frm, token, terms.swap, reason)
            return
        self.open = open = OpenSwap(
            terms.swap,
            frm,
            asker=False,
            stage=Stage.TRADING,
            began_round=self._ctx.info.round,
            deadline=math.inf,
            terms=ours,
        )
        open.part, open.their_part, open.weight = agreed.of(asker=False)
        self.memory.note(terms.swap, "open")
        self._ctx.persist()  # a later offer under this number is refused, even after a restart
        self._ctx.respond(token, messages.SwapOfferReply("accept", "", ours))
        self._opened(open)

    def _refuse(self, frm: Site, token: int, swap: ExchangeId, reason: str) -> None:
        verdict = messages.SwapOfferReply("busy" if reason == "busy" else "reject", reason)
        if swap.asker == frm and reason != "old_number":
            self.memory.note(swap, "dropped")
        self._ctx.note("swap_in_refused", frm, reason, number=swap.number)
        self._ctx.refused(frm, reason, None)
        self._ctx.respond(token, verdict)

    def _why_not(self, frm: Site, terms: SwapTerms) -> str:
        """The reason to reject an offer, or ""."""
        ctx, member = self._ctx, self._membership.members.get(frm)
        if ctx.info.phase in PHASE_REFUSALS:
            return PHASE_REFUSALS[ctx.info.phase]
        if self.turns.over:
            return "finished"
        if member is None or member.refused:
            return "contract_mismatch"
        if member.quarantined:
            return "quarantined"
        if not self._handshake.compatible(member):
            if not member.agreed and not member.greeting:
                self._handshake.greet(member, self._params.offer_timeout_s)
            return "not_ready"
        if fault := self._signer.fault(terms, terms.swap, frm):
            return fault
        if terms.swap.asker != frm:
            return "terms_mismatch"
        if not self.memory.is_new(terms.swap):
            return "old_number"
        if frm in self.turns.aside.now(ctx.info.round):
            return "set_aside"
        return "warming_up" if self.turns.warming_up() else ""

    def _gives_way(self, open: OpenSwap, frm: Site) -> bool:
        """Whether this site takes its own offer back: the two have asked each other at once."""
        return open.stage is Stage.ASKING and open.partner == frm and frm < self._ctx.site

    def _outdate(self, frm: Site, swap: ExchangeId) -> None:
        """Drop the swap that is open with an asker that has gone on to a later one."""
        open = self.open
        if open is None or open.stage is not Stage.TRADING or open.asker or open.partner != frm:
            return
        if swap.asker == frm and swap.number > open.id.number:
            self._drop(open, "given_up", tell=False, ask=False)

    def _cannot_dial(self, site: Site) -> bool:
        """Whether a site calls in, and this site's calls to it fail."""
        member = self._membership.members.get(site)
        if member is None or member.deaf.failed < DEAF_CALLS:
            return False
        return self._ctx.now - member.deaf.since >= DEAF_S

    # -------------------------------------------------------------- trading

    def _opened(self, open: OpenSwap) -> None:
        self.turns.took_part()
        now = self._ctx.now
        open.deadline = now + self._params.transfer_timeout_s
        open.next_at = now + PROBE_SHARE * self._params.offer_timeout_s
        self._ctx.note(
            "swap_opened",
            open.partner,
            number=open.id.number,
            asker=open.id.asker,
            part=open.part,
            weight=open.weight,
        )
        self._order()
        self._progress(open)

    def on_exported(self, event: events.SnapshotExported) -> bool:
        open = self._current(event.swap, Stage.TRADING)
        if open is None or open.own is not None:
            return True
        if event.model is None:
            self._drop(open, event.reason)
            return True
        open.own = self._ledger.sign(event.model)
        self._ctx.persist()  # its number is never used again
        if open.gives:
            self._speak(open)
        self._progress(open)
        return True

    def _speak(self, open: OpenSwap) -> None:
        """Send the message that is next: the snapshot, "ready", or the question how the swap stands."""
        timeout_s = self._params.offer_timeout_s
        open.next_at = self._ctx.now + PROBE_SHARE * timeout_s
        if open.stage is Stage.DOUBT:
            body = messages.SwapReady(open.id)
            self._ctx.request(open.partner, body, timeout_s, self._on_state, open.id)
        elif open.stage is Stage.TRADING:
            if open.gives and open.own is not None and not open.delivered:
                if open.transfer is None:
                    told = messages.SwapSnapshot(open.id, open.own)
                    self._ctx.request(open.partner, told, timeout_s, self._on_snapshot_reply, open.id)
            else:
                self._tell(open.partner, open.id, "open", "")
        else:
            open.next_at = math.inf

    def _on_snapshot_reply(self, call: Call, outcome: CallOutcome) -> None:
        open = self._mine(call)
        if open is None or open.stage is not Stage.TRADING or open.own is None:
            return
        if not isinstance(outcome, messages.SwapSnapshotReply):
            self._undelivered(open, getattr(outcome, "reason", "unreachable"))
        elif outcome.verdict == "accept":
            if open.transfer is None:
                open.transfer = self._ctx.next_id()
                self._transfers[open.transfer] = (open.partner, open.own)
                self._ctx.effects.append(StartTransfer(open.transfer, open.partner, open.own))
        elif outcome.verdict == "here":
            open.delivered = True
            self._progress(open)
        elif outcome.verdict == "wait":
            open.next_at = self._ctx.now + self._params.offer_timeout_s
        else:
            self._drop(open, outcome.reason, tell=outcome.reason != "no_such_swap")

    def on_transfer(self, event: events.TransferDone | events.TransferFailed) -> bool:
        """Handle the outcome of a transfer; False: no such transfer."""
        found = self._transfers.pop(event.id, None)
        if found is None:
            return False
        to, model = found
        open = self.open if self.open is not None and self.open.transfer == event.id else None
        if isinstance(event, events.TransferDone):
            self._counts["sent", to] += 1
            self._ctx.note("transfer_done", to, **describe(model))
            if open is not None:
                open.transfer, open.delivered = None, True
                self._progress(open)
        else:
            self._ctx.note("transfer_failed", to, event.reason, detail=event.detail, **describe(model))
            if open is not None:
                open.transfer = None
                self._undelivered(open, event.reason)
        return True

    def _undelivered(self, open: OpenSwap, reason: str) -> None:
        """Try again after a pause, or drop the swap."""
        open.tries += 1
        if open.tries >= TRIES:
            self._drop(open, reason)
        else:
            open.next_at = self._ctx.now + self._params.offer_timeout_s * 2 ** (open.tries - 1)

    def on_snapshot(self, frm: Site, token: int, body: messages.SwapSnapshot) -> None:
        """Handle the partner's word of its snapshot; the stream follows if it is accepted."""
        open = self.open
        if open is None or open.id != body.swap or open.partner != frm:
            self._ctx.respond(token, messages.SwapSnapshotReply("reject", "no_such_swap"))
        elif open.stage is Stage.ASKING:
            self._ctx.respond(token, messages.SwapSnapshotReply("wait", "not_opened"))
        elif open.theirs is not None and open.theirs.hash == body.model.hash:
            self._ctx.respond(token, messages.SwapSnapshotReply("here" if open.arrived else "accept"))
        elif reason := self._wrong(open, frm, body.model):
            self._ctx.respond(token, messages.SwapSnapshotReply("reject", reason))
            self._ctx.refused(frm, reason, body.model)
            if open.stage is Stage.TRADING:
                self._drop(open, reason, tell=False)
        else:
            open.theirs = body.model
            self._ledger.accept(
                body.model
            )  # persisted with the next record: a crash before it drops the swap
            self._ctx.respond(token, messages.SwapSnapshotReply("accept"))

    def _wrong(self, open: OpenSwap, frm: Site, model: ModelRef) -> str:
        """Why a snapshot is not taken, or ""."""
        if open.stage is not Stage.TRADING or not open.takes or open.arrived:
            return "other_model"
        if fault := self._ledger.fault_of_model(frm, model):
            return fault
        return "too_large" if model.size_bytes > self._max_model_bytes else ""

    def expects(self, frm: Site, hash: str) -> ModelRef | None:
        """The partner's snapshot whose stream may come now; else None."""
        open = self.open
        if open is None or open.stage is not Stage.TRADING or open.partner != frm or open.arrived:
            return None
        return open.theirs if open.theirs is not None and open.theirs.hash == hash else None

    def on_began(self, frm: Site, hash: str) -> bool:
        """Note that a stream has begun or continues; False: it is not expected."""
        if self.expects(frm, hash) is None or self.open is None:
            return False
        self.open.next_at = self._ctx.now + PROBE_SHARE * self._params.offer_timeout_s
        return True

    def on_arrived(self, event: events.ModelArrived) -> bool:
        """Note that the snapshot is in the store; False: it was not expected."""
        model, open = self.expects(event.frm, event.model.hash), self.open
        if model is None or open is None:
            return False
        open.arrived = True
        self._counts["received", event.frm] += 1
        self._ledger.arrived(model)
        self._ctx.note("model_arrived", event.frm, **describe(model))
        self._order()
        return True

    def on_broken(self, event: events.ModelBroken) -> bool:
        """Handle a snapshot that failed its checks, or whose stream ended; False: it was not expected."""
        model, open = self.expects(event.frm, event.hash), self.open
        if model is None or open is None:
            return False
        self._ctx.note("model_broken", event.frm, event.reason, hash=event.hash, detail=event.detail)
        if is_offence(event.reason, event.frm, model):
            self._counts["refused", event.frm] += 1
            self._ctx.offence(event.frm, event.reason)
            self._drop(open, event.reason)
        return True  # else its sender tries again

    def on_admitted(self, event: events.SnapshotAdmitted) -> bool:
        open = self._current(event.swap, Stage.TRADING)
        if open is None or not open.arrived:
            return True
        if event.reason:
            self._counts["refused", open.partner] += 1
            if verdict_is_offence(event.reason):
                self._ctx.offence(open.partner, event.reason)
            self._drop(open, event.reason)
        else:
            open.admitted = True
            self._progress(open)
        return True

    # -------------------------------------------------------------- the decision

    def _progress(self, open: OpenSwap, *, answering: bool = False) -> None:
        """Say that this site is ready, or commit, if it has all that it needs. `answering`: the partner hears
        of it in an answer."""
        if open.stage is not Stage.TRADING or not open.fulfilled:
            return
        if open.asker:
            open.turn(Turn.READY)
            open.deadline = self._ctx.now + self._params.doubt_timeout_s
            self._ctx.persist()  # from here on the other site's word decides
            self._speak(open)
        elif open.partner_ready:
            self._commit(open)
            if not answering:
                self._tell(open.partner, open.id, "committed", "")

    def on_ready(self, frm: Site, token: int, body: messages.SwapReady) -> None:
        """Handle the asker's "ready": commit if all is here. Sent again, it asks for the outcome."""
        swap = body.swap
        self._outdate(frm, swap)
        open = self.open
        if open is not None and open.id == swap and open.partner == frm and not open.asker:
            open.partner_ready = True
            self._progress(open, answering=True)
        elif swap.asker == frm and self.memory.is_new(swap):
            self.memory.note(swap, "dropped")
            self._ctx.persist()  # its offer, should it still come, opens nothing
        self._ctx.respond(token, messages.SwapState(self._standing(frm, swap)))

    def on_told(self, frm: Site, token: int, body: messages.SwapTold) -> None:
        """Handle the partner's word of how the swap stands, and answer how it stands here."""
        swap = body.swap
        self._outdate(frm, swap)
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

    def _tell(self, to: Site, swap: ExchangeId, standing: SwapStanding, reason: str) -> None:
        body = messages.SwapTold(swap, standing, reason)
        self._ctx.request(to, body, self._params.offer_timeout_s, self._on_state, swap)

    def _on_state(self, call: Call, outcome: CallOutcome) -> None:
        open = self._mine(call)
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
            self._drop(open, reason or "dropped_there", tell=False)

    def _commit(self, open: OpenSwap) -> None:
        open.turn(Turn.COMMIT)
        open.deadline = open.next_at = math.inf
        if not open.asker:
            self.memory.note(open.id, "committed")
        self._ctx.note("swap_committed", open.partner, number=open.id.number, asker=open.id.asker)
        if open.takes:
            self._ctx.persist()  # before any answer, and before the worker applies it
            self._order()
        else:
            self._end(open)

    def on_applied(self, event: events.SwapApplied) -> bool:
        open = self._current(event.swap, Stage.COMMITTED)
        if open is None:
            return True  # known since the worker's start
        if event.reason:
            self._lose(open, event.reason)
            return True
        if event.steps is not None:
            self._ctx.say(steps=event.steps)
        if event.ahead is not None:
            self._budget.ahead = event.ahead
        self._end(open)
        return True

    # -------------------------------------------------------------- the end

    def _end(self, open: OpenSwap) -> None:
        """Close a swap that has done its part here."""
        what = {"mix": "mixed", "copy": "copied", "keep": "kept"}[open.part]
        self._counts[what, open.partner] += 1
        self._ctx.note("swap_applied", open.partner, open.part, number=open.id.number, asker=open.id.asker)
        open.turn(Turn.APPLIED)
        self._close()

    def _lose(self, open: OpenSwap, reason: str) -> None:
        """Give up a committed swap that the worker cannot apply: it holds at the other site alone."""
        self._counts["swap_lost", open.partner] += 1
        self._ctx.note("swap_lost", open.partner, reason, number=open.id.number, asker=open.id.asker)
        open.turn(Turn.APPLIED)
        self._close()

    def _drop(self, open: OpenSwap, reason: str, *, tell: bool = True, ask: bool = True) -> None:
        """Give a swap up. `ask`: whether another peer may be asked in its place now."""
        detail = {"number": open.id.number, "asker": open.id.asker}
        if reason == "in_doubt":
            self._counts["swap_in_doubt", open.partner] += 1
            self._ctx.note("swap_in_doubt", open.partner, "no_answer", **detail)
        else:
            self._counts["swap_dropped", open.partner] += 1
            self._ctx.note("swap_dropped", open.partner, reason, **detail)
        if open.stage is not Stage.ASKING:
            self.turns.broken()
        open.turn(Turn.DROP)
        if not open.asker:
            self.memory.note(open.id, "dropped")
        self.open = None
        if tell:
            self._tell(open.partner, open.id, "dropped", reason)
        self._close(ask)

    def _close(self, ask: bool = True) -> None:
        self.open = None
        self._ctx.persist()
        if ask:
            self._ask()
        self.settled()

    # -------------------------------------------------------------- the worker

    def _ordered(self, open: OpenSwap) -> bool:
        """Whether the worker has an order for it."""
        if open.stage is Stage.COMMITTED:
            return open.takes
        exporting = open.exports and open.own is None
        return open.stage is Stage.TRADING and (exporting or (open.arrived and not open.admitted))

    def _order(self) -> None:
        """Give the worker what is to be done now. A repeated order does no harm."""
        open = self.open
        if open is None or not self._worker_up:
            return
        effects = self._ctx.effects
        if open.stage is Stage.COMMITTED:
            if open.theirs is not None and open.part != "keep":
                own = open.own if open.part == "mix" else None
                effects.append(ApplySwap(open.id, open.partner, open.part, open.weight, open.theirs, own))
        elif open.stage is Stage.TRADING:
            if open.exports and open.own is None:
                effects.append(ExportSnapshot(open.id))
            if open.arrived and not open.admitted and open.theirs is not None:
                effects.append(AdmitSnapshot(open.id, open.partner, open.theirs))

    # -------------------------------------------------------------- views

    def _mine(self, call: Call) -> OpenSwap | None:
        """The open swap that a call was about."""
        return self.open if self.open is not None and self.open.id == call.about else None

    def _current(self, swap: ExchangeId, stage: Stage) -> OpenSwap | None:
        open = self.open
        return open if open is not None and open.id == swap and open.stage is stage else None

    def receiver(self, id: int) -> Site:
        """The site that a transfer goes to; "" where no transfer has this number."""
        found = self._transfers.get(id)
        return found[0] if found is not None else ""

    def sending(self) -> list[tuple[Site, ModelRef]]:
        """Snapshots that are being sent."""
        return list(self._transfers.values())

    def kept(self) -> list[ModelRef]:
        """Files that the store must keep."""
        models: list[Any] = [self.open.own, self.open.theirs] if self.open is not None else []
        return [m for m in (*models, *(m for _, m in self._transfers.values())) if m is not None]
