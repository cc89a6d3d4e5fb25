"""TIFF: one page is a picture (row, column), a stack of pages a volume (row, column, page).

tifffile reads it; Pillow decodes the compressions for which tifffile wants a further package, page by page.
A picture is read as it is shown, mask or not: palettes as palette.py says, 0 is white where the file says so
(as Pillow and viewers have it), the orientation is applied. The voxel size is taken where a program of
microscopy or radiology gave it with a unit (ImageJ, OME, pixels per centimetre). Dots per inch are left
alone: they nearly always speak of a printer.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import tifffile
from PIL import Image, ImageSequence, UnidentifiedImageError

from gossipseg.errors import DataError
from gossipseg.learn.data.formats.axes import real, wrong_dimensions
from gossipseg.learn.data.formats.checked import COPY_AGAIN, opened
from gossipseg.learn.data.formats.palette import resolve
from gossipseg.learn.data.formats.pictures import ORIENTATION, plain, turn, turn_note, without_alpha
from gossipseg.learn.data.formats.silence import libraries_silent
from gossipseg.learn.data.formats.volume import Volume

MM_PER_UNIT = {
    "mm": 1.0, "MM": 1.0, "millimeter": 1.0, "millimetre": 1.0, "cm": 10.0, "CM": 10.0, "centimeter": 10.0,
    "centimetre": 10.0, "um": 1e-3, "µm": 1e-3, "μm": 1e-3, "\\u00b5m": 1e-3, "micron": 1e-3, "microns": 1e-3,
    "micrometer": 1e-3, "micrometre": 1e-3, "nm": 1e-6, "nanometer": 1e-6, "nanometre": 1e-6, "m": 1000.0,
}  # fmt: skip
"""The micro sign and the Greek letter look alike, and both are in use."""
CENTIMETRE = 3
WHITE_IS_ZERO, PALETTE, CMYK, YCBCR, LAB = 0, 3, 5, 6, 8
ALWAYS_DECODED = ("LZW", "PACKBITS", "CCITTRLE", "CCITT_T4", "CCITT_T6", "DEFLATE", "ADOBE_DEFLATE", "JPEG")
"""Compressions that every build of Pillow's libtiff has."""
LYING = (5, 6, 7, 8)
"""Orientations in which rows and columns change places, and so do their sizes."""
ALPHA = (1, 2)
"""Extra samples that are an alpha channel."""


def read_tiff(path: Path, spatial_dims: int, as_label: bool = False) -> Volume:
    """Read a TIFF of one page (2-D) or a stack (3-D). Raises DataError."""
    with opened(path), _listening(path), tifffile.TiffFile(path) as file:
        series, notes = _series(file, path)
        axes, shape = _named(series)
        pages = next((a for a in axes if a in "ZIQT"), None)
        if len(shape) - _channel_axes(axes) != spatial_dims:
            raise wrong_dimensions(shape, spatial_dims, path)
        if axes.count("Y") != 1 or axes.count("X") != 1 or pages == "T" or _channel_axes(axes) > 1:
            raise _unclear(axes, shape, path)
        page = series.pages[0].aspage() if hasattr(series.pages[0], "aspage") else series.pages[0]
        array = _decoded(file, series, page, axes, shape, as_label, path)
        notes += turn_note(_orientation(page), path)
        spacing = _spacing(file, page, spatial_dims)
        if spacing is not None and _orientation(page) in LYING:
            spacing[:2] = spacing[1::-1]
    affine = None if spacing is None else np.diag([*spacing, *[1.0] * (4 - len(spacing))])
    return Volume(np.ascontiguousarray(array), affine, False, notes, True)


def _series(file: tifffile.TiffFile, path: Path) -> tuple[Any, tuple[str, ...]]:
    """What is meant by this file: its one image, at its full resolution."""
    if len(file.series) != 1:
        shapes = ", ".join(str(s.shape) for s in file.series[:4])
        raise DataError(
            f"holds {len(file.series)} images of different kinds ({shapes})",
            file=path,
            remedy="Save the one that is meant by itself.",
        )
    series = file.series[0]
    levels = len(series.levels)
    notes = (f"{path.name}: a pyramid of {levels} levels; the full resolution is read",) if levels > 1 else ()
    return series, notes


