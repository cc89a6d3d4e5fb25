"""The answering side over gRPC: the caller's identity, the RPCs, and incoming model streams.

Every RPC is handled as a stream, also those of a single request (on the wire they are the same). So the
caller is known, and counted, before a byte of the request is read. The request must then arrive in time.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import math
import os
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Any, NoReturn, TypeAlias

import grpc
from grpc import aio

from gossipseg.certificates import id_of_public_key, public_key_of
from gossipseg.core.types import ModelRef, Site
from gossipseg.errors import (
    ConfigError,
    DiskFull,
    GossipsegError,
    PeerError,
    PeerRefused,
    PeerUnreachable,
    PeerUntrusted,
)
from gossipseg.trust import TrustList
from gossipseg.wire import health
from gossipseg.wire.codec import messages as codec
from gossipseg.wire.grpc_link import (
    CLOCK_KEY,
    CLOCK_RPCS,
    DETAIL_KEY,
    REASON_KEY,
    SITE_KEY,
    STATUS_KEY,
    TO_KEY,
)
from gossipseg.wire.limits import REFUSED_HELD, PeerLimits, RateLimiter, StreamProgress
from gossipseg.wire.reached import ECHO_BYTES, Reached, answer_echo, encode_reached
from gossipseg.wire.transport import Handler, Traffic

log = logging.getLogger(__name__)
Context: TypeAlias = Any  # aio.ServicerContext, which has no types
_Answer: TypeAlias = Callable[[Site, bytes, Context], Awaitable[bytes]]
_MAX_DETAIL = 1000
LOOKS_AT_ONCE = 4
"""Sites that are dialled at their own request at one time."""
_PADDING = os.urandom(ECHO_BYTES)
_WINDING_UP_S = 5.0
"""Seconds allowed for a handler to store the received part of an interrupted stream."""
_LINGER_S = 2.0
"""Seconds allowed for the sender of a refused stream to notice and stop."""


class PeerServicer:
    """The Peer service of one site. `trust` and `handler` may be replaced while it serves."""

    def __init__(
        self,
        me: Site,
        trust: TrustList,
        traffic: Callable[[Site], Traffic],
        *,
        insecure: bool,
        max_parallel_transfers: int,
        limits: PeerLimits,
    ) -> None:
        self.trust, self.limits = trust, limits
        self.handler: Handler | None = None
        self.clock: Callable[[], float] | None = None
        """Wall seconds, sent beside each answer to CLOCK_RPCS; None: not sent."""
        self.look: Callable[[Site], Awaitable[Reached]] | None = None
        """Dials a site's listed address; None: such questions are not answered."""
        self.look_pause_s = 10.0
        """Minimum time between two answers to one site."""
        self._looked: dict[Site, float] = {}
        self._looking = asyncio.Semaphore(LOOKS_AT_ONCE)
        self._me, self._traffic, self._insecure = me, traffic, insecure
        self._places = asyncio.Semaphore(max_parallel_transfers)
        self._own_place: dict[Site, asyncio.Lock] = {}
        """A site sends one model at a time: it must not take the places of all others."""
        self._streams: dict[tuple[Site, str], InboundStream] = {}
        self._strangers: set[str] = set()
        self._turnstiles: dict[Site, RateLimiter] = {}

    def rpc_handlers(self) -> grpc.GenericRpcHandler:
        """The argument of aio.Server.add_generic_rpc_handlers. Messages are bytes; wire.codec reads them."""
        methods = {rpc: self._unary(functools.partial(self._request, rpc)) for rpc in codec.KINDS}
        methods["PushOffset"] = self._unary(self._push_offset)
        methods["Reach"] = self._unary(self._reach)
        methods["Echo"] = self._unary(self._echo)
        methods["Push"] = grpc.stream_unary_rpc_method_handler(self._push)
        return grpc.method_handlers_generic_handler(codec.SERVICE, methods)

    def health_handlers(self) -> grpc.GenericRpcHandler:
        """grpc.health.v1 Check, for listed peers like everything else on this port; no Watch."""
        methods = {"Check": self._unary(self._check_health)}
        return grpc.method_handlers_generic_handler("grpc.health.v1.Health", methods)

    # ------------------------------------------------------------ the caller's identity

    def set_trust(self, trust: TrustList) -> None:
        """Apply a list of sites. Streams of keys that are no longer listed are cut off."""
        self.trust = trust
        self._turnstiles = {site: kept for site, kept in self._turnstiles.items() if site in trust.sites}
        for stream in list(self._streams.values()):
            stream.look_again()

    @property
    def streams(self) -> tuple[InboundStream, ...]:
        """The models that are coming in."""
        return tuple(self._streams.values())

    @property
    def counted(self) -> frozenset[Site]:
        """The sites whose calls are counted against their limits."""
        return frozenset(self._turnstiles)

    def site_of(self, context: Context) -> Site | None:
        """The site that the caller's key is listed for, now. The names in its certificate do not count."""
        if self._insecure:
            metadata = dict(context.invocation_metadata() or ())
            site = str(metadata.get(SITE_KEY, ""))
            return site if site in self.trust.sites and metadata.get(TO_KEY) == self._me else None
        key = _public_key(context)
        return self.trust.site_of_public_key(key) if key is not None else None

    async def _authenticated(self, context: Context) -> Site:
        site = self.site_of(context)
        if site is None:
            await self._turn_away(context)
        return site

    async def _turn_away(self, context: Context) -> NoReturn:
        if self._insecure:
            shown = f"{dict(context.invocation_metadata() or ()).get(SITE_KEY, 'a nameless caller')}"
        else:
            key = _public_key(context)
            shown = f"the key {id_of_public_key(key)}" if key is not None else "no usable key"
        if shown not in self._strangers and len(self._strangers) < 1000:
            self._strangers.add(shown)
            log.warning("%s called from %s and is not listed", shown, context.peer())
        await context.abort(grpc.StatusCode.PERMISSION_DENIED, f"{self._me} does not list {shown}")
        raise AssertionError("abort raises")

    @contextlib.asynccontextmanager
    async def _admitted(self, site: Site) -> AsyncGenerator[None, None]:
        """Count a call of the site while it lasts. Raises PeerRefused when the limit is exceeded."""
        now_s = asyncio.get_running_loop().time()
        turnstile = self._turnstiles.setdefault(site, RateLimiter(self.limits, now_s))
        if why := turnstile.enter(now_s):
            if turnstile.turned_away in (1, 100) or turnstile.turned_away % 10_000 == 0:
                log.warning("%s calls too often: %s (%d refused)", site, why, turnstile.turned_away)
            if turnstile.held < REFUSED_HELD:
                turnstile.held += 1
                try:
                    await asyncio.sleep(self.limits.refusal_s)
                finally:
                    turnstile.held -= 1
            raise PeerRefused(site, "too_many_calls", why)
        try:
            yield
        finally:
            turnstile.leave()

    async def _message(self, site: Site, context: Context) -> bytes:
        """The first message of a call, which must arrive in time."""
        try:
            async with asyncio.timeout(self.limits.request_s):
                first = await context.read()
        except TimeoutError:
            raise PeerRefused(site, "too_slow", f"nothing came in {self.limits.request_s:g} s") from None
        if first is aio.EOF:
            raise PeerUnreachable(site, "cut_off", "the call ended before its request")
        return bytes(first)

    # ------------------------------------------------------------ single calls

    def _unary(self, answer: _Answer) -> grpc.RpcMethodHandler:
        async def take(_: object, context: Context) -> bytes:
            site = await self._authenticated(context)
            traffic = self._traffic(site)
            try:
                async with self._admitted(site):
                    data = await self._message(site, context)
                    traffic.bytes_in += len(data)
                    reply = await answer(site, data, context)
            except aio.AbortError:
                raise
            except Exception as e:  # any error becomes a status; see _refuse
                await _refuse(context, site, e)
            traffic.bytes_out += len(reply)
            return reply

        return grpc.stream_unary_rpc_method_handler(take)

    async def _request(self, rpc: str, site: Site, data: bytes, context: Context) -> bytes:
        if rpc in CLOCK_RPCS and self.clock is not None:
            context.set_trailing_metadata(((CLOCK_KEY, f"{self.clock():.3f}"),))
        reply = await self._handler.on_request(site, codec.decode_request(rpc, data, site))
        return codec.encode_reply(reply)

    async def _check_health(self, site: Site, data: bytes, context: Context) -> bytes:
        serving = self.handler is not None
        answer = health.check(data, {health.ALL: serving, health.PEER: serving})
        if answer is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such service")
            raise AssertionError("abort raises")
        return answer

    async def _push_offset(self, site: Site, data: bytes, _: Context) -> bytes:
        model = codec.decode_offset_request(data, site)
        await self._supersede(site, model)
        return codec.encode_offset(await self._handler.push_offset(site, model))

    async def _reach(self, site: Site, data: bytes, _: Context) -> bytes:
        """Dial the caller's listed address; nothing in the request selects another."""
        now_s = asyncio.get_running_loop().time()
        if self.look is None or now_s - self._looked.get(site, -math.inf) < self.look_pause_s:
            raise PeerRefused(site, "too_soon", f"ask again in {self.look_pause_s:g} s")
        self._looked[site] = now_s
        if self._looking.locked():
            raise PeerRefused(site, "too_soon", "too many other sites are being dialled")
        async with self._looking:
            return encode_reached(await self.look(site))

    async def _echo(self, site: Site, data: bytes, _: Context) -> bytes:
        return answer_echo(data, site, _PADDING)

    @property
    def _handler(self) -> Handler:
        if self.handler is None:
            raise PeerRefused(self._me, "not_ready", "this site is still starting")
        return self.handler

    # ------------------------------------------------------------ streams

    async def _push(self, _: object, context: Context) -> bytes:
        site = await self._authenticated(context)
        try:
            async with self._admitted(site):
                try:
                    header = self._header(site, await self._message(site, context))
                    await self._supersede(site, header.model)
                    async with self._own_place.setdefault(site, asyncio.Lock()), self._places:
                        await self._take(site, header, context)
                except Exception as e:  # one that calls too often is not waited for; these count meanwhile
                    await _announce(context, e)
                    raise
        except Exception as e:  # any error becomes a status; see _refuse
            await _refuse(context, site, e)
        return codec.encode_pushed()

    def _header(self, site: Site, first: bytes) -> codec.PushHeader:
        header = codec.decode_chunk(first, site)
        if not isinstance(header, codec.PushHeader) or header.offset > header.model.size_bytes:
            raise PeerRefused(site, "malformed", "a model stream must begin with its header")
        return header

    async def _take(self, site: Site, header: codec.PushHeader, context: Context) -> None:
        """Let the handler take the stream, in a separate task.

        When the call is interrupted, gRPC cancels *this* coroutine. The handler is not cancelled, because
        that could interrupt a write. Its chunks end with an error, and it stores what was received.
        """
        key = (site, header.model.hash)
        listed = lambda: self.site_of(context) == site  # noqa: E731
        stream = InboundStream(site, header, context, listed, self.limits)
        stream.traffic = self._traffic(site)
        work = self._handler.on_push(site, header.model, header.offset, stream.chunks())
        stream.task = asyncio.create_task(_awaited(work))
        self._streams[key] = stream
        stream.task.add_done_callback(lambda _: self._forget(key, stream))
        try:
            await asyncio.wait({stream.task})
        finally:
            if not stream.task.done():
                stream.abandoned = True
                stream.break_off(PeerUnreachable(site, "cut_off", "the stream was cut off"))
        if stream.error is not None and not isinstance(stream.error, PeerUnreachable):
            raise stream.error
        stream.task.result()

    def _forget(self, key: tuple[Site, str], stream: InboundStream) -> None:
        if self._streams.get(key) is stream:
            del self._streams[key]
        if stream.task is not None and not stream.task.cancelled():
            error = stream.task.exception()
            if stream.abandoned and error is not None and not isinstance(error, GossipsegError):
                log.error("taking a model from %s failed", key[0], exc_info=error)

    async def _supersede(self, site: Site, model: ModelRef) -> None:
        """End the earlier stream of a model first: a site that starts again has given it up."""
        earlier = self._streams.get((site, model.hash))
        if earlier is not None:
            await earlier.end(PeerUnreachable(site, "cut_off", "a newer stream of this model has begun"))

    async def close(self) -> None:
        """End every stream and wait for their handlers to store what was received."""
        closing = [
            stream.end(PeerUnreachable(stream.site, "cut_off", "this site is closing"))
            for stream in self._streams.values()
        ]
        await asyncio.gather(*closing)


