"""One site of a lab federation: the core's effects carried out, and what came of them told to the core.

A round is computed in one go when it starts; its outcome is told after the virtual time that it takes.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gossipseg.core import effects, events
from gossipseg.core.messages import Reply, Request
from gossipseg.core.node import NodeState
from gossipseg.core.types import ModelKind, ModelRef, Site
from gossipseg.errors import PeerError, PeerRefused
from gossipseg.lab.simulation.durations import Pace
from gossipseg.lab.simulation.training import Training
from gossipseg.learn import jobs
from gossipseg.store import BrokenModel, IncompleteModel, ModelStore
from gossipseg.wire.memory import MemoryTransport

Contract = tuple[tuple[str, str], ...]


@dataclass(slots=True)
class Moved:
    """What went over the wire as models, and what became of those that came."""

    bytes_out: int = 0
    bytes_in: int = 0
    sent_to: Counter[str] = field(default_factory=Counter)
    commons: int = 0
    """Rounds that began from a common model."""
    left_out: int = 0
    """Common models that were made without this site's update."""
    notes: Counter[str] = field(default_factory=Counter)
    """How often the core noted what."""


class LabSite:
    """One node, run in virtual time. `broke` is told of a mistake that must end the run."""

    def __init__(
        self,
        node: NodeState,
        training: Training,
        transport: MemoryTransport,
        store: ModelStore,
        pace: Pace,
        contract: Contract,
        *,
        transfer_timeout_s: float,
        coordinated: bool,
        broke: Callable[[BaseException], None],
        spoil: Callable[[Path], None] | None = None,
    ) -> None:
        self.name, self.node, self.training = transport.site, node, training
        self.transport, self.store, self.moved = transport, store, Moved()
        self.finished = asyncio.Event()
        self.warnings: list[str] = []
        self.similarity: dict[str, Any] | None = None
        """Of the sites' changes, as this site found it when it last combined: {round, sites, matrix}."""
        self.began_s = self.ended_s = 0.0
        """Virtual seconds at which it began, and had finished."""
        self._pace, self._contract, self._broke = pace, contract, broke
        self._spoil = spoil
        self._transfer_timeout_s, self._coordinated = transfer_timeout_s, coordinated
        self._tokens = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Reply]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()

    async def start(self) -> None:
        """Listen, and begin: the worker is ready at once."""
        self.began_s = self._loop.time()
        await self.transport.start(self)
        self.inject(events.Start())
        trainer = self.training.trainer
        self.inject(events.WorkerReady(0, 0, trainer.site.cases, self._contract))

    async def close(self) -> None:
        """Stop, wherever things are."""
        if self._timer is not None:
            self._timer.cancel()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.transport.close()

    # ------------------------------------------------------------ the core

    def inject(self, event: events.Event) -> None:
        """Let something happen to the node, and carry out what it wants done."""
        try:
            for effect in self.node.step(event, self._loop.time()):
                self._perform(effect)
        except Exception as e:
            self._broke(e)
            raise
        self._arm()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due = self.node.next_deadline()
        if due is not None:
            self._timer = self._loop.call_at(due, self._tick)

    def _tick(self) -> None:
        self.inject(events.Tick())

    def _perform(self, effect: effects.Effect) -> None:
        match effect:
            case effects.Request():
                self._spawn(self._request(effect))
            case effects.Respond(token=token, body=body):
                future = self._waiting.get(token)
                if future is not None and not future.done():
                    future.set_result(body)
            case effects.StartTransfer():
                self._spawn(self._transfer(effect))
            case effects.StartRound():
                away_s = self._pace.before(effect.round)
                self._loop.call_later(away_s, self._round, effect)
            case effects.Aggregate():
                self._loop.call_later(self._pace.combining_s, self._aggregate, effect)
            case effects.Note(event=name, detail=detail):
                self.moved.notes[name] += 1
                self.moved.left_out += name == "round_committed" and self.name in detail["absent"]
            case effects.Finished():
                self.ended_s = self._loop.time()
                self.finished.set()
            case effects.Persist():
                pass  # nobody crashes here

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._broke(error)

    # ------------------------------------------------------------ the wire

    async def _request(self, effect: effects.Request) -> None:
        began = self._loop.time()
        try:
            body = await self.transport.request(effect.to, effect.body, effect.timeout_s)
        except PeerError as e:
            self.inject(events.RequestFailed(effect.id, _in_core_words(e), e.detail))
        else:
            self.inject(events.Reply(effect.id, body, self._loop.time() - began))

    async def _transfer(self, effect: effects.StartTransfer) -> None:
        path = self.store.path(effect.model.hash)
        try:
            await self.transport.push(effect.to, effect.model, path, self._transfer_timeout_s)
        except PeerError as e:
            self.inject(events.TransferFailed(effect.id, e.reason, e.detail))
        else:
            self.moved.bytes_out += effect.model.size_bytes
            self.moved.sent_to[effect.to] += 1
            self.inject(events.TransferDone(effect.id))

    async def on_request(self, peer: Site, body: Request) -> Reply:
        """wire.transport.Handler."""
        token = next(self._tokens)
        future: asyncio.Future[Reply] = self._loop.create_future()
        self._waiting[token] = future
        try:
            self.inject(events.Incoming(peer, token, body))
            return await future
        finally:
            del self._waiting[token]

    async def push_offset(self, peer: Site, model: ModelRef) -> int:
        """wire.transport.Handler."""
        self._require_promised(peer, model)
        with self.store.partial(model.hash, peer, size_bytes=model.size_bytes) as partial:
            return partial.offset

    async def on_push(self, peer: Site, model: ModelRef, offset: int, chunks: AsyncIterator[bytes]) -> None:
        """wire.transport.Handler."""
        self._require_promised(peer, model)
        self.inject(events.TransferBegan(peer, model.hash))
        with self.store.partial(model.hash, peer, size_bytes=model.size_bytes) as partial:
            async for chunk in chunks:
                partial.write(chunk)
                self.moved.bytes_in += len(chunk)
            try:
                partial.finish(model.hash, model.size_bytes)
            except IncompleteModel as e:
                raise PeerRefused(peer, e.reason, str(e)) from None
            except BrokenModel as e:
                self.inject(events.ModelBroken(peer, model.hash, e.reason, str(e)))
                raise PeerRefused(peer, e.reason, str(e)) from None
        self.inject(events.ModelArrived(peer, model))

    def _require_promised(self, peer: Site, model: ModelRef) -> None:
        if self.node.expects(peer, model.hash) is None:
            raise PeerRefused(peer, "not_offered", "this model was not offered, or not accepted")

    # ------------------------------------------------------------ training

    def _round(self, effect: effects.StartRound) -> None:
        """Compute the round now, and tell of it when its virtual time has passed."""
        try:
            done = self.training.run(self._order(effect))
        except Exception as e:
            self._broke(e)
            raise
        self._loop.call_later(
            self._pace.of_round(effect.round, done.evaluations), self._round_done, done.report
        )

    def _order(self, effect: effects.StartRound) -> jobs.StartRound:
        entry, model, path = effect.visit, effect.start_from, self.store.path
        visit = jobs.Visit.of(entry.model, entry.frm, path(entry.model.hash)) if entry else None
        common = jobs.CommonModel.of(model, path(model.hash)) if model else None
        self.moved.commons += common is not None
        return jobs.StartRound(
            effect.round,
            visit,
            effect.export,
            common,
            effect.settling_in,
            effect.finetuning,
            ahead=effect.ahead,
        )

    def _round_done(self, report: jobs.RoundDone) -> None:
        visit = report.visit
        if report.warning:
            self.warnings.append(f"round {report.round}: {report.warning}")
        if report.export is not None and self._spoil is not None:
            self._spoil(Path(report.export.path))
        outcome = events.VisitResult(visit.hash, visit.outcome, visit.reason, visit.detail) if visit else None
        position = report.round + report.ahead
        export = self._adopted(report.export, position, "update" if self._coordinated else "model")
        export = export and replace(export, dice_val=report.dice_val)
        self.inject(
            events.RoundFinished(
                report.round,
                report.steps,
                report.dice_val,
                export,
                outcome,
                report.reverted,
                report.own_steps,
                report.ahead,
            )
        )
        self._collect()

    def _aggregate(self, effect: effects.Aggregate) -> None:
        """The coordinator's work."""
        files = [
            jobs.UpdateFile(site, str(self.store.path(model.hash)), model.cases, model.steps)
            for site, model in effect.updates
        ]
        try:
            done = self.training.trainer.aggregate(jobs.Aggregate(effect.round, effect.attempt, files))
            model = self._adopted(done.export, done.round, "global")
        except Exception as e:
            self._broke(e)
            raise
        refused = tuple(sorted(done.refused.items()))
        if model is None:
            reason = done.reason or "not_stored"
            self.warnings.append(f"federation round {done.round}: not combined: {reason} {done.detail}")
            self.inject(events.AggregationFailed(done.round, done.attempt, reason, refused))
        else:
            if (found := done.notes.get("similarity")) is not None:
                self.similarity = {"round": done.round, **found}
            sites = tuple(sorted(done.contributors))
            self.inject(events.Aggregated(done.round, done.attempt, model, sites, refused))

    def _adopted(self, export: jobs.Export | None, round: int, kind: ModelKind) -> ModelRef | None:
        if export is None:
            return None
        hash_, size = self.store.adopt(Path(export.path))
        return ModelRef(hash_, size, round, export.steps, export.cases, kind=kind)

    def _collect(self) -> None:
        """Remove the files nobody will ask for again."""
        keep = self.node.kept_models()
        for model in self.store.list():
            if model.hash not in keep:
                self.store.remove(model.hash)


def _in_core_words(error: PeerError) -> str:
    """The core knows four reasons for which a request came to nothing."""
    return error.reason if error.reason in ("timeout", "unreachable", "untrusted") else "refused"
