"""From a file to an array with its geometry.

What belongs here: reading NIfTI, PNG/JPEG and DICOM through MONAI's readers, and one axis convention for all.
What must not: the task's preprocessing, caching, anything about networks.

Axes: channel first; NIfTI and DICOM in their own order (i, j, k) with the affine to RAS mm; PNG and JPEG as
(row, column), which is what a label written back must have (MONAI's PILReader swaps them unless told not to).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.data import NibabelReader, PILReader, PydicomReader

from gossipseg.errors import DataError, LocalError
from gossipseg.learn.formats.volume import Segmentation, Volume, spacing_of

__all__ = ["Segmentation", "Volume", "is_raster", "read_label", "read_volume", "spacing_of"]

RASTER = (".png", ".jpg", ".jpeg")


def is_raster(path: Path) -> bool:
    """Whether the file is a PNG or JPEG picture."""
    return path.name.lower().endswith(RASTER)


def read_volume(image: Path | Sequence[Path], spatial_dims: int) -> Volume:
    """Read an image, or stack one single-channel file per channel.

    Raises DataError when a file cannot be read, or has other than `spatial_dims` spatial dimensions.
    """
    if isinstance(image, Path):
        return _read_one(image, spatial_dims)
    parts = [_read_one(path, spatial_dims) for path in image]
    for path, part in zip(image, parts, strict=True):
        if part.array.shape != (1, *parts[0].shape):
            raise DataError(
                f"must have one channel and the shape {parts[0].shape} of {image[0].name}",
                file=path,
                key="shape (channel first)",
                value=part.array.shape,
                remedy="Files listed together are the channels of one image.",
            )
    return Volume(np.concatenate([p.array for p in parts]), parts[0].affine)


def read_label(path: Path, spatial_dims: int, image: Volume) -> Volume | Segmentation:
    """Read a label file, on its own grid. `image`: what it is a label of; contours are drawn onto its grid.

    Raises DataError.
    """
    return read_volume(path, spatial_dims)


def _read_one(path: Path, spatial_dims: int) -> Volume:
    array, affine = _raster(path) if is_raster(path) else _medical(path)
    while array.ndim > spatial_dims and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim not in (spatial_dims, spatial_dims + 1):
        raise DataError(
            f"has {array.ndim} dimensions, the task has {spatial_dims} spatial ones",
            file=path,
            key="shape",
            value=array.shape,
            remedy="Take it out of the data list, or correct task.spatial_dims (or task.slice_axis) in "
            "peers.yaml at all sites.",
        )
    array = np.moveaxis(array, -1, 0) if array.ndim == spatial_dims + 1 else array[None]
    return Volume(np.ascontiguousarray(array), affine)


def _raster(path: Path) -> tuple[np.ndarray, None]:
    reader = PILReader(converter=_plain_mode, reverse_indexing=False)
    array, _ = _guarded(path, reader)
    return array, None


def _plain_mode(picture: Any) -> Any:
    """Decode now (a torn file shows here), drop an alpha channel that hides nothing, keep palette indices."""
    with picture:
        picture.load()
        if picture.mode in ("RGBA", "LA") and picture.getchannel("A").getextrema() == (255, 255):
            return picture.convert(picture.mode[:-1])
        return picture.copy() if picture.mode != "1" else picture.convert("L").point(lambda v: v // 255)


def _medical(path: Path) -> tuple[np.ndarray, np.ndarray]:
    is_dicom = path.is_dir() or path.name.lower().endswith(".dcm")
    reader = _dicom_reader(path) if is_dicom else NibabelReader()
    array, meta = _guarded(path, reader)
    return array, np.asarray(meta["affine"], dtype=np.float64)


def _dicom_reader(path: Path) -> PydicomReader:
    try:
        import pydicom
    except ImportError:
        raise LocalError(
            f"{path}: reading DICOM needs the package pydicom. Install gossipseg[dicom]."
        ) from None
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.is_file() and p.name.lower().endswith(".dcm"))
        if not files:
            raise DataError(
                "this folder holds no .dcm files", file=path, remedy="An image folder is one DICOM series."
            )
        heads = [pydicom.dcmread(p, stop_before_pixels=True, force=True) for p in files]
        series = {str(h.get("SeriesInstanceUID", "")) for h in heads}
        if len(series) > 1:
            raise DataError(
                f"this folder holds {len(series)} DICOM series", file=path, remedy="Give each its own folder."
            )
    return PydicomReader(fname_regex=r"(?i).*\.dcm$")


def _guarded(path: Path, reader: Any) -> tuple[np.ndarray, dict[str, Any]]:
    """Read with a MONAI reader; what it warns of or raises about a file becomes a DataError."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", category=UserWarning, module=r"monai\..*")
            array, meta = reader.get_data(reader.read(path))
            return np.asarray(array), meta
    except FileNotFoundError:
        raise DataError("no such file", file=path, remedy="Correct the data list or the path.") from None
    except Exception as e:
        # The readers below MONAI raise whatever comes (OSError, ValueError, EOFError, zlib.error,
        # struct.error, ImageFileError, a pydicom error): for the operator, the file is broken.
        raise DataError(
            f"cannot be read as an image: {type(e).__name__}: {e}",
            file=path,
            remedy="Replace the file, or take the case out of the data list.",
        ) from e
