"""What only the gRPC transport has: addresses, connections that break, sizes, channels."""

from __future__ import annotations

import asyncio
import dataclasses
import socket

import grpc
import pytest
from grpc import aio

from gossipseg.bridge.outcomes import why
from gossipseg.core.messages import Ack, Ping, SwapOffer, SwapReady, SwapTold
from gossipseg.core.types import ExchangeId, ModelRef, SwapTerms
from gossipseg.errors import ConfigError, LocalError, PeerError, PeerRefused, PeerUnreachable, PeerUntrusted
from gossipseg.store import ModelStore
from gossipseg.wire import grpc_options
from gossipseg.wire import peer_pb2 as pb
from gossipseg.wire.addresses import grpc_target, is_loopback, join_address, split_address
from gossipseg.wire.codec import messages as codec
from gossipseg.wire.grpc_options import channel_credentials, channel_options
from gossipseg.wire.grpc_transport import GrpcTransport
from gossipseg.wire.transport import PeerEndpoint
from tests.wire.harness import INFO, StoreHandler, file_descriptors, until

PING = Ping((), INFO)
MIB = 1 << 20


class Line:
    """A TCP line to an address that can be cut after a number of bytes, and counts its connections."""

    def __init__(self, to: str) -> None:
        self._to, self.cut_after, self.connections, self.carried = split_address(to), None, 0, 0
        self._pipes: set[asyncio.Task] = set()

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_):
        await self.stop()

    async def stop(self):
        """Hang up, and take no more calls."""
        self._server.close()
        for task in self._pipes:
            task.cancel()
        await asyncio.gather(*self._pipes, return_exceptions=True)

    async def _connected(self, reader, writer):
        self._pipes.add(asyncio.current_task())
        self.connections += 1
        there, back = await asyncio.open_connection(*self._to)
        try:
            await asyncio.gather(self._pipe(reader, back, count=True), self._pipe(there, writer))
        except OSError:
            pass
        finally:
            for end in (writer, back):
                end.close()

    async def _pipe(self, reader, writer, *, count=False):
        while data := await reader.read(65536):
            self.carried += len(data) if count else 0
            if count and self.cut_after is not None and self.carried > self.cut_after:
                self.cut_after = None
                raise ConnectionResetError
            writer.write(data)
            await writer.drain()
        writer.write_eof()


def moved(f, site: str, to: str):
    """The endpoints with one site at another address."""
    return {**f.endpoints, site: dataclasses.replace(f.endpoints[site], address=to)}


# ---------------------------------------------------------------- addresses


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "[::1]:0", "localhost:0"])
def test_ipv4_ipv6_and_names(identities, listen):
    async def body():
        north = GrpcTransport("north", listen=listen, identity=identities["north"], peers={})
        south = GrpcTransport("south-2", listen=listen, identity=identities["south-2"], peers={})
        try:
            for t in (north, south):
                await t.start(StoreHandler(None))
            host, port = split_address(north.address)
            assert port > 0 and join_address(host, 0) == listen
            north.set_peers({"south-2": endpoint_of(south, identities)})
            south.set_peers({"north": endpoint_of(north, identities)})
            assert await south.request("north", PING, 5.0) == Ack((), INFO)
        finally:
            await north.close()
            await south.close()

    asyncio.run(body())


def endpoint_of(transport, identities):
    return PeerEndpoint(transport.site, transport.address, (identities[transport.site].certificate_pem,))


@pytest.mark.parametrize(
    ("address", "parts", "target", "loopback"),
    [
        ("127.0.0.1:7443", ("127.0.0.1", 7443), "ipv4:127.0.0.1:7443", True),
        ("[::1]:1", ("::1", 1), "ipv6:[::1]:1", True),
        ("[2001:db8::7]:65535", ("2001:db8::7", 65535), "ipv6:[2001:db8::7]:65535", False),
        ("[fe80::1%eth0]:7443", ("fe80::1%eth0", 7443), "ipv6:[fe80::1%eth0]:7443", False),
        ("gpu_3.example.org:7443", ("gpu_3.example.org", 7443), "dns:///gpu_3.example.org:7443", False),
        ("localhost:0", ("localhost", 0), "dns:///localhost:0", True),
        ("0.0.0.0:7443", ("0.0.0.0", 7443), "ipv4:0.0.0.0:7443", False),
    ],
)
def test_addresses_are_read_and_written(address, parts, target, loopback):
    assert split_address(address) == parts
    assert join_address(*parts) == address
    assert grpc_target(address) == target
    assert is_loopback(address) is loopback


