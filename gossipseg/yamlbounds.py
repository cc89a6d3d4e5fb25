"""Limits on the size of a YAML file, checked before any value is made of it.

A few hundred bytes of aliases can stand for gigabytes of values, and a list may contain itself. 100,000
brackets overflow the C stack of the composer. So the parser's events, which are not nested, are counted
first.
"""

from __future__ import annotations

import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

MAX_BYTES = 4 << 20
"""Size of a file. A list of a thousand sites with two certificates each needs half of that."""
MAX_DEPTH = 50
"""Sections within sections, with aliases followed."""
MAX_VALUES = 100_000
"""Keys and values; those behind an alias count at each use."""
MAX_TAGGED = 200
"""Characters of a value with a tag of its own: some tags take time that grows with its square."""

MAX_KEY, MAX_NUMBER_KEY = 1024, 18
"""Characters of a text key (YAML's own limit for one without `?`), and of a key that may be a number. Longer
integers can be chosen to share one place in a dict, where 50,000 of them take half a minute."""
MAX_DIRECTIVES = 100
"""Lines that begin with %. The parser compares each with all before it, and nothing else runs meanwhile."""

_DIRECTIVE = re.compile(r"(?:^|[\r\n\x85\u2028\u2029])\ufeff?%")
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_TEXT = "tag:yaml.org,2002:str"


class TooLarge(ValueError):
    """A file or document beyond the bounds."""

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(f"{problem}. {remedy}")
        self.problem, self.remedy = problem, remedy


@dataclass(slots=True)
class _Size:
    """Size of a node with all that is in it, aliases followed."""

    values: int = 1
    characters: int = 0
    depth: int = 0

    def take_in(self, part: _Size) -> None:
        self.values += part.values
        self.characters += part.characters
        self.depth = max(self.depth, part.depth + 1)


def read_bounded(path: Path) -> bytes:
    """The bytes of a file. A pipe is not opened: that would wait for a writer.

    Raises TooLarge and OSError.
    """
    if stat.S_ISFIFO(path.stat().st_mode):
        raise TooLarge("is a pipe, not a file", "Write it to a file, and name that.")
    with path.open("rb") as f:
        data = f.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise TooLarge(
            f"is larger than {MAX_BYTES} bytes",
            "Check that it is the right file; certificates may lie in files beside it.",
        )
    return data


def check_bounds(text: str) -> None:
    """Raise TooLarge, or yaml.YAMLError where the text is no YAML. The time is linear in the text."""
    if len(text) > MAX_BYTES:
        raise TooLarge(f"holds more than {MAX_BYTES} characters", "Check that it is the right file.")
    if sum(1 for _ in _DIRECTIVE.finditer(text)) > MAX_DIRECTIVES:
        raise TooLarge(f"holds more than {MAX_DIRECTIVES} lines that begin with %", "Remove them.")
    loader = _Loader(text)
    try:
        _walk(loader)
    finally:
        loader.dispose()


def _walk(loader: Any) -> None:
    open_: list[tuple[str | None, _Size]] = []
    known: dict[str, _Size | None] = {}
    """Anchor → size; None while its node is not complete."""
    documents = 0
    while loader.check_event():
        event = loader.get_event()
        line = event.start_mark.line + 1
        if isinstance(event, yaml.DocumentStartEvent):
            documents += 1
            if documents > 1:  # the composer reports it, and there may be a million more
                return
        if isinstance(event, yaml.AliasEvent):
            _add(open_, _alias(event.anchor, known, line), line)
        elif isinstance(event, yaml.ScalarEvent):
            size = _Size(characters=len(event.value))
            if event.tag not in (None, "!", _TEXT) and size.characters > MAX_TAGGED:
                raise TooLarge(
                    f"line {line}: a value with a tag has more than {MAX_TAGGED} characters",
                    "Remove the tag.",
                )
            if event.anchor is not None:
                known[event.anchor] = size
            _add(open_, size, line)
        elif isinstance(event, yaml.CollectionStartEvent):
            if event.anchor is not None:
                known[event.anchor] = None
            open_.append((event.anchor, _Size()))
            _check_depth(len(open_), line)
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, size = open_.pop()
            if anchor is not None:
                known[anchor] = size
            _add(open_, size, line)


def check_key(tag: str, value: str, line: int) -> None:
    """Raise TooLarge for a key that is in none of our files, and that costs more than it looks."""
    most = MAX_KEY if tag == _TEXT else MAX_NUMBER_KEY
    if len(value) > most:
        raise TooLarge(
            f"line {line}: a key has more than {most} characters", "Check that it is the right file."
        )


def _alias(anchor: str | None, known: dict[str, _Size | None], line: int) -> _Size:
    size = known.get(anchor or "", _Size())  # the composer reports an unknown one
    if size is None:
        raise TooLarge(
            f"line {line}: *{anchor} stands within &{anchor}, so it would contain itself", "Remove it."
        )
    return size


def _add(open_: list[tuple[str | None, _Size]], size: _Size, line: int) -> None:
    if not open_:
        return
    outer = open_[-1][1]
    outer.take_in(size)
    if outer.values > MAX_VALUES or outer.characters > MAX_BYTES:
        raise TooLarge(
            f"line {line}: with its aliases (*) written out it is larger than {MAX_VALUES} values or "
            f"{MAX_BYTES} characters",
            "Remove the aliases.",
        )
    _check_depth(len(open_) + size.depth, line)


def _check_depth(depth: int, line: int) -> None:
    if depth > MAX_DEPTH:
        raise TooLarge(
            f"line {line}: is nested more than {MAX_DEPTH} deep", "Check its brackets and indents."
        )
