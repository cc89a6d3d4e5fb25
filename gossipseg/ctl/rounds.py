"""`gossipctl rounds`: who leads the round under way, who has delivered, who is missing and why."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import typer

from gossipseg.ctl import context
from gossipseg.ctl import output as out
from gossipseg.ctl.output import Column
from gossipseg.errors import EXIT_FAILED, EXIT_OK

if TYPE_CHECKING:
    from gossipseg.wire.documents import RoundsDoc

COLUMNS = (Column("SITE"), Column("STATE"), Column("REASON"))


def register(app: typer.Typer) -> None:
    app.command("rounds")(rounds)


def rounds(
    config: context.ConfigOption = None, socket: context.SocketOption = None, json: context.JsonOption = False
) -> int:
    """The round under the rotating coordinator: who leads, who has delivered, who is missing and why.

    Exit code 1 when the last round was closed without a listed site.
    """
    with context.daemon(config, socket) as daemon:
        document = daemon.rounds()
    if json:
        out.print_json(document.to_dict())
    elif document.exchange != "rounds":
        print("The federation's algorithm has no coordinator; see `gossipctl exchanges`.")
    else:
        out.print_pairs(pairs(document))
        print()
        out.print_table(
            COLUMNS,
            [[r.site, r.state, r.reason or out.NOTHING] for r in document.sites],
            "No site is listed.",
        )
    if document.similarity and not json:
        print(f"\nSimilarity of the sites' changes, as found here in round {document.similarity_round}:")
        print_similarity(document)
    return EXIT_FAILED if document.absent else EXIT_OK


def print_similarity(d: RoundsDoc) -> None:
    """The matrix, a row and a column for each site."""
    columns = [Column("SITE"), *(Column(site, right=True) for site in d.similarity_sites)]
    rows = [
        [site, *(f"{value:.2f}" for value in row)]
        for site, row in zip(d.similarity_sites, d.similarity, strict=True)
    ]
    out.print_table(columns, rows, "")


def pairs(d: RoundsDoc) -> Iterator[tuple[str, str]]:
    """The round for people: label and text of each line."""
    leader = "this site" if d.leading else d.coordinator or "nobody"
    attempt = "no attempt" if d.attempt is None else f"attempt {d.attempt}"
    yield "round", f"{d.round}, {attempt}, led by {leader}"
    yield "here", d.state + (f": {d.reason}" if d.reason else "")
    yield "quorum", f"{d.quorum} of {len(d.sites)} sites"
    yield "deadline", "none yet" if d.deadline_s is None else f"in {out.duration_text(d.deadline_s)}"
    if not d.committed:
        yield "common model", "the initial one"
        return
    yield "common model", f"of round {d.committed}, {d.committed_hash[:8]}, from {', '.join(d.contributors)}"
    for row in d.absent:
        yield "", f"- closed without {row.site}: {row.reason}"
