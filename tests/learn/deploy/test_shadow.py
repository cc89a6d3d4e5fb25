"""The shadow is what the site would have had alone; what is deployed follows the paired rule everywhere."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec.structs import replace

from gossipseg.algos.params import (
    DittoParams,
    FedCoWProParams,
    GcmlParams,
    GossipAverageParams,
    LocalParams,
)
from gossipseg.errors import ConfigError
from gossipseg.learn import protocol
from gossipseg.learn.commands.export import export
from gossipseg.learn.deploy.deployment import load_deployment
from gossipseg.learn.deploy.ensemble import Ensemble
from gossipseg.learn.deploy.shadow import LEAST_CASES, Verdict, verdict_of
from gossipseg.learn.evaluation.evaluate import predict_logits
from gossipseg.learn.params import DpParams, PrivacyParams, TrainingParams, deployed_problem
from gossipseg.nets.output import NetOutput
from tests.learn.harness import make_spec, make_trainer, same, stored


@pytest.fixture(scope="module")
def alone(data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What `local` has after each of three rounds: weights, optimizer, scaler, EMA."""
    trainer = make_trainer(make_spec(data, tmp_path_factory.mktemp("alone"), algorithm=LocalParams()))
    found = []
    for number in (1, 2, 3):
        trainer.run_round(protocol.StartRound(number))
        found.append(trainer.model_state.snapshot())
    return found


def shadowed(data: Path, state_dir: Path, algorithm: Any = None, **more: Any) -> Any:
    training = {"shadow_local": True, **more.pop("training", {})}
    return make_trainer(make_spec(data, state_dir, algorithm=algorithm, training=training, **more))


class Interrupted(Exception):
    pass


class CountedGate:
    """Lets so many calls pass."""

    def __init__(self, calls: int) -> None:
        self.left = calls

    def __call__(self) -> None:
        if self.left == 0:
            raise Interrupted
        self.left -= 1


# ---------------------------------------------------------------- what it learns


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", [GcmlParams(), GossipAverageParams()])
def test_it_is_what_the_site_would_have_had_alone_and_the_other_does_not_notice(
    data: Path, tmp_path: Path, guest: protocol.Visit, alone: list[dict[str, Any]], algorithm: Any
) -> None:
    trainer = shadowed(data, tmp_path / "with", algorithm)
    without = make_trainer(make_spec(data, tmp_path / "without", algorithm=algorithm))
    for number, visit in enumerate([None, guest, guest], start=1):
        for each in (trainer, without):
            done = each.run_round(protocol.StartRound(number, visit))
            assert visit is None or done.visit.outcome == "merged"
        assert same(trainer.shadow.model_state.snapshot(), alone[number - 1]), number
        assert same(trainer.model_state.snapshot(), without.model_state.snapshot()), number
    assert not same(trainer.model_state.snapshot(), alone[-1])


def test_neither_a_late_start_nor_a_reverted_visit_reaches_it(
    monkeypatch: pytest.MonkeyPatch,
    data: Path,
    tmp_path: Path,
    guest: protocol.Visit,
    alone: list[dict[str, Any]],
) -> None:
    monkeypatch.setattr("gossipseg.learn.exchange.guard.harmful", lambda *_: True)
    monkeypatch.setattr("gossipseg.learn.exchange.guard.LEAST_PATIENTS", 1)
    monkeypatch.setattr("gossipseg.learn.exchange.guard.WINDOW", 1)
    trainer = shadowed(data, tmp_path)
    assert trainer.run_round(protocol.StartRound(1, guest)).visit.reason == "taken_over"
    trainer.run_round(protocol.StartRound(2, guest))
    assert trainer.run_round(protocol.StartRound(3)).reverted == guest.hash
    assert same(trainer.shadow.model_state.snapshot(), alone[-1])


def test_it_keeps_the_rate_of_a_site_alone_whatever_round_is_taken_over(
    data: Path, tmp_path: Path, guest: protocol.Visit
) -> None:
    budget = {"rounds": 9, "steps_per_round": 2}
    local = make_trainer(make_spec(data, tmp_path / "local", algorithm=LocalParams(), training=budget))
    trainer = shadowed(data, tmp_path / "shadowed", training=budget)
    late = replace(guest, round=7)
    assert trainer.run_round(protocol.StartRound(1, late)).ahead == 7
    local.run_round(protocol.StartRound(1))
    trainer.run_round(protocol.StartRound(2))
    local.run_round(protocol.StartRound(2))
    assert same(trainer.shadow.model_state.snapshot(), local.model_state.snapshot())


def test_an_algorithm_with_a_personal_model_has_one_too(
    data: Path, tmp_path: Path, alone: list[dict[str, Any]]
) -> None:
    trainer = shadowed(data, tmp_path, DittoParams())
    done = trainer.run_round(protocol.StartRound(1))
    assert same(trainer.shadow.model_state.snapshot(), alone[0]) and done.deployed == "averaged"


