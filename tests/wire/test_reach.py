"""A call back over real gRPC on loopback: each way in which dialling can fail, told apart."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import grpc
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from gossipseg.core.messages import Ping
from gossipseg.errors import PeerError, PeerRefused, PeerUntrusted
from gossipseg.trust import Identity, create_identity
from gossipseg.trust.making import self_signed
from gossipseg.wire import peer_pb2 as pb
from gossipseg.wire.addresses import split_address
from gossipseg.wire.grpc_link import PeerChannel
from gossipseg.wire.grpc_reach import ReachTimes
from gossipseg.wire.reached import (
    ECHO_BYTES,
    Reached,
    answer_echo,
    decode_reached,
    encode_echo,
    encode_reached,
)
from tests.wire.harness import INFO, Federation, federation

NAMES = ("north", "south")
QUICK = ReachTimes(connect_s=0.4, small_s=1.0, large_s=0.5, between_s=0.0)
PATIENT = ReachTimes(connect_s=10.0, small_s=10.0, large_s=10.0, between_s=0.0)
"""Where no limit is waited for."""


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Identity]:
    root = tmp_path_factory.mktemp("keys")
    return {name: create_identity(name, root / name) for name in (*NAMES, "other")}


@asynccontextmanager
async def pair(
    folder: Path, keys: dict[str, Identity], kind: str = "grpc", times: ReachTimes = QUICK
) -> AsyncIterator[Federation]:
    async with federation(kind, folder, keys, names=NAMES) as f:
        if kind == "grpc":
            for transport in f.transports.values():
                transport.times = times
        yield f


def relist(f: Federation, at: str, of: str, **changes: object) -> None:
    """`at` lists `of` differently from now on."""
    f.transports[at].set_peers({of: replace(f.endpoints[of], **changes)})


# ---------------------------------------------------------------- what is asked, what is answered


@pytest.mark.parametrize("kind", ["grpc", "memory"])
async def test_all_is_well(tmp_path: Path, keys: dict[str, Identity], kind: str) -> None:
    async with pair(tmp_path, keys, kind, PATIENT) as f:
        north = f.transports["north"]
        assert await north.reach("south") == Reached("ok", f.endpoints["south"].address)
        back = await north.ask_reach("south")
        assert back == Reached("ok", f.endpoints["north"].address) and back.good and back.known


@pytest.mark.parametrize("kind", ["grpc", "memory"])
async def test_a_shut_port_or_a_wrong_listed_address(
    tmp_path: Path, keys: dict[str, Identity], kind: str
) -> None:
    async with pair(tmp_path, keys, kind) as f:
        relist(f, "south", "north", address="127.0.0.1:1")
        back = await f.transports["north"].ask_reach("south")
        assert (back.outcome, back.address) == ("refused", "127.0.0.1:1") and "refused" in back.detail
        assert not back.good


async def test_an_address_that_works_beside_the_listed_one_is_told(
    tmp_path: Path, keys: dict[str, Identity]
) -> None:
    async with pair(tmp_path, keys) as f:
        relist(f, "south", "north", address="127.0.0.1:1")
        south, real = f.transports["south"], f.transports["north"].address
        south.hint_address("north", real)
        await south.links["north"].call("Echo", encode_echo(b"", 1), 5.0)
        back = await f.transports["north"].ask_reach("south")
        assert (back.outcome, back.works_at) == ("refused", real)


async def test_a_name_without_an_address(tmp_path: Path, keys: dict[str, Identity]) -> None:
    async with pair(tmp_path, keys) as f:
        relist(f, "north", "south", address="no-such-host.invalid:7443")
        assert (await f.transports["north"].reach("south")).outcome == "dns"


async def test_nothing_listed(tmp_path: Path, keys: dict[str, Identity]) -> None:
    """discovery.static: false."""
    async with pair(tmp_path, keys) as f:
        relist(f, "south", "north", address="")
        f.transports["south"].hint_address("north", f.transports["north"].address)
        back = await f.transports["north"].ask_reach("south")
        assert back.outcome == "no_address" and not back.known, "it is meant so: nothing is amiss"


@contextmanager
def mute_port() -> Iterator[str]:
    """Connections are made, and nobody says a word."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@contextmanager
