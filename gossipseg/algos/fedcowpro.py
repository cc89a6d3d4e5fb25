"""`fedcowpro`: federated self-supervised one-shot segmentation (FedCoWPro, arXiv 2503.23507).

Standing: [P] that sites of different modality learn from pseudo-masks, average as FedAvg does, and add a
fused Dice loss; [P, code] of its ancestors CoWPro (2408.06235) and SSL-ALPNet: network, windows, weights of
the cross-entropy; [S] the sum of the three losses; [O] our reading of the edge term, and what is marked so
below. No table of the paper is claimed to be reproduced.

An episode is one slice with one pseudo-mask y, augmented twice: support s and query q. The network gives
features; everything below happens on them, in float32.

    masks are brought to the feature map by averaging over its cells                                     [O]
    P_c    = { pooled feature of each w×w window whose pooled mask of class c is above 0.95 }            (1)
    P_FG  += the masked mean of the whole map;   an empty P_BG falls back to its masked mean
    d_j    = 20·<q~, p~_j>          with ~ centring over channels and L2 normalisation                   (2)
    z_c    = Σ_j softmax_j(d)·d_j   = 20·<q~, Σ_j a_j p~_j>                                              (3)
    L_cowpro = CE(z(q | s), y_q; weights 0.05/1) + CE(z(s | q), y_s)                                     (4)
    L_ds   = 1 − (2Σp·y+1)/(Σp²+Σy²+1)          p = softmax foreground of the query, mean over episodes  (5)
    L_es   = the same on Sobel magnitudes sqrt(Gx²+Gy²+1e-12) of p and y                             [O] (6)
    L      = L_cowpro + L_ds + L_es

In the second term of (4) the query's prototypes are those of its pseudo-mask [O]: the ancestors take the
predicted mask, which may be empty. A class without a single pixel scores −20, the least there is: never 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from gossipseg.algos.base import Losses, Outputs, Role, StepContext
from gossipseg.algos.fedavg import FedAvg

SCALE = 20.0
"""Factor of the cosine in (2)."""
WINDOW_TRAINING, WINDOW_TEST = 4, 2
"""w of (1), in cells of the feature map."""
INSIDE = 0.95
"""A window belongs to a class where the pooled mask is above this."""
BACKGROUND_WEIGHT = 0.05
"""Weight of the background in the cross-entropy of the query."""
LEAST_NORM = 1e-4
"""Vectors shorter than this are not stretched to length 1: their direction is noise."""


class Bag(NamedTuple):
    """The prototypes of one class of each support."""

    vectors: Tensor
    """(B, K, C)."""
    kept: Tensor
    """(B, K) bool: which of them there are."""


class FedCoWPro(FedAvg):
    """Losses (4) to (6) on episodes; the models are averaged as in FedAvg."""

    name = "fedcowpro"

    def losses(self, outputs: Mapping[Role, Outputs], target: Tensor, context: StepContext) -> Losses:
        """`outputs["local"].logits`: features (2B, C, h, w), the B supports before the B queries.

        `target`: their pseudo-masks, (2B, 1, H, W) of 0/1.
        """
        support, query = outputs["local"].logits.float().chunk(2)
        support_mask, query_mask = target.float().chunk(2)
        of_query = predict(query, support, support_mask)
        of_support = predict(support, query, query_mask)
        p = torch.softmax(of_query, 1)[:, 1:]
        cowpro = query_cross_entropy(of_query, query_mask) + support_cross_entropy(of_support, support_mask)
        spatial, edge = spatial_dice(p, query_mask), edge_dice(p, query_mask)
        terms = {"cowpro": cowpro.detach(), "spatial_dice": spatial.detach(), "edge_dice": edge.detach()}
        return Losses({"local": cowpro + spatial + edge}, terms)


# ---------------------------------------------------------------- prototypes and scores


def background_prototypes(features: Tensor, mask: Tensor, window: int) -> Bag:
    """P_BG of (1). `features` (B, C, h, w), `mask` (B, 1, H, W): the foreground's."""
    local, kept, mean, exists = _prototypes(features, 1 - mask, window)
    fallback = exists & ~kept.any(1, keepdim=True)
    return Bag(torch.cat([local, mean], 1), torch.cat([kept, fallback], 1))


