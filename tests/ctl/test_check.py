"""`gossipctl check`: each thing broken once, and found. Peers are real TLS servers on loopback."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import importlib.util
import os
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import msgspec
import pytest
import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from prometheus_client import CollectorRegistry, Info, start_http_server

from gossipseg import config as configuration
from gossipseg import trust
from gossipseg.algos.params import FedCoWProParams
from gossipseg.core.messages import Hello, HelloReply, Reply, Request
from gossipseg.core.types import ModelRef, PeerInfo, Phase
from gossipseg.ctl import learn
from gossipseg.ctl.doctor import data as doctor_data
from gossipseg.ctl.doctor import machine as doctor
from gossipseg.ctl.doctor import start as doctor_start
from gossipseg.ctl.doctor.whereabouts import whereabouts
from gossipseg.errors import EXIT_UNREACHABLE, PeerRefused
from gossipseg.store import DirectoryLock
from gossipseg.trust.making import self_signed
from gossipseg.wire import documents as doc
from gossipseg.wire.grpc_transport import GrpcTransport
from gossipseg.wire.params import PROTOCOL_MAX, PROTOCOL_MIN
from gossipseg.wire.transport import PeerEndpoint
from tests.e2e.federation import free_ports

TASK = {"name": "t", "channels": 1, "labels": {0: "background", 1: "organ"}, "patch_size": [32, 32]}


class South:
    """The other site's daemon, as far as Hello goes."""

    def __init__(self) -> None:
        self.federation: configuration.FederationFile | None = None
        self.protocol = (PROTOCOL_MIN, PROTOCOL_MAX)
        self.refusal: PeerRefused | None = None

    async def on_request(self, peer: str, body: Request) -> Reply:
        assert isinstance(body, Hello) and self.federation is not None
        if self.refusal is not None:
            raise self.refusal
        info = PeerInfo(4, 400, 9, Phase.TRAINING, "abc")
        pairs = configuration.contract(self.federation, "signature")
        return HelloReply(*self.protocol, self.federation.federation, pairs, info)

    async def push_offset(self, peer: str, model: ModelRef) -> int:
        raise PeerRefused(peer, "not_offered")

    async def on_push(self, peer: str, model: ModelRef, offset: int, chunks: AsyncIterator[bytes]) -> None:
        raise PeerRefused(peer, "not_offered")


