"""Which sites are reachable, and can reach this one: the document behind `gossipctl check --reach`."""

from __future__ import annotations

from typing import ClassVar

from gossipseg.wire.documents.base import Document, Part


class ReachRow(Part, frozen=True):
    """One direction between this site and another."""

    site: str = ""
    direction: str = ""
    """out: this site dialled the other; in: the other was asked to dial this site"""
    outcome: str = ""
    """wire.reached.Outcome: ok, refused, timeout, stalled, older …"""
    good: bool = False
    """Whether the address was reached, and nothing that could be tried failed."""
    known: bool = True
    """False: nothing could be learned."""
    address: str = ""
    """The address that was dialled."""
    text: str = ""
    """The result, for people."""
    remedy: str = ""


class ReachDoc(Document, frozen=True):
    kind: ClassVar[str] = "reach"
    rows: tuple[ReachRow, ...] = ()
