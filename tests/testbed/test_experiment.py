"""The verdict of `gossipctl testbed run`: its exit code, report.json and what it says, without daemons.

The runs here are over before they begin: the sites' event logs are written as daemons write them, and all
that follows from the logs is the product's own. Runs with daemons are in test_run.py.
"""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gossipseg.ctl import main
from gossipseg.store import EventLog
from gossipseg.testbed import experiment, synthetic
from gossipseg.testbed.run import FederationRun, RunResult

ROUNDS = 3


class Over(FederationRun):
    """A run of which every site has finished. `absent`: round → who is not in its global model, and why."""

    absent: dict[int, dict[str, str]]

    def run(self) -> RunResult:
        for site in self._layout.sites:
            site.state_dir.mkdir(parents=True)
            log = EventLog(site.state_dir / "events.jsonl")
            for number in range(1, ROUNDS):
                without = self.absent.get(number, {})
                everybody = {s.name for s in self._layout.sites}
                fields = {"contributors": sorted(everybody - without.keys()), "absent": without}
                log.append("round_committed", t=time.time(), site="north", round=number, **fields)
            log.append("finished", t=time.time(), round=ROUNDS)
            log.close()
            self._views[site.name].state = "finished"
        return self._result(time.time(), 1.0)


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    """Of a run on three tiny sites."""
    hospitals = [replace(h, cases=(2, 1, 1)) for h in synthetic.hospitals(3)]
    synthetic.write_federation(tmp_path / "data", hospitals, size_px=48)
    workdir = str(tmp_path / "bed")
    data = str(tmp_path / "data")
    return ["testbed", "run", "--data", data, "--algorithm", "fedavg", "--workdir", workdir, "--json"]


@pytest.mark.parametrize(
    ("absent", "code"),
    [({}, 0), ({2: {"lakeside": "dead"}}, 1), ({1: {"north": "late"}, 2: {}}, 1)],
    ids=["with all", "the last without one", "an earlier one without one"],
)
def test_a_round_closed_without_a_listed_site_makes_the_run_a_failure(
    absent: dict[int, dict[str, str]],
    code: int,
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Every site has finished: only the exit code tells a script that the models are of fewer sites."""
    monkeypatch.setattr(Over, "absent", absent, raising=False)
    monkeypatch.setattr(experiment, "FederationRun", Over)
    assert main.run(arguments) == code
    printed = capsys.readouterr()
    doc: dict[str, Any] = json.loads(printed.out)
    assert doc == json.loads((tmp_path / "bed" / "report.json").read_text())
    assert doc["closed_without"] == {str(number): sites for number, sites in absent.items() if sites}
    for number, sites in absent.items():
        for site, reason in sites.items():
            assert f"round {number} was closed without {site} ({reason})" in printed.err
    assert ("closed without" in printed.err) == (code != 0)
