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
    """The short form, for `status`."""

    round: int = 0
    """The federation round under way, from 1; 0: no coordinator, or an older version answers."""
    attempt: int | None = None
    coordinator: str = ""
    leading: bool = False
    sites: int = 0
    """Number of listed sites."""
    deadline_s: float | None = None
    delivered: tuple[str, ...] | None = None
    missing: tuple[RoundRow, ...] = ()
    told_s: float | None = None


class RoundsDoc(Document, frozen=True):
    """The round under the rotating coordinator as this site sees it."""

    kind: ClassVar[str] = "rounds"
    exchange: str = "none"
    """`rounds`; otherwise there is no coordinator, and every other field is empty."""
    round: int = 0
    """The federation round under way, from 1."""
    attempt: int | None = None
    """The attempt under way; null: no site can lead."""
    coordinator: str = ""
    leading: bool = False
    """Whether this site is the coordinator."""
    state: str = ""
    """What this site does for the round: core.rounds.status.RoundsView"""
    reason: str = ""
    quorum: int = 0
    """Number of sites that must contribute, and store."""
    deadline_s: float | None = None
    """Seconds until sites that have not delivered are left out.

    null: the deadline is not set, or is not known here (`delivered` is null then).
    """
    delivered: tuple[str, ...] | None = None
    """Sites whose updates the coordinator has, its own site among them; null: not known here."""
    missing: tuple[RoundRow, ...] = ()
    """The other listed sites; where `delivered` is null, the sites that cannot deliver as seen from here."""
    told_s: float | None = None
    """Age in seconds of the coordinator's last report of deadline, delivered and left out.

    null: this site is the coordinator, or has no report.
    """
    committed: int = 0
    """The newest round whose global model is committed; 0: only the initial model."""
    committed_hash: str = ""
    contributors: tuple[str, ...] = ()
    """Sites whose updates are in the global model."""
    absent: tuple[RoundRow, ...] = ()
    """Listed sites that are not in the global model, and why."""
    sites: tuple[RoundRow, ...] = ()
    """The listed sites in the round under way."""
    similarity_round: int | None = None
    """The last round that this site aggregated with an algorithm that compares sites (FedSCA)."""
    similarity_sites: tuple[str, ...] = ()
    similarity: tuple[tuple[float, ...], ...] = ()
    """Similarity of the sites' changes, 0 to 1: a row and a column for each of those sites."""
