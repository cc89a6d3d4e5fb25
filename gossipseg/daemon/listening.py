"""Listening on an address that may come late: at boot, with a VPN, with a name that does not resolve yet.

The daemon runs meanwhile: it answers gossipctl, trains, and calls its peers. Another process may free a taken
port soon, if it is a daemon shutting down. After TAKEN_PATIENCE_S a taken port ends this daemon.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Protocol

from gossipseg.daemon.observe.status_view import WorkerView
from gossipseg.errors import GossipsegError
from gossipseg.wire.listening import CannotListen

FIRST_RETRY_S = 1.0
MAX_RETRY_S = 10.0
TAKEN_PATIENCE_S = 15.0
FIRST_ANSWER_S = 3.0
"""Seconds that the start waits for a name server that does not answer."""

Start = Callable[[], Coroutine[Any, Any, None]]


class ListenHost(Protocol):
    """The owner of the addresses, as the runtime is."""

    training: WorkerView

    def spawn(self, work: Coroutine[Any, Any, Any], name: str = "task") -> None: ...

    def note(self, event: str, **fields: Any) -> None: ...

    def tell_watchers(self) -> None: ...

    def fail(self, error: GossipsegError) -> None: ...


@dataclasses.dataclass(frozen=True, slots=True)
class Time:
    """The clock and the pauses, replaced in tests."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep


async def listen(owner: ListenHost, part: str, start: Start, time: Time | None = None) -> None:
    """Start listening, or keep trying in the background: `part` then has a warning in status.

    Raises CannotListen where trying again is of no use.
    """
    attempt = asyncio.ensure_future(start())
    await asyncio.wait({attempt}, timeout=FIRST_ANSWER_S)
    if attempt.done():
        error = attempt.exception()
        if error is None:
            return
        if not isinstance(error, CannotListen) or error.why == "refused":
            raise error
    owner.spawn(_keep_trying(owner, part, start, attempt, time or Time()), f"listen {part}")


async def _keep_trying(
    owner: ListenHost, part: str, start: Start, attempt: asyncio.Future[None], time: Time
) -> None:
    began, delay, why = time.now(), FIRST_RETRY_S, ""
    if not attempt.done():
        _say(owner, part, f"{part}: the address is being looked up; the name server has not answered yet")
    while True:
        try:
            await attempt
            break
        except CannotListen as error:
            if error.why != why:
                began, delay, why = time.now(), FIRST_RETRY_S, error.why
            over = why == "taken" and time.now() - began > TAKEN_PATIENCE_S
            if why == "refused" or over:
                owner.fail(error)
                return
            _say(owner, part, f"{error} Trying again.")
        await time.sleep(delay)
        delay = min(2 * delay, MAX_RETRY_S) if why == "late" else FIRST_RETRY_S
        attempt = asyncio.ensure_future(start())
    owner.training.warn(part, "")
    owner.note("listening", part=part, reason=f"after {time.now() - began:.0f} s")
    owner.tell_watchers()


def _say(owner: ListenHost, part: str, text: str) -> None:
    """Report the reason once, and again when it changes."""
    if owner.training.warnings.get(part) != text:
        owner.training.warn(part, text)
        owner.note("cannot_listen", part=part, reason=text)
        owner.tell_watchers()
