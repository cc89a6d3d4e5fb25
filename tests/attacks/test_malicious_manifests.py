"""A listed site with its own good key that lies, against a real daemon over gRPC with mTLS.

What is real here: the daemon's node, shell, store, transport, keys, state file and control socket. Only the
worker is left out: its report comes by hand, and no round is trained.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from blake3 import blake3

from gossipseg.bridge.manifest_checks import described, schema_hash
from gossipseg.core import events
from gossipseg.core import messages as ms
from gossipseg.core.rounds.quorum import QuorumConfig, run_of
from gossipseg.core.types import (
    AliveRecord,
    Manifest,
    ModelRef,
    PeerInfo,
    Phase,
    Proposal,
    fingerprint,
    manifest_payload,
    payload,
)
from gossipseg.daemon.control.service import Service
from gossipseg.daemon.main import endpoints, remembered
from gossipseg.daemon.runtime import Runtime
from gossipseg.errors import PeerRefused
from gossipseg.store import StateFile, read_safetensors_header
from gossipseg.trust import Identity, create_identity
from gossipseg.wire.control import ControlClient, ControlServer
from gossipseg.wire.documents import DiscoveryStatus
from gossipseg.wire.grpc_transport import GrpcTransport
from tests.daemon.harness import READY, daemon_of, served, settled
from tests.e2e.federation import Federation, federation

TENSORS = {"w": ["F16", [10, 20]]}
QUARANTINE = {"offences": 3, "first_s": 600.0, "window_s": 3600.0}


def safetensors(shape: tuple[int, int] = (10, 20), dtype: str = "F16", fill: int = 0) -> bytes:
    data = bytes([fill]) * (2 * shape[0] * shape[1])
    header = json.dumps({"w": {"dtype": dtype, "shape": shape, "data_offsets": [0, len(data)]}}).encode()
    return struct.pack("<Q", len(header)) + header + data


class Rogue:
    """south: says whatever it likes, and signs it with the key that is listed for it."""

    def __init__(self, daemon: Any, identity: Identity, folder: Path) -> None:
        self.runtime: Runtime = daemon.runtime
        self.identity, self.folder = identity, folder
        self.transport = GrpcTransport("south", listen="127.0.0.1:0", identity=identity, peers={})
        port = daemon.transport.address
        north = next(s for s in daemon.config.federation.sites if s.name == "north")
        north = dataclasses.replace(north, address=port)
        sites = dataclasses.replace(daemon.config.federation, sites=[north])
        site = dataclasses.replace(daemon.config.site, site="south")
        self._north = endpoints(dataclasses.replace(daemon.config, federation=sites, site=site))
        self.contract = self.runtime.worker.contract
        self.print = fingerprint(self.contract)
        self.run = run_of("test", self.print)
        self.sites = QuorumConfig.of(("north", "south"), None).key
        self.info = PeerInfo(1, 100, 9, Phase.TRAINING, self.print)
        self.numbers = 0

    async def start(self) -> None:
        """Be an ordinary member first."""
        await self.transport.start(self)
        self.transport.set_peers(self._north)
        alive = AliveRecord("south", 7, 1, self.transport.address, 9)
        alive = replace(alive, signature=self.identity.sign(payload(alive)))
        await self.ask(ms.Hello(1, 2, "test", self.contract, self.info))
        await self.ask(ms.Ping((alive,), self.info))

    async def on_request(self, peer: str, body: ms.Request) -> ms.Reply:
        match body:
            case ms.Ping():
                return ms.Ack((), self.info)
            case ms.Sync():
                return ms.SyncReply((), self.info)
            case ms.Hello():
                return ms.HelloReply(1, 2, "test", self.contract, self.info)
        raise PeerRefused(peer, "not_ready")

    async def push_offset(self, peer: str, model: ModelRef) -> int:
        raise PeerRefused(peer, "not_offered")

    async def on_push(self, peer: str, model: ModelRef, offset: int, chunks: AsyncIterator[bytes]) -> None:
        raise PeerRefused(peer, "not_offered")

    async def ask(self, body: ms.Request) -> Any:
        return await self.transport.request("north", body, 20.0)

    async def offer(self, model: ModelRef) -> str:
        """The reason of the refusal; "" if it is accepted."""
        return str((await self.ask(ms.Offer(model))).reason)

    async def push(self, model: ModelRef, data: bytes) -> str:
        """The same of a stream of these bytes."""
        path = self.folder / "outgoing"
        path.write_bytes(data)
        try:
            await self.transport.push("north", model, path, 20.0)
        except PeerRefused as e:
            return e.reason
        return ""

    def model(self, data: bytes, **changes: Any) -> ModelRef:
        """With a good manifest under a fresh number; `changes` are made before it is signed."""
        self.numbers += 1
        path = self.folder / "described"
        path.write_bytes(data)
        schema, dtype = described(read_safetensors_header(path))
        honest = ModelRef(blake3(data).hexdigest(), len(data), 5, 100, 9, 0.5)
        manifest = Manifest(
            schema=schema, dtype=dtype, federation="test", contract=self.print, maker="south", round=5,
            sequence=self.numbers, hash=honest.hash, size_bytes=honest.size_bytes, steps=100, cases=9,
            dice_val=0.5,
        )  # fmt: skip
        return replace(honest, manifest=self.signed(replace(manifest, **changes)))

    def common(self, data: bytes, round: int = 1, attempt: int = 0, **changes: Any) -> Proposal:
        model = replace(self.model(data), kind="global", round=round)
        assert model.manifest is not None
        place = {"kind": "global", "run": self.run, "round": round, "attempt": attempt, **changes}
        model = replace(model, manifest=self.signed(replace(model.manifest, **place)))
        return Proposal(1, 0, model, ("north", "south"))

    def signed(self, manifest: Manifest, by: Identity | None = None) -> Manifest:
        unsigned = replace(manifest, signature="")
        return replace(unsigned, signature=(by or self.identity).sign(manifest_payload(unsigned)).hex())


@asynccontextmanager
async def attacked(folder: Path, **sections: Any) -> AsyncIterator[tuple[Runtime, Rogue, Federation]]:
    """north's daemon in training, and south, which it has met."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.e2e.federation.write_data", lambda *_: None)
        site = {"quarantine": QUARANTINE}
        gossip = {"warmup_rounds": 0}
        with federation(folder, ("north", "south"), gossip=gossip, site=site, **sections) as f:
            daemon = daemon_of(f)
            runtime = daemon.runtime
            await daemon.transport.start(runtime.intake)
            async with served(runtime) as failures, asyncio.timeout(60):
                await begin(runtime)
                at = f["south"].folder / "identity"
                rogue = Rogue(daemon, Identity.load(at / "key.pem", at / "cert.pem"), folder)
                await rogue.start()
                try:
                    yield runtime, rogue, f
                finally:
                    await rogue.transport.close()
                assert failures == []


