"""The display of a running testbed: a live table on a terminal, plain lines on a pipe."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from gossipseg.wire.documents import StatusDoc

Record = Mapping[str, Any]
_MEMBERS = ("alive", "suspect", "dead", "left", "unseen", "refused")
_NEWS = 6
"""Number of news lines under the live table."""


@dataclass(slots=True)
class SiteView:
    """The newest state of one site."""

    name: str
    status: StatusDoc | None = None
    state: str = "starting"
    """starting | running | finished | failed | gone: the daemon's state, as the runner sees it."""
    reason: str = ""


class Display(Protocol):
    """Shows a run in progress."""

    def __enter__(self) -> Display: ...

    def __exit__(self, *exc: object) -> None: ...

    def update(self, sites: Sequence[SiteView]) -> None: ...

    def news(self, site: str, record: Record) -> None: ...

    def say(self, text: str) -> None: ...


def make_display(title: str, *, quiet: bool = False) -> Display:
    """A table on a terminal, lines on a pipe, nothing if quiet."""
    if quiet:
        return Quiet()
    console = Console()
    return LiveTable(title, console) if console.is_terminal else PlainLines()


class Quiet:
    """For --json: only the result."""

    def __enter__(self) -> Quiet:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def update(self, sites: Sequence[SiteView]) -> None:
        pass

    def news(self, site: str, record: Record) -> None:
        pass

    def say(self, text: str) -> None:
        pass


@dataclass(slots=True)
class PlainLines:
    """One line for each notable event, with the seconds since the start."""

    write: Callable[[str], None] = field(default=lambda line: print(line, flush=True))
    clock: Callable[[], float] = time.monotonic
    _begin: float | None = None
    _states: dict[str, str] = field(default_factory=dict)

    def __enter__(self) -> PlainLines:
        self._begin = self.clock()
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def update(self, sites: Sequence[SiteView]) -> None:
        for site in sites:
            if site.state in ("failed", "gone") and self._states.get(site.name) != site.state:
                self._line(f"{site.name}: {site.state}: {site.reason}")
            self._states[site.name] = site.state

    def news(self, site: str, record: Record) -> None:
        if (text := sentence(record)) is not None:
            self._line(f"{site}: {text}")

    def say(self, text: str) -> None:
        self._line(text)

    def _line(self, text: str) -> None:
        begin = self._begin if self._begin is not None else self.clock()
        self.write(f"{self.clock() - begin:6.1f} s  {text}")


class LiveTable:
    """A table that is redrawn, with the latest news under it."""

    def __init__(self, title: str, console: Console) -> None:
        self._title = title
        self._news: list[Text] = []
        self._sites: Sequence[SiteView] = ()
        self._begin = time.monotonic()
        self._live = Live(console=console, refresh_per_second=4, transient=False)

    def __enter__(self) -> LiveTable:
        self._begin = time.monotonic()
        self._live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._live.update(self._frame(), refresh=True)
        self._live.stop()

    def update(self, sites: Sequence[SiteView]) -> None:
        self._sites = sites
        self._live.update(self._frame())

    def news(self, site: str, record: Record) -> None:
        if record.get("event") != "round_finished" or record.get("visit"):
            text = sentence(record)
            if text is not None:
                self.say(f"{site}: {text}")

    def say(self, text: str) -> None:
        elapsed = time.monotonic() - self._begin
        self._news = [*self._news, Text(f"{elapsed:6.1f} s  {text}", style="dim")][-_NEWS:]
        self._live.update(self._frame())

    def _frame(self) -> Group:
        title = f"{self._title}   {time.monotonic() - self._begin:.0f} s"
        return Group(table(self._sites, title), *self._news)


def table(sites: Sequence[SiteView], title: str) -> Table:
    """One row per site: members, round, step, loss, Dice, models, bytes, activity."""
    out = Table(title=title, title_justify="left", title_style="bold", expand=False, pad_edge=False)
    out.add_column("site", style="bold")
    for heading in ("peers", "round", "step", "loss", "val Dice"):
        out.add_column(heading, justify="right", no_wrap=True)
    for heading in ("sent", "recv", "taken", "refused", "out", "in"):
        out.add_column(heading, justify="right", no_wrap=True)
    out.add_column("activity", no_wrap=True, min_width=18)
    out.add_column("", width=14)
    for site in sites:
        out.add_row(*_row(site))
    return out


