"""What a model file of each kind may hold: its tensors, and the size of its header."""

from __future__ import annotations

import math
from collections.abc import Mapping
from collections.abc import Set as AbstractSet

from gossipseg.core.types import ModelKind, Site
from gossipseg.store import NETWORK, Schema, TensorInfo, by_addressee, schema_difference

HEADER_BYTES, HEADER_ENTRY_BYTES = 64 << 10, 512
"""Bytes allowed in a model file's header: for metadata, and for each expected tensor beside its name."""
ELEMENT_BYTES = 8
PERSONAL_HEADER_BYTES = 256 << 10
"""The least allowed to a personal model's: that of any network that may be described has less."""


def header_room_bytes(kind: ModelKind, schema: Schema, sites: AbstractSet[Site]) -> int:
    """Header bytes that the expected tensors may take: reading a header costs a hundred times its size."""
    copies = len(sites) + 1 if kind == "global" else 1  # for each site, and for all others
    room = HEADER_BYTES + copies * sum(HEADER_ENTRY_BYTES + len(name.encode()) for name in schema)
    return max(PERSONAL_HEADER_BYTES, room) if kind == "personal" else room


def most_bytes(kind: ModelKind, schema: Schema, sites: AbstractSet[Site]) -> int:
    """The largest file of these tensors: no type takes more than eight bytes, and a common model may hold
    them for each site, and for all others."""
    copies = len(sites) + 1 if kind == "global" else 1
    elements = sum(math.prod(shape) for _, shape in schema.values())
    return 8 + header_room_bytes(kind, schema, sites) + copies * ELEMENT_BYTES * elements


def content_difference(
    header: Mapping[str, TensorInfo],
    kind: ModelKind,
    schema: Schema,
    sites: AbstractSet[Site],
    metadata: Mapping[str, str] | None = None,
) -> str:
    """The fault of a header; "" if there is none.

    A personal model that describes its own network is compared with that by the worker, which can build it.

    A global model may hold `site:name` tensors of listed sites, complete for each site, beside or instead of
    those for all others.
    """
    if kind == "personal" and NETWORK in (metadata or {}):
        return ""
    if kind != "global" or not any(":" in name for name in header):
        return schema_difference(header, schema)
    parts = by_addressee(header)
    strangers = sorted(set(parts) - sites - {""})
    if strangers:
        return f"it holds tensors for {strangers[0]!r}, which is no listed site"
    differences = (schema_difference(part, schema) for _, part in sorted(parts.items()))
    return next(filter(None, differences), "")
