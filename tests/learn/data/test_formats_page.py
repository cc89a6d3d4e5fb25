"""The page on what can be read names tests that exist, and every kind that the reader knows."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gossipseg.learn.data.formats.kinds import Kind

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "ml" / "formats.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`((?:tests/)?[\w/]*test_\w+\.py)::(\w+)`", PAGE)))


@pytest.mark.parametrize(("file", "test"), NAMED)
def test_every_test_that_the_page_names_exists(file: str, test: str) -> None:
    path = ROOT / file if "/" in file else ROOT / "tests" / "learn" / "data" / file
    assert re.search(rf"^def {test}\(", path.read_text(encoding="utf-8"), re.MULTILINE)


def test_every_row_names_a_test() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith("|---")]
    heads = [line for line in rows if line.rstrip(" |").endswith("tests")]
    assert len(NAMED) > 90
    assert all("::test_" in line for line in rows if line not in heads)


@pytest.mark.parametrize("kind", Kind)
def test_every_kind_has_a_row(kind: Kind) -> None:
    word = {Kind.MGH: ".mgz", Kind.PICTURE: "PNG"}.get(kind, kind.value)
    assert re.search(rf"^\| .*{re.escape(word)}", PAGE, re.MULTILINE)
