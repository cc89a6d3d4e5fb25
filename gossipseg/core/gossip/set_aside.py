"""Peers whose swaps did harm here: kept out of swaps for some rounds, never more than a share of them.

The worker judges the harm (docs/design/swap.md); this module only counts rounds.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from gossipseg.core.types import Site

ROUNDS = 30
"""This site's own rounds for which a peer is set aside."""
SHARE = 3
"""At most one peer in this many is set aside, and one at least."""


class SetAside:
    """The peers set aside now."""

    def __init__(self, until: Iterable[tuple[Site, int]] = ()) -> None:
        self._until = dict(until)

    def begin(self, round: int) -> None:
        """Forget who is set aside no more at this own round, or was so in an older training."""
        now = self.now(round)
        self._until = {site: until for site, until in self._until.items() if site in now}

    def add(self, site: Site, round: int, peers: int) -> Literal["", "single_peer", "limit"]:
        """Set a peer aside; returns why not, or "". `peers`: the number of listed peers."""
        if peers <= 1:
            return "single_peer"
        self.begin(round)
        if site not in self._until and len(self._until) >= max(1, peers // SHARE):
            return "limit"
        self._until[site] = round + ROUNDS
        return ""

    def now(self, round: int) -> frozenset[Site]:
        """The peers that are set aside in this own round. An end further off is of an older training."""
        return frozenset(site for site, until in self._until.items() if until - ROUNDS <= round < until)

    def keep(self, listed: Iterable[Site], round: int) -> None:
        """Keep only the sites listed now, and only those still set aside."""
        sites = self.now(round) & set(listed)
        self._until = {site: until for site, until in self._until.items() if site in sites}

    def records(self) -> tuple[tuple[Site, int], ...]:
        """What must survive a restart."""
        return tuple(sorted(self._until.items()))
