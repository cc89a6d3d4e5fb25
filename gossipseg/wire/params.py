"""Settings of the wire. Sizes are in bytes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from gossipseg.bounds import COUNT, Range

CHUNK_BYTES = 1 << 20
PROTOCOL_MIN = 1
PROTOCOL_MAX = 2


@dataclass(frozen=True, slots=True)
class TransferParams:
    """How a site sends models: at what rate, at which hours. Its peers decide how they send to it."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    max_bytes_per_s: Annotated[int | None, Range(1000)] = None
    """Rate of all outgoing models together; None: as fast as the link is. Requests and pings never wait."""
    windows: list[str] = field(default_factory=list)
    """Local times such as "22:00-06:00" in which a transfer may begin; one that has begun is finished. Empty:
    at any hour."""


@dataclass(frozen=True, slots=True)
class WireParams:
    """What is transferred, and how much at once."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    dtype: Literal["float16", "bfloat16", "float32", "int8"] = "int8"
    """Type of weights in transfer; part of the contract. int8: in blocks of 64 with a scale each."""
    max_model_bytes: Annotated[int, COUNT] = 2 << 30
    """A declared size above this is refused before a byte is stored."""
