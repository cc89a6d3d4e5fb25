"""The one-shot evaluation of a site: the full table, as JSON, CSV, lines and pictures.

The document: {"schema": 1, "kind": "one_shot", "site", "split", "weights": "ema" | "initial", "round",
"steps", "protocol": "volumes" | "slices", "scans", "per_class": {name: {"range" | "volume": {"mean", "std",
"lowest", "highest"}}}, "mean": {"range", "volume"}, "supports": [{"id", "range": {name: Dice}, "volume":
{name: Dice}}], "pairs": [{"support", "query", "range", "volume", "false_positive_voxels"}]}.
`range` is the organ's range of slices, `volume` the whole scan; spreads are over the supports.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gossipseg.errors import ConfigError, DataError
from gossipseg.learn.commands import cli
from gossipseg.learn.data.cases import SPLITS
from gossipseg.learn.data.datalist import load_cases
from gossipseg.learn.data.dataset import Item, load_item
from gossipseg.learn.data.labels import label_rule
from gossipseg.learn.data.readers import Volume
from gossipseg.learn.data.splitfile import keep_of
from gossipseg.learn.deploy.deployment import Deployment, load_deployment
from gossipseg.learn.evaluation.evaluate import foreground_names, mean_of
from gossipseg.learn.evaluation.overlays import triplet
from gossipseg.learn.oneshot.pair_scores import OneShot, OnPrediction, one_shot
from gossipseg.learn.oneshot.slices import slices_of
from gossipseg.learn.params import ONE_SHOT_ALGORITHM, SplitName, WorkerSpec

MEASURES = ("range", "volume")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = cli.parser("oneshot", "One-shot Dice of the deployment model, by support.")
    parser.add_argument("--split", choices=SPLITS, default="test")
    parser.add_argument("--json", metavar="OUT", help="write the document here; - is stdout")
    parser.add_argument("--csv", metavar="OUT", help="write one row per pair of scans and class")
    parser.add_argument("--initial", action="store_true", help="score the untrained model instead")
    parser.add_argument("--overlays", metavar="DIR", help="write pictures: image, label, prediction")
    parser.add_argument("--max-overlays", type=int, default=3)
    return cli.run(_command, parser, argv)


def _command(args: argparse.Namespace) -> int:
    return evaluate(cli.spec_of(args), args)


def evaluate(spec: WorkerSpec, args: argparse.Namespace) -> int:
    """The command, and `commands.evaluate` of a site with a one-shot algorithm."""
    deployment = load_deployment(spec, initial=args.initial)
    saver = _overlay_saver(Path(args.overlays), args.max_overlays, deployment) if args.overlays else None
    show = cli.progress()
    document = one_shot_report(deployment, args.split, lambda f: show(f"{args.split}: one-shot", f), saver)
    if args.csv:
        _write_csv(document, Path(args.csv))
    if args.json:
        cli.write_json(document, args.json)
    if args.json != "-":
        print("\n".join(table(document)))
    return 0


def one_shot_report(
    deployment: Deployment,
    split: SplitName,
    on_progress: Any = lambda fraction: None,
    on_prediction: OnPrediction | None = None,
) -> dict[str, Any]:
    """The document of a split. Raises ConfigError for another algorithm, DataError if scans are lacking."""
    settings = deployment.settings
    if settings.algorithm.name != ONE_SHOT_ALGORITHM:
        raise ConfigError(
            f"one-shot evaluation is for {ONE_SHOT_ALGORITHM}",
            key="algorithm.name",
            value=settings.algorithm.name,
            remedy="Use `gossipctl evaluate`.",
        )
    keep = keep_of(settings.spec)
    splits = load_cases(settings.data, settings.spec.site, needs_labels=False, keep=keep)
    cases = [case for case in splits.of(split) if case.label]
    if len(cases) < 2:
        raise DataError(
            f"holds {len(cases)} labelled scans; one-shot evaluation needs a support and a query",
            file=settings.data.path,
            key=split,
            remedy="Choose another --split, or label two scans of this one.",
        )
    rule = label_rule(settings.task, settings.data)
    with deployment.compute.autocast():
        found = one_shot(
            deployment.net,
            lambda: (load_item(case, settings.task, rule) for case in cases),
            settings.task,
            deployment.compute.device,
            on_progress,
            on_prediction,
        )
    return document_of(found, deployment, split, len(cases))


def document_of(found: OneShot, deployment: Deployment, split: str, scans: int) -> dict[str, Any]:
    """What the module's docstring describes."""
    settings = deployment.settings
    names = list(foreground_names(settings.task).values())
    spreads = {n: {m: asdict(found.spread(n, volume=m == "volume")) for m in MEASURES} for n in names}
    return {
        "schema": 1,
        "kind": "one_shot",
        "site": settings.spec.site,
        "split": split,
        "weights": deployment.weights,
        "round": deployment.round,
        "steps": deployment.steps,
        "protocol": "slices" if settings.task.slice_axis is None else "volumes",
        "scans": scans,
        "per_class": spreads,
        "mean": {m: mean_of(spreads[n][m]["mean"] for n in names) for m in MEASURES},
        "supports": _supports(found, names),
        "pairs": [
            {
                "support": pair.support,
                "query": pair.query,
                "range": dict(pair.dice_range),
                "volume": dict(pair.dice_volume),
                "false_positive_voxels": dict(pair.false_positive_voxels),
            }
            for pair in found.pairs
        ],
    }


