"""What predicts is what may: no removed site's model, no more models than allowed, under the settings of the
training, and with finite values. What is told of it is of the models and cases that are there now."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from gossipseg.errors import ConfigError, DiskFull, LocalError, PeerRefused
from gossipseg.learn import protocol
from gossipseg.learn.bundle import Predictor
from gossipseg.learn.commands.evaluate import evaluate_case
from gossipseg.learn.commands.predict import predict_labels
from gossipseg.learn.data.cases import Case
from gossipseg.learn.data.dataset import content_of, load_image, seen_of
from gossipseg.learn.deploy.choice import OF_PEER, Mix, best_single, limited, only
from gossipseg.learn.deploy.deployment import load_deployment
from gossipseg.learn.engine.checkpoint import contract_of, save_checkpoint
from gossipseg.learn.evaluation.kept import KeptPredictions
from gossipseg.learn.exchange.personal_models import LARGEST_VALUE, check_size
from gossipseg.learn.params import TaskParams
from gossipseg.learn.worker.link import StopRequested
from gossipseg.learn.worker.session import WorkerSession
from gossipseg.store import Checkpoints
from tests.learn.exchange.test_personal_models import divided, file_of, hold, trained, trainer_of
from tests.learn.harness import make_trainer

SOUTH = "personal of south"


@pytest.fixture(scope="module")
def ward(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return divided(tmp_path_factory.mktemp("ward"), 8)


@pytest.fixture(scope="module")
def finished(ward: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A trainer that has ended, with south's model in its mix, and its checkpoint."""
    south = trained(trainer_of(ward, tmp_path_factory.mktemp("south"), "south"), 12)
    exported = south.export_personal(protocol.ExportPersonal()).export.path
    folder = tmp_path_factory.mktemp("north")
    trainer = trained(trainer_of(ward, folder, rounds=2, report_test=True))
    hold(trainer, file_of(Path(exported)))
    assert SOUTH in trainer.mix.weights
    store = Checkpoints(folder / "checkpoint", keep=2)
    save_checkpoint(store, trainer.state(), contract_of(trainer.settings, trainer.network_signature))
    return trainer


class Line:
    """A daemon that asks for these, and then for the end."""

    def __init__(self, orders: Sequence[Any], stop_after: int | None) -> None:
        self.orders, self.sent, self.left = list(orders), list[Any](), stop_after

    def check(self) -> None: ...
    def gate(self) -> None:
        if self.left == 0:
            raise StopRequested
        self.left = self.left - 1 if self.left is not None else None

    def report(self, make: Any, activity: str = "") -> None: ...
    def swap_order(self) -> None: ...
    def send(self, message: Any) -> None:
        self.sent.append(message)

    def order(self) -> Any:
        if not self.orders:
            raise StopRequested
        return self.orders.pop(0)


def worked(spec: Any, checkpoint: str, *orders: Any, stop_after: int | None = None) -> list[Any]:
    """What a worker of `spec` tells that goes on from a copy of the checkpoint. `stop_after`: cases."""
    folder = Path(spec.state_dir) / "checkpoint"
    folder.mkdir(parents=True, mode=0o700)
    for file in (Path(checkpoint) / "checkpoint").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    line = Line(orders, stop_after)
    WorkerSession(line, spec).run()  # type: ignore[arg-type]
    return line.sent


def case_of(spec: Any) -> Case:
    folder = Path(spec.data["path"])
    (first,) = json.loads((folder / "dataset.json").read_text())["test"][:1]
    return Case("first", folder / first["image"], folder / first["label"])


# ---------------------------------------------------------------- who may


