"""L_seg: region overlap plus cross-entropy from MONAI, with deep supervision.

All losses are computed in float32.

Overlap is measured over foreground channels: over the batch in 2-D, over each item in 3-D, smooth 1.
A channel that the label does not hold there counts in the cross-entropy only. Where a network has heads of
deep supervision the loss is 0.4·main + 0.6·mean(heads), each head against the label at its own resolution
(SA-Net's published weights; docs/design/equations.md §1).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from monai.losses import DiceLoss, FocalLoss, GeneralizedDiceLoss
from torch import Tensor
from torch.nn import functional as F

from gossipseg.algos.base import Outputs, SegmentationLoss
from gossipseg.learn.data.labels import IGNORE
from gossipseg.learn.params import TrainingParams

MAIN_WEIGHT = 0.4
HEADS_WEIGHT = 0.6

LossName = Literal["dice_ce", "dice_focal", "generalized_dice"]
Output = Literal["softmax", "sigmoid"]
_Term = Callable[[Tensor, Tensor], Tensor]


def make_target(label: Tensor, output: Output, classes: int) -> Tensor:
    """What algorithms get as target, from label values (B, 1, *spatial).

    softmax: (B, 1, *spatial) int64 indices. sigmoid: (B, classes−1, *spatial) float 0/1, one channel a
    foreground label. `classes` counts the background. Where the label says IGNORE the target is negative.
    """
    if output == "softmax":
        return torch.where(label == IGNORE, -1, label.long())
    values = torch.arange(1, classes, device=label.device, dtype=label.dtype)
    channels = (label == values.view(1, -1, *[1] * (label.dim() - 2))).float()
    return torch.where(label == IGNORE, -1.0, channels)


def segmentation_loss(training: TrainingParams, spatial_dims: int) -> SegmentationLoss:
    """L_seg of (Outputs, target as make_target gives it): a float32 scalar. Voxels of which the target knows
    nothing have no part in it."""
    base = _base_loss(training.loss, training.output, batch=spatial_dims == 2)

    def loss(outputs: Outputs, target: Tensor) -> Tensor:
        with torch.autocast(outputs.logits.device.type, enabled=False):
            main = base(outputs.logits.float(), target)
            if not outputs.aux:
                return main
            heads = [base(head.float(), _resized(target, head)) for head in outputs.aux]
            return MAIN_WEIGHT * main + HEADS_WEIGHT * torch.stack(heads).mean()

    return loss


def _resized(target: Tensor, head: Tensor) -> Tensor:
    """The target at a head's resolution, nearest voxel: far cheaper than bringing the head to full size."""
    if target.shape[2:] == head.shape[2:]:
        return target
    return F.interpolate(target.float(), size=head.shape[2:], mode="nearest").to(target.dtype)


def _base_loss(name: LossName, output: Output, batch: bool) -> _Term:
    region = _generalized_dice(output) if name == "generalized_dice" else _dice(output, batch)
    voxel = _focal(output) if name == "dice_focal" else _cross_entropy(output)
    return lambda logits, target: region(logits, target) + voxel(logits, target)


def _foreground(logits: Tensor, target: Tensor, output: Output) -> tuple[Tensor, Tensor]:
    """Probabilities and 0/1 targets of the foreground channels, both (B, C, *spatial); 0 in both where
    nothing is known, so that no overlap counts there."""
    if output == "sigmoid":
        p, y = torch.sigmoid(logits), target
    else:
        values = torch.arange(1, logits.shape[1], device=target.device)
        p = torch.softmax(logits, 1)[:, 1:]
        y = (target == values.view(1, -1, *[1] * (target.dim() - 2))).float()
    known = target >= 0
    return torch.where(known, p, 0.0), torch.where(known, y, 0.0)


def _dice(output: Output, batch: bool) -> _Term:
    dice = DiceLoss(smooth_nr=1.0, smooth_dr=1.0, batch=batch, reduction="none")

    def term(logits: Tensor, target: Tensor) -> Tensor:
        p, y = _foreground(logits, target, output)
        per_channel = dice(p, y).flatten()
        axes = [0, *range(2, y.dim())] if batch else [*range(2, y.dim())]
        present = (y.sum(axes) > 0).flatten().to(p.dtype)
        total: Tensor = (per_channel * present).sum() / present.sum().clamp(min=1.0)
        return total

    return term


def _generalized_dice(output: Output) -> _Term:
    # Weights 1/volume, not 1/volume²: with the latter a smoothing of 1 would drown the overlap.
    dice = GeneralizedDiceLoss(w_type="simple", smooth_nr=1.0, smooth_dr=1.0, batch=True)

    def term(logits: Tensor, target: Tensor) -> Tensor:
        p, y = _foreground(logits, target, output)
        present = y.sum([0, *range(2, y.dim())]) > 0
        if not bool(present.any()):
            return logits.new_zeros(())
        loss: Tensor = dice(p[:, present], y[:, present])
        return loss

    return term


def _cross_entropy(output: Output) -> _Term:
    def sigmoid(logits: Tensor, target: Tensor) -> Tensor:
        each = F.binary_cross_entropy_with_logits(logits, target.clamp(min=0), reduction="none")
        return _mean_of_known(each, target)

    def softmax(logits: Tensor, target: Tensor) -> Tensor:
        each = F.cross_entropy(logits, target[:, 0], ignore_index=-1, reduction="none")
        return _mean_of_known(each[:, None], target)

    return sigmoid if output == "sigmoid" else softmax


def _focal(output: Output) -> _Term:
    softmax = output == "softmax"
    focal = FocalLoss(gamma=2.0, use_softmax=softmax, to_onehot_y=softmax, reduction="none")

    def term(logits: Tensor, target: Tensor) -> Tensor:
        return _mean_of_known(focal(logits, target.clamp(min=0)), target)

    return term


def _mean_of_known(each: Tensor, target: Tensor) -> Tensor:
    """The mean over the elements of which the target knows something; 0 where there is none.

    `target`: of the shape of `each` (B, C, *spatial), or with one channel for all.
    """
    known = (target >= 0).expand_as(each)
    return torch.where(known, each, 0.0).sum() / known.sum().clamp(min=1)
