"""What the numbers in a site's label files mean, and with which numbers its predictions are written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gossipseg.errors import ConfigError, DataError
from gossipseg.learn.data.formats.volume import Segmentation, Volume
from gossipseg.learn.params import DataParams, TaskParams, labels_problem

IGNORE = 255
"""In label arrays of the product: nobody says what this voxel is. No class has this value."""

ROUNDING = 1e-3
"""Labels so close to a whole number are that number: files keep floats, or integers times a slope."""

MOST = 1 << 40
"""No label value is larger."""

NARROW = 1 << 16
"""Values over no wider a range are counted and looked up in a table."""

MANY = 8
"""Most unknown values that are listed one by one; more look like a lossy or soft-edged mask."""

GAP = 12
"""Values no further apart are told as one range."""

LOSSY = (
    "The mask is lossy or soft-edged: save it as PNG or NIfTI, without interpolation, one number per class."
)

FileValues = Counter[int]
"""Value in the files → voxels."""


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
    """Name of a segment → label value, or `ignore`; names of the task's labels stand for themselves."""

    def target(self, value: int) -> int | None:
        """The label value, or IGNORE, that a file value stands for; None: the task does not know it."""
        if value == self.ignore:
            return IGNORE
        target = self.label_map.get(value, value)
        return target if target in self.labels else None

    def told(self, value: int) -> int:
        """What losses and scores take a label value for: a class that is not annotated here is a part of
        "background or not annotated", as it is in the files that leave it out."""
        return value if value in (0, IGNORE, *self.annotated) else 0

    @property
    def partial(self) -> bool:
        """Whether some class of the task is not annotated here."""
        return len(self.annotated) < len(self.labels) - 1


def label_rule(task: TaskParams, data: DataParams | None = None) -> LabelRule:
    """The task's rule, with what a site says of its own files. Raises ConfigError."""
    foreground = tuple(sorted(v for v in task.labels if v != 0))
    if data is None:
        return LabelRule(task.labels, task.label_map, None, foreground, {})
    found = labels_problem(task, data)
    if found is not None:
        problem, key, value, remedy = found
        raise ConfigError(problem, key=key, value=value, remedy=remedy)
    annotated = foreground if data.annotated_labels is None else tuple(sorted({*data.annotated_labels}))
    label_map = {**task.label_map, **data.label_map}
    return LabelRule(task.labels, label_map, data.ignore_label, annotated, data.segments)


def values_of(
    label: Volume | Segmentation, rule: LabelRule, file: Path, counts: FileValues | None = None
) -> np.ndarray:
    """Label values of the task (*spatial) uint8 with IGNORE, on the label's own grid. Raises DataError.

    `counts` is given the file's values and their voxels, where they are numbers of the site's own choice.
    """
    if isinstance(label, Segmentation):
        return _merged(label, rule, file)
    return map_labels(label.array, rule, file, counts)


def map_labels(
    array: np.ndarray, rule: LabelRule | TaskParams, file: Path, counts: FileValues | None = None
) -> np.ndarray:
    """File values (C, *spatial) → the task's label values (*spatial) uint8, by the label map.

    A label saved as a grey picture in equal channels is taken as it is. Raises DataError for values that
    the task does not know, and for those of a class that the site says it does not annotate.
    """
    rule = label_rule(rule) if isinstance(rule, TaskParams) else rule
    found = file_values(array, file)
    targets = {value: rule.target(value) for value in found}
    unknown = [value for value, target in targets.items() if target is None]
    if unknown:
        raise _unknown(unknown, rule, file)
    if counts is not None:
        counts.update(found)
    return _looked_up(array[0], {v: rule.told(t) for v, t in targets.items() if t is not None})


def file_values(array: np.ndarray, file: Path) -> dict[int, int]:
    """The whole numbers in a label (C, *spatial), with the voxels of each.

    Raises DataError where there is no one number per voxel, for NaN, and for what is no whole number.
    """
    if array.shape[0] > 1 and (array != array[:1]).any():
        raise DataError(
            f"has {array.shape[0]} channels, as a colour picture or one mask per class have: a label has one "
            "number per voxel",
            file=file,
            key="channels",
            value=array.shape[0],
            remedy="Save the label as one channel of label values.",
        )
    found: Counter[int] = Counter()
    for part in array[0] if array.ndim > 2 else array[:1]:
        found.update(_counted(_whole(part, file)))
    return dict(sorted(found.items()))


