"""Two or more real transports with a real store behind each, over memory or over gRPC with mTLS.

What belongs here: what the wire's tests share. Nothing here stands in for a part of the product.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from blake3 import blake3

from gossipseg.core.messages import Ack, IndirectAck, OfferReply, Reply, Request, SyncReply
from gossipseg.core.types import ModelRef, PeerInfo, Phase
from gossipseg.errors import PeerRefused
from gossipseg.store import BrokenModel, IncompleteModel, ModelStore
from gossipseg.trust import Identity, create_identity
from gossipseg.wire.grpc_transport import GrpcTransport
from gossipseg.wire.memory import MemoryNetwork, MemoryTransport
from gossipseg.wire.transport import PeerEndpoint

INFO = PeerInfo(round=3, steps=400, cases=17, phase=Phase.TRAINING, contract="c0ffee")
DEADLINE_S = 30.0
SITES = ("chase_db1", "north", "south-2")


class StoreHandler:
    """A daemon's side of the wire, reduced to the store: takes promised models, answers from a table."""

    def __init__(self, store: ModelStore) -> None:
        self.store = store
        self.promised: dict[str, ModelRef] = {}
        self.requests: list[tuple[str, Request]] = []
        self.answers: Callable[[str, Request], Awaitable[Reply]] | None = None
        self.offsets: list[int] = []
        self.taking = self.most_at_once = 0
        self.on_chunk: Callable[[str, int], Awaitable[None]] | None = None
        self.to_disk: Callable[..., Awaitable[Any]] = asyncio.to_thread
        self.ended: list[str] = []
        """How each stream ended: ok, or the reason."""

    async def on_request(self, peer: str, body: Request) -> Reply:
        self.requests.append((peer, body))
        if self.answers is not None:
            return await self.answers(peer, body)
        return Ack((), INFO)

    async def push_offset(self, peer: str, model: ModelRef) -> int:
        self._require(peer, model)
        with self.store.partial(model.hash, peer, size_bytes=model.size_bytes) as partial:
            return partial.offset

    async def on_push(self, peer: str, model: ModelRef, offset: int, chunks: AsyncIterator[bytes]) -> None:
        self._require(peer, model)
        self.offsets.append(offset)
        self.taking += 1
        self.most_at_once = max(self.most_at_once, self.taking)
        try:
            await self._take(peer, model, offset, chunks)
            self.ended.append("ok")
        except PeerRefused as e:
            self.ended.append(e.reason)
            raise
        except BaseException as e:
            self.ended.append(getattr(e, "reason", type(e).__name__))
            raise
        finally:
            self.taking -= 1

    async def _take(self, peer: str, model: ModelRef, offset: int, chunks: AsyncIterator[bytes]) -> None:
        with self.store.partial(model.hash, peer, size_bytes=model.size_bytes) as partial:
            if partial.offset != offset:
                raise PeerRefused(peer, "wrong_offset")
            try:
                async for chunk in chunks:
                    await self.to_disk(partial.write, chunk)
                    if self.on_chunk is not None:
                        await self.on_chunk(peer, partial.offset)
                await self.to_disk(partial.finish, model.hash, model.size_bytes)
            except (IncompleteModel, BrokenModel) as e:
                raise PeerRefused(peer, e.reason, str(e)) from None

    def _require(self, peer: str, model: ModelRef) -> None:
        if self.promised.get(model.hash) != model:
            raise PeerRefused(peer, "not_offered", "nobody promised to take this model")


@dataclass
class Federation:
    """Running transports by site name."""

    kind: str
    transports: dict[str, Any]
    handlers: dict[str, StoreHandler]
    endpoints: dict[str, PeerEndpoint]
    identities: dict[str, Identity]
    network: MemoryNetwork | None
    folder: Path
    make: Callable[[str, str], Any]
    made: list[Any] = field(default_factory=list)

    def rebuilt(self, site: str) -> Any:
        """Another transport of the same site at the same address, not started."""
        transport = self.make(site, self.transports[site].address)
        transport.set_peers(self.endpoints)
        self.made.append(transport)
        return transport

    def relist(self, site: str, names: Iterable[str]) -> None:
        """From now on `site` lists only these others."""
        self.transports[site].set_peers({n: self.endpoints[n] for n in names})

    def model(self, size_bytes: int, *, seed: int = 1) -> tuple[ModelRef, Path]:
        """A file of random bytes, as a model."""
        data = blake3(seed.to_bytes(8, "big")).digest(length=size_bytes)
        path = self.folder / f"outgoing-{seed}-{size_bytes}"
        path.write_bytes(data)
        return ModelRef(blake3(data).hexdigest(), size_bytes, 3, 400, 17, 0.71), path

    def promise(self, site: str, model: ModelRef) -> None:
        self.handlers[site].promised[model.hash] = model


def make_identities(folder: Path, names: Iterable[str] = SITES) -> dict[str, Identity]:
    return {name: create_identity(name, folder / name) for name in names}


@asynccontextmanager
async def federation(
    kind: str,
    folder: Path,
    identities: dict[str, Identity],
    *,
    names: tuple[str, ...] = SITES,
    max_parallel_transfers: int = 2,
    chunk_bytes: int = 64 << 10,
    network: MemoryNetwork | None = None,
) -> AsyncIterator[Federation]:
    """Every site lists every other, and is listening. `kind`: memory or grpc."""
    network = network or MemoryNetwork(seed=7)

    def make(name: str, listen: str) -> Any:
        common = {"max_parallel_transfers": max_parallel_transfers, "chunk_bytes": chunk_bytes}
        own = identities[name]
        if kind == "grpc":
            return GrpcTransport(name, listen=listen, identity=own, peers={}, reconnect_max_s=0.05, **common)
        shown = own.certificate_pem
        return MemoryTransport(network, name, listen=listen, certificate=shown, peers={}, **common)

    transports = {n: make(n, "127.0.0.1:0" if kind == "grpc" else f"{n}:1") for n in names}
    handlers = {name: StoreHandler(ModelStore(folder / name / "models")) for name in names}
    for name, transport in transports.items():
        await transport.start(handlers[name])
    endpoints = {
        name: PeerEndpoint(name, transport.address, (identities[name].certificate_pem,))
        for name, transport in transports.items()
    }
    for transport in transports.values():
        transport.set_peers(endpoints)
    try:
        async with asyncio.timeout(DEADLINE_S):
            f = Federation(kind, transports, handlers, endpoints, identities, network, folder, make)
            yield f
    finally:
        for transport in (*transports.values(), *f.made):
            await transport.close()


def with_certificates(endpoint: PeerEndpoint, *certificates: bytes) -> PeerEndpoint:
    return replace(endpoint, certificates=certificates)


async def until(condition: Callable[[], bool]) -> None:
    """Give way to other tasks until the condition holds; the federation's deadline bounds it."""
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0)


def answer_of_each_kind(peer: str, body: Request) -> Reply:
    """A fitting reply to any request but Hello."""
    match type(body).__name__:
        case "Ping":
            return Ack((), INFO)
        case "IndirectPing":
            return IndirectAck(body.target, True, ())  # type: ignore[union-attr]
        case "Sync":
            return SyncReply((), INFO)
    return OfferReply("busy", "busy")


def file_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208
