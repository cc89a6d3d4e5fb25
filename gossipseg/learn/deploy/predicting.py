"""What a deployment says of one image: logits that are finite, or an error that names who says otherwise.

The label of logits that are not numbers would be background, and look like a prediction.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from gossipseg.errors import LocalError
from gossipseg.learn.deploy.choice import OF_PEER
from gossipseg.learn.deploy.deployment import Deployment
from gossipseg.learn.evaluation.evaluate import predict_logits
from gossipseg.learn.evaluation.mixture import Mixture


def logits_of(deployment: Deployment, image: Tensor, file: Path) -> Tensor:
    """Logits (K, *spatial) float32 on the CPU of a prepared image (C, *spatial). `file`: where it is from.

    Raises LocalError where they are not finite.
    """
    logits = _predict(deployment, deployment.net, image)
    if bool(torch.isfinite(logits).all()):
        return logits
    names = _not_finite(deployment, image)
    if any(name.startswith(OF_PEER) for name in names):
        remedy = "Write inference.max_members: 2 in site.yaml: then no other site's model predicts."
    else:
        remedy = "Look at the image's values; if they are in order, the model's weights have diverged."
    who = " and ".join(names)
    raise LocalError(f"{file}: no mask is written: what {who} predicts of it is not finite. {remedy}")


def _predict(deployment: Deployment, net: nn.Module, image: Tensor) -> Tensor:
    settings = deployment.settings
    return predict_logits(net, image, settings.task, settings.training, deployment.compute.device)


def _not_finite(deployment: Deployment, image: Tensor) -> list[str]:
    """The members whose own logits are not finite; of one network alone, its name in the status."""
    net, names = deployment.net, [name for name, weight in deployment.members.items() if weight > 0]
    if not isinstance(net, Mixture):
        return [f"the {names[0] if names else deployment.weights} model"]
    finite = [bool(torch.isfinite(_predict(deployment, member, image)).all()) for member in net.members]
    return [name for name, good in zip(names, finite, strict=True) if not good] or ["their mix"]
