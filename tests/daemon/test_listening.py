"""Addresses that come late, ports that are left in time and those that are not: in virtual time."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from gossipseg.daemon import listening
from gossipseg.daemon.listening import MAX_RETRY_S, TAKEN_PATIENCE_S, Time, listen
from gossipseg.daemon.observe.status_view import WorkerView
from gossipseg.errors import EXIT_CONFIG, EXIT_FAILED, GossipsegError
from gossipseg.wire.listening import CannotListen, cannot_listen, port_holder, require_name, why_not


@dataclass
class Owner:
    """Keeps what it is told."""

    training: WorkerView = field(default_factory=WorkerView)
    tasks: list[asyncio.Task[Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    failures: list[GossipsegError] = field(default_factory=list)

    def spawn(self, work: Coroutine[Any, Any, Any], name: str = "task") -> None:
        self.tasks.append(asyncio.create_task(work))

    def note(self, event: str, **fields: Any) -> None:
        self.notes.append(f"{event} {fields['part']}")

    def tell_watchers(self) -> None: ...

    def fail(self, error: GossipsegError) -> None:
        self.failures.append(error)

    async def end(self) -> None:
        await asyncio.gather(*self.tasks)


@dataclass
class Clock:
    """Virtual: a pause takes no time."""

    s: float = 0.0
    pauses: list[float] = field(default_factory=list)

    async def sleep(self, seconds: float) -> None:
        self.s += seconds
        self.pauses.append(seconds)

    @property
    def time(self) -> Time:
        return Time(lambda: self.s, self.sleep)


def failing(*numbers: int) -> Callable[[], Coroutine[Any, Any, None]]:
    """Fails so, once each, and then listens."""
    left = list(numbers)

    async def start() -> None:
        if left:
            number = left.pop(0)
            raise cannot_listen("192.0.2.7:7443", OSError(number, os.strerror(number)))

    return start


async def test_an_address_that_comes_late_is_waited_for_however_long() -> None:
    owner, clock = Owner(), Clock()
    await listen(owner, "listen", failing(*[errno.EADDRNOTAVAIL] * 100), clock.time)
    await asyncio.sleep(0)
    await owner.end()
    assert owner.failures == [] and owner.training.warnings == {}
    assert owner.notes == ["cannot_listen listen", "listening listen"], "said once, and when it is over"
    assert clock.pauses[:6] == [1, 2, 4, 8, 10, 10] and max(clock.pauses) == MAX_RETRY_S and clock.s > 900


async def test_meanwhile_status_has_a_reason() -> None:
    owner, go_on = Owner(), asyncio.Event()

    async def wait(_: float) -> None:
        await go_on.wait()

    await listen(owner, "listen", failing(errno.EADDRNOTAVAIL), Time(sleep=wait))
    for _ in range(3):
        await asyncio.sleep(0)
    text = owner.training.warnings["listen"]
    assert "192.0.2.7:7443" in text and "Cannot assign" in text and "Trying again" in text
    go_on.set()
    await owner.end()
    assert owner.training.warnings == {}


async def test_a_port_that_is_left_in_time_is_taken_over() -> None:
    owner, clock = Owner(), Clock()
    await listen(owner, "listen", failing(*[errno.EADDRINUSE] * 10), clock.time)
    await owner.end()
    assert owner.failures == [] and 9 <= clock.s <= TAKEN_PATIENCE_S


async def test_a_port_that_stays_taken_ends_the_daemon_so_that_it_is_started_again() -> None:
    owner, clock = Owner(), Clock()
    await listen(owner, "listen", failing(*[errno.EADDRINUSE] * 1000), clock.time)
    await owner.end()
    assert [e.exit_code for e in owner.failures] == [EXIT_FAILED] and clock.s <= TAKEN_PATIENCE_S + 2
    assert "7443" in str(owner.failures[0])


async def test_patience_begins_when_the_address_has_come() -> None:
    owner, clock = Owner(), Clock()
    wait, taken = [errno.EADDRNOTAVAIL] * 20, [errno.EADDRINUSE] * 5
    await listen(owner, "listen", failing(*wait, *taken), clock.time)
    await owner.end()
    assert owner.failures == []


async def test_what_no_waiting_mends_is_refused_at_once_and_for_good() -> None:
    owner = Owner()
    with pytest.raises(CannotListen) as e:
        await listen(owner, "listen", failing(errno.EACCES))
    assert e.value.exit_code == EXIT_CONFIG and "CAP_NET_BIND_SERVICE" in str(e.value)
    assert owner.tasks == []


async def test_a_mute_name_server_does_not_hold_up_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listening, "FIRST_ANSWER_S", 0.0)
    owner, answered = Owner(), asyncio.Event()
    await listen(owner, "listen", lambda: _after(answered), Time())
    await asyncio.sleep(0)
    assert "name server" in owner.training.warnings["listen"]
    answered.set()
    await owner.end()
    assert owner.training.warnings == {}


async def _after(event: asyncio.Event) -> None:
    await event.wait()


async def test_a_name_that_does_not_resolve_yet_is_late(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: Any, **__: Any) -> Any:
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(CannotListen, match="Temporary failure") as e:
        await require_name("north.example:7443")
    assert e.value.why == "late"


def test_who_has_the_port_is_named() -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        port = s.getsockname()[1]
        assert port_holder(port).endswith(f"process {os.getpid()}")
        error = why_not(f"127.0.0.1:{port}", RuntimeError("no"))
        assert error.why == "taken" and f"process {os.getpid()}" in str(error)
    assert port_holder(port) == ""
    assert why_not("192.0.2.1:0", RuntimeError("no")).why == "late"
    assert port_holder(1, Path("/nowhere")) == ""


def test_a_machine_that_is_short_of_files_is_waited_for() -> None:
    """It mends itself: exit code 78, after which nothing is started again, would be for good."""
    error = cannot_listen("0.0.0.0:7443", OSError(errno.EMFILE, "Too many open files"))
    assert error.why == "late" and "LimitNOFILE" in str(error)
