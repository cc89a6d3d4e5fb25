"""DICOM-SEG: frames of segments in any order, empty ones left out, put where their positions say."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from gossipseg.errors import DataError
from gossipseg.learn.data.formats.dicom.base import items, number, tag_name, text, value, whole
from gossipseg.learn.data.formats.dicom.decode import refuse_wrong_length, stored_frames, syntax_of
from gossipseg.learn.data.formats.dicom.onto import PatientGrid, empty_mask, grid_of, left_out, put, target
from gossipseg.learn.data.formats.dicom.planes import Plane, planes_of
from gossipseg.learn.data.formats.volume import Segment, Volume


def seg_segments(dataset: Any, file: Path, image: Volume) -> tuple[tuple[Segment, ...], tuple[str, ...]]:
    """The segments of a DICOM-SEG on the image's grid, and notes. Raises DataError."""
    names = _names(dataset, file)
    planes = planes_of(file, dataset)
    if value(dataset, "PerFrameFunctionalGroupsSequence", file) is None:
        raise DataError(
            "is missing: it does not say which segment a frame shows",
            file=file,
            key=tag_name("PerFrameFunctionalGroupsSequence"),
        )
    if all(p.position is None for p in planes):
        return _flat(dataset, file, planes, names, image)
    grid = grid_of(image, file)
    masks: dict[int, np.ndarray] = {n: empty_mask(grid) for n in names}
    taken: dict[tuple[object, ...], str] = {}
    outside, drawn = 0, set()
    for plane, segment, frame in _frames(dataset, file, planes, names):
        where = _place(plane, grid, file)
        key = (segment, where.normal_axis, where.slice)
        if taken.setdefault(key, plane.label) != plane.label:
            raise DataError(
                f"{taken[key]} and {plane.label} show segment {segment} at one position",
                file=file,
                remedy="It holds several time points or overlapping parts; split it.",
            )
        outside += put(masks[segment], frame, where)
        if frame.any():
            drawn.add(where.slice)
    if outside:
        raise DataError(
            f"{outside} voxels of its segments lie outside the image; {grid.words}",
            file=file,
            remedy="Name the image that it was drawn on.",
        )
    return _segments(names, masks, image), (*_notes(dataset, file), *left_out(drawn, file))


def _place(plane: Plane, grid: PatientGrid, file: Path) -> Any:
    for keyword, found in (
        ("ImagePositionPatient", plane.position),
        ("ImageOrientationPatient", plane.orientation),
        ("PixelSpacing", plane.spacing),
    ):
        if found is None:
            raise DataError(f"is missing in {plane.label}", file=file, key=tag_name(keyword))
    assert plane.position is not None and plane.orientation is not None and plane.spacing is not None
    return target(plane.position, plane.orientation, plane.spacing, plane.size, grid, file, plane.label)


def _flat(
    dataset: Any, file: Path, planes: list[Plane], names: dict[int, str], image: Volume
) -> tuple[tuple[Segment, ...], tuple[str, ...]]:
    """A segmentation without positions, of a picture without one: one frame per segment, of its size."""
    size = planes[0].size
    if len(image.shape) != 2 or image.placed or image.shape != size:
        of_image = "×".join(map(str, image.shape))
        raise DataError(
            f"its frames ({size[0]}×{size[1]}) have no position, the image ({of_image}) "
            "is not a picture of this size without one",
            file=file,
            key=tag_name("ImagePositionPatient"),
            remedy="Name the image that it was drawn on.",
        )
    masks = {n: np.zeros(size, bool) for n in names}
    seen: set[int] = set()
    labelmap = _kind(dataset, file) == "LABELMAP"
    for plane, segment, frame in _frames(dataset, file, planes, names):
        if segment in seen or (labelmap and len(planes) > 1):
            raise DataError(
                f"{plane.label}: segment {segment} has several frames, and none has a position", file=file
            )
        seen.add(segment)
        masks[segment] = frame
    return _segments(names, masks, image), _notes(dataset, file)


def _segments(names: dict[int, str], masks: dict[int, np.ndarray], image: Volume) -> tuple[Segment, ...]:
    return tuple(Segment(n, name, masks[n].reshape(image.shape)) for n, name in names.items())


