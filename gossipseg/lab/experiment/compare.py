"""`gossiplab compare` and `report`: the order of their steps."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gossipseg.errors import EXIT_FAILED, EXIT_OK
from gossipseg.lab.experiment import check, results, runs
from gossipseg.lab.experiment.progress import make_display
from gossipseg.lab.plan import choices, run_plans, splits, variants
from gossipseg.lab.plan.choices import WantedRuns
from gossipseg.lab.plan.run_plans import Replicate
from gossipseg.lab.report import fedavg_traffic, html, statistics, table
from gossipseg.lab.simulation import pretrained


def compare(
    wanted: WantedRuns,
    algorithms: str,
    replicates: Sequence[Replicate],
    out: Path,
    *,
    jobs: int,
    as_json: bool,
    command: Sequence[str],
    claims: Sequence[str] = (),
) -> int:
    """Run what is missing, collect the results, draw. Raises ConfigError, DataError, LocalError."""
    chosen, common = variants.parse(algorithms), choices.read(wanted)
    for note in filter(None, (site.note for site in common.sites)):
        print(f"gossiplab: {note}", file=sys.stderr)
    named = variants.read_claims(claims, chosen)
    planned = run_plans.plans(common, chosen, replicates, out)
    settings = json.loads(json.dumps(common.document()))
    sources = {s.name: s.data for s in common.sites}
    folders = {name: data.path for name, data in sources.items()}
    check.check(runs.missing(out, planned), folders)
    runs.prepare(out, common.identity())
    splits.write(out, sources, sorted({r.split for r in replicates}))
    pretrained.lend_all(planned, folders)
    display = make_display(quiet=as_json)
    try:
        outcome = runs.run_all(out, planned, jobs, display)
    finally:
        display.end()
    documents = [outcome.done[plan.key] for plan in planned if plan.key in outcome.done]
    document = results.collect(documents, settings, command, outcome.failed)
    document["named_claims"] = named
    _finish(out, document, as_json)
    for key, why in outcome.failed.items():
        print(f"gossiplab: {key} failed: {why}", file=sys.stderr)
    return outcome.exit_code or (EXIT_FAILED if outcome.failed else EXIT_OK)


def redraw(out: Path, *, as_json: bool) -> int:
    """Make tables and report again, from results.json. Raises ConfigError."""
    _finish(out, results.read(out), as_json)
    return EXIT_OK


def _finish(out: Path, document: dict[str, Any], as_json: bool) -> None:
    """Compute, write, print. The figures are written before the report is drawn."""
    if statistics.fedavg_bytes(document) is None and "fedavg_model_bytes" not in document:
        document["fedavg_model_bytes"] = fedavg_traffic.fedavg_model_bytes(document["settings"])
    claims = statistics.claims(document)
    summaries = statistics.summarise(document, claims)
    document["summary"] = statistics.as_json(summaries)
    document["claims"] = statistics.as_json(claims)
    document.pop("pairs", None)  # of an earlier version: every two algorithms, without a correction
    results.write(out, document)
    path = html.write(out, document, summaries, claims) if summaries else None
    if as_json:
        print(json.dumps(document, ensure_ascii=False, allow_nan=False))
        return
    if path is None:
        print("No run has finished.")
        return
    table.show(document, summaries, claims)
    print(f"\nReport: {path}")
