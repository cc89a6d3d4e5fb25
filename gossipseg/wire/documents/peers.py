"""How a site sees the others: its peers, and what it holds against them."""

from __future__ import annotations

from typing import ClassVar

from gossipseg.wire.documents.base import Document, Part


class PeerRow(Part, frozen=True):
    """A listed site as this one sees it."""

    site: str = ""
    id: str = ""
    address: str = ""
    state: str = "unseen"
    """core.types.MemberState, or `refused`, or `quarantined`"""
    reason: str = ""
    round: int | None = None
    cases: int | None = None
    phase: str = ""
    last_seen_s: float | None = None
    """Seconds ago; null: never."""
    rtt_ms: float | None = None
    sent: int = 0
    received: int = 0
    bytes_out: int = 0
    bytes_in: int = 0
    refused: str = ""
    """Why no weights move, with the field that differs; empty if they may."""
    quarantined_s: float | None = None
    """Seconds that nothing is taken from it yet; null: it is in no quarantine."""
    offence: str = ""
    """Reason code of its last offence, while it is in quarantine."""


class PeersDoc(Document, frozen=True):
    kind: ClassVar[str] = "peers"
    peers: tuple[PeerRow, ...] = ()


class QuarantineRow(Part, frozen=True):
    """A peer with something against it."""

    site: str = ""
    standing: str = "clear"
    """core.quarantine.Standing: clear (only remembered), watched, quarantined"""
    reason: str = ""
    """Reason code of its last offence."""
    left_s: float | None = None
    """Seconds until its quarantine ends; null: it is in none."""
    offences: int = 0
    """Within the window; none count while it is quarantined."""
    offences_in_all: int = 0
    next_s: float = 0.0
    """How long its next quarantine would last."""


class QuarantineDoc(Document, frozen=True):
    kind: ClassVar[str] = "quarantine"
    limit: int = 0
    """Offences within the window that lead to a quarantine."""
    window_s: float = 0.0
    sites: tuple[QuarantineRow, ...] = ()
