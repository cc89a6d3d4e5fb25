"""Two real daemons under watch: key handed over as a credential, metrics, health, audit log, recording."""

from __future__ import annotations

import os
import re
import urllib.request
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families

from gossipseg.daemon.recording import replay
from gossipseg.store.auditverify import read_audit, verify_audit
from gossipseg.wire.control import ControlClient
from gossipseg.wire.health import TRAINING
from tests.e2e.federation import Federation, Site, federation

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def as_credential(site: Site, credentials: Path) -> None:
    """What LoadCredential does: the key in a folder of the service's own, and nowhere else."""
    credentials.mkdir(mode=0o700)
    handed = credentials / "key.pem"
    (site.folder / "identity" / "key.pem").rename(handed)
    handed.chmod(0o440)
    credentials.chmod(0o500)
    site.env = {"CREDENTIALS_DIRECTORY": str(credentials), "GOSSIPSEG_IDENTITY__KEY": str(handed)}


def metrics(site: Site) -> dict[tuple[str, ...], float]:
    """(name, label values in the order of the labels' names …) → value."""
    (noted,) = site.events("metrics_served")[-1:]
    with urllib.request.urlopen(noted["address"], timeout=20) as answer:
        families = text_string_to_metric_families(answer.read().decode())
        return {(s.name, *s.labels.values()): s.value for family in families for s in family.samples}


def merged(site: Site) -> list[dict[str, Any]]:
    lines = read_audit(site.folder / "state" / "audit")
    return [line for line in lines if line["event"] in ("model_merged", "model_kept_out")]


def test_all_that_watches_a_site(tmp_path: Path) -> None:
    with federation(tmp_path, ("north", "south"), site={"metrics": {"port": 0}, "tensorboard": True}) as f:
        north = f["north"]
        as_credential(north, tmp_path / "credentials")
        for site in f.sites.values():
            site.start()
        f.until("a visit at north", lambda: merged(north))
        _look(f, north)
        assert north.end() == 0
        verdict = verify_audit(north.folder / "state" / "audit")
        assert verdict.flaws == () and not verdict.open_end and verdict.torn == 0
        assert [*read_audit(north.folder / "state" / "audit")][-1]["event"] == "daemon_stopped"
        assert list((north.folder / "state" / "tensorboard").glob("events.out.tfevents.*"))


def _look(f: Federation, north: Site) -> None:
    line = merged(north)[0]
    assert line["peer"] == "south" and re.fullmatch("[0-9a-f]{64}", line["hash"])
    assert isinstance(line["dice_after"], float)
    f.until("its metrics", lambda: metrics(north).get(("gossipseg_rounds_total",), 0) >= 1)
    f.until("south is up", lambda: metrics(north)["gossipseg_peer_up", "south"] == 1)
    shown = metrics(north)
    assert shown["gossipseg_wire_received_bytes_total", "south"] > 0
    assert shown["gossipseg_transfers_total", "in", "done", "south"] >= 1
    assert shown["gossipseg_audit_lines_total",] >= 3 and shown["process_open_fds",] > 3
    with grpc.insecure_channel(f"unix:{os.path.relpath(north.socket)}") as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=TRAINING))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    with ControlClient(north.socket) as client:
        replayed = replay.load(client.dump().recording)
    steps = list(replayed.steps())
    assert len(steps) > 20 and all(step.same for step in steps), next(s for s in steps if not s.same)
    assert replayed.node.round >= 1
