"""Swaps along a hypercube: log2 N stages a round, after which every site has met every other's model.

The numbering is shuffled each round from the contract, which holds the seed. Sites that see the same list of
the living find the same numbering without a message. docs/design/swap.md has the rules.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from typing import Any

from gossipseg.core.gossip.swap_turns import SwapTurns
from gossipseg.core.types import Site, SwapTerms

STAGE_SHARE = 4.0
"""Offer timeouts after which a stage whose partner is not there is skipped."""
RETRY_SHARE = 0.2
"""Offer timeouts between two offers to a partner that is busy with the stage before."""


def numbering(sites: Iterable[Site], seed: str, position: int) -> list[Site]:
    """The sites in the order of that round."""

    def key(site: Site) -> bytes:
        return hashlib.blake2b(f"{seed}\n{position}\n{site}".encode(), digest_size=16).digest()

    return sorted(sites, key=key)


def stages(n: int) -> int:
    """Number of stages among n sites: log2 n, rounded up."""
    return (n - 1).bit_length()


def partner_of(order: Sequence[Site], site: Site, stage: int) -> Site | None:
    """The site to swap with at a stage; None: there is none."""
    if site not in order:
        return None
    other = order.index(site) ^ (1 << stage)
    return order[other] if other < len(order) else None


def fingerprint_of(order: Sequence[Site]) -> str:
    """A hash that two sites share which see the same list."""
    return hashlib.blake2b("\n".join(order).encode(), digest_size=8).hexdigest()


class HypercubeTurns(SwapTurns):
    """Whom a site asks at each stage. Of the two partners the one with the lower number asks."""

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self._position = -1
        """Round of the federation whose stages are under way."""
        self._stage = 0
        self._order: list[Site] = []
        self._asks = False
        """Whether this site has ended that round. Before that it is only asked."""
        self._stage_until = math.inf

    @property
    def per_round(self) -> int:
        return max(1, stages(len(self._order)))

    # -------------------------------------------------------------- turns

    def round_over(self) -> None:
        """Begin the stages of the round that has ended, or go on with them.

        Exchanges are due at the same rounds everywhere: partners are at one stage of one round.
        """
        position = self.round
        due = self._times.is_end(position)
        self.count_due(due)
        if not due:
            self._finish()
            return
        if position != self._position:
            self._begin(position)
        self._asks = True
        self._wait()

    def _begin(self, position: int) -> None:
        self._position, self._stage, self._order = position, 0, self._numbering(position)

    def _finish(self) -> None:
        """Ask no more in this round."""
        self._stage, self.next_at = stages(len(self._order)), math.inf

    def _numbering(self, position: int) -> list[Site]:
        """All the living, in order. Who is set aside here keeps its number: the others count it."""
        return numbering([self._ctx.site, *self._pool.sites], self._ctx.info.contract, position)

    def _wait(self) -> None:
        """Begin a stage."""
        now = self._ctx.now
        self.next_at, self._stage_until = now, now + STAGE_SHARE * self._params.offer_timeout_s

    def next_peer(self) -> Site | None:
        """The partner to ask now; None: wait until `next_at`."""
        if not self._asks or not self._may_ask():
            self.next_at = math.inf
            return None
        now = self._ctx.now
        while self._stage < stages(len(self._order)):
            other = partner_of(self._order, self._ctx.site, self._stage)
            if other is None or not self._meets(other) or now >= self._stage_until:
                self._skip()
            elif self._order.index(self._ctx.site) > self._order.index(other):
                self.next_at = self._stage_until
                return None
            elif now < self.next_at:
                return None
            else:
                self.next_at = now + RETRY_SHARE * self._params.offer_timeout_s
                return other
        self.next_at = math.inf
        return None

    def asks_still(self) -> bool:
        return self._asks and self._may_ask()

    def _meets(self, site: Site) -> bool:
        return site in self._pool.sites and site not in self.aside.now(self._ctx.info.round)

    def _skip(self) -> None:
        self._stage += 1
        self._wait()

    # -------------------------------------------------------------- what the exchange reports

    def mark(self) -> tuple[int, int, str]:
        """Position, stage and list of the living, for this site's terms."""
        return self._position, self._stage, fingerprint_of(self._order)

    def refusal(self, terms: SwapTerms) -> str:
        """Why an offer does not fit the stage that this site is at, or ""."""
        at = (terms.position, terms.stage)
        if at < (self._position, self._stage):
            return "stage_over"
        left = self._asks and self._stage < stages(len(self._order))
        if left and at != (self._position, self._stage):
            return "busy"  # with a stage before it
        order = self._order if terms.position == self._position else self._numbering(terms.position)
        if terms.living != fingerprint_of(order):
            return "other_list"
        return "" if partner_of(order, self._ctx.site, terms.stage) == terms.maker else "other_numbering"

    def accepts(self, terms: SwapTerms) -> None:
        """Take an offer's stage as this site's."""
        if terms.position != self._position:
            self._begin(terms.position)
            self._asks = False
        self._stage = terms.stage

    def took_part(self) -> None:
        """Nothing to count: the stages do."""

    def broken(self) -> None:
        """A broken stage is not repeated."""

    def closed(self) -> None:
        """Go on to the next stage, with the state after this one."""
        self._skip()

    def refused(self, reason: str) -> None:
        """Try again where the partner is only busy; else skip the stage."""
        super().refused(reason)
        if reason not in ("busy", "not_ready", "timeout"):
            self._skip()
