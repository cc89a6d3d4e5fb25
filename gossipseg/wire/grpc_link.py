"""The channel to one listed site: its addresses, two channels to each address tried, and its errors."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Literal

import grpc
from grpc import aio

from gossipseg.certificates import described, name_in_certificates, parse_certificate
from gossipseg.core.types import Site
from gossipseg.errors import ConfigError, PeerError, PeerRefused, PeerUnreachable, PeerUntrusted
from gossipseg.trust import Identity, TrustList
from gossipseg.wire.addresses import grpc_target
from gossipseg.wire.codec.messages import SERVICE
from gossipseg.wire.grpc_options import channel_credentials, channel_options
from gossipseg.wire.probe import seen_certificate
from gossipseg.wire.transport import PeerEndpoint, Traffic

MAX_HINTS = 3
HINT_TRIES = 3
"""Tries without a handshake after which a hint is dropped."""
EXPLAIN_TIMEOUT_S = 1.0
EXPLANATION_KEPT_S = 10.0
REASON_KEY, STATUS_KEY, DETAIL_KEY = "gossipseg-reason", "gossipseg-status", "gossipseg-detail-bin"
"""Keys of the reason for refusing a call, in the trailing metadata. A stream carries it in the initial
metadata, too."""
CLOCK_KEY = "gossipseg-clock"
"""The answering site's clock, in wall seconds, beside its answer. It is shown and never trusted."""
CLOCK_RPCS = ("Hello", "Ping", "Sync")
"""Pings come often: a clock that was set, or a machine that slept, is noticed soon."""
SITE_KEY, TO_KEY = "gossipseg-site", "gossipseg-to"
"""Plaintext only: the caller's name, and the name of the site it means to call."""

Lane = Literal["control", "bulk"]
Explain = Callable[[aio.AioRpcError], Coroutine[Any, Any, PeerError]]
_HANDSHAKE_WORDS = ("handshake", "certificate", "verification", "ssl", "tls", "socket closed", "reset", "eof")


@dataclass(slots=True)
class Candidate:
    """An address of the site."""

    address: str
    channels: dict[Lane, aio.Channel] = field(default_factory=dict)
    proven: bool = False
    """Whether an RPC succeeded at this address."""
    failures: int = 0
    explained: tuple[float, PeerError] | None = None
    """When (loop time), and why, a handshake failed at this address."""


