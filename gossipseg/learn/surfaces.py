"""Distances between the surfaces of two masks: HD95 and surface Dice, as MONAI defines them.

What belongs here: the geometry of masks, in numpy and scipy. What must not: classes, cases, means.

A surface is made of the mask's voxels that have a face next to a voxel outside of it; beyond the image's
border lies background. Its distances are those from each of its voxels to the nearest one of the other
surface, between the voxels' centres. Both as in monai.metrics (compute_hausdorff_distance with percentile 95,
compute_surface_dice without sub-voxels).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

TREE_VOXELS = 3_000_000
"""With more surface than this (noise, not an organ) a distance transform takes less memory than a tree."""

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
    """Of two masks (*spatial) bool, neither of which is empty. `spacing`: voxel size; None is 1."""
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
    dense = max(np.count_nonzero(apart), np.count_nonzero(to)) > TREE_VOXELS
    found[apart[of]] = _by_transform(apart, to, spacing) if dense else _by_tree(apart, to, spacing)
    return found


def _by_tree(of: np.ndarray, to: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    tree = cKDTree(np.argwhere(to) * spacing, balanced_tree=False, compact_nodes=False)
    found: np.ndarray = tree.query(np.argwhere(of) * spacing)[0]
    return found


def _by_transform(of: np.ndarray, to: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Indices of the nearest voxel alone: the transform's distances would take three times the memory."""
    nearest = ndimage.distance_transform_edt(
        ~to, sampling=spacing, return_distances=False, return_indices=True
    )
    squares = np.zeros(np.count_nonzero(of))
    for axis, (size, where) in enumerate(zip(spacing, np.nonzero(of), strict=True)):
        squares += ((nearest[axis][of] - where) * size) ** 2
    return np.sqrt(squares)


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
