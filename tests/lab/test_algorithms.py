"""Every algorithm through a whole comparison: a new one is here as soon as it has a name."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from gossipseg.algos.params import names, params_class
from gossipseg.lab import main
from tests.lab.test_compare import arguments

pytestmark = pytest.mark.slow

SITES = ("lakeside", "north")


def entry(name: str) -> str:
    """Of --algorithms, with a round that is learnt together."""
    finetunes = getattr(params_class(name)(), "finetune_rounds", 0)
    return f"{name}[finetune_rounds=1]" if finetunes else name


@pytest.fixture(scope="module")
def compared(hospitals: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The comparison of all of them: one or two rounds of two steps, then one alone where they have such."""
    out = tmp_path_factory.mktemp("all")
    entries = ",".join(map(entry, names()))
    more = ("--rounds", "3", "--set", "gossip.sender_rate=1", "--set", "gossip.warmup_rounds=0")
    assert main.run(arguments(hospitals, out, entries, *more)) == 0
    return out


@pytest.fixture(scope="module")
def results(compared: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((compared / "results.json").read_text())
    return found


@pytest.mark.parametrize("name", names())
def test_every_algorithm_trains_exchanges_and_is_scored(results: dict[str, Any], name: str) -> None:
    rows = [row for row in results["runs"] if row["algorithm"] == entry(name)]
    assert tuple(row["site"] for row in rows) == SITES
    for row in rows:
        assert row["rounds"] == 3 and row["steps"] == 6
        assert math.isfinite(row["dice_test"]) and 0 <= row["dice_test"] <= 1
        assert [number for number, _ in row["curve"]] == [1, 2, 3]
        assert all(dice is None or math.isfinite(dice) for _, dice in row["curve"])
        assert row["cases"] and row["gradient_evaluations"] >= 6
        assert row["wire_model_bytes"] > 0 and row["warnings"] == []
    exchange = params_class(name).exchange
    assert (sum(row["model_bytes_out"] for row in rows) > 0) == (exchange != "none")
    if exchange == "rounds":
        assert all(row["merged"] > 0 for row in rows), "each began a round from a global model"
    (summary,) = [s for s in results["summary"] if s["algorithm"] == entry(name)]
    assert (summary["relative_bytes"] > 0) == (exchange != "none")


def test_the_similarity_that_fedsca_finds_is_kept_and_shown(compared: Path, results: dict[str, Any]) -> None:
    found = [row["similarity"] for row in results["runs"] if "similarity" in row]
    assert {row["algorithm"] for row in results["runs"] if "similarity" in row} == {"fedsca"}
    last = max(found, key=lambda similarity: int(similarity["round"]))
    assert sorted(last["sites"]) == list(SITES)
    (one, ab), (ba, other) = last["matrix"]
    assert one == other == 1 and 0 <= ab == ba <= 1
    page = (compared / "report.html").read_text()
    assert "Which sites learn alike" in page and f"<b>fedsca</b>, round {last['round']}:" in page
    assert f"<td>1.00</td><td>{ab:.2f}</td>" in page
