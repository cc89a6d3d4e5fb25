"""What all documents have in common: schema and kind, and the way to JSON and back."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self, TypeVar

SCHEMA = 1
_T = TypeVar("_T")


class BadDocument(ValueError):
    """The text is no document of a schema and kind that this version reads."""


@dataclass(frozen=True, slots=True)
class Document:
    """Base of all documents."""

    kind: ClassVar[str] = ""

    def to_dict(self) -> dict[str, Any]:
        return {"schema": SCHEMA, "kind": self.kind, **_to_plain(self)}

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Self:
        """Raises BadDocument for another schema or kind."""
        if raw.get("schema") != SCHEMA:
            raise BadDocument(
                f"document schema {raw.get('schema')!r}: this gossipseg reads schema {SCHEMA} only; "
                "use the gossipctl that came with the daemon"
            )
        if raw.get("kind") != cls.kind:
            raise BadDocument(f"document kind {raw.get('kind')!r}, expected {cls.kind!r}")
        return _from_plain(cls, raw)

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Raises BadDocument."""
        return cls.from_dict(load(text))


# ---------------------------------------------------------------- plain forms


def load(text: str | bytes) -> dict[str, Any]:
    """The JSON object in a text. Raises BadDocument."""
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise BadDocument(f"not JSON: {e}") from None
    if not isinstance(raw, dict):
        raise BadDocument("not a JSON object")
    return raw


def _name(f: dataclasses.Field[Any]) -> str:
    return str(f.metadata.get("json", f.name))


def _to_plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if dataclasses.is_dataclass(value):
        return {_name(f): _to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): _to_plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_to_plain(v) for v in value]
    return value


def _from_plain(cls: type[_T], raw: Mapping[str, Any]) -> _T:
    values: dict[str, Any] = {}
    for f in dataclasses.fields(cls):  # type: ignore[arg-type]
        if _name(f) not in raw:
            continue
        value = raw[_name(f)]
        if part := f.metadata.get("part"):
            if not isinstance(value, Mapping):
                continue
            value = _from_plain(part, value)
        elif row := f.metadata.get("rows"):
            value = tuple(_from_plain(row, r) for r in value or () if isinstance(r, Mapping))
        elif isinstance(value, list):
            value = _frozen(value)
        values[f.name] = value
    return cls(**values)


def _frozen(value: Any) -> Any:
    """Lists, and those in them, as tuples."""
    return tuple(_frozen(v) for v in value) if isinstance(value, list) else value


def listing(cls: type[Any], prefix: str) -> list[tuple[str, str]]:
    """Dotted JSON field and type, of a document or a part of one."""
    found: list[tuple[str, str]] = []
    for f in dataclasses.fields(cls):
        if part := f.metadata.get("part"):
            found += listing(part, f"{prefix}{_name(f)}.")
        elif row := f.metadata.get("rows"):
            found += listing(row, f"{prefix}{_name(f)}[].")
        else:
            found.append((prefix + _name(f), str(f.type)))
    return found
