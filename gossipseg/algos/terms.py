"""Terms that several algorithms share: divergences from logits, and masks of where predictions are right.

All divergences are in nats and written KL(p ‖ q) with p the first argument; q is the one that learns.
"""

from __future__ import annotations

from typing import Literal

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


def class_regions(target: Tensor, channels: int, output: Literal["softmax", "sigmoid"]) -> Tensor:
    """Which voxels belong to which class, background first: (B, C, *spatial) bool. `channels`: of the logits.

    `target` as an algorithm's losses get it. What nobody says belongs to none.
    """
    if output == "sigmoid":
        inside = target > 0.5
        background = (target >= 0).all(1, keepdim=True) & ~inside.any(1, keepdim=True)
        return torch.cat([background, inside], dim=1)
    classes = torch.arange(channels, device=target.device)
    return target == classes.view(1, -1, *[1] * (target.ndim - 2))


def region_features(features: Tensor, regions: Tensor) -> Tensor:
    """The mean feature of each class over all its voxels in the batch, of length 1: (C, F) float32.

    `features` (B, F, *spatial); `regions` (B, C, *spatial) bool. A class without voxels has a row of zeros.
    """
    f, r = features.float().flatten(2), regions.float().flatten(2)
    sums = torch.einsum("bcv,bfv->cf", r, f)
    return F.normalize(sums / r.sum(dim=(0, 2)).clamp_min(1).unsqueeze(1), dim=1)


def info_nce(learner: Tensor, partner: Tensor, present: Tensor, temperature: float) -> Tensor:
    """InfoNCE (van den Oord 2018, arXiv 1807.03748): each class of the learner finds the same class of the
    partner among all of its classes. A scalar, the mean over the classes that are `present` (bool); 0 with
    fewer than two.

    `learner`, `partner`: (C, F) of length 1; the partner is detached.
    """
    scores = learner[present] @ partner[present].detach().T / temperature
    if len(scores) < 2:
        return learner.sum() * 0.0
    return F.cross_entropy(scores, torch.arange(len(scores), device=scores.device))


def sigmoid_prediction(logits: Tensor) -> Tensor:
    """Which elements are predicted 1 (probability above a half): bool, of the same shape."""
    return logits.detach() > 0


def softmax_prediction(logits: Tensor) -> Tensor:
    """Predicted class of each voxel, the first of equals: (B, C, *spatial) → (B, 1, *spatial) integer."""
    # max, not argmax: the same indices, over a dimension of large stride twenty times as fast on a CPU
    return logits.detach().max(dim=1, keepdim=True).indices
