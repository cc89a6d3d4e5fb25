"""THE training step: the only place in the package that calls backward and steps an optimizer.

What belongs here: autocast → the algorithm's losses → backward → clip → optimizer, for one model or for two
side by side. What must not: batches, rounds, validation, anything an algorithm decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gossipseg.algos.base import Algorithm, Outputs, Role, StepContext
from gossipseg.learn.amp import Compute
from gossipseg.learn.optim import make_optimizer
from gossipseg.learn.params import TrainingParams
from gossipseg.nets.segmenter import Segmenter


@dataclass(slots=True)
class Learner:
    """A model that trains, with its own optimizer and its own gradient scaler (enabled for fp16 only)."""

    model: Segmenter
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step did; tensors stay on the device, so that reading them is the caller's choice."""

    loss: Tensor
    """The local model's total, detached."""
    terms: Mapping[str, Tensor]
    skipped: frozenset[Role]
    """Models that took no step because their loss or gradient was not finite."""


def make_learner(model: Segmenter, training: TrainingParams, compute: Compute) -> Learner:
    """A model with a fresh optimizer and scaler."""
    scaler = torch.amp.GradScaler(compute.device.type, enabled=compute.autocast_dtype is torch.float16)
    return Learner(model, make_optimizer(model, training), scaler)


def train_step(
    learners: Mapping[Role, Learner],
    image: Tensor,
    target: Tensor,
    algorithm: Algorithm,
    context: StepContext,
    compute: Compute,
    clip_grad_norm: float,
) -> StepResult:
    """One optimizer step of each learner on the same batch.

    `image`: (B, C, *spatial) float32 on the device; `target`: as losses.make_target gives it.
    A learner whose gradient is not finite keeps its weights and is named in `skipped`.
    """
    partners = "incoming" in learners
    outputs: dict[Role, Outputs] = {
        role: _forward(learner.model, image, compute, partners) for role, learner in learners.items()
    }
    with torch.autocast(compute.device.type, enabled=False):
        losses = algorithm.losses(outputs, target, context)
    del outputs
    skipped = {
        role for role, learner in learners.items() if not _update(learner, losses.total[role], clip_grad_norm)
    }
    return StepResult(losses.total["local"].detach(), losses.terms, frozenset(skipped))


def _forward(model: Segmenter, image: Tensor, compute: Compute, partners: bool) -> Outputs:
    with compute.autocast():
        out = model(image)
        clean = model.clean_logits(image, out).float() if partners else None
    return Outputs(out.logits.float(), tuple(head.float() for head in out.aux), clean)


def _update(learner: Learner, loss: Tensor, clip_grad_norm: float) -> bool:
    """Backward, clip, step; whether everything was finite."""
    learner.optimizer.zero_grad(set_to_none=True)
    learner.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
    learner.scaler.unscale_(learner.optimizer)
    parameters = [p for group in learner.optimizer.param_groups for p in group["params"]]
    norm = nn.utils.clip_grad_norm_(parameters, clip_grad_norm or float("inf"))
    if learner.scaler.is_enabled():
        # It skips the step itself when fp16 overflowed, which is normal while it looks for its scale.
        learner.scaler.step(learner.optimizer)
        learner.scaler.update()
        return bool(torch.isfinite(loss.detach()))
    if not bool(torch.isfinite(norm)):
        return False
    learner.scaler.step(learner.optimizer)
    return True