@pytest.mark.parametrize("calls", [2, 5])
@pytest.mark.parametrize("visited", [False, True])
def test_an_interrupted_round_goes_on_and_takes_no_step_twice(
    data: Path, tmp_path: Path, guest: protocol.Visit, alone: list[dict[str, Any]], calls: int, visited: bool
) -> None:
    """Between steps, and in validation; and when a visitor then lets the round start over."""
    trainer = shadowed(data, tmp_path)
    trainer.run_round(protocol.StartRound(1))
    trainer.run.gate = CountedGate(calls)
    with pytest.raises(Interrupted):
        trainer.run_round(protocol.StartRound(2))
    again = shadowed(data, tmp_path)
    again.load(trainer.state())
    assert same(again.state(), trainer.state())
    again.run_round(protocol.StartRound(2, guest if visited else None))
    assert same(again.shadow.model_state.snapshot(), alone[1])


# ---------------------------------------------------------------- the rule


@pytest.mark.parametrize(
    ("gains", "deployed"),
    [
        ([0.1] * LEAST_CASES, "shadow"),
        ([0.1] * (LEAST_CASES - 1), "averaged"),
        ([-0.1] * 20, "averaged"),
        ([0.0] * 20, "averaged"),
        ([0.3, -0.28] * 10, "averaged"),
        ([0.3, -0.02] * 10, "shadow"),
        ([], "averaged"),
    ],
)
def test_it_is_deployed_where_it_is_better_beyond_chance(gains: list[float], deployed: str) -> None:
    exchanging: list[float | None] = [0.5] * len(gains)
    patients = [f"p{i}" for i in range(len(gains) + 2)]
    verdict = verdict_of([*(0.5 + g for g in gains), None, 0.9], [*exchanging, 0.1, None], patients)
    assert verdict.deployed == deployed and verdict.cases == len(gains)
    if gains:
        assert (verdict.dice, verdict.dice_shadow) == pytest.approx((0.5, 0.5 + sum(gains) / len(gains)))
        assert "0.5000 with it" in verdict.reason and str(len(gains)) in verdict.reason


def test_the_figures_of_a_verdict() -> None:
    verdict = verdict_of([0.8, 0.6] * 10, [0.5] * 20, [f"p{i}" for i in range(20)])
    spread = math.sqrt(20 * 0.1**2 / 19)
    assert verdict.standard_error == pytest.approx(spread / math.sqrt(20))
    assert verdict.reason == (
        "0.7000 without exchange, 0.5000 with it; better by more than 2 standard errors "
        "(standard error 0.0229 of the difference over 20 cases of 20 patients)"
    )


def test_its_error_is_counted_by_patient() -> None:
    """Three patients of five slices each, with gains of 0.3, 0.1 and −0.1: mean 0.1, deviation 0.2, error
    0.115. The 15 slices by themselves have 0.044, and the shadow would be deployed."""
    gains = [0.3] * 5 + [0.1] * 5 + [-0.1] * 5
    whose = ["a"] * 5 + ["b"] * 5 + ["c"] * 5
    verdict = verdict_of([0.5 + g for g in gains], [0.5] * 15, whose)
    assert verdict.standard_error == pytest.approx(0.2 / math.sqrt(3)) and verdict.patients == 3
    assert verdict.deployed == "averaged" and "15 cases of 3 patients" in verdict.reason
    apart = verdict_of([0.5 + g for g in gains], [0.5] * 15, [str(i) for i in range(15)])
    assert apart.deployed == "shadow", "as if each slice were a patient"


def test_many_cases_of_two_patients_decide_nothing() -> None:
    verdict = verdict_of([0.9] * 20, [0.5] * 20, ["a"] * 10 + ["b"] * 10)
    assert verdict.deployed == "averaged" and verdict.patients == 2
    assert verdict.reason.endswith("too few validation patients to choose by (2; it takes 3)")


def test_the_verdict_of_an_earlier_version_can_be_read() -> None:
    old = {"deployed": "shadow", "dice": 0.5, "dice_shadow": 0.7, "cases": 20, "standard_error": 0.0229}
    assert Verdict(**old).reason.endswith("(standard error 0.0229 of the difference over 20 cases)")


@pytest.mark.parametrize("output", ["softmax", "sigmoid"])
def test_networks_are_averaged_in_probability(output: str) -> None:
    class Fixed(torch.nn.Module):
        def __init__(self, logits: torch.Tensor) -> None:
            super().__init__()
            self.logits = logits

        def forward(self, x: torch.Tensor) -> NetOutput:
            return NetOutput(self.logits)

    made = torch.Generator().manual_seed(3)
    first, second = (torch.randn(2, 3, 4, 4, generator=made) * 40 for _ in range(2))
    probability = torch.sigmoid if output == "sigmoid" else lambda z: z.softmax(1)
    third = first.flip(0)
    for others in ([second], [second, third]):
        together = Ensemble(Fixed(first), [Fixed(z) for z in others], output)
        logits = together(first).logits
        expected = probability(first) / 2 + sum(probability(z) for z in others) / (2 * len(others))
        assert torch.allclose(probability(logits), expected, atol=1e-6) and torch.isfinite(logits).all()
        assert not together.training


# ---------------------------------------------------------------- what is deployed


