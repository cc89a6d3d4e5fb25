"""Every built-in algorithm in real daemons, chosen as `gossipctl testbed run --algorithm NAME` chooses it.

What belongs here: that each of them comes to its end there. What must not: what an algorithm does to a model
(tests/paper), how a coordinator fails (test_rounds.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from gossipseg.algos.params import names, params_class
from gossipseg.store import read_events
from gossipseg.testbed import experiment, report, synthetic
from gossipseg.testbed.layout import Layout, WantedTestbed
from gossipseg.testbed.live import make_display
from gossipseg.testbed.run import FederationRun
from tests.e2e.federation import TASK, write_data

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

RUN_ELSEWHERE = {
    "gcml": "test_federation.py",
    "local": "test_federation.py",
    "gossip_average": "test_federation.py",
    "fedavg": "test_rounds.py",
    "fedbn": "test_rounds.py",
}
"""Algorithms that a longer test of real daemons runs, and where. A new one runs here without being named."""
DEFAULT = names()[0]
"""What a peers.yaml that names no algorithm uses."""
SITES = ("north", "south")
COMMON_ROUNDS = 3
"""One more than the rounds in which FedSCA still averages plainly, and one more to start from its mixture."""
TIMEOUT_S = 240.0
TINY: dict[str, Any] = {
    "federation": "tiny",
    "task": TASK,
    "network": {"width": 4, "dropout": 0.0},
    "training": {"batch_size": 2},
    "membership": {"preset": "local"},
    "gossip": {"warmup_rounds": 1, "sender_rate": 1.0},
    "rounds": {"deadline_s": 60, "patience_s": 30, "alone_after_s": 600, "poll_interval_s": 0.2},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    for i, (name, hospital) in enumerate(zip(SITES, synthetic.hospitals(len(SITES)), strict=True)):
        write_data(root / name, hospital, i)
    return root


def events(layout: Layout, site: str, *kinds: str) -> list[dict[str, Any]]:
    state = next(s.state_dir for s in layout.sites if s.name == site)
    return [e for e in read_events(state / "events.jsonl", 10_000) if e["event"] in kinds]


def test_the_other_tests_run_what_is_left_out_here() -> None:
    assert RUN_ELSEWHERE.keys() <= set(names())
    for name, file in RUN_ELSEWHERE.items():
        written = f'"{name}"' in (Path(__file__).parent / file).read_text()
        assert written or name == DEFAULT, f"{file} does not run {name} any more"


@pytest.mark.parametrize("algorithm", [name for name in names() if name not in RUN_ELSEWHERE])
def test_it_runs_in_real_daemons_to_the_last_round(data: Path, tmp_path: Path, algorithm: str) -> None:
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    params = params_class(algorithm)()
    rounds = COMMON_ROUNDS + getattr(params, "finetune_rounds", 0)
    wanted = WantedTestbed(algorithm=algorithm, rounds=rounds, steps=1, peers=tmp_path / "tiny.yaml")
    layout = experiment.make_testbed(tmp_path / "bed", data, None, wanted)

    result = FederationRun(layout, make_display(algorithm, quiet=True), timeout_s=TIMEOUT_S).run()

    logs = {site.name: site.log.read_text() for site in layout.sites}
    assert result.exit_code == 0, (result.missing, logs)
    assert report.document(result)["algorithm"] == algorithm
    for site in result.sites:
        assert site.status is not None, logs
        assert (site.status.algorithm, site.status.exchange) == (algorithm, params.exchange)
        assert (site.status.phase, site.status.round) == ("finished", rounds)
        assert [e["round"] for e in events(layout, site.name, "round_finished")] == [*range(1, rounds + 1)]
        assert events(layout, site.name, "daemon_stopped"), f"{site.name} was killed\n{logs[site.name]}"
    if params.exchange == "rounds":
        stored = [{e["round"]: e for e in events(layout, s, "round_committed")} for s in SITES]
        common = stored[0].keys() & stored[1].keys()
        assert common, (stored, logs)
        for number in common:
            assert stored[0][number]["hash"] == stored[1][number]["hash"]
            assert sorted(stored[0][number]["contributors"]) == list(SITES), stored[0][number]
