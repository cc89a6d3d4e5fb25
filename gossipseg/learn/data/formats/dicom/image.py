"""DICOM images: a series of slices as a volume, a single image as a picture.

Volumes have the axes (column, row, slice); slices grow along the normal of ImageOrientationPatient. Images of
a two-dimensional task have (row, column), as pictures do, so that a mask drawn on the exported picture fits.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gossipseg.errors import DataError
from gossipseg.learn.data.formats.dicom.base import floats, items, number, reading, whole
from gossipseg.learn.data.formats.dicom.files import is_dicom
from gossipseg.learn.data.formats.dicom.pixels import intensities, is_inverted, joined
from gossipseg.learn.data.formats.dicom.planes import Plane, positive_pair
from gossipseg.learn.data.formats.dicom.series import read_series
from gossipseg.learn.data.formats.dicom.stack import plane_affine, stack
from gossipseg.learn.data.formats.volume import Volume

__all__ = ["is_dicom", "read_dicom"]

FRAME = "FrameOfReferenceUID"
_CENTIMETRE = 3
"""PhysicalUnitsXDirection of an ultrasound region that is measured in cm."""


def read_dicom(path: Path, spatial_dims: int, as_label: bool = False) -> Volume:
    """Read a DICOM file, or a folder that holds one series, nested folders included.

    `as_label`: the values name structures; palettes and MONOCHROME1 are left as they are stored.
    Raises DataError for what is not one image, LocalError where pydicom is not installed.
    """
    with reading(path):
        return _read(path, spatial_dims, as_label)


def _read(path: Path, spatial_dims: int, as_label: bool) -> Volume:
    series = read_series(path, spatial_dims)
    if spatial_dims == 2:
        return _picture(path, series.planes, series.notes, as_label)
    if not path.is_dir() and len(series.planes) == 1:
        raise DataError(
            "is one slice of a series, the task has 3 spatial dimensions",
            file=path,
            remedy="Name the folder of the series instead.",
        )
    stacked = stack(series.planes, path)
    array = _fill(stacked.planes, as_label)
    notes = (*series.notes, *stacked.notes, *_notes_on_values(stacked.planes, as_label))
    # (slice, row, column[, 3]) in memory, as it was read; the axes are turned without a copy.
    axes = (3, 2, 1, 0) if array.ndim == 4 else (2, 1, 0)
    array = array.transpose(axes)
    frame = stacked.planes[0].text(FRAME)
    return Volume(array if len(axes) == 4 else array[None], stacked.affine, notes=notes, frame=frame)


def _picture(path: Path, planes: Sequence[Plane], notes: tuple[str, ...], as_label: bool) -> Volume:
    if len(planes) != 1:
        raise DataError(
            f"holds {len(planes)} frames, a two-dimensional task has one per image",
            file=path,
            key="frames",
            remedy="Save the frames one by one, or take slices of a volume with task.slice_axis.",
        )
    plane = planes[0]
    array = _fill(planes, as_label)[0]
    array = np.moveaxis(array, -1, 0) if array.ndim == 3 else array[None]
    notes += _notes_on_values(planes, as_label)
    affine = plane_affine(plane)
    if affine is not None:
        return Volume(np.ascontiguousarray(array), affine, notes=notes, frame=plane.text(FRAME))
    spacing, source = _flat_spacing(plane)
    affine = None if spacing is None else np.diag([*spacing, 1.0, 1.0])
    if source:
        notes += (source,)
    return Volume(np.ascontiguousarray(array), affine, placed=False, notes=notes)


def _fill(planes: Sequence[Plane], as_label: bool) -> np.ndarray:
    """All planes in one array, (plane, row, column) or (plane, row, column, 3)."""
    whole_array: np.ndarray | None = None
    for k, values in enumerate(intensities(planes, as_label)):
        if whole_array is None:
            whole_array = np.empty((len(planes), *values.shape), values.dtype)
        if values.shape != whole_array.shape[1:]:
            raise DataError(
                f"has the shape {values.shape}, that of the first slice is {whole_array.shape[1:]}",
                file=planes[k].file,
            )
        wanted = joined(whole_array.dtype, values.dtype)
        if wanted != whole_array.dtype:
            whole_array = whole_array.astype(wanted)
        whole_array[k] = values
    assert whole_array is not None
    return whole_array


def _notes_on_values(planes: Sequence[Plane], as_label: bool) -> tuple[str, ...]:
    if planes[0].text("PhotometricInterpretation") != "MONOCHROME1" or as_label:
        return ()
    if is_inverted(planes[0]):
        return ("MONOCHROME1: the values were turned round, so that larger is brighter",)
    return ("MONOCHROME1: the values are a quantity and were left as they are",)


def _flat_spacing(plane: Plane) -> tuple[tuple[float, float] | None, str]:
    """Pixel size in mm (rows, columns) of an image without a position, and where it is from."""
    if plane.spacing is not None:
        return plane.spacing, ""
    for keyword in ("ImagerPixelSpacing", "NominalScannedPixelSpacing"):
        found = positive_pair(floats(plane.head, keyword, 2, plane.file), keyword, plane.file)
        if found is not None:
            return found, f"the pixel size is {keyword}"
    return _ultrasound_spacing(plane)


def _ultrasound_spacing(plane: Plane) -> tuple[tuple[float, float] | None, str]:
    regions = items(plane.head, "SequenceOfUltrasoundRegions", plane.file)
    if len(regions) != 1:
        return None, f"{len(regions)} ultrasound regions: no pixel size" if regions else ""
    region = regions[0]
    units = {whole(region, f"PhysicalUnits{a}Direction", plane.file, default=0) for a in "XY"}
    deltas = [number(region, f"PhysicalDelta{a}", plane.file) for a in "YX"]
    if units != {_CENTIMETRE} or None in deltas:
        return None, "the ultrasound region is not measured in cm: no pixel size"
    millimetres = tuple(abs(d) * 10 for d in deltas if d is not None)
    return positive_pair(
        millimetres, "PhysicalDeltaX", plane.file
    ), "the pixel size is the ultrasound region's"
