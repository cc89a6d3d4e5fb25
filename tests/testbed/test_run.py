"""Real runs of real daemons, as small as they can be: `gossipctl testbed` and `gossipctl demo`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from gossipseg.ctl.demo import shortcomings
from gossipseg.testbed import processes, synthetic

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

PATIENCE_S = 240.0
TINY = {
    "federation": "tiny",
    "task": {
        "name": "lesions",
        "channels": 1,
        "labels": {0: "background", 1: "lesion"},
        "label_map": {255: 1},
        "patch_size": [32, 32],
    },
    "network": {"width": 4, "dropout": 0.0},
    "training": {"steps_per_round": 3, "batch_size": 2},
    "gossip": {"sender_rate": 1.0, "warmup_rounds": 1},
}


def gossipctl(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gossipseg.ctl.main", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    hospitals = [replace(h, cases=(3, 1, 2)) for h in synthetic.hospitals(2)]
    synthetic.write_federation(root, hospitals, size_px=64)
    return root


@pytest.fixture(scope="module")
def peers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("peers") / "peers.yaml"
    path.write_text(yaml.safe_dump(TINY))
    return path


ROUNDS = 40
"""Enough that two sites that are not ready at the same moment still train side by side for a while."""


def eventually(what: str, condition: Callable[[], Any]) -> Any:
    """The condition's first true value."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.2)
    raise AssertionError(f"not within {PATIENCE_S:.0f} s: {what}")


def daemons_of(workdir: Path) -> list[str]:
    """Command lines of the running processes that name this folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(workdir) in line and "gossipseg.daemon" in line:
            found.append(line)
    return found


def test_a_run_ends_with_a_report_and_no_daemon(data: Path, peers: Path, tmp_path: Path) -> None:
    done = gossipctl(
        "testbed",
        "run",
        "--data",
        data,
        "--peers",
        peers,
        "--rounds",
        ROUNDS,
        "--workdir",
        tmp_path,
        "--seed",
        1,
        "--json",
    )
    assert done.returncode == 0, done.stderr
    doc = json.loads(done.stdout)
    assert doc == json.loads((tmp_path / "report.json").read_text())
    assert [s["site"] for s in doc["sites"]] == ["lakeside", "north"]
    rounds = sorted(site["rounds"] for site in doc["sites"])
    assert rounds[1] == ROUNDS >= rounds[0] > 0, "who begins later takes over a model, and its round with it"
    for site in doc["sites"]:
        assert site["cases"] == 3
        assert 0 <= site["dice_test_start"] <= 1
        assert 0 <= site["dice_test"] <= 1
    sent, received = (sum(s[k] for s in doc["sites"]) for k in ("sent", "received"))
    assert sent == received > 0, "every model that left has arrived"
    assert sum(s["bytes_out"] for s in doc["sites"]) > 0
    assert (tmp_path / "report.png").stat().st_size > 10_000
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 3, "curves, timeline, predictions"
    assert not daemons_of(tmp_path)
    assert not (tmp_path / "sites" / "north" / "state").exists(), "without --keep"


def test_a_site_that_cannot_start_is_named_with_its_reason(data: Path, peers: Path, tmp_path: Path) -> None:
    made = gossipctl("testbed", "init", "--out", tmp_path, "--data", data, "--sites", "2", "--peers", peers)
    assert made.returncode == 0, made.stderr
    assert not daemons_of(tmp_path)
    broken = tmp_path / "mine.yaml"
    broken.write_text(yaml.safe_dump({**TINY, "task": {**TINY["task"], "label_map": {}}}))  # type: ignore[dict-item]
    done = gossipctl(
        "testbed", "run", "--data", data, "--peers", broken, "--rounds", "1", "--workdir", tmp_path / "bed"
    )
    assert done.returncode == 65, done.stdout + done.stderr
    assert "did not finish: gone" in done.stderr
    assert "255" in done.stderr, "the daemon's own words are shown"
    assert not daemons_of(tmp_path)


def test_up_status_down(data: Path, peers: Path, tmp_path: Path) -> None:
    assert gossipctl("testbed", "up", "--data", data, "--peers", peers, "--workdir", tmp_path).returncode == 0
    try:

        def trained() -> bool:
            answer = gossipctl("testbed", "status", "--workdir", tmp_path, "--json")
            rows = json.loads(answer.stdout)["sites"]
            return all(r["status"] and r["status"]["round"] >= 1 for r in rows)

        eventually("both sites have trained a round", trained)
        again = gossipctl("testbed", "up", "--workdir", tmp_path)
        assert again.returncode == 75
        assert "testbed down" in again.stderr
    finally:
        down = gossipctl("testbed", "down", "--workdir", tmp_path)
    assert down.returncode == 0
    assert "north" in down.stdout
    assert not daemons_of(tmp_path)
    assert gossipctl("testbed", "status", "--workdir", tmp_path).returncode == 1
    assert (tmp_path / "sites" / "north" / "state" / "node.json").exists(), "up lets it go on"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_interrupted_leaves_no_daemon(
    data: Path, peers: Path, tmp_path: Path, number: int
) -> None:
    command = [sys.executable, "-m", "gossipseg.ctl.main", "testbed", "run", "--data", str(data)]
    command += ["--peers", str(peers), "--rounds", "500", "--workdir", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        eventually("two daemons run", lambda: len(processes.running(tmp_path)) == 2)
        os.kill(run.pid, number)
        run.communicate(timeout=PATIENCE_S)
    assert run.returncode == 130
    assert not daemons_of(tmp_path)


def test_the_demo_is_not_content_with_little() -> None:
    fine = {"site": "a", "dice_test_start": 0.1, "dice_test": 0.5, "accepted": 1}
    assert shortcomings({"sites": [fine]}) == []
    for change, words in (
        ({"dice_test": 0.1}, "did not rise"),
        ({"dice_test": None}, "not known"),
        ({"accepted": 0}, "accepted no model"),
    ):
        assert words in " ".join(shortcomings({"sites": [fine, {**fine, **change}]}))