@pytest.mark.parametrize(
    "text",
    ["", "north", "north:", ":7443", "::1:7443", "[::1]", "[::1:7443", "[north]:7443", "a:65536", "a:-1"],
)
def test_what_is_no_address_is_refused(text):
    with pytest.raises(ConfigError, match="not an address"):
        split_address(text)


@pytest.mark.parametrize("text", ["a b:1", "unix:/run/x:1", "http://a:1", "a:٣", "[::g]:1", "x" * 254 + ":1"])
def test_what_only_looks_like_one_is_refused(text):
    with pytest.raises(ConfigError, match="not an address"):
        split_address(text)


def test_a_malformed_address_in_the_list_changes_nothing(over_grpc):
    async def body():
        async with over_grpc() as f:
            with pytest.raises(ConfigError, match="not an address"):
                f.transports["north"].set_peers(moved(f, "south-2", "nonsense"))
            assert await f.transports["north"].request("south-2", PING, 5.0)
            assert await f.transports["chase_db1"].request("north", PING, 5.0)

    asyncio.run(body())


def test_a_site_without_any_known_address_is_unreachable_until_a_hint_comes(over_grpc):
    async def body():
        async with over_grpc() as f:
            north, known = f.transports["north"], f.endpoints["south-2"].address
            north.set_peers(moved(f, "south-2", ""))
            with pytest.raises(PeerUnreachable, match="no address"):
                await north.request("south-2", PING, 5.0)
            for junk in ("nonsense", "", "../../x:1"):
                north.hint_address("south-2", junk)
            north.hint_address("south-2", known)
            assert await north.request("south-2", PING, 5.0)
            model, path = f.model(100_000)
            f.promise("south-2", model)
            await north.push("south-2", model, path, 10.0)

    asyncio.run(body())


def test_hints_are_few_and_what_works_is_kept(over_grpc):
    async def body():
        async with (
            over_grpc() as f,
            Line(f.endpoints["south-2"].address) as listed,
            Line(f.endpoints["south-2"].address) as other,
        ):
            north = f.transports["north"]
            north.set_peers(moved(f, "south-2", listed.address))
            link = north.links["south-2"]
            assert await north.request("south-2", PING, 5.0)
            for i in range(10):
                north.hint_address("south-2", f"127.0.0.1:{i + 1}")
            north.hint_address("south-2", other.address)
            north.hint_address("south-2", other.address)
            assert link.addresses[0] == listed.address and len(link.addresses) == 4
            assert await north.request("south-2", PING, 5.0)
            assert other.connections == 0  # what works is not left
            await listed.stop()
            await _eventually(north, "south-2")
            assert other.connections >= 1
            assert link.addresses[0] == other.address
            assert listed.address in link.addresses

    asyncio.run(body())


def test_an_occupied_port_is_an_error_with_a_remedy_and_is_not_shared(over_grpc, identities):
    async def body():
        async with over_grpc() as f:
            taken = f.endpoints["north"].address
            second = GrpcTransport("south-2", listen=taken, identity=identities["south-2"], peers={})
            with pytest.raises(LocalError) as e:
                await second.start(StoreHandler(None))
            port = split_address(taken)[1]
            for part in (taken, "Address already in use", f"sport = :{port}", "site.yaml"):
                assert part in str(e.value)
            await second.close()
            foreign = GrpcTransport("south-2", listen="192.0.2.1:0", identity=identities["south-2"], peers={})
            with pytest.raises(LocalError, match="Cannot assign requested address"):
                await foreign.start(StoreHandler(None))

    asyncio.run(body())


# ---------------------------------------------------------------- connections that break


def test_a_stream_is_taken_up_after_the_connection_was_reset(over_grpc):
    async def body():
        async with over_grpc() as f, Line(f.endpoints["south-2"].address) as line:
            north = f.transports["north"]
            north.set_peers(moved(f, "south-2", line.address))
            model, path = f.model(8 * MIB)
            f.promise("south-2", model)
            line.cut_after = 4 * MIB
            await north.push("south-2", model, path, 20.0)
            handler = f.handlers["south-2"]
            assert handler.store.path(model.hash).read_bytes() == path.read_bytes()
            assert handler.offsets[0] == 0 < handler.offsets[1]
            assert len(handler.offsets) == 2
            assert handler.ended == ["cut_off", "ok"]
            resent = north.traffic("south-2").bytes_out - model.size_bytes
            assert resent < 4 * MIB  # nothing like the whole once more

    asyncio.run(body())


