"""The imperative shell around the core: events in, effects out, one clock, one queue."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Protocol

from gossipseg import config as configuration
from gossipseg.bridge.intake import Intake
from gossipseg.bridge.manifest_checks import Verifier
from gossipseg.core import effects, events
from gossipseg.core.node import NodeState
from gossipseg.core.types import Record, Site
from gossipseg.daemon.health.deleted_places import Places
from gossipseg.daemon.health.disk import DiskWatch
from gossipseg.daemon.health.reachability import Reaching
from gossipseg.daemon.listening import listen
from gossipseg.daemon.observe.audit import Audit
from gossipseg.daemon.observe.counters import Counters
from gossipseg.daemon.observe.exchange_table import ExchangeTable
from gossipseg.daemon.observe.journal import Journal
from gossipseg.daemon.observe.status_view import WorkerView
from gossipseg.daemon.observe.swap_table import SwapTable
from gossipseg.daemon.peers.outbound import PeerCalls
from gossipseg.daemon.peers.transfer_windows import follow_windows
from gossipseg.daemon.peers.unsaved_state import binding, unbound
from gossipseg.daemon.recording.recorder import Recorder
from gossipseg.daemon.saves import Saves
from gossipseg.daemon.worker.dialogue import WorkerDialogue
from gossipseg.errors import GossipsegError, LocalError
from gossipseg.store import EventLog, ModelStore, StateFile
from gossipseg.store.auditlog import AuditLog
from gossipseg.wire.transport import Transport

log = logging.getLogger(__name__)

KEPT_S = 60.0
"""Age in seconds at which an unreferenced model is removed: a new one is about to be referenced."""
SAVE_AGAIN_S = 5.0
"""Pause in seconds before a state that could not be saved is saved again."""


class Witness(Protocol):
    """Sees every event before the node does, and every effect before it is carried out; changes nothing."""

    def event(self, event: events.Event) -> None: ...

    def effect(self, effect: effects.Effect) -> None: ...


class Runtime:
    """One node, run for real. `fail` is called when the daemon must end with an error."""

    def __init__(
        self,
        config: configuration.Config,
        node: NodeState,
        transport: Transport,
        store: ModelStore,
        state: StateFile,
        event_log: EventLog,
        verifier: Verifier,
        fail: Callable[[GossipsegError], None],
        *,
        recorder: Recorder,
        worker_socket: Path,
    ) -> None:
        self.config, self.node, self.transport, self.store = config, node, transport, store
        self.recorder = recorder
        self.events, self.ledger, self.training = event_log, ExchangeTable(time.time), WorkerView()
        audit_log = AuditLog(Path(config.site.state_dir) / "audit")
        self.disk = DiskWatch(config.site.state_dir)
        self.audit = Audit(audit_log, time.time, self.training.warn, self.disk)
        self.counters = Counters()
        self.swaps = SwapTable(config.site.site, time.time)
        self._witnesses: tuple[Witness, ...] = (self.ledger, self.swaps, self.audit, self.counters)
        self.started_at = time.monotonic()
        self.window_opens = ""
        """Hour at which this site may send again; "" where it may now."""
        self._journal = Journal(event_log, self.audit, self.training, time.time, self.disk)
        self.intake = Intake(
            node,
            self.inject,
            store,
            verifier,
            disk_reserve_bytes=config.site.disk_reserve_bytes,
            moved=self.ledger.moved,
            forged=self._forged,
        )
        self.calls = PeerCalls(self, node, transport, store, self.intake, self.ledger)
        self.worker = WorkerDialogue(self, store, self.intake, self.training, socket_path=worker_socket)
        self.reaching = Reaching(node, transport, self.note)
        self.places = Places(Path(config.site.state_dir), self.note)
        self.changed = asyncio.Event()
        """Set at the next step, and replaced by a fresh one: watchers do not clear each other's."""
        self._state, self._fail = state, fail
        self._queue: asyncio.Queue[effects.Effect] = asyncio.Queue()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._unsaved = False
        """Whether the node's state is not on disk: then it may make no promise."""
        self._saving_again = False
        self._held: effects.ApplySwap | None = None
        """The committed swap that waits for the disk. After a crash a site that has applied what its state
        does not know would say that the swap was dropped."""
        self._saves = Saves()

    # ------------------------------------------------------------ life

    async def start(self) -> None:
        """Listen, start the worker, start the node. Raises CannotListen when waiting is of no use."""
        await listen(self, "listen", lambda: self.transport.start(self.intake))
        self.serve()
        self.spawn(self.audit.run())
        self.spawn(self.worker.run())
        self.spawn(self.reaching.run(self.config), "reaching")
        self.spawn(follow_windows(self.config.site.transfers.windows, self.window), "windows")
        self.note("daemon_started", version=_version(), site_id=self.config.me.id or "")
        self.inject(events.Start())

    def serve(self) -> None:
        """Carry out the node's effects and hear the worker, until `end_tasks`."""
        self.spawn(self._perform_all())
        self.spawn(self.worker.hear())

    async def stop(self, reason: str, *, grace_s: float = 7.0) -> None:
        """Say goodbye, let the worker checkpoint, close everything."""
        self.inject(events.Leave())
        stopping = asyncio.create_task(self.worker.stop(grace_s))
        await asyncio.sleep(0)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._goodbye(), 1.0)
        await stopping
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.settled(), 1.0)
        self.note("daemon_stopped", reason=reason)
        self._disarm()
        self.intake.close()
        await self.audit.close()  # first: what is being written must not be written twice
        await self.end_tasks()
        await self.transport.close()
        self.events.close()

    async def end_tasks(self) -> None:
        """Cancel everything in the background, the node's clock included, and wait until it has ended."""
        self._disarm()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _goodbye(self) -> None:
        """Wait until the effects of Leave are done and its messages have been answered."""
        await self.drained()
        requests = [t for t in self._tasks if t.get_name().startswith("request")]
        await asyncio.gather(*requests, return_exceptions=True)

    async def settled(self) -> None:
        """Wait until the worker's last messages, such as a finished round, are on disk."""
        await self.worker.heard()
        await self.drained()

    async def drained(self) -> None:
        """Wait until no effect waits: states are on disk, and what waited for them is said."""
        await self._queue.join()

    @property
    def queued(self) -> int:
        """Effects that wait for their turn, as behind a slow disk."""
        return self._queue.qsize()

    def spawn(self, work: Coroutine[Any, Any, Any], name: str = "task") -> None:
        """Run a task in the background; an unexpected error in it ends the daemon with that error."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and isinstance(error := task.exception(), Exception):
            self._broke(error)

    def _broke(self, error: Exception) -> None:
        """End the daemon after a programming error."""
        log.error("internal error", exc_info=error)
        known = isinstance(error, GossipsegError)
        self.fail(error if known else LocalError(f"internal error: {error!r}"))  # type: ignore[arg-type]

    def fail(self, error: GossipsegError) -> None:
        """End the daemon with this error."""
        self._fail(error)

    # ------------------------------------------------------------ the core

    def inject(self, event: events.Event) -> None:
        """Hand an event to the node."""
        for witness in self._witnesses:
            witness.event(event)
        try:
            for effect in self.recorder.step(self.node, event, time.monotonic()):
                for witness in self._witnesses:
                    witness.effect(effect)
                self._perform_in_turn(effect)
        finally:
            self._arm()
        self.tell_watchers()

    def hear_peer(self, event: events.Event) -> None:
        """inject() for events that a peer has influenced: no peer's message may end this daemon."""
        try:
            self.inject(event)
        except Exception as e:
            log.error("a peer's %s could not be handled", type(event).__name__, exc_info=e)
            self.note("internal_error", reason=f"{type(event).__name__}: {e!r}"[:300])

    def tell_watchers(self) -> None:
        """Tell the watchers that something changed."""
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()

    def window(self, opens: str) -> None:
        """Note that the hours in which this site may begin to send have come, or are over."""
        self.window_opens = opens
        self.inject(events.TransferWindow(not opens))

    def _tick(self) -> None:
        try:
            self.inject(events.Tick())
        except Exception as e:  # the loop would only log it, and the node would never tick again
            self._broke(e)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _arm(self) -> None:
        self._disarm()
        deadline = self.node.next_deadline()
        if deadline is not None:
            delay = max(0.0, deadline - time.monotonic())
            self._timer = asyncio.get_running_loop().call_later(delay, self._tick)

    def _perform_in_turn(self, effect: effects.Effect) -> None:
        """Carry out the effects in order. A slow disk must not delay the messages that keep this site alive
        to others."""
        if isinstance(effect, effects.Persist):
            self._saves.asked(effect.snapshot)
        if self._saves.overtakes(effect, self.node.incarnation):
            match effect:
                case effects.Request():
                    return self.spawn(self.calls.request(effect), f"request {effect.id}")
                case effects.Respond(token=token, body=body):
                    return self.intake.respond(token, body)
        self._queue.put_nowait(effect)

    async def _perform_all(self) -> None:
        while True:
            await self._perform(await self._queue.get())
            self._queue.task_done()

    async def _perform(self, effect: effects.Effect) -> None:
        match effect:
            case effects.Persist(snapshot=snapshot):
                await self._persist(snapshot)
            case effects.Request(id=id_, body=body) if self._unsaved and binding(body):
                self.inject(events.RequestFailed(id_, "not_saved", "this site's state cannot be saved"))
            case effects.Request():
                self.spawn(self.calls.request(effect), f"request {effect.id}")
            case effects.Respond(token=token, body=body):
                self.intake.respond(token, unbound(body) if self._unsaved else body)
            case effects.StartTransfer():
                self.spawn(self.calls.transfer(effect), f"transfer {effect.id}")
            case effects.StartRound():
                self.worker.start_round(effect)
            case effects.Aggregate():
                self.worker.aggregate(effect)
            case effects.ApplySwap() if self._unsaved:
                self._held = effect
            case effects.ExportSnapshot() | effects.AdmitSnapshot() | effects.ApplySwap():
                self.worker.swap(effect)
            case effects.ExportPersonal() | effects.HoldPersonal():
                self.worker.personal(effect)
            case effects.Finished():
                self.training.begin("finished", 1.0)
            case effects.Note(event=name, site=site, reason=reason, detail=detail):
                self.note(name, site=site, reason=reason, **detail)
                if name == "member_alive" and site is not None:
                    self.calls.hint(site)
                if name == "round_committed":  # a site that trains no rounds stores global models, too
                    self.collect_garbage()

    # ------------------------------------------------------------ the disk

    async def _persist(self, own: effects.Snapshot) -> None:
        snapshot = self._saves.next(own)
        if snapshot is None:  # a newer one, which holds all of this, was written in its place
            return
        try:
            await self.disk.beside("node.json", self._state.save, dataclasses.asdict(snapshot))
            self._unsaved = False
            self.training.warn("state", "")
            self._release()
        except LocalError as e:  # the old state stays valid; training goes on, status shows it
            if not self._unsaved:
                self.note("persist_failed", reason=str(e))
            self._unsaved = True
            if not self._saving_again:
                self.spawn(self._save_again(), "save again")
            self.training.warn("state", str(e))
        self._saves.done(snapshot)

    async def _save_again(self) -> None:
        """Try until the state is on disk: the core may have nothing new to save for hours."""
        self._saving_again = True
        while self._unsaved:
            await asyncio.sleep(SAVE_AGAIN_S)
            if self._unsaved and (newest := self._saves.newest) is not None:
                self._perform_in_turn(effects.Persist(newest))
                await self.drained()
        self._saving_again = False

    def _release(self) -> None:
        """Let the worker apply the swap that has waited for the disk."""
        held, self._held, open = self._held, None, self.node.swap
        if held is not None and open is not None and open.id == held.swap:
            self.worker.swap(held)

    def collect_garbage(self) -> None:
        """Remove the models that nothing refers to any more, in the background."""
        self.spawn(self._collect_garbage(), "garbage")

    async def _collect_garbage(self) -> None:
        keep = self.node.kept_models() | self.calls.outgoing_models
        try:
            await asyncio.to_thread(self.store.collect, keep, now_s=time.time(), older_than_s=KEPT_S)
            self.training.warn("store", "")
        except (OSError, LocalError) as e:  # nothing is lost; status shows it
            self.training.warn("store", f"old models cannot be removed: {e}")

    # ------------------------------------------------------------ operators

    def lift_quarantine(self, site: Site) -> None:
        """Clear a peer's record."""
        self.inject(events.LiftQuarantine(site))

    def pause(self, paused: bool) -> None:
        """Pause training between two steps, or resume it."""
        self.worker.set_paused(paused)
        self.inject(events.Pause(paused))

    # ------------------------------------------------------------ the logs

    def note(self, event: str, **fields: Any) -> None:
        """Write an event to the event log and the log."""
        self._journal.note(event, **fields)

    def _forged(self, peer: Site, record: Record, more: int) -> None:
        self.counters.forged[peer] += 1
        others = f" and {more} more" if more else ""
        self.note("record_forged", site=peer, reason=f"{type(record).__name__} about {record.site}{others}")


def _version() -> str:
    from gossipseg import __version__

    return __version__
