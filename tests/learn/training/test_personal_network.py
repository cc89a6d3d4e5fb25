"""A personal model with a network of its own: what it begins as, when it speaks, what is kept of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec.structs import replace

from gossipseg.algos.params import (
    FedAvgParams,
    FedOapParams,
    GcmlParams,
    GossipAverageParams,
    LocalParams,
)
from gossipseg.errors import ConfigError
from gossipseg.learn import protocol
from gossipseg.learn.deploy.deployment import load_deployment
from gossipseg.learn.deploy.prediction import LEAST_ROUNDS_OF_A_COPY
from gossipseg.learn.evaluation.mixture import Mixture
from gossipseg.nets.dca_unet import DcaUNet
from gossipseg.nets.sanet import SANet
from tests.learn.harness import make_spec, make_trainer, same, stored
from tests.learn.training.test_resume import through_a_file

SEGRESNET: dict[str, Any] = {"name": "segresnet", "width": 4}
UNET: dict[str, Any] = {"name": "unet", "width": 2}


def trainer_of(data: Path, folder: Path, algorithm: Any = None, **more: Any) -> Any:
    training = {"personal": "always", **more.pop("training", {})}
    more = {"personal_network": SEGRESNET, **more}
    return make_trainer(
        make_spec(data, folder, algorithm=algorithm or GcmlParams(), training=training, **more)
    )


def kind(model: Any) -> str:
    return type(model.network).__name__


# ---------------------------------------------------------------- what it is


def test_one_whose_prediction_is_smaller_than_the_patch_is_refused_at_the_start(
    data: Path, tmp_path: Path
) -> None:
    options = {"kernel_size": [3, 3, 3], "strides": [2, 2, 2], "upsample_kernel_size": [2, 2]}
    network = {
        "name": "dynunet",
        "width": 2,
        "options": {**options, "filters": [2, 4, 8], "deep_supervision": False},
    }
    with pytest.raises(ConfigError, match=r"site\.yaml.*personal_network\.options.*the shape \(1, "):
        trainer_of(data, tmp_path, personal_network=network)


@pytest.mark.parametrize(
    "algorithm", [GcmlParams(lambda_ramp_rounds=0), GossipAverageParams(), FedAvgParams()]
)
def test_it_is_what_local_gives_from_its_own_first_weights(
    data: Path, tmp_path: Path, guest: protocol.Visit, algorithm: Any
) -> None:
    trainer = trainer_of(data, tmp_path / "n", algorithm)
    first = {name: t.clone() for name, t in trainer.personal.model_state.weights().items()}
    gossips = algorithm.exchange == "gossip"
    for number in (1, 2, 3):
        done = trainer.run_round(protocol.StartRound(number, guest if gossips and number == 2 else None))
        assert done.visit is None or done.visit.outcome == "merged", done.visit
    alone = make_trainer(make_spec(data, tmp_path / "a", algorithm=LocalParams(), network=SEGRESNET))
    for model in (alone.model_state.model, alone.model_state.ema):
        model.load_state_dict(first)
    for number in (1, 2, 3):
        alone.run_round(protocol.StartRound(number))
    assert same(trainer.personal.model_state.snapshot(), alone.model_state.snapshot())
    assert (kind(trainer.model_state.model), kind(trainer.personal.model_state.model)) == (
        "SANet",
        "SegResNet",
    )
    assert trainer.gradients == 24 and done.deployed in ("mix", "personal")


def test_its_first_weights_are_this_seeds_and_this_sites(data: Path, tmp_path: Path) -> None:
    def first(folder: str, **more: Any) -> Any:
        trainer = trainer_of(data, tmp_path / folder, **more)
        return {n: t.clone() for n, t in trainer.personal.model_state.weights().items()}

    assert same(first("a"), first("b"))
    assert not same(first("a"), first("c", site="south"))
    alike = trainer_of(data, tmp_path / "d", personal_network={"name": "sanet", "width": 2})
    assert not same(alike.model_state.weights(), alike.personal.model_state.weights())


def test_the_shared_model_and_what_travels_know_nothing_of_it(data: Path, tmp_path: Path) -> None:
    plain, own = (
        trainer_of(data, tmp_path / folder, GossipAverageParams(), personal_network=network)
        for folder, network in (("p", None), ("o", UNET))
    )
    assert (plain.schema, plain.initial_hash, plain.network_signature) == (
        own.schema,
        own.initial_hash,
        own.network_signature,
    )
    for trainer in (plain, own):
        trainer.run_round(protocol.StartRound(1, export=True))
    assert same(plain.model_state.snapshot(), own.model_state.snapshot())


@pytest.mark.parametrize("own", [SEGRESNET, UNET, {"name": "dynunet", "width": 2}])
@pytest.mark.parametrize("mutual", ["shared", "both"])
def test_mutual_learning_works_between_different_networks(
    data: Path, tmp_path: Path, guest: protocol.Visit, mutual: Any, own: dict[str, Any]
) -> None:
    """Each way: the term is there, and each model that has it takes another step than without it."""

    def trained(folder: str, weight: float) -> Any:
        algorithm = GcmlParams(lambda_=weight, lambda_ramp_rounds=0, mutual=mutual)
        trainer = trainer_of(data, tmp_path / folder, algorithm, personal_network=own)
        for number in (1, 2):
            done = trainer.run_round(protocol.StartRound(number, guest if number == 2 else None))
        assert done.visit.outcome == "merged" and not done.warning
        return trainer, done

    (with_it, done), (without, _) = trained("w", 1.0), trained("o", 0.0)
    assert any(value > 0 for name, value in done.terms.items() if "pull" in name), done.terms
    assert not same(with_it.model_state.weights(), without.model_state.weights())
    alike = same(with_it.personal.model_state.weights(), without.personal.model_state.weights())
    assert alike == (mutual == "shared")


def test_beside_a_network_with_private_parts(data: Path, tmp_path: Path) -> None:
    trainer = trainer_of(data, tmp_path, FedOapParams(), network={"name": "dca_unet"}, personal_network=UNET)
    trainer.run_round(protocol.StartRound(1))
    assert isinstance(trainer.model_state.model.network, DcaUNet) and trainer.mix.weights["personal"] > 0


# ---------------------------------------------------------------- a network that does not go


@pytest.mark.parametrize(
    ("own", "key", "said"),
    [
        ({"name": "swinunetr", "width": 5}, "width", "multiple of 12"),
        ({"name": "unet", "norm": "group"}, "norm", "Choose one of: instance, batch"),
        ({"name": "unet", "options": {"kernel": 3}}, "options.kernel", "has no such option"),
        ({"name": "segresnet", "options": {"blocks_down": 7}}, "options", "Correct personal_network.options"),
        ({"name": "swinunetr", "width": 12}, "name", r"task.patch_size \[32, 32\] of peers.yaml"),
    ],
)
def test_a_network_that_cannot_be_built_names_the_key_of_site_yaml(
    data: Path, tmp_path: Path, own: dict[str, Any], key: str, said: str
) -> None:
    with pytest.raises(ConfigError, match=said) as raised:
        trainer_of(data, tmp_path, personal_network=own)
    assert (raised.value.file, raised.value.key) == ("site.yaml", f"personal_network.{key}")
    assert raised.value.remedy


def test_a_patch_that_its_depth_does_not_bear_has_a_remedy_of_the_sites_own(
    data: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as raised:
        trainer_of(data, tmp_path, personal_network={"name": "swinunetr", "width": 12})
    assert raised.value.remedy.startswith("Write a shallower network")
    assert "at all sites: Use at least [64, 64]" in raised.value.remedy


# ---------------------------------------------------------------- joiners


def test_who_takes_a_model_over_keeps_it_and_lets_it_speak_after_some_rounds(
    data: Path, tmp_path: Path, guest: protocol.Visit
) -> None:
    settings = {"learning_rate": 0.01, "rounds": 10}
    trainer = trainer_of(data, tmp_path, training=settings)
    first = {n: t.clone() for n, t in trainer.personal.model_state.weights().items()}
    done = trainer.run_round(protocol.StartRound(1, replace(guest, round=2)))
    assert done.visit.reason == "taken_over" and trainer.personal.joined
    assert done.deployed == "shared" and "has trained 1 of 5 rounds" in done.deployed_reason
    assert kind(trainer.personal.model_state.model) == "SegResNet"
    assert not same(first, trainer.personal.model_state.weights()), "it trains from the first round on"
    rates = [m.learner.optimizer.param_groups[0]["lr"] for m in (trainer.personal, trainer.model_state)]
    assert rates[0] == rates[1] < 0.0095, "it goes by the schedule of the model that was taken over"
    for number in range(2, LEAST_ROUNDS_OF_A_COPY + 1):
        assert done.deployed == "shared"
        done = trainer.run_round(protocol.StartRound(number))
    assert done.deployed in ("mix", "personal")


def test_one_that_has_trained_for_long_keeps_its_say(
    data: Path, tmp_path: Path, guest: protocol.Visit
) -> None:
    trainer = trainer_of(data, tmp_path)
    for number in range(1, LEAST_ROUNDS_OF_A_COPY + 1):
        trainer.run_round(protocol.StartRound(number))
    before = trainer.personal.rounds
    late = protocol.StartRound(LEAST_ROUNDS_OF_A_COPY + 1, replace(guest, steps=10**6))
    done = trainer.run_round(late)
    assert done.visit.reason == "taken_over" and trainer.personal.rounds == before + 1
    assert done.deployed in ("mix", "personal")


# ---------------------------------------------------------------- checkpoints


def test_it_survives_a_restart(data: Path, tmp_path: Path, guest: protocol.Visit) -> None:
    trainer = trainer_of(data, tmp_path)
    trainer.run_round(protocol.StartRound(1, guest))
    again = trainer_of(data, tmp_path)
    again.load(through_a_file(trainer.state()))
    assert again.personal.joined and same(again.state(), trainer.state())
    one, other = (t.run_round(protocol.StartRound(2)) for t in (trainer, again))
    assert one.terms == other.terms and same(again.state(), trainer.state())


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (SEGRESNET, UNET, "a network segresnet of its own"),
        (SEGRESNET, {**SEGRESNET, "width": 8}, "with other tensors"),
        (SEGRESNET, {**SEGRESNET, "norm": "group"}, "with other tensors, norm or options"),
        (SEGRESNET, None, "a network segresnet of its own"),
        (None, SEGRESNET, "has the shared model's network"),
    ],
)
def test_a_checkpoint_of_another_personal_network_is_refused(
    data: Path, tmp_path: Path, before: Any, after: Any, said: str
) -> None:
    trainer = trainer_of(data, tmp_path, personal_network=before)
    state = through_a_file(trainer.state())
    with pytest.raises(ConfigError, match=said) as raised:
        trainer_of(data, tmp_path, personal_network=after).load(state)
    assert raised.value.key == "personal_network.name" and "another state_dir" in raised.value.remedy


def test_a_checkpoint_without_one_begins_it_from_its_first_weights_and_says_so(
    data: Path, tmp_path: Path
) -> None:
    before = make_trainer(make_spec(data, tmp_path))
    before.run_round(protocol.StartRound(1))
    trainer = trainer_of(data, tmp_path, GossipAverageParams())
    first = {n: t.clone() for n, t in trainer.personal.model_state.weights().items()}
    trainer.load(through_a_file(before.state()))
    assert same(first, trainer.personal.model_state.weights())
    done = trainer.run_round(protocol.StartRound(2))
    assert "begins from the first weights of its own network" in done.warning and done.deployed == "shared"


def test_what_is_deployed_is_read_back_with_both_networks(data: Path, tmp_path: Path) -> None:
    trainer = trainer_of(data, tmp_path)
    trainer.run_round(protocol.StartRound(1))
    stored(trainer)
    spec = trainer.settings.spec
    found = load_deployment(spec)
    assert isinstance(found.net, Mixture) and isinstance(found.net.members[1].network, SANet)
    assert [n.name for n in found.networks] == ["segresnet", "sanet"]
    image = torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(found.net(image).logits, trainer.deployed(image).logits)
    with pytest.raises(ConfigError, match="a network segresnet of its own"):
        load_deployment(dataclasses.replace(spec, personal_network=UNET))
    assert [n.name for n in load_deployment(spec, initial=True).networks] == ["sanet"]
