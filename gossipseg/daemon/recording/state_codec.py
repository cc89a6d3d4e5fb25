"""The core's state and events as JSON, and back: for recordings that can be replayed.

Decoding builds only objects of the core, and runs none of their code.
"""

from __future__ import annotations

import enum
import importlib
import math
import random
import types
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Mapping
from typing import Any

CORE = "gossipseg.core."
SIGN = "sign"


class FrozenError(ValueError):
    """A value cannot be encoded, or the text encodes no value of the core."""


def freeze(value: Any, *, sign: Callable[[bytes], bytes] | None = None) -> dict[str, Any]:
    """A JSON document for the value. `sign` is the only outside function that may occur in it.

    Raises FrozenError for a value of any other kind.
    """
    freezer = _Freezer(sign)
    root = freezer.put(value)
    return {"root": root, "table": freezer.table}


def thaw(document: Mapping[str, Any], *, sign: Callable[[bytes], bytes] | None = None) -> Any:
    """The value again; `sign` stands in for the function of that name. Raises FrozenError."""
    try:
        return _Thawer(document["table"], sign).get(document["root"])
    except FrozenError:
        raise
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, RecursionError) as e:
        raise FrozenError(f"this is no frozen value of the core: {e!r}") from e


class _Freezer:
    def __init__(self, sign: Callable[[bytes], bytes] | None) -> None:
        self.table: list[Any] = []
        self._sign = sign
        self._places: dict[int, int] = {}
        self._alive: list[Any] = []
        """Encoded objects, kept so that no identity is used twice."""

    def put(self, value: Any) -> Any:
        if value is None or type(value) in (bool, int, str):
            return value
        if type(value) is float:
            return value if math.isfinite(value) else {"float": repr(value)}
        if (place := self._places.get(id(value))) is None:
            place = self._places[id(value)] = len(self.table)
            self._alive.append(value)
            self.table.append(None)
            self.table[place] = self._described(value)
        return {"at": place}

    def _described(self, value: Any) -> list[Any]:
        if isinstance(value, enum.Enum):
            return ["enum", _named(type(value)), self.put(value.value)]
        kind = type(value)
        if kind is bytes:
            return ["bytes", value.hex()]
        if kind in (tuple, list, set, frozenset):
            return [kind.__name__, [self.put(v) for v in value]]
        if kind is deque:
            return ["deque", [self.put(v) for v in value], value.maxlen]
        if kind in (dict, Counter, OrderedDict):
            return [kind.__name__, [[self.put(k), self.put(v)] for k, v in value.items()]]
        if kind is random.Random:
            return ["random", self.put(value.getstate())]
        if kind is types.MethodType and value != self._sign:
            return ["method", self.put(value.__self__), value.__name__]
        if value == self._sign:
            return [SIGN]
        if kind in (types.FunctionType, type):
            return ["name", _named(value)]
        return ["object", _named(kind), [[name, self.put(v)] for name, v in _attributes(value)]]


_PLAIN: dict[str, Callable[[Any], Any]] = {"tuple": tuple, "frozenset": frozenset, "bytes": bytes.fromhex}
_FILLED: dict[str, Callable[[], Any]] = {"list": list, "set": set, "dict": dict, "Counter": Counter,
                                         "OrderedDict": OrderedDict}  # fmt: skip


class _Thawer:
    def __init__(self, table: list[Any], sign: Callable[[bytes], bytes] | None) -> None:
        self._table, self._sign = table, sign
        self._made: dict[int, Any] = {}

    def get(self, written: Any) -> Any:
        if not isinstance(written, dict):
            return written
        if "float" in written:
            return float(written["float"])
        place = written["at"]
        if place not in self._made:
            self._make(place, *self._table[place])
        return self._made[place]

    def _make(self, place: int, kind: str, *parts: Any) -> None:
        """Create objects that can refer to themselves before they are filled."""
        made = self._made
        if kind in _FILLED:
            thing = made[place] = _FILLED[kind]()
            for part in parts[0]:
                if kind == "list":
                    thing.append(self.get(part))
                elif kind == "set":
                    thing.add(self.get(part))
                else:
                    thing[self.get(part[0])] = self.get(part[1])
        elif kind == "deque":
            thing = made[place] = deque(maxlen=parts[1])
            thing.extend(self.get(part) for part in parts[0])
        elif kind == "object":
            thing = made[place] = object.__new__(_class(parts[0]))
            for name, value in parts[1]:
                object.__setattr__(thing, name, self.get(value))
        else:
            made[place] = self._immutable(kind, *parts)

    def _immutable(self, kind: str, *parts: Any) -> Any:
        if kind == "bytes":
            return bytes.fromhex(parts[0])
        if kind in _PLAIN:
            return _PLAIN[kind](self.get(part) for part in parts[0])
        if kind == "enum":
            return _class(parts[0])(self.get(parts[1]))
        if kind == "random":
            rng = random.Random()
            rng.setstate(self.get(parts[0]))
            return rng
        if kind == "method":
            owner = self.get(parts[0])
            if not type(owner).__module__.startswith(CORE):
                raise FrozenError(f"{parts[1]} is no method of the core")
            return types.MethodType(_function(type(owner), parts[1]), owner)
        if kind == "name":
            return _found(parts[0])
        if kind == SIGN and self._sign is not None:
            return self._sign
        raise FrozenError(f"unknown kind {kind!r}")


def _attributes(value: Any) -> list[tuple[str, Any]]:
    """All fields of an object, in slots and in its dictionary."""
    names = [n for c in type(value).__mro__ for n in getattr(c, "__slots__", ()) if hasattr(value, n)]
    return [(n, getattr(value, n)) for n in names] + list(getattr(value, "__dict__", {}).items())


def _named(thing: Any) -> str:
    if not thing.__module__.startswith(CORE) or "<" in thing.__qualname__:
        raise FrozenError(f"{thing.__module__}.{thing.__qualname__} is not of the core")
    return f"{thing.__module__}:{thing.__qualname__}"


def _found(name: str) -> Any:
    module, _, path = name.partition(":")
    if not module.startswith(CORE):
        raise FrozenError(f"{name} is not of the core")
    thing: Any = importlib.import_module(module)
    for part in path.split("."):
        thing = vars(thing)[part]
    if getattr(thing, "__module__", "") != module:
        raise FrozenError(f"{name} is not of the core")
    return thing


def _class(name: str) -> Any:
    found = _found(name)
    if not isinstance(found, type):
        raise FrozenError(f"{name} is no class")
    return found


def _function(owner: type, name: str) -> types.FunctionType:
    for cls in owner.__mro__:
        found = vars(cls).get(name)
        if isinstance(found, types.FunctionType):
            return found
    raise FrozenError(f"{name} is no method of {owner.__name__}")
