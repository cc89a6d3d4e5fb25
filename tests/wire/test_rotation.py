"""A site takes another key, and a list loses a site, while models are on their way: over real gRPC."""

from __future__ import annotations

import asyncio

import pytest

from gossipseg.core.messages import Ping
from gossipseg.errors import PeerUntrusted
from gossipseg.trust import create_identity
from gossipseg.wire.probe import seen_certificate
from tests.wire.harness import INFO, federation, until, with_certificates

PING = Ping((), INFO)
SIZE = 4 << 20


class Gate:
    """Holds the receiving side after its first chunk, until it is let go."""

    def __init__(self) -> None:
        self.reached, self.open = asyncio.Event(), asyncio.Event()

    async def __call__(self, peer: str, offset: int) -> None:
        self.reached.set()
        await self.open.wait()


def test_a_key_is_replaced_under_a_transfer_in_either_direction(tmp_path, identities):
    """Overlap, new key in use, old one off the list: nothing is refused, and no byte is sent twice."""

    async def body():
        async with federation("grpc", tmp_path, identities, names=("north", "south-2")) as f:
            old, new = identities["north"], create_identity("north", tmp_path / "new")
            north, south = f.transports["north"], f.transports["south-2"]
            gates = {name: Gate() for name in f.handlers}
            models = {}
            for name, handler in f.handlers.items():
                handler.on_chunk = gates[name]
                other = "south-2" if name == "north" else "north"
                models[other] = f.model(SIZE, seed=len(name))
                f.promise(name, models[other][0])
            pushes = [
                asyncio.create_task(north.push("south-2", *models["north"], 30.0)),
                asyncio.create_task(south.push("north", *models["south-2"], 30.0)),
            ]
            await asyncio.gather(*(gate.reached.wait() for gate in gates.values()))

            both = with_certificates(f.endpoints["north"], old.certificate_pem, new.certificate_pem)
            south.set_peers({"north": both})
            north.set_peers(f.endpoints, new)
            for _ in range(3):
                assert await north.request("south-2", PING, 5.0) and await south.request("north", PING, 5.0)
            assert f.handlers["south-2"].requests[-1][0] == "north"
            seen = await asyncio.to_thread(seen_certificate, north.address)
            assert seen.id == new.site_id, "new connections are shown the new key"
            for gate in gates.values():
                gate.open.set()
            await asyncio.gather(*pushes)
            assert all(h.ended == ["ok"] and h.offsets == [0] for h in f.handlers.values())

            south.set_peers({"north": with_certificates(both, new.certificate_pem)})
            assert await north.request("south-2", PING, 5.0) and await south.request("north", PING, 5.0)
            left = f.rebuilt("north")  # the old key, from now on, is a stranger's
            with pytest.raises(PeerUntrusted):
                await left.request("south-2", PING, 5.0)

    asyncio.run(body())


def test_connections_of_the_old_key_are_put_away_when_their_calls_have_ended(tmp_path, identities):
    async def body():
        async with federation("grpc", tmp_path, identities, names=("north", "south-2")) as f:
            north = f.transports["north"]
            for i in range(4):
                new = create_identity("north", tmp_path / f"new{i}")
                known = f.endpoints["north"].certificates[-1]
                f.endpoints["north"] = with_certificates(f.endpoints["north"], known, new.certificate_pem)
                f.relist("south-2", ["north"])
                north.set_peers(f.endpoints, new)
                assert await north.request("south-2", PING, 5.0)
            await until(lambda: all(link.idle for link in north.retired))
            assert len(north.retired) <= 2

    asyncio.run(body())


@pytest.mark.parametrize("removed_by", ["the receiver", "the sender"])
def test_a_removed_sites_stream_is_broken_off_although_nothing_more_of_it_comes(
    tmp_path, identities, removed_by, monkeypatch
):
    async def body():
        async with federation("grpc", tmp_path, identities, names=("north", "south-2")) as f:
            north, south = f.transports["north"], f.transports["south-2"]
            model, path = f.model(SIZE)
            f.promise("south-2", model)
            held, go_on, arrived = asyncio.Event(), asyncio.Event(), asyncio.Event()

            async def came(*_):
                arrived.set()

            f.handlers["south-2"].on_chunk = came

            async def stalling(*_):
                yield path.read_bytes()[: 64 << 10]
                held.set()
                await go_on.wait()
                yield path.read_bytes()[64 << 10 :]

            monkeypatch.setattr("gossipseg.wire.grpc_transport.file_chunks", stalling)
            push = asyncio.create_task(north.push("south-2", model, path, 30.0))
            await held.wait()
            await arrived.wait()
            await until(lambda: all(stream.waits for stream in south.streams))
            begun = asyncio.get_running_loop().time()
            (south if removed_by == "the receiver" else north).set_peers({})
            await until(lambda: f.handlers["south-2"].taking == 0)
            assert asyncio.get_running_loop().time() - begun < 15.0  # of 30
            assert f.handlers["south-2"].ended == ["removed" if removed_by == "the receiver" else "cut_off"]
            go_on.set()
            with pytest.raises(PeerUntrusted):
                await push

    asyncio.run(body())
