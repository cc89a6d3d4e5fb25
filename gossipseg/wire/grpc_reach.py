"""Dials one listed site anew, step by step: name, port, TLS, a small message, full-size packets.

Existing connections prove nothing about new ones, so none is used. Only the listed address is dialled: no
peer can direct this site to another address.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass

import grpc
from grpc import aio

from gossipseg.certificates import described
from gossipseg.wire.addresses import split_address
from gossipseg.wire.codec.messages import SERVICE
from gossipseg.wire.grpc_link import PeerChannel
from gossipseg.wire.probe import Seen, seen_certificate, seen_port
from gossipseg.wire.reached import ECHO_BYTES, Reached, ReachOutcome, encode_echo
from gossipseg.wire.small_packets import SMALL_SEGMENT, small_packets

SMALL_BYTES = 16
SEVERAL_BYTES = 4 << 10
"""Three full-size packets. They pass the slowest link in no time, if they pass at all."""


@dataclass(frozen=True, slots=True)
class ReachTimes:
    """Time limit of each step."""

    connect_s: float = 3.0
    small_s: float = 5.0
    large_s: float = 8.0
    """64 KiB within this time need 66 kbit/s."""
    between_s: float = 10.0
    """Minimum time between two answers to one caller."""

    @property
    def whole_s(self) -> float:
        """Longest duration of one check."""
        return 3 * self.connect_s + 3 * self.small_s + 2 * self.large_s


async def look(link: PeerChannel, times: ReachTimes) -> Reached:
    """Dial the listed address of the link's site, over a separate connection."""
    address = link.endpoint.address
    if not address:
        return Reached("no_address", works_at=link.works_at)
    first = await asyncio.to_thread(_first_look, link, address, times.connect_s)
    if first is None:
        first = await _echoes(link, address, times)
    elsewhere = link.works_at if link.works_at != address else ""
    return Reached(first.outcome, first.address, first.detail, elsewhere)


def _first_look(link: PeerChannel, address: str, timeout_s: float) -> Reached | None:
    """Check name, port and TLS; None where all of them are well. Blocks."""
    if link.identity is None:
        seen = seen_port(address, timeout_s)
        return Reached(_stage(seen), address, _where(seen)) if seen.stage else None
    seen = seen_certificate(address, link.identity, timeout_s)
    if seen.certificate_pem is None and _stage(seen) == "mute":
        small = seen_certificate(address, link.identity, timeout_s, SMALL_SEGMENT)
        if small.certificate_pem is not None:  # so it does not hang, or not any more
            seen = seen_certificate(address, link.identity, timeout_s)
        if small.certificate_pem is not None and seen.certificate_pem is None:
            words = f"the TLS handshake stalls, and goes through in packets of {SMALL_SEGMENT} bytes"
            return Reached("stalled", address, words)
    if seen.certificate_pem is None:
        return Reached(_stage(seen), address, _where(seen))
    if not link.pinned(seen.certificate_pem):
        return Reached("untrusted", address, f"it shows {described(seen.certificate_pem)}")
    if seen.accepted is False:
        return Reached("not_accepted", address, seen.detail)
    return None


def _stage(seen: Seen) -> ReachOutcome:
    """The outcome code of a check that ended early."""
    words = seen.detail.lower()
    if seen.stage == "dns":
        return "dns"
    if seen.stage == "port":
        if "refused" in words:
            return "refused"
        return "timeout" if "timed out" in words else "no_route"
    return "mute" if "timed out" in words else "tls"


def _where(seen: Seen) -> str:
    """The system's words, with the IP address where that is not the listed one."""
    if not seen.ip or seen.ip == split_address(seen.address)[0]:
        return seen.detail
    return f"{seen.ip}: {seen.detail}"


async def _echoes(link: PeerChannel, address: str, times: ReachTimes) -> Reached:
    """Send a small message, then 64 KiB there, then 64 KiB back, over one new connection."""
    small = ((SMALL_BYTES, SMALL_BYTES, times.small_s),)
    large = ((ECHO_BYTES, SMALL_BYTES, times.large_s), (SMALL_BYTES, ECHO_BYTES, times.large_s))
    failed = await _exchange(link, address, small + large)
    if failed is None:
        return Reached("ok", address)
    step, outcome, detail = failed
    if outcome in ("no_echo", "not_accepted") or (step and outcome != "timeout"):
        return Reached(outcome, address, detail)
    several = ((SEVERAL_BYTES, SMALL_BYTES, times.small_s), (SMALL_BYTES, SEVERAL_BYTES, times.small_s))
    if await _exchange(link, address, several) is None:
        return Reached("ok", address, _slow(step, times))
    async with small_packets(address) as relay:
        in_small_ones = await _exchange(link, relay, several) is None
    if in_small_ones and await _exchange(link, address, several) is None:  # it was busy, or away, meanwhile
        return Reached("ok", address, _slow(step, times))
    way = ("a call", f"{ECHO_BYTES} bytes to it", f"{ECHO_BYTES} bytes from it")[step]
    if in_small_ones:
        words = f"{way} did not arrive; in packets of {SMALL_SEGMENT} bytes all does"
        return Reached("stalled", address, words)
    if step and await _exchange(link, address, small) is None:  # so it does not hang
        return Reached(
            "stalled", address, f"{way} did not arrive within {times.large_s:g} s; small messages do"
        )
    return Reached("mute" if outcome == "timeout" else outcome, address, detail)


def _slow(step: int, times: ReachTimes) -> str:
    what, limit_s = (f"{ECHO_BYTES} bytes", times.large_s) if step else ("an answer", times.small_s)
    return f"slow: {what} took more than {limit_s:g} s"


_Echo = tuple[int, int, float]
"""Bytes there, bytes back, seconds."""


async def _exchange(
    link: PeerChannel, address: str, echoes: tuple[_Echo, ...]
) -> tuple[int, ReachOutcome, str] | None:
    """Make these echoes over one new connection. Returns the number of the first that failed, and how; None
    if none did."""
    channel = link.new_channel(address)
    try:
        for step, (sent, back, timeout_s) in enumerate(echoes):
            if (problem := await _echo(link, channel, sent, back, timeout_s)) is not None:
                return (step, *problem)
        return None
    finally:
        await channel.close()


async def _echo(
    link: PeerChannel, channel: aio.Channel, sent: int, back: int, timeout_s: float
) -> tuple[ReachOutcome, str] | None:
    """None when the echo came back whole."""
    data = encode_echo(os.urandom(sent), back)  # random: compressible bytes would prove nothing over a tunnel
    ask = channel.unary_unary(f"/{SERVICE}/Echo")
    link.traffic.bytes_out += len(data)
    try:
        reply = await ask(data, timeout=timeout_s, metadata=link.metadata(), wait_for_ready=False)
    except aio.AioRpcError as e:
        if e.code() is grpc.StatusCode.UNIMPLEMENTED:
            return "no_echo", "its version has no echo: full-size packets were not tried"
        if e.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
            return "timeout", f"no answer within {timeout_s:g} s"
        if e.code() is grpc.StatusCode.PERMISSION_DENIED:
            return "not_accepted", e.details() or ""
        return "failed", e.details() or e.code().name.lower()
    link.traffic.bytes_in += len(reply)
    return None
