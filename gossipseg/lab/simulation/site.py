"""One site of a lab federation: carries out the core's effects, and reports their outcomes to the core.

A round is computed at once when it starts. Its outcome is reported after the virtual time that it takes.
Under swaps it is computed step by step, because a swap takes place between two steps.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec

from gossipseg.bridge import orders
from gossipseg.bridge.intake import Intake
from gossipseg.bridge.manifest_checks import Verifier
from gossipseg.bridge.outcomes import why
from gossipseg.core import effects, events
from gossipseg.core.messages import Reply, Request
from gossipseg.core.node import NodeState
from gossipseg.core.types import ModelKind, ModelRef, Record, Site
from gossipseg.errors import PeerError
from gossipseg.lab.simulation.durations import Durations
from gossipseg.lab.simulation.lockstep import Lockstep
from gossipseg.lab.simulation.training import Round, Training
from gossipseg.learn import protocol
from gossipseg.store import ModelStore
from gossipseg.wire.memory import MemoryTransport

Contract = tuple[tuple[str, str], ...]
SwapEffect = effects.ExportSnapshot | effects.AdmitSnapshot | effects.ApplySwap
PersonalEffect = effects.ExportPersonal | effects.HoldPersonal


@dataclass(slots=True)
class Moved:
    """Models that this site sent and received, and the outcomes of the received ones."""

    bytes_out: int = 0
    bytes_in: int = 0
    sent_to: Counter[str] = field(default_factory=Counter)
    commons: int = 0
    """Rounds that began from a global model."""
    left_out: int = 0
    """Global models that were made without this site's update."""
    notes: Counter[str] = field(default_factory=Counter)
    """Number of each of the core's notes."""
    personal_out: int = 0
    """Bytes of personal models, which are among the others."""
    personal_in: int = 0