class PeerChannel:
    """Calls to one site. The listed address is tried first, hints only beside it; a working address is
    kept."""

    def __init__(
        self,
        me: Site,
        endpoint: PeerEndpoint,
        identity: Identity | None,
        reconnect_max_s: float,
        traffic: Traffic,
    ) -> None:
        """Raises ConfigError for a malformed address or certificate. `identity` None: plaintext."""
        self.site, self.endpoint, self.traffic = endpoint.site, endpoint, traffic
        self._me, self._identity, self._reconnect_max_s = me, identity, reconnect_max_s
        self._name: str | None = None
        self._ids: tuple[str, ...] = ()
        if identity is not None:
            self._name = name_in_certificates(endpoint.site, endpoint.certificates)
            self._ids = TrustList.from_sites({endpoint.site: endpoint.certificates}).ids_of(endpoint.site)
        self._listed = Candidate(endpoint.address) if endpoint.address else None
        if self._listed is not None:
            grpc_target(self._listed.address)
        self._hints: list[Candidate] = []
        self._current: Candidate | None = self._listed
        self._calls: set[aio.Call] = set()
        """Channels still closing: a channel that closes slowly cannot be told to close at once."""
        self.closed = ""
        """Why no more calls are made; "" while open."""
        self.clock: tuple[float, float] | None = None
        """The value of the site's clock, and when it came (loop time)."""

    def same(self, endpoint: PeerEndpoint, identity: Identity | None) -> bool:
        """Whether a link made for these arguments would equal this one."""
        return (endpoint, identity) == (self.endpoint, self._identity)

    # ------------------------------------------------------------ addresses

    def hint(self, address: str) -> None:
        """Add an address to try; beyond the limit, the oldest unproven one is dropped."""
        known = [c.address for c in (*self._hints, self._listed) if c is not None]
        if address in known:
            return
        self._hints.append(Candidate(address))
        if len(self._hints) > MAX_HINTS:
            victims = [c for c in self._hints[:-1] if c is not self._current]
            self._drop(next((c for c in victims if not c.proven), victims[0]))

    @property
    def hints(self) -> list[str]:
        """The addresses beside the listed one."""
        return [candidate.address for candidate in self._hints]

    @property
    def addresses(self) -> list[str]:
        """The addresses in the order in which they would be tried now."""
        return [c.address for c in self._order()]

    @property
    def identity(self) -> Identity | None:
        """The identity that this link shows; None: plaintext."""
        return self._identity

    @property
    def works_at(self) -> str:
        """The address at which the last call succeeded; "" if there is none."""
        current = self._current
        return current.address if current is not None and current.proven and not current.failures else ""

    def _order(self) -> list[Candidate]:
        rest = [c for c in (self._listed, *self._hints) if c is not None and c is not self._current]
        return ([self._current] if self._current is not None else []) + rest

    def _held(self, candidate: Candidate) -> bool:
        """Whether it is tried still: a call beside this one may have dropped it."""
        return candidate is self._listed or any(one is candidate for one in self._hints)

    def _keep(self, candidate: Candidate) -> None:
        if not self._held(candidate):
            return
        self._current, candidate.proven, candidate.failures = candidate, True, 0
        candidate.explained = None

    def _failed(self, candidate: Candidate, error: PeerError) -> None:
        candidate.failures += 1
        if candidate is self._current:
            self._current = self._listed
        hopeless = isinstance(error, PeerUntrusted) or candidate.failures >= HINT_TRIES
        if candidate is not self._listed and not candidate.proven and hopeless:
            self._drop(candidate)

    def _drop(self, candidate: Candidate) -> None:
        if not self._held(candidate):
            return
        self._hints = [one for one in self._hints if one is not candidate]
        if candidate is self._current:
            self._current = self._listed
        for channel in candidate.channels.values():
            _in_background(channel.close())
        candidate.channels.clear()

    # ------------------------------------------------------------ calls

    async def call(
        self, rpc: str, data: bytes, timeout_s: float, lane: Lane = "control", *, wait: bool = False
    ) -> bytes:
        """Make one unary call. `wait`: let a broken connection come back instead of failing at once.

        After an address that cannot be reached the next one is tried. A request that may have arrived is not
        sent again. Raises PeerUnreachable, PeerUntrusted, PeerRefused.
        """
        loop = asyncio.get_running_loop()
        deadline, first = loop.time() + timeout_s, None
        candidates = self._order()
        for i, candidate in enumerate(candidates):
            remaining = deadline - loop.time()
            if first is not None and remaining <= 0:
                break
            channel = self._channel(candidate, lane)
            others = len(candidates) - i - 1
            if others and channel.get_state() is not grpc.ChannelConnectivity.READY:
                remaining /= others + 1  # leave the next address its share of the time
            try:
                reply = await self._unary(channel, rpc, data, remaining, wait and not others)
            except aio.AioRpcError as e:
                unsent = _never_sent(e, channel)
                error = await self._error(e, candidate, deadline - loop.time())
                if not unsent:
                    raise error from None
                self._failed(candidate, error)
                first = first or error
            else:
                self._keep(candidate)
                return reply
        raise first or PeerUnreachable(self.site, "unreachable", "no address of it is known yet")

    async def _unary(
        self, channel: aio.Channel, rpc: str, data: bytes, timeout_s: float, wait: bool
    ) -> bytes:
        multicallable = channel.unary_unary(f"/{SERVICE}/{rpc}")
        self.traffic.bytes_out += len(data)
        with closing_is_unreachable(self):
            call = multicallable(
                data, timeout=max(timeout_s, 1e-3), metadata=self.metadata(), wait_for_ready=wait
            )
            self._follow(call)
            reply: bytes = await call
            if rpc in CLOCK_RPCS:
                self._note_clock(await call.trailing_metadata())
        self.traffic.bytes_in += len(reply)
        return reply

    def _note_clock(self, metadata: Any) -> None:
        with contextlib.suppress(ValueError, TypeError):
            said = float(dict(metadata or ()).get(CLOCK_KEY, ""))
            if math.isfinite(said):
                self.clock = (said, asyncio.get_running_loop().time())

    def stream(self) -> tuple[aio.StreamUnaryCall, Explain]:
        """An open Push stream on the address that works, and a function that explains its failure."""
        order = self._order()
        if self.closed or not order:
            raise PeerUnreachable(self.site, "unreachable", self.closed or "no address of it is known yet")
        channel = self._channel(order[0], "bulk")
        call = channel.stream_unary(f"/{SERVICE}/Push")(metadata=self.metadata())
        self._follow(call)
        return call, lambda e: self._error(e, order[0], EXPLAIN_TIMEOUT_S)

    def metadata(self) -> list[tuple[str, str]]:
        return [] if self._identity is not None else [(SITE_KEY, self._me), (TO_KEY, self.site)]

    def _channel(self, candidate: Candidate, lane: Lane) -> aio.Channel:
        if self.closed:
            raise PeerUnreachable(self.site, "unreachable", self.closed)
        if lane not in candidate.channels:
            candidate.channels[lane] = self.new_channel(candidate.address)
        return candidate.channels[lane]

    def new_channel(self, address: str) -> aio.Channel:
        """A separate channel; the caller closes it."""
        target, options = grpc_target(address), channel_options(self._name, self._reconnect_max_s)
        if self._identity is None:
            return aio.insecure_channel(target, options)
        credentials = channel_credentials(self._identity, self.endpoint.certificates)
        return aio.secure_channel(target, credentials, options)

    # ------------------------------------------------------------ what went wrong

    async def _error(self, e: aio.AioRpcError, candidate: Candidate, left_s: float) -> PeerError:
        """The PeerError that describes a failed call."""
        code, details = e.code(), e.details() or ""
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return PeerUnreachable(self.site, "timeout", f"{candidate.address} did not answer in time")
        if code is grpc.StatusCode.PERMISSION_DENIED:
            return PeerUntrusted(self.site, "untrusted", details)
        if code is grpc.StatusCode.UNAVAILABLE:
            if self._identity is not None and any(w in details.lower() for w in _HANDSHAKE_WORDS):
                return await self._explain(candidate, details, left_s)
            return PeerUnreachable(self.site, "unreachable", f"{candidate.address}: {_brief(details)}")
        reason = _reason(e)
        if code is grpc.StatusCode.CANCELLED or (code is grpc.StatusCode.INTERNAL and not reason):
            # Without a reason the refusal is not the peer's daemon's, but gRPC's here: a broken stream.
            return PeerUnreachable(self.site, "unreachable", f"{candidate.address}: the call was cut off")
        return PeerRefused(self.site, reason or code.name.lower(), details)

    def announced(self, metadata: Any) -> PeerError | None:
        """The refusal in a stream's initial metadata."""
        told = dict(iter(metadata or ()))  # pairs: what older versions of gRPC call keys are pairs, too
        if REASON_KEY not in told:
            return None
        reason, detail = str(told[REASON_KEY]), bytes(told.get(DETAIL_KEY, b"")).decode(errors="replace")
        if told.get(STATUS_KEY) == grpc.StatusCode.PERMISSION_DENIED.name:
            return PeerUntrusted(self.site, "untrusted", detail)
        return PeerRefused(self.site, reason, detail)

    async def _explain(self, candidate: Candidate, details: str, left_s: float) -> PeerError:
        """The cause of a failed handshake: a wrong key, our key not listed there, or a broken connection."""
        now = asyncio.get_running_loop().time()
        if candidate.explained is None or now - candidate.explained[0] > EXPLANATION_KEPT_S:
            timeout_s = min(EXPLAIN_TIMEOUT_S, max(0.2, left_s))
            candidate.explained = (now, await self._look(candidate.address, details, timeout_s))
        error = candidate.explained[1]
        return type(error)(error.peer, error.reason, error.detail)  # a fresh one: this may be raised twice

    async def _look(self, address: str, details: str, timeout_s: float) -> PeerError:
        assert self._identity is not None
        seen = await asyncio.to_thread(seen_certificate, address, self._identity, timeout_s)
        expected = " or ".join(self._ids)
        if seen.certificate_pem is not None and not self.pinned(seen.certificate_pem):
            shown = f"the key {seen.id}" if seen.id else "a certificate that cannot be read"
            if seen.id in self._ids:
                shown = "another certificate of the same key"
            return PeerUntrusted(
                self.site,
                "untrusted",
                f"{address} shows {shown}; listed for {self.site} is {expected}. Either that address is "
                f"another machine's, or {self.site} has a new identity that is not in peers.yaml yet, or "
                f"something between opens TLS (the certificate's {described(seen.certificate_pem)}).",
            )
        if "expired" in details or "not yet valid" in details:
            return PeerUntrusted(
                self.site,
                "untrusted",
                f"{address}: {self.site}'s certificate has expired (or this site's clock is wrong)",
            )
        if seen.reached and seen.accepted is False:
            return PeerUntrusted(
                self.site,
                "untrusted",
                f"{address} does not accept this site's key {self._identity.site_id}: its peers.yaml lists "
                f"another one for {self._me}, or none.",
            )
        if seen.reached and "certificate" in details.lower():
            return PeerUntrusted(self.site, "untrusted", f"{address}: {_brief(details)}")
        return PeerUnreachable(self.site, "unreachable", f"{address}: {seen.detail or _brief(details)}")

    def pinned(self, pem: bytes) -> bool:
        """Whether the certificate is listed for this site."""
        try:
            shown = parse_certificate(pem)
        except ConfigError:  # OpenSSL reads some that cannot be taken apart
            return False
        return any(parse_certificate(listed) == shown for listed in self.endpoint.certificates)

    # ------------------------------------------------------------ the end

    def _follow(self, call: aio.Call) -> None:
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)

    def close(self, why: str) -> None:
        """End every call, also of a retired link; later calls fail with `why`."""
        self.closed = why
        for call in list(self._calls):
            call.cancel()
        for channel in self._channels():
            _in_background(channel.close())

    def retire(self, why: str, grace_s: float) -> None:
        """Let the calls under way end within `grace_s`; later calls fail with `why`."""
        self.closed = why
        for channel in self._channels():
            _in_background(channel.close(grace_s))

    @property
    def idle(self) -> bool:
        """Whether every channel has been closed."""
        return all(channel.get_state() is grpc.ChannelConnectivity.SHUTDOWN for channel in self._channels())

    def _channels(self) -> list[aio.Channel]:
        candidates = [c for c in (*self._hints, self._listed) if c is not None]
        return [channel for candidate in candidates for channel in candidate.channels.values()]


