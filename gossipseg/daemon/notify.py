"""sd_notify: tells systemd that the daemon is ready, alive, reloading or stopping.

Only the event loop feeds the watchdog. The daemon, not systemd, restarts a stuck worker.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass

SEND_S = 0.2
"""Seconds that a datagram waits for buffer space."""


@dataclass(frozen=True, slots=True)
class Notifier:
    """Sends to the socket named by NOTIFY_SOCKET; does nothing without one."""

    address: str | None
    watchdog_interval_s: float | None
    """How often to call `watchdog()`: half of WATCHDOG_USEC; None when systemd does not watch."""

    @classmethod
    def from_env(cls, env: Mapping[str, str] | None = None) -> Notifier:
        env = os.environ if env is None else env
        address = env.get("NOTIFY_SOCKET")
        usec = env.get("WATCHDOG_USEC", "")
        meant_for_me = env.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        watchdog = int(usec) / 2e6 if address and usec.isdigit() and meant_for_me else None
        return cls(address, watchdog)

    def ready(self, status: str) -> None:
        self._send(f"READY=1\nSTATUS={status}")

    def status(self, text: str) -> None:
        self._send(f"STATUS={text}")

    def watchdog(self) -> None:
        self._send("WATCHDOG=1")

    def reloading(self, monotonic_usec: int) -> None:
        self._send(f"RELOADING=1\nMONOTONIC_USEC={monotonic_usec}")

    def stopping(self, reason: str) -> None:
        self._send(f"STOPPING=1\nSTATUS={reason}")

    def _send(self, text: str) -> None:
        if not self.address:
            return
        # A leading @ means the abstract namespace.
        address = "\0" + self.address[1:] if self.address.startswith("@") else self.address
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as s:
            s.settimeout(SEND_S)  # a stalled systemd must not stop the event loop
            try:
                s.sendto(text.encode(), address)
            except OSError:
                return  # systemd went away: there is nothing to do
