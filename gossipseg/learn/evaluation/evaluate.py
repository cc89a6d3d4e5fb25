"""What a network predicts for whole images, and how good that is."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import torch
from monai.inferers import sliding_window_inference
from torch import Tensor, nn

from gossipseg.learn.data.dataset import Item
from gossipseg.learn.data.transforms import Grid
from gossipseg.learn.evaluation.mixture import Mixture, mixed
from gossipseg.learn.evaluation.scoring import (
    ByClass,
    CaseScore,
    Scores,
    foreground_names,
    mean_of,
    score_case,
    summarise,
)
from gossipseg.learn.params import TaskParams, TrainingParams

__all__ = [
    "ByClass",
    "CaseScore",
    "Scores",
    "foreground_names",
    "labels_of",
    "labels_on",
    "mean_of",
    "predict_logits",
    "score",
    "score_case",
    "summarise",
]

WINDOWS_AT_ONCE = 8
STITCHED_ON_DEVICE_BYTES = 1 << 29
OnProgress = Callable[[float], None]


def predict_logits(
    net: nn.Module, image: Tensor, task: TaskParams, training: TrainingParams, device: torch.device | str
) -> Tensor:
    """Logits (K, *spatial) float32 on the CPU of an image (C, *spatial): overlapping windows with
    Gaussian weights.

    The network is put into evaluation mode for it and left in the mode it was in. The members of a Mixture
    predict the whole image one after the other.
    """
    if isinstance(net, Mixture):
        members = (predict_logits(member, image, task, training, device) for member in net.members)
        return mixed(members, net.weights, net.output)
    was_training = net.training
    net.eval()
    try:
        with torch.inference_mode():
            logits = sliding_window_inference(
                image[None],
                roi_size=task.patch_size,
                sw_batch_size=WINDOWS_AT_ONCE,
                predictor=lambda window: _logits(net(window)),
                overlap=training.window_overlap,
                mode="gaussian",
                sw_device=device,
                device=_stitch_device(image, task, device),
            )
    finally:
        net.train(was_training)
    assert isinstance(logits, Tensor)
    return logits[0].cpu().clone()


def _stitch_device(image: Tensor, task: TaskParams, device: torch.device | str) -> torch.device | str:
    """Where windows are added up: beside the network; in main memory for volumes that might fill a GPU."""
    logits_bytes = 4 * len(task.labels) * image[0].numel()
    return device if logits_bytes < STITCHED_ON_DEVICE_BYTES else "cpu"


def _logits(output: Any) -> Tensor:
    logits = getattr(output, "logits", output)
    assert isinstance(logits, Tensor)
    return logits.float()


def labels_of(logits: Tensor, training: TrainingParams) -> Tensor:
    """Label values (*spatial) uint8 of logits (K, *spatial).

    softmax: the largest channel. sigmoid: the most probable foreground channel where it passes ½, else 0.
    """
    if training.output == "softmax":
        return logits.max(0).indices.to(torch.uint8)  # as argmax(0), and eight times as fast on a CPU
    top, index = logits.max(0)
    return torch.where(top > 0, index + 1, 0).to(torch.uint8)


def labels_on(grid: Grid, logits: Tensor, training: TrainingParams) -> Tensor:
    """Label values uint8 on a file's own grid, of logits (K, *task grid): linear in the logits."""
    out = torch.empty(grid.shape, dtype=torch.uint8)
    for first, end, part in grid.slabs(logits):
        out[first:end] = labels_of(part, training)
    return out


def score(
    net: nn.Module,
    cases: Sequence[Item] | Iterable[Item],
    task: TaskParams,
    training: TrainingParams,
    device: torch.device | str,
    on_progress: OnProgress = lambda fraction: None,
    *,
    total: int | None = None,
    annotated: Collection[int] | None = None,
) -> Scores:
    """Mean Dice of the network over labelled cases, on each label's own grid; cases without a label are
    skipped. `annotated`: the label values that this site's labels tell of; None is all."""
    total = total if total is not None else len(cases) if isinstance(cases, Sequence) else None
    found = []
    for done, item in enumerate(cases):
        if item.label is not None:
            logits = predict_logits(net, item.image, task, training, device)
            found.append(score_item(item, item.label, logits, task, training, annotated))
        on_progress((done + 1) / total if total else 0.0)
    return summarise(found, task)


def score_item(
    item: Item,
    label: Tensor,
    logits: Tensor,
    task: TaskParams,
    training: TrainingParams,
    annotated: Collection[int] | None,
) -> CaseScore:
    """Dice of a case on the grid of its truth; without one, on the task's. `label`: (1, *task grid)."""
    if item.truth is None or item.grid is None:
        predicted, truth, spacing = labels_of(logits, training), label[0], item.spacing_mm
    else:
        predicted, truth, spacing = labels_on(item.grid, logits, training), item.truth, item.grid.spacing_mm
    return score_case(item.case.id, predicted, truth, task, spacing_mm=spacing, annotated=annotated)