def _named(series: Any) -> tuple[str, tuple[int, ...]]:
    """Axes and shape without axes of length 1 other than those of the picture."""
    kept = [(a, n) for a, n in zip(series.axes, series.shape, strict=True) if n > 1 or a in "YX"]
    return "".join(a for a, _ in kept), tuple(n for _, n in kept)


def _channel_axes(axes: str) -> int:
    return sum(a in "SC" for a in axes)


def _unclear(axes: str, shape: tuple[int, ...], path: Path) -> DataError:
    return DataError(
        "has axes of which it is not clear what they are",
        file=path,
        key=f"axes {axes}",
        value=shape,
        remedy="Save rows, columns, and pages or channels alone.",
    )


# ---------------------------------------------------------------- pixels


def _decoded(
    file: tifffile.TiffFile,
    series: Any,
    page: Any,
    axes: str,
    shape: tuple[int, ...],
    as_label: bool,
    path: Path,
) -> np.ndarray:
    """(C, row, column[, page])."""
    if int(page.photometric) in (CMYK, YCBCR, LAB) or not _decodes(page):
        return _by_pillow(path, series, page, axes, as_label)
    array = real(series.asarray().reshape(shape), path)
    order = [axes.index("Y"), axes.index("X"), *(i for i, a in enumerate(axes) if a in "ZIQ")]
    channel = [i for i, a in enumerate(axes) if a in "SC"]
    array = turn(array.transpose(*order, *channel), _orientation(page))
    if int(page.photometric) == PALETTE:
        colours = (np.asarray(page.colormap).T >> 8).astype(np.uint8)
        array = resolve(array, colours, as_label, path)
        channel = [0] if array.ndim > len(order) else []
    elif int(page.photometric) == WHITE_IS_ZERO:
        array = _inverted(array, page, path)
    array = np.moveaxis(array, -1, 0) if channel else array[None]
    alpha = bool(channel) and any(int(e) in ALPHA for e in page.extrasamples)
    return without_alpha(array, as_label, path, alpha=alpha)


def _orientation(page: Any) -> int:
    return int(page.tags[ORIENTATION].value) if ORIENTATION in page.tags else 1


def _decodes(page: Any) -> bool:
    """Whether tifffile can decode this without a further package."""
    try:
        page.decode  # noqa: B018  (made on first use; raises what it lacks)
        page.decode(None, 0)
    except (ValueError, KeyError, ImportError) as e:
        return "imagecodecs" not in str(e)
    return True


def _inverted(array: np.ndarray, page: Any, path: Path) -> np.ndarray:
    if array.dtype.kind != "u":
        raise DataError(
            "says that 0 is white, of numbers that have no black",
            file=path,
            key="PhotometricInterpretation",
            value=0,
            remedy="Save it anew with 0 as black.",
        )
    inverted: np.ndarray = array.dtype.type((1 << int(page.bitspersample)) - 1) - array
    return inverted