def _supports(found: OneShot, names: Sequence[str]) -> list[dict[str, Any]]:
    tables = {m: {n: found.by_support(n, volume=m == "volume") for n in names} for m in MEASURES}
    return [
        {"id": support}
        | {m: {n: by[support] for n, by in tables[m].items() if support in by} for m in MEASURES}
        for support in dict.fromkeys(pair.support for pair in found.pairs)
    ]


def table(document: Mapping[str, Any]) -> list[str]:
    """Lines for people: the spread over the supports of each class."""
    kind = "scans" if document["protocol"] == "volumes" else "isolated slices (slice-level one-shot)"
    lines = [f"{'class':24} {'':8} {'mean':>7} {'std':>7} {'lowest':>7} {'highest':>7}"]
    for name, measures in document["per_class"].items():
        for measure in MEASURES:
            numbers = (measures[measure][k] for k in ("mean", "std", "lowest", "highest"))
            lines.append(f"{name:24} {measure:8} " + " ".join(f"{_text(v):>7}" for v in numbers))
    lines += [f"{'mean':24} {measure:8} {_text(document['mean'][measure]):>7}" for measure in MEASURES]
    lines.append(
        f"Dice over {len(document['supports'])} supports, each against the other {document['split']} {kind}; "
        "range: slices that hold the organ"
    )
    return lines


def _text(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _write_csv(document: Mapping[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as f:
        rows = csv.writer(f)
        rows.writerow(["support", "query", "class", "dice_range", "dice_volume", "false_positive_voxels"])
        for pair in document["pairs"]:
            for name, value in pair["range"].items():
                numbers = ["" if v is None else f"{v:.6f}" for v in (value, pair["volume"][name])]
                wrong = pair["false_positive_voxels"].get(name, "")
                rows.writerow([pair["support"], pair["query"], name, *numbers, wrong])


def _overlay_saver(folder: Path, limit: int, deployment: Deployment) -> OnPrediction:
    """Pictures of the first pairs, each of another query."""
    folder.mkdir(parents=True, exist_ok=True)
    axis = deployment.settings.task.slice_axis
    seen: set[str] = set()

    def save(support: str, query: Item, predicted: Tensor) -> None:
        if len(seen) >= limit or query.case.id in seen:
            return
        seen.add(query.case.id)
        assert query.label is not None
        image, label = _slices_last(query.image, axis), _slices_last(query.label, axis)[0]
        guess = predicted.movedim(0, -1).numpy() if axis is not None else predicted[0].numpy()
        volume = Volume(image, None if axis is None else np.eye(4))
        captions = (query.case.id, "label", f"by {support}")
        triplet(volume, label, guess, captions).save(folder / f"{query.case.id}.png")

    return save


def _slices_last(image: Tensor, axis: int | None) -> np.ndarray:
    """(C, *spatial) → (C, H, W, S), or (C, H, W) of a single slice."""
    stack = slices_of(image, axis)
    array: np.ndarray = torch.movedim(stack, 0, -1).numpy()
    return array if axis is not None else array[..., 0]


if __name__ == "__main__":
    sys.exit(main())
