"""The node as a whole: what fits no state, random lives, purity."""

from __future__ import annotations

import ast
import random
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gossipseg import core
from gossipseg.core import effects as fx
from gossipseg.core import events as ev
from gossipseg.core import messages as ms
from gossipseg.core import types
from gossipseg.core.node import HANDLERS, Lifecycle, NodeState, UnexpectedEvent
from gossipseg.core.worker_state import TABLE, WorkerPhase
from gossipseg.wire import params as wire_params
from tests.core.rig import OPEN, SIGNED, TRAINING, Rig, alive, left, model, phase, suspect

CORE = Path(core.__file__).parent


# ---------------------------------------------------------------- tables


def test_every_event_has_a_place_in_every_stage_but_the_first() -> None:
    kinds = set(ev.Event.__args__)
    assert {kind for stage, kind in HANDLERS if stage is Lifecycle.NEW} == {ev.Start}
    for stage in (Lifecycle.UP, Lifecycle.GONE):
        assert kinds - {kind for s, kind in HANDLERS if s is stage} == {ev.Start}


@pytest.mark.parametrize("worker", [WorkerPhase.ABSENT, WorkerPhase.IDLE, WorkerPhase.FAILED])
def test_a_round_can_only_end_where_one_runs(worker: WorkerPhase) -> None:
    assert (worker, ev.RoundFinished) not in TABLE


@pytest.mark.parametrize(
    "event",
    [
        ev.Start(),
        ev.Reply(999, ms.Ack((), TRAINING), 0.1),
        ev.RequestFailed(999, "timeout"),
        ev.TransferDone(999),
        ev.RoundFinished(1, 10, None),
    ],
)
def test_what_fits_no_state_raises_in_tests_and_is_noted_in_production(event: ev.Event) -> None:
    with pytest.raises(UnexpectedEvent):
        Rig().start().do(event)
    rig = Rig(strict=False).start()
    rig.do(event)
    assert [n.reason for n in rig.notes("dropped_event")] == [type(event).__name__]


def test_nothing_may_come_before_the_start() -> None:
    with pytest.raises(UnexpectedEvent):
        Rig().do(ev.Tick())


def test_a_round_other_than_the_running_one_does_not_count() -> None:
    rig = Rig(strict=False).start()
    rig.ready(round=5)
    rig.do(ev.RoundFinished(9, 90, None))
    assert rig.notes("dropped_event") and rig.node.round == 5


def test_a_caller_under_this_sites_own_name_is_a_second_daemon() -> None:
    rig = Rig().start()
    rig.asks("me", ms.Ping((), TRAINING))
    assert rig.notes("duplicate_site") and isinstance(rig.reply(), ms.Ack)


# ---------------------------------------------------------------- random lives


