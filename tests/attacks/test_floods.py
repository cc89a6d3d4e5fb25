"""Floods of offers, pings, hellos from a listed peer, of connections from strangers: others are served."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from gossipseg import trust
from gossipseg.core.messages import Hello, Offer, Sync
from gossipseg.core.types import ModelRef, PeerInfo, Phase
from gossipseg.wire.addresses import split_address
from gossipseg.wire.codec import messages as codec
from gossipseg.wire.grpc_options import MAX_CONNECTIONS
from tests.attacks.rig import BOUND_BYTES, PING, REFUSALS, Attack, attack

INFO = PeerInfo(1, 1, 1, Phase.TRAINING, "")
MODEL = ModelRef("a" * 64, 1000, 1, 1, 1)
BODIES = {
    "Offer": codec.encode_request(Offer(MODEL)),
    "Ping": PING,
    "Hello": codec.encode_request(Hello(1, 2, "test", (("a", "1"),), INFO)),
    "Sync": codec.encode_request(Sync((), INFO)),
}


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attack]:
    """A victim with the limits that every daemon has."""
    with attack(tmp_path_factory.mktemp("flood")) as made:
        yield made


class Flood:
    """Calls as fast as they go, `width` at a time on each of some connections, until stopped."""

    def __init__(self, site: Attack, rpc: str, connections: int, width: int) -> None:
        self.codes: Counter[str] = Counter()
        self._rpc, self._stop = rpc, threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(site.channel("south"), width))
            for _ in range(connections)
        ]

    def __enter__(self) -> Flood:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)

    def _run(self, channel: grpc.Channel, width: int) -> None:
        method, data = channel.unary_unary(f"/gossipseg.wire.Peer/{self._rpc}"), BODIES[self._rpc]
        while not self._stop.is_set():
            for under_way in [method.future(data, timeout=20.0) for _ in range(width)]:
                error = under_way.exception(timeout=30)
                self.codes["OK" if error is None else error.code().name] += 1
                assert error is None or error.code() in REFUSALS or _stream_refused(error), error


def _stream_refused(error: Any) -> bool:
    """HTTP/2's own refusal (REFUSED_STREAM, 7): more streams than the server takes on a connection, which a
    slow machine meets before the server has answered any."""
    return error.code() is grpc.StatusCode.UNAVAILABLE and "error code 7" in error.details()


@pytest.mark.parametrize("rpc", ["Offer", "Ping", "Hello", "Sync"])
def test_a_listed_peers_flood_does_not_keep_others_out(real: Attack, seen: Any, rpc: str) -> None:
    begun, waits = time.monotonic(), []
    with Flood(real, rpc, connections=4, width=60) as flood:
        while len(waits) < 10 or time.monotonic() < begun + 3:
            waits.append(real.serves("west"))
            threading.Event().wait(0.05)
    took_s = time.monotonic() - begun
    about = real.about()
    assert flood.codes["OK"] <= 300 + 60 * took_s, "no more than its rate was worked on"
    assert about["queue"] < 100 and about["waiting"] < 40 and about["rss_bytes"] < BOUND_BYTES
    assert not real.errors()
    total = sum(flood.codes.values())
    seen(
        f"{total} calls in {took_s:.1f} s, {flood.codes['OK']} worked on; {len(waits)} honest pings, "
        f"the slowest {max(waits) * 1000:.0f} ms; {about['rss_bytes'] >> 20} MiB"
    )


def test_streams_that_are_refused_use_up_no_place_of_others(real: Attack, seen: Any) -> None:
    """More streams than the server takes calls in all, without a byte: those over the limit do not linger."""
    codes: Counter[str] = Counter()
    asyncio.run(_open_streams(real, codes, connections=18, width=62))
    assert codes["honest pings refused"] == 0, codes
    seen(f"{sum(codes.values())} streams and pings: {dict(codes)}")


async def _open_streams(site: Attack, codes: Counter[str], connections: int, width: int) -> None:
    loop, done = asyncio.get_running_loop(), asyncio.Event()
    south, north = site.identities["south"], site.identities["north"].certificate_pem
    shown = grpc.ssl_channel_credentials(north, south.key_pem, south.certificate_pem)
    named = [("grpc.ssl_target_name_override", "north"), ("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.aio.secure_channel(site.address, shown, named) for _ in range(connections)]

    async def push(channel: grpc.aio.Channel) -> None:
        while not done.is_set():
            try:
                await channel.stream_unary("/gossipseg.wire.Peer/Push")(timeout=10)
            except grpc.aio.AioRpcError as e:
                codes[e.code().name] += 1

    pushing = [asyncio.create_task(push(channel)) for channel in channels for _ in range(width)]
    until = loop.time() + 4.0
    while loop.time() < until:
        await asyncio.sleep(0.2)
        try:
            await asyncio.to_thread(site.serves, "west", 20.0)
        except grpc.RpcError:
            codes["honest pings refused"] += 1
        else:
            codes["honest pings answered"] += 1
    done.set()
    for task in pushing:
        task.cancel()
    await asyncio.gather(*pushing, return_exceptions=True)
    for channel in channels:
        await channel.close()


@pytest.mark.slow
def test_strangers_connections_are_bounded_and_given_up(real: Attack, seen: Any) -> None:
    """Sockets that never shake hands: at most so many, each for so long; who is connected stays served."""
    host, port = split_address(real.address)
    before = real.about()
    west = real.channel("west").unary_unary("/gossipseg.wire.Peer/Ping")
    west(PING, timeout=10)
    sockets = []
    try:
        for _ in range(MAX_CONNECTIONS + 200):
            s = socket.socket()
            s.settimeout(2.0)
            s.connect((host, port))
            sockets.append(s)
        begun = time.monotonic()
        west(PING, timeout=10)
        wait_s = time.monotonic() - begun
        during = real.about()
        assert during["descriptors"] <= before["descriptors"] + MAX_CONNECTIONS + 20
        # While the flood stands, a newcomer may have to wait until handshakes are given up.
        begun = time.monotonic()
        while True:
            try:
                real.serves("west", timeout_s=5)
                break
            except grpc.RpcError:
                assert time.monotonic() < begun + 30, "new connections are made again in bounded time"
        back_s = time.monotonic() - begun
    finally:
        for s in sockets:
            s.close()
    assert real.about()["rss_bytes"] < BOUND_BYTES and not real.errors()
    seen(
        f"{len(sockets)} sockets, {during['descriptors'] - before['descriptors']} more descriptors; an open "
        f"channel was answered in {wait_s * 1000:.0f} ms, a new one after {back_s:.1f} s"
    )


@pytest.mark.slow
def test_strangers_with_keys_of_their_own_get_nothing(real: Attack, tmp_path: Any, seen: Any) -> None:
    """Handshakes with a key that nobody lists, among them one with a listed site's name."""
    host, port = split_address(real.address)
    ended: Counter[str] = Counter()
    for name in ("west", "stranger"):
        identity = trust.create_identity(name, tmp_path / name)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_alpn_protocols(["h2"])
        context.load_cert_chain(identity.certificate_path, identity.key_path)
        for _ in range(100):
            try:
                with (
                    socket.create_connection((host, port), 5) as plain,
                    context.wrap_socket(plain) as tls,
                ):
                    tls.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
                    ended["closed" if not tls.recv(1) else "answered"] += 1
            except OSError as e:
                ended[type(e).__name__] += 1
    assert not ended["answered"]
    assert real.serves() and not real.errors()
    seen(f"200 handshakes: {dict(ended)}")
