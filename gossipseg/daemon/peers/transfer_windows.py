"""Waits for the hours in which models may be sent, and tells of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

from gossipseg.core.types import Site
from gossipseg.errors import PeerUnreachable
from gossipseg.wire.pacing import Windows

LOOK_AGAIN_S = 60.0
"""The wall clock may be set forward or back, and summer time begins and ends."""
MIN_LOOK_S = 0.5


def local_second_of_day() -> float:
    """Seconds since local midnight, by the wall clock."""
    now = time.localtime()
    return now.tm_hour * 3600 + now.tm_min * 60 + now.tm_sec


async def window_open(
    windows: Sequence[str],
    timeout_s: float,
    to: Site,
    waits: Callable[[str], None],
    *,
    second_of_day: Callable[[], float] = local_second_of_day,
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
) -> None:
    """Return once a transfer may begin; `waits` is called with the reason of a delay.

    Raises PeerUnreachable (`window_closed`) when no window opens within `timeout_s`. By then the receiver's
    promise has lapsed, and a fresher model is offered instead.
    """
    parsed, left_s = Windows.parse(windows), timeout_s
    while (wait_s := parsed.wait_s(second_of_day())) > 0:
        reason = f"waits for the window until {parsed.opens_at(second_of_day())}"
        if left_s <= 0:
            raise PeerUnreachable(to, "window_closed", reason)
        waits(reason)
        nap_s = min(wait_s, left_s, LOOK_AGAIN_S)
        await sleep(nap_s)
        left_s -= nap_s


async def follow_windows(
    windows: Sequence[str],
    tell: Callable[[str], None],
    *,
    second_of_day: Callable[[], float] = local_second_of_day,
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
) -> None:
    """Call `tell` with the next opening, or "" once a window is open: at once where none is, then at each
    change. Without windows there is nothing to tell."""
    parsed, was_open = Windows.parse(windows), True
    while windows:
        now = second_of_day()
        is_open = parsed.wait_s(now) <= 0
        if is_open is not was_open:
            tell("" if is_open else parsed.opens_at(now))
        was_open = is_open
        await sleep(_next_look_s(parsed, now))


def _next_look_s(windows: Windows, second_of_day: float) -> float:
    """Until the next change, as far as it is near. A second is little beside a window."""
    wait_s = windows.wait_s(second_of_day)
    left_s = wait_s if wait_s > 0 else windows.left_s(second_of_day)
    return max(MIN_LOOK_S, min(LOOK_AGAIN_S, left_s))
