"""The shell around the core, with a real core and store: order, warnings, and what may not end the daemon."""

from __future__ import annotations

import argparse
import asyncio
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gossipseg.core import effects as fx
from gossipseg.core import events as ev
from gossipseg.core import messages as ms
from gossipseg.core.types import PeerInfo, Phase, Proposal, SuspectRecord
from gossipseg.daemon.health.disk import DiskWatch
from gossipseg.daemon.main import Daemon, load_config
from gossipseg.errors import LocalError, PeerRefused
from gossipseg.learn import protocol
from gossipseg.store import StateFile
from tests.core.rig import TRAINING, model
from tests.daemon.harness import files_only, perform, running, saved, settled
from tests.e2e.federation import Federation

READY = protocol.Ready(0, 0, 8, "net", {}, 1, "cpu", "no", {"training": 8})


@pytest.fixture
def files(tmp_path: Path) -> Iterator[Federation]:
    with files_only(tmp_path, "north", "south") as f:
        yield f


def done(number: int, **changes: Any) -> protocol.RoundDone:
    return protocol.RoundDone(
        **{
            "round": number,
            "steps": number,
            "loss": 0.5,
            "terms": {},
            "dice_val": 0.5,
            "dice_val_local": None,
            "seconds": 1.0,
            **changes,
        }
    )


async def test_a_death_does_not_overtake_the_round_finished_before_it(
    files: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(files) as (r, failures):
        r.worker.on_worker_message(READY)
        await settled(r)
        assert r.node.phase is Phase.TRAINING
        go_on, real = threading.Event(), r.store.adopt
        monkeypatch.setattr(r.store, "adopt", lambda file: (go_on.wait(10), real(file))[1])
        exported = tmp_path / "round-1.safetensors"
        exported.write_bytes(b"model")
        r.worker.on_worker_message(done(1, export=protocol.Export(str(exported), 8, 1)))
        r.worker.on_worker_lost("killed", False)
        r.worker.on_worker_message(msgspec.structs.replace(READY, round=1, steps=1))
        go_on.set()
        await settled(r)
        assert (r.node.round, r.node.phase, failures) == (1, Phase.TRAINING, [])
        names = [e["event"] for e in r.events.tail(50)]
        assert names.index("round_finished") < names.index("worker_lost")
        assert "dropped_event" not in names


async def test_a_warning_of_the_worker_stays_until_it_is_withdrawn(files: Federation) -> None:
    async with running(files) as (r, _):
        r.worker.on_worker_message(msgspec.structs.replace(READY, warning="a damaged checkpoint"))
        await settled(r)
        assert list(r.training.warnings.values()) == ["a damaged checkpoint"]
        r.worker.on_worker_message(done(1, warning="checkpoint not written: disk full"))
        await settled(r)  # the node's own state was written meanwhile
        assert list(r.training.warnings.values()) == ["checkpoint not written: disk full"]
        r.worker.on_worker_message(done(2))
        await settled(r)
        assert r.training.warnings == {}


async def test_models_that_cannot_be_collected_are_a_warning(
    files: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(files) as (r, failures):

        def broken(*_: Any, **__: Any) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(r.store, "collect", broken)
        await r._collect_garbage()
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
        r._tick()
        assert len(failures) == 1 and isinstance(failures[0], LocalError)


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


async def test_two_watchers_both_see_a_change(files: Federation) -> None:
    async with running(files) as (r, _):
        first = second = r.changed
        r.tell_watchers()
        assert first.is_set() and second.is_set() and not r.changed.is_set()


# ---------------------------------------------------------------- promises that must be on disk

PROPOSAL = Proposal(1, 0, model("g"), ("north", "south"))
BINDING: list[ms.Request] = [
    ms.Prepare("run", "sites", 1, 0),
    ms.Accept("run", "sites", PROPOSAL),
    ms.Commit("run", "sites", PROPOSAL),
]


async def test_a_site_whose_state_cannot_be_saved_binds_itself_to_nothing(
    files: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A promise that a crash would make it forget is not given: two global models could come of it."""
    async with running(files) as (r, _):
        heard: list[ev.Event] = []
        answered: list[ms.Reply] = []
        monkeypatch.setattr(r, "inject", heard.append)
        monkeypatch.setattr(r.intake, "respond", lambda token, body: answered.append(body))

        replies = [fx.Respond(1, ms.PrepareReply(True, 3)), fx.Respond(2, ms.AcceptReply("stored"))]
        full = LocalError("disk full")
        with monkeypatch.context() as patch:
            patch.setattr(StateFile, "save", lambda *_: (_ for _ in ()).throw(full))
            await perform(r, fx.Persist(fx.Snapshot()), *replies)
        await perform(r, *(fx.Request(i, "south", body, 1.0) for i, body in enumerate(BINDING)))
        assert answered == [ms.PrepareReply(False, 3, "not_saved"), ms.AcceptReply("reject", "not_saved")]
        assert [e.id for e in heard if isinstance(e, ev.RequestFailed)] == [0, 1, 2]

        harmless = [ms.PrepareReply(False, 3, "behind"), ms.AcceptReply("missing"), ms.FetchReply("busy")]
        answered.clear()
        await perform(r, *(fx.Respond(i, body) for i, body in enumerate(harmless)))
        assert answered == harmless

        answered.clear()
        await perform(r, fx.Persist(fx.Snapshot()), *replies)
        assert answered == [reply.body for reply in replies]


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
        own = r.node._membership.news.own
        accused = SuspectRecord("north", own.incarnation, "south")
        r.inject(ev.Incoming("south", 7, ms.Ping((accused,), INFO)))
        await saved(r)
        assert r.node.incarnation == own.incarnation + 1 and order == [own.incarnation + 1, 7]


async def test_a_slow_disk_is_told_and_forgotten_in_time(files: Federation) -> None:
    now = 0.0
    watch = DiskWatch("/srv/state", lambda: now)
    assert watch.problem() == ""
    with watch.timing("node.json"):
        now = 1.0
        assert watch.problem() == ""
        now = 3.0
        assert "node.json is being written for 3 s" in watch.problem() and "/srv/state" in watch.problem()
        now = 4.0
    assert "to write node.json took 4.0 s" in watch.problem() and watch.last_slow_s() == 4.0
    now = 700.0
    assert watch.problem() == "" and watch.last_slow_s() == 0.0
    with pytest.raises(LocalError):
        await watch.beside("x", lambda: (_ for _ in ()).throw(LocalError("y")).__next__())
    assert watch._under_way == {}


async def test_nothing_is_left_of_a_daemon_that_ended(files: Federation, tmp_path: Path) -> None:
    """No task, no open file of its state, no port; a scraper that says nothing does not hold it up."""
    folder = files["north"].folder
    (folder / "state").mkdir(exist_ok=True)
    args = argparse.Namespace(
        config=str(files["north"].config),
        set=["metrics.port=0"],
        listen=None,
        state_dir=None,
        rounds=None,
        device=None,
    )
    daemon, before = Daemon(load_config(args), args), asyncio.all_tasks()
    running = asyncio.create_task(daemon.run())
    async with asyncio.timeout(30):
        while daemon.exporter is None or not daemon._up:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        port = daemon.exporter.port
        silent = socket.create_connection(("127.0.0.1", port))
        daemon.end("test")
        await running
    silent.close()
    assert asyncio.all_tasks() == before
    links = [p.readlink() for p in Path("/proc/self/fd").iterdir() if p.is_symlink()]
    assert not [link for link in links if link.is_relative_to(tmp_path)]
    for listening in (port, int(daemon.transport.address.rpartition(":")[2])):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", listening)).close()
