"""What FedAvg would send, against what it does send, and in what a comparison says of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gossipseg.lab import main
from gossipseg.lab.plan import choices
from gossipseg.lab.plan.choices import WantedRuns
from gossipseg.lab.report import fedavg_traffic, statistics
from tests.lab import rig
from tests.lab.test_compare import arguments

ADAPTERS = "fedsca[network.width=2,network.options.adapter_width=2]"


def settings(data: Path, *more: str) -> dict[str, Any]:
    """Of a results.json, as it is read again."""
    study = choices.read(WantedRuns(data, rounds=2, steps=2, settings=(*rig.TINY, *more)))
    found: dict[str, Any] = json.loads(json.dumps(study.document()))
    return found


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_the_size_is_that_of_what_fedavg_sends(hospitals: Path, dtype: str) -> None:
    """But for a few figures in the file's header."""
    wire = f"wire.dtype={dtype}"
    rows = rig.run(rig.plan(hospitals, "fedavg", settings=(wire,)))
    models = statistics.fedavg_models(len(rows), rounds=2)
    measured = sum(row["model_bytes_out"] for row in rows.values()) / models
    assert fedavg_traffic.fedavg_model_bytes(settings(hospitals, wire)) == pytest.approx(measured, abs=200)


def test_where_fedavg_cannot_train_the_network_there_is_no_size(hospitals: Path) -> None:
    assert fedavg_traffic.fedavg_model_bytes(settings(hospitals, "network.name=cowpro_encoder")) is None
    assert fedavg_traffic.fedavg_model_bytes({}) is None


@pytest.mark.slow
def test_table_report_and_results_hold_one_that_sends_a_part_against_the_whole(
    hospitals: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And so do results of an earlier version, drawn again."""
    assert main.run(arguments(hospitals, tmp_path, ADAPTERS)) == 0
    file, terminal = tmp_path / "results.json", capsys.readouterr().out
    document = json.loads(file.read_text())
    whole = fedavg_traffic.fedavg_model_bytes(document["settings"])
    assert whole == document["fedavg_model_bytes"]
    moved = sum(row["model_bytes_out"] for row in document["runs"])
    share = moved / (4 * whole)  # two sites, two rounds: four models
    assert document["summary"][0]["relative_bytes"] == pytest.approx(share)
    for shown in (terminal, (tmp_path / "report.html").read_text()):
        assert f"{100 * share:.0f} %" in shown
        assert "what FedAvg, which was not run, would move" in shown.replace("\n", " ")
    del document["fedavg_model_bytes"], document["summary"]
    file.write_text(json.dumps(document))
    assert main.run(["report", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out == terminal
