"""The table of swaps: one row for each that this site asked for, or was asked for, and how it stands.

The table observes the core's notes. It decides and counts nothing. The number of rows is bounded.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from gossipseg.core import effects, events
from gossipseg.core.types import Site
from gossipseg.wire.documents import SwapRow

MAX_ROWS = 200
STATES = {
    "swap_asked": "asked",
    "swap_refused": "refused",
    "swap_in_refused": "refused",
    "swap_opened": "open",
    "swap_committed": "committed",
    "swap_applied": "applied",
    "swap_dropped": "dropped",
    "swap_in_doubt": "in_doubt",
    "swap_lost": "lost",
}
"""Core note → state of the row."""


@dataclass(slots=True)
class SwapTable:
    """Rows by (asker, number); `site` is this one, `clock` gives wall seconds."""

    site: Site
    clock: Callable[[], float]
    rows: OrderedDict[tuple[Site, int], SwapRow] = field(default_factory=OrderedDict)

    def event(self, event: events.Event) -> None:
        """Events say nothing that the notes do not."""

    def effect(self, effect: effects.Effect) -> None:
        """Update a row for a note of the core."""
        if isinstance(effect, effects.Note) and effect.event in STATES and effect.site is not None:
            self._noted(effect, effect.site)

    def recent(self, limit: int) -> list[SwapRow]:
        """The newest rows, newest first."""
        return list(reversed(self.rows.values()))[: limit or MAX_ROWS]

    def _noted(self, note: effects.Note, peer: Site) -> None:
        detail, state = note.detail, STATES[note.event]
        key = (str(detail["asker"]), int(detail["number"]))
        row = self.rows.get(key)
        if row is None:
            direction = "out" if key[0] == self.site else "in"
            row = SwapRow(asker=key[0], number=key[1], peer=peer, direction=direction)
        reason = note.reason if state != "applied" else ""  # there it is the part
        said: dict[str, Any] = {k: detail[k] for k in ("part", "weight") if k in detail}
        if state == "applied":
            said["part"] = note.reason
        said |= {"detail": str(detail.get("detail", "")), "state": state, "reason": reason}
        self.rows[key] = msgspec.structs.replace(row, t=self.clock(), **said)
        self.rows.move_to_end(key)
        while len(self.rows) > MAX_ROWS:
            self.rows.popitem(last=False)
