"""From a file to an array with its geometry, whatever kind of file it is.

Axes: channel first; scanners' formats in their own order (i, j, k) with the affine to RAS mm; pictures and
two-dimensional DICOM as (row, column), which is what a label written back must have.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from gossipseg.errors import DataError, GossipsegError, LocalError
from gossipseg.learn.data.formats.grid import described, millimetres, same_grid
from gossipseg.learn.data.formats.kinds import READ, Kind, kind_of
from gossipseg.learn.data.formats.volume import Segmentation, Volume, spacing_of

__all__ = ["Segmentation", "Volume", "is_raster", "read_label", "read_volume", "spacing_of"]

TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
AS_STORED = (
    "It may have been drawn on the picture as it is stored: draw it on the picture as it is shown, or save "
    "the picture without its EXIF orientation."
)
SPACING_TOLERANCE = 1e-3
"""Voxel sizes of one grid may differ by this part: files round them."""


def is_raster(path: Path) -> bool:
    """Whether the file is a picture (PNG, JPEG, BMP, TIFF): (row, column), without a place in the patient."""
    return kind_of(path) in (Kind.PICTURE, Kind.TIFF)


def read_volume(image: Path | Sequence[Path], spatial_dims: int) -> Volume:
    """Read an image, or stack one single-channel file per channel.

    Raises DataError when a file cannot be read, has other than `spatial_dims` spatial dimensions, or lies
    elsewhere than the first one; LocalError when a package for its kind is missing.
    """
    if isinstance(image, Path):
        return _read_one(image, spatial_dims)
    first = _single(_read_one(image[0], spatial_dims), image[0])
    channels, notes = [first.array], first.notes
    for path in image[1:]:
        part = _single(_read_one(path, spatial_dims), path)
        part = _beside(part, first, path, image[0], "The channels of an image must lie in one place")
        channels.append(same_grid(part.array, part.affine, first, path, image[0]))
        notes += part.notes
    return replace(first, array=np.concatenate(channels), notes=notes)


def read_label(path: Path, spatial_dims: int, image: Volume | None) -> Volume | Segmentation:
    """Read a label file, on its own grid. `image`: what it is a label of; contours are drawn onto its grid.
    None: for its values alone, wherever they lie.

    A label that does not say where it lies has the place of its image, if both have the same axes, shape
    and voxel size. Raises DataError.
    """
    label = _read_one_label(path, spatial_dims, image)
    if image is None:
        return label
    if isinstance(label, Segmentation):
        if _kind(path) is not Kind.DICOM:  # which refers to its image
            outline = Volume(np.empty((0, *label.shape)), label.affine, label.placed)
            _beside(outline, image, path, None, "A label must lie where its image does")
        return label
    return _beside(label, image, path, None, "A label must lie where its image does")


def _single(part: Volume, path: Path) -> Volume:
    if part.array.shape[0] == 3 and part.raster and (part.array == part.array[:1]).all():
        part = replace(part, array=part.array[:1])  # grey, saved in colour
    if part.array.shape[0] != 1:
        raise DataError(
            "must have one channel",
            file=path,
            key="shape (channel first)",
            value=part.array.shape,
            remedy="Files listed together are the channels of one image, one each.",
        )
    return part


def _beside(part: Volume, image: Volume, path: Path, image_file: Path | None, rule: str) -> Volume:
    """`part` with the place of `image` where it has none of its own. Raises DataError if that is a guess."""
    if part.placed and image.placed and part.affine is not None and image.affine is not None:
        return part
    of = f" ({image_file})" if image_file else ""
    notes = "; ".join((*part.notes, *image.notes))
    alike = part.raster == image.raster and (part.raster or part.placed == image.placed)
    if not alike:
        raise DataError(
            f"cannot be laid onto its image{of} for certain: {_told(part)}; the image {_told(image)}",
            file=path,
            key="place",
            remedy=f"{rule}: save it in the image's own format, with the image's orientation in its header.",
        )
    if part.shape != image.shape:
        raise DataError(
            f"does not lie on the same grid as its image{of}: its shape is {part.shape}, the image's "
            f"{image.shape}{f' ({notes})' if notes else ''}",
            file=path,
            key="shape",
            value=part.shape,
            remedy=AS_STORED
            if notes and part.raster and part.shape == image.shape[::-1]
            else "Resample it onto the image's grid, or correct the data list.",
        )
    one, other = part.spacing_mm, image.spacing_mm
    if one is not None and other is not None and not np.allclose(one, other, rtol=SPACING_TOLERANCE, atol=0):
        raise DataError(
            f"has voxels of {millimetres(one)} mm, its image{of} {millimetres(other)} mm",
            file=path,
            key="spacing_mm",
            remedy="Resample it onto the image's grid, or correct the one that is wrong at its source.",
        )
    return replace(part, affine=image.affine, placed=image.placed)


def _told(volume: Volume) -> str:
    if volume.raster:
        return f"has rows and columns of a picture ({described(volume.shape, None)})"
    if volume.placed:
        return f"has {described(volume.shape, volume.affine)}"
    return f"has a header that gives no orientation (shape {volume.shape})"


# ---------------------------------------------------------------- one file


def _read_one(path: Path, spatial_dims: int) -> Volume:
    with _guarded(path):
        return _reader(path, spatial_dims, as_label=False)()


def _read_one_label(path: Path, spatial_dims: int, image: Volume | None) -> Volume | Segmentation:
    with _guarded(path):
        kind = _kind(path)
        if kind in (Kind.META, Kind.NRRD):
            from gossipseg.learn.data.formats.itk import read_itk_label

            return read_itk_label(path, spatial_dims)
        if kind is Kind.DICOM:
            from gossipseg.learn.data.formats.dicom import labels as dicom_labels

            if dicom_labels.is_segmentation(path):
                if image is None:
                    raise DataError("has no voxels without the image that it refers to", file=path)
                found: Segmentation = dicom_labels.read_segmentation(path, image)
                return found
        return _reader(path, spatial_dims, as_label=True)()


def _reader(path: Path, dims: int, *, as_label: bool) -> Callable[[], Volume]:
    """The reader of this kind of file; each brings its library along only when it is needed."""
    kind = _kind(path)
    if kind is Kind.NIFTI or kind is Kind.MGH:
        from gossipseg.learn.data.formats import nifti

        return lambda: (nifti.read_nifti if kind is Kind.NIFTI else nifti.read_mgh)(path, dims)
    if kind is Kind.META or kind is Kind.NRRD:
        from gossipseg.learn.data.formats.itk import read_itk

        return lambda: read_itk(path, dims)
    if kind is Kind.TIFF:
        from gossipseg.learn.data.formats.tiff import read_tiff

        return lambda: read_tiff(path, dims, as_label)
    if kind is Kind.PICTURE:
        return lambda: _picture(path, dims, as_label)
    return lambda: _dicom(path, dims, as_label)


def _picture(path: Path, dims: int, as_label: bool) -> Volume:
    from gossipseg.learn.data.formats.axes import wrong_dimensions
    from gossipseg.learn.data.formats.pictures import read_picture

    volume = read_picture(path, as_label)
    if dims != 2:
        raise wrong_dimensions(volume.shape, dims, path)
    return volume


def _dicom(path: Path, dims: int, as_label: bool) -> Volume:
    from gossipseg.learn.data.formats.dicom.image import read_dicom

    volume: Volume = read_dicom(path, dims, as_label=as_label)
    return replace(volume, raster=True) if dims == 2 else volume


def _kind(path: Path) -> Kind:
    """By the suffix; among pictures by the content, which viewers go by as well. Raises DataError."""
    if not path.exists():
        raise DataError("no such file", file=path, remedy="Correct the data list or the path.")
    if not (path.is_file() or path.is_dir()):  # to read a pipe may take for ever
        remedy = "Put a file there, or take the case out of the data list."
        raise DataError("is neither a file nor a folder", file=path, remedy=remedy)
    kind = kind_of(path)
    if kind is None:
        raise DataError(
            "is of a kind that is not read",
            file=path,
            key="suffix",
            value=path.suffix or "none",
            remedy=f"Convert it. Read are {READ}.",
        )
    if kind in (Kind.PICTURE, Kind.TIFF):
        with path.open("rb") as file:
            head = file.read(8)
        if len(head) == 8:
            kind = Kind.TIFF if head.startswith(TIFF_MAGIC) else kind
            kind = Kind.PICTURE if head.startswith((b"\x89PNG", b"\xff\xd8\xff", b"BM")) else kind
    return kind


@contextmanager
def _guarded(path: Path) -> Iterator[None]:
    """What the libraries warn of or raise about a file becomes a DataError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (GossipsegError, MemoryError):
        raise
    except ImportError as e:
        raise LocalError(f"{path}: reading it needs the package {e.name}. Install it.") from e
    except FileNotFoundError:
        raise DataError("no such file", file=path, remedy="Correct the data list or the path.") from None
    except Exception as e:
        # The libraries raise whatever comes (OSError, ValueError, EOFError, zlib.error, struct.error, errors
        # of their own): for the operator, the file is broken.
        said = " ".join(str(e).split())[:300]
        raise DataError(
            f"cannot be read as an image: {type(e).__name__}: {said}",
            file=path,
            remedy="Replace the file, or take the case out of the data list.",
        ) from e