class Loop:
    """An event loop in a thread."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()

    def run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(20)

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)
        self.loop.close()


@dataclasses.dataclass
class Federation:
    """North, whose doctor is asked, and south, which answers."""

    folder: Path
    doc: dict[str, Any]
    south: South
    transport: GrpcTransport

    @property
    def site(self) -> Path:
        return self.folder / "site.yaml"

    def write(self) -> None:
        (self.folder / "peers.yaml").write_text(yaml.safe_dump(self.doc))


@pytest.fixture(scope="module")
def identities(tmp_path_factory: pytest.TempPathFactory) -> dict[str, trust.Identity]:
    root = tmp_path_factory.mktemp("identities")
    return {n: trust.create_identity(n, root / n) for n in ("north", "south", "other")}


@pytest.fixture
def federation(tmp_path: Path, identities: dict[str, trust.Identity]) -> Iterator[Federation]:
    (north, south, _), handler, loop = identities.values(), South(), Loop()
    listed = PeerEndpoint("north", "127.0.0.1:1", (north.certificate_pem,))

    async def make() -> GrpcTransport:
        made = GrpcTransport("south", listen="127.0.0.1:0", identity=south, peers={"north": listed})
        await made.start(handler)
        return made

    transport = loop.run(make())
    own = f"127.0.0.1:{free_ports(1)[0]}"
    document = {
        "federation": "test",
        "task": TASK,
        "training": {"rounds": 40},
        "sites": [
            {"name": "north", "address": own, "certificate": north.certificate_pem.decode()},
            {"name": "south", "address": transport.address, "certificate": south.certificate_pem.decode()},
        ],
    }
    made = Federation(tmp_path, document, handler, transport)
    made.write()
    handler.federation = configuration.load_federation(tmp_path / "peers.yaml")
    site = {
        "site": "north",
        "data": {"path": "data"},
        "listen": own,
        "device": {"device": "cpu"},
        "identity": {"key": str(north.key_path), "certificate": str(north.certificate_path)},
        "control_socket": "control.sock",
        "disk_reserve_bytes": 1000,
    }
    made.site.write_text(yaml.safe_dump(site))
    yield made
    loop.run(transport.close())
    loop.close()


def checks(result: Any) -> list[dict[str, str]]:
    """The findings of a check that went through to its end, whatever it found."""
    shown = f"exit code {result.code}\n{result.out}{result.err}"
    assert result.out.startswith("{") and "checks" in result.json, shown
    return result.json["checks"]


def examine(ctl: Any, federation: Federation, *flags: object) -> tuple[int, dict[str, list[dict[str, str]]]]:
    """Exit code, and check → its findings."""
    result = ctl("check", "--config", federation.site, "--json", "--no-data", *flags)
    found: dict[str, list[dict[str, str]]] = {}
    for row in checks(result):
        found.setdefault(row["check"], []).append(row)
    return result.code, found


def states(rows: list[dict[str, str]]) -> set[str]:
    return {row["state"] for row in rows}


# ---------------------------------------------------------------- all is well


def test_a_healthy_site(ctl: Any, federation: Federation, identities: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(doctor, "synchronised", lambda: True)
    code, found = examine(ctl, federation)
    assert code == 0
    assert list(found) == [
        "config",
        "flips",
        "schedule",
        "identity",
        "certificate",
        "clock",
        "disk",
        "daemon",
        "listen",
        "data",
        "peer south",
    ]
    assert {n: states(rows) for n, rows in found.items() if states(rows) != {"ok"}} == {
        "daemon": {"skipped"},
        "data": {"skipped"},
    }
    assert identities["north"].site_id in found["identity"][0]["detail"]
    assert "contract right; training, round 4" in found["peer south"][0]["detail"]
    shown = ctl("check", "--config", federation.site, "--no-data")
    assert shown.code == 0 and shown.out.endswith("north: ok\n") and "\t" not in shown.out


# ---------------------------------------------------------------- this machine


def test_key_that_others_can_read(ctl: Any, federation: Federation, identities: Any, tmp_path: Path) -> None:
    copy = tmp_path / "key.pem"
    copy.write_bytes(identities["north"].key_pem)
    copy.chmod(0o644)
    site = yaml.safe_load(federation.site.read_text())
    site["identity"]["key"] = str(copy)
    federation.site.write_text(yaml.safe_dump(site))
    code, found = examine(ctl, federation)
    assert code == 1
    assert states(found["identity"]) == {"failed"} and "chmod 600" in found["identity"][0]["detail"]
    assert states(found["peers"]) == {"skipped"}, "there is nothing to show them"


def test_key_that_is_not_the_listed_one(ctl: Any, federation: Federation, identities: Any) -> None:
    federation.doc["sites"][0]["certificate"] = identities["other"].certificate_pem.decode()
    federation.write()
    code, found = examine(ctl, federation, "--no-peers")
    assert code == 1
    assert identities["other"].site_id in found["identity"][0]["detail"]
    assert identities["north"].site_id in found["identity"][0]["detail"]


def certificate(name: str, days: int) -> str:
    """A certificate that ends in so many days; it began a day ago, unless trust says otherwise."""
    key = ec.generate_private_key(ec.SECP256R1())
    return self_signed(name, key, days, ()).public_bytes(serialization.Encoding.PEM).decode()


def test_rounds_to_be_trained_alone_without_an_end(ctl: Any, federation: Federation) -> None:
    federation.doc.update(algorithm={"name": "fedavg_finetune"}, training={})
    federation.write()
    code, found = examine(ctl, federation, "--no-peers")
    assert code == 0 and states(found["rounds"]) == {"warning"}
    assert "the last 5 rounds, which fedavg_finetune trains alone, never come" in found["rounds"][0]["detail"]
    federation.doc["training"] = {"rounds": 20}
    federation.write()
    assert "rounds" not in examine(ctl, federation, "--no-peers")[1]
    federation.doc.update(algorithm={"name": "fedavg"}, training={})
    federation.write()
    assert "rounds" not in examine(ctl, federation, "--no-peers")[1]


@pytest.mark.parametrize(
    ("training", "state", "detail"),
    [
        ({}, "warning", "the learning rate stays at 0.001"),
        ({"schedule": "cosine"}, "warning", "the learning rate stays at 0.001"),
        ({"rounds": 100}, "ok", "cosine from 0.001 to 1e-05 over 100 rounds"),
        ({"rounds": 100, "schedule_rounds": 80}, "ok", "cosine from 0.001 to 1e-05 over 80 rounds"),
        (
            {"rounds": 100, "schedule_rounds": 120},
            "ok",
            "cosine from 0.001 over 120 rounds; this site trains 100, and ends at 7.63e-05",
        ),
        (
            {"rounds": 100, "schedule_rounds": 200},
            "warning",
            "cosine from 0.001 over 200 rounds; this site trains 100, and ends at 0.000505, more than",
        ),
        ({"rounds": 100, "schedule": "constant"}, "ok", "constant at 0.001"),
        ({"schedule": "step_decay"}, "ok", "0.001, times 0.95 after every 1000 steps"),
    ],
)
def test_a_schedule_that_knows_no_end_is_told(
    ctl: Any, federation: Federation, training: dict[str, Any], state: str, detail: str
) -> None:
    federation.doc["training"] = training
    federation.write()
    (found,) = examine(ctl, federation, "--no-peers")[1]["schedule"]
    assert found["state"] == state and detail in found["detail"]
    assert ("training.rounds" in found["remedy"]) == (state == "warning")


def test_a_site_that_ends_before_the_cosine_is_told(ctl: Any, federation: Federation) -> None:
    federation.doc["training"] = {"rounds": 100}
    federation.write()
    whole = federation.site.read_text()
    for own, state, said in [
        (100, "ok", "cosine from 0.001 to 1e-05 over 100 rounds"),
        (90, "ok", "this site trains 90, and ends at 3.42e-05"),
        (10, "warning", "this site trains 10, and ends at 0.000976, more than a tenth"),
    ]:
        federation.site.write_text(f"{whole}\nrounds: {own}\n")
        (found,) = examine(ctl, federation, "--no-peers")[1]["schedule"]
        assert found["state"] == state and said in found["detail"]
    assert found["remedy"].startswith("Write training.schedule_rounds: 10 in peers.yaml")
    federation.doc["algorithm"] = {"name": "fedavg_finetune"}
    federation.write()
    (found,) = examine(ctl, federation, "--no-peers")[1]["schedule"]
    assert found["state"] == "ok", "fine-tuning has a cosine of its own"
    assert "trains 10, and fine-tunes in the last 5, after 0.000994" in found["detail"]


@pytest.mark.parametrize(
    ("labels", "training", "state", "words"),
    [
        (["organ"], {}, "ok", "mirrors rows and columns: no class name speaks of a direction"),
        (
            ["left lung"],
            {},
            "ok",
            "mirrors nothing: class names speak of left-right (left lung), and of a 2-D",
        ),
        (["left lung"], {"flip_axes": "rows"}, "ok", "mirrors rows: training.flip_axes says so"),
        (["left lung"], {"flip_axes": "all"}, "warning", "speak of left-right are wrong (left lung)"),
        (["organ"], {"augment": "none"}, "ok", "mirrors nothing: training.augment is none"),
        (["organ"], {"augment": "none", "flip_axes": "rows"}, "warning", "flip_axes has no effect"),
    ],
)
def test_axes_that_are_mirrored(
    ctl: Any,
    federation: Federation,
    labels: list[str],
    training: dict[str, str],
    state: str,
    words: str,
) -> None:
    federation.doc["task"] = {**TASK, "labels": dict(enumerate(["background", *labels]))}
    federation.doc["training"] = training
    federation.write()
    code, found = examine(ctl, federation, "--no-peers")
    (told,) = found["flips"]
    assert code == 0 and told["state"] == state and words in told["detail"], told
    assert bool(told["remedy"]) == (state == "warning")


def test_slices_are_not_mirrored(ctl: Any, federation: Federation) -> None:
    federation.doc |= {
        "algorithm": {"name": "fedcowpro"},
        "network": {"name": "cowpro_encoder", "norm": "group"},
    }
    federation.write()
    (told,) = examine(ctl, federation, "--no-peers")[1]["flips"]
    assert told["state"] == "ok" and "nothing: fedcowpro draws views of its own" in told["detail"]
    federation.doc["training"] = {"flip_axes": "rows"}
    federation.write()
    assert states(examine(ctl, federation, "--no-peers")[1]["flips"]) == {"warning"}


def test_own_certificate_that_ends_soon(
    ctl: Any, federation: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    soon = trust.create_identity("north", tmp_path / "soon", days=10)
    monkeypatch.setenv("GOSSIPSEG_IDENTITY__KEY", str(soon.key_path))
    monkeypatch.setenv("GOSSIPSEG_IDENTITY__CERTIFICATE", str(soon.certificate_path))
    federation.doc["sites"][0]["certificate"] = soon.certificate_pem.decode()
    federation.write()
    code, found = examine(ctl, federation, "--no-peers")
    assert code == 0, "a warning alone"
    assert states(found["certificate"]) == {"warning"}
    assert "expires in 10 days" in found["certificate"][0]["detail"]


def test_listed_certificate_that_has_expired(ctl: Any, federation: Federation) -> None:
    federation.doc["sites"][1]["certificate"] = certificate("south", 0)
    federation.write()
    code, found = examine(ctl, federation, "--no-peers")
    assert code == 0 and states(found["clock"]) == {"warning"}
    assert "south's certificate expired" in found["clock"][0]["detail"]


def test_listed_certificate_that_ends_soon(ctl: Any, federation: Federation) -> None:
    """The last one listed counts: a site amid its rotation is not told of."""
    federation.doc["sites"][1]["certificate"] = certificate("south", 10)
    federation.write()
    code, found = examine(ctl, federation, "--no-peers")
    (told,) = [f for f in found["certificate"] if f["state"] == "warning"]
    assert code == 0 and "south's certificate expires on" in told["detail"]
    assert not any("south" in f["detail"] for f in found["clock"])
    federation.doc["sites"][1]["certificate"] = [certificate("south", 10), certificate("south", 400)]
    federation.write()
    assert states(examine(ctl, federation, "--no-peers")[1]["certificate"]) == {"ok"}


def test_clock_that_is_behind(ctl: Any, federation: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("gossipseg.trust.making._BACKDATED", -timedelta(days=3))
        federation.doc["sites"][1]["certificate"] = certificate("south", 30)
    federation.write()
    code, found = examine(ctl, federation, "--no-peers")
    assert code == 1 and states(found["clock"]) == {"failed"}
    assert "south's certificate begins on" in found["clock"][0]["detail"]
    assert "Set the clock" in found["clock"][0]["remedy"]


def test_clock_without_ntp(ctl: Any, federation: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "synchronised", lambda: False)
    _, found = examine(ctl, federation, "--no-peers")
    assert states(found["clock"]) == {"warning"}
    assert doctor.synchronised() in (True, False, None)


def test_disk(ctl: Any, federation: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOSSIPSEG_DISK_RESERVE_BYTES", str(10**16))
    code, found = examine(ctl, federation, "--no-peers")
    assert code == 1 and "less than disk_reserve_bytes" in found["disk"][0]["detail"]
    monkeypatch.delenv("GOSSIPSEG_DISK_RESERVE_BYTES")
    (federation.folder / "state").write_text("a file")
    code, found = examine(ctl, federation, "--no-peers")
    assert code == 1 and "not a folder" in found["disk"][0]["detail"]


def test_occupied_port(ctl: Any, federation: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOSSIPSEG_LISTEN", federation.doc["sites"][1]["address"])
    code, found = examine(ctl, federation, "--no-peers")
    assert code == 1
    assert "in use" in found["listen"][0]["detail"] and "another address" in found["listen"][0]["remedy"]


def test_a_running_daemon_gives_its_own_view(ctl: Any, federation: Federation, daemon: Any) -> None:
    daemon.answers.status_doc = msgspec.structs.replace(
        daemon.answers.status_doc, site="north", state="degraded", reasons=("south: suspect: no answer",)
    )
    row = doc.PeerRow("south", state="alive")
    daemon.answers.peers_doc = doc.PeersDoc((row,))
    code, found = examine(ctl, federation)
    assert code == 0
    assert states(found["daemon"]) == {"warning"} and "no answer" in found["daemon"][0]["detail"]
    assert "listen" not in found, "the port is the daemon's own"
    assert "the daemon sees it alive" in found["peer south"][0]["detail"]
    row = msgspec.structs.replace(row, state="refused", refused="task.channels: 1 here, 3 there")
    daemon.answers.peers_doc = doc.PeersDoc((row,))
    code, found = examine(ctl, federation)
    assert code == 1 and found["peer south"][0]["detail"] == "task.channels: 1 here, 3 there"
    daemon.answers.status_doc = msgspec.structs.replace(daemon.answers.status_doc, site="west")
    _, found = examine(ctl, federation, "--no-peers")
    assert "west's daemon" in found["daemon"][1]["detail"]


# ---------------------------------------------------------------- the other site


def test_peer_that_is_not_there(ctl: Any, federation: Federation) -> None:
    federation.doc["sites"][1]["address"] = "127.0.0.1:1"
    federation.write()
    code, found = examine(ctl, federation)
    assert code == 1
    assert found["peer south"][0]["detail"].startswith("port: 127.0.0.1 refused the connection to port 1")
    assert "Is its daemon running" in found["peer south"][0]["remedy"]


@pytest.mark.parametrize("host", ["no-such-host.invalid", "two..dots"])
def test_peer_whose_name_has_no_address(ctl: Any, federation: Federation, host: str) -> None:
    federation.doc["sites"][1]["address"] = f"{host}:7443"
    federation.write()
    code, found = examine(ctl, federation)
    assert code == 1 and found["peer south"][0]["detail"].startswith(f"DNS: {host} has no address")
    assert "your DNS" in found["peer south"][0]["remedy"]


def test_peer_whose_port_is_another_services(ctl: Any, federation: Federation) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        federation.doc["sites"][1]["address"] = f"127.0.0.1:{port}"
        federation.write()

        def greet() -> None:
            connection, _ = other.accept()
            with connection:
                connection.sendall(b"220 mail.hospital.example ESMTP\r\n")
                connection.recv(4096)

        thread = threading.Thread(target=greet)
        thread.start()
        code, found = examine(ctl, federation)
        thread.join(10)
    assert code == 1 and f"TLS: something answers on port {port}" in found["peer south"][0]["detail"]


def test_peer_that_never_answers(ctl: Any, federation: Federation) -> None:
    with socket.socket() as full:  # a queue that is full: what comes is dropped, as by a firewall
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        held = [socket.socket() for _ in range(4)]
        for one in held:
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", port))
        federation.doc["sites"][1]["address"] = f"127.0.0.1:{port}"
        federation.write()
        code, found = examine(ctl, federation, "--timeout", "0.3")
        for one in held:
            one.close()
    assert code == 1 and f"no answer from port {port} of 127.0.0.1" in found["peer south"][0]["detail"]
    assert "firewalls between" in found["peer south"][0]["remedy"]


@pytest.mark.parametrize(
    ("ahead_s", "words"),
    [(0.0, ""), (-7300.0, "2.0 h behind"), (90.0, "90 s ahead of"), (900, "15 min ahead of")],
)
def test_peer_whose_clock_is_wrong(ctl: Any, federation: Federation, ahead_s: float, words: str) -> None:
    federation.transport.tell_clock(lambda: time.time() + ahead_s)
    code, found = examine(ctl, federation)
    row = found["peer south"][0]
    assert code == 0 and row["state"] == ("warning" if words else "ok")
    assert not words or (f"clock: south's clock is {words}" in row["detail"] and "NTP" in row["remedy"])


def test_peer_with_another_key(ctl: Any, federation: Federation, identities: Any) -> None:
    federation.doc["sites"][1]["certificate"] = identities["other"].certificate_pem.decode()
    federation.write()
    code, found = examine(ctl, federation)
    assert code == 1
    detail = found["peer south"][0]["detail"]
    assert f"shows the ID {identities['south'].site_id}" in detail
    assert f"listed is {identities['other'].site_id}" in detail


def test_peer_that_does_not_list_us(
    ctl: Any, federation: Federation, identities: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = identities["other"]
    monkeypatch.setenv("GOSSIPSEG_IDENTITY__KEY", str(other.key_path))
    monkeypatch.setenv("GOSSIPSEG_IDENTITY__CERTIFICATE", str(other.certificate_path))
    federation.doc["sites"][0]["certificate"] = other.certificate_pem.decode()
    federation.write()
    code, found = examine(ctl, federation)
    assert code == 1
    assert "does not accept this site's certificate" in found["peer south"][0]["detail"]
    assert "Ask south to list" in found["peer south"][0]["remedy"]


def test_peer_with_another_contract(ctl: Any, federation: Federation) -> None:
    assert federation.south.federation is not None
    other = dataclasses.replace(federation.south.federation, seed=5)
    federation.south.federation = other
    code, found = examine(ctl, federation)
    assert code == 1
    assert "seed: 0 here, 5 there" in found["peer south"][0]["detail"]


def test_peer_of_another_protocol_or_federation(ctl: Any, federation: Federation) -> None:
    south = federation.south
    south.protocol = (PROTOCOL_MAX + 1, PROTOCOL_MAX + 1)
    assert "protocol: " in examine(ctl, federation)[1]["peer south"][0]["detail"]
    south.protocol = (PROTOCOL_MIN, PROTOCOL_MAX)
    assert south.federation is not None
    south.federation = dataclasses.replace(south.federation, federation="rest")
    assert "'test' here, 'rest' there" in examine(ctl, federation)[1]["peer south"][0]["detail"]
    south.refusal = PeerRefused("north", "leaving", "south is going away")
    assert "leaving" in examine(ctl, federation)[1]["peer south"][0]["detail"]


def test_no_other_site(ctl: Any, federation: Federation) -> None:
    del federation.doc["sites"][1]
    federation.write()
    code, found = examine(ctl, federation)
    assert code == 0 and states(found["peers"]) == {"warning"}


# ---------------------------------------------------------------- what a start needs


@pytest.fixture
def aged(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock that is held has been so for long."""
    monkeypatch.setattr("gossipseg.ctl.doctor.whereabouts.STARTING_S", 0.0)


