"""`gossipctl audit verify` and `audit show`: the log in the state directory; no daemon is needed."""

from __future__ import annotations

import dataclasses
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gossipseg.ctl import context
from gossipseg.ctl import output as out
from gossipseg.ctl.output import Column
from gossipseg.errors import EXIT_FAILED, EXIT_OK, ConfigError

if TYPE_CHECKING:
    from gossipseg.store.auditverify import ChainVerdict

COLUMNS = (
    Column("SEQ", right=True),
    Column("TIME"),
    Column("WHAT"),
    Column("PEER"),
    Column("KIND"),
    Column("MODEL"),
    Column("ROUND", right=True),
    Column("DICE BEFORE", right=True),
    Column("AFTER", right=True),
    Column("WHY"),
)
UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

DirectoryOption = Annotated[
    Path | None,
    typer.Option(
        "--directory", help="The folder audit in state_dir, instead of --config.", show_default=False
    ),
]


@app.command("verify")
def verify(
    config: context.ConfigOption = None,
    directory: DirectoryOption = None,
    head: Annotated[
        str | None,
        typer.Option(
            help="SEQ:HASH noted at an earlier verify: that line must still be there.", show_default=False
        ),
    ] = None,
    json: context.JsonOption = False,
) -> int:
    """Check the chain of hashes from the first line to the last; exit code 1 where it does not hold."""
    from gossipseg.store.auditverify import verify_audit

    folder = _folder(config, directory)
    verdict = verify_audit(folder, noted=_noted(head))
    if json:
        document = {"schema": 1, "kind": "audit_verify", "directory": str(folder), "ok": not verdict.flaws}
        out.print_json({**document, **dataclasses.asdict(verdict)})
    else:
        _print_verdict(folder, verdict)
    return EXIT_FAILED if verdict.flaws else EXIT_OK


@app.command("show")
def show(
    peer: Annotated[str | None, typer.Option(help="Lines about this site only.", show_default=False)] = None,
    since: Annotated[
        str | None,
        typer.Option(help="Not older than 30m, 12h, 7d; or a date, 2026-03-01.", show_default=False),
    ] = None,
    limit: Annotated[int, typer.Option("-n", "--limit", min=1, help="Number of lines, the newest.")] = 50,
    config: context.ConfigOption = None,
    directory: DirectoryOption = None,
    json: context.JsonOption = False,
) -> int:
    """What was sent, received, refused and merged, oldest first, with validation Dice before and after."""
    from collections import deque

    from gossipseg.store.auditverify import read_audit

    earliest = _since(since, time.time())
    lines = (
        line
        for line in read_audit(_folder(config, directory))
        if (_figure(line, "t") or 0.0) >= earliest and peer in (None, line.get("peer"))
    )
    newest = list(deque(lines, maxlen=limit))
    if json:
        out.print_json({"schema": 1, "kind": "audit", "lines": newest})
    else:
        out.print_table(COLUMNS, [cells(line) for line in newest], "The audit log has no such line.")
    return EXIT_OK


def cells(line: dict[str, Any]) -> list[str]:
    """One line of the log as a row."""
    number, scores = line.get("round"), ("dice_before", "dice_after")
    before, after = (_figure(line, key) for key in scores)
    return [
        str(line["seq"]),
        _clock_text(line),
        str(line.get("event", "")),
        str(line.get("peer", out.NOTHING)),
        str(line.get("kind", out.NOTHING)),
        out.hash_text(str(line.get("hash", out.NOTHING))),
        out.NOTHING if number is None else str(number),
        out.number_text(before),
        out.number_text(after),
        str(line.get("reason", out.NOTHING)),
    ]


def _figure(line: dict[str, Any], key: str) -> float | None:
    """A number of a line. After tampering, `audit verify` reports it, and `show` continues."""
    value = line.get(key)
    if isinstance(value, int | float) and abs(value) < 1e15:
        return float(value)
    return None


def _clock_text(line: dict[str, Any]) -> str:
    try:
        return out.clock_text(_figure(line, "t"))
    except (OverflowError, ValueError, OSError):  # a year that no calendar has
        return out.NOTHING


def _print_verdict(folder: Path, verdict: ChainVerdict) -> None:
    if not verdict.lines and not verdict.flaws:
        print(f"{folder}: the audit log is empty.")
        return
    pairs = [
        ("folder", str(folder)),
        (
            "lines",
            f"{verdict.lines} in {verdict.files} file(s), number {verdict.first_seq} to {verdict.last_seq}",
        ),
        ("head", f"{verdict.last_seq}:{verdict.last_hash}"),
    ]
    if verdict.torn:
        pairs.append(("torn", f"{verdict.torn} line(s) cut off by a crash, and closed"))
    if verdict.open_end:
        pairs.append(("end", "the last line is not whole: it is being written, or a crash cut it off"))
    for flaw in verdict.flaws:
        where = f"{flaw.file} line {flaw.line}" + (f" (number {flaw.seq})" if flaw.seq is not None else "")
        pairs.append((flaw.reason, f"{where}: {flaw.detail}"))
    pairs.append(("verdict", "TAMPERED WITH OR DAMAGED" if verdict.flaws else "ok: the chain holds"))
    out.print_pairs(pairs)


def _folder(config: Path | None, directory: Path | None) -> Path:
    if directory is not None:
        if not directory.is_dir():
            raise ConfigError(
                "is no folder",
                key="--directory",
                value=str(directory),
                remedy="Name the folder audit in a state_dir.",
            )
        return directory
    return context.find_state_dir(config) / "audit"


def _noted(head: str | None) -> tuple[int, str] | None:
    if head is None:
        return None
    found = re.fullmatch(r"(\d+):([0-9a-f]{64})", head)
    if found is None:
        raise ConfigError(
            "is no SEQ:HASH",
            key="--head",
            value=head,
            remedy="Copy the head that `gossipctl audit verify` printed.",
        )
    return int(found[1]), found[2]


def _since(text: str | None, now: float) -> float:
    """Parse an age or a local date to wall seconds."""
    if text is None:
        return 0.0
    if found := re.fullmatch(r"(\d+)([smhd])", text):
        return now - int(found[1]) * UNITS_S[found[2]]
    for form in ("%Y-%m-%d", "%Y-%m-%dT%H:%M", "%Y-%m-%d %H:%M"):
        try:
            return time.mktime(time.strptime(text, form))
        except ValueError:
            continue
    raise ConfigError(
        "is neither an age nor a date", key="--since", value=text, remedy="Write 30m, 12h, 7d, or 2026-03-01."
    )
