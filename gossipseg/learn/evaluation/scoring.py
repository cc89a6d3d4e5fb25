"""How a predicted label map is scored against the label, and what scores of many cases come to.

Conventions, with their sources: docs/evidence/scores.md. In short, for each class and case:

    label holds it, prediction touches it       detected: Dice, NSD and HD95 as measured
    label holds it, prediction does not         missed: Dice and NSD 0 (NSD as measured, where something was
                                                predicted); HD95 the image's diagonal, where nothing was
    label does not hold it, prediction neither  true negative: left out of every mean
    label does not hold it, prediction does     false alarm: left out of the mean Dice, counted with its
                                                volume; 0 in the mean with false alarms
    the site does not annotate it               not scored at all

Averages: a case's mean is over the classes that its label holds, a class's mean over its cases, the overall
mean over the classes' means.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from gossipseg.learn.data.labels import IGNORE
from gossipseg.learn.evaluation import surfaces
from gossipseg.learn.params import TaskParams

NSD_TOLERANCE = 2.0
"""Tolerance of the surface Dice, in mm; in pixels without a voxel size."""

COUNTED_AT_ONCE = 1 << 22
VALUES = 256
"""Different values that a label map can hold."""

ByClass = Mapping[str, float | None]


@dataclass(frozen=True, slots=True)
class CaseScore:
    """One case. Keys are the names of the foreground labels; None: the label does not hold that class."""

    id: str
    dice: ByClass
    false_positive_voxels: Mapping[str, int]
    """Voxels predicted as a class that the label does not hold; 0 is a true negative."""
    hd95: ByClass = field(default_factory=dict)
    """mm, or pixels without a voxel size; empty where it was not asked for."""
    nsd: ByClass = field(default_factory=dict)
    spacing_mm: tuple[float, ...] | None = None
    """Voxel size of the label."""

    @property
    def mean(self) -> float | None:
        """Mean Dice over the classes that the label holds."""
        return mean_of(self.dice.values())

    @property
    def missed(self) -> tuple[str, ...]:
        """Classes that the label holds and no voxel of the prediction touches."""
        return tuple(name for name, dice in self.dice.items() if dice == 0)

    @property
    def false_alarms(self) -> tuple[str, ...]:
        """Classes that are predicted and that the label does not hold."""
        return tuple(name for name, voxels in self.false_positive_voxels.items() if voxels)

    @property
    def voxel_mm3(self) -> float | None:
        """Volume of a voxel; None in 2-D, and without a voxel size."""
        volume = self.spacing_mm is not None and len(self.spacing_mm) == 3
        return math.prod(self.spacing_mm or ()) if volume else None


@dataclass(frozen=True, slots=True)
class Counts:
    """How often a class was found, over the cases of a split in which it is scored."""

    cases: int = 0
    present: int = 0
    """Cases whose label holds it."""
    detected: int = 0
    missed: int = 0
    """Cases of `present` without a voxel found."""
    true_negatives: int = 0
    false_alarms: int = 0
    """Other cases in which it was predicted."""
    false_alarm_voxels: int = 0
    false_alarm_mm3: float | None = None
    """None where a case has no volume."""


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores of a split. `mean` is None where no case holds any foreground. Distances are None where some
    cases are in mm and some in pixels."""

    mean: float | None
    per_class: ByClass
    per_case: tuple[CaseScore, ...]
    hd95: ByClass = field(default_factory=dict)
    hd95_without_missed: ByClass = field(default_factory=dict)
    nsd: ByClass = field(default_factory=dict)
    with_false_alarms: ByClass = field(default_factory=dict)
    """Mean Dice in which a false alarm counts as 0."""
    counts: Mapping[str, Counts] = field(default_factory=dict)


def score_case(
    case_id: str,
    predicted: Tensor,
    label: Tensor,
    task: TaskParams,
    *,
    hd95: bool = False,
    spacing_mm: tuple[float, ...] | None = None,
    annotated: Collection[int] | None = None,
    tolerance: float = NSD_TOLERANCE,
) -> CaseScore:
    """Dice of one case; with `hd95` also HD95 and surface Dice, which take longer.

    `predicted`, `label`: (*spatial) label values on one grid; where `label` is IGNORE nothing is counted.
    `annotated`: the values that the label tells of; None is all of the task's.
    """
    truth, guess = (t.numpy().astype(np.uint8, copy=False) for t in (label, predicted))
    assert truth.shape == guess.shape
    table = joint_counts(guess, truth)
    dice: dict[str, float | None] = {}
    wrong: dict[str, int] = {}
    for value, name in foreground_names(task).items():
        held, drawn, both = table[value].sum(), table[:IGNORE, value].sum(), table[value, value]
        dice[name] = float(2 * both / (held + drawn)) if held else None
        if (annotated is not None and value not in annotated) or not table[:IGNORE].any():
            dice[name] = None
        elif not held:
            wrong[name] = int(drawn)
    found = _distances(guess, truth, task, dice, spacing_mm, tolerance) if hd95 else {}
    far, near = ({name: pair[i] for name, pair in found.items()} for i in range(2))
    return CaseScore(case_id, dice, wrong, far, near, spacing_mm)


