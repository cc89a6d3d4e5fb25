"""What a site remembers of swaps across restarts: its own numbers, and how the others' offers ended."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from gossipseg.core.effects import SwapRecord, SwapSeen
from gossipseg.core.messages import SwapStanding
from gossipseg.core.types import ExchangeId, Site


class SwapMemory:
    """A site opens its swaps one after another, so the newest number of each asker is enough."""

    def __init__(self, record: SwapRecord, floor: int = 0) -> None:
        """`floor`: the lowest number to use, as for manifests."""
        self.number = max(record.number, floor)
        self._seen = {s.asker: _after_restart(s) for s in record.seen}
        self._restarted: set[Site] = set()
        """Askers whose next number may be any other than the last one."""

    def next_number(self) -> int:
        """A fresh number for an offer of this site. The caller persists before sending it."""
        self.number += 1
        return self.number

    def is_new(self, swap: ExchangeId) -> bool:
        """Whether no offer with this number, or a later one of the same asker, has been seen."""
        seen = self._seen.get(swap.asker)
        if seen is not None and swap.asker in self._restarted:
            return swap.number != seen.number
        return seen is None or swap.number > seen.number

    def standing(self, swap: ExchangeId) -> SwapStanding:
        """How an asker's swap stands here. One that is not known is dropped."""
        seen = self._seen.get(swap.asker)
        return seen.standing if seen is not None and seen.number == swap.number else "dropped"

    def note(self, swap: ExchangeId, standing: SwapStanding) -> bool:
        """Record how an asker's swap stands here; False: a later one is known already."""
        seen = self._seen.get(swap.asker)
        if seen is not None and seen.number > swap.number and swap.asker not in self._restarted:
            return False
        if seen is not None and seen.number != swap.number:
            self._restarted.discard(swap.asker)
        self._seen[swap.asker] = SwapSeen(swap.asker, swap.number, standing)
        return True

    def keep(self, listed: Iterable[Site]) -> None:
        """Keep only the sites listed now."""
        sites = set(listed)
        self._seen = {site: seen for site, seen in self._seen.items() if site in sites}
        self._restarted &= sites

    def forget(self, site: Site) -> None:
        """Take any other number of this site as new: it has lost its own, and its operator has said so.

        How its last swap ended stays known: it may still ask.
        """
        self._restarted.add(site)

    def seen(self) -> tuple[SwapSeen, ...]:
        """What must survive a restart."""
        return tuple(self._seen[site] for site in sorted(self._seen))


def _after_restart(seen: SwapSeen) -> SwapSeen:
    """Nothing open survives a restart of the site that was asked, unless it has committed."""
    return replace(seen, standing="dropped") if seen.standing == "open" else seen
