"""Real daemons whose personal models travel: one predicts with the others', and forgets a removed one."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gossipseg import config as configuration
from gossipseg.learn.deploy.deployment import load_deployment, newest_checkpoint
from gossipseg.testbed import synthetic
from gossipseg.wire.control import ControlClient
from tests.e2e.federation import Federation, Site, federation

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
SETTINGS: dict[str, Any] = {
    "algorithm": {"name": "gossip_average"},
    "training": {"rounds": 4, "steps_per_round": 6, "batch_size": 2, "learning_rate": 0.005},
    "gossip": {"warmup_rounds": 1, "offer_timeout_s": 2.0, "personal_every_rounds": 2},
}


@pytest.fixture(autouse=True)
def patients(monkeypatch: pytest.MonkeyPatch) -> None:
    """North has eight validation patients, the others two."""

    def write(folder: Path, hospital: synthetic.Hospital, index: int) -> None:
        small = replace(hospital, cases=(4, 8 if index == 0 else 2, 2))
        synthetic.write_site(folder, small, seed=0, index=index, size_px=48)

    monkeypatch.setattr("tests.e2e.federation.write_data", write)


def finished(site: Site) -> bool:
    status = site.status()
    return status is not None and status.phase == "finished"


def held(site: Site) -> set[str]:
    status = site.status()
    return set(status.personal_held) if status is not None and not status.personal_wanted else set()


def bytes_in(site: Site) -> int:
    status = site.status()
    return status.bytes_in if status is not None else 0


def in_checkpoint(site: Site) -> dict[str, int]:
    """Site → the round of its personal model in the newest checkpoint."""
    _, document = newest_checkpoint(site.folder / "state" / "checkpoint")
    return {name: record["round"] for name, record in document["peers"].items()}


def deployed(site: Site) -> set[str]:
    """The members of what `evaluate`, `predict` and `export` would load now."""
    spec = configuration.worker_spec(configuration.load(site.config))
    return set(load_deployment(spec).members)


def test_a_site_predicts_with_others_models_and_lets_go_of_a_removed_one(tmp_path: Path) -> None:
    with federation(tmp_path, ["north", "south", "west"], **SETTINGS) as f:
        for site in f.sites.values():
            site.start()
        f.until("all have finished", lambda: all(finished(site) for site in f.sites.values()))
        north = f["north"]
        f.until("north holds the last of both", lambda: held(north) == {"south", "west"})
        f.until("and so does its checkpoint", lambda: in_checkpoint(north) == {"south": 4, "west": 4})
        assert not any(held(f[name]) for name in ("south", "west")), "two validation patients choose nothing"
        received = [e["site"] for e in north.events("personal_received")]
        assert set(received) == {"south", "west"} and len(received) >= 2
        for name in ("south", "west"):
            sent = [e for e in f[name].events("personal_sent") if e["site"] == "north"]
            assert sent and not f[name].events("personal_received")
        end = north.events("finished")[-1]["t"]
        if any(e["t"] > end for e in north.events("personal_received")):  # north was not the last
            f.until("after the end it was chosen again", lambda: north.events("mix_chosen"))
        f.until("north is well", lambda: f.well("north"))
        status = north.status()
        assert status is not None
        assert "personal " in status.deployed_reason
        with ControlClient(north.socket) as client:
            kinds = [(row.kind, row.frm) for row in client.models().models]
        assert {("personal", s) for s in f.sites} <= set(kinds)
        remove_west(f, north)


def remove_west(f: Federation, north: Site) -> None:
    f.edit(lambda doc: doc.update(sites=[s for s in doc["sites"] if s["name"] != "west"]))
    for name in ("north", "south"):
        f[name].send(signal.SIGHUP)
    f.until("north holds south's alone", lambda: held(north) == {"south"})
    f.until("and so does its checkpoint", lambda: set(in_checkpoint(north)) == {"south"})

    def named_west() -> bool:
        status = north.status()
        return status is None or "personal of west" in status.deployed_reason

    f.until("its status names west no more", lambda: not named_west())
    assert deployed(north) and "personal of west" not in deployed(north)


def test_a_killed_site_still_serves_its_last_model(tmp_path: Path) -> None:
    """South finishes first, is killed, and comes back: what it serves is on its disk."""
    with federation(tmp_path, ["north", "south"], **SETTINGS) as f:
        south, north = f["south"], f["north"]
        south.start()
        f.until("south has finished", lambda: finished(south))
        f.until("its model is in the store", lambda: stored(south))
        south.end(signal.SIGKILL)
        south.start()
        north.start()
        f.until("both have finished", lambda: finished(south) and finished(north))
        f.until("north holds south's last", lambda: held(north) == {"south"})
        f.until("and so does its checkpoint", lambda: in_checkpoint(north) == {"south": 4})


def stored(site: Site) -> bool:
    with ControlClient(site.socket) as client:
        return any(row.kind == "personal" and row.round == 4 for row in client.models().models)