def joint_counts(guess: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """(256, 256): voxels by label value and predicted value. A part at a time: whole volumes fill memory."""
    table = np.zeros(VALUES * VALUES, dtype=np.int64)
    thickness = max(1, COUNTED_AT_ONCE // max(1, math.prod(truth.shape[1:])))
    for first in range(0, len(truth), thickness):
        some = slice(first, first + thickness)
        pairs = truth[some].astype(np.uint16) * VALUES + guess[some]
        table += np.bincount(pairs.ravel(), minlength=len(table))
    return table.reshape(VALUES, VALUES)


def _distances(
    guess: np.ndarray,
    truth: np.ndarray,
    task: TaskParams,
    dice: ByClass,
    spacing: tuple[float, ...] | None,
    tolerance: float,
) -> dict[str, tuple[float | None, float | None]]:
    """HD95 and surface Dice of each class that the label holds; of what was not predicted at all, the
    diagonal and 0."""
    out: dict[str, tuple[float | None, float | None]] = {}
    for value, name in foreground_names(task).items():
        out[name] = (None, None)
        if dice[name] is None:
            continue
        a, b = _cropped(guess, truth, value)
        if not a.any():
            out[name] = (surfaces.diagonal(truth.shape, spacing), 0.0)
            continue
        found = surfaces.distances(a, b, spacing)
        out[name] = (found.hd95, found.within(tolerance))
    return out


def _cropped(guess: np.ndarray, truth: np.ndarray, value: int) -> tuple[np.ndarray, np.ndarray]:
    """Both masks of a class, without ignored voxels, in the box that holds them."""
    a, b = guess == value, truth == value
    a &= truth != IGNORE
    box = surfaces.box_of(a | b)
    assert box is not None
    return a[box].copy(), b[box].copy()


def summarise(cases: Sequence[CaseScore], task: TaskParams) -> Scores:
    """Means over cases and classes, and how often each class was found."""
    names = foreground_names(task).values()
    one_unit = len({case.spacing_mm is None for case in cases}) == 1

    def means(of: Callable[[CaseScore, str], float | None]) -> dict[str, float | None]:
        return {name: mean_of(of(case, name) for case in cases) for name in names}

    def distance(of: Callable[[CaseScore, str], float | None]) -> dict[str, float | None]:
        return means(of) if one_unit else dict.fromkeys(names)

    per_class = means(lambda case, name: case.dice[name])
    return Scores(
        mean_of(per_class.values()),
        per_class,
        tuple(cases),
        distance(lambda case, name: case.hd95.get(name)),
        distance(lambda case, name: None if name in case.missed else case.hd95.get(name)),
        distance(lambda case, name: case.nsd.get(name)),
        means(lambda case, name: 0.0 if name in case.false_alarms else case.dice[name]),
        {name: _counts(cases, name) for name in names},
    )


def _counts(cases: Sequence[CaseScore], name: str) -> Counts:
    present = [case for case in cases if case.dice[name] is not None]
    others = [case for case in cases if name in case.false_positive_voxels]
    alarms = [case for case in others if name in case.false_alarms]
    missed = sum(name in case.missed for case in present)
    volumes = [case.false_positive_voxels[name] * (case.voxel_mm3 or math.nan) for case in alarms]
    whole = None if any(case.voxel_mm3 is None for case in cases) else float(sum(volumes))
    return Counts(
        len(present) + len(others),
        len(present),
        len(present) - missed,
        missed,
        len(others) - len(alarms),
        len(alarms),
        sum(case.false_positive_voxels[name] for case in alarms),
        whole,
    )


def mean_of(values: Iterable[float | None]) -> float | None:
    """The mean of what is not None; None where nothing is left."""
    known = [v for v in values if v is not None]
    return float(np.mean(known)) if known else None


def foreground_names(task: TaskParams) -> dict[int, str]:
    """Label value → name, without the background."""
    return {value: task.labels[value] for value in sorted(task.labels) if value != 0}
