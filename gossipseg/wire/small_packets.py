"""A way to an address on which all packets are small: proof that size stops the larger ones."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

from gossipseg.wire.addresses import split_address

SMALL_SEGMENT = 500
"""Bytes in a packet that every path lets through."""


@contextlib.asynccontextmanager
async def small_packets(address: str) -> AsyncIterator[str]:
    """An address on this machine; its connections continue to `address` in small packets."""
    tasks: set[asyncio.Task[None]] = set()
    writers: list[asyncio.StreamWriter] = []

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(16 << 10):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        try:
            there, back = await _dialled(address)
        except OSError:
            writer.close()
            return
        writers.append(back)
        for source, sink in ((reader, back), (there, writer)):
            task = asyncio.create_task(carry(source, sink))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for writer in writers:
            writer.close()
        await asyncio.gather(*(writer.wait_closed() for writer in writers), return_exceptions=True)


async def _dialled(address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, port = split_address(address)
    loop, error = asyncio.get_running_loop(), OSError("no address")
    for family, kind, protocol, _, where in await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        plain = socket.socket(family, kind, protocol)
        plain.setblocking(False)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, SMALL_SEGMENT)
        try:
            await loop.sock_connect(plain, where)
        except OSError as e:
            plain.close()
            error = e
        except asyncio.CancelledError:
            plain.close()
            raise
        else:
            return await asyncio.open_connection(sock=plain)
    raise error
