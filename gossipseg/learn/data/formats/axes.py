"""From the axes of a file to (C, *spatial)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gossipseg.errors import DataError


def channel_first(array: np.ndarray, spatial_dims: int, file: Path) -> np.ndarray:
    """(*spatial[, 1 …][, C]) as scanners' formats have it → (C, *spatial), a view. Raises DataError.

    Axes of length 1 after the spatial ones carry nothing. What is left may be one axis: the channels.
    """
    shape = array.shape
    while array.ndim > spatial_dims and array.shape[-1] == 1:
        array = array[..., 0]
    while array.ndim > spatial_dims + 1 and array.shape[spatial_dims] == 1:
        array = array.squeeze(spatial_dims)
    if array.ndim not in (spatial_dims, spatial_dims + 1):
        raise wrong_dimensions(shape, spatial_dims, file)
    return np.moveaxis(array, -1, 0) if array.ndim == spatial_dims + 1 else array[None]


def wrong_dimensions(shape: tuple[int, ...], spatial_dims: int, file: Path) -> DataError:
    """The error for an image of other dimensions than the task has."""
    return DataError(
        f"has {len(shape)} dimensions, the task has {spatial_dims} spatial ones",
        file=file,
        key="shape",
        value=tuple(shape),
        remedy="Take it out of the data list, or correct task.spatial_dims (or task.slice_axis) in "
        "peers.yaml at all sites.",
    )


def real(array: np.ndarray, file: Path) -> np.ndarray:
    """In the machine's byte order, in a type that torch has too. Raises DataError for complex numbers."""
    if array.dtype.kind == "c":
        raise DataError(
            "holds complex numbers",
            file=file,
            key="data type",
            value=array.dtype.name,
            remedy="Save the magnitude (or what the network is to see) as real numbers.",
        )
    if array.dtype.kind == "b":
        return array.astype(np.uint8)
    if array.dtype.kind == "f" and array.dtype.itemsize not in (4, 8):
        return array.astype(np.float32 if array.dtype.itemsize < 4 else np.float64)
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))
