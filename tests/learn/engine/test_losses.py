"""L_seg against values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from gossipseg.algos.base import Outputs
from gossipseg.learn.engine.losses import make_target, segmentation_loss
from gossipseg.learn.params import TrainingParams

LOSSES = ("dice_ce", "dice_focal", "generalized_dice")


def loss_of(logits: torch.Tensor, label: torch.Tensor, *, dims: int = 2, **settings: object) -> float:
    training = TrainingParams(**settings)  # type: ignore[arg-type]
    classes = logits.shape[1] + (training.output == "sigmoid")
    target = make_target(label, training.output, classes)
    return float(segmentation_loss(training, dims)(Outputs(logits), target))


def test_softmax_dice_ce_by_hand() -> None:
    # One image of 4 voxels, two of them foreground, every probability a half.
    logits, label = torch.zeros(1, 2, 2, 2), torch.tensor([[[[0, 1], [0, 1]]]])
    dice = 1 - (2 * 1.0 + 1) / (2 + 2 + 1)  # Σpy = 1, Σp = 2, Σy = 2, smooth 1
    assert loss_of(logits, label) == pytest.approx(dice + math.log(2))


def test_two_dimensional_dice_is_over_the_batch_and_three_dimensional_over_each_item() -> None:
    # Item 0 is all foreground, item 1 none: over the batch the channel is present, in item 1 it is not.
    label2 = torch.stack([torch.ones(1, 2, 2), torch.zeros(1, 2, 2)]).long()
    over_batch = 1 - (2 * 2.0 + 1) / (4 + 4 + 1)
    assert loss_of(torch.zeros(2, 2, 2, 2), label2) == pytest.approx(over_batch + math.log(2))
    only_item_0 = 1 - (2 * 2.0 + 1) / (2 + 4 + 1)
    by_item = loss_of(torch.zeros(2, 2, 2, 2, 1), label2[..., None], dims=3)
    assert by_item == pytest.approx(only_item_0 + math.log(2))


@pytest.mark.parametrize("loss", ("dice_ce", "generalized_dice"))
@pytest.mark.parametrize("output", ("softmax", "sigmoid"))
def test_a_channel_absent_from_the_batch_counts_in_cross_entropy_only(loss: str, output: str) -> None:
    classes = 3
    logits = torch.randn(2, classes - (output == "sigmoid"), 8, 8, generator=torch.Generator().manual_seed(0))
    label = torch.zeros(2, 1, 8, 8, dtype=torch.long)
    empty = loss_of(logits, label, loss=loss, output=output)
    target = make_target(label, output, classes)  # type: ignore[arg-type]
    voxel_terms = {
        "softmax": lambda: F.cross_entropy(logits, target[:, 0]),
        "sigmoid": lambda: F.binary_cross_entropy_with_logits(logits, target),
    }
    assert empty == pytest.approx(float(voxel_terms[output]()))


def test_overlap_does_not_see_an_absent_channel() -> None:
    # Sigmoid channels are independent: moving the absent one changes its own cross-entropy only.
    label = torch.zeros(1, 1, 4, 4, dtype=torch.long)
    label[..., :2] = 1
    low, high = torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 4, 4)
    high[:, 1] = 3.0
    change = loss_of(high, label, output="sigmoid") - loss_of(low, label, output="sigmoid")
    assert change == pytest.approx((math.log1p(math.exp(3.0)) - math.log(2)) / 2, rel=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("output", ("softmax", "sigmoid"))
def test_a_right_answer_costs_less_than_a_wrong_one(loss: str, output: str) -> None:
    label = torch.zeros(2, 1, 8, 8, dtype=torch.long)
    label[:, :, 2:6, 2:6] = 1
    target = make_target(label, output, 2).float()  # type: ignore[arg-type]
    right = 8 * (2 * (torch.cat([1 - target, target], 1) if output == "softmax" else target) - 1)
    good, bad = (loss_of(z, label, loss=loss, output=output) for z in (right, -right))
    assert good < 0.1 < bad


def test_deep_supervision_weights() -> None:
    training = TrainingParams()
    loss = segmentation_loss(training, 2)
    g = torch.Generator().manual_seed(1)
    main, half, quarter = (torch.randn(2, 2, n, n, generator=g) for n in (8, 4, 2))
    label = (torch.rand(2, 1, 8, 8, generator=g) > 0.5).long()
    alone = [
        loss(Outputs(z), label[:, :, :: 8 // n, :: 8 // n]) for z, n in ((main, 8), (half, 4), (quarter, 2))
    ]
    both = loss(Outputs(main, (half, quarter)), label)
    assert torch.allclose(both, 0.4 * alone[0] + 0.6 * (alone[1] + alone[2]) / 2)


def test_losses_are_float32_under_autocast() -> None:
    logits = torch.randn(1, 2, 8, 8).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = segmentation_loss(TrainingParams(), 2)(Outputs(logits), torch.zeros(1, 1, 8, 8).long())
    assert value.dtype is torch.float32


def test_sigmoid_targets_have_a_channel_for_each_foreground_label() -> None:
    label = torch.tensor([[[[0, 1, 2]]]])
    assert make_target(label, "sigmoid", 3).tolist() == [[[[0, 1, 0]], [[0, 0, 1]]]]
    assert make_target(label, "softmax", 3).dtype is torch.int64
