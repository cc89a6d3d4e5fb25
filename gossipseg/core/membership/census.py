"""The other sites' training cases and steps, kept in order, so that a median costs no walk over the list."""

from __future__ import annotations

from bisect import bisect_left, insort

from gossipseg.core.membership.member import Member
from gossipseg.core.types import Site


class Ranked:
    """One number of each site, in order."""

    __slots__ = ("_by_site", "_ordered")

    def __init__(self) -> None:
        self._by_site: dict[Site, int] = {}
        self._ordered: list[int] = []

    def set(self, site: Site, value: int | None) -> None:
        """Set a site's number; None: it has none."""
        before = self._by_site.get(site)
        if before == value:
            return
        if before is not None:
            del self._ordered[bisect_left(self._ordered, before)]
        if value is None:
            del self._by_site[site]
        else:
            self._by_site[site] = value
            insort(self._ordered, value)

    def values(self) -> list[int]:
        """All numbers, the smallest first."""
        return list(self._ordered)

    def median(self, *, without: Site | None = None, beside: int | None = None) -> float | None:
        """The median, without one site's number and with one more; None where there is none."""
        out = self._by_site.get(without) if without is not None else None
        skipped = len(self._ordered) if out is None else bisect_left(self._ordered, out)
        place = None if beside is None else bisect_left(self._ordered, beside)
        if place is not None and place > skipped:
            place -= 1
        n = len(self._ordered) - (out is not None) + (place is not None)

        def at(k: int) -> int:
            if place is not None and beside is not None:
                if k == place:
                    return beside
                k -= k > place
            return self._ordered[k + (k >= skipped)]

        if n == 0:
            return None
        return at(n // 2) if n % 2 else (at(n // 2 - 1) + at(n // 2)) / 2


class Census:
    """What the listed sites but this one say of themselves."""

    def __init__(self) -> None:
        self.cases = Ranked()
        """Training cases, where they are known."""
        self.steps = Ranked()
        """Steps of the live sites that have trained."""

    def update(self, member: Member) -> None:
        """Take in a member's change."""
        info = member.info
        counts = info is not None and member.live and info.round > 0
        self.cases.set(member.site, member.cases if member.cases > 0 else None)
        self.steps.set(member.site, info.steps if info is not None and counts else None)

    def forget(self, site: Site) -> None:
        """Drop a site that is no longer listed."""
        self.cases.set(site, None)
        self.steps.set(site, None)
