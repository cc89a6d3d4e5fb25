"""Real daemons of three architectures: one shared model travels, and each site predicts with its own, too."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from gossipseg import config
from gossipseg.learn import bundle
from gossipseg.learn.deploy.deployment import load_deployment
from gossipseg.learn.evaluation.mixture import Mixture
from gossipseg.store import Checkpoints, read_events
from gossipseg.testbed import synthetic
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
    "training": {
        "steps_per_round": 4,
        "batch_size": 2,
        "learning_rate": 0.002,
        "rounds": ROUNDS,
        "validate_every_rounds": 3,
    },
    "gossip": {"exchange": "swap", "warmup_rounds": 0, "offer_timeout_s": 3.0, "personal_every_rounds": 6},
}


def test_three_architectures_learn_together(tmp_path: Path) -> None:
    """And each site looks at the personal models of the other two."""
    with federation(tmp_path, list(OWN), **SETTINGS) as f:
        for index, (name, network) in enumerate(OWN.items()):
            if network is not None:
                f[name].edit(personal_network=network)
            ward = replace(synthetic.hospitals(3)[index], cases=(6, 8, 2))
            synthetic.write_site(f[name].folder / "data", ward, seed=0, index=index, size_px=48)
        for site in f.sites.values():
            site.start()
        f.until("all have finished", lambda: all(phase(s) == "finished" for s in f.sites.values()))
        f.until("all have the others' last personal models", lambda: all(fetched(f, n) for n in OWN))
        contracts = set()
        for name, site in f.sites.items():
            status = site.status()
            assert status is not None and status.deployed in ("mix", "personal"), status
            assert status.round == status.rounds and status.swaps.mixed + status.swaps.copied >= 1, (
                status.swaps
            )
            assert status.personal_network.startswith((OWN[name] or {"name": ""})["name"])
            contracts.add(status.contract)
        assert len(contracts) == 1
        assert [site.end() for site in f.sites.values()] == [0, 0, 0]
        for name, site in f.sites.items():
            assert mutual(site) and not told(site, "personal_refused")
            assert deployed(f, name).keys() == deployed(f, "north").keys()
        exported(f["south"], tmp_path / "out")


def phase(site: Site) -> str:
    status = site.status()
    return status.phase if status else ""


def told(site: Site, name: str) -> list[Mapping[str, Any]]:
    """The events of this name, from the file: nobody answers after the end."""
    log = read_events(site.folder / "state" / "events.jsonl", 100_000)
    return [e for e in log if e["event"] == name]


def fetched(f: Federation, name: str) -> bool:
    """Whether a site has had a personal model of each of the others."""
    return {e["site"] for e in told(f[name], "personal_received")} == set(OWN) - {name}


def mutual(site: Site) -> bool:
    """Whether the mutual term was in force in some round, between the site's two networks."""
    found = [e["terms"] for e in told(site, "round_finished") if "pull" in e.get("terms", {})]
    return any(terms["lambda"] > 0 and terms["pull"] > 0 for terms in found)


def deployed(f: Federation, name: str) -> dict[str, torch.Tensor]:
    """Check which networks predict at a site; the weights of the shared one in its checkpoint."""
    spec = config.worker_spec(config.load(f[name].config))
    found = load_deployment(spec)
    members = found.net.members if isinstance(found.net, Mixture) else [found.net]
    for member, net in zip(found.members, members, strict=True):
        site = name if member == "personal" else member.removeprefix("personal of ")
        assert type(net.network).__name__ == NETWORKS.get(site, "SANet"), (name, member)
    checkpoint = Checkpoints(Path(spec.state_dir) / "checkpoint").newest()[0]
    shared: dict[str, torch.Tensor] = torch.load(checkpoint, weights_only=True)["ema"]
    return shared


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
    net = bundle.network_def(**described).eval()
    net.load_state_dict(torch.load(out / "model.pt", weights_only=True))
    assert torch.isfinite(net(torch.zeros(1, 1, 32, 32))).all()
    names = [network["name"] for network in described.get("networks", [described.get("network")])]
    assert names[0] == "segresnet", "its own personal model has a part in any case"
