"""One run of a testbed: start the daemons, watch them to the end, collect their results."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from gossipseg.errors import EXIT_FAILED, EXIT_OK, DaemonUnreachable, GossipsegError, LocalError
from gossipseg.store import read_events
from gossipseg.testbed import processes
from gossipseg.testbed.layout import Layout, SiteFolder
from gossipseg.testbed.live import Display, SiteView
from gossipseg.wire.control import ControlClient
from gossipseg.wire.documents import PeersDoc, StatusDoc

_T = TypeVar("_T")
POLL_S = 0.5
DRAIN_S = 20.0
"""Seconds for transfers under way, and for personal models to be fetched, when the last site finishes."""
MAX_EVENTS = 100_000
_MOVING = ("accepted", "sending", "receiving")
_ENDED = ("finished", "failed", "gone")


@dataclass(slots=True)
class SiteResult:
    """The results of one site."""

    name: str
    state: str
    """finished | failed (training failed for good) | gone (the daemon died) | stopped (was not done)"""
    reason: str = ""
    status: StatusDoc | None = None
    events: list[dict[str, Any]] = field(default_factory=list)


@dataclass(slots=True)
class RunResult:
    """The results of a run."""

    algorithm: str
    began_at: float
    """Wall seconds."""
    wall_s: float
    sites: list[SiteResult]
    exit_code: int = EXIT_OK

    @property
    def missing(self) -> list[SiteResult]:
        return [s for s in self.sites if s.state != "finished"]


class FederationRun:
    """Daemons of a layout, watched. `clock` gives monotonic seconds; `pause` waits for a number of
    seconds."""

    def __init__(
        self,
        layout: Layout,
        display: Display,
        *,
        timeout_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._layout, self._display = layout, display
        self._timeout_s, self._clock, self._pause = timeout_s, clock, pause
        self._views = {site.name: SiteView(site.name) for site in layout.sites}
        self._daemons: dict[str, processes.DaemonProcess] = {}
        self._clients: dict[str, ControlClient] = {}
        self._seen: dict[str, int] = {site.name: _last_seq(site) for site in layout.sites}
        self._first_seq = dict(self._seen)
        self._was_ready: set[str] = set()
        self._exit_code = EXIT_OK

    def run(self) -> RunResult:
        """Start, watch, stop. Whatever happens, no daemon is left running."""
        began_at, begin = time.time(), self._clock()
        try:
            with self._display:
                self._daemons = {d.site: d for d in processes.start_all(self._layout)}
                self._watch(begin)
                self._drain()
                self._poll()
        finally:
            for client in self._clients.values():
                client.close()
            killed = processes.stop(self._daemons.values())
            if self._daemons:
                processes.forget(self._layout.root)
        for name in killed:
            self._display.say(f"{name}: did not end when asked, was killed")
        return self._result(began_at, self._clock() - begin)

    # ------------------------------------------------------------ watching

    def _watch(self, begin: float) -> None:
        while True:
            self._poll()
            if self._never_started() or all(v.state in _ENDED for v in self._views.values()):
                return
            if self._timeout_s is not None and self._clock() - begin > self._timeout_s:
                self._display.say(f"stopped: not all sites finished within {self._timeout_s:.0f} s")
                return
            self._pause(POLL_S)

    def _never_started(self) -> bool:
        """Whether a daemon died before its training was ready. Then a file or the data are wrong, and the run
        ends."""
        for name, daemon in self._daemons.items():
            if self._views[name].state == "gone" and name not in self._was_ready:
                self._exit_code = daemon.exit_code or EXIT_FAILED
                return True
        return False

    def _poll(self) -> None:
        for site in self._layout.sites:
            self._read_news(site)
            self._poll_site(site)
        self._display.update(list(self._views.values()))

    def _poll_site(self, site: SiteFolder) -> None:
        view, daemon = self._views[site.name], self._daemons[site.name]
        if view.state == "gone":
            return
        if not daemon.alive():
            view.state = "gone"
            view.reason = f"the daemon ended with exit code {daemon.exit_code}. {site.log} ends with:\n"
            view.reason += daemon.last_words()
            return
        status = self._ask(site, lambda client: client.status())
        if status is None:
            return
        view.status = status
        if status.phase == "finished":
            view.state = "finished"
        elif status.state == "failed" or status.phase == "failed":
            view.state, view.reason = "failed", "; ".join(status.reasons)
        else:
            view.state = "running"

    def _read_news(self, site: SiteFolder) -> None:
        for record in read_events(site.state_dir / "events.jsonl", MAX_EVENTS, self._seen[site.name]):
            self._seen[site.name] = record["seq"]
            if record.get("event") == "worker_ready":
                self._was_ready.add(site.name)
            self._display.news(site.name, record)

    def _ask(self, site: SiteFolder, question: Callable[[ControlClient], _T]) -> _T | None:
        """The daemon's answer; None without one (the daemon starts, or is busy)."""
        try:
            if site.name not in self._clients:
                if not site.control_socket.exists():
                    return None
                self._clients[site.name] = ControlClient(site.control_socket, timeout_s=5.0)
            return question(self._clients[site.name])
        except DaemonUnreachable:
            return None
        except LocalError as e:
            self._display.say(f"{site.name}: {e}")
            return None

    def _drain(self) -> None:
        """Let transfers under way end."""
        deadline = self._clock() + DRAIN_S
        while self._clock() < deadline:
            if not any(self._moving(site) for site in self._layout.sites):
                return
            self._pause(POLL_S / 2)

    def _moving(self, site: SiteFolder) -> bool:
        if not self._daemons[site.name].alive():
            return False
        self._poll_site(site)
        status = self._views[site.name].status
        if status is not None and status.personal_wanted:
            return True
        doc = self._ask(site, lambda client: client.exchanges())
        return doc is not None and any(row.state in _MOVING for row in doc.exchanges)

    # ------------------------------------------------------------ the verdict

    def _result(self, began_at: float, wall_s: float) -> RunResult:
        sites = []
        for site in self._layout.sites:
            view = self._views[site.name]
            events = read_events(site.state_dir / "events.jsonl", MAX_EVENTS, self._first_seq[site.name])
            state = view.state if view.state in _ENDED else "stopped"
            sites.append(SiteResult(site.name, state, view.reason, view.status, events))
        result = RunResult(self._layout.algorithm, began_at, wall_s, sites, self._exit_code)
        if result.missing and result.exit_code == EXIT_OK:
            result.exit_code = EXIT_FAILED
        return result


def ask_all(layout: Layout) -> dict[str, tuple[StatusDoc, PeersDoc] | str]:
    """Status and peers of every site, or the reason why there is no answer."""
    answers: dict[str, tuple[StatusDoc, PeersDoc] | str] = {}
    for site in layout.sites:
        try:
            with ControlClient(site.control_socket, timeout_s=5.0) as client:
                answers[site.name] = (client.status(), client.peers())
        except GossipsegError as e:
            answers[site.name] = str(e)
    return answers


def remove_states(layout: Layout) -> None:
    """Remove what the daemons keep (models, checkpoints); identities, logs and settings stay."""
    for site in layout.sites:
        shutil.rmtree(site.state_dir, ignore_errors=True)


def _last_seq(site: SiteFolder) -> int:
    last = read_events(Path(site.state_dir) / "events.jsonl", 1)
    return int(last[-1]["seq"]) if last else 0
