"""What is on disk before anybody hears of it, and what does not wait for the disk."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from gossipseg.core import effects as fx
from gossipseg.core import events as ev
from gossipseg.core import messages as ms
from gossipseg.core.types import PeerInfo, Phase, SuspectRecord
from gossipseg.store import StateFile
from tests.daemon.harness import running, saved
from tests.e2e.federation import Federation

INFO = PeerInfo(0, 0, 8, Phase.TRAINING, "c")
PREPARE = ms.PrepareReply(True, 3)


async def test_a_slow_disk_holds_up_promises_and_no_ping(
    files: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fsync takes seconds: what binds waits for it, what keeps this site alive to others does not."""
    async with running(files) as (r, _):
        await saved(r)  # the first incarnation is on disk
        written, writing, go, answered = [], asyncio.Event(), threading.Event(), []
        loop = asyncio.get_running_loop()

        def slow(_: StateFile, doc: dict[str, Any]) -> None:
            loop.call_soon_threadsafe(writing.set)
            assert go.wait(30)
            written.append(doc["round"])

        monkeypatch.setattr(StateFile, "save", slow)
        monkeypatch.setattr(r.intake, "respond", lambda token, body: answered.append((token, body)))
        incarnation = r.node.incarnation

        def step(*effects: fx.Effect) -> None:
            with monkeypatch.context() as patch:
                patch.setattr(r.recorder, "step", lambda *_: effects)
                r.inject(ev.Tick())

        def snapshot(round: int, incarnation: int = incarnation) -> fx.Persist:
            return fx.Persist(fx.Snapshot(incarnation=incarnation, round=round))

        step(snapshot(1), fx.Respond(1, PREPARE), fx.Respond(2, ms.Ack((), INFO)))
        await writing.wait()
        step(snapshot(2), fx.Respond(3, ms.Ack((), INFO)), fx.Respond(4, ms.AcceptReply("stored")))
        step(snapshot(3), fx.Respond(5, ms.HelloReply(1, 1, "f", (), INFO)))
        assert [token for token, _ in answered] == [2, 3, 5]
        go.set()
        await saved(r)
        assert [token for token, _ in answered] == [2, 3, 5, 1, 4]
        assert written == [1, 3], "the newest is written in place of those that waited"


async def test_an_incarnation_is_on_disk_before_anybody_hears_of_it(
    files: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(files) as (r, _):
        await saved(r)
        order: list[object] = []
        monkeypatch.setattr(StateFile, "save", lambda _, doc: order.append(doc["incarnation"]))
        monkeypatch.setattr(r.intake, "respond", lambda token, body: order.append(token))
        own = r.node.own_record
        accused = SuspectRecord("north", own.incarnation, "south")
        r.inject(ev.Incoming("south", 7, ms.Ping((accused,), INFO)))
        await saved(r)
        assert r.node.incarnation == own.incarnation + 1 and order == [own.incarnation + 1, 7]