class LabSite:
    """One node, run in virtual time. `broke` is called with a bug that must end the run."""

    def __init__(
        self,
        node: NodeState,
        training: Training,
        transport: MemoryTransport,
        store: ModelStore,
        pace: Durations,
        contract: Contract,
        verifier: Verifier,
        *,
        transfer_timeout_s: float,
        exchange: str,
        swaps: bool = False,
        broke: Callable[[BaseException], None],
        spoil: Callable[[Path], None] | None = None,
        times: int = 1,
    ) -> None:
        """`spoil`, `times`: of a malicious site: what it does to each model that it sends, and how many times
        its training cases it claims."""
        self.name, self.node, self.training = transport.site, node, training
        self.transport, self.store, self.moved = transport, store, Moved()
        self.finished = asyncio.Event()
        self.warnings: list[str] = []
        self.similarity: dict[str, Any] | None = None
        """Similarity of the sites' changes at this site's last aggregation: {round, sites, matrix}."""
        self.began_s = self.ended_s = 0.0
        """Virtual seconds at which it began, and had finished."""
        self._pace, self._contract, self._broke = pace, contract, broke
        self._spoil, self._times, self._verifier = spoil, times, verifier
        self._transfer_timeout_s, self._kind = transfer_timeout_s, orders.export_kind(exchange)
        self._swaps, self._in_round = swaps, False
        self._swap_orders: deque[SwapEffect] = deque()
        """Orders of a swap that wait for the end of a step."""
        self._personal_orders: deque[PersonalEffect] = deque()
        """Orders about personal models that wait for the end of the round."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._intake = Intake(
            node,
            self.inject,
            store,
            verifier,
            disk_reserve_bytes=0,
            moved=lambda *_: None,
            forged=self._forged,
            clock=self._loop.time,
            in_thread=_at_once,
        )

    async def start(self) -> None:
        """Listen and begin: the worker is ready at once."""
        self.began_s = self._loop.time()
        await self.transport.start(self)
        self.inject(events.Start())
        trainer = self.training.trainer
        model, update = trainer.schema, trainer.update_schema
        personal = trainer.personal_schema
        self._intake.schemas = {"model": model, "global": model, "update": update, "personal": personal}
        ready = events.WorkerReady(0, 0, trainer.site.cases * self._times, self._contract)
        refusal, takes = trainer.personal_refusal, trainer.takes_personal
        self.inject(replace(ready, personal_refusal=refusal, takes_personal=takes))

    async def close(self) -> None:
        """Stop, whatever is under way."""
        if self._timer is not None:
            self._timer.cancel()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.transport.close()

    # ------------------------------------------------------------ the core

    def inject(self, event: events.Event) -> None:
        """Hand an event to the node, and carry out its effects."""
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
                self._intake.respond(token, body)
            case effects.StartTransfer():
                self._spawn(self._transfer(effect))
            case effects.StartRound():
                away_s = self._pace.before(effect.round)
                self._loop.call_later(away_s, self._begin_round, effect)
            case effects.Aggregate():
                self._loop.call_later(self._pace.combining_s, self._aggregate, effect)
            case effects.ExportSnapshot() | effects.AdmitSnapshot() | effects.ApplySwap():
                self._swap_orders.append(effect)
                self._loop.call_soon(self._swap_if_idle)
            case effects.ExportPersonal() | effects.HoldPersonal():
                self._personal_orders.append(effect)
                if not self._in_round:
                    self._loop.call_soon(self._carry_out_personal)
            case effects.Note(event=name, detail=detail):
                self.moved.notes[name] += 1
                self.moved.left_out += name == "round_committed" and self.name in detail["absent"]
            case effects.Finished():
                self.ended_s = self._loop.time()
                self.finished.set()
            case effects.Persist():
                pass  # no process crashes here

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
            body = self._intake.verified(effect.to, body)
        except PeerError as e:
            self.inject(events.RequestFailed(effect.id, *why(e, in_core_words=True)))
        else:
            self.inject(events.Reply(effect.id, body, self._loop.time() - began))

    async def _transfer(self, effect: effects.StartTransfer) -> None:
        path = self.store.path(effect.model.hash)
        try:
            await self.transport.push(effect.to, effect.model, path, self._transfer_timeout_s)
        except PeerError as e:
            self.inject(events.TransferFailed(effect.id, *why(e)))
        else:
            self.moved.bytes_out += effect.model.size_bytes
            if effect.model.kind == "personal":
                self.moved.personal_out += effect.model.size_bytes
            else:
                self.moved.sent_to[effect.to] += 1
            self.inject(events.TransferDone(effect.id))

    async def on_request(self, peer: Site, body: Request) -> Reply:
        """wire.transport.Handler."""
        return await self._intake.on_request(peer, body)

    async def push_offset(self, peer: Site, model: ModelRef) -> int:
        """wire.transport.Handler."""
        return await self._intake.push_offset(peer, model)

    async def on_push(self, peer: Site, model: ModelRef, offset: int, chunks: AsyncIterator[bytes]) -> None:
        """wire.transport.Handler."""
        await self._intake.on_push(peer, model, offset, self._counted(peer, model, chunks))

    async def _counted(
        self, peer: Site, model: ModelRef, chunks: AsyncIterator[bytes]
    ) -> AsyncIterator[bytes]:
        wanted = self.node.expects(peer, model.hash)
        personal = wanted is not None and wanted.kind == "personal"
        async for chunk in chunks:
            self.moved.bytes_in += len(chunk)
            self.moved.personal_in += len(chunk) if personal else 0
            yield chunk

    def _forged(self, peer: Site, record: Record, more: int) -> None:
        raise AssertionError(f"{peer} sent {record} and {more} more that nobody signed")

    # ------------------------------------------------------------ training

    def _begin_round(self, effect: effects.StartRound) -> None:
        if self._swaps:
            self._in_round = True
            self._spawn(self._round_in_steps(effect))
        else:
            self._round(effect)

    async def _round_in_steps(self, effect: effects.StartRound) -> None:
        """Compute each step when it begins; at its end, in virtual time, carry out a swap's orders."""
        order, number = self._order(effect), effect.round
        work: Lockstep[Round] = Lockstep(lambda pause: self.training.run(order, pause))
        before = self.training.evaluations
        try:
            while not work.advance():
                before = await self._step_over(number, before)
                self._carry_out_swaps()
            await self._step_over(number, before)
        finally:
            work.abandon()
        self._in_round = False
        self._round_done(work.result.report)
        self._carry_out_swaps()
        self._carry_out_personal()

    async def _step_over(self, round: int, before: int) -> int:
        """Wait for the virtual time of the gradients computed since `before`; returns their number now."""
        now = self.training.evaluations
        if now > before:
            await asyncio.sleep(self._pace.of_round(round, now - before))
        return now

    def _swap_if_idle(self) -> None:
        if not self._in_round:
            self._carry_out_swaps()

    def _carry_out_swaps(self) -> None:
        while self._swap_orders:
            for event in self._swapped(self._swap_orders.popleft()):
                self.inject(event)

    def _swapped(self, effect: SwapEffect) -> list[events.Event]:
        """Let the trainer do its part of a swap, and say what came of it."""
        try:
            report = self.training.swap(orders.swap_order(effect, self.store.path))
            match report:
                case protocol.SnapshotExported():
                    if report.export is not None and self._spoil is not None:
                        self._spoil(Path(report.export.path))
                    model = self._adopted(report.export, report.round, "model")
                    return [orders.snapshot_exported(report, model)]
                case protocol.SnapshotAdmitted():
                    return [orders.snapshot_admitted(report)]
                case protocol.SwapApplied():
                    harmful = orders.harmful_peer(report)
                    return [*([harmful] if harmful is not None else []), orders.swap_applied(report)]
        except Exception as e:
            self._broke(e)
            raise

    def _carry_out_personal(self) -> None:
        while self._personal_orders and not self._in_round:
            self.inject(self._personal_done(self._personal_orders.popleft()))

    def _personal_done(self, effect: PersonalEffect) -> events.Event:
        """Let the trainer carry out an order about personal models, and say what came of it."""
        try:
            report = self.training.personal(orders.personal_order(effect, self.store.path))
            match report:
                case protocol.PersonalExported():
                    if report.export is not None and self._spoil is not None:
                        self._spoil(Path(report.export.path))
                    model = self._adopted(report.export, report.round, "personal")
                    return orders.personal_exported(report, model)
                case protocol.PersonalHeld():
                    return orders.personal_held(report)
        except Exception as e:
            self._broke(e)
            raise

    def _round(self, effect: effects.StartRound) -> None:
        """Compute the round now, and report it when its virtual time has passed."""
        try:
            done = self.training.run(self._order(effect))
        except Exception as e:
            self._broke(e)
            raise
        self._loop.call_later(
            self._pace.of_round(effect.round, done.evaluations), self._round_done, done.report
        )

    def _order(self, effect: effects.StartRound) -> protocol.StartRound:
        self.moved.commons += effect.start_from is not None
        return orders.start_round(effect, self.store.path, sorted(self._verifier.sites))

    def _round_done(self, report: protocol.RoundDone) -> None:
        if report.warning:
            self.warnings.append(f"round {report.round}: {report.warning}")
        if report.export is not None and self._spoil is not None:
            self._spoil(Path(report.export.path))
        export = self._adopted(report.export, orders.export_position(report), self._kind)
        self.inject(orders.round_finished(report, export))
        self._collect()

    def _aggregate(self, effect: effects.Aggregate) -> None:
        """Compute the global model, as the coordinator."""
        try:
            done = self.training.trainer.aggregate(orders.aggregate(effect, self.store.path))
            model = self._adopted(done.export, done.round, "global")
        except Exception as e:
            self._broke(e)
            raise
        if model is None:
            reason = done.reason or "not_stored"
            self.warnings.append(f"federation round {done.round}: not combined: {reason} {done.detail}")
        elif (found := done.notes.get("similarity")) is not None:
            self.similarity = {"round": done.round, **found}
        self.inject(orders.aggregated(done, model))

    def _adopted(self, export: protocol.Export | None, round: int, kind: ModelKind) -> ModelRef | None:
        if export is None:
            return None
        hash_, size = self.store.adopt(Path(export.path))
        export = msgspec.structs.replace(export, cases=export.cases * self._times)
        return orders.exported(export, hash_, size, round, kind, self.store.path(hash_))

    def _collect(self) -> None:
        """Remove the files that no site will ask for again."""
        keep = self.node.kept_models()
        for model in self.store.list():
            if model.hash not in keep:
                self.store.remove(model.hash)


async def _at_once(work: Callable[..., Any], *args: Any, **named: Any) -> Any:
    """Run the work at once: in virtual time nothing waits for the disk, and a thread would let hours pass."""
    return work(*args, **named)
