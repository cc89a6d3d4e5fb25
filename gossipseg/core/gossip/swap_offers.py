"""Offers of a swap: this site's own to a peer, and those of others.

The protocol, its messages and its failures: docs/design/swap.md.
"""

from __future__ import annotations

import math

from gossipseg.core import messages
from gossipseg.core.context import Call, CallOutcome, Context
from gossipseg.core.gossip.exchange import PHASE_REFUSALS, REFUSED_PHASE
from gossipseg.core.gossip.open_swap import OpenSwap, Stage, Turn
from gossipseg.core.gossip.swap_decision import SwapDecision
from gossipseg.core.gossip.swap_signing import SwapSigner
from gossipseg.core.gossip.swap_terms import plan
from gossipseg.core.gossip.swap_turns import WINDOW_CLOSED
from gossipseg.core.membership.handshake import Handshake
from gossipseg.core.membership.members import Membership
from gossipseg.core.params import GossipParams
from gossipseg.core.types import ExchangeId, Site, SwapTerms

DEAF_CALLS = 3
DEAF_S = 60.0
"""Failed calls in a row to a site that calls in itself, and their span in seconds. After them the site counts
as one that cannot be dialled."""


class SwapOffers:
    """The opening of a swap, from both sides."""

    def __init__(
        self,
        ctx: Context,
        params: GossipParams,
        membership: Membership,
        handshake: Handshake,
        decision: SwapDecision,
    ) -> None:
        self._ctx, self._params, self._membership, self._handshake = ctx, params, membership, handshake
        self._decision, self._signer = decision, SwapSigner(ctx, membership)

    def ask(self) -> None:
        """Ask the next peer, if a swap is due and none is open."""
        while self._decision.open is None and self._decision.worker_up:
            site = self._decision.turns.next_peer()
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
        if self._decision.open is not None or not self._decision.turns.asks_still():
            return
        if member is not None and member.exchanges_now and self._handshake.compatible(member):
            self._offer(member.site)
        else:
            self.ask()

    def _offer(self, site: Site) -> None:
        ctx = self._ctx
        id = ExchangeId(ctx.site, self._decision.memory.next_number())
        terms = self._signer.sign(
            id, site, behind=self._decision.turns.behind(), mark=self._decision.turns.mark()
        )
        self._decision.open = OpenSwap(
            id, site, asker=True, stage=Stage.ASKING, began_round=ctx.info.round, deadline=math.inf
        )
        self._decision.open.terms = terms
        ctx.persist()  # its number is never used again
        ctx.note("swap_asked", site, number=id.number, asker=id.asker)
        ctx.request(site, messages.SwapOffer(terms), self._params.offer_timeout_s, self._on_answer, id)

    def _on_answer(self, call: Call, outcome: CallOutcome) -> None:
        open = self._decision.mine(call)
        reply = outcome if isinstance(outcome, messages.SwapOfferReply) else None
        if reply is not None:
            self._membership.heard(call.to, None)
        accepted = reply is not None and reply.verdict == "accept"
        if open is None or open.stage is not Stage.ASKING:
            if accepted:  # too late: this site has given up the offer
                self._decision.tell(call.to, call.about, "dropped", "given_up")
        elif reply is not None and accepted:
            self._accepted(open, reply.terms)
        else:
            reason, detail = getattr(outcome, "reason", ""), getattr(outcome, "detail", "")
            self._refused(open, reason, detail, answered=reply is not None)

    def _refused(self, open: OpenSwap, reason: str, detail: str, *, answered: bool) -> None:
        """Ask another peer."""
        more = {"detail": detail} if detail else {}
        self._ctx.note(
            "swap_refused", open.partner, reason, number=open.id.number, asker=open.id.asker, **more
        )
        self._decision.open = None
        self._decision.turns.refused(reason)
        if answered:
            self._learn_phase(open.partner, reason)
        else:  # an accept may have been lost
            self._decision.tell(open.partner, open.id, "dropped", "given_up")
        self.ask()

    def _accepted(self, open: OpenSwap, theirs: SwapTerms | None) -> None:
        fault = self._signer.fault(theirs, open.id, open.partner)
        if fault or theirs is None or open.terms is None:
            self._ctx.refused(open.partner, fault, None)
            self._decision.drop(open, fault)
            return
        agreed = plan(open.terms, theirs)
        if agreed is None:
            self._decision.drop(open, "no_plan")
            return
        open.part, open.their_part, open.weight = agreed.of(asker=True)
        open.turn(Turn.ACCEPTED)
        self._decision.opened(open)

    def _learn_phase(self, site: Site, reason: str) -> None:
        """Exclude a site that says that it takes no part now, until it reports another phase."""
        member, phase = self._membership.members.get(site), REFUSED_PHASE.get(reason)
        if member is not None and member.info is not None and phase is not None:
            self._membership.learn_phase(member, phase)

    # -------------------------------------------------------------- being asked

    def on_offer(self, frm: Site, token: int, body: messages.SwapOffer) -> None:
        """Accept an offer, or say why not."""
        terms = body.terms
        self._decision.outdate(frm, terms.swap)
        open = self._decision.open
        if open is not None and open.id == terms.swap and open.partner == frm and open.terms is not None:
            reply = messages.SwapOfferReply("accept", "", open.terms)  # the first answer may have been lost
            self._ctx.respond(token, reply)
            return
        reason = self._why_not(frm, terms)
        gives_way = open is None or self._gives_way(open, frm) or self._decision.displaceable(open)
        if not reason and not gives_way:
            reason = "busy"
        ours = self._signer.sign(
            terms.swap,
            frm,
            behind=self._decision.turns.behind(),
            one_way=self._cannot_dial(frm),
        )
        agreed = plan(terms, ours) if not reason else None
        if not reason and agreed is None:
            reason = "cannot_dial" if ours.one_way else "no_cases"
        if agreed is None:
            self._refuse(frm, token, terms.swap, reason)
            return
        if open is not None and open.stage is Stage.TRADING:
            self._decision.drop(open, "displaced", ask=False)
        self._decision.open = open = OpenSwap(
            terms.swap,
            frm,
            asker=False,
            stage=Stage.TRADING,
            began_round=self._ctx.info.round,
            deadline=math.inf,
            terms=ours,
        )
        open.part, open.their_part, open.weight = agreed.of(asker=False)
        self._decision.turns.accepts(terms)
        self._decision.memory.note(terms.swap, "open")
        self._ctx.persist()  # a later offer under this number is refused, even after a restart
        self._ctx.respond(token, messages.SwapOfferReply("accept", "", ours))
        self._decision.opened(open)

    def _refuse(self, frm: Site, token: int, swap: ExchangeId, reason: str) -> None:
        verdict = messages.SwapOfferReply("busy" if reason == "busy" else "reject", reason)
        if swap.asker == frm and self._decision.memory.is_new(swap):
            self._decision.memory.note(swap, "dropped")
        self._ctx.note("swap_in_refused", frm, reason, number=swap.number, asker=swap.asker)
        self._ctx.refused(frm, reason, None)
        self._ctx.respond(token, verdict)

    def _why_not(self, frm: Site, terms: SwapTerms) -> str:
        """The reason to reject an offer, or ""."""
        ctx, member = self._ctx, self._membership.members.get(frm)
        if ctx.info.phase in PHASE_REFUSALS:
            return PHASE_REFUSALS[ctx.info.phase]
        if self._decision.turns.over:
            return "finished"
        if self._decision.turns.window_closed:
            return WINDOW_CLOSED
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
        if not self._decision.memory.is_new(terms.swap):
            return "old_number"
        if frm in self._decision.turns.aside.now(ctx.info.round):
            return "set_aside"
        return "warming_up" if self._decision.turns.warming_up() else self._decision.turns.refusal(terms)

    def _gives_way(self, open: OpenSwap, frm: Site) -> bool:
        """Whether this site takes its own offer back: the two have asked each other at once."""
        return open.stage is Stage.ASKING and open.partner == frm and frm < self._ctx.site

    def _cannot_dial(self, site: Site) -> bool:
        """Whether a site calls in, and this site's calls to it fail."""
        member = self._membership.members.get(site)
        if member is None or member.deaf.failed < DEAF_CALLS:
            return False
        return self._ctx.now - member.deaf.since >= DEAF_S
