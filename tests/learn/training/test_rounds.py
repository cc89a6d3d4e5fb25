"""A site's side of a coordinated round: taking a global model in, sending an update, personal parts."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from gossipseg.algos.params import DittoParams, FedAvgParams, FedBnParams, FedProxParams, GossipAverageParams
from gossipseg.learn import protocol
from gossipseg.learn.engine.checkpoint import contract_of, load_checkpoint, save_checkpoint
from gossipseg.learn.engine.model_state import cpu_copy
from gossipseg.learn.evaluation.evaluate import Scores
from gossipseg.learn.exchange.wire_format import load_common
from gossipseg.learn.params import WorkerSpec
from gossipseg.store import Checkpoints, hash_file
from tests.learn.harness import make_spec, make_trainer, same, worker


def spec_of(data: Path, state: Path, algorithm: Any = None, **more: Any) -> WorkerSpec:
    return make_spec(data, state, algorithm=algorithm or FedAvgParams(), **more)


def common_of(trainer: Any, order: protocol.StartRound, folder: Path) -> protocol.GlobalModelFile:
    """Run a round, and make a global model of this site's update alone."""
    done = trainer.run_round(order)
    assert done.export is not None, done.warning
    hash, _ = hash_file(Path(done.export.path))
    update = protocol.UpdateFile("north", done.export.path, done.export.cases, done.export.steps, hash)
    made = trainer.aggregate(protocol.Aggregate(order.round, 0, [update]))
    assert made.export is not None, made
    kept = folder / f"common{order.round}.safetensors"
    Path(made.export.path).rename(kept)
    return protocol.GlobalModelFile(str(kept), f"{order.round}" * 64, order.round)


def test_a_round_starts_from_the_common_model(data: Path, tmp_path: Path) -> None:
    one = make_trainer(spec_of(data, tmp_path / "a"))
    common = common_of(one, protocol.StartRound(1, export=True), tmp_path)
    other = make_trainer(spec_of(data, tmp_path / "b", site="south"))
    other.run_round(protocol.StartRound(1))
    seen: list[dict[str, torch.Tensor]] = []
    other.run.gate = lambda: seen.append({n: t.clone() for n, t in other.model_state.weights().items()})
    done = other.run_round(protocol.StartRound(2, start_from=common, export=True))
    assert done.export is not None and not done.warning
    taken = load_file(common.path)
    assert all(torch.equal(seen[0][n], t.to(seen[0][n].dtype)) for n, t in taken.items())
    assert other.history.last_global == common.hash


def test_a_bad_common_model_is_told_of_and_training_goes_on(data: Path, tmp_path: Path) -> None:
    trainer = make_trainer(spec_of(data, tmp_path / "a"))
    torn = tmp_path / "torn.safetensors"
    torn.write_bytes(b"no model")
    done = trainer.run_round(
        protocol.StartRound(1, start_from=protocol.GlobalModelFile(str(torn), "f" * 64, 7))
    )
    assert "the global model of round 7 was not taken: unreadable" in done.warning
    assert done.steps == 4


def test_normalisation_layers_of_fedbn_never_travel(data: Path, tmp_path: Path) -> None:
    trainer = make_trainer(spec_of(data, tmp_path / "a", FedBnParams()))
    done = trainer.run_round(protocol.StartRound(1, export=True))
    sent = load_file(done.export.path)
    assert sent and not [n for n in sent if "norm" in n]
    assert sorted(sent) == sorted(trainer.update_schema)


def test_proximal_training_stays_nearer_to_the_common_model(data: Path, tmp_path: Path) -> None:
    """From the same global model and the same batches: the larger μ, the shorter the way."""

    def distance(mu: float) -> float:
        trainer = make_trainer(spec_of(data, tmp_path / f"mu{mu}", FedProxParams(mu=mu)))
        common = common_of(trainer, protocol.StartRound(1, export=True), tmp_path / f"mu{mu}")
        trainer.run_round(protocol.StartRound(2, start_from=common))
        anchor = trainer.global_model.anchor
        weights = trainer.model_state.weights()
        return float(sum(((weights[n] - t) ** 2).sum() for n, t in anchor.items()))

    assert distance(0.0) > distance(100.0) > 0