def dropping_port() -> Iterator[str]:
    """A queue that is full: what comes is dropped, as by a firewall."""
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        held = [socket.socket() for _ in range(4)]
        for one in held:
            one.setblocking(False)
            one.connect_ex(full.getsockname())
        yield f"127.0.0.1:{full.getsockname()[1]}"
        for one in held:
            one.close()


async def test_silence_before_and_after_the_connection(tmp_path: Path, keys: dict[str, Identity]) -> None:
    async with pair(tmp_path, keys) as f:
        for port, outcome in ((dropping_port, "timeout"), (mute_port, "mute")):
            with port() as address:
                relist(f, "south", "north", address=address)
                back = await f.transports["north"].ask_reach("south")
                assert (back.outcome, back.address) == (outcome, address)


async def test_tls_that_something_between_opens_is_named(tmp_path: Path, keys: dict[str, Identity]) -> None:
    """The certificate that is shown, with subject and issuer: in a call back, and where a call fails."""
    async with pair(tmp_path, keys) as f, pair(tmp_path / "proxy", {**keys, "south": proxy(tmp_path)}) as p:
        relist(f, "north", "south", address=p.transports["south"].address)
        found = await f.transports["north"].reach("south")
        assert found.outcome == "untrusted"
        assert "subject is 'CN=inspection.hospital.example" in found.detail, found
        with pytest.raises(PeerUntrusted, match=r"opens TLS .*CN=inspection\.hospital\.example.*issued by"):
            await f.transports["north"].links["south"].call("Echo", encode_echo(b"", 1), 5.0)


async def test_a_certificate_that_cannot_be_taken_apart_is_untrusted(
    tmp_path: Path, keys: dict[str, Identity]
) -> None:
    """OpenSSL hands it over all the same, and anybody may answer at a listed address: the daemon lives on."""
    with answering(unreadable(keys["south"], tmp_path), keys["south"].key_path) as address:
        async with pair(tmp_path, keys) as f:
            relist(f, "north", "south", address=address)
            found = await f.transports["north"].reach("south")
            assert found.outcome == "untrusted" and "subject cannot be read" in found.detail, found
            back = await f.transports["north"].ask_reach("south")
            assert back.outcome == "not_asked" and "shows a certificate that cannot be read" in back.detail


def unreadable(identity: Identity, folder: Path) -> Path:
    """The certificate with an impossible version number."""
    der = bytearray(ssl.PEM_cert_to_DER_cert(identity.certificate_pem.decode()))
    version = der.index(b"\xa0\x03\x02\x01\x02") + 4
    der[version] = 4
    path = folder / "unreadable.pem"
    path.write_text(ssl.DER_cert_to_PEM_cert(bytes(der)))
    return path


