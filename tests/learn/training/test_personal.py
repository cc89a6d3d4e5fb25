"""The personal model beside the shared one: what it is, when it begins, and what survives of it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from msgspec.structs import replace
from PIL import Image
from safetensors import safe_open

from gossipseg.algos.params import (
    DittoParams,
    FedAvgFinetuneParams,
    FedAvgParams,
    FedOapParams,
    GcmlParams,
    GossipAverageParams,
    LocalParams,
)
from gossipseg.errors import ConfigError
from gossipseg.learn import protocol
from gossipseg.learn.deploy.prediction import LEAST_ROUNDS_OF_A_COPY
from gossipseg.learn.evaluation.mixture import Mixture
from gossipseg.learn.worker.link import StopRequested
from tests.learn.harness import make_spec, make_trainer, same, write_png_site
from tests.learn.training.test_resume import through_a_file

ALWAYS = {"personal": "always"}


def trainer_of(data: Path, folder: Path, algorithm: Any, **more: Any) -> Any:
    training = {**ALWAYS, **more.pop("training", {})}
    return make_trainer(make_spec(data, folder, algorithm=algorithm, training=training, **more))


def alone(data: Path, folder: Path, rounds: int, **more: Any) -> Any:
    trainer = make_trainer(make_spec(data, folder, algorithm=LocalParams(), **more))
    for number in range(1, rounds + 1):
        trainer.run_round(protocol.StartRound(number))
    return trainer


def check_alike(personal: Any, local: Any) -> None:
    """Bit for bit: weights, optimizer, average."""
    assert same(personal.model_state.snapshot(), local.model_state.snapshot())


# ---------------------------------------------------------------- bit for bit what `local` gives


@pytest.mark.parametrize("network", [{}, {"norm": "batch"}, {"name": "unet", "norm": "batch"}])
@pytest.mark.parametrize(
    "algorithm",
    [
        GcmlParams(lambda_ramp_rounds=0),
        GcmlParams(lambda_ramp_rounds=0, contrast="features"),
        GossipAverageParams(),
    ],
)
def test_in_gossip_it_is_what_local_gives(
    data: Path, tmp_path: Path, guest: protocol.Visit, algorithm: Any, network: dict[str, Any]
) -> None:
    more = {"network": {"dropout": 0.2, **network}}
    trainer = trainer_of(data, tmp_path / "n", algorithm, **more)
    bad = replace(guest, hash="x") if network else guest  # another schema: refused
    for number in (1, 2, 3):
        trainer.run_round(protocol.StartRound(number, bad if number == 2 else None))
    check_alike(trainer.personal, alone(data, tmp_path / "a", 3, **more))
    if not network:
        assert not same(trainer.model_state.weights(), trainer.personal.model_state.weights())


@pytest.mark.parametrize("dtype", ["int8", "float16"])
def test_under_swaps_between_steps_it_is_what_local_gives(data: Path, tmp_path: Path, dtype: str) -> None:
    """The default: swaps come while both models train, and the mutual term goes on."""
    algorithm, more = GcmlParams(lambda_=0.5, lambda_ramp_rounds=0), {"network": {"dropout": 0.2}}

    def swapping(site: str) -> Any:
        spec = make_spec(data, tmp_path / site, site=site, algorithm=algorithm, training=ALWAYS, **more)
        return make_trainer(dataclasses.replace(spec, swaps=True, wire_dtype=dtype))

    north, south = swapping("north"), swapping("south")
    applied = iter(range(1, 10**6))

    def swap() -> None:
        if north.history.step not in (1, 3):
            return
        swap = protocol.Swap("north", next(applied))
        own, theirs = (t.export_snapshot(protocol.ExportSnapshot(swap)).export for t in (north, south))
        order = protocol.ApplySwap(swap, "south", "mix", 0.5, theirs.path, "h", own.path, gave=True)
        assert north.apply_swap(order).reason == ""

    north.run.between_steps = swap
    for number in (1, 2, 3):
        south.run_round(protocol.StartRound(number))
        north.run_round(protocol.StartRound(number))
    assert next(applied) > 3
    check_alike(north.personal, alone(data, tmp_path / "a", 3, **more))
    assert not same(north.model_state.weights(), north.personal.model_state.weights())


@pytest.mark.parametrize("mutual", ["shared", "both"])
def test_what_the_contrast_goes_by_changes_the_shared_model(
    data: Path, tmp_path: Path, guest: protocol.Visit, mutual: Any
) -> None:
    trained = {}
    for contrast in ("logits", "features", "none"):
        params = GcmlParams(lambda_=1.0, lambda_ramp_rounds=0, mutual=mutual, contrast=contrast)  # type: ignore[arg-type]
        trainer = trainer_of(data, tmp_path / contrast, params)
        trainer.run_round(protocol.StartRound(1))
        done = trainer.run_round(protocol.StartRound(2, guest))
        assert done.terms["push"] is not None and not trainer.run.tally.skipped
        trained[contrast] = trainer.model_state.weights()
    assert not same(trained["logits"], trained["features"])
    assert not same(trained["none"], trained["features"])


def test_under_a_coordinator_it_is_what_local_gives_and_stands_still_in_fine_tuning(
    data: Path, tmp_path: Path
) -> None:
    """Also at a site whose rounds are not the federation's."""
    algorithm = FedAvgFinetuneParams(finetune_rounds=1)
    south = make_trainer(make_spec(data, tmp_path / "s", site="south", algorithm=algorithm))
    path = south.run_round(protocol.StartRound(1, export=True)).export.path
    settings = {"rounds": 9, "learning_rate": 0.01}
    trainer = trainer_of(data, tmp_path / "n", algorithm, training=settings)
    trainer.run_round(protocol.StartRound(1))
    common = protocol.GlobalModelFile(path, "c", 5)
    trainer.run_round(protocol.StartRound(2, start_from=common, ahead=4))
    check_alike(trainer.personal, alone(data, tmp_path / "a", 2, training=settings))
    before = trainer.personal.model_state.snapshot()
    done = trainer.run_round(protocol.StartRound(3, finetuning=True, ahead=4))
    assert same(trainer.personal.model_state.snapshot(), before)
    assert done.deployed in ("mix", "personal")


