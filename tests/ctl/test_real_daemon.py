"""gossipctl against real daemons: everything a person at a site types, in the order of a first day."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.federation import Federation, federation

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with federation(tmp_path_factory.mktemp("f"), ("north", "south")) as made:
        for site in made.sites.values():
            site.start()
        yield made


def test_a_day_at_a_site(sites: Federation, ctl: Any, tmp_path: Path) -> None:
    north, config = sites["north"], ("--config", sites["north"].config)
    sites.until_round("north", 1, 180)
    sites.until("north sees south", lambda: sites.sees("north", "south", "alive"))

    status = ctl("status", *config, "--json").json
    assert (status["site"], status["federation"], status["cases"]) == ("north", "test", 4)
    shown = ctl("status", *config)
    assert "north of test" in shown.out and status["id"] in shown.out

    def listed_alive() -> bool:
        peers = ctl("peers", *config).lines
        return peers[1].split()[:1] == ["south"] and " alive " in peers[1]

    sites.until("the list shows south alive", listed_alive)
    assert ctl("version", *config, "--json").json["daemon"]
    for command in ("exchanges", "models", "events"):
        assert ctl(command, *config).code == 0, command
    assert "worker_ready" in ctl("events", "-n", 500, *config).out
    assert len(ctl("watch", "--frames", 2, *config, "--json").lines) == 2

    def found_well() -> bool:
        checked = ctl("check", *config, "--no-data", "--json")
        rows = {r["check"]: r["state"] for r in checked.json["checks"]}
        return checked.code == 0 and rows["peer south"] == "ok"

    sites.until("the doctor finds south well", found_well)

    assert ctl("pause", *config).code == 0
    sites.until("north paused", lambda: ctl("status", *config, "--json").json["phase"] == "paused")
    assert ctl("resume", *config).code == 0
    assert ctl("reload", *config).code == 0
    listed = sites.peers_file.read_text()
    sites.peers_file.write_text(listed.replace("federation: test", "federation: test\nsede: 1"))
    refused = ctl("reload", *config)
    assert refused.code == 1 and "Did you mean `seed`?" in refused.err
    sites.peers_file.write_text(listed)

    image = next((north.folder / "data" / "images").iterdir())
    predicted = ctl("predict", image, "-o", tmp_path / "out", *config)
    assert predicted.code == 0, predicted.err
    assert (tmp_path / "out" / f"{image.stem}.png").exists()

    sites.until("north sees whom to tell", lambda: sites.sees("north", "south", "alive"))
    assert ctl("leave", *config).code == 0
    assert north.process is not None and north.process.wait(20) == 0
    north.process = None
    assert ctl("status", *config).code == 69
    sites.until("south sees it left", lambda: sites.sees("south", "north", "left"))

    scored = ctl("evaluate", "--split", "test", "--json", *config)
    assert scored.code == 0 and scored.json["kind"] == "evaluation", "whether or not the daemon runs"
    exported = ctl("export", "-o", tmp_path / "model", *config)
    assert exported.code == 0 and (tmp_path / "model" / "model.pt").exists()
    checked = ctl("check", *config, "--no-data", "--json", "--timeout", 30)
    rows = {r["check"]: r for r in checked.json["checks"]}
    assert rows["daemon"]["state"] == "skipped"
    assert "contract right" in rows["peer south"]["detail"], "south answers the doctor's Hello"


def test_installed_command_answers(sites: Federation) -> None:
    gossipctl = Path(sys.executable).with_name("gossipctl")
    done = subprocess.run(
        [str(gossipctl), "peers", "--config", str(sites["south"].config)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("SITE") and done.stderr == ""
