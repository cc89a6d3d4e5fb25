"""A node: everything a site's daemon decides, as one state machine.

What belongs here: the dispatch of events to the parts (membership, gossip, training) and the views
the shell reads. What must not: I/O, clocks, threads, randomness of its own, logging.

`step(event, now)` returns effects to be carried out in order; what comes of them returns as events.
The shell calls `step(Tick(), now)` when `next_deadline()` has come.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

from gossipseg.core.effects import Effect, InboxEntry, Snapshot
from gossipseg.core.events import Event
from gossipseg.core.member import Member
from gossipseg.core.params import GossipParams, MembershipParams
from gossipseg.core.types import PROTOCOL_MAX, PROTOCOL_MIN, ModelRef, PeerInfo, Phase, Sign, Site

__all__ = ["Member", "NodeState", "Reservation", "Sending"]


@dataclass(frozen=True, slots=True)
class Reservation:
    """An accepted offer whose model has not come yet."""

    frm: Site
    model: ModelRef
    deadline: float
    """Freed when it has not come by then (the core's clock)."""


@dataclass(frozen=True, slots=True)
class Sending:
    """A model on its way out: offered, or being transferred."""

    to: Site
    model: ModelRef
    transferring: bool


class NodeState:
    """One site's membership, exchange and rounds. See the module docstring."""

    def __init__(
        self,
        site: Site,
        *,
        address: str,
        sites: Mapping[Site, str],
        federation: str,
        contract: tuple[tuple[str, str], ...],
        membership: MembershipParams,
        gossip: GossipParams,
        exchanges: bool,
        rounds: int | None,
        rng: random.Random,
        sign: Sign,
        max_model_bytes: int = 2 << 30,
        snapshot: Snapshot | None = None,
        protocol: tuple[int, int] = (PROTOCOL_MIN, PROTOCOL_MAX),
        strict: bool = False,
    ) -> None:
        """`sites`: name → listed address of the others. `strict`: an event that fits no state raises."""
        raise NotImplementedError

    def step(self, event: Event, now: float) -> list[Effect]:
        """Take one event; return what is to be done, in order."""
        raise NotImplementedError

    def next_deadline(self) -> float | None:
        """When to call step(Tick(), now) at the latest; None: nothing is due."""
        raise NotImplementedError

    def check_invariants(self) -> None:
        """Raise AssertionError when the state contradicts itself. For tests."""
        raise NotImplementedError

    # ------------------------------------------------------------ read-only views for the shell

    @property
    def members(self) -> Mapping[Site, Member]:
        """All listed sites but this one."""
        raise NotImplementedError

    @property
    def info(self) -> PeerInfo:
        """What this site says of itself with every message."""
        raise NotImplementedError

    @property
    def phase(self) -> Phase:
        raise NotImplementedError

    @property
    def round(self) -> int:
        """Rounds behind this site's model."""
        raise NotImplementedError

    @property
    def incarnation(self) -> int:
        raise NotImplementedError

    @property
    def inbox(self) -> tuple[InboxEntry, ...]:
        """Models that wait for their visit."""
        raise NotImplementedError

    @property
    def visiting(self) -> InboxEntry | None:
        """The model that visits in the round now running."""
        raise NotImplementedError

    @property
    def reserved(self) -> Reservation | None:
        raise NotImplementedError

    @property
    def sending(self) -> tuple[Sending, ...]:
        """Models offered or being transferred now."""
        raise NotImplementedError

    @property
    def self_health(self) -> int:
        """Lifeguard's local health score: 0 is healthy, max_self_health is worst."""
        raise NotImplementedError

    def kept_models(self) -> frozenset[str]:
        """Hashes the store must not collect: waiting, visiting, promised, on their way out."""
        raise NotImplementedError

    def count(self, what: str, site: Site | None = None) -> int:
        """Models `sent`, `received`, `merged`, `refused`, `kept_out`, `reverted` or `dropped` so far,
        with one site or with all; counted across restarts."""
        raise NotImplementedError

    def expects(self, frm: Site, hash: str) -> ModelRef | None:
        """The accepted offer whose stream may come now, or None."""
        raise NotImplementedError
