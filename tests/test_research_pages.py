"""docs/research and docs/evidence: figures stand in the tables, pictures are drawn from them, tests exist."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent
RESEARCH, EVIDENCE = ROOT / "docs" / "research", ROOT / "docs" / "evidence"
LARGEST_PICTURE_BYTES = 100_000
NUMBER = r"[+−]?\d+\.\d{3}"
"""Dice and differences; the sign counts."""


@pytest.fixture(scope="module")
def figures() -> ModuleType:
    name = "research_figures"
    spec = importlib.util.spec_from_file_location(name, RESEARCH / "figures.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def test_every_figure_of_the_results_stands_in_the_tables() -> None:
    found = set(re.findall(NUMBER, (RESEARCH / "results.md").read_text(encoding="utf-8")))
    known = "".join((RESEARCH / name).read_text(encoding="utf-8") for name in ("tables.md", "study.md"))
    assert len(found) > 30
    magnitudes = set(re.findall(r"\d+\.\d{3}", known))
    signed = set(re.findall(NUMBER, known))
    assert not {n for n in found if (n not in signed if n[0] in "+−" else n not in magnitudes)}


def test_the_pictures_are_drawn_from_the_tables(
    figures: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures, "IMAGES", tmp_path)
    figures.main()
    page = (RESEARCH / "results.md").read_text(encoding="utf-8")
    drawn = sorted(p.name for p in tmp_path.iterdir())
    assert len(drawn) == 3
    for name in drawn:
        assert f"../images/{name}" in page
        assert (ROOT / "docs" / "images" / name).stat().st_size < LARGEST_PICTURE_BYTES


def test_a_row_of_a_table_is_read_as_it_stands(figures: ModuleType) -> None:
    brain = figures.repeated("Three brain sites, one task in three MR sequences")
    gain = figures.difference(brain["gcml"]["over `local`"])
    assert (gain.mean, gain.low, gain.high) == (-0.046, -0.079, -0.011)
    assert figures.number(brain["ditto"]["all sites"]) == 0.472
    assert figures.number(brain["gcml"]["bytes"]) == 35


@pytest.mark.parametrize("page", ["faults.md", "attacks.md"])
def test_every_test_that_a_page_of_evidence_names_exists(page: str) -> None:
    text = (EVIDENCE / page).read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:tests/)?[\w/]*test_\w+\.py)(?:::(\w+))?", text))
    assert len(named) > 15
    for file, test in sorted(named):
        path = ROOT / file if "/" in file else ROOT / "tests" / "faults" / file
        assert path.is_file(), file
        code = path.read_text(encoding="utf-8")
        assert re.search(rf"^(?:async )?def {test}", code, re.MULTILINE), f"{file}::{test}"
