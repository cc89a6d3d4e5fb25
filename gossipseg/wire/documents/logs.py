"""The daemon's records: its event log, and the recording of its core."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from gossipseg.wire.documents.base import Document


class EventsDoc(Document, frozen=True):
    """Lines of the event log, oldest first: seq, t, event, and the fields of that event."""

    kind: ClassVar[str] = "events"
    events: tuple[Mapping[str, Any], ...] = ()


class DumpDoc(Document, frozen=True):
    """The daemon's recording of its core, for replay."""

    kind: ClassVar[str] = "dump"

    recording: str = ""
    """JSON lines: a head with the state of the core, then a line a step."""
    steps: int = 0
    problem: str = ""
    """Why there are no steps."""
