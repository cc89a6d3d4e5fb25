"""The shell around the core, with a real core and store: order, warnings, and what may not end the daemon."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gossipseg.core import effects as fx
from gossipseg.core import events as ev
from gossipseg.core import messages as ms
from gossipseg.errors import LocalError
from tests.core.rig import TRAINING
from tests.daemon.harness import running
from tests.e2e.federation import Federation


async def test_models_that_cannot_be_collected_are_a_warning(
    files: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(files) as (r, failures):

        def broken(*_: Any, **__: Any) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(r.store, "collect", broken)
        r.collect_garbage()
        async with asyncio.timeout(10):
            while not (failures or "store" in r.training.warnings):  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        assert failures == [] and "Permission denied" in r.training.warnings["store"]


async def test_what_a_peer_says_does_not_end_the_daemon(
    files: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(files) as (r, failures):
        real = r.node.step

        def step(event: ev.Event, now: float) -> list[fx.Effect]:
            if isinstance(event, ev.Reply):
                raise KeyError("a mistake of ours that a peer found")
            return real(event, now)

        async def request(*_: Any) -> Any:
            return ms.Ack((), TRAINING)

        monkeypatch.setattr(type(r.node), "step", lambda self, e, now: step(e, now))
        monkeypatch.setattr(r.transport, "request", request)
        await r.calls.request(fx.Request(77, "south", ms.Ping((), TRAINING), 1.0))
        assert failures == [] and r.events.tail(1)[0]["event"] == "internal_error"


async def test_a_tick_that_fails_ends_the_daemon_and_not_the_clock_alone(
    files: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(files) as (r, failures):

        def step(self: Any, event: ev.Event, now: float) -> list[fx.Effect]:
            raise KeyError("a mistake of ours")

        monkeypatch.setattr(type(r.node), "step", step)
        monkeypatch.setattr(type(r.node), "next_deadline", lambda self: 0.0)
        with pytest.raises(KeyError):
            r.inject(ev.Pause(True))  # from here on the clock ticks at once
        async with asyncio.timeout(10):
            while not failures:  # noqa: ASYNC110
                await asyncio.sleep(0)
        assert isinstance(failures[0], LocalError) and "a mistake of ours" in str(failures[0])


async def test_two_watchers_both_see_a_change(files: Federation) -> None:
    async with running(files) as (r, _):
        first = second = r.changed
        r.tell_watchers()
        assert first.is_set() and second.is_set() and not r.changed.is_set()


# ---------------------------------------------------------------- promises that must be on disk
