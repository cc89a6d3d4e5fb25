"""The coordinated round as documents: in full for `gossipctl rounds`, in short for `status`."""

from __future__ import annotations

from collections.abc import Iterable

from gossipseg.core.rounds.status import RoundsView, SiteRow
from gossipseg.wire import documents as doc

Similarity = tuple[int, tuple[str, ...], tuple[tuple[float, ...], ...]]
"""Round, sites and matrix."""


def rounds_doc(exchange: str, view: RoundsView | None, compared: Similarity | None) -> doc.RoundsDoc:
    """`view`: None without a coordinator. `compared`: the similarity of the sites' changes, as the algorithm
    found it."""
    if view is None:
        return doc.RoundsDoc(exchange=exchange)
    last = view.last
    return doc.RoundsDoc(
        exchange=exchange,
        round=view.round,
        attempt=view.attempt,
        coordinator=view.coordinator or "",
        leading=view.leading,
        state=view.state,
        reason=view.reason,
        quorum=view.quorum,
        deadline_s=view.deadline_s,
        delivered=view.delivered,
        missing=_rows(view.missing),
        told_s=view.told_s,
        committed=view.committed,
        committed_hash=last.model.hash if last else "",
        contributors=last.contributors if last else (),
        absent=tuple(
            doc.RoundRow(site, "left_out", reason) for site, reason in (last.absent if last else ())
        ),
        sites=_rows(view.rows),
        similarity_round=compared[0] if compared else None,
        similarity_sites=compared[1] if compared else (),
        similarity=compared[2] if compared else (),
    )


def under_way(view: RoundsView | None) -> doc.RoundUnderWay:
    """The short form, for `status`."""
    if view is None:
        return doc.RoundUnderWay()
    return doc.RoundUnderWay(
        round=view.round,
        attempt=view.attempt,
        coordinator=view.coordinator or "",
        leading=view.leading,
        sites=len(view.rows),
        deadline_s=view.deadline_s,
        delivered=view.delivered,
        missing=_rows(view.missing),
        told_s=view.told_s,
    )


def _rows(rows: Iterable[SiteRow]) -> tuple[doc.RoundRow, ...]:
    return tuple(doc.RoundRow(row.site, row.state, row.reason) for row in rows)
