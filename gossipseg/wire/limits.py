"""Limits of one listed peer: parallel calls, calls a second, time per call.

A stranger does not come this far: the handshake rejects it (grpc_options bounds the number of attempts).
"""

from __future__ import annotations

from dataclasses import dataclass

REFUSED_HELD = 8
"""Refused calls of one site that are made to wait; further ones are refused at once."""


@dataclass(frozen=True, slots=True)
class PeerLimits:
    """The limits of one listed peer. An honest one stays far below all of them."""

    calls_at_once: int = 32
    calls_per_s: float = 50.0
    burst_calls: float = 200.0
    request_s: float = 10.0
    """Seconds from the start of a call until its request, or its stream's header, must have come."""
    stall_s: float = 120.0
    """In every such span a stream must bring `stall_bytes` …"""
    stall_bytes: int = 64 << 10
    stream_s: float = 3600.0
    """… and end within this time."""
    refusal_s: float = 0.5
    """Seconds that a call over the limit waits for its refusal: a flood slows itself down."""


class RateLimiter:
    """The calls of one site: how many are under way, how many it may still begin."""

    __slots__ = ("_at_s", "_limits", "_tokens", "held", "turned_away", "under_way")

    def __init__(self, limits: PeerLimits, now_s: float) -> None:
        self._limits, self._tokens, self._at_s = limits, limits.burst_calls, now_s
        self.under_way = self.held = self.turned_away = 0

    def enter(self, now_s: float) -> str:
        """Count a call in; returns why it exceeds a limit, or "". `now_s`: a clock that does not go back."""
        limits = self._limits
        self._tokens = min(limits.burst_calls, self._tokens + (now_s - self._at_s) * limits.calls_per_s)
        self._at_s = now_s
        if self.under_way >= limits.calls_at_once:
            why = f"{self.under_way} calls are under way"
        elif self._tokens < 1:
            why = f"more than {limits.calls_per_s:g} calls a second"
        else:
            self._tokens -= 1
            self.under_way += 1
            return ""
        self.turned_away += 1
        return why

    def leave(self) -> None:
        """Count a call out."""
        self.under_way -= 1


class StreamProgress:
    """Whether a stream is fast enough: enough bytes in every span, and an end in time."""

    __slots__ = ("_came", "_ends_s", "_limits", "_span_ends_s")

    def __init__(self, limits: PeerLimits, now_s: float) -> None:
        self._limits, self._came = limits, 0
        self._span_ends_s, self._ends_s = now_s + limits.stall_s, now_s + limits.stream_s

    def came(self, size_bytes: int, now_s: float) -> None:
        """Count received bytes; a span that brought enough is followed by the next."""
        self._came += size_bytes
        if self._came >= self._limits.stall_bytes:
            self._came, self._span_ends_s = 0, now_s + self._limits.stall_s

    def resumed(self, since_s: float, now_s: float) -> None:
        """Start the span anew after a delay on our side."""
        self._span_ends_s += now_s - since_s

    def left_s(self, now_s: float) -> float:
        """Seconds allowed for the next chunk; 0 when the time is over."""
        return max(0.0, min(self._span_ends_s, self._ends_s) - now_s)

    @property
    def text(self) -> str:
        """The requirement on the stream, in words."""
        limits = self._limits
        return (
            f"a stream must bring {limits.stall_bytes} bytes in every {limits.stall_s:g} s, "
            f"and end in {limits.stream_s:g} s"
        )
