"""sd_notify against a fake NOTIFY_SOCKET: the notifier alone, and the real daemon from READY to STOPPING."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from pathlib import Path

import pytest

from gossipseg.daemon.notify import Notifier
from tests.e2e.federation import federation


def listen(path: Path) -> socket.socket:
    s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    s.bind(str(path))
    s.settimeout(30.0)
    return s


def test_messages(tmp_path: Path) -> None:
    with listen(tmp_path / "n") as s:
        notifier = Notifier(str(tmp_path / "n"), None)
        notifier.ready("up")
        notifier.watchdog()
        notifier.stopping("SIGTERM")
        assert [s.recv(200).decode() for _ in range(3)] == [
            "READY=1\nSTATUS=up",
            "WATCHDOG=1",
            "STOPPING=1\nSTATUS=SIGTERM",
        ]


def test_a_systemd_that_stands_still_is_not_waited_for(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as nobody:
        nobody.bind(str(tmp_path / "notify"))
        thread = threading.Thread(
            target=flood, args=(Notifier(str(tmp_path / "notify"), 1.0), nobody), daemon=True
        )
        thread.start()
        thread.join(30)
        assert not thread.is_alive()


def flood(notifier: Notifier, receiver: socket.socket) -> None:
    """Until there is no more room, and one more."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s, contextlib.suppress(BlockingIOError):
        s.setblocking(False)
        while True:
            s.sendto(b"x", receiver.getsockname())
    notifier.watchdog()


def test_environment() -> None:
    mine = {"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "60000000", "WATCHDOG_PID": str(os.getpid())}
    assert Notifier.from_env(mine) == Notifier("/x", 30.0)
    assert Notifier.from_env({**mine, "WATCHDOG_PID": "1"}).watchdog_interval_s is None
    assert Notifier.from_env({}) == Notifier(None, None)
    Notifier(None, None).ready("no systemd, no harm")
    Notifier("/nowhere/at/all", None).ready("gone, no harm")


@pytest.mark.e2e
def test_the_daemon_tells_systemd_that_it_is_ready_alive_reloading_and_stopping(tmp_path: Path) -> None:
    with federation(tmp_path, ["north"]) as f, listen(tmp_path / "n") as s:
        north = f["north"]
        north.env = {"NOTIFY_SOCKET": str(tmp_path / "n"), "WATCHDOG_USEC": "200000"}
        north.start()
        seen: list[str] = []

        def until(word: str) -> None:
            while not any(word in text for text in seen):
                seen.append(s.recv(300).decode())

        until("READY=1")
        until("WATCHDOG=1")
        seen.clear()
        north.send(signal.SIGHUP)
        until("RELOADING=1")
        until("READY=1")
        assert north.end() == 0
        until("STOPPING=1")
