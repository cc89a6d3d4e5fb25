"""The scores of a split for people: lines of text, and a CSV of cases and classes."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gossipseg.learn.evaluation.scoring import Counts, Scores, mean_of

COLUMNS = (
    ("class", 24),
    ("Dice", 7),
    ("Dice*", 7),
    ("NSD", 7),
    ("HD95", 9),
    ("w/o missed", 10),
    ("cases", 6),
    ("present", 8),
    ("detected", 9),
    ("missed", 7),
)
"""The first is flush left."""


def table(scores: Scores, split: str, unit: str, tolerance: float) -> list[str]:
    """A line for each class, their means, and what the columns are. `unit`: of distances."""
    heading = (f"HD95 {unit}" if name == "HD95" and " " not in unit else name for name, _ in COLUMNS)
    lines = [_row(heading) + "  false alarms"]
    lines += [
        _row(_cells(scores, name)) + f"  {_alarms(scores.counts.get(name, Counts()))}"
        for name in scores.per_class
    ]
    lines.append(f"{_means(scores)}   ({len(scores.per_case)} cases, {split})")
    return [*lines, *_notes(unit, tolerance)]


def _cells(scores: Scores, name: str) -> list[str]:
    counts = scores.counts.get(name, Counts())
    return [
        name,
        _number(scores.per_class[name], 4),
        _number(scores.with_false_alarms.get(name), 4),
        _number(scores.nsd.get(name), 4),
        _number(scores.hd95.get(name), 2),
        _number(scores.hd95_without_missed.get(name), 2),
        *map(str, (counts.cases, counts.present, counts.detected, counts.missed)),
    ]


def _means(scores: Scores) -> str:
    of = (scores.with_false_alarms, scores.nsd)
    return _row(["mean", _number(scores.mean, 4), *(_number(mean_of(each.values()), 4) for each in of)])


def _alarms(counts: Counts) -> str:
    if not counts.cases:
        return "not annotated here"
    if not counts.false_alarms:
        return "0"
    volume = "" if counts.false_alarm_mm3 is None else f", {counts.false_alarm_mm3:.6g} mm³"
    return f"{counts.false_alarms} ({counts.false_alarm_voxels} voxels{volume})"


def _notes(unit: str, tolerance: float) -> list[str]:
    mixed = " and " in unit
    told = f"NSD: share of both surfaces within {tolerance:g} {unit.replace(' and ', ' or ')} of the other."
    if mixed:
        told = "NSD, HD95: no means, some images carry a voxel size and some do not."
    return [
        "Dice: over the cases whose label holds the class, 0 where it was missed; Dice*: false alarms count "
        "as 0, too.",
        told,
        "HD95: the image's diagonal where nothing was predicted; w/o missed: its mean without missed cases. "
        "All of it: docs/evidence/scores.md.",
    ]


def _row(cells: Any) -> str:
    pairs = zip(cells, COLUMNS, strict=False)
    return " ".join(
        f"{cell:{width}}" if i == 0 else f"{cell:>{width}}" for i, (cell, (_, width)) in enumerate(pairs)
    )


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def write_csv(document: Mapping[str, Any], path: Path) -> None:
    """A row for each case and class of an evaluation."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unit = document["hd95"]["unit"].replace(" ", "_")
    with path.open("w", newline="", encoding="utf-8") as f:
        rows = csv.writer(f)
        heading = ["case", "class", "dice", f"hd95_{unit}", "false_positive_voxels"]
        rows.writerow([*heading, "nsd", "unit", "outcome"])
        for case in document["cases"]:
            for name, dice in case["dice"].items():
                hd95, nsd, wrong = (case[k].get(name) for k in ("hd95", "nsd", "false_positive_voxels"))
                numbers = [_csv(dice, 6), _csv(hd95, 4), "" if wrong is None else wrong, _csv(nsd, 6)]
                rows.writerow([case["id"], name, *numbers, case["unit"], outcome(dice, wrong)])


def outcome(dice: float | None, wrong: int | None) -> str:
    """What became of a class in a case. `wrong`: voxels predicted where the label does not hold it."""
    if dice is not None:
        return "detected" if dice > 0 else "missed"
    return "not scored" if wrong is None else "false alarm" if wrong else "true negative"


def _csv(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
