"""`gossipctl exchanges`: the models offered, sent and received, and the swaps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from gossipseg.ctl import context
from gossipseg.ctl import output as out
from gossipseg.ctl.output import Column
from gossipseg.errors import EXIT_OK

if TYPE_CHECKING:
    from gossipseg.wire.documents import ExchangeRow, SwapRow

COLUMNS = (
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


SWAP_COLUMNS = (
    Column("TIME"),
    Column("SWAP"),
    Column("PEER"),
    Column("STATE"),
    Column("PART"),
    Column("WEIGHT", right=True),
    Column("WHY"),
)


def register(app: typer.Typer) -> None:
    app.command("exchanges")(exchanges)


def exchanges(
    limit: context.LimitOption = 20,
    config: context.ConfigOption = None,
    socket: context.SocketOption = None,
    json: context.JsonOption = False,
) -> int:
    """Models offered, sent and received, newest first: each with its state and why. Then the swaps."""
    with context.daemon(config, socket) as daemon:
        document = daemon.exchanges(limit)
    if json:
        out.print_json(document.to_dict())
    else:
        rows = [exchange_cells(row) for row in document.exchanges]
        out.print_table(COLUMNS, rows, "No model has been offered yet.")
        if document.swaps:
            print()
            out.print_table(SWAP_COLUMNS, [swap_cells(row) for row in document.swaps], "")
    return EXIT_OK


def swap_cells(row: SwapRow) -> list[str]:
    return [
        out.clock_text(row.t),
        f"{row.asker} {row.number}",
        row.peer,
        row.state,
        row.part or out.NOTHING,
        out.number_text(row.weight),
        ": ".join(part for part in (row.reason, row.detail) if part) or out.NOTHING,
    ]


def exchange_cells(row: ExchangeRow) -> list[str]:
    state = row.state
    if row.fraction is not None and state in ("sending", "receiving"):
        state += f" {out.share_text(row.fraction)}"
    return [
        out.clock_text(row.t),
        row.direction,
        row.peer,
        out.hash_text(row.hash),
        str(row.round),
        out.bytes_text(row.bytes),
        state,
        out.number_text(row.dice_before),
        out.number_text(row.dice_after),
        ": ".join(part for part in (row.reason, row.detail) if part) or out.NOTHING,
    ]
