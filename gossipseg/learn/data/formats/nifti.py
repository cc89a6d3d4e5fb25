"""NIfTI-1, NIfTI-2 and FreeSurfer's MGH.

The bytes are decompressed whole, to their checksum: nibabel reads no further than the last voxel, and so
never checks it. The headers are nibabel's.

Place, as the standard has it: the sform if its code is set, else the qform, else none: then the header
knows the voxel size alone. A 2-D task takes the third axis of a file, if it is longer than 1, as channels; a
3-D one the fourth, or the fifth as ITK writes vectors.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.freesurfer.mghformat import MGHHeader
from nibabel.spatialimages import HeaderDataError

from gossipseg.errors import DataError
from gossipseg.learn.data.formats.axes import channel_first, real
from gossipseg.learn.data.formats.checked import beginning, contents, need_bytes
from gossipseg.learn.data.formats.volume import Volume, spacing_of

HEADER_BYTES = {348: nibabel.Nifti1Header, 540: nibabel.Nifti2Header}
MM_PER_UNIT = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 1e-3}
"""By the spatial part of xyzt_units: unknown (taken as mm, as all tools do), metre, mm, micron."""
LARGEST_VOXEL_MM = 100.0
MGH_DATA_AT, MGH_FOOTER_BYTES, MGH_GOOD_RAS_AT = 284, 20, 28
QFORM_APART_VOXELS = 0.25
QUATERNION_ROUNDING = 1e-3
"""The square of a quaternion's first number may come out below 0 by this: it is computed from the rounded
others (the standard's own library takes it for 0)."""

Header = Any  # nibabel's Nifti1Header or Nifti2Header; it has no types


def read_nifti(path: Path, spatial_dims: int) -> Volume:
    """Read a NIfTI file in one piece. Raises DataError."""
    data = contents(path)
    header = _header(bytes(data[:540]), path)
    affine, placed, notes = _place(header, path)
    array = _scaled(_voxels(header, data, path), header, path)
    channels = channel_first(array, spatial_dims, path)
    return Volume(channels, affine, placed and affine is not None, notes)


def nifti_header(path: Path) -> Header:
    """The header alone: what a label map of this image is written with."""
    return _header(beginning(path, 540), path)


def read_mgh(path: Path, spatial_dims: int) -> Volume:
    """Read .mgz or .mgh. Raises DataError."""
    data = contents(path)
    header = mgh_header(bytes(data[:MGH_DATA_AT]), path)
    shape, dtype = header.get_data_shape(), header.get_data_dtype()
    need_bytes(path, len(data) - MGH_DATA_AT, math.prod(shape) * dtype.itemsize)
    array = np.frombuffer(data, dtype, math.prod(shape), MGH_DATA_AT).reshape(shape, order="F")
    affine = _sound(np.asarray(header.get_affine(), np.float64), shape, path, "affine")
    # nibabel fills the place in and sets the flag where it is missing.
    placed = int.from_bytes(data[MGH_GOOD_RAS_AT : MGH_GOOD_RAS_AT + 2], "big") == 1
    return Volume(channel_first(real(array, path), spatial_dims, path), affine, placed)


def mgh_header(head: bytes, path: Path) -> MGHHeader:
    """The header of an MGH file from its first 284 bytes. Raises DataError."""
    need_bytes(path, len(head), MGH_DATA_AT, "header")
    header = MGHHeader(head[:MGH_DATA_AT] + bytes(MGH_FOOTER_BYTES), check=False)
    if int(header["version"]) != 1 or any(n < 1 for n in header["dims"]):
        raise DataError("has no header of an MGH file", file=path, remedy="Convert it anew, or take it out.")
    try:
        header.get_data_dtype()
    except (HeaderDataError, KeyError):
        raise _unknown_type(int(header["type"]), path) from None
    return header


# ---------------------------------------------------------------- header


def _header(head: bytes, path: Path) -> Header:
    for size, made in HEADER_BYTES.items():
        if len(head) >= 4 and size in (int.from_bytes(head[:4], "little"), int.from_bytes(head[:4], "big")):
            need_bytes(path, len(head), size, "header")
            header = made(head[:size], check=False)
            _check(header, path)
            return header
    raise DataError(
        "has no NIfTI header",
        file=path,
        remedy="Convert it into NIfTI anew, or take the case out of the data list.",
    )


def _check(header: Header, path: Path) -> None:
    magic = bytes(header["magic"].tobytes())[:2]
    if magic != b"n+":
        kind = (
            "the header of a pair of files (.hdr, .img)" if magic == b"ni" else "Analyze, which has no place"
        )
        raise DataError(f"is {kind}", file=path, remedy="Convert it into NIfTI in one file (.nii.gz).")
    dims = header["dim"]
    if not 1 <= dims[0] <= 7 or any(n < 1 for n in dims[1 : int(dims[0]) + 1]):
        raise DataError(
            "its header is damaged: no such dimensions",
            file=path,
            key="dim",
            value=[int(n) for n in dims],
            remedy="Convert it into NIfTI anew, or take the case out of the data list.",
        )
    try:
        header.get_data_dtype()
    except (HeaderDataError, KeyError):
        raise _unknown_type(int(header["datatype"]), path) from None


def _unknown_type(code: int, path: Path) -> DataError:
    return DataError(
        "no such data type is read",
        file=path,
        key="datatype",
        value=code,
        remedy="Convert it to int16 or float32.",
    )


# ---------------------------------------------------------------- place


def _place(header: Header, path: Path) -> tuple[np.ndarray | None, bool, tuple[str, ...]]:
    """Affine to RAS mm, whether it is known where the image lies, and what its user should know."""
    shape = header.get_data_shape()
    factor, notes = _unit(header, path)
    sform = header.get_sform() if header["sform_code"] > 0 else None
    qform: np.ndarray | None = None
    if header["qform_code"] > 0:
        try:
            qform = _qform(header, path)
        except DataError as e:
            if sform is None:
                raise
            notes += (f"{path.name}: {e.problem}; the sform is used",)
    if sform is None and qform is None:
        if not all(math.isfinite(s) and s for s in header["pixdim"][1 : 1 + min(3, len(shape))]):
            return None, False, notes
        affine = _in_mm(np.asarray(header.get_base_affine(), np.float64), factor)
        return _sound(affine, shape, path, "pixdim"), False, notes
    if sform is None:
        assert qform is not None
        return _sound(_in_mm(qform, factor), shape, path, "qform"), True, notes
    affine = _sound(_in_mm(sform, factor), shape, path, "sform")
    if qform is not None:
        notes += _contradiction(affine, _in_mm(qform, factor), shape, path)
    if factor != 1 and max(spacing_of(affine, 3)) > LARGEST_VOXEL_MM:
        raise _unit_error(header, path)
    return affine, True, notes


def _unit(header: Header, path: Path) -> tuple[float, tuple[str, ...]]:
    code = int(header["xyzt_units"]) & 7
    if code not in MM_PER_UNIT:
        raise _unit_error(header, path)
    factor = MM_PER_UNIT[code]
    if factor == 1:
        return factor, ()
    sizes = np.abs(header["pixdim"][1:4].astype(np.float64)) * factor
    if max(sizes) > LARGEST_VOXEL_MM:
        raise _unit_error(header, path)
    return factor, (f"{path.name}: its unit is the {'metre' if factor > 1 else 'micron'}; read in mm",)


def _unit_error(header: Header, path: Path) -> DataError:
    return DataError(
        "the unit of length cannot be right",
        file=path,
        key="xyzt_units",
        value=int(header["xyzt_units"]),
        remedy="Write the header with mm (2).",
    )


def _qform(header: Header, path: Path) -> np.ndarray:
    header.quaternion_threshold = -QUATERNION_ROUNDING
    try:
        return np.asarray(header.get_qform(), np.float64)
    except (HeaderDataError, ValueError) as e:
        raise DataError(
            f"its qform is damaged: {e}", file=path, key="qform", remedy="Write it anew."
        ) from None


def _in_mm(affine: np.ndarray, factor: float) -> np.ndarray:
    return np.diag([factor, factor, factor, 1.0]) @ np.asarray(affine, np.float64)


def _sound(affine: np.ndarray, shape: tuple[int, ...], path: Path, key: str) -> np.ndarray:
    """The affine, if it can be one; a missing normal of a single slice is filled in. Raises DataError."""
    affine = affine.copy()
    for axis in range(3):
        flat = axis >= len(shape) or shape[axis] == 1
        if flat and not affine[:3, axis].any():
            a, b = (affine[:3, i] for i in range(3) if i != axis)
            normal = np.cross(a, b)
            affine[:3, axis] = normal / (np.linalg.norm(normal) or 1)
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    volume = abs(np.linalg.det(affine[:3, :3])) if np.isfinite(affine).all() else 0.0
    if not np.isfinite(affine).all() or not sizes.all() or volume < 1e-3 * math.prod(sizes):
        raise DataError(
            "places no volume in space (numbers that are not finite, or axes that coincide)",
            file=path,
            key=key,
            value=affine[:3].round(4).tolist(),
            remedy="Write the header anew from the image's source.",
        )
    return affine


def _contradiction(
    sform: np.ndarray, qform: np.ndarray, shape: tuple[int, ...], path: Path
) -> tuple[str, ...]:
    ends = [(0, n - 1) for n in shape[:3]] + [(0, 0)] * (3 - len(shape))
    corners = np.vstack([np.array(np.meshgrid(*ends)).reshape(3, -1), np.ones(8)])
    apart = float(np.linalg.norm(((sform - qform) @ corners)[:3], axis=0).max())
    if not apart > QFORM_APART_VOXELS * min(spacing_of(sform, 3)):
        return ()
    return (f"{path.name}: sform and qform lie up to {apart:.3g} mm apart; the sform is used",)


# ---------------------------------------------------------------- voxels


def _voxels(header: Header, data: bytearray, path: Path) -> np.ndarray:
    shape, dtype = header.get_data_shape(), header.get_data_dtype()
    said = float(header["vox_offset"])
    offset = int(said) if said >= header.sizeof_hdr else header.sizeof_hdr + 4
    need_bytes(path, len(data) - offset, math.prod(shape) * dtype.itemsize)
    array = np.frombuffer(data, dtype, math.prod(shape), offset).reshape(shape, order="F")
    if dtype.names is None:
        return real(array, path)
    samples = np.stack([array[name] for name in dtype.names], -1)
    opaque = samples.shape[-1] == 4 and (samples[..., 3] == 255).all()
    return samples[..., :3] if opaque else samples


def _scaled(array: np.ndarray, header: Header, path: Path) -> np.ndarray:
    """Slope and intercept as the standard has them: none where the slope is 0 or not a number."""
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or not math.isfinite(slope):
        return array
    if not math.isfinite(intercept):
        raise DataError(
            "is no number", file=path, key="scl_inter", value=intercept, remedy="Write the header anew."
        )
    if (slope, intercept) == (1.0, 0.0):
        return array
    small = array.dtype.itemsize <= 2 or array.dtype == np.float32
    wide: np.ndarray[Any, Any] = array.astype(np.float32 if small and _fits(slope, intercept) else np.float64)
    np.multiply(wide, slope, out=wide)
    np.add(wide, intercept, out=wide)
    return wide


def _fits(slope: float, intercept: float) -> bool:
    """Whether 16-bit values keep their distance in float32."""
    return abs(intercept) <= 2**16 * abs(slope)