def test_the_personal_model_of_ditto_survives_a_restart(data: Path, tmp_path: Path) -> None:
    spec = spec_of(
        data, tmp_path / "a", DittoParams(lambda_=0.0), training={"ema_decay": 0.0}, network={"dropout": 0.0}
    )
    trainer = make_trainer(spec)
    common = common_of(trainer, protocol.StartRound(1, export=True), tmp_path)
    trainer.run_round(protocol.StartRound(2, start_from=common, export=True))
    assert trainer.personal is not None
    personal = trainer.personal.learner
    # λ = 0: the personal model is what a site alone would have got from the same batches
    alone = make_trainer(
        make_spec(data, tmp_path / "b", training={"ema_decay": 0.0}, network={"dropout": 0.0})
    )
    for r in (1, 2):
        alone.run_round(protocol.StartRound(r))
    assert same(dict(personal.model.state_dict()), dict(alone.model_state.model.state_dict()))

    store, contract = Checkpoints(tmp_path / "c"), contract_of(trainer.settings, trainer.network_signature)
    save_checkpoint(store, trainer.state(), contract)
    again = make_trainer(spec)
    state, _ = load_checkpoint(store, contract)
    assert state is not None
    again.load(state)
    assert same(again.state(), trainer.state())
    assert again.history.last_global == common.hash


def test_an_interrupted_round_goes_on_from_where_it_was_and_not_from_its_beginning(
    data: Path, tmp_path: Path
) -> None:
    """Killed after two steps of a round that began with a global model: the same end, bit by bit."""
    spec = spec_of(data, tmp_path / "a", FedProxParams(mu=1.0))
    straight = make_trainer(spec)
    common = common_of(straight, protocol.StartRound(1, export=True), tmp_path)
    store, contract = Checkpoints(tmp_path / "c"), contract_of(straight.settings, straight.network_signature)
    save_checkpoint(store, straight.state(), contract)
    state, _ = load_checkpoint(store, contract)
    assert state is not None
    order = protocol.StartRound(2, start_from=common)
    straight.run_round(order)

    class Stopped(Exception):
        pass

    calls = []

    def gate() -> None:
        calls.append(1)
        if len(calls) == 3:
            raise Stopped

    first = make_trainer(spec, gate)
    first.load(state)
    with pytest.raises(Stopped):
        first.run_round(order)
    assert first.resumable and first.history.step == 2
    middle = first.state()
    second = make_trainer(spec)
    second.load(middle)
    second.run_round(order)
    assert same(second.state(), straight.state())


@pytest.mark.parametrize("restarted", [False, True])
def test_with_int8_a_site_goes_on_from_the_global_model_and_what_was_rounded_off_its_update(
    data: Path, tmp_path: Path, restarted: bool
) -> None:
    """It made the global model alone: begun with it, and with the rest, its weights are as they were sent."""
    spec = dataclasses.replace(spec_of(data, tmp_path / "a"), wire_dtype="int8")
    trainer = make_trainer(spec)
    common = common_of(trainer, protocol.StartRound(1, export=True), tmp_path)
    sent = cpu_copy(trainer.model_state.weights())
    if restarted:
        store = Checkpoints(tmp_path / "c")
        contract = contract_of(trainer.settings, trainer.network_signature)
        save_checkpoint(store, trainer.state(), contract)
        trainer = make_trainer(spec)
        state, _ = load_checkpoint(store, contract)
        assert state is not None
        trainer.load(state)
    seen: list[dict[str, torch.Tensor]] = []
    trainer.run.gate = lambda: seen.append(cpu_copy(trainer.model_state.weights()))
    trainer.run_round(protocol.StartRound(2, start_from=common))
    taken = load_common(Path(common.path), "north", sent, trainer.algorithm.is_shared, "int8")
    assert taken is not None and any(not torch.allclose(taken[n], t, atol=1e-6) for n, t in sent.items())
    assert all(torch.allclose(seen[0][n], t, atol=1e-6) for n, t in sent.items())


def test_with_int8_fine_tuning_begins_with_the_global_model_itself(data: Path, tmp_path: Path) -> None:
    trainer = make_trainer(dataclasses.replace(spec_of(data, tmp_path / "a"), wire_dtype="int8"))
    common = common_of(trainer, protocol.StartRound(1, export=True), tmp_path)
    seen: list[dict[str, torch.Tensor]] = []
    trainer.run.gate = lambda: seen.append(cpu_copy(trainer.model_state.weights()))
    trainer.run_round(protocol.StartRound(2, start_from=common, finetuning=True))
    taken = load_common(Path(common.path), "north", seen[0], trainer.algorithm.is_shared, "int8")
    assert taken is not None and all(torch.equal(seen[0][n], t) for n, t in taken.items())


