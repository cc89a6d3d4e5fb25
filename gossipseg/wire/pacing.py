"""How fast, and at which hours, models are sent: a token bucket and windows of the day."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from gossipseg.errors import ConfigError

DAY_S = 86_400
_WINDOW = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-(?:([01]\d|2[0-3]):([0-5]\d)|24:00)")


class TokenBucket:
    """A token bucket: `rate` bytes a second, and at most `burst` of them at once after a pause.

    Bytes are taken on credit, before they are sent. take() returns the wait until they are paid for. So
    parallel streams share the rate in the order in which they ask.
    """

    def __init__(self, rate_bytes_per_s: float, burst_bytes: float, now_s: float) -> None:
        """`now_s`: any clock that does not go back. Raises ValueError unless both are positive."""
        if rate_bytes_per_s <= 0 or burst_bytes <= 0:
            raise ValueError(f"rate {rate_bytes_per_s} and burst {burst_bytes} must be positive")
        self._rate, self._burst = rate_bytes_per_s, burst_bytes
        self._tokens, self._at_s = burst_bytes, now_s

    def take(self, size_bytes: int, now_s: float) -> float:
        """Seconds to wait before these bytes may be sent; 0 if they may at once."""
        elapsed_s = max(0.0, now_s - self._at_s)
        self._at_s = max(self._at_s, now_s)
        self._tokens = min(self._burst, self._tokens + elapsed_s * self._rate) - size_bytes
        return max(0.0, -self._tokens / self._rate)


class Throttle:
    """Limits outgoing bytes to a rate, for all streams of this site together."""

    def __init__(
        self,
        rate_bytes_per_s: int,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        """`clock`: monotonic seconds. Pieces of `piece_bytes` keep the flow even at low rates."""
        self.piece_bytes = max(16 << 10, min(1 << 20, rate_bytes_per_s // 4))
        self._bucket = TokenBucket(rate_bytes_per_s, self.piece_bytes, clock())
        self._clock, self._sleep = clock, sleep

    async def spend(self, size_bytes: int) -> None:
        """Return once these bytes may be sent."""
        wait_s = self._bucket.take(size_bytes, self._clock())
        if wait_s > 0:
            await self._sleep(wait_s)


@dataclass(frozen=True, slots=True)
class Windows:
    """Hours of the day, as (begin, end) in seconds after local midnight; none: always open.

    A window whose end is not after its begin goes past midnight.
    """

    spans: tuple[tuple[int, int], ...] = ()

    @classmethod
    def parse(cls, texts: Sequence[str]) -> Windows:
        """Parse texts such as "22:00-06:00". Raises ConfigError for the first invalid one."""
        return cls(tuple(_span(text) for text in texts))

    def wait_s(self, second_of_day: float) -> float:
        """Seconds until a window is open; 0 while one is."""
        if not self.spans or any(_inside(span, second_of_day) for span in self.spans):
            return 0.0
        return min((begin - second_of_day) % DAY_S for begin, _ in self.spans)

    def left_s(self, second_of_day: float) -> float:
        """Seconds until a window that is open now closes; a day where none is."""
        ends = [
            (end - second_of_day) % DAY_S or DAY_S
            for b, end in self.spans
            if _inside((b, end), second_of_day)
        ]
        return min(ends, default=float(DAY_S))

    def opens_at(self, second_of_day: float) -> str:
        """The next opening as HH:MM."""
        at = int(second_of_day + self.wait_s(second_of_day)) % DAY_S
        return f"{at // 3600:02d}:{at % 3600 // 60:02d}"


def _span(text: str) -> tuple[int, int]:
    match = _WINDOW.fullmatch(text)
    if match is None:
        raise ConfigError(
            "is no window of the day",
            key="transfers.windows",
            value=text,
            remedy='Write local times of 24 hours, such as "22:00-06:00".',
        )
    begin = int(match[1]) * 3600 + int(match[2]) * 60
    end = DAY_S if match[3] is None else int(match[3]) * 3600 + int(match[4]) * 60
    if begin == end:
        raise ConfigError(
            "begins and ends at the same time",
            key="transfers.windows",
            value=text,
            remedy="Remove it to send at any hour, or write a window with some length.",
        )
    return begin, end


def _inside(span: tuple[int, int], second_of_day: float) -> bool:
    begin, end = span
    if begin < end:
        return begin <= second_of_day < end
    return second_of_day >= begin or second_of_day < end
