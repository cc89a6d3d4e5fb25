"""When a site asks for a swap, and whom: its clock, its tries in a round, and the peers it may ask.

A swap is counted by taking part, whoever began it.
"""

from __future__ import annotations

import math

from gossipseg.core.budget import Budget
from gossipseg.core.context import Context
from gossipseg.core.exchange_times import ExchangeTimes
from gossipseg.core.gossip.sender_sampling import SenderPool
from gossipseg.core.gossip.set_aside import SetAside
from gossipseg.core.gossip.swap_terms import is_behind
from gossipseg.core.membership.members import Membership
from gossipseg.core.params import GossipParams
from gossipseg.core.types import Phase, Site, SwapTerms

WINDOW_CLOSED = "window_closed"
"""Why a site outside of the hours in which it may send makes no swaps."""


class SwapTurns:
    """The swaps that this site still owes, and the peers it has tried since its last round."""

    def __init__(
        self,
        ctx: Context,
        params: GossipParams,
        budget: Budget,
        membership: Membership,
        pool: SenderPool,
        aside: SetAside,
        times: ExchangeTimes,
        last: int,
    ) -> None:
        """`last`: as below, from the last run."""
        self._ctx, self._params, self._budget, self._times = ctx, params, budget, times
        self._membership, self._pool, self.aside = membership, pool, aside
        self.last = last
        """The federation's round at whose end the last exchange was due, or was made for."""
        self.made = last
        """The same of the last exchange that was made. A restart goes on from here."""
        self._before: tuple[int, int, int] | None = None
        """What the last count of a swap changed: the swaps owed, and `last` before and after it."""
        self.next_at = math.inf
        """When to ask again, while no swap is open."""
        self.owed = 0
        """Swaps due and not taken part in; below 0 where this site took part in one of several before they
        were due."""
        self.due = 0
        """Rounds past the warm-up, since the daemon started, at whose end an exchange was due."""
        self._last_due = False
        """Whether the last exchange that was due has been counted in `due`."""
        self.window_closed = False
        """Whether this site may not begin to send at this hour."""
        self._tries_left = 0
        self._tried: set[Site] = set()
        self._refusals: list[str] = []
        """Why the peers asked since the last round's end have refused."""

    @property
    def per_round(self) -> int:
        """Swaps in a round up to which a site asks for one."""
        n = self._params.swaps_per_round
        return n if isinstance(n, int) else 1

    @property
    def round(self) -> int:
        """The federation's round that the last own round was."""
        return self._ctx.info.round + self._budget.ahead

    def round_over(self) -> None:
        """Begin the turn at a round's end."""
        self._fall_due()
        self._tries_left = self.per_round + self._params.retries
        self._tried = set()

    def _fall_due(self) -> None:
        if self.last > self.round:  # the worker's state was lost, and it began anew
            self.last = 0
        due = self._times.is_due(self.round, self.last)
        self.count_due(due)
        if due:
            self.owed = min(self.owed + self.per_round, self.per_round)
            self.last = self.round

    def count_due(self, due: bool) -> None:
        """Count an exchange that is due, for the alarms about silence. Hours in which this site may not send,
        or none of those that it asked, are no silence."""
        if self._refusals and all(reason == WINDOW_CLOSED for reason in self._refusals):
            self.due -= self._last_due
            self._last_due = False
        self._refusals = []
        if due:
            self._last_due = not self.warming_up() and not self.window_closed
            self.due += self._last_due

    def took_part(self) -> None:
        """Count a swap that has been accepted: it is the one that was due, or stands for that of the end of
        the round under way. Either way the next one is due after as long as if it had been so."""
        owed, last = self.owed, self.last
        if owed > 0:
            self.owed, self.last = owed - 1, max(last, self.round)
        elif last != self.round + 1:
            self.owed = owed - 1
            if self.owed == -self.per_round:
                self.owed, self.last = 0, self.round + 1
        self._before = owed - self.owed, last, self.last

    def committed(self) -> None:
        """Note that the swap holds at both sites."""
        self.made = self._before[2] if self._before is not None else self.round

    def broken(self) -> None:
        """Take back a count: the swap was dropped."""
        change, last, since = self._before or (1, self.last, self.last)
        self._before = None
        self.owed = min(self.owed + change, self.per_round)
        if self.last != since:
            return  # another exchange has been due meanwhile
        self.last = last
        if self.round >= since > last:
            self._fall_due()  # the round's end that it stood for has gone by

    @property
    def over(self) -> bool:
        """Whether no round is left in which a swap would be of use."""
        return self._ctx.info.round >= self._budget.last

    def warming_up(self) -> bool:
        """Whether models are still trained alone. A site that is behind takes a model over at once."""
        return self._ctx.info.round < self._params.warmup_rounds and not self.behind()

    def behind(self) -> bool:
        """Whether this site has under half of the others' steps; see swap_terms.is_behind."""
        return is_behind(self._ctx.info.steps, self._membership.census.steps.median())

    def _may_ask(self) -> bool:
        training = self._ctx.info.phase is Phase.TRAINING and not self.over
        return training and not self.window_closed and not self.warming_up()

    def mark(self) -> tuple[int, int, str]:
        """Position, stage and list of the living, for this site's terms; only along a hypercube."""
        return 0, 0, ""

    def refusal(self, terms: SwapTerms) -> str:
        """Why an offer does not fit this site's turns, or ""."""
        return "other_numbering" if terms.living else ""

    def accepts(self, terms: SwapTerms) -> None:
        """Note the terms of an offer that this site accepts."""

    def closed(self) -> None:
        """Note the end of an open swap."""

    def refused(self, reason: str) -> None:
        """Note that the peer that was asked has refused."""
        self._refusals.append(reason)

    def asks_still(self) -> bool:
        """Whether a peer that was drawn a moment ago may still be asked."""
        return self.owed > 0 and self._may_ask()

    def next_peer(self) -> Site | None:
        """The peer to ask now, uniformly among those not tried; None: ask nobody."""
        if self.owed <= 0 or self._tries_left <= 0 or not self._may_ask():
            return None
        site = self._pool.draw(self._ctx.rng, self._tried | self.aside.now(self._ctx.info.round))
        if site is not None:
            self._tries_left -= 1
            self._tried.add(site)
        return site
