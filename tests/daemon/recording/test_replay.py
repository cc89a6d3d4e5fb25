"""Recordings of the core, replayed bit-equal: federations in virtual time, a runtime with real keys."""

from __future__ import annotations

import json
import os
import random
from collections import Counter, deque
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gossipseg.core import effects as fx
from gossipseg.core import events as ev
from gossipseg.core import messages as ms
from gossipseg.core.node import NodeSetup, NodeState
from gossipseg.core.params import GossipParams, RoundsParams, membership_preset
from gossipseg.daemon.recording import replay
from gossipseg.daemon.recording.recorder import Recorder
from gossipseg.daemon.recording.state_codec import FrozenError, freeze, thaw
from gossipseg.errors import DataError
from tests.core.rig import OPEN, TRAINING, model
from tests.daemon.harness import daemon_of
from tests.e2e.federation import Federation
from tests.sim.simulator import Net, Simulator
from tests.sim.swap_world import SwapWorld

QUICK = RoundsParams(patience_s=20.0, poll_interval_s=1.0, request_timeout_s=2.0)


@pytest.fixture
def recorders(monkeypatch: pytest.MonkeyPatch) -> dict[NodeState, Recorder]:
    """A recorder for every node of a simulation, with signatures that no replay could guess."""
    made: dict[NodeState, Recorder] = {}
    inside: set[NodeState] = set()
    begin, real = NodeState.__init__, NodeState.step

    def init(self: NodeState, setup: NodeSetup) -> None:
        made[self] = recorder = Recorder(lambda _: os.urandom(8), max_steps=200)
        begin(self, replace(setup, sign=recorder.sign))

    def step(self: NodeState, event: ev.Event, now: float) -> list[fx.Effect]:
        if self in inside:
            return real(self, event, now)
        inside.add(self)
        try:
            return made[self].step(self, event, now)
        finally:
            inside.discard(self)

    monkeypatch.setattr(NodeState, "__init__", init)
    monkeypatch.setattr(NodeState, "step", step)
    return made


def head(recorder: Recorder) -> dict[str, Any]:
    """The first line of its text."""
    return dict(json.loads(recorder.text().partition("\n")[0]))


def recorded(sites: int, recorder: Recorder) -> NodeState:
    """One of so many sites of a federation after five seconds, whose signatures the recorder makes."""
    sim = Simulator(sites, seed=1, membership=membership_preset("lan"), sign=recorder.sign)
    sim.start_all()
    sim.run(5)
    node = sim.nodes["s0000"].state
    assert node is not None
    return node


def eventful(**changes: Any) -> None:
    sim = Simulator(
        6, seed=3, membership=membership_preset("lan"), net=Net(loss=0.05, duplication=0.05), **changes
    )
    sim.start_all()
    sim.at(30.0, sim.crash, "s0003")
    sim.at(40.0, sim.partition, ["s0000", "s0001"], [f"s{i:04d}" for i in range(2, 6)])
    sim.at(60.0, sim.heal)
    sim.at(65.0, sim.start, "s0003")
    sim.run(120)