async def begin(runtime: Runtime) -> None:
    runtime.inject(events.Start())
    runtime.worker.on_worker_message(msgspec.structs.replace(READY, tensors=TENSORS, update_tensors=TENSORS))
    await settled(runtime)


def forged(r: Rogue, data: bytes) -> ModelRef:
    """Signed by a key that is listed for nobody."""
    model = r.model(data)
    assert model.manifest is not None
    return replace(model, manifest=r.signed(model.manifest, create_identity("x", r.folder / f"x{r.numbers}")))


def altered(**changes: Any) -> Callable[[Rogue, bytes], ModelRef]:
    """Changed after it was signed."""

    def make(r: Rogue, data: bytes) -> ModelRef:
        model = r.model(data)
        assert model.manifest is not None
        return replace(model, manifest=replace(model.manifest, **changes))

    return make


def stating(**changes: Any) -> Callable[[Rogue, bytes], ModelRef]:
    """Signed so."""
    return lambda r, data: r.model(data, **changes)


OFFERS: dict[str, tuple[Callable[[Rogue, bytes], ModelRef], str]] = {
    "signed by another key": (forged, "manifest_forged"),
    "altered after signing": (altered(dice_val=0.99), "manifest_forged"),
    "in another's name": (stating(maker="north"), "manifest_forged"),
    "of an unlisted site": (stating(maker="west"), "manifest_stranger"),
    "of another federation": (stating(federation="other"), "manifest_federation"),
    "of another contract": (stating(contract="0" * 32), "manifest_contract"),
    "another size": (stating(size_bytes=10), "manifest_mismatch"),
    "another hash": (stating(hash="0" * 64), "manifest_mismatch"),
    "more cases": (stating(cases=10**6), "manifest_mismatch"),
    "other tensors": (lambda r, _: r.model(safetensors((7, 7))), "schema_mismatch"),
    "no manifest": (lambda r, data: replace(r.model(data), manifest=None), "manifest_missing"),
}


