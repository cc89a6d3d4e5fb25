"""Running statistics of batch norm, measured anew for weights that come from elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from gossipseg.learn.engine.precision import Compute

BATCHES = 10
"""Batches of the receiver's that are seen."""


@torch.no_grad()
def reestimate(model: nn.Module, images: Callable[[], Iterable[Tensor]], compute: Compute) -> None:
    """Set every running mean and variance to its plain average over the batches, dropout off.

    `images` gives (B, C, *spatial) on the device; it is not called where the network has no batch norm.
    The model is left in the mode it was in.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    norms = [n for n in norms if n.track_running_stats]
    if not norms:
        return
    momenta, was_training = [n.momentum for n in norms], model.training
    model.eval()
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.train()
            norm.momentum = None  # torch's word for a cumulative average
        for image in images():
            with compute.autocast():
                model(image)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        model.train(was_training)
