"""A real control server in a thread, with documents that a test chooses; gossipctl run in this process."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from gossipseg.ctl import main
from gossipseg.errors import GossipsegError
from gossipseg.wire import documents as doc
from gossipseg.wire.control import ControlServer
from tests.ctl.samples import PEERS, STATUS


@dataclass
class Answers:
    """The ControlHandler of a test."""

    status_doc: doc.StatusDoc = STATUS
    peers_doc: doc.PeersDoc = PEERS
    exchanges_doc: doc.ExchangesDoc = field(default_factory=doc.ExchangesDoc)
    models_doc: doc.ModelsDoc = field(default_factory=doc.ModelsDoc)
    rounds_doc: doc.RoundsDoc = field(default_factory=doc.RoundsDoc)
    quarantine_doc: doc.QuarantineDoc = field(default_factory=doc.QuarantineDoc)
    reach_doc: doc.ReachDoc = field(default_factory=doc.ReachDoc)
    events_doc: doc.EventsDoc = field(default_factory=doc.EventsDoc)
    ok_doc: doc.OkDoc = field(default_factory=lambda: doc.OkDoc(True, "done"))
    frames: tuple[doc.WatchDoc, ...] = (doc.WatchDoc(STATUS, PEERS),)
    error: GossipsegError | None = None
    asked: list[tuple[Any, ...]] = field(default_factory=list)

    def _note(self, *what: Any) -> None:
        self.asked.append(what)
        if self.error is not None:
            raise self.error

    async def status(self) -> doc.StatusDoc:
        self._note("status")
        return self.status_doc

    async def peers(self, limit: int) -> doc.PeersDoc:
        self._note("peers", limit)
        return self.peers_doc

    async def exchanges(self, limit: int) -> doc.ExchangesDoc:
        self._note("exchanges", limit)
        return self.exchanges_doc

    async def models(self) -> doc.ModelsDoc:
        self._note("models")
        return self.models_doc

    async def rounds(self) -> doc.RoundsDoc:
        self._note("rounds")
        return self.rounds_doc

    async def events(self, limit: int, since: int) -> doc.EventsDoc:
        self._note("events", limit, since)
        return self.events_doc

    async def quarantine(self) -> doc.QuarantineDoc:
        return self.quarantine_doc

    async def lift_quarantine(self, site: str) -> doc.OkDoc:
        self._note("lift_quarantine", site)
        return self.ok_doc

    async def reach(self) -> doc.ReachDoc:
        self._note("reach")
        return self.reach_doc

    async def pause(self) -> doc.OkDoc:
        self._note("pause")
        return self.ok_doc

    async def resume(self) -> doc.OkDoc:
        self._note("resume")
        return self.ok_doc

    async def leave(self) -> doc.OkDoc:
        self._note("leave")
        return self.ok_doc

    async def reload(self) -> doc.OkDoc:
        self._note("reload")
        return self.ok_doc

    async def watch(self) -> AsyncIterator[doc.WatchDoc]:
        self._note("watch")
        for frame in self.frames:
            yield frame


@dataclass
class Daemon:
    """A control server that answers on `socket`."""

    socket: Path
    answers: Answers
    stop: Callable[[], None]


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    answers, socket = Answers(), tmp_path / "control.sock"
    loop, up, down = asyncio.new_event_loop(), threading.Event(), asyncio.Event()

    async def serve() -> None:
        server = ControlServer(socket, answers)
        await server.start()
        up.set()
        await down.wait()
        await server.close(0)

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    assert up.wait(10)

    def stop() -> None:
        if thread.is_alive():
            loop.call_soon_threadsafe(down.set)
            thread.join(10)
        assert not thread.is_alive()

    yield Daemon(socket, answers, stop)
    stop()
    loop.close()


@dataclass(frozen=True)
class Result:
    """What a command left."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()


@pytest.fixture
def ctl(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run gossipctl in this process, as to a pipe."""
    for name in ("GOSSIPSEG_CONFIG", "GOSSIPSEG_STATE_DIR", "GOSSIPSEG_CONTROL_SOCKET"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: object) -> Result:
        capsys.readouterr()
        code = main.run([str(a) for a in arguments])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        assert captured.err.count("gossipctl: ") <= 1, captured.err
        return Result(code, captured.out, captured.err)

    return run
