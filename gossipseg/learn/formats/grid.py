"""Bringing a label onto the grid of its image, exactly or not at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gossipseg.errors import DataError
from gossipseg.learn.formats.volume import Volume, spacing_of

TOLERANCE_VOXELS = 0.25
"""How far the corners of two grids may lie apart and still be one grid."""


def onto_image(
    array: np.ndarray, affine: np.ndarray | None, image: Volume, file: Path, image_file: Path
) -> np.ndarray:
    """A label (n, *spatial) on its own grid → the same values on the image's grid. Raises DataError."""
    if image.shape != array.shape[1:]:
        raise DataError(
            f"the shape differs from its image's {image.shape} ({image_file.name})",
            file=file,
            key="shape",
            value=array.shape[1:],
            remedy="Image and label must lie on the same grid; resample the label, or correct the data list.",
        )
    if image.affine is None or affine is None:
        return array
    apart = _corner_distance_voxels(image, affine)
    if apart > TOLERANCE_VOXELS:
        raise DataError(
            f"the affine differs from its image's ({image_file.name}, spacing "
            f"{_mm(image.spacing_mm)} mm): the corners lie up to {apart:.1f} voxels apart",
            file=file,
            key="spacing_mm",
            value=_mm(spacing_of(affine, len(image.shape))),
            remedy="Resample the label onto the image's grid, or copy its header if only that is wrong.",
        )
    return array


def _corner_distance_voxels(a: Volume, affine: np.ndarray) -> float:
    assert a.affine is not None
    ends = [(0, n - 1) for n in a.shape] + [(0, 0)] * (3 - len(a.shape))
    corners = np.array(np.meshgrid(*ends)).reshape(3, -1)
    corners = np.vstack([corners, np.ones(corners.shape[1])])
    distance_mm = np.linalg.norm(((a.affine - affine) @ corners)[:3], axis=0).max()
    return float(distance_mm / min(a.spacing_mm or (1.0,)))


def _mm(spacing: tuple[float, ...] | None) -> str:
    return "×".join(f"{s:g}" for s in spacing or ())
