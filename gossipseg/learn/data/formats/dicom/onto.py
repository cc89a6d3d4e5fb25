"""Frames and points in patient coordinates, onto the indices of an image's grid."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gossipseg.errors import DataError
from gossipseg.learn.data.formats.volume import Volume

TOLERANCE_VOXELS = 0.1
"""How far a frame's pixels may lie from the voxels they are put into: files round positions."""

FEW_SLICES = 3
"""Number of slices up to which nobody can tell whether those between them were left out."""

_LPS_TO_RAS = np.array([-1.0, -1.0, 1.0])


@dataclass(frozen=True, slots=True)
class PatientGrid:
    """An image's grid with three axes; that of a 2-D image has one slice."""

    shape: tuple[int, int, int]
    to_index: np.ndarray
    """4×4 from LPS mm to indices."""
    words: str
    """The grid as a message names it."""


def grid_of(image: Volume, file: Path) -> PatientGrid:
    """The image's grid. Raises DataError where the image has no place in the patient."""
    if image.affine is None or not image.placed:
        raise DataError(
            "gives positions in the patient, and the image has none",
            file=file,
            remedy="Use the image's DICOM files, or a label without positions (PNG, NIfTI).",
        )
    shape = (*image.shape, 1, 1)[:3]
    to_index = np.linalg.inv(image.affine) @ np.diag([*_LPS_TO_RAS, 1.0])
    spacing = "×".join(f"{s:.4g}" for s in image.spacing_mm or ())
    corner = ", ".join(f"{v:.4g}" for v in image.affine[:3, 3] * _LPS_TO_RAS)
    size = "×".join(str(n) for n in image.shape)
    words = f"the image's grid: {size} voxels of {spacing} mm, the first at ({corner}) mm LPS"
    return PatientGrid((shape[0], shape[1], shape[2]), to_index, words)


def indices(points: np.ndarray, grid: PatientGrid) -> np.ndarray:
    """Points (n, 3) in LPS mm → fractional indices (n, 3)."""
    found: np.ndarray = points @ grid.to_index[:3, :3].T + grid.to_index[:3, 3]
    return found


@dataclass(frozen=True, slots=True)
class Target:
    """Where a frame's pixels go: the slice, and per frame axis (row, column) the image axis and indices."""

    normal_axis: int
    slice: int
    axes: tuple[int, int]
    places: tuple[np.ndarray, np.ndarray]


def target(
    position: np.ndarray,
    orientation: np.ndarray,
    spacing: tuple[float, float],
    size: tuple[int, int],
    grid: PatientGrid,
    file: Path,
    name: str,
) -> Target:
    """Match a frame (LPS, mm; size in rows, columns) with voxels of the image, one to one.

    Raises DataError with both grids where its pixels are not the image's voxels.
    """
    linear = grid.to_index[:3, :3]
    steps = np.stack([linear @ (orientation[1] * spacing[0]), linear @ (orientation[0] * spacing[1])])
    start = indices(position[None], grid)[0]
    axes = np.abs(steps).argmax(axis=1)
    signs = np.sign(steps[[0, 1], axes])
    exact = np.zeros_like(steps)
    exact[[0, 1], axes] = signs
    drift = (np.abs(steps - exact) * (np.array(size)[:, None] - 1)).sum(axis=0)
    apart = float((np.abs(start - np.round(start)) + drift).max())
    if axes[0] == axes[1] or apart > TOLERANCE_VOXELS:
        raise DataError(
            f"{name} does not lie on the image's voxels (up to {apart:.2f} voxels beside them): {size[0]}×"
            f"{size[1]} pixels of {spacing[0]:.4g}×{spacing[1]:.4g} mm, the first at "
            f"({', '.join(f'{v:.4g}' for v in position)}) mm LPS; {grid.words}, where that is index "
            f"({', '.join(f'{v:.2f}' for v in start)})",
            file=file,
            remedy="Name the image that it was drawn on, or resample the label onto the image's grid.",
        )
    first = np.round(start).astype(int)
    normal_axis = 3 - int(axes[0]) - int(axes[1])
    places = [first[a] + int(s) * np.arange(n) for a, s, n in zip(axes, signs, size, strict=True)]
    return Target(normal_axis, int(first[normal_axis]), (int(axes[0]), int(axes[1])), (places[0], places[1]))


def put(mask: np.ndarray, frame: np.ndarray, where: Target) -> int:
    """Add a frame's pixels to a mask (three axes); returns how many lie outside of it.

    Only the part that is set is written: pages of a mask that stay empty take no memory.
    """
    rows, columns = np.nonzero(frame)
    index = [np.full(rows.shape, where.slice)] * 3
    index[where.axes[0]] = where.places[0][rows]
    index[where.axes[1]] = where.places[1][columns]
    fits = np.ones(rows.shape, bool)
    for axis in range(3):
        fits &= (index[axis] >= 0) & (index[axis] < mask.shape[axis])
    mask[tuple(i[fits] for i in index)] = True
    return int((~fits).sum())


def empty_mask(grid: PatientGrid) -> np.ndarray:
    """A mask with three axes whose slices lie one after the other in memory."""
    return np.zeros(grid.shape[::-1], bool).transpose(2, 1, 0)


def left_out(slices: Collection[int], file: Path) -> tuple[str, ...]:
    """What to say of a label that is drawn on every second (third …) of its image's slices alone."""
    drawn = sorted(set(slices))
    step = math.gcd(*(b - a for a, b in itertools.pairwise(drawn)))
    if len(drawn) < FEW_SLICES or step < 2:
        return ()
    return (
        f"{file.name}: is drawn on one slice in {step} alone ({len(drawn)} slices from {drawn[0]} to "
        f"{drawn[-1]}, counted from 0), between them is background: was it drawn on thicker slices?",
    )
