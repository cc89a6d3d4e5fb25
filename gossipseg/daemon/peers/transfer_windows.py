"""Waits for the hours in which models may be sent."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

from gossipseg.core.types import Site
from gossipseg.errors import PeerUnreachable
from gossipseg.wire.pacing import Windows

LOOK_AGAIN_S = 60.0
"""The wall clock may be set forward or back, and summer time begins and ends."""


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