def test_no_step_is_taken_twice_where_a_round_starts_over(
    data: Path, tmp_path: Path, guest: protocol.Visit
) -> None:
    calls = iter(range(10**6))

    def gate() -> None:
        if next(calls) == 6:  # in the second round
            raise StopRequested

    spec = make_spec(data, tmp_path / "n", algorithm=GcmlParams())
    trainer = make_trainer(spec)
    trainer.run_round(protocol.StartRound(1))
    trainer.run.gate = gate
    for _ in range(4):
        next(calls)
    with pytest.raises(StopRequested):
        trainer.run_round(protocol.StartRound(2))
    assert 0 < trainer.history.step < 4 and trainer.run.resumable
    again = make_trainer(spec)
    again.load(through_a_file(trainer.state()))
    again.run_round(protocol.StartRound(2, guest))
    check_alike(again.personal, alone(data, tmp_path / "a", 2))


def test_two_models_take_two_gradients_a_step(data: Path, tmp_path: Path) -> None:
    trainer = trainer_of(data, tmp_path, GossipAverageParams())
    trainer.run_round(protocol.StartRound(1))
    assert trainer.gradients == 8
    one = make_trainer(make_spec(data, tmp_path / "one"))
    one.run_round(protocol.StartRound(1))
    assert one.gradients == 4


# ---------------------------------------------------------------- when it begins


def test_it_may_begin_later_as_a_copy_of_the_shared_one(data: Path, tmp_path: Path) -> None:
    trainer = trainer_of(data, tmp_path, GossipAverageParams(), training={"personal_from_round": 2})
    first = trainer.run_round(protocol.StartRound(1))
    assert first.deployed == "shared" and "begins with round 2" in first.deployed_reason
    assert trainer.gradients == 4 and trainer.deployed is trainer.model_state.ema
    second = trainer.run_round(protocol.StartRound(2))
    assert trainer.gradients == 12 and trainer.personal.rounds == 1
    assert "has trained 1 of 5 rounds" in second.deployed_reason
    for number in range(3, 2 + LEAST_ROUNDS_OF_A_COPY):
        last = trainer.run_round(protocol.StartRound(number))
    assert last.deployed in ("mix", "personal")


def test_who_joins_has_a_copy_of_what_it_took_over_on_its_schedule(
    data: Path, tmp_path: Path, guest: protocol.Visit
) -> None:
    settings = {"learning_rate": 0.01, "rounds": 10}
    trainer = trainer_of(data, tmp_path, GcmlParams(), training=settings)
    done = trainer.run_round(protocol.StartRound(1, replace(guest, round=7)))
    assert done.visit.reason == "taken_over" and done.ahead == 7
    assert trainer.personal.copied_from and done.deployed == "shared"
    rates = [m.learner.optimizer.param_groups[0]["lr"] for m in (trainer.personal, trainer.model_state)]
    assert rates[0] == rates[1] < 0.002