class closing_is_unreachable:
    """Turns the CancelledError of a call whose channel was closed under it into PeerUnreachable.

    Cancellation of the task itself goes through.
    """

    def __init__(self, link: PeerChannel) -> None:
        self._link = link

    def __enter__(self) -> None:
        task = asyncio.current_task()
        self._before = task.cancelling() if task else 0

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        task = asyncio.current_task()
        asked = task is not None and task.cancelling() > self._before
        if kind is not None and issubclass(kind, asyncio.CancelledError) and not asked:
            why = self._link.closed or "the address that was tried was replaced by others"
            raise PeerUnreachable(self._link.site, "unreachable", why) from None


_background: set[asyncio.Task[None]] = set()


def _in_background(work: Coroutine[Any, Any, None]) -> None:
    task = asyncio.get_running_loop().create_task(work)
    _background.add(task)
    task.add_done_callback(_background.discard)


async def background_done() -> None:
    """Wait until closed channels of this loop are really closed."""
    loop = asyncio.get_running_loop()
    await asyncio.gather(*(t for t in _background if t.get_loop() is loop))


def _never_sent(e: aio.AioRpcError, channel: aio.Channel) -> bool:
    """Whether the request certainly did not reach the peer, so that another address may be tried."""
    if e.code() is grpc.StatusCode.UNAVAILABLE:
        return (e.details() or "").startswith(("failed to connect", "DNS resolution failed", "empty address"))
    if e.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return channel.get_state() is not grpc.ChannelConnectivity.READY
    return False


def _reason(e: aio.AioRpcError) -> str:
    for key, value in e.trailing_metadata() or ():
        if key == REASON_KEY and isinstance(value, str):
            return value
    return ""


def _brief(details: str) -> str:
    """gRPC's text without its nested prefixes."""
    return details.rsplit("last error:", 1)[-1].strip()
