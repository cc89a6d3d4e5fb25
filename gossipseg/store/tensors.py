"""The header of a safetensors file: names, dtypes and shapes. The rest is neither read nor trusted."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ITEM_BYTES: Mapping[str, int] = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip
_MAX_DIMENSIONS = 16
_ENTRY_KEYS = {"dtype", "shape", "data_offsets"}


class BadSafetensors(ValueError):
    """The file is not a well-formed safetensors file. `reason` is a stable code."""

    reason = "bad_format"


@dataclass(frozen=True, slots=True)
class TensorInfo:
    dtype: str
    """As in the file: F16, F32, BF16, I64 …"""
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        return ITEM_BYTES[self.dtype] * math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class SafetensorsHeader:
    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]
    offsets: Mapping[str, int]
    """Where each tensor's bytes begin in the file."""


def read_safetensors_header(path: Path, *, max_header_bytes: int = 16 << 20) -> dict[str, TensorInfo]:
    """Name → dtype and shape. Raises BadSafetensors, OSError."""
    return dict(read_safetensors(path, max_header_bytes=max_header_bytes).tensors)


def read_safetensors(path: Path, *, max_header_bytes: int = 16 << 20) -> SafetensorsHeader:
    """The whole header, checked: the tensors cover the body exactly, without overlap or hole.

    Only the header is read. Raises BadSafetensors (what is wrong, and where), OSError.
    """
    with path.open("rb") as f:
        file_bytes = os.fstat(f.fileno()).st_size
        prefix = f.read(8)
        if len(prefix) < 8:
            raise BadSafetensors(f"{path.name}: {file_bytes} bytes are too few for a safetensors file")
        header_bytes = int.from_bytes(prefix, "little")
        if header_bytes > max_header_bytes or header_bytes > file_bytes - 8:
            raise BadSafetensors(
                f"{path.name}: declares a header of {header_bytes} bytes; the file has {file_bytes} bytes "
                f"and at most {max_header_bytes} are allowed"
            )
        raw = f.read(header_bytes)
    if len(raw) != header_bytes:
        raise BadSafetensors(f"{path.name}: ends within its header")
    try:
        return _check(_decode(raw), 8 + header_bytes, file_bytes)
    except BadSafetensors as e:
        raise BadSafetensors(f"{path.name}: {e}") from None


Schema = Mapping[str, tuple[str, tuple[int, ...]]]
"""Name → (dtype, shape) of the tensors that a wire file holds."""

NETWORK = "network"
"""Metadata of a personal model's file: the record of its network, where that is not the federation's."""

SCALES = "..scales"
"""Behind the name of an I8 tensor: its scales, F16. No parameter is called so, because no module may have an
empty name."""


def is_scales(name: str) -> bool:
    """Whether the entry of a wire file holds the scales of another one."""
    return name.endswith(SCALES)


def schema_difference(tensors: Mapping[str, TensorInfo], schema: Schema) -> str:
    """The first tensor in which a file differs from what is expected, in words; "" if none does.

    A tensor of half precision may travel as F32, where its values do not fit; scales may not.
    """
    for name in sorted(tensors.keys() | schema.keys()):
        if name not in schema:
            return f"{name} is not among the shared tensors"
        if name not in tensors:
            return f"{name} is missing"
        info, (dtype, shape) = tensors[name], schema[name]
        if info.shape != tuple(shape):
            return f"{name} has shape {list(info.shape)}, expected {list(shape)}"
        widened = info.dtype == "F32" and dtype in ("F16", "BF16") and not is_scales(name)
        if info.dtype != dtype and not widened:
            return f"{name} is {info.dtype}, expected {dtype}"
    return ""


def by_addressee(tensors: Mapping[str, TensorInfo]) -> dict[str, dict[str, TensorInfo]]:
    """The parts of a global model, under plain names: by site for tensors `site:name`, under "" for the
    others.

    `:name` names no site and stays as it is: it must not be checked in the place of `name`.
    """
    parts: dict[str, dict[str, TensorInfo]] = {}
    for name, info in tensors.items():
        site, _, plain = name.rpartition(":")
        parts.setdefault(site, {})[plain if site else name] = info
    return parts


def _decode(raw: bytes) -> dict[str, Any]:
    if not raw.startswith(b"{"):
        raise BadSafetensors("its header does not begin with {")
    try:
        return dict(json.loads(raw.decode(), object_pairs_hook=_unique, parse_constant=_no_constant))
    except BadSafetensors:
        raise
    except (ValueError, RecursionError) as e:
        raise BadSafetensors(f"its header is not JSON: {e}") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        seen: set[str] = set()  # counting each would take hours for a malicious header
        twice = next(k for k, _ in pairs if k in seen or seen.add(k))  # type: ignore[func-returns-value]
        raise BadSafetensors(f"its header names {twice[:80]!r} twice")
    return out


def _no_constant(name: str) -> Any:
    raise BadSafetensors(f"its header holds {name}")


def _check(entries: dict[str, Any], start: int, file_bytes: int) -> SafetensorsHeader:
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise BadSafetensors("__metadata__ is not a table of texts")
    tensors: dict[str, TensorInfo] = {}
    spans: list[tuple[int, int, str]] = []
    for name, entry in entries.items():
        tensors[name], begin, end = _entry(name, entry)
        spans.append((begin, end, name))
    position = 0
    for begin, end, name in sorted(spans):
        if begin != position:
            what = "overlaps the one before" if begin < position else "leaves a hole before it"
            raise BadSafetensors(f"tensor {name[:80]!r} {what}: begins at {begin}, expected {position}")
        position = end
    if start + position != file_bytes:
        raise BadSafetensors(f"its tensors end at byte {start + position}, the file at {file_bytes}")
    return SafetensorsHeader(tensors, metadata, {name: start + begin for begin, _, name in spans})


def _entry(name: str, entry: Any) -> tuple[TensorInfo, int, int]:
    def bad(what: str) -> BadSafetensors:
        return BadSafetensors(f"tensor {name[:80]!r}: {what}")

    if not isinstance(entry, dict) or set(entry) != _ENTRY_KEYS:
        raise bad("must have dtype, shape and data_offsets, and nothing else")
    dtype, shape, span = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise bad("unknown dtype")
    if not _naturals(shape) or len(shape) > _MAX_DIMENSIONS:
        raise bad("shape is not a short list of natural numbers")
    if not _naturals(span) or len(span) != 2:
        raise bad("data_offsets are not two natural numbers")
    info = TensorInfo(dtype, tuple(shape))
    if span[1] - span[0] != info.size_bytes:
        raise bad(f"its shape needs {info.size_bytes} bytes, its offsets hold {span[1] - span[0]}")
    return info, span[0], span[1]


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(type(v) is int and 0 <= v < 1 << 63 for v in value)
