"""Several networks as one: what they predict is averaged in probability."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gossipseg.nets.output import NetOutput


class Ensemble(nn.Module):
    """Logits (B, K, *spatial) float32 of images (B, C, *spatial): half the probabilities of `own`, half the
    mean of those of `others` (at least one).

    For prediction alone: it is in evaluation mode. State-dict names begin with `own.`, `others.0.`,
    `others.1.` … `output`: softmax or sigmoid, as training.output has it.
    """

    def __init__(self, own: nn.Module, others: Sequence[nn.Module], output: str) -> None:
        super().__init__()
        self.own, self.others, self._output = own, nn.ModuleList(others), output
        self._log_shares = [math.log(0.5), *[math.log(0.5 / len(others))] * len(others)]
        self.eval()

    def forward(self, x: Tensor) -> NetOutput:
        """In the domain of logarithms: confident networks would be rounded to 0 and 1 elsewhere."""
        if self._output == "softmax":
            return NetOutput(self._log_mean(x, lambda z: F.log_softmax(z, 1)))
        yes, no = self._log_mean(x, lambda z: torch.stack((F.logsigmoid(z), F.logsigmoid(-z))))
        return NetOutput(yes - no)

    def _log_mean(self, x: Tensor, log_probability: Callable[[Tensor], Tensor]) -> Tensor:
        """Network by network, so that memory does not grow with their number."""
        total: Tensor | None = None
        for net, share in zip((self.own, *self.others), self._log_shares, strict=True):
            term = log_probability(net(x).logits.float()) + share
            total = term if total is None else torch.logaddexp(total, term)
        assert total is not None
        return total
