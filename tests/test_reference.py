"""docs/reference/: each page is what docs/generate.py writes. Links from there and from design hold."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted([*(DOCS / "reference").glob("*.md"), *(DOCS / "design").glob("*.md")])


def _generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_generate", DOCS / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look for it there
    spec.loader.exec_module(module)
    return module


generate = _generator()
WRITTEN: dict[str, str] = generate.pages()


@pytest.mark.parametrize("name", sorted(WRITTEN))
def test_a_page_is_what_the_generator_writes(name: str) -> None:
    assert (DOCS / "reference" / name).read_text() == WRITTEN[name], "run `python docs/generate.py`"


def test_the_environment_changes_no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOSSIPSEG_CONFIG", "/elsewhere/site.yaml")
    monkeypatch.setenv("COLUMNS", "40")
    again = {"commands.md": generate.commands(), "site-yaml.md": generate.site_yaml()}
    assert again == {name: WRITTEN[name] for name in again}


def test_a_key_without_a_meaning_and_a_meaning_without_a_key_are_told() -> None:
    with pytest.raises(ValueError, match=r"missing \['new'\], too many \['old'\]"):
        generate._must_agree("concerns", ["new", "both"], ["both", "old"])


def test_every_key_of_the_example_is_described() -> None:
    keys = set(re.findall(r"^  ([a-z_]+): ", (ROOT / "peers.yaml").read_text(), re.MULTILINE))
    described = set(re.findall(r"^\| `[\w.]*?([a-z0-9_]+)` \|", WRITTEN["peers-yaml.md"], re.MULTILINE))
    assert len(keys) > 50 and keys <= described | {"name", "preset"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_what_the_code_cites_of_these_pages_is_there() -> None:
    sections = set(re.findall(r"^## (§\d)", (DOCS / "design" / "equations.md").read_text(), re.MULTILINE))
    for path in (ROOT / "gossipseg").rglob("*.py"):
        for name, section in re.findall(r"docs/design/([\w-]+\.md)(?: (§\d))?", path.read_text()):
            assert (DOCS / "design" / name).exists(), f"{path}: {name}"
            assert not section or section in sections, f"{path}: {section}"


def test_what_the_design_cites_of_code_and_tests_is_there() -> None:
    files = {str(path) for top in ("gossipseg", "tests", "protos") for path in (ROOT / top).rglob("*.*")}
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("*.py"))
    for page in (DOCS / "design").glob("*.md"):
        text = page.read_text()
        for cited in re.findall(r"`([\w/-]+\.(?:py|proto))`", text):
            assert any(file.endswith(f"/{cited}") for file in files), f"{page.name}: {cited}"
        for cited in re.findall(r"`(test_\w+)`", text):
            assert f"def {cited}(" in tests, f"{page.name}: {cited}"
