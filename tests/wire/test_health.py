"""The standard health service: on the control socket, and on the peer port for listed peers."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import pytest
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gossipseg.trust import Identity, create_identity
from gossipseg.wire import health
from gossipseg.wire.control import ControlServer
from gossipseg.wire.grpc_transport import GrpcTransport
from tests.wire.harness import federation
from tests.wire.test_control import Daemon

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


def question(service: str) -> health_pb2.HealthCheckRequest:
    return health_pb2.HealthCheckRequest(service=service)


def test_the_control_socket_tells_each_service_and_its_changes(tmp_path: Path) -> None:
    asyncio.run(on_the_control_socket(tmp_path))


async def on_the_control_socket(tmp_path: Path) -> None:
    board = health.HealthBoard()
    server = ControlServer(tmp_path / "c.sock", Daemon(), board)
    await server.start()
    await board.tell({health.ALL: True, health.TRAINING: True})
    async with aio.insecure_channel(f"unix:{tmp_path / 'c.sock'}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        assert (await stub.Check(question(""))).status == SERVING
        watch = stub.Watch(question(health.TRAINING))
        assert (await watch.read()).status == SERVING
        await board.tell({health.TRAINING: False})
        assert (await watch.read()).status == NOT_SERVING
        assert (await stub.Check(question(""))).status == SERVING
        with pytest.raises(grpc.RpcError) as refused:
            await stub.Check(question("secrets"))
        assert refused.value.code() is grpc.StatusCode.NOT_FOUND
        await board.close()
        assert (await stub.Check(question(""))).status == NOT_SERVING
        watch.cancel()
    await server.close()


def channel_of(transport: GrpcTransport, target: str, server_pem: bytes, identity: Identity) -> aio.Channel:
    credentials = grpc.ssl_channel_credentials(
        server_pem,
        identity.key_pem,
        identity.certificate_pem,
    )
    options = [("grpc.ssl_target_name_override", target)]
    return aio.secure_channel(transport.address, credentials, options)


def test_a_listed_peer_may_ask_and_nobody_else(tmp_path: Path, identities: dict[str, Identity]) -> None:
    asyncio.run(on_the_peer_port(tmp_path, identities))


async def on_the_peer_port(tmp_path: Path, identities: dict[str, Identity]) -> None:
    async with federation("grpc", tmp_path, identities) as f:
        north, pem = f.transports["north"], f.identities["north"].certificate_pem
        async with channel_of(north, "north", pem, f.identities["south-2"]) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            assert (await stub.Check(question(health.PEER))).status == SERVING
            assert (await stub.Check(question(""))).status == SERVING
            with pytest.raises(grpc.RpcError) as refused:
                await stub.Check(question(health.TRAINING))
            assert refused.value.code() is grpc.StatusCode.NOT_FOUND
            f.relist("north", ["chase_db1"])
            with pytest.raises(grpc.RpcError) as refused:
                await stub.Check(question(""))
            assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
        stranger = create_identity("south-2", tmp_path / "stranger")
        async with channel_of(north, "north", pem, stranger) as channel:
            with pytest.raises(grpc.RpcError) as refused:
                await health_pb2_grpc.HealthStub(channel).Check(question(""), timeout=10)
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


def test_garbage_is_no_question() -> None:
    assert health.check(b"\xff\xff\xff", {"": True}) is None