def test_the_others_take_over_what_a_member_said() -> None:
    mix = Mix({"personal": 0.3, "shared": 0.2, SOUTH: 0.4, "personal of west": 0.1}, alone=0.8, deployed=0.9)
    both = {SOUTH, "personal of west"}
    assert limited(mix, both, 4) is mix and limited(mix, {*both, "personal", "shared"}, 4) is mix
    fewer = limited(mix, both, 3)
    assert fewer.weights == pytest.approx({"personal": 3 / 9, "shared": 2 / 9, SOUTH: 4 / 9})
    assert fewer.deployed is None and "not validated since" in fewer.reason
    assert limited(mix, set(), 5).weights == pytest.approx({"personal": 0.6, "shared": 0.4})
    assert limited(Mix({SOUTH: 1.0}), set(), 5).name == "shared", "nobody is left of those that predicted"
    assert limited(Mix({"personal": 0.0, SOUTH: 1.0}), set(), 5).name == "shared"
    lone = Mix({"personal": 0.5, SOUTH: 0.5})
    assert limited(lone, both, 2).weights == {"personal": 1.0}, "the shared model has its place all the same"
    assert "no validation case" in limited(Mix({"personal": 0.5, SOUTH: 0.5}), set(), 5).reason


def test_the_best_single_model_is_known_though_the_mix_was_not_validated() -> None:
    mix = Mix({"personal": 0.2, "shared": 0.8}, alone=0.9, shared=0.5)
    assert best_single(mix) == ("personal", None) and only(mix).weights == {"personal": 1.0}
    assert "what is lost is not known: chosen when other models were there" in only(mix).why


def test_a_removed_site_s_model_does_not_predict_though_the_checkpoint_has_it(finished: Any) -> None:
    spec = dataclasses.replace(finished.settings.spec, listed=["north", "east"])
    found = load_deployment(spec)
    assert set(found.members) <= {"personal", "shared"} and sum(found.members.values()) == pytest.approx(1)
    assert "not validated since" in found.reason
    assert SOUTH in load_deployment(dataclasses.replace(spec, listed=["north", "south"])).members
    assert SOUTH in load_deployment(finished.settings.spec).members


@pytest.mark.parametrize(
    ("changes", "key"),
    [({"site": "south"}, "site"), ({"federation": "other"}, "federation"),
     ({"algorithm": {"name": "gossip_average"}}, "algorithm.name")],
)  # fmt: skip
def test_a_checkpoint_of_another_site_or_algorithm_is_not_deployed(
    finished: Any, changes: dict[str, Any], key: str
) -> None:
    spec = finished.settings.spec
    if key == "algorithm.name":
        changes = {"algorithm": {"name": "fedavg" if spec.algorithm["name"] != "fedavg" else "fedprox"}}
    with pytest.raises(ConfigError, match=f"was trained with {key} ="):
        load_deployment(dataclasses.replace(spec, **changes))


def test_figures_of_an_earlier_round_are_told_as_such(finished: Any, tmp_path: Path) -> None:
    assert finished.mix.round == finished.history.round
    assert "validated at round" not in load_deployment(finished.settings.spec).reason
    store = Checkpoints(tmp_path / "checkpoint", keep=2)
    later = finished.state()
    later["history"] = {**later["history"], "round": finished.history.round + 4}
    save_checkpoint(store, later, contract_of(finished.settings, finished.network_signature))
    elsewhere = dataclasses.replace(finished.settings.spec, state_dir=str(tmp_path))
    assert f"(validated at round {finished.mix.round})" in load_deployment(elsewhere).reason


def test_no_more_models_predict_than_the_settings_allow(finished: Any) -> None:
    spec = dataclasses.replace(finished.settings.spec, inference={"max_members": 2})
    assert set(load_deployment(spec).members) <= {"personal", "shared"}


# ---------------------------------------------------------------- what is told


@pytest.mark.parametrize(
    "change",
    [{"listed": ["north", "east"]}, {"inference": {"max_members": 2}}, {"data": "fewer cases"}],
    ids=["a removed site", "fewer models", "other cases"],
)
def test_a_finished_site_tells_of_what_predicts_now(
    finished: Any, tmp_path: Path, change: dict[str, Any]
) -> None:
    if "data" in change:
        change = {"data": {**finished.settings.spec.data, "path": str(divided(tmp_path / "data", 6))}}
    before = finished.settings.spec
    spec = dataclasses.replace(before, state_dir=str(tmp_path / "state"), **change)
    _, told = worked(spec, before.state_dir)
    deployed, scorer = load_deployment(spec), make_trainer(spec).run
    assert deployed.reason == told.deployed_reason and "not validated since" not in deployed.reason
    assert told.dice_val == pytest.approx(scorer.score(deployed.net, "validation", 2).mean)
    assert told.dice_test == pytest.approx(scorer.score(deployed.net, "test", 2).mean)
    assert told.dice_test != finished.history.dice_test or "data" in change
    assert f"on {6 if 'data' in change else 8} patients" in told.deployed_reason
    again = dataclasses.replace(spec, state_dir=str(tmp_path / "again"))
    (ready,) = worked(again, spec.state_dir)
    assert (ready.deployed_reason, ready.dice_val) == (told.deployed_reason, told.dice_val), "once is enough"


