"""`gossipctl rounds`: who leads the round, who has delivered, who is missing and why, and the deadline."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import typer

from gossipseg.ctl import context
from gossipseg.ctl import output as out
from gossipseg.ctl.output import Column
from gossipseg.errors import EXIT_FAILED, EXIT_OK

if TYPE_CHECKING:
    from gossipseg.wire.documents import RoundRow, RoundsDoc, RoundUnderWay

COLUMNS = (Column("SITE"), Column("STATE"), Column("REASON"))


def register(app: typer.Typer) -> None:
    app.command("rounds")(rounds)


def rounds(
    config: context.ConfigOption = None, socket: context.SocketOption = None, json: context.JsonOption = False
) -> int:
    """Who leads the round under way, who has delivered, who is missing and why, and the deadline.

    At a site that does not lead, the answer is the coordinator's last report, with its age. Exit code 1 when
    the last round was closed without a listed site.
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
    yield "round", leader_text(d)
    yield "here", d.state + (f": {d.reason}" if d.reason else "")
    yield "quorum", f"{d.quorum} of {len(d.sites)} sites"
    yield "deadline", deadline_text(d) + said_text(d)
    yield "delivered", delivered_text(d, len(d.sites)) + said_text(d)
    for row in d.missing:
        yield "", missing_text(d, row)
    if not d.committed:
        yield "global model", "the initial one"
        return
    yield "global model", f"of round {d.committed}, {d.committed_hash[:8]}, from {', '.join(d.contributors)}"
    for row in d.absent:
        yield "", f"- closed without {row.site}: {row.reason}"


# ---------------------------------------------------------------- pieces, for `status` too


def leader_text(d: RoundsDoc | RoundUnderWay) -> str:
    """Round, attempt and leader."""
    leader = "this site" if d.leading else d.coordinator or "nobody"
    attempt = "no attempt" if d.attempt is None else f"attempt {d.attempt}"
    return f"{d.round}, {attempt}, led by {leader}"


def deadline_text(d: RoundsDoc | RoundUnderWay) -> str:
    """When sites that have not delivered are left out."""
    if d.deadline_s is not None:
        return f"in {out.duration_text(d.deadline_s)}"
    return "none is running" if d.delivered is not None else _unknown(d)


def delivered_text(d: RoundsDoc | RoundUnderWay, sites: int) -> str:
    """Who has delivered, out of all listed sites."""
    if d.delivered is None:
        return _unknown(d)
    return f"{len(d.delivered)} of {sites} sites" + (f": {', '.join(d.delivered)}" if d.delivered else "")


def said_text(d: RoundsDoc | RoundUnderWay) -> str:
    """The source of the statement; "" where this site knows it itself, or does not know it."""
    return "" if d.told_s is None else f" (as {d.coordinator} said {out.ago_text(d.told_s)})"


def missing_text(d: RoundsDoc | RoundUnderWay, row: RoundRow) -> str:
    """A site that has not delivered, and why."""
    if d.delivered is None:
        return f"- {row.site}: {row.reason}, as seen from here"
    if row.state == "left_out":
        return f"- {row.site} is left out" + (f": {row.reason}" if row.reason else "")
    return f"- {row.site} has not delivered: {row.state}" + (f", {row.reason}" if row.reason else "")


def _unknown(d: RoundsDoc | RoundUnderWay) -> str:
    if d.leading:
        return "unknown: the daemon is of an older version"
    return f"not said by {d.coordinator} yet" if d.coordinator else "unknown: nobody leads"
