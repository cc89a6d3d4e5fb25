"""From the pixel data of a DICOM file to stored values, frame by frame; pydicom's plugins decompress."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gossipseg.errors import DataError
from gossipseg.learn.data.formats.dicom.base import PIP, quiet, read_dataset, tag_name, whole
from gossipseg.learn.data.formats.silence import DECODERS, libraries_silent

_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_ENDS_WITH_MARKER = "1.2.840.10008.1.2.4."
_ALIGNED = tuple(f"{_ENDS_WITH_MARKER}{n}" for n in (80, 81, 90, 91, 92, 93, 201, 202, 203))
"""JPEG-LS and JPEG 2000: their streams know their own precision, and pydicom mends the sign."""
_END = b"\xff\xd9"
_DAMAGE = (
    *("premature end", "bad Huffman code", "Corrupt JPEG data: found marker", "contains no image"),
    *("Failed to decode", "segment too long", "Invalid tile"),
)
"""What libjpeg and OpenJPEG say where they fill in for a stream that is torn or garbled."""
_VIDEO = range(100, 109)


def load(file: Path) -> Any:
    """A file with its pixels. Raises DataError where they are not there."""
    dataset = read_dataset(file)
    if not any(k in dataset for k in _PIXELS):
        raise DataError(
            "is missing; the file is truncated, or holds no image",
            file=file,
            key=tag_name("PixelData"),
            remedy="Export it again, or take the case out of the data list.",
        )
    return dataset


def stored_frames(dataset: Any, file: Path, frames: Sequence[int | None]) -> Iterator[tuple[np.ndarray, str]]:
    """Stored values of frames, (rows, columns) or (rows, columns, 3), with their photometric interpretation.

    YBR comes out as RGB, planes of colour as pixels. Bits above BitsStored (overlays) are cut off.
    Raises DataError where a frame cannot be decoded.
    """
    syntax = syntax_of(dataset)
    compressed = syntax.is_encapsulated
    if not compressed:
        refuse_wrong_length(dataset, file)
    runner = _decoded(dataset, syntax, [f or 0 for f in frames])
    for frame in frames:
        try:
            with quiet():
                array, properties = next(runner)
        except Exception as e:
            raise _undecodable(e, syntax, compressed, file, frame) from e
        photometric = str(properties.get("photometric_interpretation", ""))
        if str(syntax) not in _ALIGNED:
            array = _stored_bits(array, dataset, file, compressed)
        yield array, photometric


def syntax_of(dataset: Any) -> Any:
    """The transfer syntax; that of a file that names none is the one it was read by."""
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    named = getattr(dataset.file_meta, "TransferSyntaxUID", None) if hasattr(dataset, "file_meta") else None
    if named:
        return named
    implicit, little = dataset.original_encoding
    if implicit:
        return ImplicitVRLittleEndian
    return ExplicitVRLittleEndian if little in (True, None) else ExplicitVRBigEndian


def _decoded(dataset: Any, syntax: Any, frames: list[int]) -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
    from pydicom.pixels import get_decoder

    decoder = get_decoder(syntax)
    for frame in frames:
        if not syntax.is_encapsulated:
            yield decoder.as_array(dataset, index=frame, raw=False, correct_unused_bits=False)
            continue
        _refuse_unfinished(dataset, syntax, frame)
        yield _decompressed(decoder, dataset, frame)


def _decompressed(decoder: Any, dataset: Any, frame: int) -> tuple[np.ndarray, dict[str, Any]]:
    failure: Exception | None = None
    found: tuple[np.ndarray, dict[str, Any]]
    with libraries_silent(DECODERS) as said:
        try:
            found = decoder.as_array(dataset, index=frame, raw=False, correct_unused_bits=False)
        except Exception as e:
            failure = e
    if failure is not None:
        raise ValueError("; ".join([str(failure), *dict.fromkeys(said)])) from failure
    if damage := [line for line in said if any(words in line for words in _DAMAGE)]:
        raise ValueError(f"the stream is damaged: {damage[0]}")
    return found


def refuse_wrong_length(dataset: Any, file: Path) -> None:
    """Native pixel data must have the size that the header tells, up to a little padding."""
    keyword = next(k for k in _PIXELS if k in dataset)
    rows, columns = whole(dataset, "Rows", file), whole(dataset, "Columns", file)
    samples = whole(dataset, "SamplesPerPixel", file, default=1)
    frames = whole(dataset, "NumberOfFrames", file, default=1)
    bits = whole(dataset, "BitsAllocated", file)
    if "422" in str(dataset.get("PhotometricInterpretation", "")):
        samples = 2
    frame = rows * columns * samples * bits / 8
    expected, there = -(-int(frame * frames * 8) // 8), len(dataset[keyword].value or b"")
    if expected <= there < expected + max(frame, 2):
        return
    raise DataError(
        f"holds {there} bytes, {expected} are expected for {frames} frame(s) of {rows}×{columns}; "
        + ("the file is truncated" if there < expected else "the header does not fit the pixels"),
        file=file,
        key=tag_name(keyword),
        remedy="Export it again, or take the case out of the data list.",
    )


def _refuse_unfinished(dataset: Any, syntax: Any, frame: int) -> None:
    """Decoders fill what a torn stream lacks with grey: a JPEG family stream must have its end marker."""
    from pydicom.encaps import get_frame

    parts = str(syntax).removeprefix(_ENDS_WITH_MARKER).split(".")
    if not str(syntax).startswith(_ENDS_WITH_MARKER) or int(parts[0]) in _VIDEO:
        return
    count = int(dataset.get("NumberOfFrames", 1) or 1)
    if _END not in get_frame(dataset.PixelData, frame, number_of_frames=count)[-256:]:
        raise ValueError("the compressed stream has no end: it is truncated")


def _stored_bits(array: np.ndarray, dataset: Any, file: Path, compressed: bool) -> np.ndarray:
    """Cut off bits beside the stored ones, and carry the sign on."""
    if array.dtype.kind not in "iu":
        return array
    width = array.dtype.itemsize * 8
    stored = whole(dataset, "BitsStored", file, default=width)
    high = stored - 1 if compressed else whole(dataset, "HighBit", file, default=stored - 1)
    if not (0 < stored <= width and stored - 1 <= high < width):
        raise DataError(
            f"does not fit HighBit {high} and {width} bits per value", file=file, key=tag_name("BitsStored"),
            value=stored,
        )  # fmt: skip
    if stored == width:
        return array
    left = width - 1 - high
    # A shift up cuts off what lies above, the shift down what lies below, with the sign of the type.
    return (array << left) >> (width - stored)


def _undecodable(error: Exception, syntax: Any, compressed: bool, file: Path, frame: int | None) -> DataError:
    said = " ".join(str(error).split())
    where = "" if frame is None else f" (frame {frame + 1})"
    if not compressed:
        return DataError(
            f"cannot be read{where}: {said}; the pixels or their description are damaged",
            file=file,
            key=tag_name("PixelData"),
            remedy="Export it again, or take the case out of the data list.",
        )
    return DataError(
        f"the compressed pixels ({syntax.name}) cannot be decoded{where}: {said}. {_decoders(syntax)}",
        file=file,
        key=tag_name("PixelData"),
        remedy=f"Either a decoder is missing: {PIP} (another one, pylibjpeg-libjpeg, is under the GPL: "
        "install it if that suits you); or the stream is damaged: export the file again.",
    )


def _decoders(syntax: Any) -> str:
    from pydicom.pixels import get_decoder

    try:
        with quiet():
            decoder = get_decoder(syntax)
    except NotImplementedError:
        return "No decoder is known for this transfer syntax."
    tried = ", ".join(decoder.available_plugins) or "none"
    missing = "; ".join(decoder.missing_dependencies)
    return f"Decoders here: {tried}" + (f"; not here: {missing}." if missing else ".")
