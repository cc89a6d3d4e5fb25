"""`fedprox`: FedAvg whose sites stay near the global model (Li 2018, arXiv 1812.06127).

Standing: textbook. Updates are combined by equation (1) of fedavg.py; each site k trains with

    L_k = L_seg + μ/2·‖W_k − W‖²                                                                          (1)

W is the last global model, before the first one arrives the shared initial model W_0; the sum runs over the
parameters that travel.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Literal

import torch
from torch import Tensor

from gossipseg.algos.base import Losses, Outputs, Role, StepContext, Weights
from gossipseg.algos.fedavg import FedAvg


class FedProx(FedAvg):
    """Equation (1)."""

    name = "fedprox"
    needs_anchor = True

    def __init__(
        self,
        mu: float,
        weighting: Literal["cases", "uniform"] = "cases",
        private_names: Collection[str] = (),
    ) -> None:
        super().__init__(weighting, private_names)
        self.mu = mu

    def losses(self, outputs: Mapping[Role, Outputs], target: Tensor, context: StepContext) -> Losses:
        seg = context.segmentation_loss(outputs["local"], target)
        prox = squared_distance(context.parameters["local"], context.anchor)
        return Losses({"local": seg + self.mu / 2 * prox}, {"seg": seg.detach(), "distance2": prox.detach()})


def squared_distance(parameters: Weights, anchor: Weights) -> Tensor:
    """Σ (W − W_anchor)² over the parameters that the anchor names; 0 where there is none."""
    terms = [
        (parameter.float() - anchor[name].float()).square().sum()
        for name, parameter in parameters.items()
        if name in anchor
    ]
    return torch.stack(terms).sum() if terms else torch.zeros(())