def _counted(whole: np.ndarray) -> dict[int, int]:
    if not whole.size:
        return {}
    low, high = int(whole.min()), int(whole.max())
    if high - low > NARROW:
        values, voxels = np.unique(whole, return_counts=True)
        return dict(zip(values.tolist(), voxels.tolist(), strict=True))
    voxels = np.bincount(whole.ravel().astype(np.int64) - low)
    return {low + i: int(voxels[i]) for i in np.flatnonzero(voxels).tolist()}


def _whole(part: np.ndarray, file: Path) -> np.ndarray:
    """The nearest whole numbers. Raises DataError where they are not near."""
    if part.dtype.kind in "bui":
        return part
    if part.dtype.kind != "f":
        problem = f"holds {part.dtype} values: a label has one whole number per voxel"
        raise DataError(problem, file=file, remedy="Save the label as whole numbers.")
    if not np.isfinite(part).all():
        remedy = "Repair the label, or take the case out."
        raise DataError("holds NaN or infinite values", file=file, remedy=remedy)
    whole: np.ndarray = np.rint(part)
    if (np.abs(part - whole) > ROUNDING).any() or (np.abs(whole) > MOST).any():
        raise _not_whole(part[(np.abs(part - whole) > ROUNDING) | (np.abs(whole) > MOST)], file)
    integers: np.ndarray = whole.astype(np.int64)
    return integers


def _not_whole(values: np.ndarray, file: Path) -> DataError:
    some = ", ".join(f"{v:.10g}" for v in np.unique(values)[:3])
    return DataError(
        f"holds values that are no whole numbers ({some}): it was resampled, smoothed or holds probabilities",
        file=file,
        key="label values",
        remedy="Save the label without interpolation, one whole number per class.",
    )


def _looked_up(array: np.ndarray, targets: Mapping[int, int]) -> np.ndarray:
    """Whole numbers, or floats near them, → what they stand for: uint8."""
    low, high = min(targets, default=0), max(targets, default=0)
    values = np.array(sorted(targets), dtype=np.int64)
    if high - low <= NARROW:
        values = np.arange(low, high + 1)
    table = np.array([targets.get(v, 0) for v in values.tolist()], dtype=np.uint8)
    out = np.empty(array.shape, dtype=np.uint8)
    for i, part in enumerate(array):
        whole = (part if part.dtype.kind in "bui" else np.rint(part)).astype(np.int64)
        out[i] = table[whole - low if high - low <= NARROW else np.searchsorted(values, whole)]
    return out


def _unknown(unknown: list[int], rule: LabelRule, file: Path) -> DataError:
    return DataError(
        f"label values {ranges_text(unknown)} are not among the task's ({ranges_text(sorted(rule.labels))})",
        file=file,
        key="task.label_map",
        value=dict(rule.label_map),
        remedy=_label_remedy(unknown, rule, file),
    )


def _label_remedy(unknown: list[int], rule: LabelRule, file: Path) -> str:
    if unknown == [255] and len(rule.labels) == 2:
        return (
            "Add `label_map: {255: 1}` to the task in peers.yaml, or to `data` in site.yaml (masks saved as "
            "0/255)."
        )
    if len(unknown) > MANY or file.suffix.lower() in (".jpg", ".jpeg"):
        return LOSSY
    return (
        "Correct the label, or translate these values with task.label_map in peers.yaml, or for this site "
        "alone with data.label_map in site.yaml."
    )


# ---------------------------------------------------------------- segments


