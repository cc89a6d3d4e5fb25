"""A set of sites to draw from in constant time, in an order that depends only on its history."""

from __future__ import annotations

import random
from collections.abc import Iterator

from gossipseg.core.types import Site


class SitePool:
    """Sites in a list with their positions: add, discard, test and draw in constant time."""

    __slots__ = ("_place", "_sites")

    def __init__(self) -> None:
        self._sites: list[Site] = []
        self._place: dict[Site, int] = {}

    def __len__(self) -> int:
        return len(self._sites)

    def __contains__(self, site: Site) -> bool:
        return site in self._place

    def __iter__(self) -> Iterator[Site]:
        return iter(self._sites)

    def add(self, site: Site) -> None:
        if site not in self._place:
            self._place[site] = len(self._sites)
            self._sites.append(site)

    def discard(self, site: Site) -> None:
        place = self._place.pop(site, None)
        if place is None:
            return
        last = self._sites.pop()
        if last != site:
            self._sites[place] = last
            self._place[last] = place

    def draw(self, rng: random.Random) -> Site:
        """One site, uniformly. The pool must not be empty."""
        return self._sites[int(rng.random() * len(self._sites))]

    def sample(self, rng: random.Random, k: int, exclude: Site | None = None) -> list[Site]:
        """Up to k distinct sites, uniformly, without `exclude`."""
        if len(self._sites) <= 4 * k:
            rest = [s for s in self._sites if s != exclude]
            return rng.sample(rest, min(k, len(rest)))
        drawn: list[Site] = []
        while len(drawn) < k:
            site = self.draw(rng)
            if site != exclude and site not in drawn:
                drawn.append(site)
        return drawn
