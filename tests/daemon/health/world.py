"""A core, a transport and a clock for tests of reachability."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gossipseg.core.membership.member import Member
from gossipseg.core.types import MemberState
from gossipseg.daemon.health.reachability import Reaching
from gossipseg.wire.reached import Reached

OK, REFUSED = Reached("ok", "a:1"), Reached("refused", "a:1", "Connection refused")


@dataclass
class World:
    """A core, a transport and a clock that a test moves by hand."""

    now: float = 1000.0
    grace_s: float = 60.0
    members: dict[str, Member] = field(default_factory=dict)
    out: Reached = OK
    back: Reached = OK
    dialled: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    notes: list[tuple[str, Mapping[str, Any]]] = field(default_factory=list)

    async def reach(self, site: str) -> Reached:
        self.dialled.append(site)
        return self.out

    async def ask_reach(self, site: str) -> Reached:
        self.asked.append(site)
        return self.back

    def reaching(self, *sites: str, state: MemberState = MemberState.ALIVE) -> Reaching:
        for site in sites:
            self.members[site] = Member(site, state, since=self.now)
        return Reaching(self, self, lambda e, **f: self.notes.append((e, f)), clock=lambda: self.now)

    async def step(self, r: Reaching, at: float) -> list[str]:
        self.now = at
        due = r.due()
        await r.look_at(due)
        return due