def _row(site: SiteView) -> list[Any]:
    s = site.status
    if s is None or site.state in ("failed", "gone"):
        style = "red" if site.state in ("failed", "gone") else "dim"
        return [site.name, *[""] * 11, Text(f"{site.state} {site.reason}".strip(), style=style), ""]
    return [
        site.name,
        members(s),
        f"{s.round}/{s.rounds}" if s.rounds else str(s.round),
        f"{s.step}/{s.steps_per_round}" if s.steps_per_round else "",
        number(s.loss),
        number(s.dice_val),
        str(s.sent),
        str(s.received),
        str(s.accepted),
        str(s.refused),
        size(s.bytes_out),
        size(s.bytes_in),
        s.activity,
        ProgressBar(total=1.0, completed=s.fraction or 0.0, width=14),
    ]


def members(status: StatusDoc) -> Text:
    """`2 alive`, and the other states that occur."""
    counts = [(name, getattr(status.members, name)) for name in _MEMBERS]
    shown = [f"{n} {name}" for name, n in counts if n and name != "refused"] or ["none"]
    if status.members.refused:
        shown.append(f"{status.members.refused} refused")
    worried = any(n for name, n in counts if name in ("suspect", "dead", "refused"))
    return Text(", ".join(shown), style="yellow" if worried else "")


_SWAPPED = {"mix": "mixed in", "copy": "took over"}
_HELD = {"update": "its update", "global": "the global model"}


def sentence(record: Record) -> str | None:
    """An event of the log in words; None for an event without a line."""
    peer, reason = record.get("site", ""), record.get("reason", "")
    because = f" ({reason})" if reason else ""
    match record.get("event"):
        case "worker_ready":
            return f"ready, {record.get('cases')} training cases, {record.get('device')}"
        case "round_finished":
            return _round(record)
        case "transfer_done":
            return f"sent {_HELD.get(str(record.get('holds')), 'its model')} to {peer}"
        case "round_led":
            return f"leads round {record.get('round')}, attempt {record.get('attempt')}"
        case "round_committed":
            return _committed(record)
        case "round_passed":
            return f"round {record.get('round')} goes to the next coordinator{because}"
        case "round_alone":
            return f"trains alone{because}"
        case "update_refused":
            return f"{peer} did not accept its update{because}"
        case "swap_applied" if reason in _SWAPPED:
            return f"{_SWAPPED[reason]} {peer}'s model"
        case "visit_refused":
            return f"refused {peer}'s model{because}"
        case "visit_reverted":
            return f"undid the effect of {peer}'s model{because}"
        case "transfer_failed" | "model_broken":
            return f"a model between it and {peer} did not arrive{because}"
        case "member_suspect" | "member_dead" | "member_left" as event:
            return f"{peer} is {str(event).removeprefix('member_')}{because}"
        case "peer_refused":
            return f"exchanges nothing with {peer}{because}"
        case "worker_lost":
            return f"lost its training process{because}"
        case "finished":
            why = record.get("reason")
            return f"finished without the last global model ({why})" if why else "finished"
    return None


def _committed(record: Record) -> str:
    contributors, absent = record.get("contributors") or (), record.get("absent") or {}
    text = f"round {record.get('round')} is closed, with {', '.join(contributors)}"
    missing = ", ".join(f"{site} ({reason})" for site, reason in absent.items())
    return text + (f"; without {missing}" if missing else "")


def _round(record: Record) -> str:
    parts = [f"round {record.get('round')}"]
    if record.get("loss") is not None:
        parts.append(f"loss {record['loss']:.3f}")
    if record.get("dice_val") is not None:
        parts.append(f"validation Dice {record['dice_val']:.3f}")
    if record.get("visit"):
        said = {"kept_out": "rejected"}.get(record["visit"], record["visit"])
        parts.append(f"{said} {record.get('site')}'s model")
    if record.get("dice_test") is not None:
        parts.append(f"test Dice {record['dice_test']:.3f}")
    return ", ".join(parts)


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def size(count_bytes: int) -> str:
    """Bytes for people."""
    value = float(count_bytes)
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} GB"
