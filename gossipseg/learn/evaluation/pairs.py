"""The personal and the shared model on the same cases: each alone, and mixed by several shares."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from gossipseg.learn.data.dataset import Item
from gossipseg.learn.evaluation.evaluate import OnProgress, predict_logits, score_item
from gossipseg.learn.evaluation.few_windows import few_windows
from gossipseg.learn.evaluation.mixture import mixed
from gossipseg.learn.evaluation.scoring import CaseScore
from gossipseg.learn.params import TaskParams, TrainingParams

Loss = Callable[[Tensor, Tensor], float | None]
"""NLL of a case, from logits (K, *spatial) and label values (1, *spatial)."""
Predict = Callable[[nn.Module, Item], Tensor]
"""Logits (K, *spatial) of a case."""
Seen = Callable[[Item, Tensor, Tensor, Tensor], None]
"""Called for each labelled case with it, its label, and the logits of the personal and the shared model."""


def losses_of(
    net: nn.Module,
    cases: Iterable[Item],
    task: TaskParams,
    training: TrainingParams,
    device: torch.device | str,
    *,
    loss: Loss,
    on_progress: OnProgress = lambda fraction: None,
    total: int = 0,
) -> list[float | None]:
    """NLL of one model by labelled case: the mean over a few windows of it (few_windows.py)."""
    found = []
    for done, item in enumerate(cases):
        if item.label is not None:
            each = []
            for window in few_windows(item.label[0].numpy(), task.patch_size):
                image, label = (whole[(slice(None), *window)] for whole in (item.image, item.label))
                each.append(loss(predict_logits(net, image, task, training, device), label))
            told = [value for value in each if value is not None]
            found.append(statistics.fmean(told) if told else None)
        on_progress((done + 1) / total if total else 0.0)
    return found


@dataclass(slots=True)
class PairScores:
    """Scores by case, all in one order."""

    losses: dict[float, list[float | None]]
    """Share of the personal model → NLL of the mix."""
    mixes: dict[float, list[CaseScore]]
    """Share of the personal model → scores of the mix."""
    personal: list[CaseScore] = field(default_factory=list)
    shared: list[CaseScore] = field(default_factory=list)


def score_pair(
    personal: nn.Module,
    shared: nn.Module,
    cases: Iterable[Item],
    task: TaskParams,
    training: TrainingParams,
    device: torch.device | str,
    *,
    compared: Collection[float],
    deployable: Collection[float],
    loss: Loss,
    annotated: Collection[int] | None = None,
    on_progress: OnProgress = lambda fraction: None,
    total: int = 0,
    predict: Predict | None = None,
    seen: Seen = lambda item, label, p, t: None,
) -> PairScores:
    """Predict each labelled case once with either model, and score both and their mixes.

    `compared`: shares of the personal model whose NLL is asked for; `deployable`: those whose Dice is.
    `predict`: another way to the logits than computing them.
    """
    if predict is None:

        def predict(net: nn.Module, item: Item) -> Tensor:
            return predict_logits(net, item.image, task, training, device)

    found = PairScores({share: [] for share in compared}, {share: [] for share in deployable})
    for done, item in enumerate(cases):
        if item.label is not None:
            p, t = predict(personal, item), predict(shared, item)
            seen(item, item.label, p, t)
            _add(found, item, item.label, p, t, task, training, loss, annotated)
        on_progress((done + 1) / total if total else 0.0)
    return found


def _add(
    found: PairScores,
    item: Item,
    label: Tensor,
    p: Tensor,
    t: Tensor,
    task: TaskParams,
    training: TrainingParams,
    loss: Loss,
    annotated: Collection[int] | None,
) -> None:
    def scored(logits: Tensor) -> CaseScore:
        return score_item(item, label, logits, task, training, annotated)

    found.personal.append(scored(p))
    found.shared.append(scored(t))
    for share, values in found.losses.items():
        values.append(loss(mixed_pair(p, t, share, training.output), label))
    for share, scores in found.mixes.items():
        scores.append(scored(mixed_pair(p, t, share, training.output)))


def mixed_pair(p: Tensor, t: Tensor, share: float, output: str) -> Tensor:
    """Logits (K, *spatial) of the mix in which `p` has the share, from 0 to 1, and `t` the rest."""
    parts: Mapping[float, Tensor] = {0.0: t, 1.0: p}
    if share in parts:
        return parts[share]
    return mixed((p, t), (share, 1 - share), output)