def test_a_call_whose_connection_breaks_is_unreachable_and_not_repeated(over_grpc):
    async def body():
        async with over_grpc() as f, Line(f.endpoints["south-2"].address) as line:
            north, handler = f.transports["north"], f.handlers["south-2"]
            north.set_peers(moved(f, "south-2", line.address))
            north.hint_address("south-2", f.endpoints["south-2"].address)

            async def hang_up(peer, body):
                await line.stop()
                await asyncio.Event().wait()

            handler.answers = hang_up
            with pytest.raises(PeerUnreachable):
                await north.request("south-2", PING, 10.0)
            assert len(handler.requests) == 1
            handler.answers = None
            await _eventually(north, "south-2")

    asyncio.run(body())


def test_an_address_that_swallows_everything_leaves_time_for_the_hint(over_grpc):
    async def body():
        async with over_grpc() as f:
            with socket.socket() as silent:  # accepts, and never says a word
                silent.bind(("127.0.0.1", 0))
                silent.listen()
                north, good = f.transports["north"], f.endpoints["south-2"].address
                north.set_peers(moved(f, "south-2", join_address(*silent.getsockname())))
                with pytest.raises(PeerUnreachable, match="timeout"):
                    await north.request("south-2", PING, 0.1)
                north.hint_address("south-2", good)
                assert await north.request("south-2", PING, 4.0)
                assert await north.request("south-2", PING, 5.0)

    asyncio.run(body())


def test_a_peer_that_comes_back_is_reached_within_the_reconnect_limit(over_grpc):
    async def body():
        async with over_grpc() as f:
            north = f.transports["north"]
            assert await north.request("south-2", PING, 5.0)
            await f.transports["south-2"].close()
            for _ in range(20):  # drive the back-off up
                with pytest.raises(PeerError):
                    await north.request("south-2", PING, 0.05)
            again = f.rebuilt("south-2")
            await again.start(f.handlers["south-2"])
            loop = asyncio.get_running_loop()
            since = loop.time()
            await _eventually(north, "south-2")
            assert loop.time() - since < 10.0

    asyncio.run(body())


@pytest.mark.parametrize(("probe_interval_s", "limit_ms", "first_ms"), [(5.0, 5000, 1000), (0.5, 500, 500)])
def test_reconnecting_never_pauses_longer_than_the_probe_interval(probe_interval_s, limit_ms, first_ms):
    options = dict(channel_options("north", probe_interval_s))
    assert options["grpc.max_reconnect_backoff_ms"] == limit_ms
    assert options["grpc.initial_reconnect_backoff_ms"] == first_ms
    assert options["grpc.min_reconnect_backoff_ms"] >= 5000  # time for one handshake, on a busy machine too


def test_control_and_bulk_have_connections_of_their_own(over_grpc):
    async def body():
        async with over_grpc() as f, Line(f.endpoints["south-2"].address) as line:
            north = f.transports["north"]
            north.set_peers(moved(f, "south-2", line.address))
            for i in range(3):
                assert await north.request("south-2", PING, 5.0)
                model, path = f.model(100_000, seed=i)
                f.promise("south-2", model)
                await north.push("south-2", model, path, 10.0)
            assert line.connections == 2

    asyncio.run(body())


@pytest.mark.parametrize("limit", ["IDLE_S", "AGE_S"])
def test_an_old_or_idle_connection_is_closed_and_the_next_call_makes_another(over_grpc, monkeypatch, limit):
    """No call fails of it, nor one that is longer than the limit."""
    monkeypatch.setattr(grpc_options, limit, 0.5)

    async def body():
        async with over_grpc() as f, Line(f.endpoints["south-2"].address) as line:
            north, south = f.transports["north"], f.handlers["south-2"]
            north.set_peers(moved(f, "south-2", line.address))
            assert await north.request("south-2", PING, 5.0)

            async def slowly(*_):
                await asyncio.sleep(2.0)
                return Ack((), INFO)

            south.answers = slowly
            assert await north.request("south-2", PING, 10.0)
            south.answers = None
            async with asyncio.timeout(20):
                while line.connections == 1:
                    await asyncio.sleep(1.0)
                    assert await north.request("south-2", PING, 5.0)

    asyncio.run(body())