class InboundStream:
    """One incoming model, as the handler sees it."""

    def __init__(
        self,
        site: Site,
        header: codec.PushHeader,
        context: Context,
        listed: Callable[[], bool],
        limits: PeerLimits,
    ) -> None:
        self.site = site
        self.error: PeerError | None = None
        self.task: asyncio.Task[None] | None = None
        self.abandoned = False
        """Whether the call has ended before its handler did."""
        self.traffic = Traffic()
        self._left = header.model.size_bytes - header.offset
        self._context, self._listed = context, listed
        self._reading: asyncio.Future[Any] | None = None
        self._pace = StreamProgress(limits, asyncio.get_running_loop().time())

    @property
    def waits(self) -> bool:
        """Whether it waits for the sender."""
        return self._reading is not None and not self._reading.done()

    async def chunks(self) -> AsyncIterator[bytes]:
        """The data, until the declared size is reached or the sender has ended the stream.

        Raises PeerUnreachable when the stream is interrupted, and PeerUntrusted when the site has been
        removed from the list. Raises PeerRefused when more data comes than was declared, or too little in its
        time.
        """
        now_s = asyncio.get_running_loop().time
        while (message := await self._read()) is not aio.EOF:
            if not self._listed():
                raise self._failed(PeerUntrusted(self.site, "removed", "no longer listed"))
            data = codec.decode_chunk(message, self.site)
            if isinstance(data, codec.PushHeader):
                raise self._failed(PeerRefused(self.site, "malformed", "a second header"))
            if len(data) > self._left:
                raise self._failed(PeerRefused(self.site, "too_large", "more bytes than were declared"))
            self._left -= len(data)
            self._pace.came(len(data), handed_s := now_s())
            self.traffic.bytes_in += len(data)
            yield data
            self._pace.resumed(handed_s, now_s())
        if self._left:
            raise self._failed(PeerUnreachable(self.site, "cut_off", f"{self._left} bytes did not come"))

    async def _read(self) -> Any:
        if self.error is not None:
            raise self.error
        now_s = asyncio.get_running_loop().time()
        self._reading = asyncio.ensure_future(self._context.read())
        try:
            async with asyncio.timeout(self._pace.left_s(now_s)):
                return await self._reading
        except TimeoutError:
            raise self._failed(PeerRefused(self.site, "too_slow", self._pace.text)) from None
        except asyncio.CancelledError:
            if self.error is not None:
                raise self.error from None
            raise
        except (aio.UsageError, aio.InternalError, asyncio.InvalidStateError) as e:
            raise self._failed(PeerUnreachable(self.site, "cut_off", str(e))) from None

    def _failed(self, error: PeerError) -> PeerError:
        self.error = self.error or error
        return self.error

    def look_again(self) -> None:
        """Cut the stream off when its sender is not listed any more, whether or not more data would come."""
        if not self._listed():
            self.break_off(PeerUntrusted(self.site, "removed", "no longer listed"))

    def break_off(self, error: PeerError) -> None:
        """Let the chunks end with this error, now."""
        self._failed(error)
        if self._reading is not None:
            self._reading.cancel()

    async def end(self, error: PeerError) -> None:
        """Call break_off, and wait for the handler to store what was received."""
        self.break_off(error)
        if self.task is not None:
            await asyncio.wait({self.task}, timeout=_WINDING_UP_S)


