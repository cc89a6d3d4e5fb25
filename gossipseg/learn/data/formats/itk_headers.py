"""Headers of MetaImage and NRRD, and a check of the voxels they promise.

ITK reads a damaged compressed MetaImage without an error, and with wrong voxels. So before ITK opens a file,
its voxels are counted, and where they are compressed, read to their checksum.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from gossipseg.errors import DataError
from gossipseg.learn.data.formats.checked import GZIP, ZLIB_OR_GZIP, inflate, need_bytes, opened

META_BYTES = {
    "CHAR": 1, "UCHAR": 1, "SHORT": 2, "USHORT": 2, "INT": 4, "UINT": 4, "LONG": 4, "ULONG": 4,
    "LONG_LONG": 8, "ULONG_LONG": 8, "FLOAT": 4, "DOUBLE": 8,
}  # fmt: skip
"""ElementType without MET_ → bytes."""
NRRD_BYTES = {
    **dict.fromkeys(("signed char", "int8", "int8_t", "uchar", "unsigned char", "uint8", "uint8_t"), 1),
    **dict.fromkeys(("short", "short int", "signed short", "signed short int", "int16", "int16_t"), 2),
    **dict.fromkeys(("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"), 2),
    **dict.fromkeys(
        ("int", "signed int", "int32", "int32_t", "uint", "unsigned int", "uint32", "uint32_t"), 4
    ),
    **dict.fromkeys(("longlong", "long long", "long long int", "signed long long", "int64", "int64_t"), 8),
    **dict.fromkeys(("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"), 8),
    "float": 4,
    "double": 8,
}
MOST_SPARE = 512
"""Most bytes after the voxels that may be padding."""
HEADER_LIMIT = 1 << 20
"""More than any header needs."""


@dataclass(frozen=True, slots=True)
class Head:
    """A header: its fields, and where the voxels are."""

    fields: dict[str, str]
    """MetaImage's as they are; NRRD's in lower case, its own pairs (`:=`) as they are."""
    data_file: Path
    offset: int
    """Where the voxels begin in it; -1: so that they end with the file."""
    encoding: str
    """raw, zlib, gzip or text."""
    count: int
    """Values."""
    item_bytes: int
    skip: int = 0
    """Bytes before the voxels in the decompressed stream; -1: so that they end with it."""


def meta_head(path: Path) -> Head:
    """The header of .mha or .mhd. Raises DataError."""
    fields: dict[str, str] = {}
    offset = 0
    with opened(path) as file:
        while "ElementDataFile" not in fields:
            line = file.readline(HEADER_LIMIT)
            offset += len(line)
            key, equals, value = line.decode("utf-8", "replace").partition("=")
            if not equals or offset > HEADER_LIMIT:
                raise _no_header("MetaImage", path)
            fields[key.strip()] = value.strip()
    try:
        sizes = [int(n) for n in fields["DimSize"].split()]
        kind = fields.get("ElementType", "").removeprefix("MET_").removesuffix("_ARRAY")
        count = math.prod(sizes) * int(fields.get("ElementNumberOfChannels", 1))
        start = int(fields.get("HeaderSize", 0))
    except (KeyError, ValueError):
        raise _no_header("MetaImage", path) from None
    _known_type(kind in META_BYTES, kind, "ElementType", path)
    _positive(sizes, "DimSize", path)
    named = fields["ElementDataFile"]
    local = named.upper() == "LOCAL"
    encoding = "zlib" if _true(fields, "CompressedData") else "raw"
    if not _true(fields, "BinaryData", "BinaryDataFile", default=True):
        encoding = "text"
    at = offset if local else start
    return Head(fields, _data_file(path, named, local), at, encoding, count, META_BYTES[kind])


def nrrd_head(path: Path) -> Head:
    """The header of .nrrd or .nhdr. Raises DataError."""
    fields: dict[str, str] = {}
    with opened(path) as file:
        if not file.readline(64).startswith(b"NRRD000"):
            raise _no_header("NRRD", path)
        while line := file.readline(HEADER_LIMIT):
            text = line.decode("utf-8", "replace").rstrip("\r\n")
            if not text or file.tell() > HEADER_LIMIT:
                break
            own, pair, said = text.partition(":=")
            key, field, value = text.partition(":")
            if text.startswith("#"):
                continue
            if pair and ":" not in own:
                fields[own] = said
            elif field:
                fields[key.strip().lower()] = value.strip()
        offset = file.tell()
    try:
        sizes = [int(n) for n in fields["sizes"].split()]
        kind, encoding = fields["type"].lower(), fields["encoding"].lower()
        lines = int(fields.get("line skip", fields.get("lineskip", 0)))
        skip = int(fields.get("byte skip", fields.get("byteskip", 0)))
    except (KeyError, ValueError):
        raise _no_header("NRRD", path) from None
    _known_type(kind in NRRD_BYTES, kind, "type", path)
    _positive(sizes, "sizes", path)
    named = fields.get("data file", fields.get("datafile", ""))
    if lines or (named and ("%" in named or named.upper().startswith("LIST"))):
        raise _several(path)
    encoding = {"gz": "gzip", "txt": "text", "ascii": "text"}.get(encoding, encoding)
    if encoding not in ("raw", "gzip", "text"):
        raise DataError(
            "is no encoding that is read",
            file=path,
            key="encoding",
            value=encoding,
            remedy="Save it with gzip or raw.",
        )
    return Head(
        fields, _data_file(path, named, not named), 0 if named else offset, encoding, math.prod(sizes),
        NRRD_BYTES[kind], skip,
    )  # fmt: skip


def verify(head: Head, path: Path) -> None:
    """Read the voxels to their end and their checksum. Raises DataError naming the file that lacks them."""
    try:
        size = head.data_file.stat().st_size
    except OSError:
        raise DataError(
            f"its voxels are missing: no file {head.data_file.name} beside it",
            file=path,
            remedy=f"Copy both files; {path.name} is the header alone.",
        ) from None
    wanted = head.count * head.item_bytes
    if head.encoding == "raw":
        start = max(0, head.offset) + max(0, head.skip)
        need_bytes(head.data_file, size - start, wanted)
        if min(head.offset, head.skip) >= 0 and size - start >= wanted + max(MOST_SPARE, head.item_bytes):
            raise DataError(
                f"its header promises {wanted} bytes of voxels, {head.data_file.name} holds {size - start}: "
                "the header does not fit the voxels",
                file=path,
                remedy="Correct the size and the type in the header, or convert it anew.",
            )
        return
    with opened(head.data_file) as file:
        file.seek(max(0, head.offset))
        if head.encoding == "text":
            found = len(file.read().split())
            need_bytes(head.data_file, found * head.item_bytes, wanted)
            return
        found = 0

        def count(chunk: bytes) -> None:
            nonlocal found
            found += len(chunk)

        inflate(file, head.data_file, GZIP if head.encoding == "gzip" else ZLIB_OR_GZIP, count)
    need_bytes(head.data_file, found - max(0, head.skip), wanted)


def _data_file(path: Path, named: str, local: bool) -> Path:
    if local:
        return path
    if named.upper().startswith("LIST") or "%" in named:
        raise _several(path)
    return path.parent / named.replace("\\", "/")


def _true(fields: dict[str, str], *keys: str, default: bool = False) -> bool:
    said = next((fields[k] for k in keys if k in fields), None)
    return default if said is None else said.strip().upper().startswith(("T", "1", "Y"))


def _no_header(kind: str, path: Path) -> DataError:
    return DataError(
        f"has no whole header of a {kind} file", file=path, remedy="Copy it again, or convert it anew."
    )


def _several(path: Path) -> DataError:
    return DataError(
        "has its voxels in several files, or behind lines of text",
        file=path,
        remedy="Save it in one file (.mha, .nrrd).",
    )


def _known_type(known: bool, kind: str, key: str, path: Path) -> None:
    if not known:
        raise DataError(
            "no such data type is read", file=path, key=key, value=kind, remedy="Save it as short or float."
        )


def _positive(sizes: list[int], key: str, path: Path) -> None:
    if not sizes or any(n < 1 for n in sizes):
        raise DataError("its header is damaged", file=path, key=key, value=sizes, remedy="Convert it anew.")
