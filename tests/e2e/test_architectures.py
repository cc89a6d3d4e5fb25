"""Real daemons of three architectures: one shared model travels, and each site predicts with its own, too."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from gossipseg import config
from gossipseg.learn import bundle
from gossipseg.learn.deploy.deployment import load_deployment
from gossipseg.learn.evaluation.mixture import Mixture
from gossipseg.store import read_events
from tests.e2e.federation import Federation, Site, federation

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
ROUNDS = 12
"""So many that also a worker that was up late trains its personal model for five rounds."""
OWN: dict[str, dict[str, Any] | None] = {
    "north": None,
    "south": {"name": "segresnet", "width": 4},
    "west": {"name": "unet", "width": 4},
}
NETWORKS = {"north": "SANet", "south": "SegResNet", "west": "UNet"}
SETTINGS: dict[str, Any] = {
    "algorithm": {"name": "gcml"},
    "training": {"steps_per_round": 4, "batch_size": 2, "learning_rate": 0.002, "rounds": ROUNDS},
    "gossip": {"exchange": "swap", "warmup_rounds": 0, "offer_timeout_s": 3.0},
}


def test_three_architectures_learn_together(tmp_path: Path) -> None:
    with federation(tmp_path, list(OWN), **SETTINGS) as f:
        for name, network in OWN.items():
            if network is not None:
                f[name].edit(personal_network=network)
        for site in f.sites.values():
            site.start()
        f.until("all have finished", lambda: all(phase(s) == "finished" for s in f.sites.values()))
        contracts = set()
        for name, site in f.sites.items():
            status = site.status()
            assert status is not None and status.deployed == "mix", status
            assert status.round == status.rounds and status.swaps.mixed + status.swaps.copied >= 1, (
                status.swaps
            )
            assert status.personal_network.startswith((OWN[name] or {"name": ""})["name"])
            contracts.add(status.contract)
        assert len(contracts) == 1
        assert [site.end() for site in f.sites.values()] == [0, 0, 0]
        assert all(mutual(site) for site in f.sites.values())
        shared = [deployed(f, name) for name in OWN]
        assert shared[0].keys() == shared[1].keys() == shared[2].keys()
        exported(f["south"], tmp_path / "out")


def phase(site: Site) -> str:
    status = site.status()
    return status.phase if status else ""


def mutual(site: Site) -> bool:
    """Whether the mutual term was in force in some round, between the site's two networks."""
    log = read_events(site.folder / "state" / "events.jsonl", 100_000)
    found = [e["terms"] for e in log if e["event"] == "round_finished" and "pull" in e.get("terms", {})]
    return any(terms["lambda"] > 0 and terms["pull"] > 0 for terms in found)


def deployed(f: Federation, name: str) -> dict[str, torch.Tensor]:
    """Check which networks predict at a site; the weights of the shared one."""
    found = load_deployment(config.worker_spec(config.load(f[name].config)))
    assert isinstance(found.net, Mixture) and set(found.members) == {"personal", "shared"}
    personal, shared = (type(member.network).__name__ for member in found.net.members)
    assert (personal, shared) == (NETWORKS[name], "SANet")
    return dict(found.net.members[1].state_dict())


def exported(site: Site, out: Path) -> None:
    """What the site writes for use elsewhere has both networks."""
    command = [
        sys.executable,
        "-m",
        "gossipseg.ctl.main",
        "export",
        "--config",
        str(site.config),
        "-o",
        str(out),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    described = json.loads((out / "bundle/configs/inference.json").read_text())["network_def"]
    del described["_target_"]
    assert [network["name"] for network in described["networks"]] == ["segresnet", "sanet"]
    net = bundle.network_def(**described).eval()
    net.load_state_dict(torch.load(out / "model.pt", weights_only=True))
    assert torch.isfinite(net(torch.zeros(1, 1, 32, 32))).all()
