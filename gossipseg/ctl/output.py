"""The form of output: human units, aligned columns, JSON.

Rich is for a terminal only.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

SCHEMA = 1
NOTHING = "-"
HASH_DIGITS = 12
"""Digits of a hash that a table shows."""

_STYLES = {
    "ok": "green",
    "alive": "green",
    "training": "green",
    "merged": "green",
    "sent": "green",
    "finished": "green",
    "warning": "yellow",
    "degraded": "yellow",
    "suspect": "yellow",
    "busy": "yellow",
    "paused": "yellow",
    "left": "dim",
    "unseen": "dim",
    "skipped": "dim",
    "dead": "red",
    "refused": "red",
    "failed": "red",
    "reverted": "red",
    "restarting": "red",
    "waiting": "yellow",
}


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table: its heading, and whether its cells are numbers (flush right)."""

    heading: str
    right: bool = False


def print_json(document: Mapping[str, Any]) -> None:
    """One JSON document: indented for a person, one line for a pipe."""
    indent = 2 if sys.stdout.isatty() else None
    print(json.dumps(document, indent=indent, ensure_ascii=False, allow_nan=False), flush=True)


def print_table(columns: Sequence[Column], rows: Sequence[Sequence[str]], empty: str) -> None:
    """Rows below their headings; `empty` in place of a table without rows."""
    if not rows:
        print(empty)
    elif sys.stdout.isatty():
        _print_rich(rich_table(columns, rows))
    else:
        print(plain_table(columns, rows))


def print_pairs(pairs: Iterable[tuple[str, str]]) -> None:
    """Lines of a label and its text; the labels in one column."""
    listed = list(pairs)
    if sys.stdout.isatty():
        _print_rich(rich_pairs(listed))
    else:
        print(plain_pairs(listed))


def plain_table(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> str:
    """Aligned by spaces, two between columns, no colour."""
    lines = [[c.heading for c in columns], *[[one_line(cell) for cell in row] for row in rows]]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]

    def align(line: Sequence[str]) -> str:
        cells = [
            cell.rjust(width) if column.right else cell.ljust(width)
            for cell, width, column in zip(line, widths, columns, strict=True)
        ]
        return "  ".join(cells).rstrip()

    return "\n".join(align(line) for line in lines)


def plain_pairs(pairs: Sequence[tuple[str, str]]) -> str:
    """Aligned by spaces, no colour."""
    width = max((len(label) for label, _ in pairs), default=0)
    return "\n".join(f"{label.ljust(width)}  {one_line(text)}".rstrip() for label, text in pairs)


def rich_table(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> Any:
    """The same as a rich table, states coloured."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column.heading, justify="right" if column.right else "left", overflow="fold")
    for row in rows:
        table.add_row(*[Text(one_line(cell), style=style_of(cell)) for cell in row])
    return table


def rich_pairs(pairs: Sequence[tuple[str, str]]) -> Any:
    """The same as a rich grid."""
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    for label, text in pairs:
        grid.add_row(Text(label, style="bold"), Text(one_line(text), style=style_of(text)))
    return grid


def style_of(text: str) -> str:
    """The colour of a state; other text has none."""
    return _STYLES.get(text.split(",")[0].split(":")[0], "")


def _print_rich(renderable: Any) -> None:
    from rich.console import Console

    Console(highlight=False).print(renderable)


def one_line(text: str) -> str:
    """Text of other sites and of logs in one line: no line breaks, tabs or control characters reach a
    terminal."""
    return "".join(c if c.isprintable() else " " for c in text)


# ---------------------------------------------------------------- units


def hash_text(hash: str) -> str:
    """The first digits of a model's hash."""
    return hash[:HASH_DIGITS]


def bytes_text(count: int | None) -> str:
    """1234567 → "1.2 MB" (powers of 1000)."""
    if count is None:
        return NOTHING
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if abs(value) < 999.5:
            return f"{count} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def duration_text(seconds: float | None) -> str:
    """4000 → "1 h 6 min"."""
    if seconds is None or not math.isfinite(seconds):
        return NOTHING
    s = max(0, round(seconds))
    if s < 60:
        return f"{s} s"
    if s < 3600:
        return f"{s // 60} min {s % 60} s" if s < 600 else f"{s // 60} min"
    if s < 86400:
        return f"{s // 3600} h {s % 3600 // 60} min"
    return f"{s // 86400} d {s % 86400 // 3600} h"


def ago_text(seconds: float | None) -> str:
    """3.2 → "3 s ago"; never, where there is no time."""
    return "never" if seconds is None else f"{duration_text(seconds)} ago"


def ms_text(milliseconds: float | None) -> str:
    """0.42 → "0.4 ms"."""
    if milliseconds is None:
        return NOTHING
    return f"{milliseconds:.1f} ms" if milliseconds < 10 else f"{milliseconds:.0f} ms"


def number_text(value: float | None, digits: int = 3) -> str:
    """A figure such as a loss or a Dice score."""
    return NOTHING if value is None else f"{value:.{digits}f}"


def count_text(value: int | None) -> str:
    """A count that may be unknown."""
    return NOTHING if value is None else str(value)


def share_text(fraction: float | None) -> str:
    """0.42 → "42 %"."""
    return NOTHING if fraction is None else f"{100 * fraction:.0f} %"


def clock_text(wall_s: float | None) -> str:
    """Local date and time of wall seconds."""
    return NOTHING if wall_s is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(wall_s))
