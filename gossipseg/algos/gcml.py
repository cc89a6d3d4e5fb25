"""`gcml`: gossip contrastive mutual learning, arXiv 2503.03883 (IEEE TMI 2025).

Standing: [P] read in a primary source, [S] a secondary summary, [O] our own, well-defined reading.

[P] No server: a site's model travels to another site, where the incoming and the local model are trained
together on the receiver's local data (deep contrastive mutual learning, DCML). [S] Who sends when is the
protocol of its predecessor GML (arXiv 2401.06180) and lives in core/gossip. The form below is our reading
[O]: the paper's text could not be had, and no table of it is claimed to be reproduced.

What comes in enters the shared model T, which travels on: T ← (T + incoming)/2 (average.py). T and the
personal model P, which is never mixed, are the incoming and the local model. They are trained together on the
site's data, in every step from the first exchange on.

For learner m and partner n on the same batch; n is detached (sg) and shown with its dropout off; a model is
"right" where its prediction equals the label y:

    Ω      = {v : y = 1, or T's or P's prediction is 1}   (region: union | label | whole)                 (1)
    L_pos  = Σ over {v∈Ω : n right}              KL(sg p_n ‖ p_m)    pull: be as the partner is           (2)
    L_neg  = Σ over {v∈Ω : n wrong, m right}     max(0, δ − KL(sg p_n ‖ p_m))    push: stay away from it  (3)
             both divided by max(|Ω|, 0.01·|V|)                                                           (4)
    L_m    = L_seg(p_m, y) + λ(t)·(L_pos + γ·L_neg)                                                       (5)
    λ(t)   = λ·min(1, rounds since the first exchange / ramp)                                             (6)

contrast: logits, as above | none: there is no push, as with γ = 0 | features: in place of (3), with F the
last feature map before the logits, v over the whole batch, and C the classes in the label with background,

    f_m^c  = Σ_{v : y=c} F_m(v) / |{v : y=c}|, divided by its length                                      (7)
    L_nce  = −1/|C| · Σ_{c∈C} log( exp(<f_m^c, sg f_n^c>/τ) / Σ_{c'∈C} exp(<f_m^c, sg f_n^c'>/τ) )        (8)

with τ = 0.1: the learner's feature of a class is like the partner's of that class, and unlike those of the
others [O]. Fewer than two classes have L_nce = 0.

mutual: shared (m = T alone: T imitates P where P is right, and keeps away from P where P is wrong and T is
right; P trains by L_seg, as `local` does) | both (m = T and m = P, each with the other as its partner).

Sigmoid networks: Bernoulli KL per channel; Ω, |Ω| and |V| are a channel's over the whole batch, and the
channels' terms are averaged. Softmax networks: y = 1 reads "not background"; the pull is the categorical
KL; the push is the Bernoulli KL on q = p[y], and only where q_m > q_n, because anywhere else moving away
from the partner would lower the label's own probability.
On (4): means over the sets of (2) and (3) themselves, which are tiny, would weigh their voxels a hundred
times as much as the cross-entropy does.

Limits: γ = 0 is regional mutual learning (GML). With region = whole besides there is nothing to contrast:
(2) drops its condition and is plain deep mutual learning (Zhang 2018, arXiv 1706.00384), the mean KL of
all voxels. λ = 0 is `gossip_average`. Identical models have L_pos = 0.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gossipseg.algos.average import merged
from gossipseg.algos.base import Algorithm, Losses, Outputs, Role, StepContext, Weights
from gossipseg.algos.params import GcmlParams
from gossipseg.algos.terms import (
    bernoulli_kl,
    categorical_kl,
    class_regions,
    info_nce,
    label_log_odds,
    region_features,
    sigmoid_prediction,
    softmax_prediction,
)

MIN_REGION = 0.01
"""Share of all voxels by which the terms are divided at least, equation (4)."""

TEMPERATURE = 0.1
"""τ of equation (8)."""

Region = Literal["union", "label", "whole"]


class Gcml(Algorithm):
    """The shared model is averaged with what comes, and learns from the personal one."""

    name = "gcml"
    exchanges = True
    learns_from_personal = True

    def __init__(self, params: GcmlParams) -> None:
        super().__init__()
        self.params = params if params.contrast != "none" else dataclasses.replace(params, gamma=0.0)
        self.trains_personal = params.mutual == "both"
        self.wants_features = params.contrast == "features"

    def on_arrival(self, local: Weights, incoming: Weights) -> Weights | None:
        return merged(local, incoming, self.is_shared)

    def losses(self, outputs: Mapping[Role, Outputs], target: Tensor, context: StepContext) -> Losses:
        """Equation (5) for each model that learns; L_seg alone before the first exchange."""
        total: dict[Role, Tensor] = {}
        terms: dict[str, Tensor] = {}
        learners: tuple[Role, ...] = ("local", "personal") if self.trains_personal else ("local",)
        for role in (m for m in learners if m in outputs):
            total[role], found = self._loss(role, outputs, target, context)
            terms |= {("" if role == "local" else f"{role}_") + name: x for name, x in found.items()}
        return Losses(total, terms)

    def _loss(
        self, m: Role, outputs: Mapping[Role, Outputs], target: Tensor, context: StepContext
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """L_m, and its terms for the log."""
        l_seg = context.segmentation_loss(outputs[m], target)
        n: Role = "personal" if m == "local" else "local"
        if n not in outputs or context.since_exchange is None:
            return l_seg, {"seg": l_seg.detach()}
        lambda_t = lambda_of(self.params, context.since_exchange)
        with torch.set_grad_enabled(torch.is_grad_enabled() and lambda_t > 0):
            dcml = mutual_terms(outputs[m], outputs[n], target, context.output, self.params)
            push = dcml.l_neg
            if self.wants_features:
                push = feature_contrast(outputs[m], outputs[n], target, context.output)
        mutual = dcml.l_pos + self.params.gamma * push
        found = {"seg": l_seg, "pull": dcml.l_pos, "push": push, "confidence": dcml.confidence}
        terms = {name: value.detach() for name, value in found.items()}
        terms["lambda"] = torch.tensor(lambda_t)
        return (l_seg + lambda_t * mutual if lambda_t > 0 else l_seg), terms


@dataclass(frozen=True, slots=True)
class MutualTerms:
    """Scalars of one learner and one batch."""

    l_pos: Tensor
    l_neg: Tensor
    confidence: Tensor
    """Mean p_m[y] where both are right within Ω: the pull may soften it, so it is worth a look."""


def mutual_terms(
    learner: Outputs,
    partner: Outputs,
    target: Tensor,
    output: Literal["softmax", "sigmoid"],
    params: GcmlParams,
) -> MutualTerms:
    """L_pos (2) and L_neg (3) of learner m against partner n, both divided as in (4); float32 scalars."""
    z_m = learner.logits.float()
    z_n = (partner.logits if partner.clean is None else partner.clean).detach().float()
    if output == "sigmoid":
        y, m, n = target > 0.5, sigmoid_prediction(z_m), sigmoid_prediction(z_n)
        omega = omega_of(params.region, y, m, n)
        odds_m, odds_n = z_m * (2.0 * y - 1), z_n * (2.0 * y - 1)
        pull_kl = push_kl = bernoulli_kl(z_n, z_m)
    else:
        y, m, n = target.long().clamp(min=0), softmax_prediction(z_m), softmax_prediction(z_n)
        omega = omega_of(params.region, y > 0, m > 0, n > 0)
        odds_m, odds_n = label_log_odds(z_m, y), label_log_odds(z_n, y)
        pull_kl, push_kl = categorical_kl(z_n, z_m), bernoulli_kl(odds_n, odds_m)
    omega = omega & (target >= 0)  # of the others nobody says what they are
    m_right, n_right = m == y, n == y
    push_set = omega & ~n_right & m_right & (odds_m > odds_n).detach()
    both_right = omega & m_right & n_right
    if params.region == "whole" and params.gamma == 0:
        n_right = torch.ones_like(n_right)
    l_pos = over_region(pull_kl, omega & n_right, omega)
    l_neg = over_region((params.delta_nats - push_kl).clamp_min(0), push_set, omega)
    confidence = (odds_m.detach().sigmoid() * both_right).sum() / both_right.sum().clamp_min(1)
    return MutualTerms(l_pos, l_neg, confidence)


def feature_contrast(
    learner: Outputs, partner: Outputs, target: Tensor, output: Literal["softmax", "sigmoid"]
) -> Tensor:
    """L_nce (8) of learner m against partner n; a float32 scalar."""
    theirs = partner.features if partner.clean_features is None else partner.clean_features
    assert learner.features is not None and theirs is not None, "wants_features asks for them"
    regions = class_regions(target, learner.logits.shape[1], output)
    f_m, f_n = (region_features(f, regions) for f in (learner.features, theirs.detach()))
    return info_nce(f_m, f_n, regions.flatten(2).any(dim=2).any(dim=0), TEMPERATURE)


def omega_of(region: Region, label: Tensor, m: Tensor, n: Tensor) -> Tensor:
    """Ω of equation (1), from the foreground of the label and of the two predictions: all bool, one shape."""
    if region == "whole":
        return torch.ones_like(label)
    return label if region == "label" else label | m | n


def over_region(values: Tensor, mask: Tensor, omega: Tensor) -> Tensor:
    """Σ of `values` where `mask`, divided as in (4), channel by channel over the batch; then their mean.

    All (B, C, *spatial); an empty mask gives 0 with gradients of 0.
    """
    axes = [0, *range(2, values.ndim)]
    voxels = omega.numel() / omega.shape[1]
    size = omega.sum(dim=axes).clamp_min(MIN_REGION * voxels)
    return (torch.where(mask, values, 0.0).sum(dim=axes) / size).mean()


def lambda_of(params: GcmlParams, since_exchange: int) -> float:
    """λ(t) of equation (6), `since_exchange` rounds after that of the first exchange."""
    ramp = params.lambda_ramp_rounds
    return params.lambda_ * (min(1.0, since_exchange / ramp) if ramp > 0 else 1.0)
