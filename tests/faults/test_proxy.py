"""A line between two real transports that delays, stands still or flips bits; mTLS on both ends."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from gossipseg.core.messages import Ack, Ping
from gossipseg.errors import PeerUnreachable
from gossipseg.store import hash_file
from gossipseg.wire.addresses import split_address
from tests.wire.harness import INFO, Federation, federation, make_identities

PING = Ping((), INFO)
SIZE = 3_000_000


class Line:
    """Carries TCP to an address, badly if told so."""

    def __init__(self, to: str) -> None:
        self._to = split_address(to)
        self.delay_s = 0.0
        self.flowing = asyncio.Event()
        self.flowing.set()
        self.flip_after: int | None = None
        """Flip one bit once so many bytes have gone towards the server; then None."""
        self.stall_after: int | None = None
        """Stand still once so many bytes have gone towards the server; then None."""
        self.carried = self.connections = 0
        self._tasks: set[asyncio.Task[Any]] = set()

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def close(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        there, back = await asyncio.open_connection(*self._to)
        try:
            await asyncio.gather(self._carry(reader, back, out=True), self._carry(there, writer, out=False))
        except (OSError, asyncio.CancelledError):
            pass  # the line is closed; asyncio would log a cancelled handler as an error
        finally:
            for end in (writer, back):
                end.close()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, out: bool) -> None:
        while data := await reader.read(65536):
            if self.delay_s:
                await asyncio.sleep(self.delay_s)
            if out:
                data = self._spoil(data)
            await self.flowing.wait()
            writer.write(data)
            await writer.drain()
        writer.write_eof()

    def _spoil(self, data: bytes) -> bytes:
        self.carried += len(data)
        if self.stall_after is not None and self.carried > self.stall_after:
            self.stall_after = None
            self.flowing.clear()
        if self.flip_after is not None and self.carried > self.flip_after:
            self.flip_after = None
            middle = len(data) // 2
            return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        return data


@asynccontextmanager
async def lines(folder: Path) -> AsyncIterator[tuple[Federation, Line]]:
    """north calls south-2 over the line."""
    async with federation("grpc", folder, make_identities(folder / "keys")) as f:
        line = Line(f.endpoints["south-2"].address)
        await line.open()
        try:
            through = dataclasses.replace(f.endpoints["south-2"], address=line.address)
            f.transports["north"].set_peers({**f.endpoints, "south-2": through})
            yield f, line
        finally:
            line.flowing.set()
            await line.close()


def run(folder: Path, body: Callable[[Federation, Line], Coroutine[Any, Any, None]]) -> None:
    async def whole() -> None:
        async with lines(folder) as (f, line):
            await body(f, line)

    asyncio.run(whole())


def stored_whole(f: Federation, hash: str) -> bool:
    path = f.handlers["south-2"].store.path(hash)
    return path.exists() and hash_file(path)[0] == hash


def test_a_flipped_bit_never_gets_into_a_model(tmp_path: Path, seen: Callable[[str], None]) -> None:
    async def body(f: Federation, line: Line) -> None:
        model, path = f.model(SIZE)
        f.promise("south-2", model)
        await f.transports["north"].request("south-2", PING, 5.0)
        line.flip_after = line.carried + SIZE // 2
        await f.transports["north"].push("south-2", model, path, 30.0)
        assert line.flip_after is None, "a bit was flipped"
        offsets = f.handlers["south-2"].offsets
        assert len(offsets) == 2 and offsets[1] > 0, "TLS noticed, and it went on where it was"
        assert stored_whole(f, model.hash)
        seen(f"connection ended by TLS, resumed at {offsets[1] / SIZE:.0%}, model whole")

    run(tmp_path, body)


def test_a_line_that_stands_still_costs_a_request_its_time_and_a_transfer_nothing(
    tmp_path: Path, seen: Callable[[str], None]
) -> None:
    async def body(f: Federation, line: Line) -> None:
        north = f.transports["north"]
        model, path = f.model(SIZE)
        f.promise("south-2", model)
        await north.request("south-2", PING, 5.0)
        line.stall_after = line.carried + SIZE // 2
        push = asyncio.create_task(north.push("south-2", model, path, 30.0))
        while line.flowing.is_set():  # noqa: ASYNC110
            await asyncio.sleep(0)
        loop = asyncio.get_running_loop()
        begin = loop.time()
        with pytest.raises(PeerUnreachable) as e:
            await north.request("south-2", PING, 0.5)
        took_s = loop.time() - begin
        assert e.value.reason == "timeout" and took_s < 1.5
        assert not push.done()
        line.flowing.set()
        await push
        assert stored_whole(f, model.hash) and f.handlers["south-2"].offsets == [0]
        assert await north.request("south-2", PING, 5.0) == Ack((), INFO)
        seen(f"request failed with `timeout` after {took_s:.1f} s of 0.5; transfer went on by itself")

    run(tmp_path, body)


def test_a_long_way_makes_all_slower_and_breaks_nothing(tmp_path: Path, seen: Callable[[str], None]) -> None:
    async def body(f: Federation, line: Line) -> None:
        north = f.transports["north"]
        line.delay_s = 0.15
        model, path = f.model(SIZE // 3)
        f.promise("south-2", model)
        loop = asyncio.get_running_loop()
        await north.request("south-2", PING, 10.0)
        begin = loop.time()
        push = asyncio.create_task(north.push("south-2", model, path, 30.0))
        assert await north.request("south-2", PING, 10.0) == Ack((), INFO)
        answered_s = loop.time() - begin
        await push
        assert stored_whole(f, model.hash) and answered_s >= 2 * line.delay_s
        seen(f"0.15 s each way: ping beside a transfer {answered_s:.2f} s, model whole")

    run(tmp_path, body)
