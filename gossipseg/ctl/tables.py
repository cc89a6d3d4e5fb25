"""`gossipctl exchanges`, `models` and `events`: the exchanges, the store, the event log."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gossipseg.ctl import context
from gossipseg.ctl import output as out
from gossipseg.ctl.output import Column
from gossipseg.errors import EXIT_OK

if TYPE_CHECKING:
    from gossipseg.wire.documents import ExchangeRow, ModelRow

HASH_DIGITS = 12
EXCHANGE_COLUMNS = (
    Column("TIME"),
    Column("DIRECTION"),
    Column("PEER"),
    Column("MODEL"),
    Column("ROUND", right=True),
    Column("SIZE", right=True),
    Column("STATE"),
    Column("DICE BEFORE", right=True),
    Column("AFTER", right=True),
    Column("WHY"),
)
MODEL_COLUMNS = (
    Column("MODEL"),
    Column("KIND"),
    Column("FROM"),
    Column("ROUND", right=True),
    Column("SIZE", right=True),
    Column("AGE", right=True),
)
EVENT_COLUMNS = (
    Column("SEQ", right=True),
    Column("TIME"),
    Column("EVENT"),
    Column("SITE"),
    Column("DETAILS"),
)


def register(app: typer.Typer) -> None:
    app.command("exchanges")(exchanges)
    app.command("models")(models)
    app.command("events")(events)


def exchanges(
    limit: context.LimitOption = 20,
    config: context.ConfigOption = None,
    socket: context.SocketOption = None,
    json: context.JsonOption = False,
) -> int:
    """Models offered, sent and received, newest first: each with its state and why."""
    with context.daemon(config, socket) as daemon:
        document = daemon.exchanges(limit)
    if json:
        out.print_json(document.to_dict())
    else:
        rows = [exchange_cells(row) for row in document.exchanges]
        out.print_table(EXCHANGE_COLUMNS, rows, "No model has been offered yet.")
    return EXIT_OK


def exchange_cells(row: ExchangeRow) -> list[str]:
    state = row.state
    if row.fraction is not None and state in ("sending", "receiving"):
        state += f" {out.share_text(row.fraction)}"
    return [
        out.clock_text(row.t),
        row.direction,
        row.peer,
        row.hash[:HASH_DIGITS],
        str(row.round),
        out.bytes_text(row.bytes),
        state,
        out.number_text(row.dice_before),
        out.number_text(row.dice_after),
        ": ".join(part for part in (row.reason, row.detail) if part) or out.NOTHING,
    ]


def models(
    config: context.ConfigOption = None, socket: context.SocketOption = None, json: context.JsonOption = False
) -> int:
    """Models in this site's store."""
    with context.daemon(config, socket) as daemon:
        document = daemon.models()
    if json:
        out.print_json(document.to_dict())
    else:
        out.print_table(MODEL_COLUMNS, [model_cells(row) for row in document.models], "The store is empty.")
    return EXIT_OK


def model_cells(row: ModelRow) -> list[str]:
    return [
        row.hash[:HASH_DIGITS],
        row.kind,
        row.frm or out.NOTHING,
        out.count_text(row.round),
        out.bytes_text(row.bytes),
        out.duration_text(row.age_s),
    ]


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
        out.print_table(EVENT_COLUMNS, [event_cells(e) for e in document.events], "Nothing has happened.")
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
        return value[:HASH_DIGITS]
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ",".join(f"{k}:{_value_text(k, v)}" for k, v in value.items())
    return str(value)