def test_control_and_bulk_do_not_share_a_connection_in_plaintext_either(tmp_path):
    async def body():
        handler = StoreHandler(ModelStore(tmp_path / "models"))
        south = GrpcTransport("south", listen="127.0.0.1:0", identity=None, peers={}, insecure=True)
        north = GrpcTransport("north", listen="127.0.0.1:0", identity=None, peers={}, insecure=True)
        await south.start(handler)
        south.set_peers({"north": PeerEndpoint("north", "")})
        async with Line(south.address) as line:
            north.set_peers({"south": PeerEndpoint("south", line.address)})
            assert await north.request("south", PING, 5.0)
            model = ModelRef("0f" * 32, 1, 1, 1, 1)
            with pytest.raises(PeerRefused, match="not_offered"):
                await north.push("south", model, tmp_path, 5.0)
            assert line.connections == 2
            await north.close()
        await south.close()

    asyncio.run(body())


def test_links_that_did_not_change_stay_open_when_the_list_is_reloaded(over_grpc):
    async def body():
        async with over_grpc() as f, Line(f.endpoints["south-2"].address) as line:
            north = f.transports["north"]
            north.set_peers(moved(f, "south-2", line.address))
            assert await north.request("south-2", PING, 5.0)
            without = moved(f, "south-2", line.address)
            del without["chase_db1"]
            north.set_peers(without)
            assert await north.request("south-2", PING, 5.0)
            assert line.connections == 1

    asyncio.run(body())


def test_a_stream_survives_that_its_peer_gets_another_address(over_grpc):
    async def body():
        async with over_grpc() as f:
            north, handler = f.transports["north"], f.handlers["south-2"]
            model, path = f.model(8 * MIB)
            f.promise("south-2", model)
            async with Line(f.endpoints["south-2"].address) as line:

                async def reload(peer, offset):
                    handler.on_chunk = None
                    north.set_peers(moved(f, "south-2", line.address))

                handler.on_chunk = reload
                await north.push("south-2", model, path, 20.0)
                assert line.carried > MIB
                assert handler.store.has(model.hash)

    asyncio.run(body())


def test_a_clock_that_is_set_meanwhile_is_noticed_with_the_next_ping(over_grpc):
    """Hellos are rare: what was wrong at the start must not be told for days."""

    async def body():
        async with over_grpc() as f:
            north, ahead = f.transports["north"], 3600.0
            f.transports["south-2"].tell_clock(lambda: 1000.0 + ahead)
            assert await north.request("south-2", PING, 5.0)
            assert north.clock_ahead_s("south-2", 1000.0) == pytest.approx(3600, abs=60)
            ahead = 0.0
            assert await north.request("south-2", PING, 5.0)
            assert north.clock_ahead_s("south-2", 1000.0) == pytest.approx(0, abs=60)

    asyncio.run(body())


def test_one_site_does_not_take_every_incoming_place(over_grpc):
    """Its second model waits for its first; another site's comes in beside it."""

    async def body():
        async with over_grpc() as f:
            south, held = f.handlers["south-2"], asyncio.Event()

            async def hold(peer, _hash):
                if peer == "north":
                    await held.wait()

            south.on_chunk = hold
            slow = []
            for seed in range(3):
                model, path = f.model(50_000, seed=seed)
                f.promise("south-2", model)
                slow.append(asyncio.create_task(f.transports["north"].push("south-2", model, path, 20.0)))
            await until(lambda: south.taking)
            model, path = f.model(50_000, seed=9)
            f.promise("south-2", model)
            await f.transports["chase_db1"].push("south-2", model, path, 10.0)
            assert south.store.has(model.hash) and not any(one.done() for one in slow)
            held.set()
            await asyncio.gather(*slow)

    asyncio.run(body())


def test_a_receiver_that_is_slow_holds_the_sender_back(over_grpc):
    async def body():
        async with over_grpc(chunk_bytes=MIB) as f:
            north, handler, gate = f.transports["north"], f.handlers["south-2"], asyncio.Event()
            model, path = f.model(48 * MIB)
            f.promise("south-2", model)

            async def hold(peer, offset):
                await gate.wait()

            handler.on_chunk = hold
            push = asyncio.create_task(north.push("south-2", model, path, 25.0))
            await until(lambda: handler.taking == 1)
            for _ in range(50):
                assert await north.request("south-2", PING, 5.0)
            assert north.traffic("south-2").bytes_out < 24 * MIB
            handler.on_chunk = None
            gate.set()
            await push

    asyncio.run(body())