@pytest.mark.parametrize("case", ["case0", "case8"], ids=["a validation label", "a test label"])
def test_a_corrected_label_is_another_case(finished: Any, tmp_path: Path, case: str) -> None:
    before, data = finished.settings.spec, divided(tmp_path / "data", 8)
    spec = dataclasses.replace(before, state_dir=str(tmp_path / "1"), data={**before.data, "path": str(data)})
    worked(spec, before.state_dir)
    again = dataclasses.replace(spec, state_dir=str(tmp_path / "2"))
    assert len(worked(again, spec.state_dir)) == 1, "nothing has changed"
    label = data / "masks" / f"{case}.png"
    Image.fromarray(1 - np.asarray(Image.open(label))).save(label)
    corrected = dataclasses.replace(spec, state_dir=str(tmp_path / "3"))
    _, told = worked(corrected, spec.state_dir)
    split = "validation" if case == "case0" else "test"
    scores = make_trainer(corrected).run.score(load_deployment(corrected).net, split, 2).mean
    assert (told.dice_val if case == "case0" else told.dice_test) == pytest.approx(scores)


def test_a_label_that_is_corrected_while_training_runs_is_another_case_at_the_next_start(
    tmp_path: Path,
) -> None:
    """The scores are of the label that was read, whatever lies in the folder when the choice is made."""
    data = divided(tmp_path / "data", 8)
    trainer = trainer_of(data, tmp_path / "0", rounds=2, report_test=True)
    label = data / "masks" / "case0.png"
    Image.fromarray(1 - np.asarray(Image.open(label))).save(label)
    trained(trainer)
    store = Checkpoints(tmp_path / "0" / "checkpoint", keep=2)
    save_checkpoint(store, trainer.state(), contract_of(trainer.settings, trainer.network_signature))
    before = trainer.settings.spec
    spec = dataclasses.replace(before, state_dir=str(tmp_path / "1"))
    _, told = worked(spec, before.state_dir)
    scored = make_trainer(spec).run.score(load_deployment(spec).net, "validation", 2).mean
    assert told.dice_val == pytest.approx(scored) != trainer.history.dice_val


def test_labels_that_are_read_otherwise_are_other_cases(finished: Any, tmp_path: Path) -> None:
    before = finished.settings.spec
    spec = dataclasses.replace(before, state_dir=str(tmp_path / "1"), data={**before.data, "ignore_label": 1})
    _, told = worked(spec, before.state_dir)
    assert told.dice_val != finished.history.dice_val


def test_a_file_that_changes_within_a_folder_is_seen(tmp_path: Path) -> None:
    slices = tmp_path / "series"
    slices.mkdir()
    for name in ("1.dcm", "2.dcm"):
        (slices / name).write_bytes(b"0123")
    case = Case("first", slices, None)
    before = seen_of(case)
    (slices / ".DS_Store").write_bytes(b"0")
    assert seen_of(case) == before, "no reader looks at it"
    (slices / "2.dcm").write_bytes(b"01234")
    assert seen_of(case) != before
    assert seen_of(Case("first", tmp_path / "missing", None))[2:] == ("",)
    (tmp_path / "a.mhd").write_bytes(b"head")
    (tmp_path / "a.raw").write_bytes(b"0123")
    head = Case("a", tmp_path / "a.mhd", None)
    before, content = seen_of(head), content_of(head)
    (tmp_path / "a.raw").write_bytes(b"01234")
    assert seen_of(head) != before and content_of(head) != content, "the voxels lie beside their header"


def test_a_choice_that_is_broken_off_is_made_at_the_next_start(finished: Any, tmp_path: Path) -> None:
    before = finished.settings.spec
    spec = dataclasses.replace(before, state_dir=str(tmp_path / "1"), listed=["north", "east"])
    assert len(worked(spec, before.state_dir, stop_after=3)) == 1, "it was stopped within the choice"
    again = dataclasses.replace(spec, state_dir=str(tmp_path / "2"))
    assert len(worked(again, spec.state_dir)) == 2


