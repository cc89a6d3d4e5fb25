"""The control socket's other answers: what became of an order, and the frames of a watch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from gossipseg.wire.documents.base import Document
from gossipseg.wire.documents.peers import PeersDoc
from gossipseg.wire.documents.status import StatusDoc


@dataclass(frozen=True, slots=True)
class OkDoc(Document):
    """What became of pause, resume, leave, reload or the lifting of a quarantine."""

    kind: ClassVar[str] = "ok"
    ok: bool = True
    message: str = ""


@dataclass(frozen=True, slots=True)
class WatchDoc(Document):
    """One frame of a watch."""

    kind: ClassVar[str] = "watch"
    status: StatusDoc = field(default_factory=StatusDoc, metadata={"part": StatusDoc})
    peers: PeersDoc = field(default_factory=PeersDoc, metadata={"part": PeersDoc})
