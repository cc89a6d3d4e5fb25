"""The order in which a worker sees its orders."""

from __future__ import annotations

import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gossipseg.learn import protocol
from gossipseg.learn.worker.link import DaemonLink, StopRequested

DEADLINE_S = 60.0


@pytest.fixture
def ends() -> Iterator[tuple[DaemonLink, socket.socket]]:
    """A worker's link, and the daemon's end of its socket. That one is never closed: the worker's process
    would end with it."""
    with tempfile.TemporaryDirectory(prefix="link-") as folder, socket.socket(socket.AF_UNIX) as listener:
        path = Path(folder) / "s"
        listener.bind(str(path))
        listener.listen(1)
        link = DaemonLink(path)
        daemon, _ = listener.accept()
        yield link, daemon
        daemon.detach()


def until_read(link: DaemonLink) -> None:
    """Wait until the link has read the Stop that was sent last."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        try:
            link.check()
        except StopRequested:
            return
        time.sleep(0.01)
    raise AssertionError("it has not read what was sent")


def test_orders_about_personal_models_hold_up_no_swap(ends: tuple[DaemonLink, socket.socket]) -> None:
    link, daemon = ends
    first, second = (protocol.ExportSnapshot(protocol.Swap("north", number)) for number in (3, 4))
    export, hold, round = protocol.ExportPersonal(), protocol.HoldPersonal([]), protocol.StartRound(2)
    sent: list[protocol.Message] = [export, hold, first, round, second, protocol.Stop()]
    daemon.sendall(b"".join(protocol.encode(m) for m in sent))
    until_read(link)
    assert link.swap_order() == first
    assert link.swap_order() is None, "one behind another order is not due yet"
    assert [link.order() for _ in range(3)] == [export, hold, round]
    assert link.swap_order() == second
    with pytest.raises(StopRequested):
        link.order()
