"""PNG, JPEG and BMP, in one meaning for image and mask alike.

| in the file                  | is read as                                                              |
|------------------------------|-------------------------------------------------------------------------|
| EXIF orientation             | turned, as every viewer shows it                                        |
| palette                      | as palette.py says                                                      |
| alpha                        | dropped where opaque; else a channel of the image, and no mask          |
| 16 bit                       | its values, grey or colour                                              |
| 1 bit                        | 0 and 1                                                                 |
| CMYK, YCbCr                  | RGB                                                                     |
| resolution, gamma, profile   | not used: they speak of a printer or a screen                           |
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from gossipseg.errors import DataError
from gossipseg.learn.data.formats.checked import COPY_AGAIN, opened
from gossipseg.learn.data.formats.palette import resolve
from gossipseg.learn.data.formats.volume import Volume

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
PNG_COLOUR_16 = {2, 6}
PNG_GREY_ALPHA = 4
"""PNG colour types of which Pillow drops the lower byte of 16 bits: RGB, RGB with alpha, grey with alpha."""
READ = ("PNG", "JPEG", "BMP", "DIB")
ORIENTATION = 0x0112
MAX_PIXELS = 1 << 29
FLATTEN = "Flatten the picture onto its background, without an alpha channel."


def read_picture(path: Path, as_label: bool = False) -> Volume:
    """A picture as it is shown: (C, row, column). Raises DataError."""
    with opened(path) as file:
        deep = _check_png(file, path) in PNG_COLOUR_16 if file.read(8) == PNG_MAGIC else False
    with _open(path) as picture:
        frames = getattr(picture, "n_frames", 1)
        if frames > 1 and picture.format != "MPO":
            raise DataError(
                f"is animated ({frames} frames)", file=path, remedy="Save the frame that is meant by itself."
            )
        picture.load()
        pixels = _deep(path) if deep else plain(picture, as_label, path)
        turned = turn(pixels, picture.getexif().get(ORIENTATION, 1))
        notes = _notes(picture.getexif().get(ORIENTATION, 1), frames, path)
    array = np.moveaxis(turned, -1, 0) if turned.ndim == 3 else turned[None]
    return Volume(np.ascontiguousarray(without_alpha(array, as_label, path)), None, False, notes, True)


def plain(picture: Image.Image, as_label: bool, path: Path) -> np.ndarray:
    """A loaded picture of any mode: (row, column) or (row, column, C); alpha comes last."""
    mode = picture.mode
    if mode in ("P", "PA"):
        return _unpacked(picture, as_label, path)
    if mode == "1":
        return np.asarray(picture).astype(np.uint8)
    if mode in ("La", "RGBa"):
        return np.asarray(picture.convert({"La": "LA", "RGBa": "RGBA"}[mode]))
    if mode in ("L", "RGB") and "transparency" in picture.info and not as_label:
        return np.asarray(picture.convert("RGBA" if mode == "RGB" else "LA"))
    if mode in ("L", "LA", "RGB", "RGBA", "F") or mode.startswith("I"):
        array = np.asarray(picture)
        return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))
    return np.asarray(picture.convert("RGB"))


def turn(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """(row, column, …) as an EXIF or TIFF orientation 1…8 says it is shown; other numbers say nothing."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def without_alpha(array: np.ndarray, as_label: bool, path: Path, *, alpha: bool | None = None) -> np.ndarray:
    """(C, …) without an alpha channel that hides nothing. `alpha`: whether the last is one; None: 2 or 4.

    Raises DataError for a mask that is transparent somewhere: its shape may be in the alpha alone.
    """
    if not (array.shape[0] in (2, 4) if alpha is None else alpha):
        return array
    full = np.iinfo(array.dtype).max if array.dtype.kind in "iu" else 1
    hidden = float((array[-1] != full).mean())
    if not hidden:
        return array[:-1]
    if as_label:
        raise DataError(
            f"is transparent in {hidden:.0%} of its pixels: a mask has one number per pixel",
            file=path,
            key="channels",
            value=array.shape[0],
            remedy=FLATTEN,
        )
    return array


def _open(path: Path) -> Image.Image:
    before = Image.MAX_IMAGE_PIXELS
    try:
        Image.MAX_IMAGE_PIXELS = MAX_PIXELS
        return Image.open(path, formats=READ)
    except Image.DecompressionBombError as e:
        raise DataError(
            f"is too large to be read in one piece: {e}", file=path, remedy="Cut it into tiles."
        ) from None
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _unpacked(picture: Image.Image, as_label: bool, path: Path) -> np.ndarray:
    if "transparency" in picture.info and not as_label:
        return np.asarray(picture.convert("RGBA"))
    packed = picture if picture.mode == "P" else picture.convert("P")
    colours = np.asarray(packed.getpalette("RGB") or [], np.uint8).reshape(-1, 3)
    return resolve(np.asarray(packed), colours, as_label, path)


def turn_note(orientation: int, path: Path) -> tuple[str, ...]:
    """What to say of a picture that is not shown as it is stored."""
    if orientation not in range(2, 9):
        return ()
    return (f"{path.name}: turned as its EXIF orientation ({orientation}) says, as viewers show it",)


def _notes(orientation: int, frames: int, path: Path) -> tuple[str, ...]:
    notes = turn_note(orientation, path)
    return (*notes, f"{path.name}: holds {frames} pictures; the first is read") if frames > 1 else notes


def _check_png(file: BinaryIO, path: Path) -> int | None:
    """Read every chunk to its checksum; the colour type of a picture of 16 bits, else None."""
    deep = None
    while True:
        head = file.read(8)
        length, name = int.from_bytes(head[:4], "big"), head[4:]
        body = file.read(length) if len(head) == 8 else b""
        said = file.read(4)
        if len(said) < 4:
            raise DataError(
                "cannot be read as an image: it is truncated (no end of the PNG)",
                file=path,
                remedy=f"Replace the file. {COPY_AGAIN}",
            )
        if zlib.crc32(body, zlib.crc32(name)) != int.from_bytes(said, "big"):
            raise DataError(
                "cannot be read as an image: its checksum is wrong (PNG CRC): the file is damaged",
                file=path,
                remedy=f"Replace the file. {COPY_AGAIN}",
            )
        if name == b"IHDR" and body[8] == 16:
            deep = body[9]
            if deep == PNG_GREY_ALPHA:
                raise DataError("has 16 bits of grey and an alpha channel", file=path, remedy=FLATTEN)
        if name == b"IEND":
            return deep


def _deep(path: Path) -> np.ndarray:
    """16 bits per channel in colour, by ITK: (row, column, C)."""
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    pixels: np.ndarray = sitk.GetArrayFromImage(sitk.ReadImage(str(path), imageIO="PNGImageIO"))
    return pixels
