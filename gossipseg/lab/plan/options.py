"""The options of `gossiplab compare`, with their texts in --help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Data = Annotated[Path, typer.Option("--data", help="Folder with one folder per site.")]
Out = Annotated[Path, typer.Option("--out", help="Folder for results; runs found there are kept.")]
Algorithms = Annotated[
    str,
    typer.Option(
        "--algorithms",
        help="Names with commas between; name@3 exchanges every third round, name[key=value,…] sets "
        "what differs. pooled trains on all images together.",
    ),
]
Rounds = Annotated[
    int | None,
    typer.Option(
        "--rounds",
        help="Rounds that each site trains; unless given, as --peers or a preset for the data has it.",
    ),
]
Seeds = Annotated[str, typer.Option("--seeds", help="Whole numbers with commas between.")]
SplitsOption = Annotated[
    str,
    typer.Option(
        "--splits",
        help="0 is each site's own division of its cases; 1,2,… draw patients anew; "
        "each: a split of its own for each seed.",
    ),
]
Steps = Annotated[
    int | None,
    typer.Option("--steps", min=1, help="Optimizer steps in a round; unless given, from the same place."),
]
Sites = Annotated[
    str | None, typer.Option("--sites", help="Names separated by commas, or a number N: the first N.")
]
PatientPattern = Annotated[
    str | None,
    typer.Option(
        "--patient-pattern",
        help="A regular expression with one group: the patient, in the names of cases whose list names none.",
    ),
]
Jobs = Annotated[int, typer.Option("--jobs", min=1, help="Runs side by side.")]
Peers = Annotated[
    Path | None, typer.Option("--peers", help="Take task, network and training from this peers.yaml.")
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="key=value: a dotted key of peers.yaml, for all algorithms; may be repeated."),
]
SiteDropout = Annotated[
    float, typer.Option("--site-dropout", help="Probability per round that a site is away for a while.")
]
LateJoin = Annotated[
    list[str] | None,
    typer.Option(
        "--late-join", help="SITE:ROUND: the site begins when the others are in that round; may be repeated."
    ),
]
Heterogeneity = Annotated[
    str,
    typer.Option(
        "--heterogeneity",
        help="speed: sites differ in speed up to fourfold; cases or cases:SITE+SITE: these keep a quarter of "
        "its cases.",
    ),
]
EqualEvaluations = Annotated[
    bool, typer.Option("--equal-evaluations", help="Where two models train, each takes half of the steps.")
]
Adversary = Annotated[
    list[str] | None,
    typer.Option(
        "--adversary",
        help="SITE:KIND: it sends nan, scaled, label_flipped or random_weights; the others are scored; "
        "KIND*1000 claims a thousand times its training cases; may be repeated.",
    ),
]
Claims = Annotated[
    list[str] | None,
    typer.Option(
        "--claim",
        help="A:B: test A against B, too; each is tested against local and fedavg anyway, and every claim "
        "more asks more of all; may be repeated.",
    ),
]
Device = Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1 or auto.")]
Json = Annotated[bool, typer.Option("--json", help="Print results.json, and nothing else.")]
