"""Calls to peers: each request has an outcome, and a transfer shows how far it is."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from gossipseg.core import effects as fx
from gossipseg.core import events as ev
from gossipseg.core import messages as ms
from gossipseg.errors import PeerRefused
from tests.core.rig import TRAINING, model
from tests.daemon.harness import running
from tests.e2e.federation import Federation


@pytest.mark.parametrize(
    ("error", "reason", "detail"),
    [
        (asyncio.CancelledError(), "unreachable", "its connection was closed here"),
        (PeerRefused("south", "no_answer", "too slow"), "refused", "no_answer: too slow"),
        (ZeroDivisionError("x"), "internal", "ZeroDivisionError('x')"),
    ],
)
async def test_every_request_has_an_outcome(
    files: Federation, monkeypatch: pytest.MonkeyPatch, error: BaseException, reason: str, detail: str
) -> None:
    async with running(files) as (r, failures):
        heard: list[ev.Event] = []

        async def request(*_: Any) -> Any:
            raise error

        monkeypatch.setattr(r.transport, "request", request)
        monkeypatch.setattr(r, "hear_peer", heard.append)
        await r.calls.request(fx.Request(5, "south", ms.Ping((), TRAINING), 1.0))
        assert heard == [ev.RequestFailed(5, reason, detail)] and failures == []


async def test_a_transfer_shows_how_far_it_has_come(
    files: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(files) as (r, _):
        seen: list[float | None] = []

        async def push(to: str, ref: Any, path: Path, timeout_s: float, progress: Any) -> None:
            progress(ref.size_bytes // 4)
            seen.append(r.ledger.recent(1)[0].fraction)

        monkeypatch.setattr(r.transport, "push", push)
        start = fx.StartTransfer(9, "south", model())
        r.ledger.effect(start)
        await r.calls.transfer(start)
        assert seen == [0.25] and r.ledger.recent(1)[0].fraction == 1.0
