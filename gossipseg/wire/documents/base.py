"""What all documents share: schema and kind, and the conversion to JSON and back."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, ClassVar, Self, get_args

import msgspec

SCHEMA = 1


class BadDocument(ValueError):
    """The text is no document of a schema and kind that this version reads."""


class Part(msgspec.Struct, frozen=True):
    """Base of the components of documents: an object in one, or a row."""


class Document(Part, frozen=True):
    """Base of all documents."""

    kind: ClassVar[str] = ""

    def to_dict(self) -> dict[str, Any]:
        return {"schema": SCHEMA, "kind": self.kind, **_finite(msgspec.to_builtins(self))}

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Self:
        """Raises BadDocument for another schema or kind, and for a field of another type."""
        if raw.get("schema") != SCHEMA:
            raise BadDocument(
                f"document schema {raw.get('schema')!r}: this gossipseg reads schema {SCHEMA} only; "
                "use the gossipctl that came with the daemon"
            )
        if raw.get("kind") != cls.kind:
            raise BadDocument(f"document kind {raw.get('kind')!r}, expected {cls.kind!r}")
        try:
            return msgspec.convert(_said(raw), cls)
        except (msgspec.ValidationError, ValueError) as e:
            raise BadDocument(f"document kind {cls.kind!r}: {e}") from None

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


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return value


def _said(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The value without nulls, at every depth: a null means the same as a missing field."""
    return {k: _said(v) if isinstance(v, dict) else v for k, v in raw.items() if v is not None}


def listing(cls: type[Any], prefix: str) -> list[tuple[str, str]]:
    """Dotted JSON field and type, of a document or a component of one."""
    found: list[tuple[str, str]] = []
    for f in msgspec.structs.fields(cls):
        rows = get_args(f.type)
        part = rows[0] if rows else f.type
        name = prefix + f.encode_name
        if isinstance(part, type) and issubclass(part, Part):
            found += listing(part, f"{name}[]." if rows else f"{name}.")
        else:
            found.append((name, cls.__annotations__[f.name]))
    return found