def _merged(label: Segmentation, rule: LabelRule, file: Path) -> np.ndarray:
    """Segments that may overlap → one value a voxel. Two classes on one voxel are refused; what is to be
    ignored is ignored, whatever else is drawn there."""
    values = segment_values(label, rule, file)
    out = np.zeros(label.shape, dtype=np.uint8)
    drawn: dict[int, str] = {}
    for segment, value in zip(label.segments, values, strict=True):
        if value is None or value == IGNORE:
            continue
        clash = segment.mask & (out != 0) & (out != value)
        if clash.any():
            other = drawn[int(out[clash][0])]
            raise DataError(
                f"the segments {other!r} and {segment.name!r} share {int(clash.sum())} voxels, and are of "
                "two classes",
                file=file,
                key="segments",
                remedy="A voxel has one class: cut one of them back, or map both to one class with "
                "data.segments in site.yaml.",
            )
        out[segment.mask] = value
        drawn[value] = segment.name
    told = _looked_up(out, {v: rule.told(v) for v in rule.labels})
    for segment, value in zip(label.segments, values, strict=True):
        if value == IGNORE:
            told[segment.mask] = IGNORE
    return told


def segment_values(label: Segmentation, rule: LabelRule, file: Path) -> tuple[int | None, ...]:
    """Label value of each segment, in their order, or IGNORE; None: not used.

    What has the name of a class, or of data.segments, is that class, and other segments are not used, but for
    the one whose number is to be ignored. Where no name says anything, the numbers are label values. Raises
    DataError, where two segments have the same number (in layers of their own), too: it is no class then.
    """
    by_name = {n.casefold(): v for v, n in rule.labels.items()}
    by_name |= {n.casefold(): v if v in rule.labels else IGNORE for n, v in rule.segments.items()}
    named = [by_name.get(s.name.casefold().strip()) for s in label.segments]
    if any(value is not None for value in named):
        ignored = set() if label.numbers_are_arbitrary else {rule.ignore}
        return tuple(
            IGNORE if value is None and s.number in ignored else value
            for s, value in zip(label.segments, named, strict=True)
        )
    numbers = [s.number for s in label.segments]
    targets = tuple(rule.target(number) for number in numbers)
    if None in targets or label.numbers_are_arbitrary or len(set(numbers)) < len(numbers):
        have = ", ".join(f"{s.number} {s.name!r}" for s in label.segments[:12])
        raise DataError(
            f"no segment has the name of a class of the task; there are: {have}",
            file=file,
            key="data.segments",
            value=dict(rule.segments),
            remedy="Say in site.yaml which is which, such as `segments: {GTV: 1}` under `data`; the task "
            f"has {', '.join(f'{v} ({n})' for v, n in sorted(rule.labels.items()) if v)}.",
        )
    return targets


def notes_of(
    label: Volume | Segmentation, rule: LabelRule, file: Path, counts: Mapping[int, int]
) -> tuple[str, ...]:
    """What of a label file is not used, in words. `counts`: its values, as values_of() gives them."""
    if isinstance(label, Volume):
        return _not_annotated({rule.target(value) for value in counts}, rule, file)
    used = segment_values(label, rule, file)
    notes = _not_annotated(set(used), rule, file)
    names = [s.name for s, value in zip(label.segments, used, strict=True) if value is None]
    if names:
        some = ", ".join(map(repr, names[:12]))
        notes += (f"{file}: segments that are no class of the task are not used: {some}",)
    return notes


def _not_annotated(found: Collection[int | None], rule: LabelRule, file: Path) -> tuple[str, ...]:
    stray = [rule.labels[v] for v in sorted(rule.labels) if v in found and rule.told(v) != v]
    if not stray:
        return ()
    return (f"{file}: holds {', '.join(stray)}, which is no class of data.annotated_labels: not used",)


# ---------------------------------------------------------------- words


def ranges_text(values: Sequence[int]) -> str:
    """Sorted whole numbers in words: `0…12 and 243…255`, or one by one where they are few."""
    if len(values) <= MANY:
        return ", ".join(map(str, values))
    runs: list[list[int]] = []
    for value in values:
        if runs and value - runs[-1][1] <= GAP:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    if len(runs) > MANY:
        return f"{', '.join(map(str, values[:MANY]))} … ({len(values)} values)"
    texts = [str(a) if a == b else f"{a}…{b}" for a, b in runs]
    return " and ".join([", ".join(texts[:-1]), texts[-1]] if len(texts) > 1 else texts)
