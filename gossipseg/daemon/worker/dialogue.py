"""The dialogue of the daemon with its worker: the order of a round goes out, reports come in and take effect.

Reports are handled one after the other. What an order or an event holds is decided in gossipseg/bridge.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec

from gossipseg import config as configuration
from gossipseg.bridge import orders
from gossipseg.bridge.intake import Intake
from gossipseg.core import effects, events
from gossipseg.core.types import ModelKind, ModelRef
from gossipseg.daemon.health.data_folder import DataFolder
from gossipseg.daemon.observe.status_view import WorkerView
from gossipseg.daemon.worker.process import ProcessStatus, WorkerSupervisor
from gossipseg.errors import ConfigError, DataError, GossipsegError, LocalError
from gossipseg.learn import protocol
from gossipseg.store import ModelStore


@dataclasses.dataclass(frozen=True, slots=True)
class _Waiting:
    """No worker can be started now."""

    reason: str


_News = protocol.FromWorker | events.WorkerLost | _Waiting


class DialogueHost(Protocol):
    """The owner of the worker, as the runtime is."""

    config: configuration.Config

    def inject(self, event: events.Event) -> None: ...

    def note(self, event: str, **fields: Any) -> None: ...

    def tell_watchers(self) -> None: ...

    def pause(self, paused: bool) -> None: ...

    def collect_garbage(self) -> None:
        """Remove unused models: a round is over."""
        ...

    def fail(self, error: GossipsegError) -> None:
        """End the daemon."""
        ...


class WorkerDialogue:
    """Orders to the worker, and its messages to the node. `contract` is complete once the worker is ready."""

    def __init__(
        self,
        owner: DialogueHost,
        store: ModelStore,
        intake: Intake,
        training: WorkerView,
        *,
        socket_path: Path,
    ) -> None:
        config = owner.config
        self.contract = configuration.contract(config.federation)
        self._owner, self._store, self._intake, self._training = owner, store, intake, training
        self._supervisor = WorkerSupervisor(
            configuration.worker_spec(config),
            self,
            socket_path=socket_path,
            stuck_after_s=config.site.device.stuck_after_s,
            clock=time.monotonic,
            obstacle=DataFolder(Path(config.site.data.path)).obstacle,
        )
        self._news: asyncio.Queue[_News] = asyncio.Queue()
        self._was_ready = False

    @property
    def status(self) -> ProcessStatus:
        """What a user may see of the worker."""
        return self._supervisor.status

    async def run(self) -> None:
        """Keep a worker running until `stop`, or until it has failed for good."""
        await self._supervisor.run()

    def try_again(self) -> None:
        """Start a waiting worker now: an obstacle may have been removed."""
        self._supervisor.try_again()

    async def stop(self, grace_s: float) -> None:
        """Let the worker checkpoint and exit; all its messages are in the queue when this returns."""
        await self._supervisor.stop(grace_s)

    async def heard(self) -> None:
        """Wait until all messages so far have reached the node."""
        await self._news.join()

    # ------------------------------------------------------------ orders

    def set_paused(self, paused: bool) -> None:
        """Pause training between two steps, or resume it."""
        self._supervisor.send(protocol.SetPaused(paused))

    def start_round(self, effect: effects.StartRound) -> None:
        self._training.step, self._training.fraction = 0, 0.0
        listed = [site.name for site in self._owner.config.federation.sites]
        self._supervisor.send(orders.start_round(effect, self._store.path, listed))

    def aggregate(self, effect: effects.Aggregate) -> None:
        order = orders.aggregate(effect, self._store.path)
        self._training.begin(f"combining {len(order.updates)} updates")
        self._supervisor.send(order)

    def relist(self, sites: Sequence[str]) -> None:
        """The federation's sites from now on: a worker that is started anew drops the models of others."""
        self._supervisor.relist(sites)

    def swap(self, effect: effects.ExportSnapshot | effects.AdmitSnapshot | effects.ApplySwap) -> None:
        """Order what a swap needs, at the next step's end."""
        self._supervisor.send(orders.swap_order(effect, self._store.path))

    def personal(self, effect: effects.ExportPersonal | effects.HoldPersonal) -> None:
        """Order what personal models that travel need, between two rounds."""
        self._supervisor.send(orders.personal_order(effect, self._store.path))

    # ------------------------------------------------------------ messages of the worker

    def on_worker_message(self, message: protocol.FromWorker) -> None:
        """Handle the worker's message: progress for status at once, everything else in its turn."""
        match message:
            case protocol.Preparing(activity=activity, fraction=fraction):
                self._training.begin(activity, fraction)
            case protocol.Progress():
                self._training.progress(message)
            case _:
                self._news.put_nowait(message)
        self._owner.tell_watchers()

    def on_worker_lost(self, reason: str, final: bool) -> None:
        self._training.begin("failed" if final else "restarting")
        self._news.put_nowait(events.WorkerLost(reason, final))

    def on_worker_waiting(self, reason: str) -> None:
        self._training.begin("waiting for the data")
        self._news.put_nowait(_Waiting(reason))

    async def hear(self) -> None:
        """Handle the worker's messages in order. Its exit must not overtake a round whose model is being
        stored."""
        while True:
            news = await self._news.get()
            match news:
                case protocol.Ready():
                    self._ready(news)
                case protocol.RoundDone():
                    await self._round_done(news)
                case protocol.AggregateDone():
                    await self._aggregate_done(news)
                case protocol.SnapshotExported():
                    model = await self._adopt(news.export, news.round, "model")
                    self._owner.inject(orders.snapshot_exported(news, model))
                case protocol.SnapshotAdmitted():
                    self._owner.inject(orders.snapshot_admitted(news))
                case protocol.SwapApplied(swap=swap, reason=reason, detail=detail):
                    if reason:  # it may name a file, which no recording of the core may hold
                        more = {"asker": swap.asker, "number": swap.number, "detail": detail}
                        self._owner.note("swap_not_applied", reason=reason, **more)
                    self._training.copied(news)
                    if (harmful := orders.harmful_peer(news)) is not None:
                        self._owner.inject(harmful)  # first: the next swap is with another peer
                    self._owner.inject(orders.swap_applied(news))
                case protocol.PersonalExported():
                    model = await self._adopt(news.export, news.round, "personal")
                    self._owner.inject(orders.personal_exported(news, model))
                case protocol.PersonalHeld():
                    self._personal_held(news)
                case protocol.MixChosen():
                    self._mix_chosen(news, ended=True)
                case protocol.Fatal(kind=kind, message=text) if not self._was_ready and kind != "away":
                    self._owner.fail({"config": ConfigError, "data": DataError}.get(kind, LocalError)(text))
                case events.WorkerLost(reason=reason, final=final):
                    self._owner.note("worker_lost", reason=reason, final=final)
                    self._owner.inject(news)
                case _Waiting(reason=reason):
                    self._owner.note("worker_waiting", reason=reason)
                    self._owner.inject(events.WorkerLost(reason, waits=True))
            self._news.task_done()

    def _ready(self, message: protocol.Ready) -> None:
        federation = self._owner.config.federation
        self._training.ready(message, federation.training.steps_per_round)
        self._was_ready = True
        self._intake.schemas = {
            "model": message.tensors,
            "global": message.tensors,
            "update": message.update_tensors,
            "personal": message.personal_tensors,
        }
        self.contract = configuration.contract(federation, message.network_signature)
        self._owner.note(
            "worker_ready",
            round=message.round,
            cases=message.cases,
            device=message.device,
            parameters=message.parameters,
            splits=message.splits,
        )
        self._owner.inject(orders.worker_ready(message, self.contract))

    def _mix_chosen(self, message: protocol.PersonalHeld | protocol.MixChosen, *, ended: bool) -> None:
        self._training.chosen(message, ended=ended)
        self._owner.note("mix_chosen", deployed=message.deployed, reason=message.deployed_reason)

    def _personal_held(self, message: protocol.PersonalHeld) -> None:
        if message.chosen:
            self._mix_chosen(message, ended=message.ended)
        self._training.warn("personal", message.warning)
        self._owner.inject(orders.personal_held(message))

    async def _round_done(self, message: protocol.RoundDone) -> None:
        self._training.round_done(message)
        kind = orders.export_kind(self._owner.config.federation.algorithm.exchange)
        visit = message.visit
        export = await self._adopt(message.export, orders.export_position(message), kind)
        frm = visit.frm if visit else None
        self._owner.note(
            "round_finished", site=frm, visit=visit.outcome if visit else None, **_fields(message)
        )
        if message.spent is not None and message.spent.over:
            self._end_private_training(message.spent)  # first: no further round may begin
        self._owner.inject(orders.round_finished(message, export))
        self._owner.collect_garbage()

    def _end_private_training(self, spent: protocol.Spent) -> None:
        """Pause a site that may train no more; if an operator resumes it, its rounds take no steps."""
        self._owner.note(
            "privacy_budget_spent",
            epsilon=spent.epsilon,
            delta=spent.delta,
            max_epsilon=spent.max_epsilon,
            steps=spent.steps,
        )
        self._owner.pause(True)

    async def _aggregate_done(self, message: protocol.AggregateDone) -> None:
        self._training.combined(message)
        model = await self._adopt(message.export, message.round, "global")
        self._owner.note(
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
        self._owner.inject(orders.aggregated(message, model))

    async def _adopt(self, export: protocol.Export | None, round: int, kind: ModelKind) -> ModelRef | None:
        """Move the worker's file into the store; None when there is no file, or it cannot be stored."""
        if export is None:
            return None
        try:
            hash_, size = await asyncio.to_thread(self._store.adopt, Path(export.path))
        except (OSError, LocalError) as e:
            self._owner.note("export_failed", reason=str(e))
            return None
        path = self._store.path(hash_)
        return await asyncio.to_thread(orders.exported, export, hash_, size, round, kind, path)


def _fields(message: protocol.RoundDone) -> dict[str, Any]:
    """The fields of a round that the event log keeps."""
    fields = msgspec.structs.asdict(message)
    for nested in ("export", "visit", "dice_val_local", "spent"):
        del fields[nested]
    if message.spent is not None:
        fields |= {"epsilon": message.spent.epsilon, "delta": message.spent.delta}
    return fields