@contextmanager
def answering(certificate: Path, key: Path) -> Iterator[str]:
    """Somebody who shakes hands with this certificate, and hangs up."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    context.set_alpn_protocols(["h2"])
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                plain, _ = server.accept()
                with contextlib.suppress(OSError):
                    context.wrap_socket(plain, server_side=True).close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"127.0.0.1:{server.getsockname()[1]}"
    finally:
        server.shutdown(socket.SHUT_RDWR)
        server.close()
        thread.join(10)


async def test_calls_that_fail_side_by_side_at_a_strange_address_drop_it_once(
    tmp_path: Path, keys: dict[str, Identity]
) -> None:
    with answering(keys["other"].certificate_path, keys["other"].key_path) as strange, shut() as dead:
        async with pair(tmp_path, keys) as f:
            relist(f, "north", "south", address=dead)
            north = f.transports["north"]
            north.hint_address("south", strange)
            calls = (north.request("south", Ping((), INFO), 5.0) for _ in range(3))
            found = await asyncio.gather(*calls, north.ask_reach("south"), return_exceptions=True)
            assert not [one for one in found if not isinstance(one, Reached | PeerError)], found
            assert north.links["south"].hints == []


@contextmanager
def shut() -> Iterator[str]:
    """An address at which nobody listens."""
    with closing(socket.socket()) as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{bound.getsockname()[1]}"


def proxy(folder: Path) -> Identity:
    """What a proxy that opens TLS shows."""
    made = create_identity("south", folder / "interception")
    key = serialization.load_pem_private_key(made.key_pem, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    shown = self_signed("inspection.hospital.example", key, 30, ()).public_bytes(serialization.Encoding.PEM)
    made.certificate_path.write_bytes(shown)
    return Identity.load(made.key_path, made.certificate_path)


async def test_a_dialler_whose_own_certificate_is_not_listed_here(
    tmp_path: Path, keys: dict[str, Identity]
) -> None:
    async with pair(tmp_path, keys) as f:
        relist(f, "north", "south", certificates=(keys["other"].certificate_pem,))
        assert (await f.transports["south"].reach("north")).outcome == "not_accepted"


# ---------------------------------------------------------------- a hole in the path's MTU


class Hole:
    """Carries TCP to an address; chunks after the first few KiB of one direction are lost for good."""

    def __init__(self, to: str, lost: str, after_bytes: int) -> None:
        self._to, self._lost, self._after = split_address(to), lost, after_bytes
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> str:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        return f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(*self._to)
        for source, sink, way in ((reader, back, "out"), (there, writer, "in")):
            task = asyncio.create_task(self._carry(source, sink, way))
            self._tasks.add(task)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: str) -> None:
        carried = 0
        try:
            while data := await reader.read(1 << 16):
                carried += len(data)
                if way == self._lost and carried > self._after:
                    continue
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()


async def test_a_slow_way_is_no_hole(tmp_path: Path, keys: dict[str, Identity]) -> None:
    """64 KiB are not through in time, and a few full-size packets are."""
    async with pair(tmp_path, keys) as f, Hole(f.transports["north"].address, "out", 16 << 10) as address:
        relist(f, "south", "north", address=address)
        f.transports["south"].times = replace(QUICK, small_s=5.0)
        back = await f.transports["north"].ask_reach("south")
        assert back.good and "slow: 65536 bytes" in back.detail


@pytest.mark.parametrize(("lost", "words"), [("out", "bytes to it"), ("in", "bytes from it")])
async def test_a_path_that_loses_full_size_packets(
    tmp_path: Path, keys: dict[str, Identity], lost: str, words: str
) -> None:
    async with pair(tmp_path, keys) as f, Hole(f.transports["north"].address, lost, 5 << 10) as address:
        relist(f, "south", "north", address=address)
        back = await f.transports["north"].ask_reach("south")
        assert back.outcome == "stalled" and words in back.detail and back.address == address
        assert (await f.transports["north"].reach("south")).good, "the other way is well"


# ---------------------------------------------------------------- older versions


async def test_an_older_peer_does_not_know_the_question(
    tmp_path: Path, keys: dict[str, Identity], monkeypatch: pytest.MonkeyPatch
) -> None:
    from gossipseg.wire.grpc_server import PeerServicer

    whole = PeerServicer.rpc_handlers

    class Without(grpc.GenericRpcHandler):  # type: ignore[misc]
        def __init__(self, inner: grpc.GenericRpcHandler) -> None:
            self._inner = inner

        def service(self, details: grpc.HandlerCallDetails) -> object:
            known = not details.method.endswith(("/Reach", "/Echo"))
            return self._inner.service(details) if known else None

    monkeypatch.setattr(PeerServicer, "rpc_handlers", lambda self: Without(whole(self)))
    async with pair(tmp_path, keys) as f:
        back = await f.transports["north"].ask_reach("south")
        assert back.outcome == "older" and not back.known and "older version" in back.detail
        out = await f.transports["north"].reach("south")
        assert out.outcome == "no_echo" and out.good


# ---------------------------------------------------------------- nothing for an attacker


async def test_what_the_caller_says_steers_nothing(tmp_path: Path, keys: dict[str, Identity]) -> None:
    """No address from a request is ever dialled: fields that an attacker adds are not read."""
    async with pair(tmp_path, keys, times=PATIENT) as f:
        with closing(socket.create_server(("127.0.0.1", 0))) as victim:
            victim.settimeout(0.2)
            forged = pb.ReachResponse(address=f"127.0.0.1:{victim.getsockname()[1]}").SerializeToString()
            answer = await f.transports["north"].links["south"].call("Reach", forged, 10.0)
            assert decode_reached(answer, "south") == Reached("ok", f.endpoints["north"].address)
            with pytest.raises(TimeoutError):
                victim.accept()


async def test_questions_of_one_peer_are_answered_once_in_a_while(
    tmp_path: Path, keys: dict[str, Identity], monkeypatch: pytest.MonkeyPatch
) -> None:
    dialled: list[str] = []

    async def look(link: PeerChannel, times: ReachTimes) -> Reached:
        dialled.append(link.site)
        return Reached("ok")

    monkeypatch.setattr("gossipseg.wire.grpc_transport.look", look)
    async with pair(tmp_path, keys) as f:
        f.transports["south"].times = replace(QUICK, between_s=60.0)
        answers = [await f.transports["north"].ask_reach("south") for _ in range(3)]
        assert [a.outcome for a in answers] == ["ok", "not_asked", "not_asked"] and dialled == ["north"]
        assert "ask again in 60 s" in answers[1].detail


async def test_strangers_are_told_nothing(tmp_path: Path, keys: dict[str, Identity]) -> None:
    async with pair(tmp_path, keys) as f:
        f.relist("south", [])
        assert (await f.transports["north"].ask_reach("south")).outcome == "not_asked"
        f.transports["north"].set_peers({})
        assert (await f.transports["north"].ask_reach("south")).outcome == "not_asked"
        assert (await f.transports["north"].reach("south")).outcome == "failed"


def test_an_echo_is_bounded() -> None:
    pad = bytes(ECHO_BYTES)
    assert len(
        pb.EchoResponse.FromString(answer_echo(encode_echo(pad, ECHO_BYTES), "x", pad)).padding
    ) == len(pad)
    for request in (encode_echo(pad + b"1", 1), encode_echo(b"", ECHO_BYTES + 1), b"\xff"):
        with pytest.raises(PeerRefused):
            answer_echo(request, "x", pad)


def test_answers_survive_the_wire_and_are_cleaned() -> None:
    whole = Reached("stalled", "10.0.0.1:7443", "too large", "10.0.0.2:7443")
    assert decode_reached(encode_reached(whole), "south") == whole
    rude = pb.ReachResponse(outcome=99, detail="\x1b[2J" + "x" * 5000).SerializeToString()
    found = decode_reached(rude, "south")
    assert found.outcome == "failed" and len(found.detail) <= 400 and found.detail.isprintable()
    with pytest.raises(PeerRefused):
        decode_reached(b"\xff", "south")


def test_a_look_ends_in_its_time() -> None:
    assert timedelta(seconds=ReachTimes().whole_s) <= timedelta(seconds=40)


class Sleeper(Hole):
    """Carries TCP to an address, but for the connections of these numbers (from 1), which stand still."""

    def __init__(self, to: str, still: set[int]) -> None:
        super().__init__(to, "", 0)
        self._still, self._count = still, 0

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._count += 1
        if self._count in self._still:
            with contextlib.suppress(OSError):
                while await reader.read(1 << 16):
                    pass
            writer.close()
        else:
            await super()._connected(reader, writer)


@pytest.mark.parametrize("still", [{1}, {2}, {2, 3}], ids=["at the handshake", "at a call", "for longer"])
async def test_a_site_that_stands_still_for_a_moment_is_no_hole(
    tmp_path: Path, keys: dict[str, Identity], still: set[int]
) -> None:
    """What passes in small packets only because it is later says nothing of full-size ones."""
    async with pair(tmp_path, keys) as f, Sleeper(f.transports["south"].address, still) as address:
        relist(f, "north", "south", address=address)
        f.transports["north"].times = replace(QUICK, connect_s=2.0, large_s=5.0)
        assert (await f.transports["north"].reach("south")).outcome == "ok"


async def test_what_this_machine_lacks_is_told_of_no_peer(
    tmp_path: Path, keys: dict[str, Identity], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too many open files must not end the daemon: an exception of a look would."""

    def full(*_: object) -> None:
        raise OSError("Too many open files")

    async with pair(tmp_path, keys) as f:
        monkeypatch.setattr("gossipseg.wire.grpc_reach.seen_certificate", full)
        found = await f.transports["north"].reach("south")
        assert not found.known and "Too many open files" in found.detail
