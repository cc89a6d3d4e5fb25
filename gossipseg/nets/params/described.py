"""A network as another site describes it: the typed record of a personal model that travels.

What a site writes into `network` of its own files goes to a constructor as it is; what another site sends
must not. Here every option has a type and bounds. So whatever stands in the record, what it describes is made
on torch's meta device in bounded time. A personal model of any other network stays at its site.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, StrictBool, TypeAdapter, ValidationError

from gossipseg.nets.params import NetworkParams

LARGEST_WIDTH, MOST_LEVELS, MOST_BLOCKS = 1024, 8, 8
LONGEST_WORD = 100
"""Characters of a record that an error repeats."""

_FORBID: dict[str, Any] = {"extra": "forbid"}
_Width = Annotated[int, Field(ge=1, le=LARGEST_WIDTH, strict=True)]
_Size = Annotated[int, Field(ge=1, le=7, strict=True)]
_Stride = Annotated[int, Field(ge=1, le=4, strict=True)]
_Blocks = Annotated[int, Field(ge=1, le=MOST_BLOCKS, strict=True)]
_Units = Annotated[int, Field(ge=0, le=MOST_BLOCKS, strict=True)]
_Heads = Annotated[int, Field(ge=1, le=64, strict=True)]
_Four = Field(min_length=4, max_length=4)
_Levels = Field(min_length=1, max_length=MOST_LEVELS)


class NotDescribed(ValueError):
    """The record describes no network that may come from another site; the text says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _NoOptions:
    __pydantic_config__: ClassVar[dict[str, Any]] = _FORBID


@dataclass(frozen=True, slots=True, kw_only=True)
class _Unet:
    __pydantic_config__: ClassVar[dict[str, Any]] = _FORBID
    channels: Annotated[list[_Width] | None, _Levels] = None
    strides: Annotated[list[_Stride] | None, _Levels] = None
    kernel_size: _Size | None = None
    up_kernel_size: _Size | None = None
    num_res_units: _Units | None = None
    bias: StrictBool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Dynunet:
    __pydantic_config__: ClassVar[dict[str, Any]] = _FORBID
    kernel_size: Annotated[list[_Size] | None, _Levels] = None
    strides: Annotated[list[_Stride] | None, _Levels] = None
    upsample_kernel_size: Annotated[list[_Stride] | None, _Levels] = None
    filters: Annotated[list[_Width] | None, _Levels] = None
    deep_supervision: StrictBool | None = None
    deep_supr_num: _Blocks | None = None
    res_block: StrictBool | None = None
    trans_bias: StrictBool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Segresnet:
    __pydantic_config__: ClassVar[dict[str, Any]] = _FORBID
    blocks_down: Annotated[list[_Blocks] | None, _Levels] = None
    blocks_up: Annotated[list[_Blocks] | None, _Levels] = None
    upsample_mode: Literal["nontrainable", "deconv"] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Swinunetr:
    __pydantic_config__: ClassVar[dict[str, Any]] = _FORBID
    depths: Annotated[list[_Blocks] | None, _Four] = None
    num_heads: Annotated[list[_Heads] | None, _Four] = None
    window_size: _Size | None = None
    qkv_bias: StrictBool | None = None
    use_v2: StrictBool | None = None


OPTIONS: Mapping[str, type] = {
    "sanet": _NoOptions,
    "unet": _Unet,
    "dynunet": _Dynunet,
    "segresnet": _Segresnet,
    "swinunetr": _Swinunetr,
    "dca_unet": _NoOptions,
}
"""Networks that may be described, and the options that each may have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Record:
    """The fields of NetworkParams, with bounds. Batch norm is left out: its statistics stay at their site."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _FORBID
    name: Annotated[str, Field(max_length=LONGEST_WORD)]
    width: _Width
    dropout: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)] = 0.0
    norm: Literal["instance", "group"] = "instance"
    options: dict[str, Any] = field(default_factory=dict)


def describe(network: NetworkParams) -> dict[str, Any]:
    """The record of a site's own network, as plain values. Raises NotDescribed where there can be none."""
    options = {key: _plain(value) for key, value in network.options.items()}
    record = {**asdict(network), "options": options}
    read(record)
    return record


def read(record: object) -> NetworkParams:
    """The network of another site's record. Raises NotDescribed, and nothing else, whatever the record is."""
    try:
        found = _adapter(_Record).validate_python(record)
        if found.name not in OPTIONS:
            raise NotDescribed(f"{found.name!r} is none of {', '.join(OPTIONS)}")
        options = _adapter(OPTIONS[found.name]).validate_python(found.options)
    except ValidationError as e:
        raise NotDescribed(_said(e)) from None
    given = {key: value for key, value in asdict(options).items() if value is not None}
    return NetworkParams(found.name, found.width, found.dropout, found.norm, given)


def _adapter(kind: Any) -> TypeAdapter[Any]:
    if kind not in _ADAPTERS:
        _ADAPTERS[kind] = TypeAdapter(kind)
    return _ADAPTERS[kind]


_ADAPTERS: dict[Any, TypeAdapter[Any]] = {}


def _said(error: ValidationError) -> str:
    """The first fault, in a line of bounded length: the record is another site's."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    place = ".".join(str(part)[:LONGEST_WORD] for part in first["loc"][:4])
    return f"{place}: {first['msg'][:LONGEST_WORD]}" if place else first["msg"][:LONGEST_WORD]


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
