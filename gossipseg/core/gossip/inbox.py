"""One place for one incoming model: promised, waiting, visiting.

Inbox, ageing, staleness: docs/design/equations.md §1.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from gossipseg.core.effects import InboxEntry
from gossipseg.core.params import GossipParams
from gossipseg.core.types import ModelRef, Site

BEGIN_SHARE = 4.0
"""Offer timeouts during which a promise is protected from other sites' offers while none of its bytes arrive.
After that its sender may never have heard of the accept, or may have given up."""


@dataclass(frozen=True, slots=True)
class Reservation:
    """An accepted offer whose model has not come yet."""

    frm: Site
    model: ModelRef
    deadline: float
    """When the place is freed if the model has not come (the core's clock)."""
    firm_until: float
    """Until when another site's offer cannot displace it."""


def is_stale(model_steps: int, own_steps: int) -> bool:
    """Whether a model's step count is under half of the steps that the receiver took itself.

    Steps that the receiver merged do not count: one site's claim would make everybody else's models stale.
    """
    return 2 * model_steps < own_steps


class Inbox:
    """At most one reservation and, beside the visitor, one waiting model (two after a restart)."""

    def __init__(self, params: GossipParams, entries: tuple[InboxEntry, ...]) -> None:
        self._params = params
        self.waiting: list[InboxEntry] = list(entries)
        self.visiting: InboxEntry | None = None
        self.reserved: Reservation | None = None

    @property
    def entries(self) -> tuple[InboxEntry, ...]:
        """Models that must survive a crash: the visitor first, then the waiting."""
        return (self.visiting, *self.waiting) if self.visiting else tuple(self.waiting)

    def holds(self, hash: str) -> bool:
        return any(e.model.hash == hash for e in self.entries)

    def reserve(self, frm: Site, model: ModelRef, now: float) -> bool:
        """Promise the place to `frm`; False when it is taken.

        A site's new offer replaces its own earlier promise, or its own older waiting model. A repeated offer
        is accepted again, since the first answer may have been lost. But offers alone do not hold the place
        for longer: a site that only ever offers would block everybody else.
        """
        held = self.reserved
        if held is not None and held.frm != frm and now < held.firm_until:
            return False
        if any(e.frm != frm or e.model.round >= model.round for e in self.waiting):
            return False
        firm_until = now + BEGIN_SHARE * self._params.offer_timeout_s
        if held is not None and held.frm == frm:
            firm_until = held.firm_until
        self.reserved = Reservation(
            frm, model, deadline=now + self._params.transfer_timeout_s, firm_until=firm_until
        )
        return True

    def began(self, frm: Site, hash: str, now: float) -> bool:
        """Note that the promised model is streaming: no other offer may displace it for a while."""
        if self.expected(frm, hash) is None:
            return False
        assert self.reserved is not None
        firm_until = min(self.reserved.deadline, now + BEGIN_SHARE * self._params.offer_timeout_s)
        self.reserved = replace(self.reserved, firm_until=firm_until)
        return True

    def expected(self, frm: Site, hash: str) -> ModelRef | None:
        held = self.reserved
        return held.model if held is not None and (held.frm, held.model.hash) == (frm, hash) else None

    def arrive(self, frm: Site, model: ModelRef, round: int) -> tuple[bool, list[InboxEntry]]:
        """Take in a promised model; returns whether it was promised, and what it replaced."""
        if self.expected(frm, model.hash) is None:
            return False, []
        assert self.reserved is not None
        replaced = [e for e in self.waiting if e.frm == frm]
        self.waiting = [e for e in self.waiting if e.frm != frm]
        self.waiting.append(InboxEntry(frm, self.reserved.model, round))
        self.reserved = None
        return True, replaced

    def release(self, frm: Site, hash: str | None = None) -> Reservation | None:
        """Cancel a promise: the stream failed for good, or the sender is gone."""
        held = self.reserved
        if held is None or held.frm != frm or (hash is not None and held.model.hash != hash):
            return None
        self.reserved = None
        return held

    def take(self, own_round: int, own_steps: int) -> tuple[InboxEntry | None, list[tuple[InboxEntry, str]]]:
        """The next visitor, and the models dropped on the way with the reason: too_old or stale."""
        dropped: list[tuple[InboxEntry, str]] = []
        while self.waiting:
            entry = self.waiting.pop(0)
            if own_round - entry.arrived_round > self._params.max_age_rounds:
                dropped.append((entry, "too_old"))
            elif is_stale(entry.model.steps, own_steps):
                dropped.append((entry, "stale"))
            else:
                self.visiting = entry
                break
        return self.visiting, dropped

    def put_back(self) -> None:
        """Put the visitor back, first in line: the worker was lost during the visit."""
        if self.visiting is not None:
            self.waiting.insert(0, self.visiting)
            self.visiting = None

    def remove(self, hash: str) -> InboxEntry | None:
        """Forget a waiting model."""
        for entry in self.waiting:
            if entry.model.hash == hash:
                self.waiting.remove(entry)
                return entry
        return None
