"""Requests and replies between sites, as values. The wire gives them bytes; the core gives them meaning.

Every request is answered by one reply: Hello → HelloReply, Ping → Ack, IndirectPing → IndirectAck,
Sync → SyncReply, Offer → OfferReply.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gossipseg.core.types import ModelRef, PeerInfo, Record, Site


@dataclass(frozen=True, slots=True)
class Hello:
    """First words on meeting a site, and again after either side restarted or changed its contract."""

    protocol_min: int
    protocol_max: int
    federation: str
    contract: tuple[tuple[str, str], ...]
    """Sorted (dotted key, JSON value) pairs of the contract, so that both sides can name what differs."""
    info: PeerInfo


@dataclass(frozen=True, slots=True)
class HelloReply:
    protocol_min: int
    protocol_max: int
    federation: str
    contract: tuple[tuple[str, str], ...]
    info: PeerInfo


@dataclass(frozen=True, slots=True)
class Ping:
    records: tuple[Record, ...]
    info: PeerInfo


@dataclass(frozen=True, slots=True)
class Ack:
    records: tuple[Record, ...]
    info: PeerInfo


@dataclass(frozen=True, slots=True)
class IndirectPing:
    """Please ping `target` for me."""

    target: Site
    records: tuple[Record, ...]


@dataclass(frozen=True, slots=True)
class IndirectAck:
    target: Site
    reached: bool
    records: tuple[Record, ...]


@dataclass(frozen=True, slots=True)
class Sync:
    """Push/pull: everything I believe; send me everything you believe."""

    records: tuple[Record, ...]
    info: PeerInfo


@dataclass(frozen=True, slots=True)
class SyncReply:
    records: tuple[Record, ...]
    info: PeerInfo


@dataclass(frozen=True, slots=True)
class Offer:
    model: ModelRef


@dataclass(frozen=True, slots=True)
class OfferReply:
    verdict: Literal["accept", "busy", "reject"]
    reason: str = ""
    """A stable lower_case code when not accepted: busy, not_ready, paused, finished, failed, stale,
    duplicate, too_large, contract_mismatch, exchanges_nothing, warming_up, leaving."""


Request = Hello | Ping | IndirectPing | Sync | Offer
Reply = HelloReply | Ack | IndirectAck | SyncReply | OfferReply
Body = Request | Reply
