"""`gossipctl check`: the doctor. It checks everything that can be known before, or while, the daemon runs."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from gossipseg.ctl import context
from gossipseg.ctl import output as out
from gossipseg.errors import EXIT_DATA, EXIT_FAILED, EXIT_OK

if TYPE_CHECKING:
    from gossipseg.ctl.doctor.findings import Finding

COLUMNS = (out.Column("CHECK"), out.Column("STATE"), out.Column("FINDING"))


def register(app: typer.Typer) -> None:
    app.command("check")(check)


def check(
    data: Annotated[bool, typer.Option("--data/--no-data", help="Read every image and label.")] = True,
    peers: Annotated[bool, typer.Option("--peers/--no-peers", help="Call every listed site.")] = True,
    reach: Annotated[
        bool, typer.Option("--reach", help="Full-size packets both ways, and let every site dial this one.")
    ] = False,
    timeout_s: Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds to wait for a site.")] = 3.0,
    config: context.ConfigOption = None,
    json: context.JsonOption = False,
) -> int:
    """Test this site: configuration, identity, clock, disk, device, data, the daemon and every listed site.

    Exit code 0 when nothing failed (warnings may remain), 78 for the configuration, 65 for the data, else 1.
    """
    loaded = context.load_config(config)
    from gossipseg.ctl.doctor.machine import examine

    findings: list[Finding] = []
    for finding in examine(loaded, data=data, peers=peers, timeout_s=timeout_s, reach=reach):
        findings.append(finding)
        if not json and sys.stderr.isatty():
            print(f"{finding.check}: {finding.state}", file=sys.stderr)
    state = overall(findings)
    if json:
        rows = [f.to_dict() for f in findings]
        out.print_json(
            {"schema": 1, "kind": "check", "site": loaded.site.site, "state": state, "checks": rows}
        )
    else:
        out.print_table(COLUMNS, [row for f in findings for row in _cells(f)], "")
        print(f"{loaded.site.site}: {state}")
    return exit_code(findings)


def overall(findings: Iterable[Finding]) -> str:
    """failed | degraded (there are warnings) | ok."""
    states = {f.state for f in findings}
    return "failed" if "failed" in states else "degraded" if "warning" in states else "ok"


def exit_code(findings: Iterable[Finding]) -> int:
    """65 when the data alone are wrong, 1 for any other failure."""
    failed = {f.check for f in findings if f.state == "failed"}
    if not failed:
        return EXIT_OK
    return EXIT_DATA if failed == {"data"} else EXIT_FAILED


def _cells(finding: Finding) -> list[list[str]]:
    rows = [[finding.check, finding.state, finding.detail]]
    if finding.remedy:
        rows.append(["", "", finding.remedy])
    return rows
