"""Which sites take part in the exchange, and the probability that a site sends.

The probability: docs/design/equations.md §1.

At the end of a round, p_k ∝ n_k over the sites now alive. Water-filling gives Σ p_k = ρN and
ρ/2 ≤ p_k ≤ 1.
"""

from __future__ import annotations

import random
from collections.abc import Mapping

from gossipseg.core.site_pool import SitePool
from gossipseg.core.types import Site


def water_level(groups: Mapping[int, int], rho: float) -> float:
    """The c of p_k = min(1, max(ρ/2, c·n_k)) for which Σ p_k = ρN.

    `groups` maps a number of cases n_k > 0 to the number of sites that have it; 0 < ρ < 1. The sum is
    piecewise linear and rising in c: walk its corners from below, the largest sites first.
    """
    sizes = sorted(groups, reverse=True)
    total = sum(groups.values())
    target = rho * total
    capped = 0  # sites at p = 1
    floored = total  # sites at p = ρ/2
    free = 0  # Σ n_k of those between
    first_free = next_up = 0
    while True:
        rise_at = rho / 2 / sizes[next_up] if next_up < len(sizes) else float("inf")
        cap_at = 1.0 / sizes[first_free] if first_free < next_up else float("inf")
        corner = min(rise_at, cap_at)
        below = capped + floored * rho / 2
        if free and below + free * corner >= target:
            return (target - below) / free
        if corner == float("inf"):
            return 1.0 / sizes[-1]
        if rise_at <= cap_at:
            size = sizes[next_up]
            floored -= groups[size]
            free += groups[size] * size
            next_up += 1
        else:
            size = sizes[first_free]
            free -= groups[size] * size
            capped += groups[size]
            first_free += 1


class SenderPool:
    """The other sites that take part now, with their cases. The water level is computed when it is asked
    for."""

    __slots__ = ("_cases", "_groups", "_level_for", "sites")

    def __init__(self) -> None:
        self.sites = SitePool()
        self._cases: dict[Site, int] = {}
        self._groups: dict[int, int] = {}
        self._level_for: tuple[int, float, float] | None = None

    def update(self, site: Site, cases: int) -> None:
        """Set a site's number of cases; 0: the site takes no part."""
        before = self._cases.get(site, 0)
        if before == cases:
            return
        if before:
            self._groups[before] -= 1
            if not self._groups[before]:
                del self._groups[before]
        if cases:
            self._groups[cases] = self._groups.get(cases, 0) + 1
            self._cases[site] = cases
            self.sites.add(site)
        else:
            del self._cases[site]
            self.sites.discard(site)
        self._level_for = None

    def probability(self, own_cases: int, rho: float) -> float:
        """Probability p of this site among itself and the pool; 0 where there is no receiver."""
        if not self._cases or own_cases <= 0 or rho <= 0:
            return 0.0
        if rho >= 1:
            return 1.0
        if self._level_for is None or self._level_for[:2] != (own_cases, rho):
            groups = dict(self._groups)
            groups[own_cases] = groups.get(own_cases, 0) + 1
            self._level_for = (own_cases, rho, water_level(groups, rho))
        return min(1.0, max(rho / 2, self._level_for[2] * own_cases))

    def draw(self, rng: random.Random, exclude: set[Site]) -> Site | None:
        """One site of the pool, uniformly among those not excluded; None when there is none."""
        if not len(self.sites):
            return None
        for _ in range(4):
            site = self.sites.draw(rng)
            if site not in exclude:
                return site
        rest = [s for s in self.sites if s not in exclude]
        return rng.choice(rest) if rest else None
