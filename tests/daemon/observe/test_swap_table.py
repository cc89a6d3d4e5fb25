"""The table of swaps: what becomes of a row as the core's notes go by."""

from __future__ import annotations

from typing import Any

import pytest

from gossipseg.core import effects as fx
from gossipseg.core import events as ev
from gossipseg.daemon.observe import swap_table as module
from gossipseg.daemon.observe.swap_table import STATES, SwapTable


@pytest.fixture
def table() -> SwapTable:
    ticks = iter(range(10_000))
    return SwapTable("a", lambda: float(next(ticks)))


def note(
    table: SwapTable, event: str, reason: str = "", *, asker: str = "a", number: int = 1, **more: Any
) -> Any:
    table.event(ev.Tick())
    table.effect(fx.Note(event, "b", reason, {"asker": asker, "number": number, **more}))
    return table.recent(1)[0]


def test_a_swap_that_this_site_asked_for(table: SwapTable) -> None:
    row = note(table, "swap_asked")
    assert (row.direction, row.peer, row.state, row.part, row.weight) == ("out", "b", "asked", "", None)
    row = note(table, "swap_opened", part="mix", weight=0.25)
    assert (row.state, row.part, row.weight) == ("open", "mix", 0.25)
    assert note(table, "swap_committed").state == "committed"
    row = note(table, "swap_applied", "mix", hash="ab")
    assert (row.state, row.reason, row.part, row.weight) == ("applied", "", "mix", 0.25)
    assert len(table.rows) == 1 and row.t == 3.0


def test_a_refusal_says_why(table: SwapTable) -> None:
    note(table, "swap_asked")
    row = note(table, "swap_refused", "refused", detail="its version knows no SwapOffer")
    assert (row.state, row.reason, row.detail) == ("refused", "refused", "its version knows no SwapOffer")


def test_what_others_asked_for_comes_in(table: SwapTable) -> None:
    row = note(table, "swap_in_refused", "busy", asker="b")
    assert (row.asker, row.direction, row.state, row.reason) == ("b", "in", "refused", "busy")


def test_after_a_restart_a_row_is_made_anew(table: SwapTable) -> None:
    row = note(table, "swap_applied", "copy", asker="b", number=9)
    assert (row.asker, row.number, row.state, row.part) == ("b", 9, "applied", "copy")


@pytest.mark.parametrize("event", sorted(STATES))
def test_every_note_has_a_state(table: SwapTable, event: str) -> None:
    assert note(table, event, "x").state == STATES[event]


def test_rows_are_bounded_and_the_newest_come_first(
    table: SwapTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_ROWS", 3)
    for number in range(5):
        note(table, "swap_asked", number=number)
    assert [row.number for row in table.recent(0)] == [4, 3, 2] and len(table.recent(2)) == 2


def test_other_notes_make_no_row(table: SwapTable) -> None:
    table.effect(fx.Note("member_alive", "b"))
    assert table.recent(0) == []
