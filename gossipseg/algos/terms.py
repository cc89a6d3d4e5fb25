"""Terms that several algorithms share: divergences from logits, and masks of where predictions are right.

All divergences are in nats and written KL(p ‖ q) with p the first argument; q is the one that learns.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def bernoulli_kl(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    """KL(σ(p) ‖ σ(q)) of each element; both of one shape, the result too.

    p·(log σ(p) − log σ(q)) + (1−p)·(log σ(−p) − log σ(−q)): no probability is ever clamped, so that
    the gradient in q, σ(q) − σ(p), survives where a clamp would have cut it off.
    """
    p_logits, q_logits = p_logits.float(), q_logits.float()
    p = torch.sigmoid(p_logits)
    if_one = F.logsigmoid(p_logits) - F.logsigmoid(q_logits)
    if_zero = F.logsigmoid(-p_logits) - F.logsigmoid(-q_logits)
    return p * if_one + (1 - p) * if_zero


def categorical_kl(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    """KL(softmax p ‖ softmax q) of each voxel: (B, C, *spatial) twice → (B, 1, *spatial)."""
    log_p = F.log_softmax(p_logits.float(), dim=1)
    log_q = F.log_softmax(q_logits.float(), dim=1)
    return (log_p.exp() * (log_p - log_q)).sum(dim=1, keepdim=True)


def label_log_odds(logits: Tensor, label: Tensor) -> Tensor:
    """log(q / (1 − q)) of q = p[y], the probability of the label's own class: (B, 1, *spatial).

    z_y − logsumexp over the other classes, so that log q and log(1 − q) are log-sigmoids of ± this:
    `bernoulli_kl` of two of them is the Bernoulli divergence on q.
    `logits` (B, C ≥ 2, *spatial); `label` (B, 1, *spatial) integer class indices.
    """
    logits = logits.float()
    label = label.long()
    own = logits.gather(1, label)
    others = logits.scatter(1, label, float("-inf"))
    return own - others.logsumexp(dim=1, keepdim=True)


def sigmoid_prediction(logits: Tensor) -> Tensor:
    """Which elements are predicted 1 (probability above a half): bool, of the same shape."""
    return logits.detach() > 0


def softmax_prediction(logits: Tensor) -> Tensor:
    """Predicted class of each voxel, the first of equals: (B, C, *spatial) → (B, 1, *spatial) integer."""
    # max, not argmax: the same indices, over a dimension of large stride twenty times as fast on a CPU
    return logits.detach().max(dim=1, keepdim=True).indices
