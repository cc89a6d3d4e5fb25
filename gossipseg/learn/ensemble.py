"""Two networks as one: what they predict is averaged in probability.

What belongs here: the average, as a network that any score, prediction or export takes for one. What must
not: which two networks, and when (shadow.py).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gossipseg.nets.output import NetOutput


class AveragedPair(nn.Module):
    """Of images (B, C, *spatial): logits (B, K, *spatial) float32 whose probabilities are the mean of both.

    For prediction alone: it is in evaluation mode. State-dict names begin with `first.` and `second.`.
    `output`: softmax or sigmoid, as training.output has it.
    """

    def __init__(self, first: nn.Module, second: nn.Module, output: str) -> None:
        super().__init__()
        self.first, self.second, self._output = first, second, output
        self.eval()

    def forward(self, x: Tensor) -> NetOutput:
        """In the domain of logarithms: confident networks would be rounded to 0 and 1 elsewhere."""
        first, second = self.first(x).logits.float(), self.second(x).logits.float()
        if self._output == "softmax":
            return NetOutput(_log_mean(F.log_softmax(first, 1), F.log_softmax(second, 1)))
        yes = _log_mean(F.logsigmoid(first), F.logsigmoid(second))
        return NetOutput(yes - _log_mean(F.logsigmoid(-first), F.logsigmoid(-second)))


def _log_mean(first: Tensor, second: Tensor) -> Tensor:
    return torch.logaddexp(first, second) - math.log(2)
