"""Label maps as the bytes of a MetaImage or NRRD file, with as much of a place as their image has."""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Mapping

import numpy as np

from gossipseg.learn.data.formats.itk import TO_RAS
from gossipseg.learn.data.formats.volume import Volume

LEVEL = 6
META_TYPES = {"uint8": "MET_UCHAR", "uint16": "MET_USHORT"}


def meta_bytes(labels: np.ndarray, volume: Volume) -> bytes:
    """`labels`: (i, j[, k]) uint8 or uint16, on the grid of `volume`."""
    dims = labels.ndim
    voxels = zlib.compress(_little(labels), LEVEL)
    lines = ["ObjectType = Image", f"NDims = {dims}", "BinaryData = True", "BinaryDataByteOrderMSB = False"]
    lines += ["CompressedData = True", f"CompressedDataSize = {len(voxels)}"]
    if volume.affine is not None:
        affine = TO_RAS @ volume.affine
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        if volume.placed:
            lines += [f"TransformMatrix = {_numbers((affine[:dims, :dims] / spacing[:dims]).T.ravel())}"]
            lines += [f"Offset = {_numbers(affine[:dims, 3])}"]
        lines += [f"ElementSpacing = {_numbers(spacing[:dims])}"]
    lines += [f"DimSize = {_numbers(labels.shape)}", f"ElementType = {META_TYPES[labels.dtype.name]}"]
    return ("\n".join(lines) + "\nElementDataFile = LOCAL\n").encode() + voxels


def nrrd_bytes(labels: np.ndarray, volume: Volume, source: Mapping[str, str]) -> bytes:
    """`labels`: (i, j[, k]) uint8 or uint16, on the grid of `volume`. `source`: the fields of its header."""
    lines = ["NRRD0004", f"type: {labels.dtype.name}", f"dimension: {labels.ndim}"]
    if volume.affine is not None and volume.placed:
        affine = TO_RAS @ volume.affine
        directions = " ".join(_vector(affine[:3, axis]) for axis in range(labels.ndim))
        lines += ["space: left-posterior-superior", f"sizes: {_numbers(labels.shape)}"]
        lines += [f"space directions: {directions}", f"space origin: {_vector(affine[:3, 3])}"]
    elif own := _own_space(source, labels.ndim):
        lines += [own[0], f"sizes: {_numbers(labels.shape)}", *own[1:]]
    else:
        lines += [f"sizes: {_numbers(labels.shape)}"]
        if volume.affine is not None:
            lines += [f"spacings: {_numbers(np.linalg.norm(volume.affine[:3, : labels.ndim], axis=0))}"]
    lines += ["endian: little", "encoding: gzip"]
    return ("\n".join(lines) + "\n\n").encode() + gzip.compress(_little(labels), LEVEL, mtime=0)


def _own_space(source: Mapping[str, str], axes: int) -> list[str]:
    """The place in a space that is not the patient's, word for word; [] where there is none for `axes`."""
    key = next((k for k in ("space", "space dimension") if k in source), "")
    directions = [d for d in re.findall(r"none|\([^)]*\)", source.get("space directions", "")) if d != "none"]
    if not key or len(directions) != axes:
        return []
    lines = [f"{key}: {source[key]}", f"space directions: {' '.join(directions)}"]
    return lines + [f"{k}: {source[k]}" for k in ("space units", "space origin") if k in source]


def _little(labels: np.ndarray) -> bytes:
    return labels.astype(labels.dtype.newbyteorder("<")).tobytes(order="F")


def _numbers(found: object) -> str:
    return " ".join(f"{x:.17g}" for x in np.asarray(found).tolist())


def _vector(found: np.ndarray) -> str:
    return "(" + ",".join(f"{x:.17g}" for x in found) + ")"
