"""One-shot segmentation of scans: one labelled scan is the support, every other labelled one a query.

For each class on its own (class against the rest): the support gives three slices, at 1/6, 1/2 and 5/6 of its
slices that hold the class; a query's slices from the first to the last that holds the class are cut into
three equal parts, and each slice is segmented by the support slice of its part; slices outside belong to the
nearest part. Dice is given over the organ's range, as in the papers (which thus know where the organ begins
and ends), and beside it over the full volume. Every labelled scan serves as support in turn.
A data set of isolated slices is the same with scans of one slice: slice-level one-shot. Slices of the same
patient, where there are several, then support each other, which flatters.
All of it happens on the task's grid, slice by slice. A class that is in a query's label and not on that grid
counts as missed (0); what must be ignored counts nowhere (docs/evidence/scores.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from gossipseg.algos.fedcowpro import (
    WINDOW_TEST,
    Bag,
    background_prototypes,
    foreground_prototypes,
    scores,
)
from gossipseg.errors import LocalError
from gossipseg.learn.data.dataset import Item
from gossipseg.learn.data.labels import IGNORE
from gossipseg.learn.evaluation.evaluate import (
    ByClass,
    CaseScore,
    Scores,
    foreground_names,
    mean_of,
    summarise,
)
from gossipseg.learn.oneshot.slices import resized, slices_of
from gossipseg.learn.params import TaskParams

PARTS = 3
SLICES_AT_ONCE = 8

OnProgress = Callable[[float], None]
OnPrediction = Callable[[str, Item, Tensor], None]
"""Called with the support's id, the query, and its predicted label values (S, H, W) uint8."""


@dataclass(frozen=True, slots=True)
class PairScore:
    """One query by one support. Keys are class names; None: the query's label does not hold that class."""

    support: str
    query: str
    dice_range: ByClass
    dice_volume: ByClass
    false_positive_voxels: Mapping[str, int]
    """Voxels predicted as a class that the query does not hold."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean and spread of the supports' own means."""

    mean: float | None
    std: float | None
    """Sample standard deviation; None with fewer than two supports."""
    lowest: float | None
    highest: float | None


@dataclass(frozen=True, slots=True)
class OneShot:
    """All pairs of scans of a split."""

    pairs: tuple[PairScore, ...]

    def scores(self, task: TaskParams) -> Scores:
        """By query: Dice over the organ's range, mean over the supports."""
        names = foreground_names(task).values()
        cases = []
        for query in dict.fromkeys(pair.query for pair in self.pairs):
            mine = [pair for pair in self.pairs if pair.query == query]
            dice = {name: mean_of(pair.dice_range.get(name) for pair in mine) for name in names}
            wrong = {
                n: [p.false_positive_voxels[n] for p in mine if n in p.false_positive_voxels] for n in names
            }
            cases.append(CaseScore(query, dice, {n: round(float(np.mean(v))) for n, v in wrong.items() if v}))
        return summarise(cases, task)

    def by_support(self, name: str, *, volume: bool = False) -> dict[str, float | None]:
        """Mean Dice of a class over the queries, by support; supports without the class are left out."""
        out: dict[str, list[float | None]] = {}
        for pair in self.pairs:
            dice = pair.dice_volume if volume else pair.dice_range
            if name in dice:
                out.setdefault(pair.support, []).append(dice[name])
        return {support: mean_of(values) for support, values in out.items()}

    def spread(self, name: str, *, volume: bool = False) -> Spread:
        """Mean and spread of a class over the supports."""
        known = [v for v in self.by_support(name, volume=volume).values() if v is not None]
        std = float(np.std(known, ddof=1)) if len(known) > 1 else None
        return Spread(mean_of(known), std, min(known, default=None), max(known, default=None))


def one_shot(
    net: nn.Module,
    scans: Callable[[], Iterable[Item]],
    task: TaskParams,
    device: torch.device | str,
    on_progress: OnProgress = lambda fraction: None,
    on_prediction: OnPrediction | None = None,
) -> OneShot:
    """Every labelled scan by every other. `scans` is called twice: features of one scan at a time are kept.

    `net`: its `logits` are features; put into evaluation mode for it and left in the mode it was in.
    """
    was_training = net.training
    net.eval()
    try:
        with torch.inference_mode():
            supports = [support_of(net, scan, task, device) for scan in labelled(scans())]
            usable = [support for support in supports if support.bags]
            pairs: list[PairScore] = []
            for done, query in enumerate(labelled(scans())):
                features = features_of(net, query.image, task, device)
                pairs += [
                    _pair(support, query, features, task, on_prediction)
                    for support in usable
                    if support.id != query.case.id
                ]
                on_progress((done + 1) / len(supports))
    finally:
        net.train(was_training)
    return OneShot(tuple(pairs))


def labelled(scans: Iterable[Item]) -> Iterator[Item]:
    """Those that have a label."""
    return (scan for scan in scans if scan.label is not None)


