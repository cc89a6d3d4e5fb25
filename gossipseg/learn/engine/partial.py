"""Training at a site that annotates only some of the task's classes.

What such a site calls background may be a class that it does not annotate. Its losses therefore see one
channel for "background or any class not annotated here", whose probability is the sum of theirs, and one for
each annotated class (the marginal loss of Shi et al., Medical Image Analysis 70, 2021, arXiv 2007.03868). A
voxel of background then says that it is none of the annotated classes, and nothing about the others: gradient
goes to the merged channels in proportion to what the network gives them already. With sigmoid outputs the
channels of the other classes are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from gossipseg.algos.base import Outputs
from gossipseg.learn.data.labels import IGNORE, LabelRule
from gossipseg.learn.params import TrainingParams
from gossipseg.learn.settings import WorkerSettings


class Annotated:
    """The classes that a site annotates. Where it is all of them, nothing is changed."""

    def __init__(self, classes: int, annotated: Sequence[int], training: TrainingParams) -> None:
        """`classes` counts the background; `annotated`: label values without it."""
        self.classes = 1 + len(annotated)
        """Number of classes that the losses see, background included."""
        self._values = sorted(annotated)
        self._others = [v for v in range(1, classes) if v not in self._values]
        self._output = training.output

    @classmethod
    def of(cls, settings: WorkerSettings, rule: LabelRule) -> Annotated:
        """The annotated classes of a site, by its label rule."""
        return cls(len(settings.task.labels), rule.annotated, settings.training)

    def outputs(self, outputs: Outputs) -> Outputs:
        """What the losses see of a network's outputs."""
        if not self._others:
            return outputs
        clean = None if outputs.clean is None else self._logits(outputs.clean)
        logits, aux = self._logits(outputs.logits), tuple(map(self._logits, outputs.aux))
        return replace(outputs, logits=logits, aux=aux, clean=clean)

    def label(self, label: Tensor) -> Tensor:
        """Label values (B, 1, *spatial), counted on among the annotated classes; IGNORE stays."""
        if not self._others:
            return label
        table = torch.zeros(IGNORE + 1, dtype=label.dtype, device=label.device)
        table[IGNORE] = IGNORE
        for index, value in enumerate(self._values, start=1):
            table[value] = index
        return table[label.long()]

    def _logits(self, logits: Tensor) -> Tensor:
        """(B, C, *spatial) → (B, merged, *spatial)."""
        if self._output == "sigmoid":
            return logits[:, [v - 1 for v in self._values]]
        rest = logits[:, [0, *self._others]].logsumexp(1, keepdim=True)
        return torch.cat([rest, logits[:, self._values]], dim=1)