def test_no_daemon_a_missing_socket_and_a_hanging_daemon_are_told_apart(
    ctl: Any, federation: Federation, aged: None
) -> None:
    state = federation.folder / "state"
    state.mkdir()
    (none,) = examine(ctl, federation, "--no-peers")[1]["daemon"]
    assert none["state"] == "skipped" and "not running (nobody holds" in none["detail"]
    with DirectoryLock(state / "daemon.lock"):
        code, found = examine(ctl, federation, "--no-peers")
        (gone,) = found["daemon"]
        assert code == 1 and gone["state"] == "failed" and "control socket" in gone["detail"]
        assert f"process {os.getpid()} runs" in gone["detail"] and "is gone" in gone["detail"]
        asked = ctl("status", "--config", federation.site)
        assert asked.code == EXIT_UNREACHABLE and f"process {os.getpid()} runs" in asked.err
        with socket.socket(socket.AF_UNIX) as mute:
            mute.bind(str(federation.folder / "control.sock"))
            mute.listen(8)
            where = whereabouts(state, federation.folder / "control.sock")
            assert where.state == "hanging" and "it hangs, or is stopped" in where.text
    (federation.folder / "control.sock").unlink()
    asked = ctl("status", "--config", federation.site)
    assert "Start it with" in asked.err and "process" not in asked.err


