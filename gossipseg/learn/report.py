"""The evaluate command: scores of a split on the images' own grids, as JSON, CSV, a table and pictures.

What belongs here: `python -m gossipseg.learn.evaluate`. What must not: how a score is computed (evaluate.py).

The document: {"schema": 1, "kind": "evaluation", "site", "split", "weights": "ema" | "initial" | "shadow" |
"averaged" | "own" | "ensemble", "round", "steps", "dice": {"mean", "per_class"}, "hd95": {"unit",
"per_class"}, "cases": [{"id", "mean", "dice", "hd95", "false_positive_voxels", "false_positive_mm3"}],
"unlabelled": [ids]}; with an ensemble of peers "members": {site: hash of its model}.
With a one-shot algorithm it is that of oneshot_report.py.
"""

from __future__ import annotations

import argparse
import csv
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gossipseg.errors import DataError
from gossipseg.learn import cli, oneshot_report
from gossipseg.learn.cases import SPLITS, Case
from gossipseg.learn.data import load_image, load_label, needs_labels
from gossipseg.learn.datalist import load_cases
from gossipseg.learn.evaluate import (
    CaseScore,
    Scores,
    labels_on,
    predict_logits,
    score_case,
    summarise,
)
from gossipseg.learn.overlays import triplet
from gossipseg.learn.params import ONE_SHOT_ALGORITHM
from gossipseg.learn.readers import Volume
from gossipseg.learn.session import Deployment, load_deployment
from gossipseg.learn.setup import read_setup

SaveOverlay = Callable[[Case, Volume, np.ndarray, np.ndarray, CaseScore], None]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = cli.parser("evaluate", "Dice and HD95 of the deployment model.")
    parser.add_argument("--split", choices=SPLITS, default="test")
    parser.add_argument("--json", metavar="OUT", help="write the document here; - is stdout")
    parser.add_argument("--csv", metavar="OUT", help="write one row per case and class")
    parser.add_argument("--initial", action="store_true", help="score the untrained model instead")
    parser.add_argument("--overlays", metavar="DIR", help="write pictures: image, label, prediction")
    parser.add_argument("--max-overlays", type=int, default=3)
    parser.add_argument("--cases", type=int, metavar="N", help="only the first N labelled cases")
    return cli.run(_evaluate, parser, argv)


def _evaluate(args: argparse.Namespace) -> int:
    spec = cli.spec_of(args)
    if read_setup(spec).algorithm.name == ONE_SHOT_ALGORITHM:
        return oneshot_report.evaluate(spec, args)
    deployment = load_deployment(spec, initial=args.initial)
    setup = deployment.setup
    cases = load_cases(setup.data, spec.site, needs_labels=needs_labels(setup)).of(args.split)
    labelled = [c for c in cases if c.label is not None][: args.cases]
    if not labelled:
        raise DataError(
            "no case of this split has a label",
            file=setup.data.path,
            key=args.split,
            remedy="Choose another --split.",
        )
    saver = _overlay_saver(Path(args.overlays), args.max_overlays) if args.overlays else None
    show = cli.progress()
    found, volumes_mm3 = [], []
    for done, case in enumerate(labelled):
        show(f"{args.split}: {case.id}", done / len(labelled))
        scored, voxel_mm3 = evaluate_case(deployment, case, saver)
        found.append(scored)
        volumes_mm3.append(voxel_mm3)
    show(f"{args.split}: {len(labelled)} cases evaluated", 1.0)
    scores = summarise(found, setup.task)
    document = _document(deployment, args.split, scores, volumes_mm3)
    document["unlabelled"] = [c.id for c in cases if c.label is None]
    _write(document, scores, args)
    return 0


def evaluate_case(
    deployment: Deployment, case: Case, save_overlay: SaveOverlay | None = None
) -> tuple[CaseScore, float | None]:
    """Score one labelled case on its file's own grid; beside it the volume of a voxel in mm³, or None."""
    task, training = deployment.setup.task, deployment.setup.training
    prepared, volume = load_image(case, task)
    assert case.label is not None
    label = load_label(case.label, volume, case, task)
    logits = predict_logits(deployment.net, prepared.image, task, training, deployment.compute.device)
    predicted = labels_on(prepared.grid, logits, training)
    spacing = volume.spacing_mm
    scored = score_case(case.id, predicted, torch.from_numpy(label), task, hd95=True, spacing_mm=spacing)
    if save_overlay is not None:
        save_overlay(case, volume, label, predicted.numpy(), scored)
    return scored, None if spacing is None else math.prod(spacing)


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


def _document(
    deployment: Deployment, split: str, scores: Scores, voxel_mm3: Sequence[float | None]
) -> dict[str, Any]:
    return {
        "schema": 1,
        "kind": "evaluation",
        "site": deployment.setup.spec.site,
        "split": split,
        "weights": deployment.weights,
        **({"members": dict(deployment.members)} if deployment.members else {}),
        "round": deployment.round,
        "steps": deployment.steps,
        "dice": {"mean": scores.mean, "per_class": dict(scores.per_class)},
        "hd95": {"unit": "px" if None in voxel_mm3 else "mm", "per_class": dict(scores.hd95)},
        "cases": [_case_document(c, v) for c, v in zip(scores.per_case, voxel_mm3, strict=True)],
    }


def _case_document(case: CaseScore, voxel_mm3: float | None) -> dict[str, Any]:
    wrong = case.false_positive_voxels
    return {
        "id": case.id,
        "mean": case.mean,
        "dice": dict(case.dice),
        "hd95": dict(case.hd95),
        "false_positive_voxels": dict(wrong),
        "false_positive_mm3": {n: v * voxel_mm3 for n, v in wrong.items()} if voxel_mm3 else None,
    }


def _write(document: dict[str, Any], scores: Scores, args: argparse.Namespace) -> None:
    if args.csv:
        _write_csv(document, Path(args.csv))
    if args.json:
        cli.write_json(document, args.json)
    if args.json != "-":
        print(_table(document, scores))


def _write_csv(document: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as f:
        rows = csv.writer(f)
        rows.writerow(["case", "class", "dice", f"hd95_{document['hd95']['unit']}", "false_positive_voxels"])
        for case in document["cases"]:
            for name, dice in case["dice"].items():
                rows.writerow(
                    [
                        case["id"],
                        name,
                        "" if dice is None else f"{dice:.6f}",
                        "" if case["hd95"].get(name) is None else f"{case['hd95'][name]:.4f}",
                        case["false_positive_voxels"].get(name, ""),
                    ]
                )


def _table(document: dict[str, Any], scores: Scores) -> str:
    def number(value: float | None, digits: int) -> str:
        return "–" if value is None else f"{value:.{digits}f}"

    unit = document["hd95"]["unit"]
    lines = [f"{'class':24} {'Dice':>7} {'HD95 ' + unit:>9}"]
    lines += [
        f"{n:24} {number(d, 4):>7} {number(scores.hd95.get(n), 2):>9}" for n, d in scores.per_class.items()
    ]
    lines.append(
        f"{'mean':24} {number(scores.mean, 4):>7}   ({len(scores.per_case)} cases, {document['split']})"
    )
    return "\n".join(lines)
