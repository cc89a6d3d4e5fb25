"""How much of this site one listed peer may take up: calls at once, calls a second, time to make them.

A stranger never comes so far: the handshake turns it away (grpc_options bounds how many may try).
"""

from __future__ import annotations

from dataclasses import dataclass

REFUSED_HELD = 8
"""Refused calls of one site that are made to wait; more of them are refused at once."""


@dataclass(frozen=True, slots=True)
class PeerLimits:
    """What one listed peer may ask for. An honest one stays far below all of it."""

    calls_at_once: int = 32
    calls_per_s: float = 50.0
    burst_calls: float = 200.0
    request_s: float = 10.0
    """A request, or a stream's header, must have come so long after its call began."""
    stall_s: float = 120.0
    """In every such span a stream must bring `stall_bytes` …"""
    stall_bytes: int = 64 << 10
    stream_s: float = 3600.0
    """… and be through after so long."""
    refusal_s: float = 0.5
    """How long a call that is one too many waits for its refusal: a flood pays for itself."""


class RateLimiter:
    """The calls of one site: how many are under way, how many it may still begin."""

    __slots__ = ("_at_s", "_limits", "_tokens", "held", "turned_away", "under_way")

    def __init__(self, limits: PeerLimits, now_s: float) -> None:
        self._limits, self._tokens, self._at_s = limits, limits.burst_calls, now_s
        self.under_way = self.held = self.turned_away = 0

    def enter(self, now_s: float) -> str:
        """Count a call in; returns why it is one too many, or "". `now_s`: a clock that does not go back."""
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
        """A call that was counted in has ended."""
        self.under_way -= 1


class StreamProgress:
    """Whether a stream gets on: enough in every span, and through in its time."""

    __slots__ = ("_came", "_ends_s", "_limits", "_span_ends_s")

    def __init__(self, limits: PeerLimits, now_s: float) -> None:
        self._limits, self._came = limits, 0
        self._span_ends_s, self._ends_s = now_s + limits.stall_s, now_s + limits.stream_s

    def came(self, size_bytes: int, now_s: float) -> None:
        """So much has come; a span that brought enough is followed by the next."""
        self._came += size_bytes
        if self._came >= self._limits.stall_bytes:
            self._came, self._span_ends_s = 0, now_s + self._limits.stall_s

    def resumed(self, since_s: float, now_s: float) -> None:
        """In between it was our side that took its time: the span goes on from here."""
        self._span_ends_s += now_s - since_s

    def left_s(self, now_s: float) -> float:
        """Seconds that the next piece may take; 0 when the time is over."""
        return max(0.0, min(self._span_ends_s, self._ends_s) - now_s)

    @property
    def text(self) -> str:
        """What was asked of the stream."""
        limits = self._limits
        return (
            f"a stream must bring {limits.stall_bytes} bytes in every {limits.stall_s:g} s, "
            f"and end in {limits.stream_s:g} s"
        )