def test_a_daemon_that_is_just_starting_is_no_fault(ctl: Any, federation: Federation) -> None:
    (federation.folder / "state").mkdir()
    with DirectoryLock(federation.folder / "state" / "daemon.lock"):
        (found,) = examine(ctl, federation, "--no-peers")[1]["daemon"]
    assert found["state"] == "warning" and "does not answer yet" in found["detail"]


def test_a_clock_that_was_put_back_makes_no_daemon_young(federation: Federation) -> None:
    state = federation.folder / "state"
    state.mkdir()
    with DirectoryLock(state / "daemon.lock"):
        tomorrow = time.time() + 86_400
        os.utime(state / "daemon.lock", (tomorrow, tomorrow))
        assert whereabouts(state, federation.folder / "control.sock").state == "no_socket"


def test_a_hanging_daemon_does_not_make_its_port_a_fault(
    ctl: Any, federation: Federation, aged: None
) -> None:
    (federation.folder / "state").mkdir()
    host, port = federation.doc["sites"][0]["address"].split(":")
    with (
        DirectoryLock(federation.folder / "state" / "daemon.lock"),
        socket.create_server((host, int(port))),
    ):
        assert "listen" not in examine(ctl, federation, "--no-peers")[1]


def test_a_worker_that_outlived_its_daemon(ctl: Any, federation: Federation) -> None:
    (federation.folder / "state").mkdir()
    with DirectoryLock(federation.folder / "state" / "worker.lock"):
        (found,) = examine(ctl, federation, "--no-peers")[1]["locks"]
    assert found["state"] == "warning" and f"process {os.getpid()}" in found["detail"]
    assert "locks" not in examine(ctl, federation, "--no-peers")[1]