def test_before_the_end_the_next_validation_chooses(ward: Path, finished: Any, tmp_path: Path) -> None:
    trainer = trained(trainer_of(ward, tmp_path / "long", rounds=9))
    trainer.round_end.prediction.peers.put(finished.round_end.prediction.peers.held["south"])
    trained(trainer, 1)
    store = Checkpoints(tmp_path / "long" / "checkpoint", keep=2)
    save_checkpoint(store, trainer.state(), contract_of(trainer.settings, trainer.network_signature))
    old = trainer.settings.spec
    (ready,) = worked(
        dataclasses.replace(old, state_dir=str(tmp_path / "1"), listed=["north"]), old.state_dir
    )
    assert SOUTH not in ready.deployed_reason and "not validated since" in ready.deployed_reason


def test_a_checkpoint_that_does_not_say_by_which_cases_is_believed(finished: Any, tmp_path: Path) -> None:
    trainer = make_trainer(dataclasses.replace(finished.settings.spec, state_dir=str(tmp_path)))
    trainer.load({**finished.state(), "mix_chosen_by": None})
    assert not trainer.choice_is_stale


def test_nothing_is_chosen_again_where_nothing_has_changed(finished: Any, tmp_path: Path) -> None:
    before = finished.settings.spec
    spec = dataclasses.replace(before, state_dir=str(tmp_path))
    (ready,) = worked(spec, before.state_dir)
    assert (ready.deployed_reason, ready.dice_test) == (finished.mix.reason, finished.history.dice_test)
    assert not list((tmp_path / "predictions").glob("*")), "no case was predicted"


def test_between_validations_the_figure_is_of_the_new_choice(
    ward: Path, tmp_path: Path, finished: Any
) -> None:
    trainer = trained(trainer_of(ward, tmp_path, training={"validate_every_rounds": 2}), 3)
    before = trainer.history.dice_val
    trainer.round_end.prediction.peers.put(finished.round_end.prediction.peers.held["south"])
    scores = trainer.round_end.choose_again(3)
    assert trainer.history.dice_val == scores.mean != before
    assert [r for r, _ in trainer.history.dice_history] == [2], "no validation is added"


def test_a_choice_that_is_not_on_the_disk_is_told(
    finished: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = finished.settings.spec
    spec = dataclasses.replace(before, state_dir=str(tmp_path))
    tries: list[int] = []

    def full_once(*args: Any) -> Path:
        tries.append(len(tries))
        if len(tries) == 1:
            raise DiskFull("the disk is full")
        return save_checkpoint(*args)

    monkeypatch.setattr("gossipseg.learn.worker.session.save_checkpoint", full_once)
    _, lost, saved = worked(spec, before.state_dir, *2 * [protocol.HoldPersonal([])])
    assert lost.chosen and "not written" in lost.warning and not saved.warning
    assert set(load_deployment(spec).members) <= {"personal", "shared"}


# ---------------------------------------------------------------- under which settings


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("task.intensity", {"task": {"intensity": "ct_window"}}),
        ("task.labels", {"task": {"labels": {0: "background", 1: "other"}}}),
        ("task.spacing_mm", {"task": {"spacing_mm": (2.0, 2.0)}}),
        ("network.norm", {"network": {"norm": "group"}}),
        ("training.output", {"training": {"output": "sigmoid"}}),
    ],
)
def test_other_settings_than_those_of_the_training_are_refused(
    finished: Any, key: str, change: dict[str, Any]
) -> None:
    spec = finished.settings.spec
    changed = {name: {**getattr(spec, name), **values} for name, values in change.items()}
    with pytest.raises(ConfigError, match=key.replace(".", r"\.")):
        load_deployment(dataclasses.replace(spec, **changed))
    wider = {**spec.training, "window_overlap": 0.75, "learning_rate": 0.5}
    assert load_deployment(dataclasses.replace(spec, training=wider)).round == 2, "these mean nothing to it"


# ---------------------------------------------------------------- finite values


