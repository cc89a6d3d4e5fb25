"""The symmetric exchange: two sites trade snapshots of their shared models, and both mix or neither does.

The protocol, its messages and its failures: docs/design/swap.md. In short: the asker offers, both export and
send, each one's worker admits the other's snapshot, the asker says that it is ready, and the site that was
asked commits. Until then either may drop the swap. From "ready" on the asker is in doubt, and the other's
answer decides.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

from gossipseg.core import events
from gossipseg.core.budget import Budget
from gossipseg.core.context import Context
from gossipseg.core.effects import SwapRecord
from gossipseg.core.gossip.open_swap import OpenSwap, Stage, restored
from gossipseg.core.gossip.set_aside import ROUNDS
from gossipseg.core.gossip.swap_decision import SwapDecision
from gossipseg.core.gossip.swap_memory import SwapMemory
from gossipseg.core.gossip.swap_offers import SwapOffers
from gossipseg.core.gossip.swap_trade import SwapTrade
from gossipseg.core.gossip.swap_turns import SwapTurns
from gossipseg.core.manifests import ManifestLedger
from gossipseg.core.membership.handshake import Handshake
from gossipseg.core.membership.member import Member
from gossipseg.core.membership.members import Membership
from gossipseg.core.params import GossipParams
from gossipseg.core.types import Site


class SwapExchange:
    """The parts of the exchange, and what the site itself does to its open swap."""

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
        self._ctx, self._params, self._membership, self.turns = ctx, params, membership, turns
        self.memory = SwapMemory(record, floor)
        self.decision = SwapDecision(
            ctx,
            params,
            membership,
            turns=turns,
            budget=budget,
            counts=counts,
            memory=self.memory,
            open=restored(record.bound, ctx.site) if record.bound is not None else None,
        )
        self.trade = SwapTrade(
            ctx, params, self.decision, ledger=ledger, counts=counts, max_model_bytes=max_model_bytes
        )
        self.offers = SwapOffers(ctx, params, membership, handshake, self.decision)
        self.decision.ask, self.decision.speak = self.offers.ask, self.trade.speak

    @property
    def open(self) -> OpenSwap | None:
        """The swap that this site has open."""
        return self.decision.open

    def record(self) -> SwapRecord:
        """What must survive a restart."""
        bound = self.open.bound() if self.open is not None else None
        aside, last = self.turns.aside.records(), self.turns.made
        return SwapRecord(self.memory.number, self.memory.seen(), bound, aside, last)

    @property
    def binding(self) -> bool:
        """Whether training may not end yet: a swap is committed here, or in doubt."""
        return self.open is not None and self.open.binding

    def start(self) -> None:
        """Go on with the swap that the last run left."""
        open, now = self.open, self._ctx.now
        if open is not None and open.stage is Stage.DOUBT:
            open.deadline, open.next_at = now + self._params.doubt_timeout_s, now

    def round_over(self, round: int) -> None:
        """Drop what is too old, and ask for a swap if one is due."""
        self.turns.round_over()
        open = self.open
        if open is not None and not open.binding:
            if self.turns.over:
                self.decision.drop(open, "finished")
            elif round - open.began_round > self._params.max_age_rounds:
                self.decision.drop(open, "too_old")
        self.offers.ask()

    def pause(self) -> None:
        """Drop what is not bound: a worker that is held carries out no order, and the partner would wait."""
        if self.open is not None and not self.open.binding:
            self.decision.drop(self.open, "paused", ask=False)

    def leave(self) -> None:
        """Drop what is not bound; the rest waits for the next start."""
        if self.open is not None and not self.open.binding:
            self.decision.drop(self.open, "leaving")

    def on_change(self, member: Member, ended: bool) -> None:
        """Drop the swap with a member whose run is over, or that is out; its answer still decides a doubt."""
        open = self.open
        if open is None or open.partner != member.site or open.binding:
            return
        if ended or not member.live or member.quarantined or member.refused:
            self.decision.drop(open, "quarantined" if member.quarantined else "partner_gone")

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
            if now >= self.turns.next_at:
                self.offers.ask()
            return
        if now >= open.deadline:
            self.decision.overdue(open)
        elif now >= open.next_at:
            self.trade.speak(open)

    def next_deadline(self) -> float:
        if self.open is not None:
            return min(self.open.deadline, self.open.next_at)
        return self.turns.next_at if self.decision.worker_up else math.inf
