"""Bytes of a file, whole and verified: a stream is read to its checksum, or the file is named as damaged."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from gossipseg.errors import DataError

GZIP_MAGIC = b"\x1f\x8b"
GZIP, ZLIB_OR_GZIP = 31, 47
"""How zlib is told what stream to expect."""
CHUNK = 1 << 20
COPY_AGAIN = "Copy it again from its source, or take the case out of the data list."

FOREIGN = {
    b"version https://git-lfs": "is a pointer of Git LFS, not the file itself: fetch it with `git lfs pull`",
    b"<!doctype html": "is a web page, not an image: the download failed",
    b"<html": "is a web page, not an image: the download failed",
    b"/annex/objects/": "is a pointer of git-annex, not the file itself: fetch it with `git annex get`",
}


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """The file for reading bytes. Raises DataError where it is missing, empty or not what it is named."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        raise DataError("no such file", file=path, remedy="Correct the data list or the path.") from None
    except OSError as e:
        remedy = "Correct its permissions, or take the case out of the data list."
        raise DataError(f"cannot be read: {e.strerror or e}", file=path, remedy=remedy) from None
    with file:
        head = file.read(64).lstrip().lower()
        if not head and not file.read(1):
            raise DataError("is empty (0 bytes)", file=path, remedy=COPY_AGAIN)
        for start, problem in FOREIGN.items():
            if head.startswith(start):
                raise DataError(problem, file=path, remedy="Then try again.")
        file.seek(0)
        yield file


def contents(path: Path) -> bytearray:
    """All bytes, decompressed where they are a gzip stream, whatever the suffix says. Raises DataError."""
    with opened(path) as file:
        size = path.stat().st_size
        compressed = file.read(2) == GZIP_MAGIC
        file.seek(0)
        if not compressed:
            data = bytearray(size)
            del data[file.readinto(data) :]  # type: ignore[attr-defined]
            return data
        data = bytearray()
        inflate(file, path, GZIP, data.extend)
        return data


def beginning(path: Path, count: int) -> bytes:
    """The first bytes, decompressed; without the check of the rest."""
    with opened(path) as file:
        head = file.read(CHUNK)
        if not head.startswith(GZIP_MAGIC):
            return head[:count]
        try:
            return zlib.decompressobj(GZIP).decompress(head, count)
        except zlib.error as e:
            raise _damaged(path, e) from None


def inflate(file: BinaryIO, path: Path, wbits: int, sink: Callable[[bytes], None]) -> None:
    """Decompress to the end of the file and hand the bytes to `sink`. Raises DataError.

    Several streams in a row (bgzip) and zeros after them (tapes) are allowed, as gzip has it; other bytes
    after the end are not.
    """
    decoder = zlib.decompressobj(wbits)
    begun, pending = False, b""
    while chunk := pending or file.read(CHUNK):
        pending = b""
        if decoder.eof:
            chunk = chunk.lstrip(b"\0")
            if not chunk:
                continue
            # One byte is too few to know a further stream: the decoder decides.
            if not chunk.startswith(GZIP_MAGIC[: len(chunk)]):
                raise DataError(
                    "has other bytes after the end of its compressed stream: the file is damaged",
                    file=path,
                    remedy=COPY_AGAIN,
                )
            decoder = zlib.decompressobj(wbits)
        begun = True
        try:
            sink(decoder.decompress(chunk))
        except zlib.error as e:
            raise _damaged(path, e) from None
        pending = decoder.unused_data
    if not begun or not decoder.eof:
        raise DataError(
            "ends before its compressed stream does: the file is truncated", file=path, remedy=COPY_AGAIN
        )


def need_bytes(path: Path, found: int, wanted: int, what: str = "voxels") -> None:
    """Raise DataError where the file has fewer bytes than its header promises."""
    if found < wanted:
        raise DataError(
            f"is truncated: its header promises {wanted} bytes of {what}, it holds {max(found, 0)}",
            file=path,
            remedy=COPY_AGAIN,
        )


def _damaged(path: Path, error: zlib.error) -> DataError:
    said = str(error)
    if "check" in said and "header" not in said:
        problem = "its checksum is wrong (gzip CRC): the file is damaged"
        if "length" in said:
            problem = "its length is wrong (gzip): the file is damaged"
    else:
        problem = f"its compressed stream is damaged ({said.rpartition(': ')[2]})"
    return DataError(problem, file=path, remedy=COPY_AGAIN)