@pytest.mark.parametrize("what", OFFERS)
async def test_an_offer_that_lies_is_refused_with_its_reason(tmp_path: Path, what: str) -> None:
    make, reason = OFFERS[what]
    async with attacked(tmp_path) as (runtime, south, _):
        assert await south.offer(make(south, safetensors())) == reason
        counted = 0 if reason == "manifest_missing" else 1
        assert runtime.node.count("offences", "south") == counted
        assert runtime.store.list() == [] and runtime.node.reserved is None


async def test_forged_then_replayed_then_lying_then_quarantined_then_lifted(tmp_path: Path) -> None:
    async with attacked(tmp_path) as (runtime, south, f):
        data = safetensors()
        good = south.model(data)
        assert await south.offer(good) == "" and await south.push(good, data) == ""
        assert [e.model.hash for e in runtime.node.inbox] == [good.hash]
        assert runtime.node.inbox[0].model.manifest == good.manifest

        assert await south.offer(forged(south, data)) == "duplicate", "it is here already"
        other = safetensors(fill=1)
        assert await south.offer(forged(south, other)) == "manifest_forged"
        assert await south.offer(south.model(other, sequence=1)) == "manifest_replayed"

        lying = replace(south.model(other, round=6), round=6)  # a newer one takes the other's place
        assert await south.offer(lying) == ""
        assert await south.push(lying, safetensors(fill=2)) == "manifest_mismatch", "other bytes than signed"
        await settled(runtime)

        assert runtime.node.quarantined("south") and runtime.node.inbox == ()
        assert await south.offer(south.model(safetensors(fill=3))) == "quarantined"
        assert await south.push(south.model(other), other) == "quarantined"
        state = remembered(StateFile(Path(runtime.config.site.state_dir) / "node.json"), runtime.events)
        assert state.conduct[0].site == "south" and state.conduct[0].left_s > 590
        assert {(s.maker, s.kind) for s in state.seen} == {("south", "model")}

        service = Service(
            runtime, identity=None, stop=lambda _: None, reload=lambda: None, discovery=DiscoveryStatus
        )
        control = ControlServer(f["north"].socket, service)
        await control.start()
        try:
            await asyncio.to_thread(lift, f["north"].socket)
        finally:
            await control.close()
        assert not runtime.node.quarantined("south")
        again = replace(south.model(other, round=7), round=7)
        assert await south.offer(again) == "" and await south.push(again, other) == ""


