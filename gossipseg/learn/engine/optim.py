"""The optimizer and its learning rate, as functions of the settings."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

from gossipseg.learn.params import TrainingParams
from gossipseg.learn.params import cosine_rate as cosine_rate
from gossipseg.learn.rates import learning_rate as learning_rate

SGD_MOMENTUM = 0.9


def make_optimizer(
    model: nn.Module, training: TrainingParams, *, scaled: bool = False
) -> torch.optim.Optimizer:
    """A fresh optimizer over all parameters of the model that train.

    SGD has Nesterov momentum, as segmentation is mostly trained (nnU-Net): a paper's plain "momentum 0.9"
    takes other steps.

    `scaled`: a GradScaler may skip steps. torch's fused SGD would begin its momentum with memory that no
    skipped step has written.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    lr, decay = training.learning_rate, training.weight_decay
    if training.optimizer == "sgd":
        return torch.optim.SGD(
            parameters, lr=lr, momentum=SGD_MOMENTUM, nesterov=True, weight_decay=decay, fused=not scaled
        )
    kind = torch.optim.AdamW if training.optimizer == "adamw" else torch.optim.Adam
    return kind(parameters, lr=lr, weight_decay=decay, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Let the next step use this learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def step_seed(seed: int, site: str, round: int, step: int) -> int:
    """The torch seed of a step (dropout): the same for every algorithm, and after every resume."""
    key = f"{seed}/{site}/{round}/{step}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little") >> 1