def _by_pillow(path: Path, series: Any, page: Any, axes: str, as_label: bool) -> np.ndarray:
    """Page by page, where tifffile lacks the decoder. Raises DataError where Pillow lacks it too."""
    lacking = DataError(
        f"is compressed with {page.compression.name} ({page.bitspersample} bit), for which no decoder is "
        "installed",
        file=path,
        key="compression",
        value=page.compression.name,
        remedy="Install it (pip install imagecodecs), or save the file uncompressed or as PNG.",
    )
    by_planes = "C" in axes or (page.planarconfig is not None and int(page.planarconfig) == 2 and "S" in axes)
    if (page.samplesperpixel > 1 and page.bitspersample != 8) or by_planes:
        raise lacking
    try:
        with libraries_silent(), Image.open(path, formats=["TIFF"]) as picture:
            found = []
            for frame in ImageSequence.Iterator(picture):
                frame.load()  # which turns a TIFF as it is shown
                found.append(plain(frame, as_label, path))
    except UnidentifiedImageError:
        raise lacking from None
    except OSError as e:
        # libtiff says the same of a stream that it lacks the decoder for and of one that is damaged.
        if "not available" in str(e) or ("decoder" in str(e) and page.compression.name not in ALWAYS_DECODED):
            raise lacking from None
        said = f"its {page.compression.name} stream is damaged ({e})"
        raise DataError(f"cannot be read as an image: {said}", file=path, remedy=COPY_AGAIN) from None
    if len(found) != len(series.pages):
        raise lacking
    array = np.stack(found, 2) if any(a in "ZIQ" for a in axes) else found[0]
    dims = 2 + any(a in "ZIQ" for a in axes)
    array = np.moveaxis(array, -1, 0) if array.ndim > dims else array[None]
    return without_alpha(array, as_label, path, alpha=any(int(e) in ALPHA for e in page.extrasamples))


# ---------------------------------------------------------------- voxel size


def _spacing(file: tifffile.TiffFile, page: Any, dims: int) -> list[float] | None:
    """mm per row, column[, page]; None where the file does not say all of them."""
    sizes = _imagej(file, page) or _ome(file) or _centimetres(page)
    if sizes is None or len(sizes) < dims:
        return None
    return sizes[:dims] if all(math.isfinite(s) and s > 0 for s in sizes[:dims]) else None


def _imagej(file: tifffile.TiffFile, page: Any) -> list[float] | None:
    said = (file.imagej_metadata or {}) if file.is_imagej else {}
    factor = _mm_per(str(said.get("unit", "")))
    sizes = _per_unit(page)
    if factor is None or sizes is None:
        return None
    depth = said.get("spacing")
    return [s * factor for s in [*sizes, *([abs(float(depth))] if depth else [])]]


def _ome(file: tifffile.TiffFile) -> list[float] | None:
    if not file.is_ome or not file.ome_metadata:
        return None
    pixels = next(
        (e for e in ElementTree.fromstring(file.ome_metadata).iter() if e.tag.endswith("}Pixels")), None
    )
    sizes: list[float] = []
    for axis in "YXZ":
        size = None if pixels is None else pixels.get(f"PhysicalSize{axis}")
        factor = _mm_per((pixels.get(f"PhysicalSize{axis}Unit") or "µm") if pixels is not None else "")
        if size is None or factor is None:
            break
        sizes.append(float(size) * factor)
    return sizes if len(sizes) >= 2 else None


def _mm_per(unit: str) -> float | None:
    """A unit in mm, words in any case; of the symbols "Mm" is another unit than "mm"."""
    unit = unit.strip()
    return MM_PER_UNIT.get(unit) or (MM_PER_UNIT.get(unit.lower()) if len(unit) > 2 else None)


def _centimetres(page: Any) -> list[float] | None:
    unit = page.tags.get("ResolutionUnit")
    sizes = _per_unit(page) if unit is not None and int(unit.value) == CENTIMETRE else None
    return None if sizes is None else [10 * s for s in sizes]


def _per_unit(page: Any) -> list[float] | None:
    """Units per pixel along rows and columns."""
    found = []
    for name in ("YResolution", "XResolution"):
        tag = page.tags.get(name)
        if tag is None or not all(tag.value):
            return None
        found.append(tag.value[1] / tag.value[0])
    return found


# ---------------------------------------------------------------- complaints


@contextmanager
def _listening(path: Path) -> Iterator[None]:
    """tifffile logs a damaged chain of pages and goes on with those it found; here that is an error."""
    heard: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.levelno >= logging.ERROR:
                heard.append(record.getMessage())

    logger, handler = logging.getLogger("tifffile"), Keep()
    propagates, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagates
        if heard:  # also where the pages it found were refused for something else
            raise DataError(
                f"cannot be read as an image: it is damaged ({heard[0][:200]})", file=path, remedy=COPY_AGAIN
            )
