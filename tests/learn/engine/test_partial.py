"""Sites that annotate only some of the classes, and voxels of which nobody says what they are."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gossipseg.algos.base import Algorithm, Outputs, StepContext
from gossipseg.algos.fedoap import boundary
from gossipseg.algos.gcml import mutual_terms
from gossipseg.algos.params import GcmlParams
from gossipseg.errors import LocalError
from gossipseg.learn.data.labels import IGNORE
from gossipseg.learn.data.patches import foreground_voxels
from gossipseg.learn.deploy.deployment import load_deployment, must_segment
from gossipseg.learn.engine.checkpoint import contract_of, save_checkpoint
from gossipseg.learn.engine.losses import make_target, segmentation_loss
from gossipseg.learn.engine.partial import Annotated
from gossipseg.learn.params import TrainingParams
from gossipseg.store import Checkpoints
from tests.learn.harness import make_spec, make_trainer, write_png_site

LOSSES = ("dice_ce", "dice_focal", "generalized_dice")
OUTPUTS = ("softmax", "sigmoid")


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def channels(output: str, classes: int) -> int:
    return classes - (output == "sigmoid")


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("dims", [2, 3])
def test_an_ignored_voxel_has_no_part_in_any_loss(loss: str, output: str, dims: int) -> None:
    training = TrainingParams(loss=loss, output=output)  # type: ignore[arg-type]
    label = torch.randint(0, 3, (2, 1, *[6] * dims), generator=torch.Generator().manual_seed(1))
    label[:, :, :2] = IGNORE
    z = seeded(2, channels(output, 3), *[6] * dims).requires_grad_()
    head = seeded(2, channels(output, 3), *[3] * dims, seed=2).requires_grad_()
    target = make_target(label, training.output, 3)
    value = segmentation_loss(training, dims)(Outputs(z, (head,)), target)
    value.backward()
    assert bool(value.detach().isfinite()) and z.grad is not None and head.grad is not None
    assert z.grad[:, :, :2].abs().max() == 0 and z.grad[:, :, 2:].abs().min() > 0
    assert head.grad[:, :, :1].abs().max() == 0
    other = z.detach().clone()
    other[:, :, :2] = 7.0
    again = segmentation_loss(training, dims)(Outputs(other, (head.detach(),)), target)
    assert torch.equal(again, value.detach())


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("output", OUTPUTS)
def test_a_batch_of_which_nothing_is_known_has_a_loss_of_zero(loss: str, output: str) -> None:
    training = TrainingParams(loss=loss, output=output)  # type: ignore[arg-type]
    z = seeded(1, channels(output, 2), 4, 4).requires_grad_()
    target = make_target(torch.full((1, 1, 4, 4), IGNORE), training.output, 2)
    value = segmentation_loss(training, 2)(Outputs(z), target)
    value.backward()
    assert float(value.detach()) == 0 and z.grad is not None and z.grad.abs().max() == 0


@pytest.mark.parametrize("output", OUTPUTS)
def test_ignored_voxels_have_no_part_in_mutual_learning_or_perturbation(output: str) -> None:
    label = torch.randint(0, 3, (1, 1, 6, 6), generator=torch.Generator().manual_seed(1))
    label[:, :, :3] = IGNORE
    target = make_target(label, output, 3)  # type: ignore[arg-type]
    m, n = (seeded(1, channels(output, 3), 6, 6, seed=s) for s in (3, 4))
    m = m.requires_grad_()
    terms = mutual_terms(Outputs(m), Outputs(n), target, output, GcmlParams())  # type: ignore[arg-type]
    (terms.l_pos + terms.l_neg).backward()
    assert m.grad is not None and m.grad[:, :, :3].abs().max() == 0 and m.grad.abs().max() > 0
    assert not boundary(n, target, output, 0.1)[:, :, :3].any()  # type: ignore[arg-type]


def test_patches_are_centred_on_no_ignored_voxel() -> None:
    label = torch.tensor([[[0, 1, IGNORE], [2, IGNORE, 0]]], dtype=torch.uint8)
    assert {k: v.tolist() for k, v in foreground_voxels(label).items()} == {1: [1], 2: [3]}


# ---------------------------------------------------------------- classes that are not annotated


@pytest.mark.parametrize("loss", LOSSES)
def test_background_says_nothing_of_a_class_that_is_not_annotated(loss: str) -> None:
    """By hand: the loss is that of a network with one channel of p(background) + p(other)."""
    training = TrainingParams(loss=loss)  # type: ignore[arg-type]
    annotated = Annotated(3, [1], training)
    z, label = (
        seeded(2, 3, 5, 5),
        torch.randint(0, 2, (2, 1, 5, 5), generator=torch.Generator().manual_seed(2)),
    )
    p = torch.softmax(z, 1)
    merged = torch.stack([p[:, 0] + p[:, 2], p[:, 1]], 1).log()
    target = make_target(annotated.label(label), "softmax", annotated.classes)
    loss_of = segmentation_loss(training, 2)
    assert float(loss_of(annotated.outputs(Outputs(z)), target)) == pytest.approx(
        float(loss_of(Outputs(merged), make_target(label, "softmax", 2)))
    )


def test_voxels_that_the_model_gives_to_such_a_class_are_left_to_it() -> None:
    """Where it says "class 2" and the label "background", nothing is to be learned; "class 1" is wrong."""
    training = TrainingParams()
    annotated = Annotated(3, [1], training)
    z = torch.tensor([-9.0, -9.0, 9.0]).view(1, 3, 1, 1).expand(1, 3, 4, 4).clone().requires_grad_()
    target = make_target(annotated.label(torch.zeros(1, 1, 4, 4, dtype=torch.long)), "softmax", 2)
    segmentation_loss(training, 2)(annotated.outputs(Outputs(z)), target).backward()
    assert z.grad is not None and z.grad.abs().max() < 1e-6


def test_sigmoid_channels_of_other_classes_are_left_out() -> None:
    annotated = Annotated(4, [3, 1], TrainingParams(output="sigmoid"))
    z = seeded(1, 3, 4, 4)
    seen = annotated.outputs(Outputs(z, (z,), z))
    assert torch.equal(seen.logits, z[:, [0, 2]]) and torch.equal(seen.aux[0], seen.logits)
    assert seen.clean is not None and torch.equal(seen.clean, seen.logits)
    label = torch.tensor([[[[0, 1, 3, IGNORE]]]])
    assert annotated.label(label).tolist() == [[[[0, 1, 2, IGNORE]]]]


def test_where_all_classes_are_annotated_nothing_changes() -> None:
    annotated = Annotated(3, [1, 2], TrainingParams())
    outputs, label = Outputs(seeded(1, 3, 2, 2)), torch.tensor([[[[0, 1], [2, 2]]]])
    assert annotated.outputs(outputs) is outputs and annotated.label(label) is label


# ---------------------------------------------------------------- a site's rounds


LABELS = {0: "background", 1: "disc", 2: "frame"}


def with_frame(folder: Path, *, annotated: bool) -> Path:
    """Pictures with a bright disc (1) and a dark frame (2); the frame is in the masks or not."""
    from PIL import Image

    write_png_site(folder, cases=8)
    for i in range(8):
        files = folder / "images" / f"case{i}.png", folder / "masks" / f"case{i}.png"
        image, mask = (np.array(Image.open(f)) for f in files)
        frame = np.ones(mask.shape, bool)
        frame[4:-4, 4:-4] = False
        image[frame & (mask == 0)] = 5
        if annotated:
            mask[frame & (mask == 0)] = 2
        for file, array in zip(files, (image, mask), strict=True):
            Image.fromarray(array).save(file)
    return folder


def predicted(trainer: object, net: nn.Module | None = None, *, frame: bool = True) -> np.ndarray:
    """Share of the frame, or of all that is none, that the model calls frame, by case of validation.

    `net`: None is the shared model.
    """
    from gossipseg.learn.evaluation.evaluate import labels_of, predict_logits

    model = net or copy.deepcopy(trainer.model_state.model)  # type: ignore[attr-defined]
    settings, site = trainer.settings, trainer.site  # type: ignore[attr-defined]
    shares = []
    for item in site._data.items("validation"):
        got = labels_of(
            predict_logits(model, item.image, settings.task, settings.training, "cpu"), settings.training
        )
        chosen = torch.zeros(got.shape, dtype=torch.bool)
        if frame:
            chosen[:3] = chosen[-3:] = True
        else:
            chosen[6:-6, 6:-6] = True
            chosen &= item.truth != 1
        shares.append(float((got[chosen] == 2).float().mean()))
    return np.array(shares)


@pytest.mark.slow
def test_a_class_is_not_pushed_to_background_by_a_site_that_does_not_annotate_it(tmp_path: Path) -> None:
    """One model learns both classes; a site that annotates the disc alone then trains it on."""
    from gossipseg.learn import protocol as jobs

    training = {"steps_per_round": 60, "batch_size": 4, "augment": "none", "learning_rate": 0.01}
    full = with_frame(tmp_path / "full", annotated=True)
    partly = with_frame(tmp_path / "partly", annotated=False)

    def trainer(data: Path, state: str, **more: object) -> object:
        spec = make_spec(data, tmp_path / state, training=training)
        spec.task["labels"] = LABELS
        spec.data.update(more)
        return make_trainer(spec)

    first = trainer(full, "first")
    first.run_round(jobs.StartRound(1))  # type: ignore[attr-defined]
    assert predicted(first).mean() > 0.85
    weights = first.model_state.model.state_dict()  # type: ignore[attr-defined]
    shares = {}
    for name, more in {"knows": {"annotated_labels": [1]}, "does not": {}}.items():
        then = trainer(partly, name, **more)
        then.model_state.model.load_state_dict(weights)  # type: ignore[attr-defined]
        then.run_round(jobs.StartRound(1))  # type: ignore[attr-defined]
        shares[name] = predicted(then)
    assert shares["knows"].mean() > 0.85, shares
    assert shares["does not"].mean() < 0.1, shares  # what the key is for


@pytest.mark.slow
def test_a_personal_model_that_has_not_learned_a_class_does_not_predict(tmp_path: Path) -> None:
    """Where it puts a class that its site does not annotate means nothing, and no score there shows it."""
    from gossipseg.learn import protocol as jobs

    training = {"steps_per_round": 60, "batch_size": 4, "augment": "none", "learning_rate": 0.01}

    def trainer(data: Path, state: str, personal: str, **more: object) -> Any:
        spec = make_spec(data, tmp_path / state, training={**training, "personal": personal})
        spec.task["labels"] = LABELS
        spec.data.update(more)
        return make_trainer(spec)

    shared = trainer(with_frame(tmp_path / "full", annotated=True), "shared", "none")
    shared.run_round(jobs.StartRound(1))
    site = trainer(with_frame(tmp_path / "partly", annotated=False), "site", "always", annotated_labels=[1])
    assert site.mix.weights == {"shared": 1.0}, "before the first validation, too"
    assert (site.personal_refusal, site.takes_personal) == ("partial_labels", False)
    site.run_round(jobs.StartRound(1))
    site.model_state.ema.load_state_dict(shared.model_state.ema.state_dict())  # what the others taught
    done = site.choose_again()
    assert "does not annotate all classes" in done.deployed_reason and done.deployed == "shared"
    assert predicted(site, site.deployed).mean() > 0.8
    elsewhere = predicted(site, site.deployed, frame=False).mean()
    assert elsewhere < 0.2, elsewhere


def test_a_mix_of_before_a_class_was_left_out_is_not_gone_on_with(tmp_path: Path) -> None:
    spec = make_spec(with_frame(tmp_path / "data", annotated=True), tmp_path / "state",
                     training={"personal": "always"})  # fmt: skip
    spec.task["labels"] = LABELS
    state = make_trainer(spec).state()
    spec.data["annotated_labels"] = [1]
    again = make_trainer(spec)
    again.load(state)
    assert again.mix is not None and again.mix.weights == {"shared": 1.0}
    assert again.round_end.prediction is not None and again.round_end.prediction.stale


def test_before_anybody_has_taught_the_other_classes_nothing_is_predicted(tmp_path: Path) -> None:
    spec = make_spec(with_frame(tmp_path / "data", annotated=False), tmp_path / "state")
    spec.task["labels"] = LABELS
    spec.data["annotated_labels"] = [1]
    trainer = make_trainer(spec)
    store = Checkpoints(tmp_path / "state" / "checkpoint", keep=2)
    contract = contract_of(trainer.settings, trainer.network_signature)
    save_checkpoint(store, trainer.state(), contract)
    with pytest.raises(LocalError, match="met no other site yet"):
        must_segment(load_deployment(spec))
    for met in ({"first_exchange": 1}, {"last_global": "ab"}):
        state = trainer.state()
        save_checkpoint(store, {**state, "history": {**state["history"], **met}}, contract)
        must_segment(load_deployment(spec))


def test_step_context_of_a_plain_algorithm_is_enough() -> None:
    training = TrainingParams()
    annotated = Annotated(3, [2], training)
    z, label = seeded(1, 3, 4, 4), torch.tensor([2, 0]).repeat(8).view(1, 1, 4, 4)
    context = StepContext("softmax", 0, segmentation_loss(training, 2))
    target = make_target(annotated.label(label), "softmax", annotated.classes)
    losses = Algorithm().losses({"local": annotated.outputs(Outputs(z))}, target, context)
    assert torch.isfinite(losses.total["local"])
