"""Which sites are reached, and reach this one: the document behind `gossipctl check --reach`."""

from __future__ import annotations

from typing import ClassVar

from gossipseg.wire.documents.base import Document, Part


class ReachRow(Part, frozen=True):
    """One direction between this site and another."""

    site: str = ""
    direction: str = ""
    """out: this site dialled it; in: it was asked to dial this site"""
    outcome: str = ""
    """wire.reached.Outcome: ok, refused, timeout, stalled, older …"""
    good: bool = False
    """Reached, and nothing that could be tried failed."""
    known: bool = True
    """False: nothing could be learned."""
    address: str = ""
    """That was dialled."""
    text: str = ""
    """What came of it, for people."""
    remedy: str = ""


class ReachDoc(Document, frozen=True):
    kind: ClassVar[str] = "reach"
    rows: tuple[ReachRow, ...] = ()
