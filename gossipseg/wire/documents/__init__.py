"""The documents that gossipctl prints and the control socket carries. Their fields are a public promise.

What belongs here: frozen values, one file per subject, and their JSON form (base.py); the standard library
and msgspec only. What must not: grpc, torch, how a document is filled (daemon) or shown (ctl).

A reader ignores fields that it does not know. A missing field, or a null, has its default, so that daemon and
gossipctl may be of different versions. A value of another type is an error that names the field. Fields are
only ever added; tests/wire pins the list. Numbers that JSON lacks (NaN, infinities) become null.
"""

from __future__ import annotations

from collections.abc import Mapping

from gossipseg.wire.documents.answers import OkDoc, WatchDoc
from gossipseg.wire.documents.base import SCHEMA, BadDocument, Document, listing, load
from gossipseg.wire.documents.exchanges import (
    ExchangeRow,
    ExchangesDoc,
    ModelRow,
    ModelsDoc,
    SwapCounts,
    SwapRow,
)
from gossipseg.wire.documents.logs import DumpDoc, EventsDoc
from gossipseg.wire.documents.peers import PeerRow, PeersDoc, QuarantineDoc, QuarantineRow
from gossipseg.wire.documents.reach import ReachDoc, ReachRow
from gossipseg.wire.documents.rounds import RoundRow, RoundsDoc, RoundUnderWay
from gossipseg.wire.documents.status import (
    ConcernRow,
    DiscoveryStatus,
    MemberCounts,
    SplitCounts,
    StatusDoc,
    WorkerStatus,
)

__all__ = [
    "KINDS",
    "SCHEMA",
    "BadDocument",
    "ConcernRow",
    "DiscoveryStatus",
    "Document",
    "DumpDoc",
    "EventsDoc",
    "ExchangeRow",
    "ExchangesDoc",
    "MemberCounts",
    "ModelRow",
    "ModelsDoc",
    "OkDoc",
    "PeerRow",
    "PeersDoc",
    "QuarantineDoc",
    "QuarantineRow",
    "ReachDoc",
    "ReachRow",
    "RoundRow",
    "RoundUnderWay",
    "RoundsDoc",
    "SplitCounts",
    "StatusDoc",
    "SwapCounts",
    "SwapRow",
    "WatchDoc",
    "WorkerStatus",
    "field_listing",
    "parse",
]

KINDS: Mapping[str, type[Document]] = {
    d.kind: d
    for d in (
        StatusDoc,
        PeersDoc,
        ExchangesDoc,
        ModelsDoc,
        RoundsDoc,
        QuarantineDoc,
        EventsDoc,
        DumpDoc,
        ReachDoc,
        OkDoc,
        WatchDoc,
    )
}


def parse(text: str | bytes) -> Document:
    """Any document, by its kind. Raises BadDocument."""
    raw = load(text)
    kind = KINDS.get(str(raw.get("kind")), Document)
    return kind.from_dict(raw)


def field_listing() -> dict[str, dict[str, str]]:
    """Document kind → dotted JSON field → type: the fields promised to readers."""
    return {kind: dict(sorted(listing(document, ""))) for kind, document in KINDS.items()}
