"""The worker's end of the socket to its daemon.

A thread reads, so that orders are seen while the main thread computes. When the socket closes the process
ends at once, in whatever it is doing: files are replaced atomically, and an orphan that trains on would
write into a state directory that may already have a new owner.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from gossipseg.errors import EXIT_UNREACHABLE, DaemonUnreachable
from gossipseg.learn import protocol

PROGRESS_INTERVAL_S = 0.25
_READ_BYTES = 1 << 16


Order = (
    protocol.Configure
    | protocol.StartRound
    | protocol.Aggregate
    | protocol.SwapOrder
    | protocol.PersonalOrder
)


class StopRequested(Exception):
    """The daemon asked the worker to stop: checkpoint what may be kept, and leave."""


class DaemonLink:
    """Messages to and from the daemon."""

    def __init__(self, path: Path) -> None:
        """Connect. Raises DaemonUnreachable."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.connect(str(path))
        except OSError as e:
            raise DaemonUnreachable(
                f"{path}: no daemon listens here: {e.strerror}. The worker is started by gossipsegd."
            ) from None
        self._state = threading.Condition()
        self._orders: deque[Order | protocol.Stop] = deque()
        """Guarded by `_state`, as all below."""
        self._paused = self._stopping = False
        self._last_progress_s, self._last_activity = float("-inf"), ""
        threading.Thread(target=self._read, name="orders", daemon=True).start()

    # ------------------------------------------------------------ out

    def send(self, message: protocol.FromWorker) -> None:
        """Tell the daemon. Does not return when it is gone."""
        try:
            self._socket.sendall(protocol.encode(message))
        except OSError:
            os._exit(EXIT_UNREACHABLE)

    def report(self, make: Callable[[], protocol.Preparing | protocol.Progress], activity: str = "") -> None:
        """Send what `make` gives, if the last report is a quarter of a second old or of another activity."""
        now_s = time.monotonic()
        if activity != self._last_activity or now_s - self._last_progress_s >= PROGRESS_INTERVAL_S:
            self._last_progress_s, self._last_activity = now_s, activity
            self.send(make())

    # ------------------------------------------------------------ in

    def order(self) -> Order:
        """Wait for the next order. Raises StopRequested."""
        with self._state:
            self._state.wait_for(lambda: bool(self._orders))
            message = self._orders.popleft()
        if isinstance(message, protocol.Stop):
            raise StopRequested
        self._last_progress_s = float("-inf")  # a round's first step is told at once
        return message

    def swap_order(self) -> protocol.SwapOrder | None:
        """The next order, if it is one of a swap: those are carried out between two steps, too.

        Orders about personal models wait for the end of the round, and hold up no swap.
        """
        with self._state:
            for i, order in enumerate(self._orders):
                if isinstance(order, protocol.SwapOrder):
                    del self._orders[i]
                    return order
                if not isinstance(order, protocol.PersonalOrder):
                    break
        return None

    def check(self) -> None:
        """Raises StopRequested; a pause does not hold here (a paused worker gets ready all the same)."""
        with self._state:
            if self._stopping:
                raise StopRequested

    def gate(self) -> None:
        """Hold here while paused. Raises StopRequested."""
        with self._state:
            self._state.wait_for(lambda: self._stopping or not self._paused)
            if self._stopping:
                raise StopRequested

    def _read(self) -> None:
        reader = protocol.LineReader()
        try:
            while data := self._socket.recv(_READ_BYTES):
                for line in reader.feed(data):
                    self._take(protocol.decode(line))
        except (OSError, protocol.JobError) as e:
            os.write(2, f"the daemon's socket failed: {e}\n".encode())
        os._exit(EXIT_UNREACHABLE)

    def _take(self, message: protocol.Message) -> None:
        match message:
            case protocol.SetPaused():
                with self._state:
                    self._paused = message.paused
                    self._state.notify_all()
            case protocol.Stop():
                with self._state:
                    self._stopping = True
                    self._orders.append(message)
                    self._state.notify_all()
            case (
                protocol.Configure()
                | protocol.StartRound()
                | protocol.Aggregate()
                | protocol.ExportSnapshot()
                | protocol.AdmitSnapshot()
                | protocol.ApplySwap()
                | protocol.ExportPersonal()
                | protocol.HoldPersonal()
            ):
                with self._state:
                    self._orders.append(message)
                    self._state.notify_all()
            case _:
                raise protocol.JobError(f"{type(message).__name__} is not for a worker")
