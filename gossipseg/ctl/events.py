"""`gossipctl events`: the newest lines of the event log."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from gossipseg.ctl import context
from gossipseg.ctl import output as out
from gossipseg.ctl.output import Column
from gossipseg.errors import EXIT_OK

COLUMNS = (
    Column("SEQ", right=True),
    Column("TIME"),
    Column("EVENT"),
    Column("SITE"),
    Column("DETAILS"),
)


def register(app: typer.Typer) -> None:
    app.command("events")(events)


def events(
    limit: context.LimitOption = 20,
    since: Annotated[int, typer.Option(min=0, help="Only events with a greater sequence number.")] = 0,
    config: context.ConfigOption = None,
    socket: context.SocketOption = None,
    json: context.JsonOption = False,
) -> int:
    """The newest lines of the event log, oldest first."""
    with context.daemon(config, socket) as daemon:
        document = daemon.events(limit, since)
    if json:
        out.print_json(document.to_dict())
    else:
        out.print_table(COLUMNS, [event_cells(e) for e in document.events], "Nothing has happened.")
    return EXIT_OK


def event_cells(event: Mapping[str, Any]) -> list[str]:
    known = ("seq", "t", "event", "site", "reason")
    details = [str(event["reason"])] if event.get("reason") else []
    details += [
        f"{k}={_value_text(k, v)}" for k, v in event.items() if k not in known and v not in (None, "")
    ]
    return [
        str(event.get("seq", out.NOTHING)),
        out.clock_text(event.get("t")),
        str(event.get("event", out.NOTHING)),
        str(event.get("site") or out.NOTHING),
        " ".join(details),
    ]


def _value_text(key: str, value: Any) -> str:
    if key in ("hash", "model", "reverted") and isinstance(value, str):
        return out.hash_text(value)
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ",".join(f"{k}:{_value_text(k, v)}" for k, v in value.items())
    return str(value)