def test_in_gossip_nothing_is_kept_of_the_rounding(data: Path, tmp_path: Path) -> None:
    spec = make_spec(data, tmp_path, algorithm=GossipAverageParams())
    trainer = make_trainer(dataclasses.replace(spec, wire_dtype="int8"))
    done = trainer.run_round(protocol.StartRound(1, export=True))
    assert any(name.endswith("..scales") for name in load_file(done.export.path))
    assert not trainer.global_model.rest.tensors and not trainer.state()["rest"]["tensors"]


def test_a_checkpoint_without_a_rest_is_read(data: Path, tmp_path: Path) -> None:
    """Written before int8, or under another wire dtype."""
    spec = dataclasses.replace(spec_of(data, tmp_path / "a"), wire_dtype="int8")
    trainer = make_trainer(spec)
    trainer.run_round(protocol.StartRound(1, export=True))
    state = trainer.state()
    assert state["rest"]["tensors"]
    other = make_trainer(spec_of(data, tmp_path / "b"))
    other.load(state)
    assert not other.global_model.rest.tensors
    del state["rest"]
    again = make_trainer(spec)
    again.load(state)
    assert not again.global_model.rest.tensors and again.history.round == 1


def test_a_late_joiner_takes_the_common_model_over_with_its_average(data: Path, tmp_path: Path) -> None:
    one = make_trainer(spec_of(data, tmp_path / "a"))
    common = common_of(one, protocol.StartRound(1, export=True), tmp_path)
    late = make_trainer(spec_of(data, tmp_path / "b", training={"learning_rate": 0.0}))
    late.run_round(protocol.StartRound(1))
    late.run_round(protocol.StartRound(2, start_from=common, settling_in=True))
    taken = load_file(common.path)
    ema = late.model_state.ema.state_dict()
    assert all(torch.equal(ema[n], t.to(ema[n].dtype)) for n, t in taken.items())
    assert late.model_state.averaged_rounds == 1  # it began anew


def test_a_late_joiner_trains_its_personal_model_with_fresh_moments(data: Path, tmp_path: Path) -> None:
    one = make_trainer(spec_of(data, tmp_path / "a", DittoParams()))
    common = common_of(one, protocol.StartRound(1, export=True), tmp_path)
    late = make_trainer(spec_of(data, tmp_path / "b", DittoParams()))
    late.run_round(protocol.StartRound(1))
    late.run_round(protocol.StartRound(2, start_from=common, settling_in=True))
    counts = {float(s["step"]) for s in late.personal.learner.optimizer.state.values()}
    assert counts == {4.0}  # one round's steps: those before belonged to other weights


def test_a_settling_round_goes_on_settling_after_an_interruption(data: Path, tmp_path: Path) -> None:
    """The daemon orders the rest of it as any other round: the global model is taken in already."""
    spec = spec_of(data, tmp_path / "a")
    one = make_trainer(spec)
    common = common_of(one, protocol.StartRound(1, export=True), tmp_path)

    class Stopped(Exception):
        pass

    calls = []

    def gate() -> None:
        calls.append(1)
        if len(calls) == 3:
            raise Stopped

    late = make_trainer(spec_of(data, tmp_path / "b"), gate)
    with pytest.raises(Stopped):
        late.run_round(protocol.StartRound(1, start_from=common, settling_in=True))
    again = make_trainer(spec_of(data, tmp_path / "b"))
    again.load(late.state())
    asked: list[bool] = []
    again.algorithm.is_frozen = lambda name, moment: asked.append(moment.settling_in) or False
    again.run_round(protocol.StartRound(1))
    again.run_round(protocol.StartRound(2))
    half = len(asked) // 2
    assert half and all(asked[:half]) and not any(asked[half:])


def test_without_validation_the_last_finetuned_model_is_deployed(data: Path, tmp_path: Path) -> None:
    trainer = make_trainer(spec_of(data, tmp_path / "a", rounds=2, training={"ema_decay": 0.0}))
    trainer.algorithm.keeps_best_finetuned = True
    trainer.run.score = lambda model, split, round: Scores(None, {}, ())
    for number in (1, 2):
        trainer.run_round(protocol.StartRound(number, finetuning=True))
    deployed, last = trainer.model_state.ema.state_dict(), trainer.model_state.weights()
    assert same(dict(deployed), last)


