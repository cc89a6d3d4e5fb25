"""The imperative shell around the core: events in, effects out, one clock, one queue.

What belongs here: turning what happens into events, and effects into what happens. What must not: any
decision about peers, rounds or models (core), any training (worker), any format (wire, documents).
"""

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
from gossipseg.core import effects, events
from gossipseg.core.node import NodeState
from gossipseg.core.types import ModelKind, ModelRef, Record, Site
from gossipseg.daemon import manifests
from gossipseg.daemon.audit import Audit
from gossipseg.daemon.counters import Counters
from gossipseg.daemon.intake import Intake
from gossipseg.daemon.ledger import Ledger
from gossipseg.daemon.manifests import Verifier
from gossipseg.daemon.promises import binding, unbound
from gossipseg.daemon.recorder import Recorder
from gossipseg.daemon.training import TrainingView
from gossipseg.daemon.windows import window_open
from gossipseg.daemon.worker import WorkerSupervisor
from gossipseg.errors import ConfigError, DataError, GossipsegError, LocalError, PeerError, PeerRefused
from gossipseg.learn import jobs
from gossipseg.store import EventLog, ModelStore, StateFile
from gossipseg.store.auditlog import AuditLog
from gossipseg.wire.transport import Transport

log = logging.getLogger(__name__)

_WARN = {"member_suspect", "member_dead", "peer_refused", "transfer_failed", "model_broken", "worker_lost",
         "visit_refused", "visit_reverted", "record_forged", "duplicate_site", "config_refused",
         "internal_error", "export_failed", "persist_failed", "round_passed", "round_alone",
         "update_refused", "offence", "peer_quarantined"}  # fmt: skip
