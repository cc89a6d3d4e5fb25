"""FedOAP: personalised, organ-agnostic tumour segmentation (arXiv 2511.18847).

Standing: [P] the figure and the authors' earlier code; [O] our reading, where marked.

Site k has W_k = (γ, ρ_k): ρ_k are the parts that the network declares to be a site's own (Q-bottleneck, query
projection, adapter, head), γ everything else. Only γ travels: ρ_k is neither averaged nor overwritten.

    round         load γ, keep ρ_k, E steps of L_seg, send γ_k
    coordinator   γ ← Σ n_k γ_k / Σ n_k                                                                    (1)
    fine-tuning   the last rounds, alone; the best on validation is kept, that before them included:
                  Δ = 1[|p − y| > τ]                                                                       (2)
                  z~ = z + Δ·ε,   ε ~ N(0, σ²), fresh each step                                            (3)
                  L = (1−λ)·L_seg(z, y) + λ·L_seg(z~, y)                                                   (4)

L_seg is the training settings' own, as for every algorithm here (the paper: 0.5·BCE + soft Dice). In (2) a
sigmoid network's p and y are a channel's; a softmax network's |p − y| is 1 − p_y, y the true label, and all
its channels are perturbed there [O]. No gradient flows through Δ. λ = 0 is the control: plain fine-tuning.
A site that joins late trains ρ_k alone in its first round: γ is frozen.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Literal

import torch
from torch import Tensor

from gossipseg.algos.base import Losses, Outputs, Role, StepContext, StepPosition, Weights
from gossipseg.algos.fedavg import FedAvg
from gossipseg.algos.params import FedOapParams
from gossipseg.errors import ConfigError
from gossipseg.nets.params import WITH_PRIVATE_PARTS


class FedOap(FedAvg):
    """Equations (1) to (4). `private_names`: the tensors of ρ."""

    name = "fedoap"
    keeps_best_finetuned = True

    def __init__(self, params: FedOapParams, private_names: Collection[str]) -> None:
        if not private_names:
            raise ConfigError(
                "fedoap needs a network of which some parts are a site's own; this one has none",
                key="network.name",
                remedy=f"Choose one of: {', '.join(WITH_PRIVATE_PARTS)}.",
            )
        super().__init__(params.weighting, private_names)
        self.params = params

    def losses(self, outputs: Mapping[Role, Outputs], target: Tensor, context: StepContext) -> Losses:
        finetuning = context.moment is not None and context.moment.finetuning
        if not finetuning or self.params.lambda_ == 0:
            return super().losses(outputs, target, context)
        return self._perturbed_loss(outputs["local"], target, context)

    def _perturbed_loss(self, outputs: Outputs, target: Tensor, context: StepContext) -> Losses:
        """Equation (4)."""
        z, lambda_ = outputs.logits, self.params.lambda_
        wrong = boundary(z.detach(), target, context.output, self.params.tau)
        z_tilde = z + wrong * noise(z, self.params.sigma, context.noise_seed)
        seg = context.segmentation_loss(outputs, target)
        perturbed = context.segmentation_loss(Outputs(z_tilde, outputs.aux), target)
        return Losses(
            {"local": (1 - lambda_) * seg + lambda_ * perturbed},
            {"seg": seg.detach(), "perturbed": perturbed.detach(), "wrong": wrong.float().mean()},
        )

    def is_frozen(self, name: str, moment: StepPosition) -> bool:
        return moment.settling_in and self.is_shared(name)

    def on_global(self, local: Weights, incoming: Weights) -> Weights:
        """γ from the global model; ρ stays, whatever came."""
        return {
            name: incoming.get(name, tensor) if self.is_shared(name) else tensor
            for name, tensor in local.items()
        }


def boundary(z: Tensor, y: Tensor, output: Literal["softmax", "sigmoid"], tau: float) -> Tensor:
    """Equation (2): bool, (B, C, *spatial) for sigmoid, (B, 1, *spatial) for softmax."""
    known = y >= 0
    if output == "sigmoid":
        return known & ((torch.sigmoid(z) - y).abs() > tau)
    p_y = torch.softmax(z, dim=1).gather(1, y.long().clamp(min=0))
    return known & (1 - p_y > tau)


def noise(like: Tensor, sigma: float, seed: int) -> Tensor:
    """ε of equation (3), from a generator of its own: other random numbers stay as they were."""
    generator = torch.Generator(like.device).manual_seed(seed)
    return sigma * torch.randn(like.shape, generator=generator, device=like.device, dtype=like.dtype)
