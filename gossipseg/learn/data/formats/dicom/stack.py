"""From planes to a volume's grid: slices in the order of their positions, evenly spaced, or refused in mm."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gossipseg.errors import DataError
from gossipseg.learn.data.formats.dicom.base import tag_name
from gossipseg.learn.data.formats.dicom.planes import Plane, differing, normal_of

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])

STEP_MM, STEP_SHARE = 0.02, 0.01
"""A step between slices may differ from the usual one by the larger of these: files round positions."""
LINE_SHARE = 0.1
"""Many steps that are each near the usual may add up to this part of a slice, not more."""
SAME_DIRECTION = 1e-3
"""Direction cosines may differ by this within a volume: half a voxel over 512."""
TILT_DEGREES = 0.2
"""A stack may lean by this: 1 mm over 300."""
DRIFT_SHARE = 0.1
"""A slice may lie this part of a pixel beside the line through the others."""

_ALIKE = (
    "Modality",
    "FrameOfReferenceUID",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "Units",
    "RescaleType",
    "EchoNumbers",
    "TemporalPositionIdentifier",
    "TemporalPositionIndex",
    "DiffusionBValue",
    "ConvolutionKernel",
)
_ALIKE_NUMBERS = ("EchoTime", "EffectiveEchoTime", "InversionTime")
"""May differ by a hundredth: scanners round them."""
_SPLIT = "Give each volume its own folder."
_WHOLE = "Export the series again in full."


@dataclass(frozen=True, slots=True)
class Stack:
    """Planes in the order of the slice axis, and the affine of (column, row, slice) to RAS mm."""

    planes: tuple[Plane, ...]
    affine: np.ndarray
    notes: tuple[str, ...] = ()


def stack(planes: Sequence[Plane], root: Path) -> Stack:
    """Sort planes by position and compute their grid. Raises DataError where they are not one volume."""
    _refuse_unplaced(planes, root)
    _refuse_mosaic(planes, root)
    _refuse_orientations(planes, root)
    orientation, spacing = planes[0].orientation, planes[0].spacing
    assert orientation is not None and spacing is not None
    normal = normal_of(orientation)
    along = np.array([normal @ _position(p) for p in planes])
    order = np.argsort(along, kind="stable")
    ordered, along = [planes[i] for i in order], along[order]
    if len(ordered) == 1:
        step, note = _single_step(ordered[0], root)
        return Stack(tuple(ordered), _affine(ordered[0], normal * step), (note,))
    _refuse_equal(ordered, along, root)
    _refuse_unlike(ordered, root)
    _refuse_uneven(ordered, along, root)
    positions = np.array([_position(p) for p in ordered])
    vector = (positions[-1] - positions[0]) / (len(ordered) - 1)
    _refuse_tilt(positions, vector, normal, spacing, root)
    return Stack(tuple(ordered), _affine(ordered[0], vector))


def plane_affine(plane: Plane) -> np.ndarray | None:
    """Affine of (row, column, 0) to RAS mm of one plane that has a position; else None."""
    if plane.position is None or plane.orientation is None or plane.spacing is None:
        return None
    normal = normal_of(plane.orientation)
    thick = plane.number("SpacingBetweenSlices") or plane.number("SliceThickness") or 1.0
    return _affine(plane, normal * abs(thick))[:, [1, 0, 2, 3]]


def _affine(first: Plane, slice_vector: np.ndarray) -> np.ndarray:
    assert first.orientation is not None and first.spacing is not None
    lps = np.eye(4)
    lps[:3, 0] = first.orientation[0] * first.spacing[1]
    lps[:3, 1] = first.orientation[1] * first.spacing[0]
    lps[:3, 2] = slice_vector
    lps[:3, 3] = _position(first)
    return LPS_TO_RAS @ lps


def _position(plane: Plane) -> np.ndarray:
    assert plane.position is not None
    return plane.position


def _refuse_unplaced(planes: Sequence[Plane], root: Path) -> None:
    for keyword, field in (
        ("ImagePositionPatient", "position"),
        ("ImageOrientationPatient", "orientation"),
        ("PixelSpacing", "spacing"),
    ):
        lacking = [p for p in planes if getattr(p, field) is None]
        if lacking:
            raise DataError(
                f"is missing in {len(lacking)} of {len(planes)} slices (first: {lacking[0].label})",
                file=root,
                key=tag_name(keyword),
                remedy="A 3-D task needs the place of every slice. X-ray, ultrasound and cine images have "
                "none: they are for tasks with spatial_dims: 2.",
            )


def _refuse_mosaic(planes: Sequence[Plane], root: Path) -> None:
    tiled = [p for p in planes if "MOSAIC" in p.text("ImageType").upper()]
    if tiled:
        raise DataError(
            f"{tiled[0].label} is a mosaic: all slices of a volume as tiles of one image",
            file=root,
            key=tag_name("ImageType"),
            remedy="Convert it first, with dcm2niix.",
        )


def _refuse_unlike(planes: Sequence[Plane], root: Path) -> None:
    first = planes[0]
    assert first.spacing is not None
    for plane in planes[1:]:
        assert plane.spacing is not None
        if plane.size != first.size:
            raise _unlike("Rows, Columns", first, plane, first.size, plane.size, root)
        if not np.allclose(plane.spacing, first.spacing, rtol=1e-3, atol=0):
            raise _unlike(tag_name("PixelSpacing"), first, plane, first.spacing, plane.spacing, root)
        if (plane.slope is None) != (first.slope is None):
            raise _unlike(tag_name("RescaleSlope"), first, plane, first.slope, plane.slope, root)
        for keyword in _ALIKE:
            a, b = first.text(keyword), plane.text(keyword)
            if a != b:
                raise _unlike(tag_name(keyword), first, plane, a or "none", b or "none", root)
        for keyword in _ALIKE_NUMBERS:
            of_a, of_b = first.number(keyword), plane.number(keyword)
            if (of_a is None) != (of_b is None) or not math.isclose(of_a or 0, of_b or 0, rel_tol=0.01):
                raise _unlike(tag_name(keyword), first, plane, of_a, of_b, root)


def _unlike(key: str, a: Plane, b: Plane, of_a: object, of_b: object, root: Path) -> DataError:
    return DataError(
        f"differs within the series: {of_a} in {a.label}, {of_b} in {b.label}",
        file=root,
        key=key,
        remedy=_SPLIT,
    )


def _refuse_orientations(planes: Sequence[Plane], root: Path) -> None:
    first = planes[0]
    kinds = [first]
    for plane in planes[1:]:
        if all(_turned(plane, kind) for kind in kinds):
            kinds.append(plane)
    if len(kinds) > 1:
        shown = "; ".join(f"{k.text('ImageOrientationPatient')} in {k.label}" for k in kinds[:3])
        raise DataError(
            f"the slices lie in {len(kinds)} orientations, as those of a localizer do: {shown}",
            file=root,
            key=tag_name("ImageOrientationPatient"),
            remedy=_SPLIT,
        )


def _turned(a: Plane, b: Plane) -> bool:
    assert a.orientation is not None and b.orientation is not None
    return bool(np.abs(a.orientation - b.orientation).max() > SAME_DIRECTION)


def _single_step(plane: Plane, root: Path) -> tuple[float, str]:
    for keyword in ("SpacingBetweenSlices", "SliceThickness"):
        found = plane.number(keyword)
        if found:
            return abs(found), f"one slice only: its thickness is taken from {keyword}, {abs(found):g} mm"
    raise DataError(
        f"one slice only ({plane.label}), and neither SpacingBetweenSlices nor SliceThickness is given",
        file=root,
        remedy=_WHOLE,
    )


def _usual(along: np.ndarray) -> float:
    steps = np.diff(along)
    apart = np.sort(steps[steps > 1e-3])
    return float(apart[(len(apart) - 1) // 2]) if apart.size else 0.0


def _refuse_equal(planes: Sequence[Plane], along: np.ndarray, root: Path) -> None:
    usual = _usual(along)
    equal = np.diff(along) < max(1e-3, STEP_SHARE * usual)
    if not equal.any():
        return
    k = int(equal.argmax())
    group = [
        p for p, d in zip(planes, along, strict=True) if abs(d - along[k]) < max(1e-3, STEP_SHARE * usual)
    ]
    places = len(along) - int(equal.sum())
    why = differing(group, root)
    raise DataError(
        f"{len(planes)} slices lie at only {places} positions: {len(group)} at {along[k]:g} mm along the "
        f"normal ({', '.join(p.label for p in group[:3])}{', …' if len(group) > 3 else ''})"
        + (f"; they differ in {why}" if why else ""),
        file=root,
        key=tag_name("ImagePositionPatient"),
        remedy=f"Several volumes lie in one series (echoes, b-values, phases, reconstructions). {_SPLIT}",
    )


def _refuse_uneven(planes: Sequence[Plane], along: np.ndarray, root: Path) -> None:
    steps = np.diff(along)
    usual = _usual(along)
    allowed = max(STEP_MM, STEP_SHARE * usual)
    wrong = np.abs(steps - usual) > allowed
    line = along[0] + (along[-1] - along[0]) * np.arange(len(along)) / (len(along) - 1)
    if not wrong.any() and np.abs(along - line).max() <= max(STEP_MM, LINE_SHARE * usual):
        return
    k = int(np.abs(steps - usual).argmax())
    lost = round(steps[k] / usual) - 1
    guess = f"; {lost} {'slice is' if lost == 1 else 'slices are'} missing there" if lost > 0 else ""
    raise DataError(
        f"the slices are not evenly spaced: a gap of {steps[k]:g} mm between {planes[k].label} and "
        f"{planes[k + 1].label}, where {usual:g} mm is usual{guess} ({int(wrong.sum())} of {len(steps)} "
        f"steps differ by more than {allowed:g} mm)",
        file=root,
        key=tag_name("ImagePositionPatient"),
        remedy=_WHOLE,
    )


def _refuse_tilt(
    positions: np.ndarray, vector: np.ndarray, normal: np.ndarray, spacing: tuple[float, float], root: Path
) -> None:
    sideways = vector - (vector @ normal) * normal
    tilt = math.degrees(math.atan2(float(np.linalg.norm(sideways)), float(vector @ normal)))
    if tilt > TILT_DEGREES:
        raise DataError(
            f"the stack leans by {tilt:.1f}° (gantry tilt): each slice is shifted "
            f"{np.linalg.norm(sideways):.3g} mm sideways against the one below",
            file=root,
            key=tag_name("ImagePositionPatient"),
            remedy="Resample it to a straight grid first; dcm2niix does, and names the result _Tilt.",
        )
    line = positions[0] + np.arange(len(positions))[:, None] * vector
    beside = np.linalg.norm(positions - line, axis=1)
    allowed = max(STEP_MM, DRIFT_SHARE * min(spacing))
    if beside.max() > allowed + STEP_SHARE * float(vector @ normal):
        raise DataError(
            f"a slice lies {beside.max():.3g} mm beside the line through the others",
            file=root,
            key=tag_name("ImagePositionPatient"),
            remedy=_WHOLE,
        )
