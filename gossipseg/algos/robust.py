"""Robust aggregation: combinations of updates that a minority of bad ones cannot pull anywhere.

W_1 … W_n are the updates of a round, each site with the same say: how many cases a site claims to have counts
for nothing here, or a claim would be the attack. Coordinate-wise, over x_(1) ≤ … ≤ x_(n) (Yin, Chen,
Ramchandran, Bartlett 2018, arXiv 1803.01498, definitions 1 and 2):

    median         x_((n+1)/2), and the mean of the two in the middle where n is even                    (1)
    trimmed_mean   mean of x_(k+1) … x_(n−k),  k = ⌈β·n⌉, 0 ≤ β < 1/2                                    (2)

and of whole updates (Blanchard, El Mhamdi, Guerraoui, Stainer 2017, "Machine Learning with Adversaries"),
where f of the n may be bad and n ≥ 2f + 3:

    s(i) = Σ_{i→j} ‖W_i − W_j‖²      over the n − f − 2 updates j closest to i                            (3)
    krum   mean of the m = n − f updates with the smallest s, ties by name (Multi-Krum; m as in its section
           on experiments)                                                                               (4)

A round with fewer updates than its rule needs is combined by (1), and its notes say so. Limits: β = 0 is the
plain mean; n = 1 is that update; equal updates give that update under every rule. Tensors of whole numbers
take the lower median, under krum the first kept update's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gossipseg.algos.average import running_average
from gossipseg.algos.base import Combined, Update

Rule = Literal["none", "trimmed_mean", "median", "krum"]
BLOCK_VALUES = 1 << 17
"""Values of each update that are looked at together: memory does not grow with the size of a layer."""


@dataclass(frozen=True, slots=True)
class Robust:
    """Which rule, and what it allows for: β of (2), f of (3)."""

    rule: Rule = "none"
    trim: float = 0.2
    byzantine: int = 1

    def rule_for(self, n: int) -> Rule:
        """The rule for a round of n updates: its own, or the median where there are too few."""
        if self.rule == "trimmed_mean" and 2 * cut(n, self.trim) >= n:
            return "median"
        if self.rule == "krum" and n < least_for_krum(self.byzantine):
            return "median"
        return self.rule


def cut(n: int, trim: float) -> int:
    """k of equation (2): how many values go at each end."""
    return math.ceil(trim * n - 1e-9)


def least_for_krum(byzantine: int) -> int:
    """2f + 3."""
    return 2 * byzantine + 3


def combine(updates: Sequence[Update], robust: Robust) -> Combined:
    """The next global model by the rule; `notes["robust"]` says which was used, and whom it left out."""
    combined = Combined(iter(()))
    combined.tensors = _combine(updates, robust, combined.notes)
    return combined


def _combine(
    updates: Sequence[Update], robust: Robust, notes: dict[str, object]
) -> Iterator[tuple[str, Tensor]]:
    names = _common_names(updates)
    n, rule = len(updates), robust.rule_for(len(updates))
    said: dict[str, object] = {"rule": rule, "asked": robust.rule, "updates": n, "left_out": []}
    notes["robust"] = said
    if rule == "krum":
        scores = krum_scores(squared_distances(updates, names), robust.byzantine)
        kept = krum_choice(scores, [update.site for update in updates], n - robust.byzantine)
        said["scores"] = {update.site: score for update, score in zip(updates, scores, strict=True)}
        said["left_out"] = sorted(update.site for i, update in enumerate(updates) if i not in kept)
        yield from running_average([updates[i] for i in kept], [1.0] * len(kept))
        return
    middle = median if rule == "median" else _trimmed(cut(n, robust.trim))
    for name in names:
        yield name, _blockwise(updates, name, middle)


def _trimmed(k: int) -> Callable[[Tensor], Tensor]:
    return lambda values: trimmed_mean(values, k)


# ---------------------------------------------------------------- coordinate-wise: (1), (2)


def median(values: Tensor) -> Tensor:
    """Equation (1) over the first axis: (n, …) → (…). Whole numbers: the lower of the two in the middle."""
    n = values.shape[0]
    ordered = values.sort(dim=0).values
    if not values.is_floating_point():
        return ordered[(n - 1) // 2]
    return (ordered[(n - 1) // 2] + ordered[n // 2]) / 2


def trimmed_mean(values: Tensor, k: int) -> Tensor:
    """Equation (2) over the first axis: (n, …) → (…). Raises ValueError where nothing would be left."""
    n = values.shape[0]
    if 2 * k >= n:
        raise ValueError(f"{k} of {n} values cut off at each end: nothing is left")
    if not values.is_floating_point():
        return median(values)
    return values.sort(dim=0).values[k : n - k].mean(dim=0)


def _blockwise(updates: Sequence[Update], name: str, middle: Callable[[Tensor], Tensor]) -> Tensor:
    """One tensor of all updates through a rule, a block of values at a time."""
    shape = updates[0].shape(name)
    parts = [middle(torch.stack(block)) for block in _blocks(updates, name)]
    return torch.cat(parts).reshape(shape)


def _blocks(updates: Sequence[Update], name: str) -> Iterator[list[Tensor]]:
    """The same stretch of values of each update."""
    count = math.prod(updates[0].shape(name))
    for begin in range(0, max(1, count), BLOCK_VALUES):
        yield [update.part(name, begin, min(count, begin + BLOCK_VALUES)) for update in updates]


# ---------------------------------------------------------------- whole updates: (3), (4)


def squared_distances(updates: Sequence[Update], names: Sequence[str]) -> list[list[float]]:
    """‖W_i − W_j‖² over all floating-point tensors, in float64."""
    n = len(updates)
    out = [[0.0] * n for _ in range(n)]
    for name in names:
        for block in _blocks(updates, name):
            if not block[0].is_floating_point():
                break
            for i in range(n):
                mine = block[i].double()
                for j in range(i + 1, n):
                    out[i][j] += float((mine - block[j].double()).square().sum())
    for i in range(n):
        for j in range(i):
            out[i][j] = out[j][i]
    return out


def krum_scores(distances: Sequence[Sequence[float]], byzantine: int) -> list[float]:
    """Equation (3). `distances`: squared, symmetric, n × n. Raises ValueError where n < 2f + 3."""
    n = len(distances)
    if n < least_for_krum(byzantine):
        raise ValueError(f"krum with f = {byzantine} needs {least_for_krum(byzantine)} updates, not {n}")
    return [
        math.fsum(sorted(d for j, d in enumerate(row) if j != i)[: n - byzantine - 2])
        for i, row in enumerate(distances)
    ]


def krum_choice(scores: Sequence[float], sites: Sequence[str], m: int) -> list[int]:
    """Equation (4): which m are kept, in their order."""
    ranked = sorted(range(len(scores)), key=lambda i: (scores[i], sites[i]))
    return sorted(ranked[:m])


def _common_names(updates: Sequence[Update]) -> list[str]:
    first = updates[0]
    for other in updates[1:]:
        if set(other.names) != set(first.names):
            name = min(set(other.names) ^ set(first.names))
            raise ValueError(f"{name} is in one update and not in another: nothing to combine it with")
    return sorted(first.names)