@pytest.mark.parametrize("output", ["softmax", "sigmoid"])
def test_scores_and_predictions_are_those_of_both_together(data: Path, tmp_path: Path, output: str) -> None:
    """Two validation cases decide nothing: the mean is deployed."""
    trainer = shadowed(data, tmp_path, training={"output": output}, rounds=1, report_test=True)
    trainer.model_state.model.load_state_dict({n: t * 0.5 for n, t in trainer.model_state.weights().items()})
    done = trainer.run_round(protocol.StartRound(1))
    assert done.deployed == "averaged" and "decide nothing" in done.deployed_reason
    ema, shadow = trainer.model_state.ema, trainer.shadow.model_state.ema
    pair = Ensemble(ema, [shadow], output)
    for split, reported in (("validation", done.dice_val), ("test", done.dice_test)):
        assert reported == trainer.site.score(pair, split, lambda fraction: None).mean
    verdict = trainer.shadow.verdict
    assert verdict.dice == trainer.site.score(ema, "validation", lambda fraction: None).mean
    assert verdict.dice_shadow == trainer.site.score(shadow, "validation", lambda fraction: None).mean
    assert not ema.training and not shadow.training

    stored(trainer)
    deployment = load_deployment(trainer.settings.spec)
    assert deployment.weights == "averaged" and not deployment.net.training
    image = torch.randn(1, 40, 40, generator=torch.Generator().manual_seed(1))
    predicted, wanted = (
        predict_logits(net, image, deployment.settings.task, deployment.settings.training, "cpu")
        for net in (deployment.net, pair)
    )
    assert torch.equal(predicted, wanted)


def test_where_it_is_better_it_alone_is_deployed(
    monkeypatch: pytest.MonkeyPatch, data: Path, tmp_path: Path
) -> None:
    trainer = shadowed(data, tmp_path)
    monkeypatch.setattr(
        "gossipseg.learn.deploy.shadow.verdict_of", lambda *_: Verdict("shadow", 0.1, 0.9, 15)
    )
    done = trainer.run_round(protocol.StartRound(1))
    assert done.deployed == "shadow" and "better by more than 2" in done.deployed_reason
    assert trainer.deployed is trainer.shadow.model_state.ema
    assert done.dice_val == trainer.site.score(trainer.deployed, "validation", lambda fraction: None).mean
    stored(trainer)
    deployment = load_deployment(trainer.settings.spec)
    assert deployment.weights == "shadow"
    assert same(dict(deployment.net.state_dict()), dict(trainer.shadow.model_state.ema.state_dict()))


def test_a_bundle_of_both_predicts_what_the_site_predicts(data: Path, tmp_path: Path) -> None:
    from gossipseg.learn.bundle import inference_config, network_def

    trainer = shadowed(data, tmp_path)
    trainer.run_round(protocol.StartRound(1))
    stored(trainer)
    deployment = load_deployment(trainer.settings.spec)
    plain, *_ = export(deployment, tmp_path / "out")
    described = dict(inference_config(deployment.settings, beside=1)["network_def"])
    del described["_target_"]
    net = network_def(**described).eval()
    net.load_state_dict(torch.load(plain, weights_only=True))
    image = torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        assert torch.equal(net(image), deployment.net(image).logits)


def test_turned_off_the_exchanging_model_is_deployed_and_goes_on(data: Path, tmp_path: Path) -> None:
    trainer = shadowed(data, tmp_path)
    trainer.run_round(protocol.StartRound(1))
    stored(trainer)
    spec = trainer.settings.spec
    off = dataclasses.replace(spec, training={**spec.training, "shadow_local": False})
    assert load_deployment(off).weights == "ema"
    again = make_trainer(off)
    again.load(trainer.state())
    done = again.run_round(protocol.StartRound(2))
    assert (done.deployed, done.deployed_reason) == ("", "") and "shadow" not in again.state()
    with pytest.raises(ConfigError, match="what the site would have had alone") as found:
        trainer.load(again.state())
    assert found.value.key == "training.shadow_local" and "Remove it" in found.value.remedy


# ---------------------------------------------------------------- where it cannot be had


@pytest.mark.parametrize(
    ("algorithm", "more", "remedy"),
    [
        (LocalParams(), {}, "an algorithm that exchanges"),
        (GossipAverageParams(), {"privacy": dataclasses.asdict(PrivacyParams(dp=DpParams()))}, "privacy.dp"),
    ],
)
def test_where_it_cannot_be_had_it_is_refused(
    data: Path, tmp_path: Path, algorithm: Any, more: dict[str, Any], remedy: str
) -> None:
    with pytest.raises(ConfigError) as found:
        shadowed(data, tmp_path, algorithm, **more)
    assert found.value.key == "training.shadow_local" and remedy in found.value.remedy


def test_one_shot_learning_has_none() -> None:
    training, algorithm = TrainingParams(shadow_local=True), FedCoWProParams()
    found = deployed_problem(training, algorithm, private=False)
    assert found is not None and "without labels" in found[0]
    assert deployed_problem(TrainingParams(), algorithm, private=True) is None
