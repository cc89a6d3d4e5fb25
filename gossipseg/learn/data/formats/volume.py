"""An image as it is in its file: voxels, and where they lie."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Volume:
    """An image as it is in the file. `array`: (C, *spatial), `affine`: 4×4 to RAS mm, or None.

    `affine` maps the spatial indices, in the order of the array's axes: two-dimensional images that lie in a
    patient have (row, column, 0).
    """

    array: np.ndarray
    affine: np.ndarray | None
    placed: bool = True
    """False: the affine knows the voxel size alone, not where the image lies (an X-ray, a TIFF with a
    resolution)."""
    notes: tuple[str, ...] = ()
    """What the reader decided that its user should know, in words."""

    raster: bool = False
    """True: the axes are (row, column[, page]) of a picture as it is shown, not (i, j, k) of a scanner."""
    frame: str = ""
    """DICOM's frame of reference, within which positions of several files mean the same."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels per spatial axis."""
        return tuple(self.array.shape[1:])

    @property
    def spacing_mm(self) -> tuple[float, ...] | None:
        """Voxel size per spatial axis; None where the file has none."""
        return None if self.affine is None else spacing_of(self.affine, len(self.shape))


@dataclass(frozen=True, slots=True)
class Segment:
    """One structure that somebody drew."""

    number: int
    """As the file has it: segment or ROI number, or label value."""
    name: str
    mask: np.ndarray
    """(*spatial) bool."""


@dataclass(frozen=True, slots=True)
class Segmentation:
    """Structures that may overlap, each a mask on one grid (DICOM-SEG, RTSTRUCT, .seg.nrrd)."""

    segments: tuple[Segment, ...]
    shape: tuple[int, ...]
    """Voxels per spatial axis of every mask."""
    affine: np.ndarray | None
    """4×4 to RAS mm, as of a Volume."""
    notes: tuple[str, ...] = ()
    placed: bool = True
    """As of a Volume."""
    numbers_are_arbitrary: bool = False
    """Whether a segment's number says nothing of its class (RTSTRUCT: the order in which they were drawn)."""


def spacing_of(affine: np.ndarray, spatial_dims: int) -> tuple[float, ...]:
    """Voxel size in mm along each spatial axis of a 4×4 affine."""
    sizes = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    return tuple(float(s) for s in sizes[:spatial_dims])