def lift(socket: Path) -> None:
    """As `gossipctl quarantine` does."""
    with ControlClient(socket) as client:
        (row,) = client.quarantine().sites
        assert (row.site, row.standing, row.reason) == ("south", "quarantined", "manifest_mismatch")
        assert row.left_s is not None and 0 < row.left_s <= 600 and row.offences_in_all == 3
        peer = client.peers().peers[0]
        assert peer.state == "quarantined" and peer.offence == "manifest_mismatch" and "until" in peer.reason
        assert not client.lift_quarantine("nowhere").ok
        assert client.lift_quarantine("south").ok
        # It refutes no suspicion, so on a busy machine it may be suspected.
        assert client.quarantine().sites == () and client.peers().peers[0].state in ("alive", "suspect")


async def test_a_stream_that_says_another_size_than_was_signed(tmp_path: Path) -> None:
    async with attacked(tmp_path) as (runtime, south, _):
        data = safetensors()
        model = south.model(data)
        assert await south.offer(model) == ""
        longer = replace(model, size_bytes=len(data) + 100)
        assert await south.push(longer, data + bytes(100)) == "manifest_mismatch"
        assert runtime.node.count("offences", "south") == 1 and runtime.store.list() == []


@pytest.mark.parametrize("what", ["types", "tensors"])
async def test_a_file_with_other_types_or_tensors_than_was_signed(tmp_path: Path, what: str) -> None:
    async with attacked(tmp_path) as (runtime, south, _):
        data = safetensors() if what == "types" else safetensors((20, 10))
        expected = schema_hash({"w": (10, 20)})
        model = south.model(data, **({"dtype": "F32"} if what == "types" else {"schema": expected}))
        assert await south.offer(model) == ""
        assert await south.push(model, data) == "manifest_mismatch"
        await settled(runtime)
        assert runtime.store.list() == [] and runtime.node.count("offences", "south") == 1


ROUNDS: dict[str, tuple[dict[str, Any], str]] = {
    "another round's": ({"round": 9}, "other_round"),
    "another run's": ({"run": "0" * 32}, "other_run"),
    "a later attempt's": ({"attempt": 2}, "manifest_mismatch"),
    "in another's name": ({"maker": "north"}, "manifest_forged"),
    "of an unlisted site": ({"maker": "west"}, "manifest_stranger"),
    "of another contract": ({"contract": "0" * 32}, "manifest_contract"),
}


@pytest.mark.parametrize("what", ROUNDS)
async def test_a_coordinator_that_lies_is_refused_with_the_reason(tmp_path: Path, what: str) -> None:
    changes, reason = ROUNDS[what]
    async with attacked(tmp_path, algorithm={"name": "fedavg"}) as (runtime, south, _):
        proposal = south.common(safetensors(), **changes)
        if "round" in changes:
            proposal = replace(proposal, model=replace(proposal.model, round=changes["round"]))
        reply = await south.ask(ms.Accept(south.run, south.sites, proposal))
        assert (reply.verdict, reply.reason) == ("reject", reason)
        honest = await south.ask(ms.Accept(south.run, south.sites, south.common(safetensors())))
        assert (honest.verdict, honest.reason) == ("missing", "")
        passed_on = reason in (
            "manifest_stranger",
            "manifest_forged",
        )  # as an older list might do in good faith
        assert runtime.node.count("offences", "south") == (0 if passed_on else 1)


async def test_a_coordinator_that_goes_on_lying_is_passed_over(tmp_path: Path) -> None:
    async with attacked(tmp_path, algorithm={"name": "fedavg"}) as (runtime, south, _):
        for _ in range(3):
            bad = south.common(safetensors(), run="0" * 32)
            assert (await south.ask(ms.Accept(south.run, south.sites, bad))).reason == "other_run"
        good = south.common(safetensors())
        assert (await south.ask(ms.Accept(south.run, south.sites, good))).reason == "quarantined"
        assert (await south.ask(ms.Prepare(south.run, south.sites, 1, 2))).reason == "quarantined"
        view = runtime.node.rounds_view
        assert view is not None and ("south", "left_out", "quarantined") in [
            (r.site, r.state, r.reason) for r in view.rows
        ]