# ---------------------------------------------------------------- what a listed but ill-behaved peer may send


@pytest.fixture
def rough(over_grpc):
    """Runs a body with a channel that holds chase_db1's key, but is not our code, to north."""

    def run(body):
        async def main():
            async with over_grpc() as f:
                credentials = channel_credentials(
                    f.identities["chase_db1"], f.endpoints["north"].certificates
                )
                options = [("grpc.ssl_target_name_override", "north"), ("grpc.max_send_message_length", -1)]
                async with aio.secure_channel(f.endpoints["north"].address, credentials, options) as channel:
                    await body(f, channel)
                # and north is none the worse for it
                assert await f.transports["chase_db1"].request("north", PING, 5.0)

        asyncio.run(main())

    return run


def test_malformed_requests_are_refused_with_the_reason(rough):
    async def body(f, channel):
        for rpc in [*codec.KINDS, "PushOffset"]:
            with pytest.raises(aio.AioRpcError) as e:
                await channel.unary_unary(f"/gossipseg.wire.Peer/{rpc}")(b"\xff\xff", timeout=5.0)
            assert e.value.code() is grpc.StatusCode.FAILED_PRECONDITION
            assert dict(iter(e.value.trailing_metadata()))["gossipseg-reason"] == "malformed"
        assert f.handlers["north"].requests == []

    rough(body)


def test_an_rpc_of_a_later_version_is_said_to_be_unknown(rough):
    async def body(f, channel):
        with pytest.raises(aio.AioRpcError) as e:
            await channel.unary_unary("/gossipseg.wire.Peer/OfALaterVersion")(b"", timeout=5.0)
        assert e.value.code() is grpc.StatusCode.UNIMPLEMENTED

    rough(body)


def test_a_peer_of_an_older_version_refuses_a_swap_in_words(over_grpc, monkeypatch):
    for rpc in ("SwapOffer", "SwapSnapshot", "SwapReady", "SwapTold"):
        monkeypatch.delitem(codec.KINDS, rpc)  # what the servers below do not know
    swap = ExchangeId("chase_db1", 7)
    terms = SwapTerms(swap, "demo", "c0ffee", "chase_db1", "north", 17, 31, 400, 3)

    async def body():
        async with over_grpc() as f:
            for request in (SwapOffer(terms), SwapReady(swap), SwapTold(swap, "open")):
                with pytest.raises(PeerRefused, match="its version of gossipseg knows no Swap") as e:
                    await f.transports["chase_db1"].request("north", request, 5.0)
                assert (e.value.peer, e.value.reason) == ("north", "unimplemented")
                assert why(e.value, in_core_words=True)[0] == "refused"

    asyncio.run(body())


def test_a_message_beyond_the_limit_is_refused(rough):
    async def body(f, channel):
        with pytest.raises(aio.AioRpcError) as e:
            await channel.unary_unary("/gossipseg.wire.Peer/Ping")(
                bytes(codec.MAX_MESSAGE_BYTES + 1), timeout=5.0
            )
        assert e.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert f.handlers["north"].requests == []

    rough(body)


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ("no header", "malformed"),
        ("nothing", "cut_off"),
        ("junk", "malformed"),
        ("two headers", "malformed"),
        ("offset beyond the end", "malformed"),
        ("wrong offset", "wrong_offset"),
        ("more than declared", "too_large"),
        ("a chunk too large", "malformed"),
        ("less than declared", "cut_off"),
        ("not promised", "not_offered"),
    ],
)
def test_streams_that_do_not_keep_to_the_rules(rough, case, reason):
    async def body(f, channel):
        model, path = f.model(2 * MIB)
        if case != "not promised":
            f.promise("north", model)
        header = codec.encode_header(codec.PushHeader(model, 0))
        data = codec.encode_data(path.read_bytes()[:MIB])
        stream = {
            "no header": [data],
            "nothing": [],
            "junk": [b"\xff\xff"],
            "two headers": [header, data, header],
            "offset beyond the end": [codec.encode_header(codec.PushHeader(model, 2 * MIB + 1))],
            "wrong offset": [codec.encode_header(codec.PushHeader(model, 5)), data],
            "more than declared": [header, data, data, data],
            "a chunk too large": [header, pb.PushChunk(data=bytes(MIB + 1)).SerializeToString()],
            "less than declared": [header, data],
            "not promised": [header, data, data],
        }[case]
        with pytest.raises(aio.AioRpcError) as e:
            await channel.stream_unary("/gossipseg.wire.Peer/Push")(iter(stream), timeout=10.0)
        assert dict(iter(e.value.trailing_metadata()))["gossipseg-reason"] == reason
        handler = f.handlers["north"]
        await until(lambda: handler.taking == 0)
        assert not handler.store.has(model.hash)
        assert handler.ended in ([], [reason])
        if case == "more than declared":  # the wire noticed, before the store had to
            assert await handler.push_offset("chase_db1", model) == 2 * MIB

    rough(body)


