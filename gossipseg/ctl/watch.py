"""`gossipctl watch`: one daemon, live. A table on a terminal, a line for each change to a pipe."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gossipseg.ctl import context, peers, status
from gossipseg.ctl import output as out
from gossipseg.errors import EXIT_OK

if TYPE_CHECKING:
    from gossipseg.wire.documents import StatusDoc, WatchDoc

BAR_CELLS = 30


def register(app: typer.Typer) -> None:
    app.command("watch")(watch)


def watch(
    frames: Annotated[
        int | None, typer.Option(min=1, help="End after this number of updates.", show_default=False)
    ] = None,
    config: context.ConfigOption = None,
    socket: context.SocketOption = None,
    json: context.JsonOption = False,
) -> int:
    """Follow this site and its peers until Ctrl-C, or until the daemon ends (exit code 69)."""
    with context.daemon(config, socket) as daemon:
        seen = islice(daemon.watch(), frames)
        try:
            if json:
                for document in seen:
                    out.print_json(document.to_dict())
            elif sys.stdout.isatty():
                _live(seen)
            else:
                _lines(seen)
        except KeyboardInterrupt:
            return EXIT_OK
    return EXIT_OK


def _lines(frames: Iterator[WatchDoc]) -> None:
    """Plain lines, one for each frame with something new."""
    last = ""
    for frame in frames:
        line = line_of(frame.status)
        if line != last:
            print(line, flush=True)
        last = line


def line_of(s: StatusDoc) -> str:
    """A status in one line."""
    parts = [
        s.site,
        s.state,
        status.doing(s),
        f"loss {out.number_text(s.loss, 4)}",
        f"Dice {out.number_text(s.dice_val)}",
        status.models(s),
        status.members(s),
    ]
    return out.one_line(" | ".join(parts + list(s.reasons)))


def _live(frames: Iterator[WatchDoc]) -> None:
    from rich.live import Live

    with Live(refresh_per_second=4, screen=False) as live:
        for frame in frames:
            live.update(picture(frame))


def picture(frame: WatchDoc) -> Any:
    """A frame as rich shows it: this site, its progress, its peers."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    s = frame.status
    wanted = {"site", "state", "", "phase", "loss", "Dice", "models", "rounds", "bytes", "members", "worker"}
    bar = Table.grid(padding=(0, 2))
    fraction = s.fraction if s.fraction is not None else 0.0
    bar.add_row(
        Text((s.activity or s.phase).ljust(10), style="bold"),
        ProgressBar(total=1.0, completed=fraction, width=BAR_CELLS),
        Text(out.share_text(s.fraction)),
    )
    rows = [peers.cells(row) for row in frame.peers.peers]
    return Group(
        out.rich_pairs([p for p in status.pairs(s) if p[0] in wanted]),
        bar,
        Text(),
        out.rich_table(peers.COLUMNS, rows) if rows else Text("No other site is listed."),
    )