def _names(dataset: Any, file: Path) -> dict[int, str]:
    found: dict[int, str] = {}
    for item in items(dataset, "SegmentSequence", file):
        n = whole(item, "SegmentNumber", file)
        if n in found:
            raise DataError(f"two segments have the number {n}", file=file, key=tag_name("SegmentNumber"))
        found[n] = text(item, "SegmentLabel", file)
    if _kind(dataset, file) == "LABELMAP":
        found.pop(0, None)  # the background, where it is described
    if not found:
        raise DataError("is missing: there is no segment", file=file, key=tag_name("SegmentSequence"))
    return dict(sorted(found.items()))


def _kind(dataset: Any, file: Path) -> str:
    kind = text(dataset, "SegmentationType", file)
    if kind not in ("BINARY", "FRACTIONAL", "LABELMAP"):
        raise DataError(
            "must be BINARY, FRACTIONAL or LABELMAP", file=file, key=tag_name("SegmentationType"), value=kind
        )
    return kind


def _notes(dataset: Any, file: Path) -> tuple[str, ...]:
    if _kind(dataset, file) != "FRACTIONAL":
        return ()
    kind = text(dataset, "SegmentationFractionalType", file).lower() or "fraction"
    return (f"fractional segmentation: voxels of more than half the full {kind} belong to a segment",)


def _frames(
    dataset: Any, file: Path, planes: list[Plane], names: dict[int, str]
) -> Iterator[tuple[Plane, int, np.ndarray]]:
    """Each frame's plane, segment and pixels (bool); a labelmap's frame once for each segment in it."""
    kind = _kind(dataset, file)
    full = number(dataset, "MaximumFractionalValue", file) if kind == "FRACTIONAL" else None
    if kind == "FRACTIONAL" and not full:
        raise DataError("is missing", file=file, key=tag_name("MaximumFractionalValue"))
    for plane, pixels in zip(planes, _pixels(dataset, file, planes), strict=True):
        if kind == "LABELMAP":
            yield from _labelled(plane, pixels, names, dataset, file)
            continue
        segment = _segment_of(plane, names, file)
        yield plane, segment, pixels > full / 2 if full else pixels != 0


def _labelled(
    plane: Plane, pixels: np.ndarray, names: dict[int, str], dataset: Any, file: Path
) -> Iterator[tuple[Plane, int, np.ndarray]]:
    padding = whole(dataset, "PixelPaddingValue", file, default=0)
    for found in np.unique(pixels).tolist():
        if found in names:
            yield plane, found, pixels == found
        elif found not in (0, padding):
            raise DataError(f"{plane.label} holds the value {found}, which is no segment's", file=file)


def _segment_of(plane: Plane, names: dict[int, str], file: Path) -> int:
    found = plane.number("ReferencedSegmentNumber")
    if found is None or int(found) not in names:
        raise DataError(
            f"{plane.label} belongs to segment {'none' if found is None else int(found)}; there are "
            f"{', '.join(map(str, names))}",
            file=file,
            key=tag_name("ReferencedSegmentNumber"),
        )
    return int(found)


def _pixels(dataset: Any, file: Path, planes: list[Plane]) -> Iterator[np.ndarray]:
    """Frames of stored values; bits are packed across the frames' borders."""
    if "PixelData" not in dataset:
        raise DataError("is missing; the file is truncated", file=file, key=tag_name("PixelData"))
    if whole(dataset, "BitsAllocated", file) != 1 or syntax_of(dataset).is_encapsulated:
        for array, _ in stored_frames(dataset, file, [p.frame for p in planes]):
            yield array
        return
    refuse_wrong_length(dataset, file)
    rows, columns = planes[0].size
    packed = np.frombuffer(dataset.PixelData, np.uint8)
    for k in range(len(planes)):
        start, end = k * rows * columns, (k + 1) * rows * columns
        bits = np.unpackbits(packed[start // 8 : -(-end // 8)], bitorder="little")
        yield bits[start % 8 :][: rows * columns].reshape(rows, columns)
