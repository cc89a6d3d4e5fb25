"""`gossipctl models`: the models in this site's store."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from gossipseg.ctl import context
from gossipseg.ctl import output as out
from gossipseg.ctl.output import Column
from gossipseg.errors import EXIT_OK

if TYPE_CHECKING:
    from gossipseg.wire.documents import ModelRow

COLUMNS = (
    Column("MODEL"),
    Column("KIND"),
    Column("FROM"),
    Column("ROUND", right=True),
    Column("SIZE", right=True),
    Column("AGE", right=True),
)


def register(app: typer.Typer) -> None:
    app.command("models")(models)


def models(
    config: context.ConfigOption = None, socket: context.SocketOption = None, json: context.JsonOption = False
) -> int:
    """Models in this site's store."""
    with context.daemon(config, socket) as daemon:
        document = daemon.models()
    if json:
        out.print_json(document.to_dict())
    else:
        out.print_table(COLUMNS, [model_cells(row) for row in document.models], "The store is empty.")
    return EXIT_OK


def model_cells(row: ModelRow) -> list[str]:
    return [
        out.hash_text(row.hash),
        row.kind,
        row.frm or out.NOTHING,
        out.count_text(row.round),
        out.bytes_text(row.bytes),
        out.duration_text(row.age_s),
    ]