# ---------------------------------------------------------------- supports


@dataclass(frozen=True, slots=True)
class Support:
    """Prototypes of a labelled scan: class value → (background, foreground) of each part."""

    id: str
    bags: Mapping[int, tuple[tuple[Bag, Bag], ...]]


def support_of(net: nn.Module, scan: Item, task: TaskParams, device: torch.device | str) -> Support:
    """The support that a labelled scan gives, for the classes that it holds."""
    assert scan.label is not None
    labels = slices_of(scan.label, task.slice_axis)
    bags = {}
    for value in foreground_names(task):
        masks = labels == value
        present = torch.nonzero(masks.flatten(1).any(1)).flatten().tolist()
        if present:
            chosen = support_slices(present)
            features = features_of(net, scan.image, task, device, chosen)
            bags[value] = tuple(
                _bags(f[None], masks[k][None], device) for f, k in zip(features, chosen, strict=True)
            )
    return Support(scan.case.id, bags)


def support_slices(present: Sequence[int]) -> list[int]:
    """The slices at 1/6, 1/2 and 5/6 of those that hold the class."""
    return [present[(2 * part + 1) * len(present) // (2 * PARTS)] for part in range(PARTS)]


def part_of(index: int, first: int, last: int) -> int:
    """Which third of the range a slice lies in; the nearest one outside of it."""
    return min(PARTS - 1, max(0, PARTS * (index - first) // (last - first + 1)))


def features_of(
    net: nn.Module,
    image: Tensor,
    task: TaskParams,
    device: torch.device | str,
    chosen: Sequence[int] | None = None,
) -> Tensor:
    """Features (S, C, h, w) float32 of the slices of an image, or of the chosen ones, on the device."""
    stack = slices_of(image, task.slice_axis)
    stack = stack if chosen is None else stack[list(chosen)]
    parts = [
        net(resized(some, task.patch_size).to(device)).logits for some in torch.split(stack, SLICES_AT_ONCE)
    ]
    return torch.cat(parts).float()


def _bags(features: Tensor, mask: Tensor, device: torch.device | str) -> tuple[Bag, Bag]:
    mask = mask.float().to(device)
    with torch.autocast(features.device.type, enabled=False):
        return (
            background_prototypes(features, mask, WINDOW_TEST),
            foreground_prototypes(features, mask, WINDOW_TEST),
        )


# ---------------------------------------------------------------- queries


def _pair(
    support: Support, query: Item, features: Tensor, task: TaskParams, on_prediction: OnPrediction | None
) -> PairScore:
    assert query.label is not None
    labels = slices_of(query.label, task.slice_axis)[:, 0]
    in_range: dict[str, float | None] = {}
    in_volume: dict[str, float | None] = {}
    wrong: dict[str, int] = {}
    margins = torch.zeros((1 + max(support.bags, default=0), *labels.shape))
    for value, bags in support.bags.items():
        name, truth = task.labels[value], labels == value
        present = torch.nonzero(truth.flatten(1).any(1)).flatten().tolist()
        first, last = (present[0], present[-1]) if present else (0, len(labels) - 1)
        margins[value] = margin(features, bags, first, last, (labels.shape[1], labels.shape[2]))
        guess = (margins[value] > 0) & (labels != IGNORE)
        organ = slice(first, last + 1)
        lost = not present and query.truth is not None and bool((query.truth == value).any())
        in_range[name] = dice(guess[organ], truth[organ]) if present else 0.0 if lost else None
        in_volume[name] = dice(guess, truth) if present else 0.0 if lost else None
        if not (present or lost):
            wrong[name] = int(guess.sum())
    if bool(margins.isnan().any()):  # their label would be background, and count as a miss
        raise LocalError(f"{query.case.id}: what is predicted of it by {support.id} is not a number.")
    if on_prediction is not None:
        on_prediction(support.id, query, margins.argmax(0).to(torch.uint8))
    return PairScore(support.id, query.case.id, in_range, in_volume, wrong)


def margin(
    features: Tensor, bags: Sequence[tuple[Bag, Bag]], first: int, last: int, size: tuple[int, int]
) -> Tensor:
    """Foreground minus background score (S, *size) of each slice, by the support of its part; on the CPU."""
    parts = torch.tensor([part_of(k, first, last) for k in range(len(features))])
    out = torch.empty((len(features), *size))
    with torch.autocast(features.device.type, enabled=False):
        for part, (background, foreground) in enumerate(bags):
            where = torch.nonzero(parts == part).flatten()
            for some in torch.split(where, SLICES_AT_ONCE):
                z = scores(features[some.to(features.device)], background, foreground, size)
                out[some] = (z[:, 1] - z[:, 0]).cpu()
    return out


def dice(guess: Tensor, truth: Tensor) -> float:
    """2|A∩B| / (|A|+|B|) of two masks, of which `truth` is not empty."""
    return float(2 * (guess & truth).sum() / (guess.sum() + truth.sum()))
