"""THE training step: the only place in the package that calls backward and steps an optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from gossipseg.algos.base import Algorithm, Losses, Outputs, Role, StepContext
from gossipseg.learn.engine.optim import make_optimizer
from gossipseg.learn.engine.precision import Compute
from gossipseg.learn.params import TrainingParams
from gossipseg.nets.features import at_input_size, tapped
from gossipseg.nets.segmenter import Segmenter

if TYPE_CHECKING:
    from opacus.optimizers import DPOptimizer


See = Callable[[Outputs], Outputs]


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
    shown: Outputs | None = None
    """What the local model said, detached and with dropout off, where it was asked to show it."""


def make_learner(model: Segmenter, training: TrainingParams, compute: Compute) -> Learner:
    """A model with a fresh optimizer and scaler."""
    scaler = torch.amp.GradScaler(compute.device.type, enabled=compute.autocast_dtype is torch.float16)
    return Learner(model, make_optimizer(model, training, scaled=scaler.is_enabled()), scaler)


def train_step(
    learners: Mapping[Role, Learner],
    image: Tensor,
    target: Tensor,
    algorithm: Algorithm,
    context: StepContext,
    compute: Compute,
    clip_grad_norm: float,
    seen: See = lambda outputs: outputs,
    partners: Mapping[Role, Outputs] | None = None,
    *,
    show: bool = False,
    features: bool = False,
) -> StepResult:
    """One optimizer step of each learner on the same batch.

    `image`: (B, C, *spatial) float32 on the device; `target`: as losses.make_target gives it. `seen`: what
    the losses see of a network's outputs, in which `target` counts its classes. `partners`: what models that
    do not train here say of the batch. `show`: whether the result holds what the local model says.
    `features`: whether that, and what the losses see, has feature maps.
    A learner whose gradient is not finite keeps its weights and is named in `skipped`.
    """
    clean = show or len(learners) > 1
    outputs: dict[Role, Outputs] = {
        role: seen(_forward(learner.model, image, compute, clean, features))
        for role, learner in learners.items()
    }
    shown = _shown(outputs["local"]) if show else None
    outputs |= partners or {}
    with torch.autocast(compute.device.type, enabled=False):
        losses = algorithm.losses(outputs, target, context)
    del outputs
    skipped = {
        role for role, learner in learners.items() if not _update(learner, losses.total[role], clip_grad_norm)
    }
    return StepResult(losses.total["local"].detach(), losses.terms, frozenset(skipped), shown)


def show(
    model: Segmenter,
    image: Tensor,
    compute: Compute,
    seen: See = lambda outputs: outputs,
    *,
    features: bool = False,
) -> Outputs:
    """What a model that does not train now says of a batch, with dropout off. It is left as it was."""
    mode = model.training
    model.eval()
    with torch.no_grad():
        outputs = seen(_forward(model, image, compute, False, features))
    model.train(mode)
    return _shown(outputs)


def _shown(outputs: Outputs) -> Outputs:
    logits = outputs.logits if outputs.clean is None else outputs.clean
    features = outputs.features if outputs.clean_features is None else outputs.clean_features
    return Outputs(logits.detach(), features=None if features is None else features.detach())


def private_step(
    learner: Learner,
    cases: Iterable[tuple[Tensor, Tensor, int]],
    algorithm: Algorithm,
    context: StepContext,
    compute: Compute,
    optimizer: DPOptimizer,
    seen: See = lambda outputs: outputs,
) -> StepResult | None:
    """One optimizer step of which each case changes the direction by a bounded length, under noise.

    `cases`: image (1, C, *spatial), target, and torch seed of each; none at all still makes a step.
    `optimizer`: privacy.dp_sgd's, around the learner's own. One case at a time goes through the network:
    no layer and no loss can mix two of them, and memory holds one gradient more. None: no case was drawn.
    """
    losses: list[Losses] = []
    optimizer.zero_grad(set_to_none=True)
    for image, target, seed in cases:
        torch.manual_seed(seed)
        outputs: dict[Role, Outputs] = {"local": seen(_forward(learner.model, image, compute, False))}
        with torch.autocast(compute.device.type, enabled=False):
            found = algorithm.losses(outputs, target, context)
        found.total["local"].backward()  # type: ignore[no-untyped-call]
        losses.append(Losses({"local": found.total["local"].detach()}, found.terms))
        _take_in(optimizer)
    for parameter in optimizer.params:
        parameter.grad_sample = parameter.new_zeros((0, *parameter.shape))
    optimizer.step()  # nothing is left to add: clipped gradients so far, noise, step
    optimizer.zero_grad(set_to_none=True)
    if not losses:
        return None
    terms = {name: torch.stack([x.terms[name] for x in losses]).mean() for name in losses[0].terms}
    total = torch.stack([x.total["local"] for x in losses]).mean()
    return StepResult(total, terms, frozenset())


def _take_in(optimizer: DPOptimizer) -> None:
    """Add one case's gradient, clipped; as nothing if it is not finite, so that nobody else's is lost."""
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in optimizer.params]
    sound = bool(torch.stack([torch.isfinite(g).all() for g in gradients]).all())
    for parameter, gradient in zip(optimizer.params, gradients, strict=True):
        parameter.grad_sample = (gradient if sound else torch.zeros_like(gradient))[None]
    optimizer.signal_skip_step(True)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _forward(
    model: Segmenter, image: Tensor, compute: Compute, partners: bool, features: bool = False
) -> Outputs:
    taps: AbstractContextManager[list[Tensor]] = tapped(model) if features else nullcontext([])
    with compute.autocast(), taps as maps:
        out = model(image)
        clean = model.clean_logits(image, out).float() if partners else None
    found = Outputs(out.logits.float(), tuple(head.float() for head in out.aux), clean)
    if not features:
        return found
    first, last = (at_input_size(model, maps[i], image.shape[2:]).float() for i in (0, -1))
    return replace(found, features=first, clean_features=last.detach() if partners else None)


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
