"""Several networks that predict together: a weighted mean of their probabilities.

    p(x) = Σ_m w_m · p_m(x),   w_m > 0, Σ_m w_m = 1                                                       (1)

The mean is taken in the domain of logarithms: confident networks would be rounded to 0 and 1 elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gossipseg.nets.output import NetOutput


class Mixture(nn.Module):
    """Logits (B, K, *spatial) float32 of images (B, C, *spatial), by equation (1).

    For prediction alone: it is in evaluation mode. State-dict names begin with `members.0.`, `members.1.` …
    `output`: softmax or sigmoid, as training.output has it. Raises ValueError unless there is one weight for
    each member, all above 0.
    """

    def __init__(self, members: Sequence[nn.Module], weights: Sequence[float], output: str) -> None:
        super().__init__()
        if len(members) != len(weights) or not weights or min(weights) <= 0:
            raise ValueError(f"{len(members)} members and weights {list(weights)}: need one above 0 for each")
        self.members, self.output = nn.ModuleList(members), output
        self.weights = tuple(w / math.fsum(weights) for w in weights)
        self.eval()

    def forward(self, x: Tensor) -> NetOutput:
        logits = (net(x).logits.float() for net in self.members)
        return NetOutput(mixed(logits, self.weights, self.output, channel=1))


def mixed(logits: Iterable[Tensor], weights: Sequence[float], output: str, *, channel: int = 0) -> Tensor:
    """The logits of equation (1), of as many logits of one shape as there are weights above 0.

    softmax: log-probabilities over the axis `channel`; sigmoid: log-odds of each value. The logits are taken
    one at a time, so that memory does not grow with their number.
    """
    total: Tensor | None = None
    for z, weight in zip(logits, weights, strict=True):
        term = _log_probability(z, output, channel) + math.log(weight)
        total = term if total is None else torch.logaddexp(total, term)
    assert total is not None
    return total if output == "softmax" else total[0] - total[1]


def _log_probability(z: Tensor, output: str, channel: int) -> Tensor:
    if output == "softmax":
        return F.log_softmax(z, channel)
    return torch.stack((F.logsigmoid(z), F.logsigmoid(-z)))


def negative_log_likelihood(logits: Tensor, target: Tensor, output: str) -> float | None:
    """Mean of −log p(label) over the voxels of a case; None where nobody says what any of them is.

    `logits`: (K, *spatial). `target`: (1, *spatial) class indices for softmax, (K, *spatial) of 0 and 1 for
    sigmoid (the mean is over the channels, too); negative where the label says nothing.
    """
    log_p = log_likelihoods(logits, target, output)
    return float(-log_p.double().mean()) if log_p.numel() else None


def log_likelihoods(logits: Tensor, target: Tensor, output: str) -> Tensor:
    """log p(label) of every voxel (and channel, for sigmoid) whose label says something, in one axis.

    As in negative_log_likelihood(). By equation (1), that of a mix is the logarithm of the weighted mean of
    its members' exponentials.
    """
    said = target >= 0
    if output == "softmax":
        log_p = F.log_softmax(logits.float(), 0).gather(0, target.long().clamp(min=0))
    else:
        log_p = F.logsigmoid(logits.float() * (2.0 * target.clamp(min=0) - 1))
    return log_p[said]
