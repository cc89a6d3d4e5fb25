"""Interrupted anywhere and resumed equals uninterrupted, bit for bit."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch

from gossipseg.algos.params import FedAvgParams, GossipAverageParams, LocalParams
from gossipseg.learn import protocol
from gossipseg.learn.engine.model_state import decay_of
from gossipseg.learn.worker.link import StopRequested
from tests.learn.harness import make_spec, make_trainer, same, worker

ROUNDS = 2


def through_a_file(state: dict[str, Any]) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def final(trainer: Any) -> dict[str, Any]:
    state = trainer.state()
    del state["rng"]  # every step seeds anew: what is left over from the last one means nothing
    return state  # type: ignore[no-any-return]


class CountedGate:
    """Lets `passes` calls through, then asks to stop."""

    def __init__(self, passes: int) -> None:
        self.left = passes

    def __call__(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise StopRequested


@pytest.mark.slow
def test_a_local_run_stopped_at_every_point_in_turn(data: Path, tmp_path: Path) -> None:
    training = {"schedule": "cosine", "schedule_rounds": 3, "steps_per_round": 3}
    spec = make_spec(data, tmp_path, algorithm=LocalParams(), rounds=ROUNDS, training=training)
    whole = make_trainer(spec)
    terms = [whole.run_round(protocol.StartRound(r)) for r in range(1, ROUNDS + 1)]
    points = 0
    for point in range(100):
        gate = CountedGate(point)
        trainer = make_trainer(spec, gate, context=whole.site)
        done: list[protocol.RoundDone] = []
        try:
            for r in range(1, ROUNDS + 1):
                done.append(trainer.run_round(protocol.StartRound(r)))  # noqa: PERF401
        except StopRequested:
            assert trainer.resumable
            resumed = make_trainer(spec, context=whole.site)
            resumed.load(through_a_file(trainer.state()))
            for r in range(resumed.history.round + 1, ROUNDS + 1):
                done.append(resumed.run_round(protocol.StartRound(r)))  # noqa: PERF401
            trainer = resumed
            points += 1
        assert same(final(trainer), final(whole)), f"stopped at gate {point}"
        assert [(d.loss, d.terms, d.dice_val) for d in done] == [(d.loss, d.terms, d.dice_val) for d in terms]
        if gate.left >= 0:
            break
    assert points == ROUNDS * (3 + 1 + 2)  # steps, their end, validation cases


@pytest.mark.slow
def test_a_visit_that_was_interrupted_starts_again_from_its_beginning(data: Path, tmp_path: Path) -> None:
    south = make_trainer(make_spec(data, tmp_path / "s", site="south"))
    export = south.run_round(protocol.StartRound(1, export=True)).export
    visit = protocol.Visit(export.path, "v", "south", 4, 2)
    spec = make_spec(data, tmp_path / "n")
    orders = [protocol.StartRound(1), protocol.StartRound(2, visit), protocol.StartRound(3)]
    whole = make_trainer(spec)
    for order in orders:
        whole.run_round(order)

    broken = make_trainer(spec)
    broken.run_round(orders[0])
    saved = through_a_file(broken.state())
    broken.run.gate = CountedGate(4)
    with pytest.raises(StopRequested):
        broken.run_round(orders[1])
    assert not broken.resumable
    resumed = make_trainer(spec)
    resumed.load(saved)
    resumed.run_round(orders[1])
    again = make_trainer(spec)  # and once more between the visit and its judgement
    again.load(through_a_file(resumed.state()))
    assert again.guard.pending and same(again.guard.state(), resumed.guard.state())
    again.run_round(orders[2])
    assert same(final(again), final(whole))


@pytest.mark.slow
@pytest.mark.parametrize("harmful", (True, False))
def test_stopped_while_an_earlier_visit_is_judged(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, harmful: bool
) -> None:
    """The verdict is neither lost nor passed twice, and an undone visit is told of."""
    monkeypatch.setattr("gossipseg.learn.exchange.guard.harmful", lambda *scores: harmful)
    monkeypatch.setattr("gossipseg.learn.exchange.guard.LEAST_PATIENTS", 1)
    monkeypatch.setattr("gossipseg.learn.exchange.guard.WINDOW", 2)
    settings: dict[str, Any] = {"training": {"steps_per_round": 1}}
    south = make_trainer(make_spec(data, tmp_path / "s", site="south", **settings))
    export = south.run_round(protocol.StartRound(1, export=True)).export
    spec = make_spec(data, tmp_path / "n", **settings)
    whole = make_trainer(spec, context=south.site)
    whole.run_round(protocol.StartRound(1))
    whole.run_round(protocol.StartRound(2, protocol.Visit(export.path, "v", "south", 1, 2)))
    saved = through_a_file(whole.state())
    expected = whole.run_round(protocol.StartRound(3))
    assert (expected.reverted, expected.reverted_frm) == (("v", "south") if harmful else (None, None))
    points = 1 + 1 + 2 + 2  # step, its end, cases of the judgement, cases of the EMA
    for point in range(points):
        broken = make_trainer(spec, context=south.site)
        broken.load(saved)
        broken.run.gate = CountedGate(point)
        with pytest.raises(StopRequested):
            broken.run_round(protocol.StartRound(3))
        assert broken.resumable
        resumed = make_trainer(spec, context=south.site)
        resumed.load(through_a_file(broken.state()))
        done = resumed.run_round(protocol.StartRound(3))
        assert (done.reverted, done.reverted_frm) == (expected.reverted, expected.reverted_frm), point
        assert same(final(resumed), final(whole)), point
    assert resumed.run_round(protocol.StartRound(4)).reverted is None


def test_a_resumed_optimizer_obeys_the_present_settings(data: Path, tmp_path: Path) -> None:
    before = make_trainer(make_spec(data, tmp_path, training={"weight_decay": 0.0}))
    before.run_round(protocol.StartRound(1))
    after = make_trainer(make_spec(data, tmp_path, training={"weight_decay": 0.25}))
    after.load(through_a_file(before.state()))
    assert [g["weight_decay"] for g in after.model_state.learner.optimizer.param_groups] == [0.25]


def newest(state_dir: Path) -> dict[str, Any]:
    files = sorted((state_dir / "checkpoint").glob("round-*.pt"), key=lambda p: int(p.stem[6:]))
    loaded: dict[str, Any] = torch.load(files[-1], weights_only=True)
    del loaded["rng"]
    return loaded


@pytest.mark.slow
def test_kill_9_at_any_point_changes_nothing(data: Path, tmp_path: Path) -> None:
    """A worker killed at its start, within steps, and before and after the end of a round."""
    settings: dict[str, Any] = {"algorithm": LocalParams(), "rounds": 3, "training": {"steps_per_round": 6}}
    with worker(make_spec(data, tmp_path / "whole", report_test=True, **settings)) as w:
        w.wait(protocol.Ready)
        for r in (1, 2, 3):
            w.round(r)
        assert w.stop() == 0

    spec = make_spec(data, tmp_path / "killed", report_test=True, **settings)
    with worker(spec) as w:
        w.wait(protocol.Preparing)
        w.kill()
    with worker(spec) as w:
        assert w.wait(protocol.Ready).round == 0
        w.send(protocol.StartRound(1))
        w.wait(protocol.Progress)
        w.kill()
    with worker(spec) as w:
        assert w.wait(protocol.Ready).round == 0
        w.round(1)
        w.send(protocol.StartRound(2))
        w.kill()
    with worker(spec) as w:
        assert w.wait(protocol.Ready).round == 1
        w.round(2)
        w.kill()
    with worker(spec) as w:
        assert w.wait(protocol.Ready).round == 2
        w.round(3)
        w.kill()
    assert same(newest(tmp_path / "killed"), newest(tmp_path / "whole"))


@pytest.mark.slow
def test_stop_within_a_round_goes_on_at_its_step(data: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"algorithm": LocalParams(), "training": {"steps_per_round": 60}}
    with worker(make_spec(data, tmp_path / "whole", **settings)) as w:
        w.wait(protocol.Ready)
        whole = w.round(1)
    spec = make_spec(data, tmp_path / "stopped", **settings)
    with worker(spec) as w:
        w.wait(protocol.Ready)
        w.send(protocol.StartRound(1))
        w.wait(protocol.Progress)
        assert w.stop() == 0
    history = newest(tmp_path / "stopped")["history"]
    assert history["round"] == 0 and 0 < history["step"] < 60
    with worker(spec) as w:
        assert w.wait(protocol.Ready).steps == history["step"]
        done = w.round(1)
    assert (done.loss, done.terms, done.dice_val, done.steps) == (
        whole.loss, whole.terms, whole.dice_val, whole.steps,
    )  # fmt: skip
    assert same(newest(tmp_path / "stopped"), newest(tmp_path / "whole"))


@pytest.mark.parametrize("by", ("common", "visit"))
def test_a_round_that_starts_over_enters_the_ema_once(data: Path, tmp_path: Path, by: str) -> None:
    """Stopped in its validation, when the EMA has taken it in already; then another model comes."""
    algorithm = FedAvgParams() if by == "common" else GossipAverageParams()
    south = make_trainer(make_spec(data, tmp_path / "s", site="south", algorithm=algorithm))
    path = south.run_round(protocol.StartRound(1, export=True)).export.path
    spec = make_spec(data, tmp_path / "n", algorithm=algorithm)
    trainer = make_trainer(spec, CountedGate(4 + 1 + 2 + 4 + 1))  # round 1, then the steps of round 2
    trainer.run_round(protocol.StartRound(1))
    before = [p.clone() for p in trainer.model_state.ema.parameters()]
    with pytest.raises(StopRequested):
        trainer.run_round(protocol.StartRound(2))
    assert trainer.resumable and trainer.history.averaged
    resumed = make_trainer(spec)
    resumed.load(through_a_file(trainer.state()))
    common, visit = protocol.GlobalModelFile(path, "c" * 64, 1), protocol.Visit(path, "v", "south", 4, 2)
    order = protocol.StartRound(2, start_from=common) if by == "common" else protocol.StartRound(2, visit)
    resumed.run_round(order)
    model_state = resumed.model_state
    share = 1 - decay_of(0.9, 2)
    for old, w, e in zip(before, model_state.model.parameters(), model_state.ema.parameters(), strict=True):
        assert torch.allclose(e, torch.lerp(old, w, share), atol=1e-6)
    assert model_state.averaged_rounds == 2
