"""Distances between the surfaces of two masks: HD95 and surface Dice, as MONAI defines them.

A surface is made of the mask's voxels that have a face next to a voxel outside of it; beyond the image's
border lies background. Its distances are those from each of its voxels to the nearest one of the other
surface, between the voxels' centres. Both as in monai.metrics (compute_hausdorff_distance with percentile 95,
compute_surface_dice without sub-voxels).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

AT_ONCE = 1_000_000
"""Voxels of a surface that are looked up, or looked among, at once: noise has more than memory holds."""

Box = tuple[slice, ...]


@dataclass(frozen=True, slots=True)
class Distances:
    """From each voxel of one surface to the other, both ways round; float32, in the unit of the spacing."""

    predicted: np.ndarray
    label: np.ndarray

    @property
    def hd95(self) -> float:
        """The larger of both 95th percentiles."""
        return float(max(np.percentile(each, 95) for each in (self.predicted, self.label)))

    def within(self, tolerance: float) -> float:
        """Surface Dice (NSD): the share of both surfaces that lies within `tolerance` of the other."""
        near = sum(np.count_nonzero(each <= np.float32(tolerance)) for each in (self.predicted, self.label))
        return float(near / (len(self.predicted) + len(self.label)))


def distances(predicted: np.ndarray, label: np.ndarray, spacing: Sequence[float] | None = None) -> Distances:
    """Distances between two masks (*spatial) bool, neither empty. `spacing`: voxel size; None is 1."""
    a, b = surface(predicted), surface(label)
    sizes = np.ones(a.ndim) if spacing is None else np.asarray(spacing, dtype=np.float64)
    return Distances(_nearest(a, b, sizes), _nearest(b, a, sizes))


def surface(mask: np.ndarray) -> np.ndarray:
    """The voxels of a mask that have a face next to a voxel outside of it, or to the image's border."""
    inside = mask.copy()
    for axis in range(mask.ndim):
        to, other = np.moveaxis(inside, axis, 0), np.moveaxis(mask, axis, 0)
        to[1:] &= other[:-1]
        to[:-1] &= other[1:]
        to[0] = to[-1] = False
    inside ^= mask
    return inside


def _nearest(of: np.ndarray, to: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Distance of each voxel of a surface to the nearest one of another; nothing where both share it."""
    apart = of & ~to
    found = np.zeros(np.count_nonzero(of), dtype=np.float32)
    if not apart.any():
        return found
    found[apart[of]] = np.concatenate([*_by_slabs(apart, to, spacing)])
    return found


def _by_slabs(of: np.ndarray, to: np.ndarray, spacing: np.ndarray) -> Iterator[np.ndarray]:
    """A part of the distances at a time, in the order of the voxels of `of`.

    Of a surface that is too large a sample tells how far away at most the nearest voxel is, and all voxels
    within that reach of the slab tell which it is.
    """
    total = int(np.count_nonzero(to))
    sample = np.flatnonzero(to)[:: -(-total // AT_ONCE)]
    coarse = _tree(np.stack(np.unravel_index(sample, to.shape), axis=1) * spacing)
    parts = min(len(of), -(-int(np.count_nonzero(of)) // AT_ONCE))
    for k in range(parts):
        rows = slice(k * len(of) // parts, (k + 1) * len(of) // parts)
        points = _points(of, (rows,), spacing)
        found: np.ndarray = coarse.query(points)[0] if len(points) else np.zeros(0)
        if len(points) and len(sample) < total:
            low = np.floor((points.min(axis=0) - found.max()) / spacing).astype(int).clip(min=0)
            high = np.ceil((points.max(axis=0) + found.max()) / spacing).astype(int) + 1
            near = _points(to, tuple(map(slice, low, high)), spacing)
            found = _tree(near).query(points)[0]
        yield found


def _points(mask: np.ndarray, box: Box, spacing: np.ndarray) -> np.ndarray:
    """Where the voxels of a part of a mask lie."""
    found = np.argwhere(mask[box])
    for axis, part in enumerate(box):
        found[:, axis] += part.start
    points: np.ndarray = found * spacing
    return points


def _tree(points: np.ndarray) -> cKDTree:
    return cKDTree(points, balanced_tree=False, compact_nodes=False)


def diagonal(shape: Sequence[int], spacing: Sequence[float] | None = None) -> float:
    """From one corner of an image to the opposite one, in the unit of the spacing."""
    return math.hypot(*(n * size for n, size in zip(shape, spacing or (1.0,) * len(shape), strict=True)))


def box_of(mask: np.ndarray) -> Box | None:
    """The smallest box that holds a mask; None for an empty one."""
    box = []
    for axis in range(mask.ndim):
        held = np.flatnonzero(mask.any(axis=tuple(a for a in range(mask.ndim) if a != axis)))
        if not len(held):
            return None
        box.append(slice(int(held[0]), int(held[-1]) + 1))
    return tuple(box)
