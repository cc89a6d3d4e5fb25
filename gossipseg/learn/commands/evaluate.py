"""The evaluate command: scores of a split on the images' own grids, as JSON, CSV, a table and pictures.

The document: {"schema": 1, "kind": "evaluation", "site", "split", "weights": "ema" | "initial" | "mix" |
"personal" | "shared", "round", "steps", "dice": {"mean", "per_class", "with_false_alarms": {"mean",
"per_class"}}, "nsd": {"tolerance", "unit", "mean", "per_class"}, "hd95": {"unit": "mm" | "px" | "mm and px",
"mean", "per_class", "without_missed": {class: mean}}, "counts": {class: scoring.Counts}, "cases": [{"id",
"mean", "dice", "nsd", "hd95", "unit", "missed", "false_positive_voxels", "false_positive_mm3"}],
"unlabelled": [ids]}; with a personal model "members": {model: weight} and "reason". Where some images carry
a voxel size and some do not, NSD and HD95 have no means.
With a one-shot algorithm it is that of oneshot.py.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gossipseg.errors import DataError
from gossipseg.learn.commands import cli, oneshot
from gossipseg.learn.data.cases import SPLITS, Case
from gossipseg.learn.data.datalist import load_cases
from gossipseg.learn.data.dataset import load_image, load_label, needs_labels
from gossipseg.learn.data.labels import IGNORE, label_rule
from gossipseg.learn.data.readers import Volume
from gossipseg.learn.data.splitfile import keep_of
from gossipseg.learn.deploy.deployment import Deployment, load_deployment
from gossipseg.learn.deploy.predicting import logits_of
from gossipseg.learn.evaluation.evaluate import labels_on
from gossipseg.learn.evaluation.overlays import triplet
from gossipseg.learn.evaluation.score_table import table, write_csv
from gossipseg.learn.evaluation.scoring import (
    NSD_TOLERANCE,
    CaseScore,
    Scores,
    mean_of,
    score_case,
    summarise,
)
from gossipseg.learn.params import ONE_SHOT_ALGORITHM
from gossipseg.learn.settings import read_settings

SaveOverlay = Callable[[Case, Volume, np.ndarray, np.ndarray, CaseScore], None]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = cli.parser("evaluate", "Dice, surface Dice and HD95 of the deployment model.")
    parser.add_argument("--split", choices=SPLITS, default="test")
    parser.add_argument("--json", metavar="OUT", help="write the document here; - is stdout")
    parser.add_argument("--csv", metavar="OUT", help="write one row per case and class")
    parser.add_argument("--initial", action="store_true", help="score the untrained model instead")
    parser.add_argument(
        "--tolerance",
        type=_tolerance,
        default=NSD_TOLERANCE,
        metavar="MM",
        help="of the surface Dice (NSD), in mm, or in pixels without a voxel size (default %(default)s)",
    )
    parser.add_argument("--overlays", metavar="DIR", help="write pictures: image, label, prediction")
    parser.add_argument("--max-overlays", type=int, default=3)
    parser.add_argument("--cases", type=int, metavar="N", help="only the first N labelled cases")
    return cli.run(_evaluate, parser, argv)


def _tolerance(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError("must be a distance of 0 or more")
    return value


def _evaluate(args: argparse.Namespace) -> int:
    spec = cli.spec_of(args)
    if read_settings(spec).algorithm.name == ONE_SHOT_ALGORITHM:
        return oneshot.evaluate(spec, args)
    deployment = load_deployment(spec, initial=args.initial)
    settings = deployment.settings
    cases = load_cases(settings.data, spec.site, needs_labels=needs_labels(settings), keep=keep_of(spec)).of(
        args.split
    )
    labelled = [c for c in cases if c.label is not None][: args.cases]
    if not labelled:
        raise DataError(
            "no case of this split has a label",
            file=settings.data.path,
            key=args.split,
            remedy="Choose another --split.",
        )
    saver = _overlay_saver(Path(args.overlays), args.max_overlays) if args.overlays else None
    show = cli.progress()
    found = []
    for done, case in enumerate(labelled):
        show(f"{args.split}: {case.id}", done / len(labelled))
        found.append(evaluate_case(deployment, case, saver, args.tolerance))
    show(f"{args.split}: {len(labelled)} cases evaluated", 1.0)
    scores = summarise(found, settings.task)
    document = _document(deployment, args.split, scores, args.tolerance)
    document["unlabelled"] = [c.id for c in cases if c.label is None]
    _write(document, scores, args)
    return 0


def evaluate_case(
    deployment: Deployment,
    case: Case,
    save_overlay: SaveOverlay | None = None,
    tolerance: float = NSD_TOLERANCE,
) -> CaseScore:
    """Score one labelled case on its file's own grid, for the classes that the site annotates."""
    settings = deployment.settings
    rule = label_rule(settings.task, settings.data)
    prepared, volume = load_image(case, settings.task)
    assert case.label is not None
    label = load_label(case.label, volume, case, settings.task, rule)
    logits = logits_of(deployment, prepared.image, case.files[0])
    predicted = labels_on(prepared.grid, logits, settings.training)
    scored = score_case(
        case.id,
        predicted,
        torch.from_numpy(label),
        settings.task,
        hd95=True,
        spacing_mm=prepared.grid.spacing_mm,
        annotated=rule.annotated,
        tolerance=tolerance,
    )
    if save_overlay is not None:
        save_overlay(case, volume, np.where(label == IGNORE, 0, label), predicted.numpy(), scored)
    return scored


