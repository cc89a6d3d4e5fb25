"""Quarantine: a peer that repeatedly sends invalid data is kept out for a growing time.

All times are the core's clock, handed in. A record on disk holds seconds until and since. So downtime of the
daemon neither shortens a quarantine nor forgives an offence.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from gossipseg.core.params import QuarantineParams
from gossipseg.core.types import Site

MAX_STEPS = 64
"""Largest number of growth steps: more would change nothing under any max_s."""


class PeerStatus(StrEnum):
    """The status of a peer that its offences have led to."""

    CLEAR = "clear"
    WATCHED = "watched"
    """The peer has offended within the window, fewer times than the limit."""
    QUARANTINED = "quarantined"


class Transition(StrEnum):
    """What changes a peer's status."""

    OFFENCE = "offence"
    LAST_STRAW = "last_straw"
    """The offence that reaches the limit."""
    FORGOTTEN = "forgotten"
    """The last offence has left the window."""
    SERVED = "served"
    LIFTED = "lifted"
    """An operator has ended the quarantine."""


TRANSITIONS: Mapping[tuple[PeerStatus, Transition], PeerStatus] = {
    (PeerStatus.CLEAR, Transition.OFFENCE): PeerStatus.WATCHED,
    (PeerStatus.CLEAR, Transition.LAST_STRAW): PeerStatus.QUARANTINED,
    (PeerStatus.CLEAR, Transition.LIFTED): PeerStatus.CLEAR,
    (PeerStatus.WATCHED, Transition.OFFENCE): PeerStatus.WATCHED,
    (PeerStatus.WATCHED, Transition.LAST_STRAW): PeerStatus.QUARANTINED,
    (PeerStatus.WATCHED, Transition.FORGOTTEN): PeerStatus.CLEAR,
    (PeerStatus.WATCHED, Transition.LIFTED): PeerStatus.CLEAR,
    (PeerStatus.QUARANTINED, Transition.OFFENCE): PeerStatus.QUARANTINED,
    (PeerStatus.QUARANTINED, Transition.SERVED): PeerStatus.CLEAR,
    (PeerStatus.QUARANTINED, Transition.LIFTED): PeerStatus.CLEAR,
}
"""All changes of status."""


@dataclass(frozen=True, slots=True)
class PeerRecordSnapshot:
    """A peer's record as it is kept on disk."""

    site: Site
    reason: str
    steps: int
    left_s: float
    """Seconds left of the peer's quarantine; 0: not in quarantine."""
    ages_s: tuple[float, ...]
    """Age of each offence within the window."""
    quiet_s: float
    """Seconds since the last step of growth was added or taken back."""


@dataclass(slots=True)
class PeerRecord:
    """The record of a peer that has offended."""

    standing: PeerStatus = PeerStatus.CLEAR
    offences: tuple[float, ...] = ()
    """Times of the offences within the window, oldest first."""
    reason: str = ""
    """Reason of the last offence."""
    until: float = -math.inf
    steps: int = 0
    """Quarantines that the peer has had, less those forgiven. The next one lasts first_s * factor**steps."""
    quiet_since: float = -math.inf


