"""The wire between sites: gRPC over mutually authenticated TLS, with certificates pinned per site."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

from grpc import aio

from gossipseg.core.messages import Reply, Request
from gossipseg.core.types import ModelRef, Site
from gossipseg.errors import ConfigError, PeerError, PeerRefused, PeerUnreachable, PeerUntrusted
from gossipseg.trust import Identity, TrustList
from gossipseg.wire.addresses import grpc_target, is_loopback, join_address, split_address
from gossipseg.wire.codec import messages as codec
from gossipseg.wire.grpc_link import Explain, PeerChannel, background_done, closing_is_unreachable
from gossipseg.wire.grpc_options import server_credentials, server_options
from gossipseg.wire.grpc_reach import ReachTimes, look
from gossipseg.wire.grpc_server import InboundStream, PeerServicer
from gossipseg.wire.limits import PeerLimits
from gossipseg.wire.listening import require_name, why_not
from gossipseg.wire.outgoing import STALLED_TRIES, file_chunks
from gossipseg.wire.pacing import Throttle
from gossipseg.wire.params import CHUNK_BYTES
from gossipseg.wire.reached import Reached, decode_reached
from gossipseg.wire.transport import Handler, PeerEndpoint, Traffic

UNKNOWN_RPC = "unimplemented"
"""Reason of a refusal by a peer of an older version."""
RESUME_WAIT_S = 30.0
"""Seconds allowed for the peer of a broken stream to come back before the transfer is given up."""
RETIRING_S = 3600.0
"""Seconds allowed for a call under way on a connection whose key or certificate was replaced."""


class GrpcTransport:
    """transport.Transport over gRPC. Made, started, used and closed in one event loop."""

    def __init__(
        self,
        site: Site,
        *,
        listen: str,
        identity: Identity | None,
        peers: Mapping[Site, PeerEndpoint],
        insecure: bool = False,
        max_parallel_transfers: int = 2,
        reconnect_max_s: float = 5.0,
        chunk_bytes: int = CHUNK_BYTES,
        limits: PeerLimits | None = None,
    ) -> None:
        """`listen` is host:port (port 0: any). `insecure`: plaintext, loopback only, no identity needed.

        `reconnect_max_s` caps the pause between two attempts to connect; `limits` bounds each peer's use.
        Raises ConfigError for malformed addresses or certificates, a missing identity, plaintext beyond
        loopback.
        """
        if identity is None and not insecure:
            raise ConfigError(
                "this site has no identity",
                key="identity",
                remedy="Make one with `gossipctl init`; plaintext needs `insecure: true` and loopback.",
            )
        split_address(listen)
        self.site = site
        self._listen, self._identity = listen, None if insecure else identity
        self._insecure, self._reconnect_max_s = insecure, reconnect_max_s
        self._chunk_bytes = min(chunk_bytes, CHUNK_BYTES)
        self.throttle: Throttle | None = None
        """Bounds the rate of outgoing models; None: no bound."""
        self._sending = asyncio.Semaphore(max_parallel_transfers)
        self._traffic: dict[Site, Traffic] = {}
        self._links: dict[Site, PeerChannel] = {}
        self._retired: list[PeerChannel] = []
        """Replaced links with calls that may still be under way."""
        self._server: aio.Server | None = None
        self._port = 0
        self._servicer = PeerServicer(
            site,
            TrustList.unsigned(()),
            self.traffic,
            insecure=insecure,
            max_parallel_transfers=max_parallel_transfers,
            limits=limits or PeerLimits(),
        )
        self.times = ReachTimes()
        self._servicer.look = self.reach
        self.set_peers(peers)

    # ------------------------------------------------------------ listening

    async def start(self, handler: Handler) -> None:
        """Listen. Raises CannotListen when the address is taken or not this machine's; it may be tried
        again."""
        self._servicer.handler = handler
        await require_name(self._listen)
        server = aio.server(options=server_options(), maximum_concurrent_rpcs=1024)
        server.add_generic_rpc_handlers((self._servicer.rpc_handlers(), self._servicer.health_handlers()))
        try:
            if self._identity is None:
                self._port = server.add_insecure_port(self._listen)
            else:
                credentials = server_credentials(self._own_identity, self._listed_certificates)
                self._port = server.add_secure_port(self._listen, credentials)
        except RuntimeError as e:
            raise why_not(self._listen, e) from e
        await server.start()
        self._server = server

    @property
    def address(self) -> str:
        """host:port where this transport listens, with the actual port once started."""
        host, port = split_address(self._listen)
        return join_address(host, self._port or port)

    @property
    def times(self) -> ReachTimes:
        """The time limits of dialling a site, for this one's own questions and for its peers'."""
        return self._times

    @times.setter
    def times(self, times: ReachTimes) -> None:
        self._times, self._servicer.look_pause_s = times, times.between_s

    @property
    def identity(self) -> Identity | None:
        """The key and certificate that this site shows; None: plaintext."""
        return self._identity

    @property
    def links(self) -> Mapping[Site, PeerChannel]:
        """The connections to the listed sites."""
        return MappingProxyType(self._links)

    @property
    def retired(self) -> tuple[PeerChannel, ...]:
        """Replaced connections on which calls may still be under way."""
        return tuple(self._retired)

    @property
    def streams(self) -> tuple[InboundStream, ...]:
        """The models that are coming in."""
        return self._servicer.streams

    @property
    def counted(self) -> frozenset[Site]:
        """The sites whose calls are counted against their limits."""
        return self._servicer.counted

    # Both are called by gRPC from a thread of its own, at every handshake.

    def _own_identity(self) -> Identity:
        assert self._identity is not None
        return self._identity

    def _listed_certificates(self) -> Iterable[bytes]:
        return [pem for link in list(self._links.values()) for pem in link.endpoint.certificates]

    async def close(self) -> None:
        """Stop listening, end open streams and calls."""
        for link in (*self._links.values(), *self._retired):
            link.close("this site is closing")
        await self._servicer.close()
        if self._server is not None:
            await self._server.stop(grace=0.2)
            self._server = None
        await background_done()

    # ------------------------------------------------------------ the list

    def set_peers(self, peers: Mapping[Site, PeerEndpoint], identity: Identity | None = None) -> None:
        """Apply the listed sites (this one's own entry is ignored) and this site's key (None: unchanged).

        Unchanged links stay open. With a new key, and where a site's certificates are still listed, new
        connections are made; calls on the old ones end by themselves. Traffic with a site that is no longer
        listed is cut off at once. Raises ConfigError, and changes nothing, when an address or certificate is
        malformed.
        """
        mine = None if self._insecure else identity or self._identity
        others = {name: endpoint for name, endpoint in peers.items() if name != self.site}
        if self._insecure:
            self._require_loopback(others.values())
            trust = TrustList.unsigned(others)
        else:
            trust = TrustList.from_sites({name: e.certificates for name, e in others.items()})
        links = {name: self._link_for(name, endpoint, mine) for name, endpoint in others.items()}
        gone = [link for name, link in self._links.items() if links.get(name) is not link]
        self._links, self._identity = links, mine
        self._servicer.set_trust(trust)
        for link in self._retired:
            if not _still_good(link.endpoint, links.get(link.site)):
                link.close("no longer listed")
        for link in gone:
            self._put_away(link, links.get(link.site))

    def _link_for(self, name: Site, endpoint: PeerEndpoint, identity: Identity | None) -> PeerChannel:
        known = self._links.get(name)
        if known is not None and known.same(endpoint, identity):
            return known
        made = PeerChannel(self.site, endpoint, identity, self._reconnect_max_s, self.traffic(name))
        for address in known.hints if known is not None else ():
            made.hint(address)
        return made

    def _put_away(self, link: PeerChannel, successor: PeerChannel | None) -> None:
        if successor is None:
            return link.close("no longer listed")
        if link.endpoint.address == successor.endpoint.address and _still_good(link.endpoint, successor):
            link.retire("a new key or certificate is in use", RETIRING_S)
            self._retired = [*(old for old in self._retired if not old.idle), link]
        else:
            link.close("its entry in peers.yaml changed")

    def _require_loopback(self, endpoints: Iterable[PeerEndpoint]) -> None:
        for address in (self._listen, *(e.address for e in endpoints if e.address)):
            if not is_loopback(address):
                raise ConfigError(
                    "insecure: true is allowed on loopback addresses only",
                    key="address",
                    value=address,
                    remedy="Remove `insecure`, or use 127.0.0.1 addresses.",
                )

    def hint_address(self, site: Site, address: str) -> None:
        """Add an address to try beside the listed one. Unlisted sites and malformed texts are ignored."""
        link = self._links.get(site)
        try:
            grpc_target(address)
        except ConfigError:
            return  # it came from the network, and concerns no listed site
        if link is not None and not (self._insecure and not is_loopback(address)):
            link.hint(address)

    def tell_clock(self, clock: Callable[[], float]) -> None:
        """Send this clock (wall seconds) beside what is answered often, so that a wrong one is noticed."""
        self._servicer.clock = clock

    def clock_ahead_s(self, site: Site, now_s: float) -> float | None:
        """How far the site's clock was ahead of ours (wall seconds `now_s`) when it last answered."""
        link = self._links.get(site)
        if link is None or link.clock is None:
            return None
        said_s, heard_at = link.clock
        return said_s + (asyncio.get_running_loop().time() - heard_at) - now_s

    def traffic(self, site: Site) -> Traffic:
        """Bytes exchanged with a site so far (messages and model data, without TLS and HTTP/2 framing)."""
        return self._traffic.setdefault(site, Traffic())

    def _link(self, site: Site) -> PeerChannel:
        link = self._links.get(site)
        if link is None:
            raise PeerUntrusted(site, "not_listed", "no such site in peers.yaml")
        return link

    # ------------------------------------------------------------ calling

    async def request(self, to: Site, body: Request, timeout_s: float) -> Reply:
        """Send one request and return its reply. Raises PeerUnreachable, PeerUntrusted or PeerRefused."""
        rpc = codec.kind_of(body).rpc
        try:
            answer = await self._link(to).call(rpc, codec.encode_request(body), timeout_s)
        except PeerRefused as e:
            if e.reason != UNKNOWN_RPC:
                raise
            raise PeerRefused(to, UNKNOWN_RPC, f"its version of gossipseg knows no {rpc}") from None
        return codec.decode_reply(body, answer, to)

    async def reach(self, site: Site) -> Reached:
        """Dial the site's listed address anew, step by step, with full-size packets at the end."""
        try:
            async with asyncio.timeout(self.times.whole_s):
                return await look(self._link(site), self.times)
        except TimeoutError:
            return Reached("mute", "", "it took too long")
        except PeerError as e:
            return Reached("failed", "", e.detail or e.reason)
        except (OSError, UnicodeError) as e:  # this machine's own: no file or port left, a name beyond DNS
            return Reached("not_asked", "", f"it could not be tried here: {e}")

    async def ask_reach(self, site: Site) -> Reached:
        """Let the site dial this one, and return the result."""
        try:
            answer = await self._link(site).call("Reach", b"", self.times.whole_s + self.times.small_s)
            return decode_reached(answer, site)
        except PeerRefused as e:
            if e.reason == "unimplemented":
                return Reached("older", "", "it does not know the question (older version)")
            return Reached("not_asked", "", e.detail or e.reason)
        except PeerError as e:
            return Reached("not_asked", "", e.detail or e.reason)

    async def push(
        self,
        to: Site,
        model: ModelRef,
        path: Path,
        timeout_s: float,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        """Stream the file to the peer, resuming where an earlier try was interrupted.

        A broken stream is resumed as long as each try makes progress. Raises PeerUnreachable, PeerUntrusted,
        PeerRefused; LocalError when the file cannot be read.
        """
        try:
            async with asyncio.timeout(timeout_s), self._sending:
                await self._push(to, model, path, progress or _unheard)
        except TimeoutError:
            raise PeerUnreachable(to, "timeout", f"not through within {timeout_s:g} s") from None

    async def _push(self, to: Site, model: ModelRef, path: Path, progress: Callable[[int], None]) -> None:
        reached, stalled, broken = -1, 0, None
        while True:
            link, ask = self._link(to), codec.encode_offset_request(model)
            answer = await link.call("PushOffset", ask, RESUME_WAIT_S, "bulk", wait=broken is not None)
            offset = codec.decode_offset(answer, to, model)
            stalled = stalled + 1 if offset <= reached else 0
            if broken is not None and stalled >= STALLED_TRIES:
                raise broken
            try:
                return await self._stream(link, model, path, offset, progress)
            except PeerUnreachable as e:
                reached, broken = offset, e

    async def _stream(
        self, link: PeerChannel, model: ModelRef, path: Path, offset: int, progress: Callable[[int], None]
    ) -> None:
        call, explain = link.stream()
        verdict = asyncio.ensure_future(call.initial_metadata())
        try:
            with closing_is_unreachable(link):
                await call.write(codec.encode_header(codec.PushHeader(model, offset)))
                async with contextlib.aclosing(self._chunks(path, offset, model)) as chunks:
                    async for chunk in chunks:
                        if verdict.done() and (refusal := link.announced(verdict.result())):
                            raise refusal
                        if self.throttle is not None:
                            await self.throttle.spend(len(chunk))
                        await call.write(codec.encode_data(chunk))
                        link.traffic.bytes_out += len(chunk)
                        offset += len(chunk)
                        progress(offset)
                await call.done_writing()
                await call
        except aio.AioRpcError as e:
            raise await explain(e) from None
        except asyncio.InvalidStateError:  # it ended before we did: its status says why
            raise await _early_end(link, call, explain) from None
        finally:
            call.cancel()
            verdict.cancel()
            await asyncio.wait({verdict})

    def _chunks(self, path: Path, offset: int, model: ModelRef) -> AsyncGenerator[bytes, None]:
        piece = self.throttle.piece_bytes if self.throttle is not None else self._chunk_bytes
        return file_chunks(path, offset, model.size_bytes, min(piece, self._chunk_bytes))


def _still_good(endpoint: PeerEndpoint, now: PeerChannel | None) -> bool:
    """Whether all certificates that a connection to this endpoint may have trusted are still listed for the
    site."""
    return now is not None and set(endpoint.certificates) <= set(now.endpoint.certificates)


def _unheard(handed_over_bytes: int) -> None:
    """Ignore the progress."""


async def _early_end(link: PeerChannel, call: aio.StreamUnaryCall, explain: Explain) -> PeerError:
    try:
        with closing_is_unreachable(link):
            await call
    except aio.AioRpcError as e:
        return await explain(e)
    return PeerUnreachable(link.site, "unreachable", "it ended the stream before all bytes were sent")
