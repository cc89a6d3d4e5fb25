"""gossiplab: its two commands, and what becomes of their errors.

What belongs here: options and exit codes. What must not: what a command does (compare.py, report.py).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from gossipseg import console

app = typer.Typer(
    name="gossiplab",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _gossiplab() -> None:
    """Compare algorithms on the data of several sites, all in one process."""


@app.command()
def compare(
    data: Annotated[Path, typer.Option("--data", help="Folder with one folder per site.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for results; runs found there are kept.")],
    algorithms: Annotated[
        str,
        typer.Option(
            "--algorithms",
            help="Names with commas between; name@3 exchanges every third round, name[key=value,…] sets "
            "what differs. pooled trains on all images together.",
        ),
    ] = "local,gossip_average,gcml",
    rounds: Annotated[int | None, typer.Option("--rounds", help="Rounds that each site trains.")] = None,
    seeds: Annotated[str, typer.Option("--seeds", help="Whole numbers with commas between.")] = "0",
    splits: Annotated[
        str,
        typer.Option(
            "--splits",
            help="0 is each site's own division of its cases; 1,2,… draw patients anew; "
            "each: a split of its own for each seed.",
        ),
    ] = "0",
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Optimizer steps in a round.")] = None,
    sites: Annotated[
        str | None, typer.Option("--sites", help="Names with commas between, or a number: the first so many.")
    ] = None,
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="Runs side by side.")] = 1,
    peers: Annotated[
        Path | None, typer.Option("--peers", help="Take task, network and training from this peers.yaml.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="key=value: a dotted key of peers.yaml, for all algorithms."),
    ] = None,
    site_dropout: Annotated[
        float, typer.Option("--site-dropout", help="Chance a round that a site vanishes for a while.")
    ] = 0.0,
    late_join: Annotated[
        list[str] | None, typer.Option("--late-join", help="SITE:ROUND: it begins when the others are there.")
    ] = None,
    heterogeneity: Annotated[str, typer.Option("--heterogeneity", help="speed, cases or cases:SITE.")] = "",
    equal_evaluations: Annotated[
        bool,
        typer.Option("--equal-evaluations", help="Where two models train, each takes half of the steps."),
    ] = False,
    adversary: Annotated[
        list[str] | None,
        typer.Option(
            "--adversary",
            help="SITE:KIND: it sends nan, scaled, label_flipped or random_weights; the others are scored.",
        ),
    ] = None,
    device: Annotated[str, typer.Option("--device", help="cpu, cuda or auto.")] = "cpu",
    json: Annotated[bool, typer.Option("--json", help="Print results.json, and nothing else.")] = False,
) -> int:
    """Run every algorithm with every seed on every split, then write results.json and report.html."""
    from gossipseg.lab.compare import compare as run_comparison
    from gossipseg.lab.study import Wanted, read_replicates

    wanted = Wanted(
        data,
        sites,
        rounds,
        steps,
        peers,
        tuple(settings or ()),
        site_dropout,
        tuple(late_join or ()),
        heterogeneity,
        equal_evaluations,
        device,
        tuple(adversary or ()),
    )
    with console.ended_by_signals():
        replicates = read_replicates(seeds, splits)
        return run_comparison(wanted, algorithms, replicates, out, jobs=jobs, as_json=json, command=sys.argv)


@app.command()
def report(
    out: Annotated[Path, typer.Option("--out", help="The folder that compare wrote into.")],
    json: Annotated[bool, typer.Option("--json", help="Print results.json, and nothing else.")] = False,
) -> int:
    """Draw tables and report.html again from results.json."""
    from gossipseg.lab.compare import redraw

    return redraw(out, as_json=json)


def run(argv: Sequence[str]) -> int:
    """One command; returns its exit code. Errors are printed, never raised."""

    def command() -> object:
        return app(args=list(argv), prog_name="gossiplab", standalone_mode=False)

    again = "interrupted; the same command goes on with the runs that are left"
    return console.run("gossiplab", command, as_json="--json" in argv, interrupted=again)


def main() -> None:
    """Entry point."""
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
