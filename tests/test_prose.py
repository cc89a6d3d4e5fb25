"""The docstrings of the package: subject and verb first, plain measures, short sentences."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from statistics import fmean

import pytest

PACKAGE = Path(__file__).parents[1] / "gossipseg"
MOST_WORDS = 20.0
"""Largest mean number of words per sentence of a package."""
MEASURES = re.compile(r"\bso (?:many|much|often|long|far apart|few)\b(?! as)", re.IGNORECASE)
PACKAGES = sorted(
    {p.relative_to(PACKAGE).parts[0] if p.parent != PACKAGE else "." for p in PACKAGE.rglob("*.py")}
)


def docstrings_of(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, text) of every docstring, those below a constant or a field among them."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        for child in body if isinstance(body, list) else ():
            value = child.value if isinstance(child, ast.Expr) else None
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                yield child.lineno, value.value.strip()


@cache
def docstrings(package: str) -> tuple[tuple[str, str], ...]:
    """(place, text) of a package; "." stands for the modules outside all packages."""
    folder = PACKAGE / package
    files = sorted(folder.glob("*.py") if package == "." else folder.rglob("*.py"))
    return tuple(
        (f"{file.relative_to(PACKAGE)}:{line}", text)
        for file in files
        if "_pb2" not in file.name
        for line, text in docstrings_of(ast.parse(file.read_text(encoding="utf-8")))
    )


def sentences(text: str) -> list[str]:
    """The sentences of a docstring; a blank line ends one, too."""
    paragraphs = (" ".join(p.split()) for p in re.split(r"\n\s*\n", text))
    ends = r"(?<=[.!?])[\"')\]]*\s+(?=[A-Z\"'(`])"
    return [s for p in paragraphs for s in re.split(ends, p) if s]


def test_the_package_is_read() -> None:
    assert {".", "core", "daemon", "wire"} <= {*PACKAGES} and len(docstrings("core")) > 500


@pytest.mark.parametrize("package", PACKAGES)
def test_no_docstring_begins_with_of(package: str) -> None:
    found = [place for place, text in docstrings(package) if re.match(r"Of\b", text)]
    assert not found, f"name the subject first: {', '.join(found)}"


@pytest.mark.parametrize("package", PACKAGES)
def test_no_docstring_measures_by_so_many(package: str) -> None:
    found = [f"{place}: {m[0]}" for place, text in docstrings(package) if (m := MEASURES.search(text))]
    assert not found, f'write "Failures allowed per source", not "So often": {", ".join(found)}'


@pytest.mark.parametrize("package", PACKAGES)
def test_sentences_are_short(package: str) -> None:
    words = [len(s.split()) for _, text in docstrings(package) for s in sentences(text)]
    assert not words or fmean(words) < MOST_WORDS, f"{fmean(words):.1f} words per sentence on average"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("One. Two (of it). `c` is three.", ["One.", "Two (of it).", "`c` is three."]),
        ("One, e.g. this\nline.\n\nno full stop", ["One, e.g. this line.", "no full stop"]),
    ],
)
def test_sentences_are_told_apart(text: str, said: list[str]) -> None:
    assert sentences(text) == said


@pytest.mark.parametrize(
    ("text", "measures"),
    [
        ("So often each source may fail.", True),
        ("Waits for so many seconds.", True),
        ("It lasts so long as it runs.", False),
        ("So it ends.", False),
    ],
)
def test_measures_are_found(text: str, measures: bool) -> None:
    assert bool(MEASURES.search(text)) is measures
