"""The order in which a worker sees its orders."""

from __future__ import annotations

import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gossipseg.learn import protocol
from gossipseg.learn.worker.link import DaemonLink

SWAP = protocol.Swap("north", 3)


@pytest.fixture
def ends() -> Iterator[tuple[DaemonLink, socket.socket]]:
    """A worker's link, and the daemon's end of its socket. The link's thread ends the process with the
    socket: it stays open until the tests are over."""
    folder = tempfile.mkdtemp(prefix="link-")
    path = Path(folder) / "s"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(1)
    link = DaemonLink(path)
    daemon, _ = listener.accept()
    KEPT.extend((listener, daemon))
    yield link, daemon


KEPT: list[socket.socket] = []


def test_orders_about_personal_models_hold_up_no_swap(ends: tuple[DaemonLink, socket.socket]) -> None:
    link, daemon = ends
    sent: list[protocol.Message] = [
        protocol.ExportPersonal(),
        protocol.HoldPersonal([]),
        protocol.ExportSnapshot(SWAP),
        protocol.StartRound(2),
        protocol.ExportSnapshot(protocol.Swap("north", 4)),
    ]
    daemon.sendall(b"".join(protocol.encode(m) for m in sent))
    deadline = time.monotonic() + 60
    while len(link._orders) < len(sent) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert link.swap_order() == protocol.ExportSnapshot(SWAP)
    assert link.swap_order() is None, "one behind another order is not due yet"
    assert [link.order() for _ in range(3)] == [sent[0], sent[1], sent[3]]
    assert link.swap_order() == sent[4]