def test_a_sender_that_ignores_the_refusal_is_cut_off_soon(rough, monkeypatch):
    monkeypatch.setattr("gossipseg.wire.grpc_server._LINGER_S", 0.05)

    async def body(f, channel):
        model, path = f.model(MIB)

        async def endless():
            yield codec.encode_header(codec.PushHeader(model, 0))
            while True:
                yield codec.encode_data(path.read_bytes())

        with pytest.raises(aio.AioRpcError) as e:
            await channel.stream_unary("/gossipseg.wire.Peer/Push")(endless(), timeout=20.0)
        assert e.value.code() is not grpc.StatusCode.DEADLINE_EXCEEDED

    rough(body)


def test_a_peer_that_answers_nonsense_is_refused(over_grpc, identities):
    """The other direction: a listed site whose answers are not what was asked for."""

    async def body():
        async with over_grpc(names=("chase_db1",)) as f:
            nonsense = aio.server()

            async def answer(data, context):
                return b"\xff\xff"

            rpcs = dict.fromkeys([*codec.KINDS, "PushOffset"], grpc.unary_unary_rpc_method_handler(answer))
            nonsense.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(codec.SERVICE, rpcs),))
            pair = (identities["north"].key_pem, identities["north"].certificate_pem)
            port = nonsense.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
            await nonsense.start()
            a = f.transports["chase_db1"]
            a.set_peers({"north": PeerEndpoint("north", f"127.0.0.1:{port}", (pair[1],))})
            model, path = f.model(100)
            try:
                with pytest.raises(PeerRefused, match="malformed"):
                    await a.request("north", PING, 5.0)
                with pytest.raises(PeerRefused, match="malformed"):
                    await a.push("north", model, path, 5.0)
            finally:
                await nonsense.stop(0)

    asyncio.run(body())


# ---------------------------------------------------------------- nothing is left over


def test_nothing_is_left_open_after_many_transfers_and_a_close(over_grpc):
    async def body():
        async with over_grpc() as f:
            for i in range(3):
                model, path = f.model(300_000, seed=i)
                f.promise("south-2", model)
                await f.transports["north"].push("south-2", model, path, 10.0)
                refused, path = f.model(300_000, seed=i + 10)
                with pytest.raises(PeerRefused):
                    await f.transports["north"].push("south-2", refused, path, 10.0)
            before = file_descriptors()
            for i in range(3, 8):
                model, path = f.model(300_000, seed=i)
                f.promise("south-2", model)
                await f.transports["north"].push("south-2", model, path, 10.0)
            assert file_descriptors() <= before
            assert f.transports["south-2"].streams == ()
        tasks = [t for t in asyncio.all_tasks() if t is not asyncio.current_task()]
        assert [t for t in tasks if "gossipseg" in repr(t)] == []

    asyncio.run(body())


def test_closing_twice_or_before_the_start_is_harmless(identities):
    async def body():
        t = GrpcTransport("north", listen="127.0.0.1:0", identity=identities["north"], peers={})
        await t.close()
        await t.start(StoreHandler(None))
        await t.close()
        await t.close()

    asyncio.run(body())


async def _eventually(transport, site):
    """Ask until it answers; the federation's deadline bounds it."""
    while True:
        try:
            return await transport.request(site, PING, 1.0)
        except (PeerUnreachable, PeerUntrusted):
            await asyncio.sleep(0)
