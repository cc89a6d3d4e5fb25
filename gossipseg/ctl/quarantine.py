"""`gossipctl quarantine list|lift`: peers that are kept out for invalid data, and how to admit one again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from gossipseg.ctl import context
from gossipseg.ctl import output as out
from gossipseg.ctl.output import Column
from gossipseg.errors import EXIT_FAILED, EXIT_OK, LocalError

if TYPE_CHECKING:
    from gossipseg.wire.documents import QuarantineRow

COLUMNS = (
    Column("SITE"),
    Column("STANDING"),
    Column("LEFT", right=True),
    Column("OFFENCES", right=True),
    Column("IN ALL", right=True),
    Column("NEXT", right=True),
    Column("LAST REASON"),
)
app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


@app.command("list")
def show(
    config: context.ConfigOption = None, socket: context.SocketOption = None, json: context.JsonOption = False
) -> int:
    """Peers with a record of offences: how long they stay in quarantine, and why. Exit code 1 if any is in
    it."""
    with context.daemon(config, socket) as daemon:
        document = daemon.quarantine()
    if json:
        out.print_json(document.to_dict())
    else:
        out.print_table(COLUMNS, [cells(row) for row in document.sites], "No peer has a record of offences.")
    held = any(row.left_s is not None for row in document.sites)
    return EXIT_FAILED if held else EXIT_OK


@app.command("lift")
def lift(
    site: Annotated[str, typer.Argument(help="The site whose record is cleared.")],
    config: context.ConfigOption = None,
    socket: context.SocketOption = None,
    json: context.JsonOption = False,
) -> int:
    """End a peer's quarantine. Its offences and its manifests' sequence numbers are forgotten."""
    with context.daemon(config, socket) as daemon:
        document = daemon.lift_quarantine(site)
    if not document.ok:
        raise LocalError(document.message)
    if json:
        out.print_json(document.to_dict())
    else:
        print(document.message)
    return EXIT_OK


def cells(row: QuarantineRow) -> list[str]:
    """A peer as the cells of COLUMNS."""
    return [
        row.site,
        row.standing,
        out.NOTHING if row.left_s is None else out.duration_text(row.left_s),
        str(row.offences),
        str(row.offences_in_all),
        out.duration_text(row.next_s),
        row.reason or out.NOTHING,
    ]
