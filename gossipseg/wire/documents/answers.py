"""The control socket's other answers: the outcome of an order, and the frames of a watch."""

from __future__ import annotations

from typing import ClassVar

from gossipseg.wire.documents.base import Document
from gossipseg.wire.documents.peers import PeersDoc
from gossipseg.wire.documents.status import StatusDoc


class OkDoc(Document, frozen=True):
    """The outcome of pause, resume, leave, reload or the lifting of a quarantine."""

    kind: ClassVar[str] = "ok"
    ok: bool = True
    message: str = ""


class WatchDoc(Document, frozen=True):
    """One frame of a watch."""

    kind: ClassVar[str] = "watch"
    status: StatusDoc = StatusDoc()
    peers: PeersDoc = PeersDoc()
