"""gossiplab: its two commands, and how their errors are reported."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from gossipseg import console
from gossipseg.homes import absolute
from gossipseg.lab.plan import options
from gossipseg.surroundings import named

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
    os.environ.update(named(os.environ))  # torch asks for the user's name


@app.command()
def compare(
    data: options.Data,
    out: options.Out,
    algorithms: options.Algorithms = "local,gossip_average,gcml",
    rounds: options.Rounds = None,
    seeds: options.Seeds = "0",
    splits: options.SplitsOption = "0",
    steps: options.Steps = None,
    sites: options.Sites = None,
    patient_pattern: options.PatientPattern = None,
    jobs: options.Jobs = 1,
    peers: options.Peers = None,
    settings: options.Settings = None,
    site_dropout: options.SiteDropout = 0.0,
    late_join: options.LateJoin = None,
    heterogeneity: options.Heterogeneity = "",
    equal_evaluations: options.EqualEvaluations = False,
    adversary: options.Adversary = None,
    claim: options.Claims = None,
    device: options.Device = "cpu",
    json: options.Json = False,
) -> int:
    """Run every algorithm with every seed on every split, then write results.json and report.html."""
    console.need("matplotlib", "lab", "a comparison's report")
    from gossipseg.lab.experiment.compare import compare as run_comparison
    from gossipseg.lab.plan.choices import WantedRuns, read_replicates

    wanted = WantedRuns(
        data,
        sites=sites,
        rounds=rounds,
        steps=steps,
        peers=peers,
        settings=tuple(settings or ()),
        site_dropout=site_dropout,
        late_join=tuple(late_join or ()),
        heterogeneity=heterogeneity,
        equal_evaluations=equal_evaluations,
        device=device,
        adversary=tuple(adversary or ()),
        patient_pattern=patient_pattern,
    )
    with console.ended_by_signals():
        replicates = read_replicates(seeds, splits)
        return run_comparison(
            wanted,
            algorithms,
            replicates,
            out,
            jobs=jobs,
            as_json=json,
            command=sys.argv,
            claims=tuple(claim or ()),
        )


@app.command()
def report(
    out: Annotated[Path, typer.Option("--out", help="The folder that compare wrote into.")],
    json: options.Json = False,
) -> int:
    """Draw tables and report.html again from results.json."""
    console.need("matplotlib", "lab", "a comparison's report")
    from gossipseg.lab.experiment.compare import redraw

    return redraw(out, as_json=json)


def run(argv: Sequence[str]) -> int:
    """One command; returns its exit code. Errors are printed, never raised."""

    def command() -> object:
        absolute(Path())  # in a removed folder, torch would end this process without an error text of ours
        return app(args=list(argv), prog_name="gossiplab", standalone_mode=False)

    again = "interrupted; the same command continues with the remaining runs"
    return console.run("gossiplab", command, as_json="--json" in argv, interrupted=again)


def main() -> None:
    """Entry point."""
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
