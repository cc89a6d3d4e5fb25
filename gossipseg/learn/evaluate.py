"""What a network predicts for whole images, and how good that is.

What belongs here: sliding-window inference, Dice and HD95 per case and class. What must not: training, files,
the command line (report.py).

Dice of a class that a case's label does not hold is left out of every mean; the volume predicted there by
mistake is given beside it. Averages: a case's mean is over its classes, a class's mean over its cases, the
overall mean over the classes' means.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from monai.inferers import sliding_window_inference
from monai.metrics import compute_dice, compute_hausdorff_distance
from torch import Tensor, nn

from gossipseg.learn.data import Item
from gossipseg.learn.params import TaskParams, TrainingParams
from gossipseg.learn.transforms import Grid

WINDOWS_AT_ONCE = 8
STITCHED_ON_DEVICE_BYTES = 1 << 29
OnProgress = Callable[[float], None]
ByClass = Mapping[str, float | None]


@dataclass(frozen=True, slots=True)
class CaseScore:
    """One case. Keys are the names of the foreground labels; None: the label does not hold that class."""

    id: str
    dice: ByClass
    false_positive_voxels: Mapping[str, int]
    """Voxels predicted as a class that the label does not hold."""
    hd95: ByClass = field(default_factory=dict)
    """mm, or pixels without a voxel size; None where label or prediction lacks the class."""

    @property
    def mean(self) -> float | None:
        """Mean Dice over the classes that the label holds."""
        return mean_of(self.dice.values())


@dataclass(frozen=True, slots=True)
class Scores:
    """Of a split. `mean` is None where no case holds any foreground."""

    mean: float | None
    per_class: ByClass
    per_case: tuple[CaseScore, ...]
    hd95: ByClass = field(default_factory=dict)


def mean_of(values: Iterable[float | None]) -> float | None:
    """The mean of what is not None; None where nothing is left."""
    known = [v for v in values if v is not None]
    return float(np.mean(known)) if known else None


def predict_logits(
    net: nn.Module, image: Tensor, task: TaskParams, training: TrainingParams, device: torch.device | str
) -> Tensor:
    """Logits (K, *spatial) float32 on the CPU of an image (C, *spatial): overlapping windows with
    Gaussian weights.

    The network is put into evaluation mode for it and left in the mode it was in.
    """
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
        return logits.argmax(0).to(torch.uint8)
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
) -> Scores:
    """Mean Dice of the network over labelled cases, on the task's grid; cases without a label are skipped."""
    total = total if total is not None else len(cases) if isinstance(cases, Sequence) else None
    found = []
    for done, item in enumerate(cases):
        if item.label is not None:
            logits = predict_logits(net, item.image, task, training, device)
            found.append(score_case(item.case.id, labels_of(logits, training), item.label[0], task))
        on_progress((done + 1) / total if total else 0.0)
    return summarise(found, task)


def score_case(
    case_id: str,
    predicted: Tensor,
    label: Tensor,
    task: TaskParams,
    *,
    hd95: bool = False,
    spacing_mm: tuple[float, ...] | None = None,
) -> CaseScore:
    """Dice (and HD95) of one case. `predicted`, `label`: (*spatial) label values."""
    names = foreground_names(task)
    guess, truth = _one_hot(predicted, names), _one_hot(label, names)
    dice = compute_dice(guess, truth, include_background=True, ignore_empty=True)[0]
    counted = {n: _or_none(float(d)) for n, d in zip(names.values(), dice, strict=True)}
    wrong = {name: int(guess[0, i].sum()) for i, name in enumerate(names.values()) if counted[name] is None}
    distances = _hd95(guess, truth, names, spacing_mm) if hd95 else {}
    return CaseScore(case_id, counted, wrong, distances)


def summarise(cases: Sequence[CaseScore], task: TaskParams) -> Scores:
    """Means over cases and classes."""
    names = foreground_names(task).values()
    per_class = {n: mean_of(c.dice[n] for c in cases) for n in names}
    distances = {n: mean_of(c.hd95.get(n) for c in cases) for n in names}
    return Scores(mean_of(per_class.values()), per_class, tuple(cases), distances)


def foreground_names(task: TaskParams) -> dict[int, str]:
    """Label value → name, without the background."""
    return {value: task.labels[value] for value in sorted(task.labels) if value != 0}


def _one_hot(labels: Tensor, names: Mapping[int, str]) -> Tensor:
    """(*spatial) label values → (1, K−1, *spatial) float32 of the foreground classes."""
    return torch.stack([labels == value for value in names])[None].float()


def _or_none(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _hd95(
    guess: Tensor, truth: Tensor, names: Mapping[int, str], spacing_mm: tuple[float, ...] | None
) -> ByClass:
    """95th percentile of the surface distance; only asked for where both surfaces exist."""
    out: dict[str, float | None] = {}
    for i, name in enumerate(names.values()):
        a, b = guess[:, i : i + 1], truth[:, i : i + 1]
        if not (a.any() and b.any()):
            out[name] = None
            continue
        with warnings.catch_warnings():
            # MONAI 1.5–1.6 calls its own get_mask_edges with an argument it has deprecated.
            warnings.filterwarnings("ignore", message=".*always_return_as_numpy.*", category=FutureWarning)
            distance = compute_hausdorff_distance(
                a, b, include_background=True, percentile=95, spacing=spacing_mm
            )
        out[name] = _or_none(float(distance))
    return out


if __name__ == "__main__":
    import sys

    from gossipseg.learn.report import main

    sys.exit(main())
