"""What an algorithm is: the lines in which it differs from the others.

An algorithm supplies losses, says which parameters travel, and how incoming weights are combined.
It owns no loop, no I/O, no logging, no `.to(device)`: `learn.step` is the only place that trains.

A round with a visitor runs so:

    weights = algorithm.on_arrival(local, incoming)        before the first step
    E × algorithm.losses(...)                              learn.step does backward and optimizer
    weights = algorithm.on_departure(local, incoming, ...) after the last step
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Weights = Mapping[str, Tensor]
"""Named tensors of a model, as in a state dict."""

Role = Literal["local", "incoming"]

SegmentationLoss = Callable[["Outputs", Tensor], Tensor]

PRIVATE_BUFFERS = frozenset({"running_mean", "running_var", "num_batches_tracked"})
"""Last parts of the names of batch norm's running statistics: they describe a site's scanner (FedBN)."""


@dataclass(frozen=True, slots=True)
class Outputs:
    """What a network says of a batch.

    `logits`: (B, C, *spatial) float. `aux`: heads of deep supervision, coarser, same C; empty in evaluation.
    """

    logits: Tensor
    aux: tuple[Tensor, ...] = ()
    clean: Tensor | None = None
    """Detached logits of the same images with dropout off: what a partner is shown. None: the logits."""


@dataclass(frozen=True, slots=True)
class StepContext:
    """What a loss may know beside the batch."""

    output: Literal["softmax", "sigmoid"]
    visits: int
    """Visits this site has finished before the present one: the ramp of λ."""
    segmentation_loss: SegmentationLoss
    """L_seg with its deep supervision; the only place where `aux` weighs in."""


@dataclass(frozen=True, slots=True)
class Losses:
    """What the step shall minimise, and what a user may want to see."""

    total: Mapping[Role, Tensor]
    """One scalar for each model that trains; their graphs do not touch (partners are detached)."""
    terms: Mapping[str, Tensor]
    """Detached scalars by name, such as seg, pull, push: for the log."""


class Algorithm:
    """Base of all algorithms: trains alone, exchanges nothing. Subclasses override what differs."""

    name: str = "base"
    exchanges: bool = False
    """Whether models are sent and taken in."""
    trains_visitor: bool = False
    """Whether an incoming model is trained beside the local one for the round of its visit."""

    replaces_on_merge: bool = False
    """Whether weights from `on_departure` are the visitor's outright: first moments then start at 0."""

    def __init__(self, private_names: Collection[str] = ()) -> None:
        self._private_names = frozenset(private_names)

    def is_shared(self, name: str) -> bool:
        """Whether the named tensor travels. THE predicate: sender and receiver use it alike."""
        return name.rpartition(".")[2] not in PRIVATE_BUFFERS and name not in self._private_names

    def on_arrival(self, local: Weights, incoming: Weights) -> Weights | None:
        """New local weights before the round of a visit, or None to leave them."""
        return None

    def losses(self, outputs: Mapping[Role, Outputs], target: Tensor, context: StepContext) -> Losses:
        """Losses of one batch.

        `outputs` holds "local", and "incoming" during a visit. `target`: (B, 1, *spatial) integer label
        indices when the output is softmax; (B, C, *spatial) of 0/1 when it is sigmoid.
        """
        seg = context.segmentation_loss(outputs["local"], target)
        return Losses({"local": seg}, {"seg": seg.detach()})

    def on_departure(
        self, local: Weights, incoming: Weights, score: Callable[[Role], float]
    ) -> Weights | None:
        """New local weights after the round of a visit, or None to leave them.

        `score(role)` is the mean validation Dice of a model as it is now (computed when asked for).
        """
        return None


def float_names(weights: Weights) -> list[str]:
    """Names of the tensors that may be averaged: non-float buffers are copied, never averaged."""
    return [name for name, tensor in weights.items() if torch.is_floating_point(tensor)]