def _overlay_saver(folder: Path, limit: int) -> SaveOverlay:
    folder.mkdir(parents=True, exist_ok=True)
    saved = 0

    def save(case: Case, volume: Volume, label: np.ndarray, predicted: np.ndarray, scored: CaseScore) -> None:
        nonlocal saved
        if saved >= limit:
            return
        dice = "no label" if scored.mean is None else f"Dice {scored.mean:.3f}"
        triplet(volume, label, predicted, (case.id, "label", f"prediction, {dice}")).save(
            folder / f"{case.id}.png"
        )
        saved += 1

    return save


def _document(deployment: Deployment, split: str, scores: Scores, tolerance: float) -> dict[str, Any]:
    unit = " and ".join(sorted({_unit(case) for case in scores.per_case}))
    per_class, strict = dict(scores.per_class), dict(scores.with_false_alarms)
    return {
        "schema": 1,
        "kind": "evaluation",
        "site": deployment.settings.spec.site,
        "split": split,
        "weights": deployment.weights,
        **({"members": dict(deployment.members)} if deployment.members else {}),
        **({"reason": deployment.reason} if deployment.reason else {}),
        "round": deployment.round,
        "steps": deployment.steps,
        "dice": {
            "mean": scores.mean,
            "per_class": per_class,
            "with_false_alarms": {"mean": mean_of(strict.values()), "per_class": strict},
        },
        "nsd": {
            "tolerance": tolerance,
            "unit": unit,
            "mean": mean_of(scores.nsd.values()),
            "per_class": dict(scores.nsd),
        },
        "hd95": {
            "unit": unit,
            "mean": mean_of(scores.hd95.values()),
            "per_class": dict(scores.hd95),
            "without_missed": dict(scores.hd95_without_missed),
        },
        "counts": {name: asdict(counts) for name, counts in scores.counts.items()},
        "cases": [_case_document(case, case.voxel_mm3) for case in scores.per_case],
    }


def _unit(case: CaseScore) -> str:
    return "px" if case.spacing_mm is None else "mm"


def _case_document(case: CaseScore, voxel_mm3: float | None) -> dict[str, Any]:
    wrong = case.false_positive_voxels
    return {
        "id": case.id,
        "mean": case.mean,
        "dice": dict(case.dice),
        "nsd": dict(case.nsd),
        "hd95": dict(case.hd95),
        "unit": _unit(case),
        "missed": list(case.missed),
        "false_positive_voxels": dict(wrong),
        "false_positive_mm3": {n: v * voxel_mm3 for n, v in wrong.items()} if voxel_mm3 else None,
    }


def _write(document: dict[str, Any], scores: Scores, args: argparse.Namespace) -> None:
    if args.csv:
        write_csv(document, Path(args.csv))
    if args.json:
        cli.write_json(document, args.json)
    if args.json != "-":
        print(_table(document, scores))


def _table(document: dict[str, Any], scores: Scores) -> str:
    unit = document["hd95"]["unit"]
    tolerance = document.get("nsd", {}).get("tolerance", NSD_TOLERANCE)
    return "\n".join(table(scores, document["split"], unit, tolerance))


if __name__ == "__main__":
    sys.exit(main())