def test_a_copy_of_a_model_that_did_harm_begins_anew(
    data: Path, tmp_path: Path, guest: protocol.Visit, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_of(data, tmp_path, GcmlParams())
    monkeypatch.setattr(trainer.site, "patients", lambda split: ("a", "b"))
    trainer.run_round(protocol.StartRound(1))
    claim = replace(guest, steps=10**9)
    assert trainer.run_round(protocol.StartRound(2, claim)).visit.reason == "taken_over"
    with torch.no_grad():
        next(iter(trainer.model_state.model.parameters())).fill_(float("inf"))
    assert trainer.run_round(protocol.StartRound(3)).reverted == guest.hash
    assert trainer.personal.copied_from == "own" and trainer.personal.rounds == 0
    assert same(trainer.personal.model_state.weights(), trainer.model_state.weights())


# ---------------------------------------------------------------- what survives


def test_it_survives_a_restart(data: Path, tmp_path: Path, guest: protocol.Visit) -> None:
    spec = make_spec(data, tmp_path, algorithm=GcmlParams())
    trainer = make_trainer(spec)
    trainer.run_round(protocol.StartRound(1))
    trainer.run_round(protocol.StartRound(2, guest))
    again = make_trainer(spec)
    again.load(through_a_file(trainer.state()))
    assert same(again.state(), trainer.state()) and again.mix == trainer.mix
    one, other = (t.run_round(protocol.StartRound(3)) for t in (trainer, again))
    assert one.terms == other.terms and same(again.state(), trainer.state())


def test_the_shadow_of_an_earlier_version_is_the_personal_model(data: Path, tmp_path: Path) -> None:
    trainer = trainer_of(data, tmp_path, GossipAverageParams())
    trainer.run_round(protocol.StartRound(1))
    state = through_a_file(trainer.state())
    personal = state.pop("personal_model")
    del state["mix"]
    place = {key: personal[key] for key in ("round", "step", "averaged")}
    state["shadow"] = {"student": personal["model"], "verdict": {}, **place}
    again = trainer_of(data, tmp_path, GossipAverageParams())
    again.load(state)
    again.run_round(protocol.StartRound(2))
    check_alike(again.personal, alone(data, tmp_path / "a", 2))


def test_dittos_of_an_earlier_version_goes_on_with_its_own_average(data: Path, tmp_path: Path) -> None:
    trainer = trainer_of(data, tmp_path, DittoParams())
    for number in (1, 2):
        trainer.run_round(protocol.StartRound(number))
    state = through_a_file(trainer.state())
    own = state.pop("personal_model")["model"]
    del state["mix"]
    state["personal"] = {key: own[key] for key in ("model", "optimizer", "scaler")}
    state["ema"], state["averaged_rounds"] = own["ema"], own["averaged_rounds"]
    again = trainer_of(data, tmp_path, DittoParams())
    again.load(state)
    check_alike(again.personal, trainer.personal)
    assert again.mix.weights == {"personal": 1.0} and again.model_state.averaged_rounds == 0
    assert same(dict(again.model_state.ema.state_dict()), again.model_state.weights())


def test_a_checkpoint_without_one_begins_it_as_a_copy_and_says_so(data: Path, tmp_path: Path) -> None:
    before = make_trainer(make_spec(data, tmp_path))
    before.run_round(protocol.StartRound(1))
    trainer = trainer_of(data, tmp_path, GossipAverageParams())
    trainer.load(through_a_file(before.state()))
    assert same(trainer.personal.model_state.weights(), before.model_state.weights())
    done = trainer.run_round(protocol.StartRound(2))
    assert "begins as a copy of the shared one" in done.warning and done.deployed == "shared"
    assert trainer.run_round(protocol.StartRound(3)).warning == ""


def test_without_it_a_checkpoint_that_has_one_goes_on(data: Path, tmp_path: Path) -> None:
    trainer = trainer_of(data, tmp_path, FedAvgParams())
    trainer.run_round(protocol.StartRound(1))
    one = make_trainer(make_spec(data, tmp_path, algorithm=FedAvgParams()))
    one.load(through_a_file(trainer.state()))
    done = one.run_round(protocol.StartRound(2))
    assert done.deployed == done.deployed_reason == "" and one.personal is None


# ---------------------------------------------------------------- what is deployed


def test_both_predict_and_the_line_says_what_that_gains(data: Path, tmp_path: Path) -> None:
    trainer = trainer_of(data, tmp_path, GcmlParams())
    done = trainer.run_round(protocol.StartRound(1))
    assert done.deployed == "mix" and isinstance(trainer.deployed, Mixture)
    assert done.deployed_reason.startswith("alone 0.") and " patients; personal 0." in done.deployed_reason
    assert done.dice_val == pytest.approx(trainer.run.score(trainer.deployed, "validation", 1).mean)


def test_what_travels_has_the_dice_of_the_shared_model_alone(data: Path, tmp_path: Path) -> None:
    """That of the mix would tell others of a model that never leaves the site."""
    trainer = trainer_of(data, tmp_path, GossipAverageParams(), training={"learning_rate": 0.05})
    trainer.model_state.learner.optimizer.param_groups[0]["weight_decay"] = 5.0  # another model than P
    done = trainer.run_round(protocol.StartRound(1, export=True))
    of_shared = trainer.run.score(trainer.model_state.ema, "validation", 1).mean
    assert done.export.dice_val == of_shared != done.dice_val
    with safe_open(done.export.path, "pt") as f:
        assert float(f.metadata()["dice_val"]) == of_shared


def test_a_round_without_validation_keeps_the_mix(data: Path, tmp_path: Path) -> None:
    trainer = trainer_of(data, tmp_path, GcmlParams(), training={"validate_every_rounds": 2})
    first, second, third = (trainer.run_round(protocol.StartRound(r)) for r in (1, 2, 3))
    assert "no validation case has been scored" in first.deployed_reason
    assert second.deployed_reason == third.deployed_reason != first.deployed_reason


@pytest.mark.parametrize(
    ("algorithm", "training", "has"),
    [
        (LocalParams(), ALWAYS, False),
        (FedAvgParams(), {"personal": None}, True),
        (FedAvgParams(), {"personal": "none"}, False),
        (FedOapParams(), {"personal": None}, False),
    ],
)
def test_which_sites_have_one(
    data: Path, tmp_path: Path, algorithm: Any, training: dict[str, Any], has: bool
) -> None:
    network = {"name": "dca_unet"} if algorithm.name == "fedoap" else {}
    spec = make_spec(data, tmp_path, algorithm=algorithm, training=training, network=network)
    assert (make_trainer(spec).personal is not None) == has


def test_gcml_without_it_is_refused(data: Path, tmp_path: Path) -> None:
    spec = make_spec(data, tmp_path, algorithm=GcmlParams(), training={"personal": "none"})
    with pytest.raises(ConfigError, match=r"training\.personal = 'none': gcml is mutual.*gossip_average"):
        make_trainer(dataclasses.replace(spec))


def test_with_privacy_it_trains_without_noise_and_the_shared_one_with(data: Path, tmp_path: Path) -> None:
    pytest.importorskip("opacus")
    dp = {"dp": {"noise_multiplier": 1.0, "max_grad_norm": 1.0, "delta": 0.1}, "seed": 3}
    spec = make_spec(data, tmp_path / "n", algorithm=GossipAverageParams(), training=ALWAYS)
    trainer = make_trainer(dataclasses.replace(spec, privacy=dp))
    for number in (1, 2):
        done = trainer.run_round(protocol.StartRound(number))
    check_alike(trainer.personal, alone(data, tmp_path / "a", 2))
    assert done.spent is not None and done.spent.steps == 8 and trainer.gradients == 16


def test_where_the_privacy_budget_is_spent_the_personal_model_trains_no_more_either(
    data: Path, tmp_path: Path
) -> None:
    pytest.importorskip("opacus")
    dp = {"dp": {"noise_multiplier": 0.5, "delta": 0.1, "max_epsilon": 1e-6}, "seed": 3}
    spec = make_spec(data, tmp_path, algorithm=GossipAverageParams(), training=ALWAYS)
    trainer = make_trainer(dataclasses.replace(spec, privacy=dp))
    done = trainer.run_round(protocol.StartRound(1))
    assert "Training here has ended" in done.warning and trainer.gradients == 0


def test_before_it_begins_it_has_no_say_not_even_without_a_validation(data: Path, tmp_path: Path) -> None:
    settings = {"personal_from_round": 3, "validate_every_rounds": 20}
    trainer = trainer_of(data, tmp_path, GossipAverageParams(), training=settings)
    assert trainer.deployed is trainer.model_state.ema and "begins with round 3" in trainer.mix.reason
    done = [trainer.run_round(protocol.StartRound(r)) for r in (1, 2, 3)]
    assert [d.deployed for d in done] == ["shared"] * 3
    assert "has trained 0 of 5 rounds" in done[2].deployed_reason


def test_a_model_whose_predictions_are_not_finite_has_no_say(data: Path, tmp_path: Path) -> None:
    for broken, left in (("personal", "shared"), ("shared", "personal")):
        trainer = trainer_of(data, tmp_path / broken, GossipAverageParams())
        trainer.run_round(protocol.StartRound(1))
        states = {"personal": trainer.personal.model_state, "shared": trainer.model_state}
        with torch.no_grad():
            for parameter in states[broken].ema.parameters():
                parameter.mul_(1e30)
        scores = trainer.round_end._judged(1)
        assert trainer.mix.weights == {left: 1.0}
        assert f"the {broken} model's predictions are not finite" in trainer.mix.reason
        assert trainer.deployed is states[left].ema
        assert scores.mean == trainer.run.score(states[left].ema, "validation", 1).mean


def test_a_model_that_is_merged_again_later_and_undone_costs_no_personal_model(
    data: Path, tmp_path: Path, guest: protocol.Visit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or a peer could make a site throw it away by sending an old file again."""
    trainer = trainer_of(data, tmp_path, GcmlParams())
    trainer.run_round(protocol.StartRound(1, guest))
    trainer.run_round(protocol.StartRound(2))
    monkeypatch.setattr("gossipseg.learn.exchange.guard.harmful", lambda *_: True)
    monkeypatch.setattr("gossipseg.learn.exchange.guard.LEAST_PATIENTS", 1)
    trainer.run_round(protocol.StartRound(3, guest))
    rounds = trainer.personal.rounds
    trainer.run_round(protocol.StartRound(4))
    assert trainer.run_round(protocol.StartRound(5)).reverted == guest.hash
    assert trainer.personal.rounds == rounds + 2


def test_a_global_model_that_is_refused_costs_no_personal_model(data: Path, tmp_path: Path) -> None:
    trainer = trainer_of(data, tmp_path, FedAvgParams())
    trainer.run_round(protocol.StartRound(1))
    torn = tmp_path / "torn.safetensors"
    torn.write_bytes(b"no model")
    common = protocol.GlobalModelFile(str(torn), "c", 4)
    done = trainer.run_round(protocol.StartRound(2, start_from=common, settling_in=True))
    assert "was not taken" in done.warning and trainer.personal.rounds == 2
    assert not trainer.personal.copied_from and done.deployed in ("mix", "personal")


def test_a_personal_model_that_is_let_go_of_is_told_and_begins_when_it_may(
    data: Path, tmp_path: Path
) -> None:
    trainer = trainer_of(data, tmp_path, FedAvgParams())
    trainer.run_round(protocol.StartRound(1))
    one = make_trainer(make_spec(data, tmp_path, algorithm=FedAvgParams()))
    one.load(through_a_file(trainer.state()))
    assert "is let go of" in one.run_round(protocol.StartRound(2)).warning
    later = trainer_of(data, tmp_path, FedAvgParams(), training={"personal_from_round": 9})
    later.load(through_a_file(one.state()))
    assert not later.personal.begun and later.run_round(protocol.StartRound(3)).deployed == "shared"


def test_with_privacy_its_steps_are_told_of(data: Path, tmp_path: Path) -> None:
    """A worker that says nothing for long is taken for stuck."""
    pytest.importorskip("opacus")
    reports: list[protocol.Progress] = []
    dp = {"dp": {"noise_multiplier": 1.0, "delta": 0.1}, "seed": 3}
    spec = make_spec(data, tmp_path, algorithm=GossipAverageParams(), training=ALWAYS)
    trainer = make_trainer(dataclasses.replace(spec, privacy=dp), reports=reports)
    trainer.run_round(protocol.StartRound(1))
    assert sum(r.activity == "training" for r in reports) == 8


def test_a_validation_case_of_which_nobody_says_anything_does_not_count_in_the_mix(tmp_path: Path) -> None:
    """n of the mix is that of the cases with an NLL."""
    folder = write_png_site(tmp_path / "data")
    validation = json.loads((folder / "dataset.json").read_text())["validation"]
    mask = folder / validation[0]["label"]
    Image.fromarray(np.full_like(np.asarray(Image.open(mask)), 9)).save(mask)
    spec = make_spec(folder, tmp_path / "n", training=ALWAYS)
    trainer = make_trainer(dataclasses.replace(spec, data={**spec.data, "ignore_label": 9}))
    assert len(trainer.site.patients("validation")) == 2
    trainer.run_round(protocol.StartRound(1))
    assert trainer.mix.cases == 1
    assert trainer.mix.weights["personal"] in {(best + 2) / 5 for best in (0.0, 0.25, 0.5, 0.75, 1.0)}
