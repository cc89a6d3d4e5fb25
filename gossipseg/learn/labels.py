"""What the numbers in a site's label files mean, and with which numbers its predictions are written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gossipseg.errors import ConfigError, DataError
from gossipseg.learn.formats.volume import Segmentation, Volume
from gossipseg.learn.params import DataParams, TaskParams

IGNORE = 255
"""In label arrays of the product: nobody says what this voxel is. No class has this value."""

ROUNDING = 1e-3
"""Labels so close to a whole number are that number: files keep floats, or integers times a slope."""


@dataclass(frozen=True, slots=True)
class LabelRule:
    """How a site's label files are read."""

    labels: Mapping[int, str]
    """The task's: value → name."""
    label_map: Mapping[int, int]
    """File value → label value; what is not in it stands for itself."""
    ignore: int | None
    """File value that becomes IGNORE."""
    annotated: tuple[int, ...]
    """Foreground values that the files tell of."""
    segments: Mapping[str, int]
    """Name of a segment → label value; names of the task's labels stand for themselves."""

    @property
    def partial(self) -> bool:
        """Whether some class of the task is not annotated here."""
        return len(self.annotated) < len(self.labels) - 1


def label_rule(task: TaskParams, data: DataParams | None = None) -> LabelRule:
    """The task's rule, with what a site says of its own files. Raises ConfigError."""
    foreground = tuple(sorted(v for v in task.labels if v != 0))
    if data is None:
        return LabelRule(task.labels, task.label_map, None, foreground, {})
    _check(task, data, foreground)
    annotated = foreground if data.annotated_labels is None else tuple(sorted({*data.annotated_labels}))
    label_map = {**task.label_map, **data.label_map}
    return LabelRule(task.labels, label_map, data.ignore_label, annotated, data.segments)


def _check(task: TaskParams, data: DataParams, foreground: tuple[int, ...]) -> None:
    known = ", ".join(f"{v} ({n})" for v, n in sorted(task.labels.items()))
    asked: list[tuple[str, Any]] = [("data.annotated_labels", v) for v in data.annotated_labels or ()]
    asked += [(f"data.label_map.{k}", v) for k, v in data.label_map.items()]
    asked += [(f"data.segments.{k}", v) for k, v in data.segments.items()]
    asked += [("data.label_map_out", k) for k in data.label_map_out]
    for key, value in asked:
        if value not in task.labels or (key == "data.annotated_labels" and value not in foreground):
            raise ConfigError(
                "is no label of the task", key=key, value=value, remedy=f"The task has {known}."
            )
    if data.annotated_labels is not None and not data.annotated_labels:
        remedy = "Name the label values that this site annotates, or leave the key out where it is all."
        raise ConfigError("names no label", key="data.annotated_labels", value=[], remedy=remedy)


def values_of(label: Volume | Segmentation, rule: LabelRule, file: Path) -> np.ndarray:
    """Label values of the task (*spatial) uint8 with IGNORE, on the label's own grid. Raises DataError."""
    assert isinstance(label, Volume)
    return map_labels(label.array, rule, file)


def map_labels(array: np.ndarray, rule: LabelRule | TaskParams, file: Path) -> np.ndarray:
    """File values (C, *spatial) → the task's label values (*spatial) uint8, by the label map.

    A label saved as a grey picture in three equal channels is taken as it is. Raises DataError for values
    that the task does not know.
    """
    rule = label_rule(rule) if isinstance(rule, TaskParams) else rule
    if array.shape[0] > 1 and (array != array[:1]).any():
        raise DataError(
            f"is a colour picture ({array.shape[0]} channels): a label has one number per voxel",
            file=file,
            key="channels",
            value=array.shape[0],
            remedy="Save the label as one grey channel of label values.",
        )
    found = np.unique(array[0])
    targets = [rule.label_map.get(int(v), int(v)) if float(v).is_integer() else -1 for v in found]
    unknown = [v.item() for v, t in zip(found, targets, strict=True) if t not in rule.labels]
    if unknown:
        raise DataError(
            f"label values {_some(unknown)} are not among the task's ({_some(sorted(rule.labels))})",
            file=file,
            key="task.label_map",
            value=dict(rule.label_map),
            remedy=_label_remedy(unknown, rule),
        )
    lookup = np.asarray(targets, dtype=np.uint8)
    values: np.ndarray = lookup[np.searchsorted(found, array[0])]
    return values


def _label_remedy(unknown: list[float], rule: LabelRule) -> str:
    if unknown == [255] and len(rule.labels) == 2:
        return "Add `label_map: {255: 1}` to the task in peers.yaml (masks saved as 0/255)."
    if len(unknown) > 8:
        return "Save the label without interpolation and lossless (PNG, NIfTI), one number per class."
    return "Correct the label, or translate these values with task.label_map in peers.yaml."


def _some(values: list[Any]) -> str:
    text = ", ".join(f"{v:g}" for v in values[:8])
    return text + (f" … ({len(values)} values)" if len(values) > 8 else "")