KEPT_S = 60.0
"""A model that nothing refers to is removed at this age: those taken in a moment ago are about to be."""
_News = jobs.FromWorker | events.WorkerLost
_QUIET = {"offer_sent", "offer_busy", "offer_in_busy"}


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
        self.events, self.ledger, self.training = event_log, Ledger(time.time), TrainingView()
        audit_log = AuditLog(Path(config.site.state_dir) / "audit")
        self.audit = Audit(audit_log, time.time, self.training.warn)
        self.counters = Counters()
        self._witnesses: tuple[Witness, ...] = (self.ledger, self.audit, self.counters)
        self.started_at, self.contract = time.monotonic(), configuration.contract(config.federation)
        self.worker = WorkerSupervisor(
            configuration.worker_spec(config),
            self,
            socket_path=worker_socket,
            stuck_after_s=config.site.device.stuck_after_s,
            clock=time.monotonic,
        )
        self.intake = Intake(
            node,
            self.inject,
            store,
            verifier,
            disk_reserve_bytes=config.site.disk_reserve_bytes,
            moved=self.ledger.moved,
            forged=self._forged,
        )
        self.changed = asyncio.Event()
        """Set at the next step, and replaced by a fresh one: watchers clear nothing of each other's."""
        self._state, self._fail = state, fail
        self._queue: asyncio.Queue[effects.Effect] = asyncio.Queue()
        self._news: asyncio.Queue[_News] = asyncio.Queue()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._was_ready = False
        self._unsaved = False
        """What the node knows now is not on disk: it may bind itself to nothing."""
        self._outgoing: dict[int, str] = {}

    # ------------------------------------------------------------ life

    async def start(self) -> None:
        """Listen, start the worker, let the node begin. Raises LocalError when the port is taken."""
        await self.transport.start(self.intake)
        self.spawn(self._perform_all())
        self.spawn(self._hear_worker())
        self.spawn(self.audit.run())
        self.spawn(self.worker.run())
        self.note("daemon_started", version=_version(), site_id=self.config.me.id or "")
        self.inject(events.Start())

    async def stop(self, reason: str, *, grace_s: float = 7.0) -> None:
        """Say goodbye, let the worker checkpoint, close everything."""
        self.inject(events.Leave())
        stopping = asyncio.create_task(self.worker.stop(grace_s))
        await asyncio.sleep(0)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._goodbye(), 1.0)
        await stopping
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._settled(), 1.0)
        self.note("daemon_stopped", reason=reason)
        if self._timer is not None:
            self._timer.cancel()
        self.intake.close()
        await self.audit.close()  # first: what is being written must not be written twice
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.transport.close()
        self.events.close()

    async def _goodbye(self) -> None:
        """Wait until the effects of Leave are done and its messages have been answered."""
        await self._queue.join()
        requests = [t for t in self._tasks if t.get_name().startswith("request")]
        await asyncio.gather(*requests, return_exceptions=True)

    async def _settled(self) -> None:
        """Wait until the worker's last news, such as a finished round, have come to the disk."""
        await self._news.join()
        await self._queue.join()

    @property
    def outgoing_models(self) -> set[str]:
        """Hashes of the models being sent now."""
        return set(self._outgoing.values())

    def spawn(self, work: Coroutine[Any, Any, Any], name: str = "task") -> None:
        """Run something beside; an unexpected error in it ends the daemon loudly."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and isinstance(error := task.exception(), Exception):
            self._broke(error)

    def _broke(self, error: Exception) -> None:
        """A mistake of ours that the daemon cannot live with."""
        log.error("internal error", exc_info=error)
        known = isinstance(error, GossipsegError)
        self._fail(error if known else LocalError(f"internal error: {error!r}"))  # type: ignore[arg-type]

    # ------------------------------------------------------------ the core

    def inject(self, event: events.Event) -> None:
        """Let something happen to the node."""
        for witness in self._witnesses:
            witness.event(event)
        try:
            for effect in self.recorder.step(self.node, event, time.monotonic()):
                for witness in self._witnesses:
                    witness.effect(effect)
                self._queue.put_nowait(effect)
        finally:
            self._arm()
        self.tell_watchers()

    def hear_peer(self, event: events.Event) -> None:
        """inject() for what a peer has a hand in: whatever it says must not end this daemon."""
        try:
            self.inject(event)
        except Exception as e:
            log.error("a peer's %s could not be handled", type(event).__name__, exc_info=e)
            self.note("internal_error", reason=f"{type(event).__name__}: {e!r}"[:300])

    def tell_watchers(self) -> None:
        """Something changed."""
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()

    def _tick(self) -> None:
        try:
            self.inject(events.Tick())
        except Exception as e:  # the loop would only log it, and the node would never tick again
            self._broke(e)

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        deadline = self.node.next_deadline()
        if deadline is not None:
            delay = max(0.0, deadline - time.monotonic())
            self._timer = asyncio.get_running_loop().call_later(delay, self._tick)

    async def _perform_all(self) -> None:
        while True:
            await self._perform(await self._queue.get())
            self._queue.task_done()

    async def _perform(self, effect: effects.Effect) -> None:
        match effect:
            case effects.Persist(snapshot=snapshot):
                await self._persist(snapshot)
            case effects.Request(id=id_, body=body) if self._unsaved and binding(body):
                self.inject(events.RequestFailed(id_, "unreachable", "this site's state cannot be saved"))
            case effects.Request():
                self.spawn(self._request(effect), f"request {effect.id}")
            case effects.Respond(token=token, body=body):
                self.intake.respond(token, unbound(body) if self._unsaved else body)
            case effects.StartTransfer():
                self.spawn(self._transfer(effect), f"transfer {effect.id}")
            case effects.StartRound():
                self._start_round(effect)
            case effects.Aggregate():
                self._aggregate(effect)
            case effects.Finished():
                self.training.begin("finished", 1.0)
            case effects.Note(event=name, site=site, reason=reason, detail=detail):
                self.note(name, site=site, reason=reason, **detail)
                if name == "member_alive" and site is not None:
                    self._hint(site)

    async def _persist(self, snapshot: effects.Snapshot) -> None:
        try:
            await asyncio.to_thread(self._state.save, dataclasses.asdict(snapshot))
            self._unsaved = False
            self.training.warn("state", "")
        except LocalError as e:  # the old state stays valid; training goes on, status shows it
            self._unsaved = True
            self.training.warn("state", str(e))
            self.note("persist_failed", reason=str(e))

    # ------------------------------------------------------------ the wire

    def _hint(self, site: Site) -> None:
        """The address a site announces of itself is tried beside the listed one."""
        member = self.node.members.get(site)
        listed = {s.name: s.address for s in self.config.others}
        if member is not None and member.address and member.address != listed.get(site):
            self.transport.hint_address(site, member.address)

    async def _request(self, effect: effects.Request) -> None:
        begin = time.monotonic()
        try:
            body = await self.transport.request(effect.to, effect.body, effect.timeout_s)
            body = self.intake.verified(effect.to, body)
        except (Exception, asyncio.CancelledError) as e:
            self.hear_peer(events.RequestFailed(effect.id, *_why(e, in_core_words=True)))
        else:
            self.hear_peer(events.Reply(effect.id, body, time.monotonic() - begin))

    async def _transfer(self, effect: effects.StartTransfer) -> None:
        self._outgoing[effect.id] = effect.model.hash
        path, size = self.store.path(effect.model.hash), max(1, effect.model.size_bytes)

        def moved(handed_over_bytes: int) -> None:
            self.ledger.moved("out", effect.to, effect.model.hash, handed_over_bytes / size)

        try:
            federation = self.config.federation
            section = federation.gossip if effect.model.kind == "model" else federation.rounds
            timeout_s = section.transfer_timeout_s
            await window_open(
                self.config.site.transfers.windows,
                timeout_s,
                effect.to,
                lambda reason: self.ledger.waits(effect.to, effect.model.hash, reason),
            )
            await self.transport.push(effect.to, effect.model, path, timeout_s, moved)
        except (Exception, asyncio.CancelledError) as e:
            self.inject(events.TransferFailed(effect.id, *_why(e)))
        else:
            self.inject(events.TransferDone(effect.id))
        finally:
            self._outgoing.pop(effect.id, None)

    # ------------------------------------------------------------ the worker

    def _start_round(self, effect: effects.StartRound) -> None:
        visit = None
        if (entry := effect.visit) is not None:
            path = str(self.store.path(entry.model.hash))
            visit = jobs.Visit(path, entry.model.hash, entry.frm, entry.model.steps, entry.model.cases)
        common = None
        if (model := effect.start_from) is not None:
            common = jobs.CommonModel(str(self.store.path(model.hash)), model.hash, model.round)
        self.training.step, self.training.fraction = 0, 0.0
        self.worker.send(
            jobs.StartRound(effect.round, visit, effect.export, common, effect.settling_in, effect.finetuning)
        )

    def _aggregate(self, effect: effects.Aggregate) -> None:
        files = [
            jobs.UpdateFile(site, str(self.store.path(model.hash)), model.cases, model.steps)
            for site, model in effect.updates
        ]
        self.training.begin(f"combining {len(files)} updates")
        self.worker.send(jobs.Aggregate(effect.round, effect.attempt, files))

    def on_worker_message(self, message: jobs.FromWorker) -> None:
        """What the worker says: its progress for status at once, the rest in its turn."""
        match message:
            case jobs.Preparing(activity=activity, fraction=fraction):
                self.training.begin(activity, fraction)
            case jobs.Progress():
                self.training.progress(message)
            case _:
                self._news.put_nowait(message)
        self.tell_watchers()

    def on_worker_lost(self, reason: str, final: bool) -> None:
        self.training.begin("failed" if final else "restarting")
        self._news.put_nowait(events.WorkerLost(reason, final))

    async def _hear_worker(self) -> None:
        """The worker's news in turn: its death must not overtake a round whose model is being taken in."""
        while True:
            news = await self._news.get()
            match news:
                case jobs.Ready():
                    self._ready(news)
                case jobs.RoundDone():
                    await self._round_done(news)
                case jobs.AggregateDone():
                    await self._aggregate_done(news)
                case jobs.Fatal(kind=kind, message=text) if not self._was_ready:
                    self._fail({"config": ConfigError, "data": DataError}.get(kind, LocalError)(text))
                case events.WorkerLost(reason=reason, final=final):
                    self.note("worker_lost", reason=reason, final=final)
                    self.inject(news)
            self._news.task_done()

    def _ready(self, message: jobs.Ready) -> None:
        self.training.ready(message, self.config.federation.training.steps_per_round)
        self._was_ready = True
        self.intake.schemas = {
            "model": message.tensors,
            "global": message.tensors,
            "update": message.update_tensors,
        }
        self.contract = configuration.contract(self.config.federation, message.network_signature)
        self.note(
            "worker_ready",
            round=message.round,
            cases=message.cases,
            device=message.device,
            parameters=message.parameters,
            splits=message.splits,
        )
        self.inject(
            events.WorkerReady(
                message.round,
                message.steps,
                message.cases,
                self.contract,
                message.last_visit,
                message.dice_val,
                message.last_global,
                message.own_steps,
            )
        )

    async def _round_done(self, message: jobs.RoundDone) -> None:
        self.training.round_done(message)
        kind: ModelKind = "update" if self.config.federation.algorithm.exchange == "rounds" else "model"
        visit, export = message.visit, await self._adopt(message.export, message.round, kind)
        export = export and dataclasses.replace(export, dice_val=message.dice_val)
        fields = dataclasses.asdict(message)
        for nested in ("export", "visit", "dice_val_local", "spent"):
            del fields[nested]
        if message.spent is not None:
            fields |= {"epsilon": message.spent.epsilon, "delta": message.spent.delta}
        frm = visit.frm if visit else None
        self.note("round_finished", site=frm, visit=visit.outcome if visit else None, **fields)
        outcome = events.VisitResult(visit.hash, visit.outcome, visit.reason, visit.detail) if visit else None
        if message.spent is not None and message.spent.over:
            self._end_private_training(message.spent)  # first: no further round may begin
        self.inject(
            events.RoundFinished(
                message.round,
                message.steps,
                message.dice_val,
                export,
                outcome,
                message.reverted,
                message.own_steps,
            )
        )
        self.spawn(self._collect_garbage(), "garbage")

    def _end_private_training(self, spent: jobs.Spent) -> None:
        """Pause a site that may train no more; if an operator goes on, its rounds take no steps."""
        self.note(
            "privacy_budget_spent",
            epsilon=spent.epsilon,
            delta=spent.delta,
            max_epsilon=spent.max_epsilon,
            steps=spent.steps,
        )
        self.pause(True)

    async def _aggregate_done(self, message: jobs.AggregateDone) -> None:
        self.training.combined(message)
        refused = tuple(sorted(message.refused.items()))
        model = await self._adopt(message.export, message.round, "global")
        self.note(
            "aggregated" if model else "aggregation_failed",
            round=message.round,
            attempt=message.attempt,
            contributors=message.contributors,
            refused=message.refused,
            reason=message.reason,
            detail=message.detail,
            notes=message.notes,
            seconds=message.seconds,
        )
        if model is None:
            reason = message.reason or "not_stored"
            self.inject(events.AggregationFailed(message.round, message.attempt, reason, refused))
        else:
            contributors = tuple(sorted(message.contributors))
            self.inject(events.Aggregated(message.round, message.attempt, model, contributors, refused))

    async def _adopt(self, export: jobs.Export | None, round: int, kind: ModelKind) -> ModelRef | None:
        if export is None:
            return None
        try:
            hash_, size = await asyncio.to_thread(self.store.adopt, Path(export.path))
        except (OSError, LocalError) as e:
            self.note("export_failed", reason=str(e))
            return None
        draft = await asyncio.to_thread(manifests.draft, self.store.path(hash_))
        return ModelRef(hash_, size, round, export.steps, export.cases, kind=kind, manifest=draft)

    async def _collect_garbage(self) -> None:
        keep = self.node.kept_models() | self.outgoing_models
        try:
            await asyncio.to_thread(self.store.collect, keep, now_s=time.time(), older_than_s=KEPT_S)
            self.training.warn("store", "")
        except (OSError, LocalError) as e:  # nothing is lost; status shows it
            self.training.warn("store", f"old models cannot be removed: {e}")

    # ------------------------------------------------------------ operators

    def lift_quarantine(self, site: Site) -> None:
        """Let a peer begin anew."""
        self.inject(events.LiftQuarantine(site))

    def pause(self, paused: bool) -> None:
        """Hold training between two steps, or go on."""
        self.worker.send(jobs.SetPaused(paused))
        self.inject(events.Pause(paused))

    def note(self, event: str, **fields: Any) -> None:
        """Write something to the event log and the log."""
        fields = {k: v for k, v in fields.items() if v not in (None, "")}
        self.audit.note(event, fields)
        try:
            self.events.append(event, t=time.time(), **fields)
        except (OSError, LocalError) as e:
            self.training.warn("events", f"the event log cannot be written: {e}")
        else:
            if "events" in self.training.warnings:
                self.training.warn("events", "")
        level = logging.WARNING if event in _WARN else logging.DEBUG if event in _QUIET else logging.INFO
        log.log(level, "", extra={"event": event, "fields": fields})

    def _forged(self, peer: Site, record: Record, more: int) -> None:
        self.counters.forged[peer] += 1
        others = f" and {more} more" if more else ""
        self.note("record_forged", site=peer, reason=f"{type(record).__name__} about {record.site}{others}")


def _why(error: BaseException, *, in_core_words: bool = False) -> tuple[str, str]:
    """(reason, detail) of a call that came to nothing. Re-raises the cancellation of our own task.

    `in_core_words`: of the reasons that events.RequestFailed knows; a peer that answers and says no, in
    whatever words, has refused (and lives).
    """
    if isinstance(error, asyncio.CancelledError):
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise error
        return "unreachable", "its connection was closed here"  # a channel went while the call was under way
    if isinstance(error, PeerRefused) and in_core_words and error.reason != "refused":
        return "refused", f"{error.reason}: {error.detail}" if error.detail else error.reason
    if isinstance(error, PeerError):
        return error.reason, error.detail
    if isinstance(error, OSError | LocalError):
        return "unreadable", str(error)
    log.error("a call failed", exc_info=error)
    return "internal", repr(error)


def _version() -> str:
    from gossipseg import __version__

    return __version__
