"""README and docs: every relative link and anchor leads somewhere, every page is in the site's contents."""

from __future__ import annotations

import re
import tomllib
import unicodedata
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])
LINK = re.compile(r"\[[^\]]*\]\(\s*<?([^)\s>]+)>?[^)]*\)")
CITED = re.compile(r"\b(?:docs|tests|systemd)/[\w/.-]+\.(?:md|yaml|json|service)\b")


@cache
def prose(page: Path) -> str:
    """Without blocks of code."""
    return re.sub(r"^(```|~~~).*?^\1", "", page.read_text(), flags=re.S | re.M)


def links(page: Path) -> list[str]:
    text = re.sub(r"`[^`\n]*`", "", re.sub(r"\[`([^`\]]*)`\]", r"[\1]", prose(page)))
    return [to for to in LINK.findall(text) if not re.match(r"[a-z]+:", to)]


def headings(page: Path) -> list[str]:
    found = re.findall(r"^#{1,6} +(.+?) *#*$", prose(page), flags=re.M)
    return [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", h).replace("`", "").replace("*", "") for h in found]


@cache
def anchors(page: Path) -> frozenset[str]:
    """Those that GitHub and MkDocs name alike, of headings that stand once."""
    found = Counter(at_github(h) for h in headings(page))
    both = {in_the_site(h) for h in headings(page)}
    return frozenset(a for a, n in found.items() if n == 1 and a in both)


def at_github(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def in_the_site(heading: str) -> str:
    """As markdown.extensions.toc has it."""
    plain = unicodedata.normalize("NFKD", heading).encode("ascii", "ignore").decode()
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain).strip().lower())


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in links(page):
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        home = DOCS if page.is_relative_to(DOCS) else ROOT  # the site has docs/ alone
        assert target.is_relative_to(home.resolve()), f"{link} leads out of {home}"
        assert target.exists(), f"{link}: no such file"
        if anchor:
            assert target.suffix == ".md", f"{link}: an anchor into what is no page"
            assert anchor in anchors(target), f"{link}: {target.name} has {sorted(anchors(target))}"


def test_the_contents_of_the_site_list_every_page() -> None:
    settings: dict[str, Any] = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    listed = list(leaves(settings["nav"]))
    assert sorted(listed) == sorted(str(p.relative_to(DOCS)) for p in DOCS.rglob("*.md"))


def leaves(nav: Any) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    else:
        for entry in nav.values() if isinstance(nav, dict) else nav:
            yield from leaves(entry)


def test_what_the_code_cites_is_in_the_repository() -> None:
    files = [*(ROOT / "gossipseg").rglob("*.py"), *(ROOT / "systemd").iterdir(), ROOT / "peers.yaml"]
    for file in [*files, *(ROOT / "tests").rglob("*.py"), ROOT / "Makefile"]:
        for cited in set(CITED.findall(file.read_text())) - {"docs/README.md"}:  # that of an exported bundle
            assert (ROOT / cited).exists(), f"{file.relative_to(ROOT)} cites {cited}"


def test_the_readme_is_short_and_shows_a_picture() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 120
    assert "](docs/images/demo.png)" in text


def test_the_citation_names_this_version() -> None:
    cited: dict[str, Any] = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (cited["version"], cited["license"]) == (project["version"], project["license"])