@pytest.mark.parametrize("who", ["personal", SOUTH])
def test_no_mask_is_made_of_what_is_not_finite(finished: Any, who: str) -> None:
    deployment = load_deployment(finished.settings.spec)
    case = case_of(finished.settings.spec)
    assert predict_labels(deployment, case)[0].any()
    member = deployment.net.members[list(deployment.members).index(who)]
    with torch.no_grad():
        next(iter(member.parameters())).fill_(float("inf"))
    for predict in (predict_labels, evaluate_case):
        with pytest.raises(
            LocalError, match=f"{case.files[0].name}: no mask is written: what {who} "
        ) as caught:
            predict(deployment, case)
        assert ("max_members: 2" in str(caught.value)) == who.startswith(OF_PEER)


def test_one_network_alone_is_named_too(finished: Any) -> None:
    deployment = load_deployment(finished.settings.spec, initial=True)
    with torch.no_grad():
        next(iter(deployment.net.parameters())).fill_(float("nan"))
    with pytest.raises(LocalError, match="what the initial model predicts"):
        predict_labels(deployment, case_of(finished.settings.spec))


def test_a_bundle_makes_no_mask_of_it_either(tmp_path: Path) -> None:
    from monai.data import MetaTensor

    net = torch.nn.Conv2d(1, 2, 1)
    torch.save(net.state_dict(), tmp_path / "model.pt")
    image = MetaTensor(torch.full((1, 4, 4), float("inf")), meta={"filename_or_obj": "scan.png"})
    made: list[Any] = []
    predictor = Predictor(
        [{"image": image}],
        net,
        lambda x, network: network(x),
        lambda item: made.append(item) or item,  # type: ignore[func-returns-value]
        str(tmp_path / "model.pt"),
        torch.device("cpu"),
    )
    with pytest.raises(LocalError, match=r"scan\.png: no mask is written"):
        predictor.run()
    assert not made


def test_a_network_of_its_own_with_values_beyond_all_measure_is_refused() -> None:
    weights = {"norm.weight": torch.tensor([1.0, LARGEST_VALUE]), "count": torch.tensor(10**9)}
    check_size(weights, "south")
    weights["norm.weight"][1] = -1.01 * LARGEST_VALUE
    with pytest.raises(PeerRefused) as caught:
        check_size(weights, "south")
    assert caught.value.reason == "norm_exploded" and "norm.weight" in caught.value.detail


# ---------------------------------------------------------------- kept predictions


def test_kept_predictions_take_no_more_than_their_room(tmp_path: Path) -> None:
    image, logits = torch.zeros(1, 4, 4), torch.zeros(2, 4, 4)
    kept = KeptPredictions(tmp_path, most_bytes=300)
    for case in ("a", "b", "c"):
        kept.put("model", case, image, logits)
    held = [case for case in ("a", "b", "c") if kept.get("model", case, image) is not None]
    other = torch.ones(1, 4, 4)
    kept.put("another model", "a", other, logits)
    assert kept.get("model", "a", image) is None, "the earlier image's prediction went with it"
    assert kept.get("another model", "a", other) is not None
    assert held == ["a"] and sum(f.stat().st_size for f in tmp_path.iterdir()) <= 300


# ---------------------------------------------------------------- images that show nothing


@pytest.mark.parametrize(
    ("image", "note"),
    [
        (np.full((24, 24), 7), "every voxel of the image has one value"),
        (
            np.stack([np.arange(576).reshape(24, 24) % 251, np.zeros((24, 24)), np.eye(24)], -1),
            "channel 2 of 3",
        ),
        (np.eye(24) * 200, None),
    ],
    ids=["nothing", "an empty channel", "something"],
)
def test_an_image_that_shows_nothing_is_told_of(tmp_path: Path, image: np.ndarray, note: str | None) -> None:
    """A mask comes out all the same: who reads it must know."""
    file = tmp_path / "scan.png"
    Image.fromarray(image.astype(np.uint8)).save(file)
    task = TaskParams("t", 1 if image.ndim == 2 else 3, {0: "background", 1: "x"})
    _, volume = load_image(Case("scan", file, None), task)
    said = "; ".join(volume.notes)
    assert note in said if note is not None else "shows nothing" not in said
