"""A whole experiment: make a testbed, run it to the end, report."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gossipseg.errors import EXIT_FAILED, EXIT_OK, AlreadyRunning, ConfigError
from gossipseg.testbed import dataset, processes, report, synthetic
from gossipseg.testbed import layout as layouts
from gossipseg.testbed.layout import Layout, WantedTestbed
from gossipseg.testbed.live import Display
from gossipseg.testbed.run import FederationRun, RunResult, remove_states

DEFAULT_SITES = 3


@dataclass(slots=True)
class ExperimentOutcome:
    """A run with its report."""

    result: RunResult
    document: dict[str, Any]
    """report.json"""
    folder: Path
    complaints: list[str] = field(default_factory=list)
    """The missing parts of the report, and why."""


def make_testbed(root: Path, data: Path | None, sites: str | None, wanted: WantedTestbed) -> Layout:
    """A fresh testbed in `root`: on real data, or on synthetic hospitals drawn into `root`/data.

    Identities of an earlier testbed in that folder are kept, its state is removed.
    Raises AlreadyRunning when daemons of it still run, ConfigError, DataError.
    """
    refuse_running(root)
    if data is not None:
        folders = dataset.choose_sites(data, sites)
    else:
        hospitals = synthetic.hospitals(site_count(sites), wanted.seed or 0)
        folders = synthetic.write_federation(root / layouts.DATA_FOLDER, hospitals, seed=wanted.seed or 0)
    made = layouts.init_testbed(root, folders, wanted)
    remove_states(made)
    return made


def refuse_running(root: Path) -> None:
    """Raise AlreadyRunning when daemons of a testbed in this folder run."""
    running = processes.running(root)
    if running:
        raise AlreadyRunning(
            f"{root}: daemons of this testbed run already ({', '.join(running)}). "
            f"End them with `gossipctl testbed down --workdir {root}`."
        )


def site_count(sites: str | None) -> int:
    """The number of synthetic sites."""
    if sites is None:
        return DEFAULT_SITES
    if not sites.strip().isdecimal() or not 1 <= int(sites) <= 64:
        raise ConfigError(
            "synthetic sites are asked for by their number",
            key="--sites",
            value=sites,
            remedy="Give a number from 1 to 64, or --data DIR with sites of these names.",
        )
    return int(sites)


def run_experiment(layout: Layout, display: Display, *, timeout_s: float | None = None) -> ExperimentOutcome:
    """Run to the end and write report.json, report.png and report.html into the testbed's folder."""
    result = FederationRun(layout, display, timeout_s=timeout_s).run()
    if report.closed_without(result) and result.exit_code == EXIT_OK:
        result.exit_code = EXIT_FAILED
    report.write_json(result, layout.root)
    outcome = ExperimentOutcome(result, report.document(result), layout.root)
    if any(site.status is not None for site in result.sites):
        outcome.complaints = report.write_pages(layout, result, layout.root)
    return outcome
