"""Planes: the two-dimensional frames that DICOM files hold, each with its place and its rescale.

A classic file holds one plane, an enhanced multi-frame file many, described by functional groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gossipseg.errors import DataError
from gossipseg.learn.data.formats.dicom.base import (
    first_item,
    floats,
    items,
    number,
    read_dataset,
    tag_name,
    text,
    whole,
)

DISTINGUISHING = (
    "EchoTime",
    "EffectiveEchoTime",
    "EchoNumbers",
    "DiffusionBValue",
    "DiffusionGradientOrientation",
    "TemporalPositionIdentifier",
    "TemporalPositionIndex",
    "TemporalPositionTimeOffset",
    "NominalPercentageOfCardiacPhase",
    "NominalCardiacTriggerDelayTime",
    "TriggerTime",
    "FrameReferenceTime",
    "InversionTime",
    "FlipAngle",
    "StackID",
    "FrameType",
    "ComplexImageComponent",
    "ImageType",
    "ConvolutionKernel",
    "KVP",
    "AcquisitionNumber",
    "AcquisitionTime",
    "ContentTime",
    "InStackPositionNumber",
    "InstanceNumber",
    "SOPInstanceUID",
)
"""What tells apart two images of one place, the most telling first."""

HEAD = (
    *DISTINGUISHING,
    "SOPClassUID",
    "SeriesInstanceUID",
    "SeriesDescription",
    "SeriesNumber",
    "FrameOfReferenceUID",
    "Modality",
    "Units",
    "RescaleType",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "RescaleSlope",
    "RescaleIntercept",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "ImagerPixelSpacing",
    "NominalScannedPixelSpacing",
    "SpacingBetweenSlices",
    "SliceThickness",
    "SequenceOfUltrasoundRegions",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
)

_MOST_FRAMES = 100_000
_ORTHONORMAL = 2e-3
"""How far direction cosines may be from unit length and right angles: files round them to three digits."""


@dataclass(frozen=True, slots=True)
class Plane:
    """One frame. Positions and directions are DICOM's own: LPS, in mm."""

    file: Path
    frame: int | None
    """Index of the frame in a multi-frame file, else None."""
    head: Any
    groups: tuple[Any, ...]
    """Where the frame's values are looked up: its functional groups, the shared ones, the file."""
    position: np.ndarray | None
    orientation: np.ndarray | None
    """2×3: direction of growing columns (along a row), direction of growing rows."""
    spacing: tuple[float, float] | None
    """mm between rows, mm between columns."""
    slope: float | None
    intercept: float | None

    @property
    def label(self) -> str:
        """The frame as a message names it."""
        name = "/".join(self.file.parts[-2:])  # archives number the files of each folder anew
        return name if self.frame is None else f"{name} frame {self.frame + 1}"

    @property
    def size(self) -> tuple[int, int]:
        """Rows, columns."""
        return whole(self.head, "Rows", self.file), whole(self.head, "Columns", self.file)

    def text(self, keyword: str) -> str:
        """A value of the frame as text; "" where it has none."""
        for group in self.groups:
            if found := text(group, keyword, self.file):
                return found
        return ""

    def number(self, keyword: str) -> float | None:
        """A number of the frame; None where it has none."""
        found = (number(group, keyword, self.file) for group in self.groups)
        return next((v for v in found if v is not None), None)


def read_head(file: Path) -> Any:
    """What of a file is needed to place and tell apart its planes. Raises DataError."""
    return read_dataset(file, HEAD)


def planes_of(file: Path, head: Any) -> list[Plane]:
    """The planes of one file, in its order. Raises DataError for what is malformed."""
    frames = whole(head, "NumberOfFrames", file, default=1)
    if not 0 < frames <= _MOST_FRAMES:
        raise DataError("cannot be", file=file, key=tag_name("NumberOfFrames"), value=frames)
    per_frame = items(head, "PerFrameFunctionalGroupsSequence", file)
    if not per_frame:
        single = frames == 1
        return [_plane(file, head, None if single else k, [head], placed=single) for k in range(frames)]
    if len(per_frame) != frames:
        raise DataError(
            f"has {len(per_frame)} items for {frames} frames",
            file=file,
            key=tag_name("PerFrameFunctionalGroupsSequence"),
            remedy="Export the series again.",
        )
    shared = _flat(first_item(head, "SharedFunctionalGroupsSequence", file), file)
    return [_plane(file, head, k, [*_flat(g, file), *shared, head]) for k, g in enumerate(per_frame)]


def _flat(group: Any, file: Path) -> list[Any]:
    """The items of the sequences in a functional group (each holds one)."""
    if group is None:
        return []
    found = [first_item(group, e.keyword, file) for e in group if e.VR == "SQ" and e.keyword]
    return [item for item in found if item is not None]


def _plane(file: Path, head: Any, frame: int | None, groups: list[Any], placed: bool = True) -> Plane:
    def numbers(keyword: str, count: int) -> tuple[float, ...] | None:
        found = (floats(g, keyword, count, file) for g in groups)
        return next((v for v in found if v is not None), None)

    # Without functional groups, a position holds for one frame, and that of the others is unknown.
    position = numbers("ImagePositionPatient", 3) if placed else None
    orientation = numbers("ImageOrientationPatient", 6) if placed else None
    slope, intercept = numbers("RescaleSlope", 1), numbers("RescaleIntercept", 1)
    return Plane(
        file,
        frame,
        head,
        tuple(groups),
        None if position is None else np.array(position),
        None if orientation is None else directions(orientation, file),
        positive_pair(numbers("PixelSpacing", 2), "PixelSpacing", file),
        slope[0] if slope else None,
        intercept[0] if intercept else None,
    )


def directions(cosines: tuple[float, ...], file: Path) -> np.ndarray:
    """ImageOrientationPatient → 2×3, of unit length. Raises DataError where it is no orientation."""
    found = np.array(cosines).reshape(2, 3)
    lengths = np.linalg.norm(found, axis=1)
    if np.abs(lengths - 1).max() > _ORTHONORMAL or abs(float(found[0] @ found[1])) > _ORTHONORMAL:
        raise DataError(
            "must be two directions of length 1 at right angles",
            file=file,
            key=tag_name("ImageOrientationPatient"),
            value=list(cosines),
            remedy="Export the series again.",
        )
    unit: np.ndarray = found / lengths[:, None]
    return unit


def positive_pair(found: tuple[float, ...] | None, keyword: str, file: Path) -> tuple[float, float] | None:
    """Row and column spacing in mm. Raises DataError where they are not positive."""
    if found is None:
        return None
    if min(found) <= 0:
        raise DataError("must be positive", file=file, key=tag_name(keyword), value=list(found))
    return found[0], found[1]


def normal_of(orientation: np.ndarray) -> np.ndarray:
    """The direction in which slices are stacked, LPS."""
    return np.cross(orientation[0], orientation[1])


def differing(planes: list[Plane], root: Path) -> str:
    """In which attribute planes of one place differ, as "EchoTime: 10, 80"; "" where in none."""
    for keyword in DISTINGUISHING:
        values = dict.fromkeys(p.text(keyword) for p in planes)
        if len(values) > 1:
            shown = [v or "none" for v in list(values)[:6]]
            return f"{tag_name(keyword)}: {', '.join(shown)}{', …' if len(values) > 6 else ''}"
    return ""