def test_the_metrics_port(ctl: Any, federation: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "metrics" not in examine(ctl, federation, "--no-peers")[1], "it was not asked for"
    with socket.create_server(("127.0.0.1", 0)) as other:
        monkeypatch.setenv("GOSSIPSEG_METRICS__PORT", str(other.getsockname()[1]))
        code, found = examine(ctl, federation, "--no-peers")
        assert code == 1 and "in use" in found["metrics"][0]["detail"]
        assert "metrics.port" in found["metrics"][0]["remedy"]
    assert states(examine(ctl, federation, "--no-peers")[1]["metrics"]) == {"ok"}


def test_the_metrics_port_of_the_daemon_itself(
    ctl: Any, federation: Federation, daemon: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon.answers.status_doc = msgspec.structs.replace(daemon.answers.status_doc, site="north")
    registry = CollectorRegistry()
    Info("gossipseg", "x", registry=registry).info({"site": "north"})
    server, thread = start_http_server(0, "127.0.0.1", registry)
    try:
        monkeypatch.setenv("GOSSIPSEG_METRICS__PORT", str(server.server_port))
        (found,) = examine(ctl, federation, "--no-peers")[1]["metrics"]
        assert found["state"] == "ok" and "the daemon answers" in found["detail"]
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
    (found,) = examine(ctl, federation, "--no-peers")[1]["metrics"]
    assert found["state"] == "warning" and "does not answer" in found["detail"]


@pytest.mark.parametrize(
    ("changes", "package", "remedy"),
    [
        ({"tensorboard": True}, "tensorboard", "gossipseg[tensorboard]"),
        ({"privacy": {"dp": {"noise_multiplier": 1.0, "clip_norm": 1.0}}}, "opacus", "gossipseg[dp]"),
        ({"algorithm": "fedcowpro"}, "skimage", "gossipseg[fedcowpro]"),
    ],
)
def test_packages_that_only_some_settings_need(
    ctl: Any,
    federation: Federation,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    package: str,
    remedy: str,
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a: None if n == package else find(n, *a))
    config = configuration.load(federation.site)
    assert not list(doctor_start.check_extras(config)), "it is not asked for"
    privacy = dataclasses.replace(config.site.privacy, dp=object())  # type: ignore[arg-type]
    if "algorithm" in changes:
        algorithm = dataclasses.replace(config.federation, algorithm=FedCoWProParams())
        asking = dataclasses.replace(config, federation=algorithm)
    else:
        asked = {"tensorboard": True} if "tensorboard" in changes else {"privacy": privacy}
        asking = dataclasses.replace(config, site=dataclasses.replace(config.site, **asked))  # type: ignore[arg-type]
    (found,) = doctor_start.check_extras(asking)
    assert found.state == "failed" and package in found.detail and remedy in found.remedy
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a: object())
    assert not list(doctor_start.check_extras(asking))


# ---------------------------------------------------------------- listen, and what the daemon sees


def test_listen_on_loopback_while_listed_elsewhere(
    ctl: Any, federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = federation.doc["sites"][0]["address"].split(":")[1]
    federation.doc["sites"][0]["address"] = f"10.0.0.1:{port}"
    federation.doc["sites"][1]["address"] = "10.0.0.2:7443"
    federation.write()
    code, found = examine(ctl, federation, "--no-peers")
    assert code == 0 and states(found["listen"]) == {"warning"}
    assert "Only this machine gets there" in found["listen"][0]["detail"]
    shown = ctl("check", "--config", federation.site, "--no-data", "--no-peers")
    assert shown.out.endswith("north: degraded\n")
    names = {"hosta": ["127.0.1.1"]}
    monkeypatch.setattr("gossipseg.wire.listen_address.ips_of", lambda host: names.get(host, ["10.0.0.9"]))
    monkeypatch.setattr(
        "gossipseg.ctl.doctor.start.listen_fault",
        functools.partial(doctor_start.listen_fault, resolve=lambda host: names.get(host, ["10.0.0.9"])),
    )
    monkeypatch.setattr(doctor_start, "_not_free", lambda *_: "")
    monkeypatch.setenv("GOSSIPSEG_LISTEN", f"hosta:{port}")
    code, found = examine(ctl, federation, "--no-peers")
    assert code == 1 and "hosta, which is 127.0.1.1 on this machine" in found["listen"][0]["detail"]
    assert f"listen: 0.0.0.0:{port}" in found["listen"][0]["remedy"]


def test_a_port_that_is_not_the_listed_one(
    ctl: Any, federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOSSIPSEG_LISTEN", f"127.0.0.1:{free_ports(1)[0]}")
    _, found = examine(ctl, federation, "--no-peers")
    assert states(found["listen"]) == {"warning"} and "the ports differ" in found["listen"][0]["detail"]


@pytest.mark.parametrize("state", ["unseen", "dead", "suspect", "left", "quarantined"])
def test_a_peer_that_the_daemon_does_not_see_alive_is_not_well(
    ctl: Any, federation: Federation, daemon: Any, state: str
) -> None:
    daemon.answers.status_doc = msgspec.structs.replace(daemon.answers.status_doc, site="north")
    daemon.answers.peers_doc = doc.PeersDoc((doc.PeerRow("south", state=state, reason="timeout"),))
    _, found = examine(ctl, federation)
    row = found["peer south"][0]
    assert row["state"] == "warning" and f"the daemon sees it {state}: timeout" in row["detail"]
    assert "--reach" in row["remedy"]


def test_listed_addresses_are_not_dialled_where_static_discovery_is_off(
    ctl: Any, federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOSSIPSEG_DISCOVERY__STATIC", "false")
    monkeypatch.setenv("GOSSIPSEG_DISCOVERY__MDNS", "true")
    monkeypatch.setattr("gossipseg.ctl.doctor.peers.seen_certificate", lambda *_: pytest.fail("dialled"))
    _, found = examine(ctl, federation)
    assert "peer south" not in found and states(found["peers"]) == {"skipped"}


def test_the_daemons_view_where_static_discovery_is_off(
    ctl: Any, federation: Federation, daemon: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOSSIPSEG_DISCOVERY__STATIC", "false")
    monkeypatch.setenv("GOSSIPSEG_DISCOVERY__MDNS", "true")
    monkeypatch.setattr("gossipseg.ctl.doctor.peers.seen_certificate", lambda *_: pytest.fail("dialled"))
    daemon.answers.status_doc = msgspec.structs.replace(daemon.answers.status_doc, site="north")
    row = doc.PeerRow("south", address="10.0.0.5:7443", state="alive")
    daemon.answers.peers_doc = doc.PeersDoc((row,))
    (found,) = examine(ctl, federation)[1]["peer south"]
    assert found["state"] == "ok" and "10.0.0.5:7443; the daemon sees it alive" in found["detail"]
    daemon.answers.peers_doc = doc.PeersDoc((msgspec.structs.replace(row, state="unseen", address=""),))
    (found,) = examine(ctl, federation)[1]["peer south"]
    assert found["state"] == "warning" and "no address known" in found["detail"]


# ---------------------------------------------------------------- --reach


def test_without_a_daemon_only_the_way_out_is_tried(ctl: Any, federation: Federation) -> None:
    code, found = examine(ctl, federation, "--reach")
    assert code == 0 and states(found["reach to south"]) == {"ok"}
    assert "reached, full-size packets too" in found["reach to south"][0]["detail"]
    assert states(found["reach"]) == {"skipped"} and "only a running daemon" in found["reach"][0]["detail"]
    federation.doc["sites"][1]["address"] = "127.0.0.1:1"
    federation.write()
    code, found = examine(ctl, federation, "--reach", "--no-peers")
    assert code == 1 and "refused" in found["reach to south"][0]["detail"]
    assert "port open" in found["reach to south"][0]["remedy"]


def test_an_insecure_site_tries_the_way_out_without_an_identity(ctl: Any, federation: Federation) -> None:
    site = yaml.safe_load(federation.site.read_text())
    del site["identity"]
    federation.site.write_text(yaml.safe_dump({**site, "insecure": True}))
    federation.doc["sites"][1]["address"] = "127.0.0.1:1"
    federation.write()
    _, found = examine(ctl, federation, "--reach", "--no-peers")
    assert "refused" in found["reach to south"][0]["detail"]
    assert "only a running daemon" in found["reach"][0]["detail"]


def test_a_site_whose_key_is_gone_has_nothing_to_show(ctl: Any, federation: Federation) -> None:
    site = yaml.safe_load(federation.site.read_text())
    site["identity"]["key"] = "gone.pem"
    federation.site.write_text(yaml.safe_dump(site))
    _, found = examine(ctl, federation, "--reach", "--no-peers")
    (row,) = found["reach"]
    assert row["state"] == "skipped" and "no identity to show" in row["detail"]
    assert "reach to south" not in found


def test_the_daemon_lets_itself_be_called_back(ctl: Any, federation: Federation, daemon: Any) -> None:
    daemon.answers.status_doc = msgspec.structs.replace(daemon.answers.status_doc, site="north")
    daemon.answers.reach_doc = doc.ReachDoc(
        (
            doc.ReachRow("south", "out", "ok", True, True, "a:1", "a:1: reached"),
            doc.ReachRow(
                "south", "in", "timeout", False, True, "b:1", "it cannot reach this site", "Open it."
            ),
            doc.ReachRow(
                "west", "in", "older", False, False, "", "it does not know the question (older version)"
            ),
            doc.ReachRow("east", "in", "not_asked", False, False, "", "could not be asked"),
        )
    )
    code, found = examine(ctl, federation, "--reach", "--no-peers")
    assert code == 1 and ("reach",) in daemon.answers.asked
    assert {n: r[0]["state"] for n, r in found.items() if n.startswith("reach")} == {
        "reach to south": "ok",
        "reach from south": "failed",
        "reach from west": "skipped",
        "reach from east": "warning",
    }
    assert found["reach from south"][0]["remedy"] == "Open it."


# ---------------------------------------------------------------- data and device


def test_a_check_that_was_killed_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    command = [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]
    monkeypatch.setattr(learn, "command_line", lambda module, arguments: command)
    monkeypatch.setattr(learn, "spec_json", lambda config: "")
    (found,) = doctor_data.check_data(ANY)
    assert found.state == "failed" and "lack of memory" in found.detail


def test_the_check_of_data_knows_a_users_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the machine has no passwd entry for it, torch asks in vain when it is imported."""
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("gossipseg.surroundings._known", lambda: False)
    code = "import getpass, json; print(json.dumps({'schema': 1, 'device': getpass.getuser()}))"
    monkeypatch.setattr(learn, "command_line", lambda module, arguments: [sys.executable, "-c", code])
    monkeypatch.setattr(learn, "spec_json", lambda config: "")
    assert next(iter(doctor_data.check_data(ANY))).detail == "gossipseg"


def test_data_findings() -> None:
    problem = {
        "file": "a.png",
        "key": "training.0.label",
        "value": 7,
        "problem": "is strange",
        "remedy": "Map it.",
    }
    no_cuda = {"file": None, "key": "device.device", "problem": "no CUDA", "remedy": "Use cpu."}
    no_layers = {"file": None, "key": "network.options", "problem": "has no layers", "part": "model"}
    document = {
        "schema": 1,
        "problems": [problem, no_cuda, no_layers],
        "warnings": ["no test case"],
        "splits": {"training": 9},
        "device": "",
    }
    found = list(doctor_data.data_findings(document))
    assert [(f.check, f.state) for f in found] == [
        *(("device", "failed"), ("model", "failed"), ("data", "failed"), ("data", "warning")),
    ]
    assert found[2].detail == "a.png: training.0.label = 7: is strange" and found[2].remedy == "Map it."
    many = list(doctor_data.data_findings({"problems": [problem] * 50}))
    assert len(many) == doctor_data.MAX_PROBLEMS + 1 and "30 more" in many[-1].detail
    fine = list(
        doctor_data.data_findings({"problems": [], "splits": {"training": 9, "test": 2}, "device": "cpu"})
    )
    assert [f.detail for f in fine] == ["cpu", "9 training, 2 test; every case can be read"]
    slices = {"splits": {"training": 9, "test": 2}, "patients": {"training": 3, "test": 2}}
    (told,) = doctor_data.data_findings(slices)
    assert told.detail == "9 training (of 3 patients), 2 test; every case can be read"
    drawn = {"how": "drawn", "text": "drawn, kept in /s/splits.json"}
    kinds = {"kinds": {".png": 6, "DICOM": 3}, "division": drawn}
    read, splits = doctor_data.data_findings({"splits": {"training": 9}, **kinds})
    assert read.detail == "9 training; every case can be read (6 .png, 3 DICOM)"
    assert (splits.state, splits.detail) == ("ok", "splits: drawn, kept in /s/splits.json")


def test_a_round_says_time_and_memory_of_both_models_and_where_one_will_do() -> None:
    pace = {"steps_per_round": 100, "validation_cases": 3, "round_s": 240.0, "step_s": 2.4}
    pace |= {"validation_case_s": 1.0, "step_bytes": 1_600_000_000, "models": 2, "one_model_will_do": True}

    def told(**changes: Any) -> str:
        found = doctor_data.data_findings({"problems": [], "splits": {}, "pace": {**pace, **changes}})
        return next(f.detail for f in found if f.check == "round")

    assert "(2.4 s and 1.6 GB a step of both models, 1 s a case)" in told()
    assert told().endswith("; `training.personal: none` trains one model")
    assert "personal" not in told(one_model_will_do=False)
    assert "(2.4 s a step, 1 s a case)" in told(models=1, step_bytes=None)


def test_data_check_that_dies(ctl: Any, federation: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
    script = "import sys; print('[ 10%] x', file=sys.stderr); sys.exit('error: the spec is odd.')"
    monkeypatch.setattr(learn, "command_line", lambda *_: [learn.sys.executable, "-c", script])
    result = ctl("check", "--config", federation.site, "--json", "--no-peers")
    assert result.code == 65
    assert [r["detail"] for r in checks(result) if r["check"] == "data"] == ["the spec is odd."]


@pytest.mark.slow
def test_real_data(ctl: Any, federation: Federation) -> None:
    from gossipseg.testbed import synthetic

    hospital = synthetic.hospitals(1)[0]
    synthetic.write_site(federation.folder / "data", hospital, seed=0, index=0, size_px=48)
    federation.doc["task"]["label_map"] = {255: 1}
    federation.write()
    broken = next((federation.folder / "data").rglob("*.png"))
    broken.write_bytes(b"no picture")
    result = ctl("check", "--config", federation.site, "--json", "--no-peers")
    rows = {r["check"]: r for r in checks(result)}
    assert (result.code, rows["device"]["detail"]) == (65, "cpu")
    problems = [r["detail"] for r in checks(result) if (r["check"], r["state"]) == ("data", "failed")]
    assert len(problems) == 1 and broken.name in problems[0], "the one that is broken, and no other"
