"""RTSTRUCT: closed planar contours, filled slice by slice on the image's grid."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gossipseg.errors import DataError
from gossipseg.learn.data.formats.contours import fill
from gossipseg.learn.data.formats.dicom.base import items, tag_name, text, value, whole
from gossipseg.learn.data.formats.dicom.onto import PatientGrid, empty_mask, grid_of, indices, left_out
from gossipseg.learn.data.formats.volume import Segment, Volume

BETWEEN_SLICES = 0.25
"""How far from a slice its contours may lie, in slices: files round positions."""
SAME_POINT = 1e-3
"""Points this near to each other, in voxels, are one."""
_CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")


def contour_segments(dataset: Any, file: Path, image: Volume) -> tuple[tuple[Segment, ...], tuple[str, ...]]:
    """The regions of interest of an RTSTRUCT on the image's grid, and notes. Raises DataError."""
    grid = grid_of(image, file)
    names = _names(dataset, file)
    notes: list[str] = []
    contours = {n: _contours(dataset, file, n, names[n], grid, notes) for n in names}
    axis = _normal_axis(contours, grid)
    segments = []
    for n, name in names.items():
        mask = _draw(contours[n], axis, grid, file, f"ROI {n} '{name}'", notes)
        if not contours[n]:
            notes.append(f"ROI {n} '{name}' has no closed contour: it is empty")
        segments.append(Segment(n, name, mask.reshape(image.shape)))
    drawn = [round(float(c[:, axis].mean())) for of_roi in contours.values() for c in of_roi]
    return tuple(segments), (*notes, *left_out(drawn, file))


def _names(dataset: Any, file: Path) -> dict[int, str]:
    found = {
        whole(item, "ROINumber", file): text(item, "ROIName", file)
        for item in items(dataset, "StructureSetROISequence", file)
    }
    drawn = [whole(i, "ReferencedROINumber", file) for i in items(dataset, "ROIContourSequence", file)]
    if not found:
        raise DataError(
            "is missing: there is no region of interest", file=file, key=tag_name("StructureSetROISequence")
        )
    unknown = set(drawn) - set(found)
    if unknown:
        raise DataError(
            f"contours of ROI {sorted(unknown)}, which has no name", file=file, key=tag_name("ROINumber")
        )
    return dict(sorted(found.items()))


def _contours(
    dataset: Any, file: Path, roi: int, name: str, grid: PatientGrid, notes: list[str]
) -> list[np.ndarray]:
    """The closed contours of one region, each (n, 3) in indices of the image."""
    found: list[np.ndarray] = []
    ignored: Counter[str] = Counter()
    for group in items(dataset, "ROIContourSequence", file):
        if whole(group, "ReferencedROINumber", file) != roi:
            continue
        for item in items(group, "ContourSequence", file):
            kind = text(item, "ContourGeometricType", file)
            points = _points(item, file, roi)
            if kind in _CLOSED and len(points) >= 3:
                found.append(indices(points, grid))
            else:
                ignored[kind or "unnamed"] += 1
    for kind, count in sorted(ignored.items()):
        notes.append(f"ROI {roi} '{name}': {count} contour(s) of the kind {kind} enclose nothing: ignored")
    once = list({_outline(points): points for points in reversed(found)}.values())[::-1]
    if len(once) < len(found):
        # By the even-odd rule the second copy would take away what the first one drew.
        notes.append(f"ROI {roi} '{name}': {len(found) - len(once)} contour(s) stand there twice: drawn once")
    return once


def _outline(points: np.ndarray) -> bytes:
    """The same for two contours through the same points, wherever and whichever way round they begin."""
    near = np.round(points / SAME_POINT).astype(np.int64)
    if len(near) > 1 and (near[0] == near[-1]).all():
        near = near[:-1]
    return np.array(sorted(map(tuple, near.tolist()))).tobytes()


def _points(item: Any, file: Path, roi: int) -> np.ndarray:
    count = whole(item, "NumberOfContourPoints", file, default=-1)
    try:
        flat = np.array(_decimals(item, file), np.float64)
    except (TypeError, ValueError):
        flat = np.array([np.nan])
    if flat.size % 3 or not np.isfinite(flat).all() or (count >= 0 and flat.size != 3 * count):
        raise DataError(
            f"a contour of ROI {roi} has {flat.size} values, {count} points are announced; it is damaged",
            file=file,
            key=tag_name("ContourData"),
            remedy="Export it again.",
        )
    return flat.reshape(-1, 3)


def _decimals(item: Any, file: Path) -> list[Any]:
    """ContourData as numbers or their text: unread elements are split here, a hundred times faster."""
    raw = getattr(item.get_item("ContourData") if "ContourData" in item else None, "value", None)
    if isinstance(raw, bytes):
        written = raw.decode("ascii").rstrip(" \0")
        return written.split("\\") if written else []
    found = value(item, "ContourData", file)
    return [] if found is None else list(found)


def _normal_axis(contours: Mapping[int, list[np.ndarray]], grid: PatientGrid) -> int:
    """The image axis along which all contours are flat; the last where several are, or none."""
    every = [c for of_roi in contours.values() for c in of_roi]
    spread = np.array([np.ptp(c, axis=0) for c in every]).reshape(-1, 3)
    flat = [a for a in range(3) if (spread[:, a] <= BETWEEN_SLICES).all()]
    return flat[-1] if flat else 2


def _draw(
    contours: list[np.ndarray], axis: int, grid: PatientGrid, file: Path, name: str, notes: list[str]
) -> np.ndarray:
    mask = empty_mask(grid)
    within = [a for a in range(3) if a != axis]
    size = (grid.shape[within[0]], grid.shape[within[1]])
    slices: dict[int, list[np.ndarray]] = {}
    cut = 0
    for points in contours:
        k = _slice_of(points, axis, grid, file, name)
        flat = points[:, within]
        cut += bool((flat < -0.5).any() or (flat > np.array(size) - 0.5).any())
        slices.setdefault(k, []).append(flat)
    for k, polygons in slices.items():
        plane = np.moveaxis(mask, axis, 0)[k]
        first, second = np.nonzero(fill(polygons, size))
        plane[first, second] = True
    if cut and not mask.any():
        raise DataError(
            f"{name} lies outside the image; {grid.words}",
            file=file,
            remedy="Name the image that it was drawn on.",
        )
    if cut:
        notes.append(f"{name}: {cut} contour(s) reach beyond the image and are cut off there")
    return mask


def _slice_of(points: np.ndarray, axis: int, grid: PatientGrid, file: Path, name: str) -> int:
    heights = points[:, axis]
    k = round(float(heights.mean()))
    apart = float(np.abs(heights - k).max())
    if apart > BETWEEN_SLICES:
        raise DataError(
            f"a contour of {name} lies at {heights.min():.2f} to {heights.max():.2f} on the image's slice "
            f"axis, up to {apart:.2f} slices from slice {k}; {grid.words}",
            file=file,
            key=tag_name("ContourData"),
            remedy="Name the image that it was drawn on, or convert the contours to a mask.",
        )
    if not 0 <= k < grid.shape[axis]:
        raise DataError(
            f"a contour of {name} lies on slice {k}, the image has 0 to {grid.shape[axis] - 1}; {grid.words}",
            file=file,
            key=tag_name("ContourData"),
            remedy="Name the image that it was drawn on.",
        )
    return k
