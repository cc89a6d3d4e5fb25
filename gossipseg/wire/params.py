"""Settings of the wire. Sizes are in bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

CHUNK_BYTES = 1 << 20
PROTOCOL_MIN = 1
PROTOCOL_MAX = 2


@dataclass(frozen=True, slots=True)
class WireParams:
    """What travels and how much at once."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    dtype: Literal["float16", "bfloat16", "float32"] = "float16"
    max_model_bytes: int = 2 << 30
    """A declared size above this is refused before a byte is stored."""
