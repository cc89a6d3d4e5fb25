"""A table of cases, scored by the product and again by numpy and scipy straight from the definitions.

The definitions are those of docs/evidence/scores.md. Nothing of gossipseg is used on the right-hand side.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage

from gossipseg.learn.data.labels import IGNORE
from gossipseg.learn.evaluation.scoring import CaseScore, score_case, summarise
from gossipseg.learn.params import TaskParams

TASK = TaskParams("t", 1, {0: "none", 1: "organ", 2: "lesion", 5: "vessel"}, patch_size=(8, 8))
CLASSES = {1: "organ", 2: "lesion", 5: "vessel"}
TOLERANCE = 2.0


@dataclass(frozen=True)
class Made:
    """One case of the table."""

    label: np.ndarray
    predicted: np.ndarray
    spacing: tuple[float, ...] | None = None
    annotated: tuple[int, ...] | None = None


def drawn(shape: tuple[int, ...], *boxes: tuple[int, Sequence[int], Sequence[int]]) -> np.ndarray:
    """Boxes of (value, first corner, size), the later over the earlier."""
    out = np.zeros(shape, np.uint8)
    for value, low, size in boxes:
        out[tuple(slice(a, a + n) for a, n in zip(low, size, strict=True))] = value
    return out


def balls(seed: int, shape: tuple[int, ...], *, ignored: bool = False) -> np.ndarray:
    """A ball of each class, some of them cut off by the border."""
    rng = np.random.default_rng(seed)
    out = np.zeros(shape, np.uint8)
    for value in CLASSES:
        centre = [rng.uniform(0, n) for n in shape]
        at = sum((g - c) ** 2 for g, c in zip(np.ogrid[tuple(map(slice, shape))], centre, strict=True))
        out[at <= rng.uniform(1.5, 5.0) ** 2] = value
    if ignored:
        out[tuple(slice(0, n // 3) for n in shape)] = IGNORE
    return out


VOLUME, PICTURE = (14, 11, 9), (21, 17)
ANISOTROPIC = (0.7, 0.9, 3.0)
TABLE = {
    "one voxel apart": Made(
        drawn(PICTURE, (1, (4, 4), (5, 6))), drawn(PICTURE, (1, (5, 4), (5, 6))), (0.5, 0.5)
    ),
    "the same": Made(drawn(PICTURE, (1, (4, 4), (5, 6))), drawn(PICTURE, (1, (4, 4), (5, 6)))),
    "missed": Made(drawn(VOLUME, (2, (3, 3, 3), (2, 2, 2))), drawn(VOLUME), ANISOTROPIC),
    "beside it": Made(
        drawn(VOLUME, (2, (3, 3, 3), (2, 2, 2))), drawn(VOLUME, (2, (9, 8, 7), (2, 1, 1))), ANISOTROPIC
    ),
    "false alarm": Made(drawn(VOLUME), drawn(VOLUME, (5, (0, 0, 0), (3, 2, 2))), ANISOTROPIC),
    "both": Made(
        drawn(VOLUME, (1, (2, 2, 2), (6, 6, 5)), (2, (4, 4, 4), (2, 2, 1))),
        drawn(VOLUME, (1, (2, 2, 2), (7, 6, 5)), (5, (10, 8, 0), (2, 2, 2))),
        (1.0, 1.0, 2.5),
    ),
    "another false alarm": Made(
        drawn(VOLUME, (5, (2, 2, 2), (6, 6, 5)), (2, (9, 2, 2), (3, 3, 3))),
        drawn(VOLUME, (5, (3, 2, 2), (6, 6, 4)), (2, (9, 2, 3), (3, 3, 3)), (1, (13, 10, 8), (1, 1, 1))),
        (1.2, 0.8, 2.0),
    ),
    "empty": Made(drawn(VOLUME), drawn(VOLUME), ANISOTROPIC),
    "at the border": Made(
        drawn(VOLUME, (1, (0, 0, 0), (5, 11, 9))), drawn(VOLUME, (1, (0, 0, 0), (7, 11, 9))), ANISOTROPIC
    ),
    "one slice": Made(
        drawn((9, 9, 1), (1, (2, 2, 0), (4, 4, 1))), drawn((9, 9, 1), (1, (3, 2, 0), (4, 4, 1)))
    ),
    "a class exchanged": Made(
        drawn(VOLUME, (1, (2, 2, 2), (6, 6, 5))), drawn(VOLUME, (2, (2, 2, 2), (6, 6, 5))), ANISOTROPIC
    ),
    "ignored": Made(
        drawn(VOLUME, (1, (2, 2, 2), (6, 6, 5)), (IGNORE, (0, 0, 0), (4, 11, 9))),
        drawn(VOLUME, (1, (0, 2, 2), (7, 6, 5)), (2, (0, 0, 0), (2, 2, 2))),
        ANISOTROPIC,
    ),
    "ignored all of it": Made(np.full(VOLUME, IGNORE, np.uint8), drawn(VOLUME, (1, (0, 0, 0), (2, 2, 2)))),
    "not annotated": Made(
        drawn(VOLUME, (1, (2, 2, 2), (6, 6, 5))),
        drawn(VOLUME, (1, (2, 2, 2), (6, 5, 5)), (2, (0, 0, 0), (2, 2, 2))),
        ANISOTROPIC,
        (1, 5),
    ),
    **{
        f"balls {seed} in {len(shape)}-D, {spacing}": Made(
            balls(seed, shape, ignored=seed % 3 == 0),
            balls(seed + 50, shape) if seed % 2 else np.roll(balls(seed, shape), 1, axis=0),
            spacing,
        )
        for seed in range(6)
        for shape, spacing in ((PICTURE, (0.4, 1.1)), (VOLUME, ANISOTROPIC), (VOLUME, None))
    },
}


# ---------------------------------------------------------------- from the definitions


def expected(case: Made) -> dict[str, dict[str, Any]]:
    """By class: what docs/evidence/scores.md says."""
    known = case.label != IGNORE
    out: dict[str, dict[str, Any]] = {}
    for value, name in CLASSES.items():
        truth, guess = known & (case.label == value), known & (case.predicted == value)
        row: dict[str, Any] = {"dice": None, "hd95": None, "nsd": None, "wrong": None}
        if not known.any() or (case.annotated is not None and value not in case.annotated):
            pass
        elif not truth.any():
            row["wrong"] = int(guess.sum())
        else:
            row["dice"] = 2 * (truth & guess).sum() / (truth.sum() + guess.sum())
            row["hd95"], row["nsd"] = by_surfaces(truth, guess, case.spacing)
        out[name] = row
    return out


def by_surfaces(
    truth: np.ndarray, guess: np.ndarray, spacing: tuple[float, ...] | None
) -> tuple[float, float]:
    sizes = spacing or (1.0,) * truth.ndim
    if not guess.any():
        return math.sqrt(sum((n * s) ** 2 for n, s in zip(truth.shape, sizes, strict=True))), 0.0
    edges = [mask & ~ndimage.binary_erosion(mask, border_value=0) for mask in (truth, guess)]
    fields = [ndimage.distance_transform_edt(~edge, sampling=sizes) for edge in edges]
    there, back = fields[1][edges[0]], fields[0][edges[1]]
    hd95 = max(np.percentile(there, 95), np.percentile(back, 95))
    near = (there <= TOLERANCE + 1e-6).sum() + (back <= TOLERANCE + 1e-6).sum()
    return float(hd95), near / (len(there) + len(back))


# ---------------------------------------------------------------- both


def scored(name: str) -> CaseScore:
    case = TABLE[name]
    label, predicted = torch.from_numpy(case.label), torch.from_numpy(case.predicted)
    options: dict[str, Any] = {"spacing_mm": case.spacing, "annotated": case.annotated}
    return score_case(name, predicted, label, TASK, hd95=True, tolerance=TOLERANCE, **options)


@pytest.mark.parametrize("name", TABLE)
def test_every_case_is_what_the_definitions_say(name: str) -> None:
    found, wanted = scored(name), expected(TABLE[name])
    for label, row in wanted.items():
        got = {"dice": found.dice[label], "hd95": found.hd95[label], "nsd": found.nsd[label]}
        assert got == {k: None if row[k] is None else pytest.approx(row[k], rel=1e-5) for k in got}, label
        assert found.false_positive_voxels.get(label) == row["wrong"], label
    held = [row["dice"] for row in wanted.values() if row["dice"] is not None]
    assert found.mean == (pytest.approx(np.mean(held)) if held else None)


def test_the_split_is_what_its_cases_come_to() -> None:
    names = [name for name, case in TABLE.items() if case.spacing is not None and case.label.ndim == 3]
    scores, rows = summarise([scored(n) for n in names], TASK), [expected(TABLE[n]) for n in names]
    voxel_mm3 = [math.prod(TABLE[n].spacing or ()) for n in names]
    for label in CLASSES.values():
        mine = [row[label] for row in rows]
        present = [r for r in mine if r["dice"] is not None]
        alarms = [(r["wrong"], v) for r, v in zip(mine, voxel_mm3, strict=True) if r["wrong"]]
        found = [r for r in present if r["dice"] > 0]
        counts = scores.counts[label]
        negatives = sum(r["wrong"] == 0 for r in mine)
        assert counts.cases == len(present) + len(alarms) + negatives
        assert (counts.present, counts.detected) == (len(present), len(found))
        assert (counts.missed, counts.true_negatives) == (len(present) - len(found), negatives)
        assert (counts.false_alarms, counts.false_alarm_voxels) == (len(alarms), sum(w for w, _ in alarms))
        assert counts.false_alarm_mm3 == pytest.approx(sum(w * v for w, v in alarms))
        dice = [r["dice"] for r in present]
        assert scores.per_class[label] == pytest.approx(np.mean(dice))
        assert scores.with_false_alarms[label] == pytest.approx(np.mean(dice + [0.0] * len(alarms)))
        assert scores.nsd[label] == pytest.approx(np.mean([r["nsd"] for r in present]))
        assert scores.hd95[label] == pytest.approx(np.mean([r["hd95"] for r in present]))
        assert scores.hd95_without_missed[label] == pytest.approx(np.mean([r["hd95"] for r in found]))
    assert scores.mean == pytest.approx(np.mean([scores.per_class[n] for n in CLASSES.values()]))


def test_the_table_holds_every_kind() -> None:
    """So that nothing above is true of nothing."""
    rows = [row[label] for row in map(expected, TABLE.values()) for label in CLASSES.values()]
    assert sum(r["dice"] == 0 for r in rows) > 3 and sum((r["dice"] or 0) > 0 for r in rows) > 10
    assert sum(bool(r["wrong"]) for r in rows) > 3 and sum(r["wrong"] == 0 for r in rows) > 3


def test_distances_in_mm_and_in_pixels_have_no_common_mean() -> None:
    scores = summarise([scored("the same"), scored("one voxel apart")], TASK)
    assert scores.hd95["organ"] is None and scores.nsd["organ"] is None and scores.mean is not None
    assert scores.counts["organ"].false_alarm_mm3 is None
