"""`gossipctl testbed run | up | status | down | init`: several real daemons on this machine."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gossipseg import console
from gossipseg.ctl import output as out
from gossipseg.errors import EXIT_FAILED, EXIT_OK

if TYPE_CHECKING:
    from gossipseg.testbed.experiment import ExperimentOutcome
    from gossipseg.testbed.layout import WantedTestbed

app = typer.Typer(
    help="Several real daemons on this machine, one per data folder.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

DEFAULT_WORKDIR = Path("build/testbed")
DataOption = Annotated[
    Path | None,
    typer.Option("--data", help="Folder with one folder per site. Default: synthetic hospitals."),
]
SitesOption = Annotated[
    str | None, typer.Option("--sites", help="Names separated by commas, or a number N: the first N.")
]
AlgorithmOption = Annotated[
    str | None, typer.Option("--algorithm", help="gcml, local, gossip_average, fedavg … Default: gcml.")
]
RoundsOption = Annotated[int | None, typer.Option("--rounds", min=1, help="Rounds that each site trains.")]
StepsOption = Annotated[int | None, typer.Option("--steps", min=1, help="Optimizer steps in a round.")]
SeedOption = Annotated[
    int | None, typer.Option("--seed", help="Seed of the first model, the batches and the drawings.")
]
PeersOption = Annotated[
    Path | None,
    typer.Option("--peers", help="Take task, network, algorithm and training from this peers.yaml."),
]
WorkdirOption = Annotated[Path, typer.Option("--workdir", help="Where the testbed's files are.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print a JSON document, and nothing else.")]


@app.command()
def run(
    data: DataOption = None,
    sites: SitesOption = None,
    algorithm: AlgorithmOption = None,
    rounds: RoundsOption = None,
    steps: StepsOption = None,
    seed: SeedOption = None,
    peers: PeersOption = None,
    workdir: WorkdirOption = DEFAULT_WORKDIR,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep the sites' state: checkpoints and models.")
    ] = False,
    json: JsonOption = False,
) -> int:
    """Run all sites to their last round, then report. Exit code 0 only if every site finished."""
    from gossipseg.testbed import experiment
    from gossipseg.testbed import run as runs
    from gossipseg.testbed.live import make_display

    wanted = _wanted(algorithm, rounds, steps, seed, peers)
    console.need("matplotlib", "lab", "the report of a run")
    with console.ended_by_signals():
        layout = experiment.make_testbed(workdir, data, sites, wanted)
        title = f"{layout.task.name}, {layout.algorithm}"
        outcome = experiment.run_experiment(layout, make_display(title, quiet=json))
    if not keep:
        runs.remove_states(layout)
    if json:
        out.print_json(outcome.document)
    else:
        print_outcome(outcome)
    name_missing(outcome)
    return outcome.result.exit_code


@app.command()
def up(
    data: DataOption = None,
    sites: SitesOption = None,
    algorithm: AlgorithmOption = None,
    rounds: RoundsOption = None,
    steps: StepsOption = None,
    seed: SeedOption = None,
    peers: PeersOption = None,
    workdir: WorkdirOption = DEFAULT_WORKDIR,
) -> int:
    """Start a testbed in the background: the one in --workdir continues, or a new one is made.

    Without --rounds a new one trains until `gossipctl testbed down`.
    """
    from gossipseg.testbed import experiment, processes
    from gossipseg.testbed import layout as layouts

    wanted = _wanted(algorithm, rounds, steps, seed, peers, endless=True)
    fresh = any(v is not None for v in (data, sites, algorithm, rounds, steps, seed, peers))
    if fresh or not (workdir / "peers.yaml").exists():
        layout = experiment.make_testbed(workdir, data, sites, wanted)
    else:
        experiment.refuse_running(workdir)
        layout = layouts.load_layout(workdir)
    processes.start_all(layout)
    names = ", ".join(site.name for site in layout.sites)
    print(f"started {names}; see `gossipctl testbed status --workdir {workdir}`")
    return EXIT_OK


@app.command()
def status(workdir: WorkdirOption = DEFAULT_WORKDIR, json: JsonOption = False) -> int:
    """Show every site of a testbed. Exit code 1 if one does not answer or is not well."""
    from gossipseg.testbed import run as runs
    from gossipseg.testbed.layout import load_layout

    answers = runs.ask_all(load_layout(workdir))
    if json:
        out.print_json({"schema": 1, "kind": "testbed_status", "sites": _status_rows(answers)})
    else:
        _print_status(answers)
    well = all(not isinstance(a, str) and a[0].state == "ok" for a in answers.values())
    return EXIT_OK if well else EXIT_FAILED


@app.command()
def down(workdir: WorkdirOption = DEFAULT_WORKDIR) -> int:
    """End the daemons of a testbed. Their state stays: `up` continues them."""
    from gossipseg.testbed import processes

    ended = processes.stop_started(workdir)
    print(f"ended {', '.join(ended)}" if ended else f"no daemon of {workdir} was running")
    return EXIT_OK


@app.command()
def init(
    out_dir: Annotated[Path, typer.Option("--out", help="Folder to write into.")],
    *,
    sites: Annotated[str, typer.Option("--sites", help="Number of sites; with --data also names.")] = "3",
    data: DataOption = None,
    algorithm: AlgorithmOption = None,
    rounds: RoundsOption = None,
    steps: StepsOption = None,
    seed: SeedOption = None,
    peers: PeersOption = None,
    mdns: Annotated[bool, typer.Option("--mdns", help="Sites find each other by mDNS alone.")] = False,
    containers: Annotated[
        bool,
        typer.Option(
            "--containers", help="For a machine per site, named after it: port 7443, synthetic images, too."
        ),
    ] = False,
) -> int:
    """Only write identities, peers.yaml and site files; start nothing."""
    from gossipseg.testbed import dataset, experiment
    from gossipseg.testbed import layout as layouts

    wanted = replace(_wanted(algorithm, rounds, steps, seed, peers, endless=containers), mdns=mdns)
    experiment.refuse_running(out_dir)
    if containers:
        if (out_dir / "peers.yaml").exists():
            print(f"{out_dir}: holds a testbed already; it is left as it is")
            return EXIT_OK
        wanted = replace(wanted, address="{site}:7443", listen="0.0.0.0:7443")
        layout = experiment.make_testbed(out_dir, data, sites, wanted)
    elif data is None:
        layout = layouts.init_empty(out_dir, experiment.site_count(sites), wanted)
        print(_what_to_put_where(out_dir / layouts.DATA_FOLDER, None if peers else layout.federation_path))
    else:
        layout = layouts.init_testbed(out_dir, dataset.choose_sites(data, sites), wanted)
    for site in layout.sites:
        print(f"{site.name}: {site.config_path} ({site.address}, data {site.data})")
    return EXIT_OK


def _what_to_put_where(data: Path, example: Path | None) -> str:
    """Where to put the data. `example`: a peers.yaml whose task is not the user's."""
    text = (
        f"Put each site's images into {data}/SITE/images, and masks of the same names into {data}/SITE/masks."
    )
    if example is None:
        return text
    return f"{text} Then run this again, so that the task fits them: that in {example} is an example."