@dataclass(slots=True)
class Quarantine:
    """Every peer's record. A peer without offences takes no memory."""

    params: QuarantineParams
    _peers: dict[Site, PeerRecord] = field(default_factory=dict)

    # -------------------------------------------------------------- what happens

    def offend(self, site: Site, reason: str, now: float) -> bool:
        """Count an offence; True: the peer is quarantined from now on."""
        self.settle(now)
        conduct = self._peers.setdefault(site, PeerRecord(quiet_since=now))
        conduct.reason = reason
        if conduct.standing is PeerStatus.QUARANTINED:  # what was under way when it began
            self._move(conduct, Transition.OFFENCE)
            return False
        conduct.offences = (*conduct.offences, now)
        conduct.quiet_since = now
        if len(conduct.offences) < self.params.offences:
            self._move(conduct, Transition.OFFENCE)
            return False
        self._move(conduct, Transition.LAST_STRAW)
        conduct.until = now + self.duration_s(conduct.steps)
        conduct.steps, conduct.offences = min(MAX_STEPS, conduct.steps + 1), ()
        return True

    def settle(self, now: float) -> list[Site]:
        """Advance to the present time; returns the peers whose quarantine has ended since the last call."""
        freed = []
        for site, conduct in list(self._peers.items()):
            if conduct.standing is PeerStatus.QUARANTINED:
                if now < conduct.until:
                    continue
                self._move(conduct, Transition.SERVED)
                conduct.quiet_since, conduct.until = conduct.until, -math.inf
                freed.append(site)
            conduct.offences = tuple(t for t in conduct.offences if now - t < self.params.window_s)
            if conduct.standing is PeerStatus.WATCHED and not conduct.offences:
                self._move(conduct, Transition.FORGOTTEN)
            while conduct.steps and now - conduct.quiet_since >= self.params.decay_s:
                conduct.steps -= 1
                conduct.quiet_since += self.params.decay_s
            if conduct.standing is PeerStatus.CLEAR and not conduct.steps:
                del self._peers[site]
        return freed

    def lift(self, site: Site) -> bool:
        """Clear a peer's record, on an operator's order; True: the peer was quarantined."""
        conduct = self._peers.pop(site, None)
        if conduct is None:
            return False
        was = conduct.standing is PeerStatus.QUARANTINED
        self._move(conduct, Transition.LIFTED)
        return was

    def forget(self, keep: Iterable[Site]) -> None:
        """Drop the records of sites that are not listed now."""
        listed = set(keep)
        self._peers = {site: c for site, c in self._peers.items() if site in listed}

    def duration_s(self, steps: int) -> float:
        """Length of a quarantine that follows `steps` earlier ones."""
        p = self.params
        if p.factor == 1.0 or steps == 0:
            return min(p.max_s, p.first_s)
        if steps * math.log(p.factor) > math.log(max(1.0, p.max_s / p.first_s)):
            return p.max_s
        return min(p.max_s, p.first_s * p.factor**steps)

    @staticmethod
    def _move(conduct: PeerRecord, transition: Transition) -> None:
        conduct.standing = TRANSITIONS[conduct.standing, transition]

    # -------------------------------------------------------------- what is known

    def until(self, site: Site) -> float | None:
        """When the site's quarantine ends; None: not in quarantine. (Call settle first.)"""
        conduct = self._peers.get(site)
        return conduct.until if conduct is not None and conduct.standing is PeerStatus.QUARANTINED else None

    def reason(self, site: Site) -> str:
        """Reason of the site's last offence; "" if none is remembered."""
        return self._peers[site].reason if site in self._peers else ""

    def conducts(self) -> Mapping[Site, PeerRecord]:
        """All peers with a record of offences."""
        return self._peers

    def next_deadline(self) -> float:
        """When the next quarantine ends. (Offences that expire meanwhile change nothing until then.)"""
        held = (c.until for c in self._peers.values() if c.standing is PeerStatus.QUARANTINED)
        return min(held, default=math.inf)

    # -------------------------------------------------------------- the disk

    def records(self, now: float) -> tuple[PeerRecordSnapshot, ...]:
        """The records that must survive a restart."""
        return tuple(
            PeerRecordSnapshot(
                site,
                c.reason,
                c.steps,
                max(0.0, c.until - now) if c.standing is PeerStatus.QUARANTINED else 0.0,
                tuple(now - t for t in c.offences),
                max(0.0, now - c.quiet_since),
            )
            for site, c in sorted(self._peers.items())
        )

    def restore(self, records: Iterable[PeerRecordSnapshot], now: float) -> None:
        """Continue from the records on disk."""
        for r in records:
            held = r.left_s > 0
            standing = (
                PeerStatus.QUARANTINED if held else PeerStatus.WATCHED if r.ages_s else PeerStatus.CLEAR
            )
            until = now + min(r.left_s, self.params.max_s) if held else -math.inf
            offences = tuple(now - age_s for age_s in r.ages_s)
            self._peers[r.site] = PeerRecord(standing, offences, r.reason, until, r.steps, now - r.quiet_s)