def test_a_step_that_only_the_personal_model_skips_is_told_of(
    monkeypatch: pytest.MonkeyPatch, data: Path, tmp_path: Path
) -> None:
    trainer = make_trainer(spec_of(data, tmp_path / "a", algorithm=DittoParams()))
    losses = trainer.algorithm.losses

    def overflowing(outputs: Any, target: Any, context: Any) -> Any:
        found = losses(outputs, target, context)
        found.total["personal"] = found.total["personal"] * float("inf")
        return found

    monkeypatch.setattr(trainer.algorithm, "losses", overflowing)
    done = trainer.run_round(protocol.StartRound(1))
    assert done.warning.startswith("4 training steps were skipped") and done.loss is not None


def test_the_last_round_reports_the_dice_of_the_best_model_that_it_deploys(
    data: Path, tmp_path: Path
) -> None:
    trainer = make_trainer(spec_of(data, tmp_path / "a", rounds=2, training={"ema_decay": 0.0}))
    trainer.algorithm.keeps_best_finetuned = True
    trainer.run_round(protocol.StartRound(1, finetuning=True))
    best = cpu_copy(trainer.model_state.ema.state_dict())

    def score(model: Any, split: str, round: int) -> Scores:
        dice = 0.8 if same(dict(model.state_dict()), best) else 0.3
        return Scores(dice, {"disc": dice}, ())

    trainer.run.score, trainer.history.best_finetuned = score, 0.8
    done = trainer.run_round(protocol.StartRound(2, finetuning=True))
    assert same(dict(trainer.model_state.ema.state_dict()), best)
    assert (done.dice_val, done.dice_val_local) == (0.8, [0.8]) and trainer.history.dice_val == 0.8


def test_the_best_of_an_earlier_finetuning_is_forgotten_when_common_rounds_follow(
    data: Path, tmp_path: Path
) -> None:
    """The site's budget was raised: the best is that of the new last rounds."""
    trainer = make_trainer(spec_of(data, tmp_path / "a"))
    trainer.algorithm.keeps_best_finetuned = True
    trainer.run_round(protocol.StartRound(1, finetuning=True))
    assert trainer.state()["best"] is not None
    trainer.run_round(protocol.StartRound(2))
    assert trainer.state()["best"] is None and trainer.history.best_finetuned is None


@pytest.mark.slow
def test_what_a_killed_worker_left_of_an_export_is_removed(data: Path, tmp_path: Path) -> None:
    outbox = tmp_path / "state" / "outbox"
    outbox.mkdir(parents=True)
    left = outbox / ".common-3-1.safetensors.4711-0.tmp"
    left.write_bytes(b"half of a model")
    with worker(spec_of(data, tmp_path / "state")) as w:
        w.wait(protocol.Ready)
        assert not left.exists()
        assert w.stop() == 0, w.stderr


@pytest.mark.slow
def test_the_worker_process_aggregates_between_rounds(data: Path, tmp_path: Path) -> None:
    spec = spec_of(data, tmp_path / "state")
    with worker(spec) as w:
        ready = w.wait(protocol.Ready)
        assert ready.update_tensors == ready.tensors and ready.last_global is None
        done = w.round(1, export=True)
        assert done.export is not None
        w.send(protocol.Aggregate(1, 2, [protocol.UpdateFile("north", done.export.path, 2, 4)]))
        made = w.wait(protocol.AggregateDone)
        assert protocol.Preparing("combining 1 updates", 0.0) in w.messages  # it is not taken for stuck
        assert made.export is not None and (made.round, made.attempt, made.contributors) == (1, 2, ["north"])
        common = protocol.GlobalModelFile(made.export.path, "c" * 64, 1)
        w.send(protocol.StartRound(2, start_from=common))
        w.wait(protocol.RoundDone)
        assert w.stop() == 0, w.stderr
    with worker(spec) as w:
        assert w.wait(protocol.Ready).last_global == "c" * 64


def test_the_model_before_fine_tuning_may_be_the_best(data: Path, tmp_path: Path) -> None:
    trainer = make_trainer(spec_of(data, tmp_path / "a", rounds=3))
    trainer.algorithm.keeps_best_finetuned = True
    trainer.run_round(protocol.StartRound(1))
    before = cpu_copy(trainer.model_state.ema.state_dict())

    def score(model: Any, split: str, round: int) -> Scores:
        dice = 0.7 if same(dict(model.state_dict()), before) else 0.4
        return Scores(dice, {"disc": dice}, ())

    trainer.run.score = score
    assert trainer.run_round(protocol.StartRound(2, finetuning=True)).dice_val == 0.4
    done = trainer.run_round(protocol.StartRound(3, finetuning=True))
    assert done.dice_val == 0.7 and same(dict(trainer.model_state.ema.state_dict()), before)
