"""A network in one process, with delay, loss, partition and duplication from a seed.

Messages pass through the codec, so that their form is tested as over gRPC.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable, Mapping
from pathlib import Path
from typing import Any

from gossipseg.core.messages import Reply, Request
from gossipseg.core.types import ModelRef, Site
from gossipseg.errors import (
    DiskFull,
    LocalError,
    PeerError,
    PeerRefused,
    PeerUnreachable,
    PeerUntrusted,
)
from gossipseg.wire.codec import messages as codec
from gossipseg.wire.outgoing import STALLED_TRIES, open_model
from gossipseg.wire.params import CHUNK_BYTES
from gossipseg.wire.reached import Reached
from gossipseg.wire.transport import Handler, PeerEndpoint, Traffic

_WINDING_UP_S = 5.0
Sleep = Callable[[float], Awaitable[Any]]
Ask = Callable[["MemoryTransport"], Coroutine[Any, Any, bytes]]


class MemoryNetwork:
    """The network between the sites. All random draws come from one seed, in the order of the calls."""

    def __init__(
        self,
        seed: int = 0,
        *,
        delay_s: tuple[float, float] = (0.0, 0.0),
        loss: float = 0.0,
        duplication: float = 0.0,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        """`delay_s`: shortest and longest delay of a message or chunk. `loss` and `duplication`: 0..1
        each."""
        self.delay_s, self.loss, self.duplication, self.sleep = delay_s, loss, duplication, sleep
        self._rng = random.Random(seed)
        self._listening: dict[str, MemoryTransport] = {}
        self._sides: dict[str, int] = {}

    def partition(self, *sides: Iterable[str]) -> None:
        """Let only addresses on the same side reach each other; the unnamed ones form one more side."""
        self._sides = {address: i for i, side in enumerate(sides) for address in side}

    def heal(self) -> None:
        """Remove the partition."""
        self._sides = {}

    def listen(self, address: str, transport: MemoryTransport) -> None:
        """Register a listener. Raises LocalError when the address is taken."""
        if address in self._listening:
            raise LocalError(f"{address}: this site cannot listen there: Address already in use.")
        self._listening[address] = transport

    def leave(self, address: str, transport: MemoryTransport) -> None:
        if self._listening.get(address) is transport:
            del self._listening[address]

    def at(self, address: str) -> MemoryTransport | None:
        """The listener at an address; None: the connection is refused."""
        return self._listening.get(address)

    def connected(self, a: str, b: str) -> bool:
        return self._sides.get(a, -1) == self._sides.get(b, -1)

    async def carries(self, a: str, b: str) -> bool:
        """Wait for one message's delay; False: the message was lost."""
        shortest, longest = self.delay_s
        delay_s = self._rng.uniform(shortest, longest)
        lost = self._rng.random() < self.loss
        if delay_s > 0:
            await self.sleep(delay_s)
        return not lost and self.connected(a, b)

    def duplicates(self) -> bool:
        return self._rng.random() < self.duplication


