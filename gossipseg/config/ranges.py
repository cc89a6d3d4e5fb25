"""The check that every number of the settings is within the bounds stated at its field."""

from __future__ import annotations

import dataclasses
from typing import Any, get_type_hints

from gossipseg.bounds import Range
from gossipseg.config.reading import Source

FINITE = Range()


def bounds_of(kind: type) -> dict[str, Range]:
    """Field → bounds, of the fields of a dataclass that state some."""
    hints = get_type_hints(kind, include_extras=True)
    stated = {name: getattr(hint, "__metadata__", ()) for name, hint in hints.items()}
    return {name: r for name, extras in stated.items() for r in extras if isinstance(r, Range)}


def check_ranges(value: Any, source: Source, prefix: str = "") -> None:
    """Check every number of a dataclass and of those inside it. Raises ConfigError about the first
    outside."""
    rules = bounds_of(type(value))
    for f in dataclasses.fields(value):
        item, key = getattr(value, f.name), prefix + f.name.removesuffix("_")
        if dataclasses.is_dataclass(item):
            check_ranges(item, source, f"{key}.")
        else:
            _check_number(item, rules.get(f.name, FINITE), key, source)


def _check_number(value: Any, rule: Range, key: str, source: Source) -> None:
    numbers = value if isinstance(value, tuple) else (value,)
    if not all(isinstance(n, int | float) and not isinstance(n, bool) for n in numbers):
        return  # not a number, or nothing
    given = source.given(key)
    if isinstance(given, bool):
        raise source.error("must be a number", key, given, "Write a number.")
    if not all(n in rule for n in numbers):
        shown = list(value) if isinstance(value, tuple) else value
        raise source.error(f"must be {rule}", key, shown, "Correct the number.")
