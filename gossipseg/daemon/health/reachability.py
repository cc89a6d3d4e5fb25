"""Whether peers can be dialled, and can dial this site: checked at the start, and when something is amiss."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from gossipseg.config import Config
from gossipseg.core.membership.member import Member
from gossipseg.core.types import MemberState, Site
from gossipseg.wire.listen_address import ListenFault, listen_fault
from gossipseg.wire.reached import Reached

log = logging.getLogger(__name__)
STEP_S = 1.0
SETTLE_S = 2.0
"""Seconds before a newly arrived site is checked."""
AGAIN_S = 20.0
"""Seconds before a site with a problem is checked again; the pause doubles each time …"""
AGAIN_MAX_S = 600.0
"""… up to this."""
WELL_S = 3600.0
"""Seconds before a site without a problem is checked again …"""
QUIET_S = 300.0
"""… or before this, where no call of the site has come in meanwhile."""
FRESH_S = 30.0
"""Seconds for which an answer stays valid, where the site refuses to give another."""
AT_ONCE = 4
MOST_ASKED = 32
"""Sites checked at once when an operator asks."""
MOST_WELL = 16
"""Sites that a larger federation checks without a cause. Any of them tells whether this site can be
dialled."""


class Dialler(Protocol):
    """The parts of a transport that are needed."""

    async def reach(self, site: Site) -> Reached: ...

    async def ask_reach(self, site: Site) -> Reached: ...


class Node(Protocol):
    """The parts of the core that are needed."""

    @property
    def members(self) -> Mapping[Site, Member]: ...

    @property
    def grace_s(self) -> float: ...


@dataclass(frozen=True, slots=True)
class Found:
    """The result of a site's last check, and when it was (monotonic)."""

    out: Reached
    """Whether this site could dial the other."""
    back: Reached
    """Whether the other site could dial this one, at this site's request."""
    at: float
    amiss: int = 0
    """Consecutive checks that found a problem."""

    @property
    def well(self) -> bool:
        return all(way.good or not way.known for way in (self.out, self.back))

    @property
    def shut_out(self) -> bool:
        """Whether the other site could not dial this one at any address."""
        return self.back.known and not self.back.good and not self.back.works_at


class Reaching:
    """The reachability checks of one daemon. `note` writes to the event log."""

    def __init__(
        self,
        node: Node,
        dialler: Dialler,
        note: Callable[..., None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._node, self._dialler, self._note, self._clock = node, dialler, note, clock
        self._started = clock()
        self.found: dict[Site, Found] = {}
        self.listen_fault: ListenFault | None = None
        """Why other sites may not find this one at its listen address, as far as this machine can tell."""

    async def run(self, config: Config) -> None:
        """Check whatever is due, for as long as the daemon runs."""
        self.listen_fault = await asyncio.to_thread(own_listen_fault, config)
        while True:
            await asyncio.sleep(STEP_S)
            await self.look_at(self.due()[:AT_ONCE])

    async def look_at(self, sites: list[Site]) -> None:
        """Check these sites, all at once."""
        await asyncio.gather(*(self._look(site) for site in sites))

    async def look_now(self) -> list[Site]:
        """Check all sites, at an operator's request; in a large federation those with a cause, and some
        more."""
        members = sorted(self._node.members.values(), key=lambda m: (_at_ease(m), m.site))
        sites = [m.site for m in members[:MOST_ASKED]]
        await self.look_at(sites)
        return sites

    def due(self) -> list[Site]:
        """The sites to be checked now."""
        now, members = self._clock(), self._node.members
        self.found = {site: found for site, found in self.found.items() if site in members}
        well = sum(1 for found in self.found.values() if found.well)
        due = [m for m in members.values() if now >= self._due_at(m)]
        amiss = [m.site for m in due if not _at_ease(m)]
        return amiss + [m.site for m in due if _at_ease(m)][: max(0, MOST_WELL - well)]

    def _due_at(self, member: Member) -> float:
        found = self.found.get(member.site)
        if member.state is MemberState.LEFT:
            return float("inf")
        if found is None and member.live:
            return max(self._started, member.since) + SETTLE_S
        if found is None:
            return max(self._started, member.since) + self._node.grace_s / 2
        if found.shut_out and member.called_at is not None and member.called_at > found.at:
            return found.at + AGAIN_S  # it does get here: the obstacle is gone
        if not found.well or (member.live and found.back.outcome == "not_asked"):
            return found.at + min(AGAIN_MAX_S, AGAIN_S * 2.0 ** (max(1, found.amiss) - 1))
        quiet = member.called_at is None or member.called_at < found.at
        troubled = quiet or not _at_ease(member)
        return found.at + (QUIET_S if troubled else WELL_S)

    async def _look(self, site: Site) -> None:
        live = site in self._node.members and self._node.members[site].live
        out, back = await asyncio.gather(
            _outcome(site, self._dialler.reach(site)),
            _outcome(site, self._dialler.ask_reach(site) if live else _nobody()),
        )
        before, now_s = self.found.get(site), self._clock()
        if back.outcome == "not_asked" and before is not None and now_s - before.at < FRESH_S:
            back = before.back  # it answers such a question only once in a while
        found = Found(out, back, now_s)
        if not found.well or back.outcome == "not_asked":
            found = replace(found, amiss=before.amiss + 1 if before is not None else 1)
        self.found[site] = found
        for direction, now in (("out", out), ("in", back)):
            then = getattr(before, "out" if direction == "out" else "back", None)
            if now.known and (not now.good if then is None else then.outcome != now.outcome):
                self._note(
                    "reached" if now.good else "not_reached",
                    site=site,
                    reason=now.outcome,
                    direction=direction,
                    address=now.address,
                    detail=now.detail,
                )


def own_listen_fault(config: Config) -> ListenFault | None:
    """How `listen` of site.yaml and the address that others dial contradict each other. Blocks."""
    site = config.site
    dialled = site.advertise or config.me.address
    if site.insecure or not dialled:
        return None
    others = (s.address for s in config.others)
    return listen_fault(site.listen, dialled, others, any_port=site.discovery.mdns)


def _at_ease(member: Member) -> bool:
    """Whether the site is alive and all that is sent to it arrives."""
    return member.state is MemberState.ALIVE and not (member.calls.failed or member.sends.failed)


async def _outcome(site: Site, look: Awaitable[Reached]) -> Reached:
    """What a look found. One that breaks ends neither the looks nor the daemon: who answers at an address is
    not known yet."""
    try:
        return await look
    except Exception as e:  # a fault of this program
        log.error("looking at %s failed", site, exc_info=e)
        return Reached("not_asked", "", f"it could not be tried here: {e!r}")


async def _nobody() -> Reached:
    return Reached("not_asked", "", "it is down, so it cannot be asked")