@pytest.mark.parametrize("exchange", ["gossip", "rounds"])
def test_every_site_of_a_federation_replays_to_the_same_effects(
    recorders: dict[NodeState, Recorder], exchange: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    eventful(exchange=exchange, **({"rounds_params": QUICK} if exchange == "rounds" else {}))
    monkeypatch.undo()
    made = list(recorders.values())
    assert len(made) == 7 and not any(r.problem for r in made)
    kinds: Counter[str] = Counter()
    for recorder in made:
        replayed = replay.load(recorder.text(site="s"))
        steps = list(replayed.steps())
        assert steps and all(step.same for step in steps), next(s for s in steps if not s.same)
        assert steps[-1].number == recorder.steps - 1
        kinds.update(type(effect).__name__ for step in steps for effect in step.effects)
    assert {"Request", "Respond", "Persist", "StartRound", "StartTransfer"} <= set(kinds)
    assert any(head(r)["first_step"] > 0 for r in made), "no recording began in the middle"


def test_swaps_replay_to_the_same_effects(
    recorders: dict[NodeState, Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    for swaps in (1, "log2"):
        params = GossipParams(exchange="swap", swaps_per_round=swaps, warmup_rounds=0)  # type: ignore[arg-type]
        sim = SwapWorld(4, seed=3, gossip=params)
        sim.start_all()
        sim.at(40.0, sim.crash, "s0003")
        sim.at(45.0, sim.start, "s0003")
        sim.run(120)
    monkeypatch.undo()
    made = list(recorders.values())
    assert len(made) == 10 and not [r.problem for r in made if r.problem]
    kinds: Counter[str] = Counter()
    for recorder in made:
        steps = list(replay.load(recorder.text(site="s")).steps())
        assert steps and all(step.same for step in steps), next(s for s in steps if not s.same)
        kinds.update(type(effect).__name__ for step in steps for effect in step.effects)
    assert {"ExportSnapshot", "AdmitSnapshot", "ApplySwap"} <= set(kinds)
    assert any(head(r)["first_step"] > 0 for r in made), "no recording began in the middle"


def test_a_replay_sees_a_core_that_behaves_otherwise(
    recorders: dict[NodeState, Recorder], monkeypatch: Any
) -> None:
    eventful(exchange="gossip")
    monkeypatch.undo()
    recorder = next(iter(recorders.values()))
    lines = recorder.text().splitlines()
    line = json.loads(lines[5])
    lines[5] = json.dumps({**line, "effects": "0" * 16})
    assert [s.same for s in replay.load("\n".join(lines)).steps()].count(False) == 1


async def test_a_runtime_with_real_keys_is_recorded_without_secrets(
    files: Federation, tmp_path: Path
) -> None:
    daemon = daemon_of(files)
    r = daemon.runtime
    r.inject(ev.Start())
    r.inject(ev.WorkerReady(0, 0, 8, OPEN))
    r.inject(ev.Incoming("south", 1, ms.Ping((), TRAINING)))
    r.inject(ev.Incoming("south", 2, ms.Offer(model())))
    r.inject(ev.WorkerLost("last words: /data/MUELLER_ANNA_1957.nii is unreadable"))
    text = r.recorder.text(site="north")
    assert "MUELLER" not in text and "PRIVATE" not in text
    key = (files["north"].folder / "identity" / "key.pem").read_text()
    assert not any(line in text for line in key.splitlines()[1:-1])
    steps = list(replay.load(text).steps())
    assert len(steps) == 5 and all(s.same for s in steps)
    assert any(isinstance(e, fx.Persist) for s in steps for e in s.effects)
    assert '"signed"' in text, "real signatures, which no replay could make again"
    (tmp_path / "dump.jsonl").write_text(text)
    assert replay.main([str(tmp_path / "dump.jsonl")]) == 0
    await r.transport.close()


async def test_an_event_that_breaks_the_core_is_in_the_recording(files: Federation) -> None:
    daemon = daemon_of(files)
    r = daemon.runtime
    r.inject(ev.Start())
    with pytest.raises(AttributeError):
        r.inject(ev.Incoming("south", 1, ms.Ping((None,), TRAINING)))  # type: ignore[arg-type]
    *_, last = replay.load(r.recorder.text()).steps()
    assert isinstance(last.error, AttributeError) and last.same
    await r.transport.close()


def test_it_is_bounded() -> None:
    recorder = Recorder(lambda _: b"", max_steps=40, max_bytes=1 << 30)
    node = recorded(3, recorder)
    kept: list[int] = []
    for i in range(500):
        recorder.step(node, ev.Tick(), 10.0 + i)
        kept.append(recorder.text().count("\n") - 1)
    assert max(kept) == 40 and min(kept[20:]) > 20, "half of the bound is always there"
    assert head(recorder)["first_step"] + kept[-1] == recorder.steps == 500
    assert all(step.same for step in replay.load(recorder.text()).steps())


def test_a_state_larger_than_the_bound_is_not_written_down_at_every_step() -> None:
    recorder = Recorder(lambda _: b"", max_bytes=2000)
    node = recorded(20, recorder)
    starts = set()
    for i in range(500):
        recorder.step(node, ev.Tick(), 10.0 + i)
        starts.add(head(recorder)["first_step"])
    state_bytes = recorder.text().index("\n")
    assert state_bytes > 2000 and len(starts) < 50
    assert len(recorder.text()) < 8 * state_bytes, "and it is bounded all the same"
    assert all(step.same for step in replay.load(recorder.text()).steps())


def test_values_come_back_as_they_were() -> None:
    shared: list[Any] = [1, 2.5, "x", None, True]
    shared.append(shared)
    rng = random.Random(4)
    rng.random()
    value = {
        **{"a": shared, ("t", 1): shared, "d": deque([1, 2], 5), "c": Counter("abb"), "inf": float("-inf")},
        **{"r": rng, "b": b"\x00\xff", "s": {1, 2}, "f": frozenset({3}), "m": model(), "p": TRAINING.phase},
    }
    back = thaw(json.loads(json.dumps(freeze(value))))
    assert back["a"] is back["t", 1] is back["a"][5] and back["a"][:5] == shared[:5]
    assert back["d"] == value["d"] and back["d"].maxlen == 5 and back["c"] == value["c"]
    assert back["inf"] == float("-inf") and back["r"].random() == rng.random()
    assert (back["b"], back["s"], back["f"], back["m"], back["p"]) == tuple(value[k] for k in "bsfmp")


@pytest.mark.parametrize(
    "entry",
    [
        ["object", "os:_wrap_close", []],
        ["name", "subprocess:Popen"],
        ["name", "gossipseg.core.types:json"],
        ["name", "gossipseg.daemon.main:main"],
        ["enum", "gossipseg.core.node:HANDLERS", 1],
        ["method", {"at": 1}, "append"],
        ["pickle", "gASV"],
    ],
)
def test_a_recording_can_name_nothing_outside_the_core(entry: list[Any]) -> None:
    with pytest.raises(FrozenError):
        thaw({"root": {"at": 0}, "table": [entry, ["list", []]]})


def test_what_cannot_be_frozen_stops_the_recording_and_nothing_else() -> None:
    with pytest.raises(FrozenError):
        freeze({"x": lambda: 1})
    with pytest.raises(FrozenError):
        freeze(replay)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"schema":2,"kind":"recording"}', "\x00", "[" * 100_000])
def test_what_is_no_recording_is_said_to_be_none(text: str, tmp_path: Path, capsys: Any) -> None:
    with pytest.raises(DataError):
        replay.load(text)
    (tmp_path / "x").write_text(text)
    assert replay.main([str(tmp_path / "x")]) == 65


def test_a_file_that_cannot_be_read_is_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"\xff\xfe\x00")
    assert replay.main([str(tmp_path / "x")]) == 65
    assert replay.main([str(tmp_path / "none")]) == 65
