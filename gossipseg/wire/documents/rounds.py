"""Rounds under the rotating coordinator, as a site sees them."""

from __future__ import annotations

from typing import ClassVar

from gossipseg.wire.documents.base import Document, Part


class RoundRow(Part, frozen=True):
    """A listed site's part in a round, this site included."""

    site: str = ""
    state: str = ""
    """delivered | has_update | training | stored | left_out | …"""
    reason: str = ""


class RoundUnderWay(Part, frozen=True):
    """The same in short, for `status`."""

    round: int = 0
    """The federation round under way, from 1; 0: there is no coordinator, or an older version answers."""
    attempt: int | None = None
    coordinator: str = ""
    leading: bool = False
    sites: int = 0
    """Listed ones."""
    deadline_s: float | None = None
    delivered: tuple[str, ...] | None = None
    missing: tuple[RoundRow, ...] = ()
    told_s: float | None = None


class RoundsDoc(Document, frozen=True):
    """The round under the rotating coordinator as this site sees it."""

    kind: ClassVar[str] = "rounds"
    exchange: str = "none"
    """rounds; otherwise there is no coordinator, and all else is empty."""
    round: int = 0
    """The federation round under way, from 1."""
    attempt: int | None = None
    """null: nobody can lead."""
    coordinator: str = ""
    leading: bool = False
    """This site is the coordinator."""
    state: str = ""
    """What this site does for the round: core.rounds.status.RoundsView"""
    reason: str = ""
    quorum: int = 0
    """Sites that must contribute, and store."""
    deadline_s: float | None = None
    """Seconds until sites that have not delivered are left out; null: that clock does not run, or is not
    known here (`delivered` is null then)."""
    delivered: tuple[str, ...] | None = None
    """Sites whose updates the coordinator has, itself among them; null: not known here."""
    missing: tuple[RoundRow, ...] = ()
    """The other listed sites; where `delivered` is null, those that can do nothing as seen from here."""
    told_s: float | None = None
    """So many seconds ago the coordinator has told this site of deadline, delivered and left out; null: this
    site is the coordinator, or was not told."""
    committed: int = 0
    """The newest round whose global model is committed; 0: only the initial model."""
    committed_hash: str = ""
    contributors: tuple[str, ...] = ()
    """Sites whose updates are in it."""
    absent: tuple[RoundRow, ...] = ()
    """Listed sites that are not in it, and why."""
    sites: tuple[RoundRow, ...] = ()
    """The listed sites in the round under way."""
    similarity_round: int | None = None
    """The round that this site combined last with an algorithm that compares sites (FedSCA)."""
    similarity_sites: tuple[str, ...] = ()
    similarity: tuple[tuple[float, ...], ...] = ()
    """How alike the sites' changes were, 0 to 1: a row and a column for each of those sites."""