async def _awaited(work: Awaitable[None]) -> None:
    await work


@functools.lru_cache(maxsize=1024)
def _key_in(pem: bytes) -> bytes | None:
    try:
        return public_key_of(pem)
    except ConfigError:
        return None


def _public_key(context: Context) -> bytes | None:
    """SubjectPublicKeyInfo (DER) of the certificate the caller showed in the handshake."""
    pems = context.auth_context().get("x509_pem_cert")
    return _key_in(bytes(pems[0])) if pems else None


async def _announce(context: Context, error: Exception) -> None:
    """Tell the sender of a stream why it is refused while it still writes, and let it stop.

    A status alone would be lost: gRPC fails the sender's next write with an error of its own.
    """
    status, reason, detail = _told(error)
    announcement = ((STATUS_KEY, status.name), (REASON_KEY, reason), (DETAIL_KEY, detail.encode()))
    with contextlib.suppress(TimeoutError, aio.UsageError, aio.InternalError, asyncio.InvalidStateError):
        await context.send_initial_metadata(announcement)
        async with asyncio.timeout(_LINGER_S):
            while await context.read() is not aio.EOF:
                pass


async def _refuse(context: Context, peer: Site, error: Exception) -> NoReturn:
    """End the call with the status of the error."""
    status, reason, detail = _told(error)
    if reason == "internal":
        log.error("a request of %s failed", peer, exc_info=error)
    await context.abort(status, detail or reason, ((REASON_KEY, reason),))
    raise AssertionError("abort raises")


def _told(error: Exception) -> tuple[grpc.StatusCode, str, str]:
    """(status, reason, detail) for the peer, without paths of this machine."""
    if isinstance(error, PeerUntrusted):
        return grpc.StatusCode.PERMISSION_DENIED, error.reason, error.detail[:_MAX_DETAIL]
    if isinstance(error, PeerError):  # UNAVAILABLE would mean that no server answered; this site does
        return grpc.StatusCode.FAILED_PRECONDITION, error.reason, error.detail[:_MAX_DETAIL]
    if isinstance(error, DiskFull):
        return grpc.StatusCode.RESOURCE_EXHAUSTED, "disk_full", ""
    return grpc.StatusCode.INTERNAL, "internal", ""