# ---------------------------------------------------------------- shared with demo


def print_outcome(outcome: ExperimentOutcome) -> None:
    """Validation and test Dice of each site, and where the report is."""
    from gossipseg.testbed.report import table_rows

    columns = [out.Column("site"), *(out.Column(h, right=True) for h in ("cases", "rounds", "accepted"))]
    columns += [
        out.Column(h, right=True) for h in ("validation Dice", "test Dice at start", "at end", "gain")
    ]
    rows = [
        (
            name,
            str(s["cases"]),
            str(s["rounds"]),
            str(s["accepted"]),
            out.number_text(s["dice_val"]),
            *figures,
        )
        for (name, *figures), s in zip(table_rows(outcome.document), outcome.document["sites"], strict=True)
    ]
    print()
    out.print_table(columns, rows, "no sites")
    for line in deployed_lines(outcome.document):
        print(line)
    print(f"\n{outcome.document['wall_s']:.0f} s. Report: {outcome.folder / 'report.html'}")


def deployed_lines(document: Mapping[str, Any]) -> list[str]:
    """By site: what it would have alone, what it deploys, and which models predict (validation Dice)."""
    chosen = [(s["site"], s["deployed_reason"]) for s in document["sites"] if s["deployed_reason"]]
    if not chosen:
        return []
    return ["", "which models predict, by validation Dice:", *(f"  {site}: {why}" for site, why in chosen)]


def name_missing(outcome: ExperimentOutcome) -> None:
    """To stderr: sites that did not finish, and what the report lacks."""
    for complaint in outcome.complaints:
        print(f"gossipctl: {complaint}", file=sys.stderr)
    for round, sites in outcome.document["closed_without"].items():
        without = ", ".join(f"{site} ({reason})" for site, reason in sites.items())
        print(f"gossipctl: round {round} was closed without {without}", file=sys.stderr)
    for site in outcome.result.missing:
        print(f"gossipctl: {site.name} did not finish: {site.state}. {site.reason}".rstrip(), file=sys.stderr)


def _wanted(
    algorithm: str | None,
    rounds: int | None,
    steps: int | None,
    seed: int | None,
    peers: Path | None,
    *,
    endless: bool = False,
) -> WantedTestbed:
    from gossipseg.testbed.layout import WantedTestbed

    return WantedTestbed(algorithm, rounds, steps, seed, peers, endless)


def _status_rows(answers: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"site": name, "error": a, "status": None, "peers": None}
        if isinstance(a, str)
        else {"site": name, "error": None, "status": a[0].to_dict(), "peers": a[1].to_dict()}
        for name, a in answers.items()
    ]


def _print_status(answers: dict[str, Any]) -> None:
    columns = [out.Column("site"), out.Column("state"), out.Column("peers")]
    columns += [out.Column(h, right=True) for h in ("round", "val Dice", "sent", "received", "accepted")]
    columns += [out.Column("activity")]
    rows = []
    for name, a in answers.items():
        if isinstance(a, str):
            rows.append((name, "unreachable", "", "", "", "", "", "", a))
            continue
        s = a[0]
        alive = f"{s.members.alive} alive"
        counts = (str(s.sent), str(s.received), str(s.accepted))
        rows.append((name, s.state, alive, str(s.round), out.number_text(s.dice_val), *counts, s.activity))
    out.print_table(columns, rows, "no sites")
