"""MetaImage (.mha, .mhd) and NRRD (.nrrd, .nhdr), read by ITK; 3D Slicer's segmentations in NRRD.

ITK's axes point to the left and back (LPS); ours to the right and front (RAS).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from gossipseg.errors import DataError
from gossipseg.learn.data.formats.axes import channel_first, real
from gossipseg.learn.data.formats.itk_headers import Head, meta_head, nrrd_head, verify
from gossipseg.learn.data.formats.kinds import Kind, kind_of
from gossipseg.learn.data.formats.silence import libraries_silent
from gossipseg.learn.data.formats.volume import Segment, Segmentation, Volume

TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
PATIENT_SPACES = {
    "left-posterior-superior", "lps", "right-anterior-superior", "ras", "left-anterior-superior", "las",
}  # fmt: skip
"""NRRD spaces that ITK turns into its own."""
MM_PER_UNIT = {"": 1.0, "mm": 1.0, "cm": 10.0, "m": 1000.0, "um": 1e-3, "µm": 1e-3, "micron": 1e-3}
META_PLACE = ("Offset", "Position", "Origin", "TransformMatrix", "Orientation", "Rotation")
SEGMENT = re.compile(r"Segment(\d+)_(Name|LabelValue|Layer)$")


def read_itk(path: Path, spatial_dims: int) -> Volume:
    """Read MetaImage or NRRD. Raises DataError."""
    return _volume(path, spatial_dims, _head(path))


def read_itk_label(path: Path, spatial_dims: int) -> Volume | Segmentation:
    """As read_itk; a file in which 3D Slicer named segments gives these. Raises DataError."""
    head = _head(path)
    segments = _segments(head.fields)
    volume = _volume(path, spatial_dims, head)
    if not segments:
        return volume
    found = tuple(_segment(n, s, volume, path) for n, s in sorted(segments.items()))
    numbered = all("LabelValue" in said for said in segments.values())
    return Segmentation(found, volume.shape, volume.affine, volume.notes, volume.placed, not numbered)


def _head(path: Path) -> Head:
    head = meta_head(path) if kind_of(path) is Kind.META else nrrd_head(path)
    verify(head, path)
    return head


def _volume(path: Path, spatial_dims: int, head: Head) -> Volume:
    import SimpleITK as sitk

    meta = kind_of(path) is Kind.META
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        with libraries_silent():
            image = sitk.ReadImage(str(path), imageIO="MetaImageIO" if meta else "NrrdImageIO")
    except RuntimeError as e:
        said = " ".join(str(e).split()).rpartition("): ")[2][:200]
        raise DataError(
            f"cannot be read as an image: {said}", file=path, remedy="Save it anew, or take the case out."
        ) from None
    array = sitk.GetArrayFromImage(image)
    spatial = image.GetDimension()
    array = array.transpose(*range(spatial - 1, -1, -1), *range(spatial, array.ndim))
    affine, placed, notes = (_meta_place if meta else _nrrd_place)(head.fields, _affine(image), path)
    channels = channel_first(real(array, path), spatial_dims, path)
    return Volume(channels, affine, placed and affine is not None, notes)


def _affine(image: Any) -> np.ndarray:
    """4×4 to RAS mm; of two or four dimensions, the part in space."""
    n = image.GetDimension()
    keep = min(n, 3)
    direction = np.array(image.GetDirection()).reshape(n, n)[:keep, :keep]
    affine = np.eye(4)
    affine[:keep, :keep] = direction * np.array(image.GetSpacing())[:keep]
    affine[:keep, 3] = np.array(image.GetOrigin())[:keep]
    turned: np.ndarray = TO_RAS @ affine
    return turned


def _meta_place(
    fields: dict[str, str], affine: np.ndarray, path: Path
) -> tuple[np.ndarray | None, bool, tuple[str, ...]]:
    if "ElementSpacing" not in fields and "ElementSize" not in fields:
        return None, False, ()
    return _sound(affine, path), any(key in fields for key in META_PLACE), ()


def _nrrd_place(
    fields: dict[str, str], affine: np.ndarray, path: Path
) -> tuple[np.ndarray | None, bool, tuple[str, ...]]:
    factor = _mm_per_unit(fields, path)
    if "space directions" not in fields and "spacings" not in fields:
        return None, False, ()
    affine = _sound(np.diag([factor, factor, factor, 1.0]) @ affine, path)
    if fields.get("space", "").lower() in PATIENT_SPACES:
        return affine, True, ()
    space = fields.get("space", "none")
    return affine, False, (f"{path.name}: its space ({space}) does not say how it lies in the patient",)


def _mm_per_unit(fields: dict[str, str], path: Path) -> float:
    units = set(re.findall(r'"([^"]*)"', fields.get("space units", ""))) - {"", "???"}
    factors = {MM_PER_UNIT.get(u) for u in units} or {1.0}
    factor = factors.pop()
    if factors or factor is None:
        raise DataError(
            "is no unit of length that is read",
            file=path,
            key="space units",
            value=fields["space units"],
            remedy="Write it in mm.",
        )
    return factor


def _sound(affine: np.ndarray, path: Path) -> np.ndarray:
    if np.isfinite(affine).all() and abs(np.linalg.det(affine[:3, :3])) > 1e-12:
        return affine
    raise DataError(
        "places no volume in space (numbers that are not finite, or axes that coincide)",
        file=path,
        key="directions",
        value=affine[:3, :3].tolist(),
        remedy="Write the header anew from the image's source.",
    )


# ---------------------------------------------------------------- segments


def _segments(fields: dict[str, str]) -> dict[int, dict[str, str]]:
    """Number → Name, LabelValue, Layer, as 3D Slicer writes them."""
    found: dict[int, dict[str, str]] = {}
    for key, value in fields.items():
        match = SEGMENT.match(key)
        if match:
            found.setdefault(int(match[1]), {})[match[2]] = value.strip()
    return found


def _segment(number: int, said: dict[str, str], volume: Volume, path: Path) -> Segment:
    """Slicer before 4.11 gave each segment a layer of its own, with 1 in it, and said neither."""
    try:
        value = int(said.get("LabelValue", 1))
        layer = int(said["Layer"]) if "Layer" in said else number if "LabelValue" not in said else 0
        mask = volume.array[layer] == value
    except (ValueError, IndexError):
        raise DataError(
            f"describes a segment that it does not hold ({volume.array.shape[0]} layers)",
            file=path,
            key=f"Segment{number}",
            value=said,
            remedy="Save the segmentation anew.",
        ) from None
    return Segment(value if "LabelValue" in said else number + 1, said.get("Name", f"Segment{number}"), mask)
