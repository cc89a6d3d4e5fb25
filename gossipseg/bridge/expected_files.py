"""What a model file of each kind may hold: its tensors, and the size of its header."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet

from gossipseg.core.types import ModelKind, Site
from gossipseg.store import Schema, TensorInfo, by_addressee, schema_difference

HEADER_BYTES, HEADER_ENTRY_BYTES = 64 << 10, 512
"""Bytes allowed in a model file's header: for metadata, and for each expected tensor beside its name."""


def header_room_bytes(kind: ModelKind, schema: Schema, sites: AbstractSet[Site]) -> int:
    """Header bytes that the expected tensors may take: reading a header costs a hundred times its size."""
    copies = len(sites) + 1 if kind == "global" else 1  # for each site, and for all others
    return HEADER_BYTES + copies * sum(HEADER_ENTRY_BYTES + len(name.encode()) for name in schema)


def content_difference(
    header: Mapping[str, TensorInfo], kind: ModelKind, schema: Schema, sites: AbstractSet[Site]
) -> str:
    """The fault of a header; "" if there is none.

    A global model may hold `site:name` tensors of listed sites, complete for each site, beside or instead of
    those for all others.
    """
    if kind != "global" or not any(":" in name for name in header):
        return schema_difference(header, schema)
    parts = by_addressee(header)
    strangers = sorted(set(parts) - sites - {""})
    if strangers:
        return f"it holds tensors for {strangers[0]!r}, which is no listed site"
    differences = (schema_difference(part, schema) for _, part in sorted(parts.items()))
    return next(filter(None, differences), "")
