"""Personal models that travel, at the worker: written, checked, chosen from, kept, let go of."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from gossipseg.algos.params import FedBnParams, GossipAverageParams
from gossipseg.learn import protocol
from gossipseg.learn.deploy.candidates import ValidationMembers
from gossipseg.learn.deploy.deployment import load_deployment
from gossipseg.learn.engine.checkpoint import contract_of, save_checkpoint
from gossipseg.learn.evaluation.evaluate import predict_logits
from gossipseg.learn.evaluation.mixture import Mixture
from gossipseg.learn.exchange.personal_models import travels
from gossipseg.learn.exchange.wire_format import INT8, wire_schema
from gossipseg.store import SCALES, Checkpoints
from tests.learn.harness import make_spec, make_trainer, same, write_png_site
from tests.learn.training.test_resume import through_a_file

PATIENTS = 8


@pytest.fixture(scope="module")
def ward(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site with eight validation patients."""
    return divided(tmp_path_factory.mktemp("ward"), PATIENTS)


def divided(folder: Path, validation: int) -> Path:
    write_png_site(folder, cases=validation + 5)
    lists: dict[str, list[dict[str, str]]] = {"training": [], "validation": [], "test": []}
    for i in range(validation + 5):
        split = "validation" if i < validation else "test" if i == validation else "training"
        lists[split].append({"image": f"images/case{i}.png", "label": f"masks/case{i}.png"})
    (folder / "dataset.json").write_text(json.dumps(lists))
    return folder


def trainer_of(data: Path, folder: Path, site: str = "north", algorithm: Any = None, **more: Any) -> Any:
    training = {"personal": "always", "learning_rate": 0.01, **more.pop("training", {})}
    algorithm = algorithm or GossipAverageParams()
    return make_trainer(make_spec(data, folder, site=site, algorithm=algorithm, training=training, **more))


def trained(trainer: Any, rounds: int = 2) -> Any:
    for number in range(trainer.history.round + 1, trainer.history.round + 1 + rounds):
        trainer.run_round(protocol.StartRound(number))
    return trainer


def file_of(path: Path, site: str = "south", round: int = 2) -> protocol.PersonalFile:
    return protocol.PersonalFile(site, str(path), hashlib.sha256(path.read_bytes()).hexdigest(), round)


