"""`gossipctl demo`: three synthetic hospitals on this machine learn from each other, and leave a report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gossipseg import console
from gossipseg.ctl.testbed import name_missing, print_outcome
from gossipseg.errors import EXIT_FAILED

if TYPE_CHECKING:
    from collections.abc import Mapping

app = typer.Typer(help="Three synthetic hospitals on this machine: watch them learn.", rich_markup_mode=None)


@app.callback(invoke_without_command=True)
def demo(
    out: Annotated[Path, typer.Option("--out", help="Where data, settings and report go.")] = Path(
        "build/demo"
    ),
    rounds: Annotated[
        int | None, typer.Option("--rounds", min=1, help="Rounds that each site trains.")
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Optimizer steps in a round.")] = None,
    seed: Annotated[
        int, typer.Option("--seed", help="Seed of the images, the first model and the batches.")
    ] = 0,
) -> int:
    """Three synthetic hospitals on this machine learn from each other for about three minutes.

    Exit code 0 only if every site's test Dice rose and every site merged a model of another one.
    """
    from gossipseg.testbed import experiment
    from gossipseg.testbed.layout import WantedTestbed
    from gossipseg.testbed.live import make_display

    console.need("matplotlib", "lab", "the report of a demo")
    with console.ended_by_signals():
        layout = experiment.make_testbed(out, None, None, WantedTestbed("gcml", rounds, steps, seed))
        outcome = experiment.run_experiment(layout, make_display("Three synthetic hospitals, gcml"))
    print_outcome(outcome)
    name_missing(outcome)
    problems = shortcomings(outcome.document)
    for problem in problems:
        print(problem)
    return outcome.result.exit_code or (EXIT_FAILED if problems else 0)


def shortcomings(document: Mapping[str, Any]) -> list[str]:
    """The sites that did not get better or merged nothing, in words; empty when all is well."""
    found = []
    for site in document["sites"]:
        start, end = site["dice_test_start"], site["dice_test"]
        if start is None or end is None:
            found.append(f"{site['site']}: its test Dice is not known")
        elif end <= start:
            found.append(f"{site['site']}: its test Dice did not rise ({start:.3f} to {end:.3f})")
        if site["accepted"] < 1:
            found.append(f"{site['site']}: accepted no model of another site")
    return found