def foreground_prototypes(features: Tensor, mask: Tensor, window: int) -> Bag:
    """P_FG of (1). `features` (B, C, h, w), `mask` (B, 1, H, W)."""
    local, kept, mean, exists = _prototypes(features, mask, window)
    return Bag(torch.cat([local, mean], 1), torch.cat([kept, exists], 1))


def _prototypes(features: Tensor, mask: Tensor, window: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Window means (B, K, C) and which are inside (B, K); masked mean (B, 1, C) and whether there is one."""
    small = F.adaptive_avg_pool2d(mask, (features.shape[2], features.shape[3]))
    local = F.avg_pool2d(features, window).flatten(2).transpose(1, 2)
    kept = F.avg_pool2d(small, window).flatten(1) > INSIDE
    area = small.sum((2, 3))
    mean = (features * small).sum((2, 3)) / area.clamp(min=1e-6)
    return local, kept, mean[:, None], area > 0


def normalised(vectors: Tensor, dim: int) -> Tensor:
    """x~ of (2): centred over channels and of length 1, so that a product of two is their correlation."""
    centred = vectors - vectors.mean(dim, keepdim=True)
    return F.normalize(centred, dim=dim, eps=LEAST_NORM)


def correlation_score(query: Tensor, bag: Bag) -> Tensor:
    """Equations (2) and (3): `query` (B, C, h, w) → (B, h, w) in −20 … 20.

    A bag of one support serves any number of queries.
    """
    d = SCALE * torch.einsum("bchw,bkc->bkhw", normalised(query, 1), normalised(bag.vectors, 2))
    kept = bag.kept[:, :, None, None]
    weights = torch.softmax(d.masked_fill(~kept, torch.finfo(d.dtype).min), 1)
    return torch.where(kept.any(1), (weights * d).sum(1), -SCALE)


def scores(query: Tensor, background: Bag, foreground: Bag, size: tuple[int, int]) -> Tensor:
    """Logits (B, 2, *size) of background and foreground, in float32."""
    query = query.float()
    logits = torch.stack([correlation_score(query, background), correlation_score(query, foreground)], 1)
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)


def predict(query: Tensor, support: Tensor, support_mask: Tensor, window: int = WINDOW_TRAINING) -> Tensor:
    """z(q | s): logits (B, 2, H, W) of the queries, by the supports' prototypes; features (B, C, h, w)."""
    support = support.float()
    height, width = support_mask.shape[2:]
    background = background_prototypes(support, support_mask, window)
    foreground = foreground_prototypes(support, support_mask, window)
    return scores(query, background, foreground, (height, width))


# ---------------------------------------------------------------- losses


def query_cross_entropy(logits: Tensor, mask: Tensor) -> Tensor:
    """First term of (4): `logits` (B, 2, H, W), `mask` (B, 1, H, W)."""
    weights = logits.new_tensor([BACKGROUND_WEIGHT, 1.0])
    return F.cross_entropy(logits, mask[:, 0].long(), weight=weights)


def support_cross_entropy(logits: Tensor, mask: Tensor) -> Tensor:
    """Second term of (4)."""
    return F.cross_entropy(logits, mask[:, 0].long())


def spatial_dice(p: Tensor, mask: Tensor) -> Tensor:
    """L_ds, equation (5), mean over episodes; `p` and `mask` (B, 1, H, W)."""
    overlap, sizes = (p * mask).sum((1, 2, 3)), (p.square() + mask.square()).sum((1, 2, 3))
    return (1 - (2 * overlap + 1) / (sizes + 1)).mean()


def edge_dice(p: Tensor, mask: Tensor) -> Tensor:
    """L_es, equation (6)."""
    return spatial_dice(edges(p), edges(mask))


def edges(image: Tensor) -> Tensor:
    """Sobel magnitude of (B, 1, H, W); beyond the border the image goes on as it ends [O]."""
    x = image.new_tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])
    kernels = torch.stack([x, x.T])[:, None]
    gradient = F.conv2d(F.pad(image, (1, 1, 1, 1), mode="replicate"), kernels)
    return (gradient.square().sum(1, keepdim=True) + 1e-12).sqrt()