class Chaos:
    """Plays a shell with no sense: any event that may come at all, in any order."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.rig = Rig(("b", "c", "d", "e"), seed=seed, rounds=self.rng.choice([None, 4]))
        self.rig.start()
        self.open: list[fx.Request] = []
        self.transfers: list[int] = []
        self.running: fx.StartRound | None = None
        self.last: list[fx.Effect] = []
        self.take()

    def take(self) -> None:
        self.last, self.rig.out = self.rig.out, []
        for effect in self.last:
            if isinstance(effect, fx.Request):
                self.open.append(effect)
            elif isinstance(effect, fx.StartTransfer):
                self.transfers.append(effect.id)
            elif isinstance(effect, fx.StartRound):
                self.running = effect

    def record(self) -> Any:
        site = self.rng.choice(["b", "c", "d", "e", "me", "mallory"])
        incarnation, nonce = self.rng.randint(0, 5), self.rng.choice([7, 8])
        kind = self.rng.randrange(3)
        if kind == 0:
            return alive(site, incarnation, nonce, cases=self.rng.choice([0, 5, 50]))
        if kind == 1:
            return left(site, incarnation, nonce)
        return suspect(site, self.rng.choice(["b", "c", "d", "mallory"]), incarnation)

    def records(self) -> tuple[Any, ...]:
        return tuple(self.record() for _ in range(self.rng.randrange(4)))

    def step(self) -> None:
        rng, rig = self.rng, self.rig
        rig.now += rng.choice([0.0, 0.01, 1.0, 5.0, 40.0])
        frm = rng.choice(["b", "c", "d", "e"])
        info = phase(rng.choice(list(types.Phase)))
        info = info if rng.random() < 0.7 else types.PeerInfo(0, 0, 0, types.Phase.STARTING, "")
        contract = rng.choice([SIGNED, SIGNED, OPEN])
        asked = model(rng.choice("xyz"), round=rng.randint(1, 9), steps=rng.randint(1, 90))
        choices: list[Any] = [
            lambda: rig.do(ev.Tick()),
            lambda: rig.asks(frm, ms.Ping(self.records(), info)),
            lambda: rig.asks(frm, ms.Sync(self.records(), info)),
            lambda: rig.asks(frm, ms.IndirectPing(rng.choice(["b", "c", "me", "mallory"]), self.records())),
            lambda: rig.asks(frm, ms.Hello(1, rng.choice([0, 1]), "f", contract, info)),
            lambda: rig.asks(frm, ms.Offer(asked)),
            lambda: rig.do(ev.ModelArrived(frm, asked)),
            lambda: rig.do(ev.ModelBroken(frm, asked.hash, "cut")),
            lambda: rig.do(ev.TransferBegan(frm, asked.hash)),
            lambda: rig.do(ev.WorkerReady(rng.randint(0, 4), 10, 10, SIGNED, rng.choice([None, asked.hash]))),
            lambda: rig.do(ev.WorkerLost("x", rng.random() < 0.2)),
            lambda: rig.do(ev.Pause(rng.random() < 0.5)),
            lambda: rig.do(ev.SitesChanged({s: s for s in "bcdef" if rng.random() < 0.8})),
            self.settle,
            self.settle,
            self.settle,
            self.finish_round,
            self.finish_round,
        ]
        rng.choice(choices)()
        self.take()

    def settle(self) -> None:
        rng, rig = self.rng, self.rig
        if self.transfers and rng.random() < 0.3:
            id = self.transfers.pop()
            rig.do(ev.TransferDone(id) if rng.random() < 0.5 else ev.TransferFailed(id, "cut"))
        elif self.open:
            request = self.open.pop(rng.randrange(len(self.open)))
            if rng.random() < 0.4:
                rig.fail(request, rng.choice(["timeout", "unreachable", "untrusted", "refused"]))
            else:
                rig.answer(request, self.reply_to(request))

    def reply_to(self, request: fx.Request) -> ms.Reply:
        rng = self.rng
        if isinstance(request.body, ms.Ping):
            return ms.Ack(self.records(), TRAINING)
        if isinstance(request.body, ms.Sync):
            return ms.SyncReply(self.records(), TRAINING)
        if isinstance(request.body, ms.IndirectPing):
            return ms.IndirectAck(request.body.target, rng.random() < 0.5, self.records())
        if isinstance(request.body, ms.Hello):
            return ms.HelloReply(1, 1, "f", rng.choice([SIGNED, OPEN]), TRAINING)
        reason = rng.choice(["busy", "paused", "not_ready", "stale"])
        return rng.choice([ms.OfferReply("accept"), ms.OfferReply("reject", reason), ms.OfferReply("busy")])

    def finish_round(self) -> None:
        running, node = self.running, self.rig.node
        if running is None or node._gossip.running_round != running.round:
            return
        visit = running.visit
        result = ev.VisitResult(visit.model.hash, "merged") if visit else None
        export = model(f"own{running.round}", round=running.round) if running.export else None
        self.running = None
        self.rig.do(ev.RoundFinished(running.round, running.round * 10, None, export, result))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_no_order_of_events_breaks_an_invariant(seed: int) -> None:
    chaos = Chaos(seed)
    for _ in range(150):
        chaos.step()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_the_same_events_give_the_same_effects(seed: int) -> None:
    traces = []
    for _ in range(2):
        chaos = Chaos(seed)
        trace = []
        for _ in range(60):
            chaos.step()
            trace.append(repr(chaos.last))
        traces.append(trace)
    assert traces[0] == traces[1]


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_alive_and_left_records_mean_the_same_in_any_order(data: st.DataObject) -> None:
    """What all sites believe must not depend on the way the records took."""
    drawn = data.draw(
        st.lists(st.tuples(st.booleans(), st.sampled_from("bc"), st.integers(1, 4)), min_size=1, max_size=10)
    )
    # one life per incarnation, as restarts make them: the nonce follows from it
    records = [(alive if is_alive else left)(s, i, nonce=100 + i) for is_alive, s, i in drawn]
    shuffled = data.draw(st.permutations(records))
    views = []
    for order in (records, shuffled):
        rig = Rig(("b", "c", "d")).start()
        for record in order:
            rig.hears("d", record)
        views.append([(m.state, m.incarnation) for m in rig.node.members.values()])
    assert views[0] == views[1]


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_an_incarnation_is_on_disk_before_anybody_hears_of_it(seed: int) -> None:
    chaos = Chaos(seed)
    on_disk = 0
    for _ in range(100):
        for effect in chaos.last:
            if isinstance(effect, fx.Persist):
                on_disk = effect.snapshot.incarnation
            elif isinstance(effect, fx.Request | fx.Respond):
                own = [
                    r for r in getattr(effect.body, "records", ()) if r.site == "me" and hasattr(r, "nonce")
                ]
                own = [r for r in own if r.nonce not in (7, 8)]
                assert all(r.incarnation <= on_disk for r in own)
        chaos.step()


# ---------------------------------------------------------------- purity


def test_the_core_imports_nothing_but_the_standard_library_itself_errors_and_bounds() -> None:
    banned = {"asyncio", "time", "logging", "os", "pathlib", "socket", "threading", "subprocess"}
    for file in sorted(CORE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            for name in names:
                ours = name.startswith(("gossipseg.core", "gossipseg.errors", "gossipseg.bounds"))
                top = name.split(".")[0]
                assert ours or (top in sys.stdlib_module_names and top not in banned), f"{file.name}: {name}"


def test_the_core_draws_no_randomness_of_its_own() -> None:
    for file in sorted(CORE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                assert (node.value.id, node.attr) in {("random", "Random")} or node.value.id != "random", file


def test_core_and_wire_speak_the_same_protocol() -> None:
    assert (types.PROTOCOL_MIN, types.PROTOCOL_MAX) == (wire_params.PROTOCOL_MIN, wire_params.PROTOCOL_MAX)


def test_the_views_are_read_only() -> None:
    node: NodeState = Rig().start().node
    with pytest.raises(TypeError):
        node.members["x"] = node.members["b"]  # type: ignore[index]
