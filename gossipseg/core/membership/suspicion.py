"""How long a suspicion runs, and this site's local health: SWIM §4.2 and Lifeguard.

Das, Gupta, Motivala: SWIM (DSN 2002). Dadgar, Phillips, Currey: Lifeguard (arXiv 1707.00788). LHA-Probe is
the local health multiplier; LHA-Suspicion is the timeout that shrinks with confirmations.
"""

from __future__ import annotations

import math

from gossipseg.core.membership.member import Suspicion
from gossipseg.core.params import MembershipParams
from gossipseg.core.types import Site, SuspectRecord

FALSE_ALARMS = 4
"""Refuted accusations that are nothing unusual: a line that fails and comes back makes each other's."""
DISBELIEF_MAX_S = 600.0
"""Longest time for which an accuser is not believed about a site."""
FORGIVEN_S = 3600.0
"""Time without a refuted accusation after which the earlier ones are forgotten."""
MAX_TIMEOUT_FACTOR = 6.0
"""Lifeguard's beta: an unconfirmed suspicion runs this many times the minimum."""


def minimum_timeout_s(live: int, params: MembershipParams) -> float:
    """multiplier · max(1, log10 N) · probe interval, N = the live sites with this one."""
    return params.suspicion_multiplier * max(1.0, math.log10(max(1, live))) * params.probe_interval_s


def confirmations_needed(live: int, params: MembershipParams) -> int:
    """multiplier − 2, or none where N − 2 other sites could not give that many."""
    needed = max(0, math.ceil(params.suspicion_multiplier) - 2)
    return needed if live - 2 >= needed else 0


def timeout_s(minimum_s: float, confirmations: int, needed: int) -> float:
    """Lifeguard §IV-B: max(Min, Max − (Max − Min)·log(C+1)/log(K+1)); Min at once where K = 0."""
    if needed == 0:
        return minimum_s
    maximum_s = MAX_TIMEOUT_FACTOR * minimum_s
    share = math.log(confirmations + 1) / math.log(needed + 1)
    return max(minimum_s, maximum_s - (maximum_s - minimum_s) * share)


def begin(record: SuspectRecord, live: int, now: float, params: MembershipParams) -> Suspicion:
    """A suspicion that starts with one accusation."""
    minimum_s = minimum_timeout_s(live, params)
    needed = confirmations_needed(live, params)
    return Suspicion(
        incarnation=record.incarnation,
        started=now,
        deadline=now + timeout_s(minimum_s, 0, needed),
        minimum_s=minimum_s,
        needed=needed,
        accusers={record.accuser: record},
    )


def confirm(suspicion: Suspicion, record: SuspectRecord, not_before: float = 0.0) -> bool:
    """Count an accusation; False when it is not independent, or not needed any more."""
    if record.accuser in suspicion.accusers or len(suspicion.accusers) > suspicion.needed:
        return False
    suspicion.accusers[record.accuser] = record
    shorter = suspicion.started + timeout_s(
        suspicion.minimum_s, len(suspicion.accusers) - 1, suspicion.needed
    )
    suspicion.deadline = max(min(suspicion.deadline, shorter), not_before)
    return True


class FalseAlarms:
    """Accusations that the accused has refuted. After a few an accuser is not believed about that site for a
    while, which doubles each time: or one listed site could keep any other under suspicion."""

    __slots__ = ("_refuted",)

    def __init__(self) -> None:
        self._refuted: dict[tuple[Site, Site], tuple[int, float, float]] = {}
        """(accuser, accused) → how often, when last, until when it is not believed."""

    def refuted(self, accuser: Site, accused: Site, now: float, minimum_s: float) -> None:
        """Count one. `minimum_s`: the shortest suspicion."""
        often, last, _ = self._refuted.get((accuser, accused), (0, now, now))
        often = often + 1 if now - last < FORGIVEN_S else 1
        beyond = often - FALSE_ALARMS
        pause_s = min(DISBELIEF_MAX_S, minimum_s * 2.0 ** min(beyond, 32)) if beyond > 0 else 0.0
        self._refuted[(accuser, accused)] = (often, now, now + pause_s)

    def disbelieved(self, accuser: Site, accused: Site, now: float) -> bool:
        """Whether this accuser's word about this site does not count now."""
        _, _, until = self._refuted.get((accuser, accused), (0, now, now))
        return now < until


class LocalHealth:
    """Lifeguard's local health: 0 is healthy; probe interval and timeout are multiplied by score + 1."""

    __slots__ = ("_max", "score")

    def __init__(self, maximum: int) -> None:
        self.score = 0
        self._max = maximum

    def change(self, by: int) -> None:
        """Change the score (negative: better), within 0..max."""
        self.score = min(self._max, max(0, self.score + by))

    @property
    def factor(self) -> int:
        return self.score + 1
