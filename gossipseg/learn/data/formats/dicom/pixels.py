"""From stored values to intensities of one meaning: rescaled, larger is brighter, colours as RGB.

In the order of the standard (PS3.3 C.7.6.3, C.11.1): stored bits, palette or photometric interpretation,
modality LUT or rescale. The window for display (VOI LUT) is never applied.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import numpy as np

from gossipseg.errors import DataError
from gossipseg.learn.data.formats.dicom.base import first_item, quiet, tag_name, whole
from gossipseg.learn.data.formats.dicom.decode import load, stored_frames
from gossipseg.learn.data.formats.dicom.planes import Plane

GREY = ("MONOCHROME1", "MONOCHROME2")
PALETTE = "PALETTE COLOR"
COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
_QUANTITIES = ("CT", "PT")
_INTEGERS = (np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64)


def intensities(planes: Sequence[Plane], as_label: bool) -> Iterator[np.ndarray]:
    """Each plane's values, (rows, columns) or (rows, columns, 3), one plane in memory at a time.

    With `as_label` the values are names of structures: a palette's indices stay, nothing is inverted.
    Raises DataError.
    """
    for file, group in groupby(planes, key=lambda p: p.file):
        of_file = list(group)
        dataset = load(file)
        frames = stored_frames(dataset, file, [p.frame for p in of_file])
        for plane, (stored, photometric) in zip(of_file, frames, strict=True):
            yield _meaning(stored, photometric, plane, dataset, as_label)


def is_inverted(plane: Plane) -> bool:
    """Whether larger stored values are darker, and mean no quantity: then they are turned round.

    A CT's Hounsfield units and a PET's activity are what they are, however they are displayed.
    """
    if plane.text("PhotometricInterpretation") != "MONOCHROME1":
        return False
    return not (plane.text("Modality") in _QUANTITIES and plane.slope is not None)


def _meaning(stored: np.ndarray, photometric: str, plane: Plane, dataset: Any, as_label: bool) -> np.ndarray:
    if photometric == PALETTE and not as_label:
        return _palette(stored, plane, dataset)
    if photometric in GREY or photometric == PALETTE:
        return _grey(stored, plane, dataset, inverted=is_inverted(plane) and not as_label)
    if photometric in COLOUR and stored.ndim == 3:
        return stored
    raise DataError(
        f"cannot be brought to grey or RGB; known are {', '.join((*GREY, PALETTE, *COLOUR))}",
        file=plane.file,
        key=tag_name("PhotometricInterpretation"),
        value=photometric,
        remedy="Convert the image, or take the case out of the data list.",
    )


def _palette(stored: np.ndarray, plane: Plane, dataset: Any) -> np.ndarray:
    from pydicom.pixels import apply_color_lut

    try:
        with quiet():
            return np.asarray(apply_color_lut(stored, dataset))
    except Exception as e:
        raise DataError(
            f"the colours of the palette cannot be applied: {e}",
            file=plane.file,
            key=tag_name("RedPaletteColorLookupTableDescriptor"),
        ) from e


def _grey(stored: np.ndarray, plane: Plane, dataset: Any, inverted: bool) -> np.ndarray:
    if stored.dtype.kind not in "iu":
        return (-stored if inverted else stored).astype(np.float32)
    low, high = _stored_range(plane)
    if first_item(dataset, "ModalityLUTSequence", plane.file) is not None:
        return _modality_lut(stored, plane, dataset, inverted)
    slope = 1.0 if plane.slope is None else plane.slope
    intercept = 0.0 if plane.intercept is None else plane.intercept
    if slope == 0:
        raise DataError("must not be zero", file=plane.file, key=tag_name("RescaleSlope"), value=slope)
    values: np.ndarray = stored
    if inverted:
        values = (low + high) - stored.astype(np.int64)
    if slope != 1 or intercept != int(intercept):
        return (values * np.float64(slope) + np.float64(intercept)).astype(np.float32)
    if not inverted and intercept == 0:
        return stored.astype(_fitting(low, high, stored), copy=False)
    exact = values.astype(np.int64) + int(intercept)
    # The 16 bits that a CT is stored in nearly always suffice after its intercept, too.
    return exact.astype(_fitting(-(2**15), 2**15 - 1, exact))


def _fitting(low: int, high: int, values: np.ndarray) -> Any:
    """The smallest integer type for low … high, and for what is there."""
    low, high = min(low, int(values.min())), max(high, int(values.max()))
    return next((t for t in _INTEGERS if np.iinfo(t).min <= low and high <= np.iinfo(t).max), np.int64)


def _stored_range(plane: Plane) -> tuple[int, int]:
    bits = whole(plane.head, "BitsStored", plane.file, whole(plane.head, "BitsAllocated", plane.file))
    if whole(plane.head, "PixelRepresentation", plane.file, default=0):
        return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    return 0, 2**bits - 1


def _modality_lut(stored: np.ndarray, plane: Plane, dataset: Any, inverted: bool) -> np.ndarray:
    from pydicom.pixels import apply_modality_lut

    try:
        with quiet():
            values = np.asarray(apply_modality_lut(stored, dataset))
    except Exception as e:
        raise DataError(
            f"cannot be applied: {e}", file=plane.file, key=tag_name("ModalityLUTSequence")
        ) from e
    return np.iinfo(values.dtype).max - values if inverted else values


def joined(a: np.dtype[Any], b: np.dtype[Any]) -> np.dtype[Any]:
    """A type that holds both: the wider integer, or float32."""
    if a == b:
        return a
    if "f" in (a.kind, b.kind):
        return np.dtype(np.float32)
    return np.result_type(a, b)