class MemoryTransport:
    """transport.Transport over a MemoryNetwork. `certificate` stands for the key it would show."""

    def __init__(
        self,
        network: MemoryNetwork,
        site: Site,
        *,
        listen: str,
        peers: Mapping[Site, PeerEndpoint],
        certificate: bytes = b"",
        max_parallel_transfers: int = 2,
        chunk_bytes: int = CHUNK_BYTES,
    ) -> None:
        self.site, self.certificate = site, certificate
        self._address = listen
        self._network, self._chunk_bytes = network, min(chunk_bytes, CHUNK_BYTES)
        self._sending = asyncio.Semaphore(max_parallel_transfers)
        self._taking = asyncio.Semaphore(max_parallel_transfers)
        self._handler: Handler | None = None
        self._peers: dict[Site, PeerEndpoint] = {}
        self._hints: dict[Site, list[str]] = {}
        self._traffic: dict[Site, Traffic] = {}
        self._streams: dict[tuple[Site, str], _Stream] = {}
        self._work: set[asyncio.Task[Any]] = set()
        self.set_peers(peers)

    # ------------------------------------------------------------ the Transport

    @property
    def address(self) -> str:
        """Where this transport listens."""
        return self._address

    async def reach(self, site: Site) -> Reached:
        """The state of the network on the way to the site's listed address."""
        endpoint = self._peers.get(site)
        if endpoint is None or not endpoint.address:
            return Reached("no_address")
        there = self._network.at(endpoint.address)
        if there is None:
            return Reached("refused", endpoint.address, "Connection refused")
        if not _shows(there, endpoint):
            return Reached("untrusted", endpoint.address, "it shows another certificate")
        connected = self._network.connected(self.site, there.site)
        return Reached("ok" if connected else "timeout", endpoint.address)

    async def ask_reach(self, site: Site) -> Reached:
        """The result of the site's own check of this one."""
        try:
            there = self._find(site)
        except PeerError as e:
            return Reached("not_asked", "", e.detail)
        return await there.reach(self.site)

    async def start(self, handler: Handler) -> None:
        """Listen. Raises LocalError when the address is taken."""
        self._network.listen(self.address, self)
        self._handler = handler

    async def request(self, to: Site, body: Request, timeout_s: float) -> Reply:
        """One request, one reply. Raises PeerUnreachable, PeerUntrusted or PeerRefused."""
        rpc, data = codec.kind_of(body).rpc, codec.encode_request(body)
        answer = await self._call(to, timeout_s, lambda there: there.answer(self, rpc, data), data)
        return codec.decode_reply(body, answer, to)

    async def push(
        self,
        to: Site,
        model: ModelRef,
        path: Path,
        timeout_s: float,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        """Stream the file to the peer, resuming an interrupted try as long as each makes progress.

        Raises PeerUnreachable, PeerUntrusted, PeerRefused; LocalError when the file cannot be read.
        """
        work = self._spawn(self._pushed(to, model, path, progress))
        await self._within(to, work, timeout_s)

    def set_peers(self, peers: Mapping[Site, PeerEndpoint]) -> None:
        """The listed sites now (this one's own entry is ignored)."""
        self._peers = {site: endpoint for site, endpoint in peers.items() if site != self.site}
        self._hints = {site: hints for site, hints in self._hints.items() if site in self._peers}

    def hint_address(self, site: Site, address: str) -> None:
        """Add an address to try beside the listed one."""
        if site in self._peers and address not in self._hints.setdefault(site, []):
            self._hints[site] = [*self._hints[site], address][-3:]

    def clock_ahead_s(self, site: Site, now_s: float) -> float | None:
        """None: in memory no site sends its clock."""
        return None

    def traffic(self, site: Site) -> Traffic:
        """Bytes exchanged with a site so far."""
        return self._traffic.setdefault(site, Traffic())

    async def close(self) -> None:
        """Stop listening, end open streams and calls."""
        self._network.leave(self.address, self)
        self._handler = None
        for stream in list(self._streams.values()):
            stream.error = stream.error or PeerUnreachable(stream.site, "cut_off", "this site is closing")
        taking = [stream.task for stream in self._streams.values() if stream.task is not None]
        for task in self._work:
            task.cancel()
        await asyncio.gather(*self._work, return_exceptions=True)
        if taking:  # handlers are not cancelled, but may put away what came
            await asyncio.wait(taking, timeout=_WINDING_UP_S)

    # ------------------------------------------------------------ calling

    async def _call(self, to: Site, timeout_s: float, ask: Ask, data: bytes) -> bytes:
        there = self._find(to)
        self.traffic(to).bytes_out += len(data)
        answer = await self._within(to, self._spawn(self._exchange(there, ask, timeout_s)), timeout_s)
        self.traffic(to).bytes_in += len(answer)
        return bytes(answer)

    async def _exchange(self, there: MemoryTransport, ask: Ask, timeout_s: float) -> bytes:
        if not await self._network.carries(self.address, there.address):
            await self._network.sleep(timeout_s + 1)  # no answer ever comes
        if self._network.duplicates():
            there._spawn(_ignored(ask(there)))
        answer = await ask(there)
        if not await self._network.carries(there.address, self.address):
            await self._network.sleep(timeout_s + 1)
        return answer

    def _find(self, to: Site) -> MemoryTransport:
        """The transport that answers for a site: at the listed address, else at a hinted one. Raises
        PeerError."""
        endpoint = self._peers.get(to)
        if endpoint is None:
            raise PeerUntrusted(to, "not_listed", "no such site in peers.yaml")
        first: PeerError | None = None
        for address in (endpoint.address, *self._hints.get(to, ())):
            there = self._network.at(address)
            error: PeerError
            if there is None:
                error = PeerUnreachable(to, "unreachable", f"{address}: Connection refused")
            elif not _shows(there, endpoint):
                error = PeerUntrusted(to, "untrusted", f"{address} shows another certificate")
            else:
                return there
            first = first or error
        assert first is not None
        raise first

    async def _within(self, to: Site, work: asyncio.Task[Any], timeout_s: float) -> Any:
        """The outcome of `work`, unless the network's time limit for it ends first."""
        timer = self._spawn(_slept(self._network.sleep, timeout_s))
        try:
            await asyncio.wait({work, timer}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            timer.cancel()
            if not work.done():
                work.cancel()
        if not work.done():
            raise PeerUnreachable(to, "timeout", "no answer in time")
        if work.cancelled():
            raise PeerUnreachable(to, "unreachable", "this site is closing")
        return work.result()

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work)
        self._work.add(task)
        task.add_done_callback(self._work.discard)
        return task

    # ------------------------------------------------------------ answering

    def _listed(self, caller: MemoryTransport) -> bool:
        endpoint = self._peers.get(caller.site)
        return endpoint is not None and _shows(caller, endpoint)

    def _admit(self, caller: MemoryTransport) -> Handler:
        if not self._listed(caller):
            raise PeerUntrusted(self.site, "untrusted", f"{self.site} does not list {caller.site}")
        if self._handler is None:
            raise PeerUnreachable(self.site, "unreachable", "closed")
        return self._handler

    async def answer(self, caller: MemoryTransport, rpc: str, data: bytes) -> bytes:
        """Handle a request that has arrived."""
        handler, site = self._admit(caller), caller.site
        self.traffic(site).bytes_in += len(data)
        reply = await _as_told(self.site, _replied(handler, site, rpc, data))
        self.traffic(site).bytes_out += len(reply)
        return bytes(reply)

    async def answer_offset(self, caller: MemoryTransport, data: bytes) -> bytes:
        """The offset at which the caller shall continue a model."""
        handler, site = self._admit(caller), caller.site
        model = codec.decode_offset_request(data, site)
        earlier = self._streams.get((site, model.hash))
        if earlier is not None:
            await earlier.end(PeerUnreachable(site, "cut_off", "a newer stream of this model has begun"))
        return codec.encode_offset(await _as_told(self.site, handler.push_offset(site, model)))

    # ------------------------------------------------------------ models

    async def _pushed(
        self, to: Site, model: ModelRef, path: Path, progress: Callable[[int], None] | None
    ) -> None:
        ask, reached, stalled = codec.encode_offset_request(model), -1, 0
        broken: PeerUnreachable | None = None
        async with self._sending:
            while True:
                there = self._find(to)
                offset = codec.decode_offset(await there.answer_offset(self, ask), to, model)
                stalled = stalled + 1 if offset <= reached else 0
                if broken is not None and stalled >= STALLED_TRIES:
                    raise broken
                try:
                    return await self._streamed(there, model, path, offset, progress)
                except PeerUnreachable as e:
                    reached, broken = offset, e

    async def _streamed(
        self,
        there: MemoryTransport,
        model: ModelRef,
        path: Path,
        offset: int,
        progress: Callable[[int], None] | None,
    ) -> None:
        handler = there._admit(self)
        async with there._taking:
            stream = _Stream(self, there, progress)
            chunks = stream.chunks(open_model(path, model.size_bytes), offset)
            work = handler.on_push(self.site, model, offset, chunks)
            stream.task = asyncio.get_running_loop().create_task(_awaited(work))
            key = (self.site, model.hash)
            there._streams[key] = stream
            stream.task.add_done_callback(lambda _: there._forget(key, stream))
            try:
                await asyncio.wait({stream.task})
            finally:
                if not stream.task.done():  # the handler is not cancelled: its next chunk is an error
                    stream.error = PeerUnreachable(self.site, "cut_off", "the stream was cut off")
            if isinstance(stream.error, PeerUntrusted):
                raise PeerUntrusted(there.site, "untrusted", f"{there.site} does not list {self.site}")
            if stream.error is not None:
                raise PeerUnreachable(there.site, "unreachable", stream.error.detail)
            await _as_told(there.site, stream.task)

    def _forget(self, key: tuple[Site, str], stream: _Stream) -> None:
        if self._streams.get(key) is stream:
            del self._streams[key]
        if stream.task is not None and not stream.task.cancelled():
            stream.task.exception()  # whoever still waits for it gets the error; otherwise it is dropped


class _Stream:
    """One model in transfer from one transport to another."""

    def __init__(
        self,
        sender: MemoryTransport,
        receiver: MemoryTransport,
        progress: Callable[[int], None] | None,
    ) -> None:
        self.site = sender.site
        self._sender, self._receiver, self._progress = sender, receiver, progress
        self.error: PeerError | None = None
        self.task: asyncio.Task[Any] | None = None

    async def chunks(self, fd: int, offset: int) -> AsyncGenerator[bytes, None]:
        """The chunks that the receiving handler reads. The handler pulls them, so that none pile up."""
        network, size = self._sender._network, self._sender._chunk_bytes
        with os.fdopen(fd, "rb") as f:
            f.seek(offset)
            while data := f.read(size):
                if not await network.carries(self._sender.address, self._receiver.address):
                    self.error = self.error or PeerUnreachable(self.site, "cut_off", "the connection broke")
                if not self._receiver._listed(self._sender):
                    self.error = PeerUntrusted(self.site, "removed", "no longer listed")
                if self.error is not None:
                    raise self.error
                self._sender.traffic(self._receiver.site).bytes_out += len(data)
                self._receiver.traffic(self.site).bytes_in += len(data)
                yield data
                if self._progress is not None:
                    self._progress(f.tell())

    async def end(self, error: PeerError) -> None:
        """Let the chunks end with this error, and wait for the handler to store what was received."""
        self.error = self.error or error
        if self.task is not None:
            await asyncio.wait({self.task})


def _shows(transport: MemoryTransport, endpoint: PeerEndpoint) -> bool:
    if endpoint.certificates:
        return transport.certificate in endpoint.certificates
    return transport.site == endpoint.site


async def _replied(handler: Handler, site: Site, rpc: str, data: bytes) -> bytes:
    return codec.encode_reply(await handler.on_request(site, codec.decode_request(rpc, data, site)))


async def _slept(sleep: Sleep, seconds: float) -> None:
    await sleep(seconds)


async def _awaited(work: Awaitable[None]) -> None:
    await work


async def _ignored(work: Awaitable[bytes]) -> None:
    """Deliver a duplicated message once more: its answer goes nowhere."""
    try:
        await work
    except PeerError:
        return


async def _as_told(site: Site, work: Awaitable[Any]) -> Any:
    """What the caller learns when the handler raises: a refusal by `site` with a reason, as over gRPC."""
    try:
        return await work
    except PeerUntrusted:
        raise
    except PeerError as e:
        raise PeerRefused(site, e.reason, e.detail) from None
    except DiskFull:
        raise PeerRefused(site, "disk_full", "") from None
    except asyncio.CancelledError:
        raise
    except Exception as e:
        raise PeerRefused(site, "internal", type(e).__name__) from e
