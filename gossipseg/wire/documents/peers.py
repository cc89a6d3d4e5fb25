"""How a site sees the others: its peers, and their offences."""

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
    """Seconds until models of the peer are accepted again; null: no quarantine."""
    offence: str = ""
    """Reason code of the last offence, while the peer is in quarantine."""


class PeersDoc(Document, frozen=True):
    kind: ClassVar[str] = "peers"
    peers: tuple[PeerRow, ...] = ()


class QuarantineRow(Part, frozen=True):
    """A peer with a record of offences."""

    site: str = ""
    standing: str = "clear"
    """core.quarantine.PeerStatus: clear (only remembered), watched, quarantined"""
    reason: str = ""
    """Reason code of the last offence."""
    left_s: float | None = None
    """Seconds until the quarantine ends; null: no quarantine."""
    offences: int = 0
    """Offences within the window; none count during a quarantine."""
    offences_in_all: int = 0
    next_s: float = 0.0
    """Length of the next quarantine."""


class QuarantineDoc(Document, frozen=True):
    kind: ClassVar[str] = "quarantine"
    limit: int = 0
    """Offences within the window that lead to a quarantine."""
    window_s: float = 0.0
    sites: tuple[QuarantineRow, ...] = ()
