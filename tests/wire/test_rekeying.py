"""What is awkward about new keys on the wire: files half replaced, connections put away, slow takers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from gossipseg.core.messages import Ping
from gossipseg.errors import PeerError
from gossipseg.trust import Identity, create_identity
from gossipseg.wire.grpc_options import server_credentials
from gossipseg.wire.limits import PeerLimits, StreamProgress
from gossipseg.wire.probe import seen_certificate
from tests.wire.harness import INFO, Federation, federation, until, with_certificates

PING = Ping((), INFO)


async def push_held(f: Federation) -> tuple[asyncio.Task[None], asyncio.Event]:
    """A model under way from north, which south-2 holds at its first piece until the event is set."""
    model, path = f.model(4 << 20)
    f.promise("south-2", model)
    reached, go_on = asyncio.Event(), asyncio.Event()

    async def hold(*_):
        reached.set()
        await go_on.wait()

    f.handlers["south-2"].on_chunk = hold
    push = asyncio.create_task(f.transports["north"].push("south-2", model, path, 30.0))
    await reached.wait()
    return push, go_on


def test_a_look_shows_the_key_in_use_whatever_the_files_hold_by_now(tmp_path, identities):
    """As after `rotate --finish` where systemd handed the old key over: the certificate is another pair's."""

    async def body():
        async with federation("grpc", tmp_path, identities, names=("north", "south-2")) as f:
            used = f.identities["south-2"]
            folder, other = tmp_path / "files", create_identity("south-2", tmp_path / "other")
            folder.mkdir(mode=0o700)
            key, certificate = folder / "key.pem", folder / "cert.pem"
            key.write_bytes(used.key_pem)
            key.chmod(0o600)
            certificate.write_bytes(used.certificate_pem)
            loaded = Identity.load(key, certificate)
            certificate.write_bytes(other.certificate_pem)
            address = f.endpoints["north"].address
            assert (await asyncio.to_thread(seen_certificate, address, loaded)).accepted
            key.unlink()
            assert (await asyncio.to_thread(seen_certificate, address, loaded)).accepted

    asyncio.run(body())


@pytest.mark.parametrize("change", ["removed", "another key alone"])
def test_a_stream_over_a_connection_put_away_ends_with_its_receivers_place_in_the_list(
    tmp_path, identities, change
):
    """North takes another key while a model goes to south over the old one; then south's entry goes."""

    async def body():
        async with federation("grpc", tmp_path, identities, names=("north", "south-2")) as f:
            north, south = f.transports["north"], f.transports["south-2"]
            push, go_on = await push_held(f)
            new = create_identity("north", tmp_path / "new")
            south.set_peers({"north": with_certificates(f.endpoints["north"], new.certificate_pem,
                                                        identities["north"].certificate_pem)})  # fmt: skip
            north.set_peers(f.endpoints, new)
            assert len(north.retired) == 1 and not push.done()
            peers = {}
            if change != "removed":
                theirs = create_identity("south-2", tmp_path / "theirs")
                peers = {"south-2": with_certificates(f.endpoints["south-2"], theirs.certificate_pem)}
            north.set_peers(peers)
            await until(lambda: all(stream.abandoned for stream in south.streams))
            go_on.set()
            await until(lambda: f.handlers["south-2"].taking == 0)
            push.cancel()
            await asyncio.wait({push})
            assert f.handlers["south-2"].ended == ["cut_off"]

    asyncio.run(body())


def test_a_site_that_stops_does_not_wait_for_connections_it_put_away(tmp_path, identities):
    async def body():
        async with federation("grpc", tmp_path, identities, names=("north", "south-2")) as f:
            north = f.transports["north"]
            push, go_on = await push_held(f)
            north.set_peers(f.endpoints, create_identity("north", tmp_path / "new"))
            async with asyncio.timeout(10):
                await north.close()
            go_on.set()
            with pytest.raises(PeerError):
                await push

    asyncio.run(body())


def test_a_sender_is_not_charged_for_the_time_its_taker_took():
    pace = StreamProgress(PeerLimits(stall_s=10.0, stall_bytes=100, stream_s=1000.0), 0.0)
    pace.came(10, 4.0)
    pace.resumed(4.0, 64.0)  # a disk that was slow for a minute
    assert pace.left_s(64.0) == 6.0
    assert pace.left_s(70.0) == 0.0
    pace = StreamProgress(PeerLimits(stall_s=10.0, stall_bytes=100, stream_s=60.0), 0.0)
    pace.resumed(0.0, 59.0)
    assert pace.left_s(59.0) == 1.0, "the whole stream still has an end"


def test_nothing_is_kept_of_a_removed_sites_calls_and_it_may_come_back(tmp_path, identities):
    async def body():
        async with federation("grpc", tmp_path, identities, names=("north", "south-2")) as f:
            north, south = f.transports["north"], f.transports["south-2"]
            assert await north.request("south-2", PING, 5.0)
            south.set_peers({})
            assert not south.counted
            with pytest.raises(PeerError):
                await north.request("south-2", PING, 5.0)
            assert not south.counted, "who is not listed is not counted"
            f.relist("south-2", ["north"])
            assert await north.request("south-2", PING, 5.0), "on the connection that it has"

    asyncio.run(body())


def test_a_configuration_that_has_not_changed_is_not_given_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """gRPC frees the one that it replaces while other handshakes use it: given anew at every handshake it
    brought the daemon down under a few hundred connections at once (tests/attacks/test_floods.py)."""
    fetchers: list[Callable[[], object]] = []
    make = grpc.dynamic_ssl_server_credentials

    def spy(initial: object, fetcher: Callable[[], object], client: bool) -> object:
        fetchers.append(fetcher)
        return make(initial, fetcher, client)

    monkeypatch.setattr(grpc, "dynamic_ssl_server_credentials", spy)
    north, south = (create_identity(name, tmp_path / name) for name in ("north", "south"))
    listed = [south.certificate_pem]
    server_credentials(lambda: north, lambda: listed)
    (fetch,) = fetchers
    assert fetch() is None and fetch() is None
    listed.clear()
    assert fetch() is not None and fetch() is None
