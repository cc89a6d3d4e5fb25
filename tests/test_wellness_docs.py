"""docs/admin/troubleshooting.md: a row for each code, an alert for each, and each row's tests exist."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest
import yaml

from gossipseg.core.wellness import Code
from gossipseg.daemon.health.concerns import REMEDIES

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "admin" / "troubleshooting.md").read_text()
REASONS = PAGE.split("\n## Reasons\n")[1].split("\n## ")[0]
ROWS = [line for line in REASONS.splitlines() if line.startswith("| `")]


def test_every_code_has_a_row_and_no_row_a_code_that_is_not() -> None:
    codes = [cell.strip("` ") for row in ROWS if (cell := row.split(" | ")[1]) != "–"]
    assert sorted(codes) == sorted(REMEDIES)
    assert set(get_args(Code)) <= set(REMEDIES)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split(" | ")[1].strip("` "))
def test_each_row_is_reached_by_a_test(row: str) -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", row)
    assert named
    for file, function in named:
        text = (ROOT / file).read_text()
        assert not function or re.search(rf"^(async )?def {function}\(", text, re.MULTILINE), function


def test_every_code_has_an_alert() -> None:
    rules = yaml.safe_load((ROOT / "docs/admin/monitoring/alerts.yaml").read_text())["groups"][0]["rules"]
    found = re.findall(r'gossipseg_concern\{reason="(\w+)"\}', " ".join(rule["expr"] for rule in rules))
    assert sorted(found) == sorted(REMEDIES)


def test_the_readme_and_the_monitoring_page_lead_there() -> None:
    assert "docs/admin/troubleshooting.md" in (ROOT / "README.md").read_text()
    assert "troubleshooting.md" in (ROOT / "docs/admin/monitoring.md").read_text()
