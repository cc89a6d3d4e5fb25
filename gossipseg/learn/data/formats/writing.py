"""Label maps in the format and the place of the image that they were made for.

| the image                  | its label map                                                             |
|----------------------------|---------------------------------------------------------------------------|
| NIfTI                      | .nii.gz with the image's header                                           |
| .mgz, .mgh                 | .mgz with the image's header                                              |
| .mha, .mhd / .nrrd, .nhdr  | .mha / .nrrd (one file, compressed)                                       |
| PNG                        | PNG                                                                       |
| TIFF                       | TIFF, with the voxel size where the image has one                         |
| JPEG, BMP                  | PNG: JPEG changes values, BMP has no 16 bits                              |
| DICOM                      | .nii.gz in the patient; PNG where it has no place (X-ray, ultrasound)     |
"""

from __future__ import annotations

import gzip
import io
import math
import struct
from pathlib import Path

import nibabel
import numpy as np
from PIL import Image

from gossipseg.errors import DataError
from gossipseg.learn.data.formats.checked import beginning
from gossipseg.learn.data.formats.itk_bytes import meta_bytes, nrrd_bytes
from gossipseg.learn.data.formats.itk_headers import meta_head, nrrd_head
from gossipseg.learn.data.formats.kinds import Kind, kind_of, suffix_of
from gossipseg.learn.data.formats.nifti import MGH_DATA_AT, nifti_header
from gossipseg.learn.data.formats.volume import Volume

NIFTI, PNG = ".nii.gz", ".png"
OWN = {Kind.NIFTI: NIFTI, Kind.MGH: ".mgz", Kind.META: ".mha", Kind.NRRD: ".nrrd", Kind.TIFF: ".tif"}
GZIP_LEVEL = 6
MGH_FRAMES_AT = 16
"""Number of frames and data type, in an MGH header."""


def possible_suffixes(source: Path, format: str) -> tuple[str, ...]:
    """What the label map's name may end with, before the image was opened.

    `format`: auto, nifti or dicom-seg.
    """
    if format == "nifti":
        return (NIFTI,)
    if format == "dicom-seg":
        return (".dcm",)
    kind = kind_of(source)
    if kind is Kind.DICOM or kind is None:
        return (NIFTI, PNG)
    return (OWN.get(kind, PNG),)


def suffix_for(source: Path, volume: Volume, format: str) -> tuple[str, str]:
    """The suffix of this image's label map, and why it is not the image's own; empty where it is.

    Raises DataError where the image cannot be written in the format that was asked for.
    """
    suffix = possible_suffixes(source, format)[0]
    kind = kind_of(source)
    if format == "nifti" and ((volume.raster and not volume.placed) or volume.affine is None):
        raise DataError(
            "has no place in space, which NIfTI would have to invent",
            file=source,
            key="--format",
            value=format,
            remedy="Leave --format out: the label map comes back in the image's own rows and columns.",
        )
    if format != "auto":
        return suffix, ""
    if kind is Kind.DICOM:
        if volume.raster and not volume.placed:
            return PNG, "DICOM without a place in the patient; written as PNG in its rows and columns"
        return NIFTI, "DICOM; written as NIfTI in the same place (--format dicom-seg writes DICOM)"
    if suffix == PNG and suffix_of(source.name) != PNG:
        return suffix, f"{suffix_of(source.name)[1:].upper()} cannot hold label values; written as PNG"
    if suffix in (".mha", ".nrrd") and suffix_of(source.name) in (".mhd", ".nhdr"):
        return suffix, "header and voxels in one file"
    return suffix, ""


def encode(labels: np.ndarray, source: Path, volume: Volume, suffix: str) -> bytes:
    """The bytes of a label map. `labels`: (*spatial) uint8 or uint16, on the grid of `volume`."""
    if suffix == PNG:
        buffer = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(labels)).save(buffer, format="PNG")
        return buffer.getvalue()
    if suffix == ".tif":
        return _tiff(labels, volume)
    if suffix in (".mha", ".nrrd"):
        return _itk(labels, source, volume, suffix)
    if suffix == ".mgz":
        return _mgh(labels, source)
    return _nifti(labels, source, volume)


def _nifti(labels: np.ndarray, source: Path, volume: Volume) -> bytes:
    if kind_of(source) is not Kind.NIFTI:
        made = nibabel.Nifti1Image(_solid(labels), volume.affine)
        made.header.set_xyzt_units("mm")
        if not volume.placed:
            made.header.set_sform(None, 0)
            made.header.set_qform(None, 0)
        return gzip.compress(made.to_bytes(), GZIP_LEVEL, mtime=0)
    header = nifti_header(source).as_byteswapped("<" if np.little_endian else ">")
    shape = header.get_data_shape()[:3]
    header.set_data_dtype(labels.dtype)
    header["cal_min"] = header["cal_max"] = 0
    header["scl_slope"], header["scl_inter"] = 1, 0
    header["intent_code"], header["intent_name"] = 0, b""
    header["vox_offset"] = 0
    kind = nibabel.Nifti2Image if header.sizeof_hdr == 540 else nibabel.Nifti1Image
    # Without an affine of its own the file keeps the header's sform and qform, codes and all.
    # A slice keeps the axes of length 1; a third axis that is longer held its channels.
    solid = labels.reshape(shape) if math.prod(shape) == labels.size else labels
    image = kind(solid, None, header)
    return gzip.compress(image.to_bytes(), GZIP_LEVEL, mtime=0)


def _mgh(labels: np.ndarray, source: Path) -> bytes:
    """The image's header with one frame of another type."""
    head = bytearray(beginning(source, MGH_DATA_AT))
    kind, stored = (0, labels) if labels.dtype == np.uint8 else (1, labels.astype(">i4"))
    struct.pack_into(">ii", head, MGH_FRAMES_AT, 1, kind)
    return gzip.compress(bytes(head) + stored.tobytes(order="F"), GZIP_LEVEL, mtime=0)


def _itk(labels: np.ndarray, source: Path, volume: Volume, suffix: str) -> bytes:
    """With as many axes as the image's file: a slice in space has three."""
    if kind_of(source) is Kind.META:
        flat = meta_head(source).fields.get("NDims") == "2"
        return meta_bytes(labels if flat else _solid(labels), volume)
    fields = nrrd_head(source).fields
    return nrrd_bytes(labels if fields.get("dimension") == "2" else _solid(labels), volume, fields)


def _tiff(labels: np.ndarray, volume: Volume) -> bytes:
    import tifffile

    pages = labels if labels.ndim == 2 else np.moveaxis(labels, -1, 0)
    options: dict[str, object] = {
        "photometric": "minisblack",
        "metadata": {"axes": "YX" if labels.ndim == 2 else "ZYX"},
    }
    spacing = volume.spacing_mm
    if spacing is not None:
        said = {"axes": "YX" if labels.ndim == 2 else "ZYX", "unit": "mm"}
        depth = {"spacing": spacing[2]} if len(spacing) > 2 else {}
        options |= {"imagej": True, "resolution": (1 / spacing[1], 1 / spacing[0]), "metadata": said | depth}
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, np.ascontiguousarray(pages), **options)
    return buffer.getvalue()


def _solid(labels: np.ndarray) -> np.ndarray:
    """With three axes."""
    return labels[..., None] if labels.ndim == 2 else labels