@pytest.fixture(scope="module")
def peer(ward: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good personal model: of a site that has trained for longer."""
    south = trained(trainer_of(ward, tmp_path_factory.mktemp("south"), "south"), 12)
    done = south.export_personal(protocol.ExportPersonal())
    return Path(done.export.path)


def hold(trainer: Any, *files: protocol.PersonalFile) -> protocol.PersonalHeld:
    held: protocol.PersonalHeld = trainer.hold_personal(protocol.HoldPersonal(list(files)))
    return held


# ---------------------------------------------------------------- out


@pytest.mark.parametrize("wire_dtype", ["float16", "float32"])
def test_the_average_travels_in_eight_bits_whatever_the_wire_says(
    ward: Path, tmp_path: Path, wire_dtype: str
) -> None:
    spec = make_spec(ward, tmp_path, training={"personal": "always"})
    trainer = trained(make_trainer(dataclasses.replace(spec, wire_dtype=wire_dtype)))
    done = trainer.export_personal(protocol.ExportPersonal())
    assert (done.round, done.reason, done.export.dice_val) == (2, "", None)
    found = load_file(done.export.path)
    assert {t.dtype for n, t in found.items() if n + SCALES in found} == {torch.int8}
    ema = trainer.personal.model_state.ema.state_dict()
    assert set(wire_schema(ema, travels, INT8)) == set(found) == set(trainer.personal_schema)
    name = next(n for n in found if n + SCALES in found)
    steps = found[name + SCALES].float().max()
    blocks = (
        found[name].float().flatten()
        * found[name + SCALES].float().repeat_interleave(64)[: found[name].numel()]
    )
    assert (blocks - ema[name].flatten()).abs().max() <= steps / 2 + 1e-6


def test_with_differential_privacy_none_is_ever_written(ward: Path, tmp_path: Path) -> None:
    more = {"privacy": {"dp": {}}, "network": {"norm": "instance"}}
    trainer = trained(trainer_of(ward, tmp_path, **more), 1)
    assert trainer.personal_refusal == "private" and trainer.takes_personal
    done = trainer.export_personal(protocol.ExportPersonal())
    assert done.export is None and done.reason == "private"
    assert not list((tmp_path / "outbox").glob("personal-*"))


def test_a_model_that_travels_is_clipped_from_what_was_told_before(ward: Path, tmp_path: Path) -> None:
    """W_0 is what everybody knows at first; then it is what was sent last."""
    trainer = trainer_of(ward, tmp_path, privacy={"clip_norm": 0.05, "noise_multiplier": 0.0, "seed": 1})
    known = {n: t.clone() for n, t in trainer.personal.model_state.ema.state_dict().items()}
    trained(trainer, 3)
    ema = trainer.personal.model_state.ema.state_dict()
    told = trainer.peers.release.of(ema, 3)
    assert distance(ema, known) > 0.5, "it has trained far"
    assert distance(told, known) == pytest.approx(0.05, rel=1e-3)
    done = trainer.export_personal(protocol.ExportPersonal())
    sent = trainer.peers.admit(file_of(Path(done.export.path))).weights
    assert distance(sent, known) < 0.1, "and the file holds that, within eight bits"
    assert distance(trainer.peers.release.of(ema, 3), known) == pytest.approx(0.1, rel=1e-3)
    other = trainer_of(ward, tmp_path / "again", privacy={"clip_norm": 0.05, "seed": 1})
    other.load(through_a_file(trainer.state()))
    assert distance(other.peers.release.of(ema, 3), known) == pytest.approx(0.1, rel=1e-3)


def distance(a: Any, b: Any) -> float:
    squares = [(a[n].double() - b[n].double()).square().sum() for n in b if b[n].is_floating_point()]
    return float(sum(squares) ** 0.5)


def test_what_is_not_finite_or_not_begun_is_not_sent(ward: Path, tmp_path: Path) -> None:
    trainer = trainer_of(ward, tmp_path)
    assert trainer.export_personal(protocol.ExportPersonal()).reason == "not_ready"
    trained(trainer, 1)
    next(trainer.personal.model_state.ema.parameters()).data.fill_(float("nan"))
    assert trainer.export_personal(protocol.ExportPersonal()).reason == "not_finite"


def test_without_its_private_part_a_model_is_of_no_use(ward: Path, tmp_path: Path) -> None:
    trainer = trainer_of(ward, tmp_path, algorithm=FedBnParams(), network={"norm": "batch"})
    assert trainer.personal_refusal == "private_part" and not trainer.takes_personal
    whole = trainer_of(ward, tmp_path / "whole", network={"norm": "batch"})
    assert whole.personal_refusal == "" and whole.takes_personal
    assert not any("running" in name or "batches" in name for name in whole.personal_schema)


def test_what_batch_norm_measures_is_measured_at_the_receiver(ward: Path, tmp_path: Path) -> None:
    batch = {"network": {"norm": "batch"}}
    south = trained(trainer_of(ward, tmp_path / "s", "south", **batch), 3)
    file = file_of(Path(south.export_personal(protocol.ExportPersonal()).export.path))
    north = trainer_of(divided(tmp_path / "data", PATIENTS), tmp_path / "n", **batch)
    trained(north, 1)
    before = {n: t.clone() for n, t in north.personal.model_state.ema.state_dict().items()}
    assert not hold(north, file).refused
    weights = north.round_end.prediction.peers.held["south"].weights
    name = next(n for n in weights if n.endswith("running_mean"))
    initial = torch.zeros_like(weights[name])
    for other in (before[name], south.personal.model_state.ema.state_dict()[name], initial):
        assert not torch.allclose(weights[name], other), "neither its maker's nor another model's"
    after = north.personal.model_state.ema.state_dict()
    assert all(torch.equal(before[n], after[n]) for n in before), "the own model is as it was"
    trained(north, 1)
    assert north.mix.peers["personal of south"] is not None


# ---------------------------------------------------------------- in


def test_a_better_model_of_a_peer_predicts_with_this_site_s_own(
    ward: Path, tmp_path: Path, peer: Path
) -> None:
    trainer = trained(trainer_of(ward, tmp_path))
    own = {n: t.clone() for n, t in trainer.personal.model_state.weights().items()}
    before = trainer.mix.deployed
    done = hold(trainer, file_of(peer))
    assert not done.refused and not done.chosen, "at the next validation"
    trained(trainer, 1)
    mix = trainer.mix
    assert mix.weights["personal of south"] > 0.25 and sum(mix.weights.values()) == pytest.approx(1)
    assert mix.deployed > before and mix.peers["personal of south"] > mix.alone
    assert "personal of south 0." in mix.reason
    assert isinstance(trainer.deployed, Mixture) and len(trainer.deployed.members) == 3
    assert trainer.history.dice_val == pytest.approx(mix.deployed), "the scores are of what is deployed"
    assert own.keys() == trainer.personal.model_state.weights().keys()


def test_the_own_model_never_mixes_with_it(ward: Path, tmp_path: Path, peer: Path) -> None:
    with_it, without = trainer_of(ward, tmp_path / "a"), trainer_of(ward, tmp_path / "b")
    for trainer in (with_it, without):
        trained(trainer)
    hold(with_it, file_of(peer))
    for trainer in (with_it, without):
        trained(trainer)
    assert same(with_it.personal.model_state.snapshot(), without.personal.model_state.snapshot())
    assert same(with_it.model_state.snapshot(), without.model_state.snapshot())


def test_with_seven_patients_none_is_taken(tmp_path: Path, peer: Path) -> None:
    trainer = trained(trainer_of(divided(tmp_path / "data", PATIENTS - 1), tmp_path / "state"))
    assert not trainer.takes_personal
    hold(trainer, file_of(peer))
    trained(trainer, 1)
    assert set(trainer.mix.weights) <= {"personal", "shared"} and not trainer.mix.peers
    assert not list((tmp_path / "state" / "predictions").glob("*.logits"))


def test_the_operator_bounds_how_many_predict(ward: Path, tmp_path: Path, peer: Path) -> None:
    two = trainer_of(ward, tmp_path / "2", inference={"max_members": 2})
    assert not two.takes_personal
    three = trained(trainer_of(ward, tmp_path / "3", inference={"max_members": 3}))
    hold(three, file_of(peer), file_of(peer, "west"))
    trained(three, 1)
    assert len(three.mix.weights) == 3


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("nan", "not_finite"),
        ("scaled", "norm_exploded"),
        ("missing", "schema_mismatch"),
        ("float16", "schema_mismatch"),
        ("never", "bad_format"),
        ("torn", "unreadable"),
    ],
)
def test_a_bad_model_is_refused(ward: Path, tmp_path: Path, peer: Path, damage: str, reason: str) -> None:
    path = tmp_path / "bad.safetensors"
    tensors = load_file(peer)
    name = max((n for n in tensors if n + SCALES in tensors), key=lambda n: tensors[n].numel())
    if damage == "nan":
        tensors[name + SCALES].fill_(float("nan"))
    elif damage == "scaled":
        tensors = {n: t * 100 if n.endswith(SCALES) else t for n, t in tensors.items()}
    elif damage == "missing":
        del tensors[name], tensors[name + SCALES]
    elif damage == "float16":
        tensors[name] = tensors[name].half()
    elif damage == "never":
        tensors[name].view(-1)[0] = -128
    with safe_open(peer, "pt") as file:
        save_file(tensors, path, file.metadata())
    if damage == "torn":
        path.write_bytes(path.read_bytes()[:-9])
    trainer = trained(trainer_of(ward, tmp_path / "state"), 1)
    done = hold(trainer, file_of(path))
    (refused,) = done.refused
    assert (refused.site, refused.reason) == ("south", reason) and refused.hash == file_of(path).hash
    trained(trainer, 1)
    assert set(trainer.mix.weights) <= {"personal", "shared"} and not trainer.mix.peers


# ---------------------------------------------------------------- the choice


def test_after_the_end_the_mix_is_chosen_again_without_a_second_inference(
    ward: Path, tmp_path: Path, peer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trained(trainer_of(ward, tmp_path, rounds=2, report_test=True))
    before, test = trainer.mix, trainer.history.dice_test
    predicted: list[str] = []

    def counting(net: Any, image: Any, *args: Any) -> Any:
        predicted.append(type(net).__name__)
        return predict_logits(net, image, *args)

    monkeypatch.setattr("gossipseg.learn.engine.site_data.predict_logits", counting)
    done = hold(trainer, file_of(peer))
    assert done.chosen and done.ended and "personal of south" in done.deployed_reason
    assert len(predicted) == PATIENTS, "only the new model predicts, each case once"
    assert done.dice_val == trainer.history.dice_val == pytest.approx(trainer.mix.deployed)
    assert trainer.history.dice_history[-1] == (2, done.dice_val) and len(trainer.history.dice_history) == 2
    assert trainer.mix.deployed > before.deployed and done.dice_test != test
    predicted.clear()
    done = hold(trainer, file_of(peer), file_of(peer, "west"))
    assert done.chosen and not predicted, "the same weights from another site"
    assert not hold(trainer, file_of(peer), file_of(peer, "west")).chosen, "nothing has changed"


def test_a_removed_peer_has_no_say_any_more(ward: Path, tmp_path: Path, peer: Path) -> None:
    trainer = trained(trainer_of(ward, tmp_path))
    hold(trainer, file_of(peer))
    trained(trainer, 1)
    assert "personal of south" in trainer.mix.weights
    done = hold(trainer)
    assert done.chosen and set(trainer.mix.weights) <= {"personal", "shared"}
    assert sum(trainer.mix.weights.values()) == pytest.approx(1) and not trainer.mix.peers
    assert not any("peers" in k and v for k, v in trainer.state().items())


def test_a_peer_that_was_removed_while_this_site_was_down_has_no_say(
    ward: Path, tmp_path: Path, peer: Path
) -> None:
    trainer = trained(trainer_of(ward, tmp_path))
    hold(trainer, file_of(peer))
    trained(trainer, 1)
    again = make_trainer(dataclasses.replace(trainer.settings.spec, listed=["north", "east"]))
    again.load(through_a_file(trainer.state()))
    assert set(again.mix.weights) <= {"personal", "shared"} and not again.state().get("peers")
    assert sum(again.mix.weights.values()) == pytest.approx(1)


def test_another_window_is_another_prediction(ward: Path, tmp_path: Path, peer: Path) -> None:
    trainer = trained(trainer_of(ward, tmp_path))
    before = {f.name for f in (tmp_path / "predictions").glob("*.logits")}
    spec = trainer.settings.spec
    again = make_trainer(dataclasses.replace(spec, training={**spec.training, "window_overlap": 0.75}))
    again.load(through_a_file(trainer.state()))
    hold(again, file_of(peer))
    trained(again, 1)
    assert not before & {f.name for f in (tmp_path / "predictions").glob("*.logits")} and before


def test_a_full_disk_costs_the_kept_predictions_alone(
    ward: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any, **options: Any) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("gossipseg.learn.evaluation.kept.save_file", full)
    assert trained(trainer_of(ward, tmp_path)).history.round == 2
    assert not list((tmp_path / "predictions").glob("*"))


def test_what_is_held_survives_a_restart_and_is_deployed(ward: Path, tmp_path: Path, peer: Path) -> None:
    trainer = trained(trainer_of(ward, tmp_path))
    hold(trainer, file_of(peer))
    trained(trainer, 1)
    spec = trainer.settings.spec
    again = trainer_of(ward, tmp_path / "again")
    again.load(through_a_file(trainer.state()))
    assert same(again.state(), trainer.state()) and again.mix == trainer.mix
    contract = contract_of(trainer.settings, trainer.network_signature)
    save_checkpoint(Checkpoints(Path(spec.state_dir) / "checkpoint", keep=2), trainer.state(), contract)
    deployed = load_deployment(spec)
    assert dict(deployed.members) == trainer.mix.weights and isinstance(deployed.net, Mixture)
    item, _ = next(trainer.site.labelled("test"))
    with trainer.site.scoring():
        expected, found = (trainer.site.predict(net, item) for net in (trainer.deployed, deployed.net))
    assert torch.equal(expected, found)
    single = load_deployment(spec, single=True)
    assert single.weights == "personal of south" and not isinstance(single.net, Mixture)
    assert "with all 3" in single.reason


def test_kept_predictions_go_with_their_case(ward: Path, tmp_path: Path, peer: Path) -> None:
    trainer = trained(trainer_of(ward, tmp_path))
    hold(trainer, file_of(peer))
    trained(trainer, 1)
    folder = tmp_path / "predictions"
    models = 2  # without an exchange the shared and the personal model are one
    assert len(list(folder.glob("*.logits"))) == models * PATIENTS
    smaller = divided(tmp_path / "data", PATIENTS - 2)
    trainer_of(smaller, tmp_path)
    assert len(list(folder.glob("*.logits"))) == models * (PATIENTS - 2), "two cases are gone from the list"


def test_kept_predictions_go_with_the_personal_model(ward: Path, tmp_path: Path) -> None:
    trainer = trained(trainer_of(ward, tmp_path))
    folder = tmp_path / "predictions"
    assert list(folder.glob("*.logits"))
    trainer_of(ward, tmp_path, training={"personal": "none"})
    assert trainer.history.round == 2 and not list(folder.glob("*"))


def test_the_greedy_loss_is_that_of_the_mixture(
    ward: Path, tmp_path: Path, peer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From one number a voxel, as from whole predictions."""
    seen: list[ValidationMembers] = []
    made = ValidationMembers.__init__

    def noted(self: ValidationMembers, *args: Any) -> None:
        made(self, *args)
        seen.append(self)

    monkeypatch.setattr(ValidationMembers, "__init__", noted)
    trainer = trained(trainer_of(ward, tmp_path))
    hold(trainer, file_of(peer))
    trained(trainer, 1)
    personal, shared = trainer.personal.model_state.ema, trainer.model_state.ema
    south = trainer.round_end.prediction.peers.held["south"].net(trainer.settings, trainer.compute)
    mix = Mixture([personal, shared, south], [3, 1, 2], "softmax")
    expected = trainer.site.losses(mix, "validation", lambda fraction: None)
    found = seen[-1].loss({"personal": 3, "shared": 1, "personal of south": 2})
    assert found == pytest.approx(sum(expected) / len(expected), rel=1e-5)
