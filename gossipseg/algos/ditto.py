"""`ditto`: FedAvg, and a personal model held near the common one (Li 2021, arXiv 2012.04221).

Standing: textbook. W is trained and combined as in fedavg.py; beside it each site k trains a personal
model V_k that is never mixed:

    L(V_k) = L_seg + λ/2·‖V_k − W‖²                                                                       (1)

W is the last global model, before the first one arrives the shared initial model W_0; the sum runs over the
parameters that travel.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from gossipseg.algos.base import Losses, Outputs, Role, StepContext
from gossipseg.algos.fedavg import FedAvg
from gossipseg.algos.fedprox import squared_distance


class Ditto(FedAvg):
    """Equation (1). The model that travels trains as in FedAvg, on the same batches."""

    name = "ditto"
    needs_anchor = True
    trains_personal = True

    def __init__(self, lambda_: float, weighting: Literal["cases", "uniform"] = "cases") -> None:
        super().__init__(weighting)
        self.lambda_ = lambda_

    def losses(self, outputs: Mapping[Role, Outputs], target: Tensor, context: StepContext) -> Losses:
        seg = context.segmentation_loss(outputs["local"], target)
        if "personal" not in outputs:
            return Losses({"local": seg}, {"seg": seg.detach()})
        own = context.segmentation_loss(outputs["personal"], target)
        prox = squared_distance(context.parameters["personal"], context.anchor)
        return Losses(
            {"local": seg, "personal": own + self.lambda_ / 2 * prox},
            {"seg": seg.detach(), "personal_seg": own.detach(), "distance2": prox.detach()},
        )
