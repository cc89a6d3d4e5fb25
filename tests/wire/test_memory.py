"""The network in one process: its mishaps come from the seed, its time from the clock it is given."""

from __future__ import annotations

import asyncio
import heapq

import pytest

from gossipseg.core.messages import Ack, Ping
from gossipseg.errors import PeerError, PeerUnreachable
from gossipseg.wire.memory import MemoryNetwork
from tests.wire.harness import INFO, federation

PING = Ping((), INFO)


class VirtualClock:
    """Time that passes only when everybody waits for it."""

    def __init__(self) -> None:
        self.now, self._waiting, self._order = 0.0, [], 0

    async def sleep(self, seconds: float) -> None:
        future = asyncio.get_running_loop().create_future()
        self._order += 1
        heapq.heappush(self._waiting, (self.now + seconds, self._order, future))
        await future

    async def run(self, work):
        task = asyncio.ensure_future(work)
        while not task.done():
            for _ in range(50):  # let everything happen that can happen now
                await asyncio.sleep(0)
            while not task.done() and self._waiting:
                self.now, _, future = heapq.heappop(self._waiting)
                if not future.done():
                    future.set_result(None)
                    break
        return await task


def network(seed: int = 1, **mishaps):
    clock = VirtualClock()
    return clock, MemoryNetwork(seed, sleep=clock.sleep, **mishaps)


async def at_once(function, *arguments):
    return function(*arguments)


async def outcome(work):
    try:
        return type(await work).__name__
    except PeerError as e:
        return e.reason


def run_among(tmp_path, identities, clock, net, body, **settings):
    async def main():
        async with federation("memory", tmp_path, identities, network=net, **settings) as f:
            for handler in f.handlers.values():
                handler.to_disk = at_once  # virtual time does not wait for threads
            return await clock.run(body(f))

    return asyncio.run(main())


def test_a_message_takes_its_time_there_and_back(tmp_path, identities):
    clock, net = network(delay_s=(0.25, 0.25))

    async def body(f):
        assert await f.transports["north"].request("south-2", PING, 3.0) == Ack((), INFO)
        return clock.now

    assert run_among(tmp_path, identities, clock, net, body) == 0.5


def test_a_lost_message_is_a_timeout_after_exactly_that_time(tmp_path, identities):
    clock, net = network(loss=1.0)

    async def body(f):
        with pytest.raises(PeerUnreachable, match="timeout"):
            await f.transports["north"].request("south-2", PING, 3.0)
        return clock.now

    assert run_among(tmp_path, identities, clock, net, body) == 3.0


def test_the_same_seed_loses_the_same_messages(tmp_path, identities):
    def once(seed, folder):
        clock, net = network(seed, loss=0.3, delay_s=(0.01, 0.2))

        async def body(f):
            a = f.transports["chase_db1"]
            return [await outcome(a.request("north", PING, 1.0)) for _ in range(30)] + [clock.now]

        return run_among(tmp_path / folder, identities, clock, net, body)

    first = once(5, "a")
    assert first == once(5, "b")
    assert first != once(6, "c")
    assert {"Ack", "timeout"} == set(first[:-1])


def test_a_duplicated_message_is_delivered_twice_and_answered_once(tmp_path, identities):
    clock, net = network(duplication=1.0)

    async def body(f):
        assert await f.transports["north"].request("south-2", PING, 1.0) == Ack((), INFO)
        return len(f.handlers["south-2"].requests)

    assert run_among(tmp_path, identities, clock, net, body) == 2


def test_a_partition_separates_the_sides_until_it_heals(tmp_path, identities):
    clock, net = network()

    async def body(f):
        a, north, south = f.transports["chase_db1"], f.transports["north"], f.transports["south-2"]
        net.partition([a.address, north.address], [south.address])
        seen = [
            await outcome(a.request("north", PING, 1.0)),
            await outcome(a.request("south-2", PING, 1.0)),
            await outcome(south.request("north", PING, 1.0)),
        ]
        net.heal()
        return [*seen, await outcome(a.request("south-2", PING, 1.0))]

    assert run_among(tmp_path, identities, clock, net, body) == ["Ack", "timeout", "timeout", "Ack"]


def test_a_stream_over_a_bad_line_is_taken_up_again_and_arrives(tmp_path, identities):
    clock, net = network(seed=3, loss=0.05, delay_s=(0.001, 0.002))

    async def body(f):
        model, path = f.model(1 << 20)
        f.promise("south-2", model)
        await f.transports["north"].push("south-2", model, path, 1000.0)
        assert f.handlers["south-2"].store.path(model.hash).read_bytes() == path.read_bytes()
        return f.handlers["south-2"].offsets

    offsets = run_among(tmp_path, identities, clock, net, body, chunk_bytes=16 << 10)
    assert len(offsets) > 1 and offsets == sorted(offsets)


def test_a_stream_into_a_partition_gets_nowhere_and_says_so(tmp_path, identities):
    clock, net = network()

    async def body(f):
        model, path = f.model(1 << 20)
        f.promise("south-2", model)
        handler = f.handlers["south-2"]

        async def part(peer, offset):
            if offset == 512 << 10:
                net.partition([f.transports["north"].address])

        handler.on_chunk = part
        with pytest.raises(PeerUnreachable, match="connection broke"):
            await f.transports["north"].push("south-2", model, path, 1000.0)
        assert not handler.store.has(model.hash)
        net.heal()
        handler.on_chunk = None
        await f.transports["north"].push("south-2", model, path, 1000.0)
        return handler.offsets

    assert run_among(tmp_path, identities, clock, net, body) == [0] + [512 << 10] * 4
