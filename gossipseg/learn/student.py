"""A site's model and what goes with it: weights W, optimizer, scaler, and the EMA that is deployed.

What belongs here: making, copying, restoring and averaging these. What must not: rounds, visits, the step.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gossipseg.algos.base import Weights
from gossipseg.learn.amp import Compute
from gossipseg.learn.setup import Setup
from gossipseg.learn.step import Learner, make_learner
from gossipseg.nets.segmenter import Segmenter

FIRST_MOMENTS = ("exp_avg", "momentum_buffer")
"""What Adam and SGD call them."""


class Student:
    """The training model with its optimizer, and the EMA of it."""

    def __init__(
        self, model: Segmenter, setup: Setup, compute: Compute, *, has_personal: bool = False
    ) -> None:
        """`has_personal`: a second model with the same beginning, which never travels and is deployed."""
        self._setup, self._compute = setup, compute
        model = compute.place_model(model, setup.task.spatial_dims)
        self.learner: Learner = make_learner(model, setup.training, compute)
        self.personal: Learner | None = None
        if has_personal:
            self.personal = make_learner(copy.deepcopy(model), setup.training, compute)
        self.ema: Segmenter = copy.deepcopy(model).requires_grad_(False).eval()

    @property
    def model(self) -> Segmenter:
        """The training model W: what is sent."""
        return self.learner.model

    @property
    def deployed(self) -> Segmenter:
        """The model whose average is deployed: the personal one where there is one, else W."""
        return self.learner.model if self.personal is None else self.personal.model

    def weights(self) -> dict[str, Tensor]:
        """W's state dict, live."""
        return dict(self.model.state_dict())

    def renew_optimizer(self) -> None:
        """Forget the moments: they belonged to other weights."""
        self.learner = make_learner(self.model, self._setup.training, self._compute)
        if self.personal is not None:
            self.personal = make_learner(self.personal.model, self._setup.training, self._compute)

    def forget_direction(self) -> None:
        """After another site's weights replaced W: first moments to 0, second ones kept (ALGORITHMS §1).

        The direction belonged to the old weights; the scale of the gradients is the data's.
        """
        for state in self.learner.optimizer.state.values():
            for name in FIRST_MOMENTS:
                if isinstance(state.get(name), Tensor):
                    state[name].zero_()

    def become(self, incoming: Weights) -> None:
        """Take over the named weights outright: model and EMA, with a fresh optimizer."""
        for model in (self.model, self.deployed, self.ema):
            model.load_state_dict(dict(incoming), strict=False)
        self.renew_optimizer()

    @torch.no_grad()
    def update_ema(self) -> None:
        """e ← d·e + (1−d)·W over the parameters; buffers are copied."""
        decay = self._setup.training.ema_decay
        torch._foreach_lerp_(list(self.ema.parameters()), list(self.deployed.parameters()), 1 - decay)
        for mine, its in zip(self.ema.buffers(), self.deployed.buffers(), strict=True):
            mine.copy_(its)

    @torch.no_grad()
    def withdraw_ema(self) -> None:
        """Undo update_ema() while W is still what it took in: e ← (e − (1−d)·W)/d, within rounding.

        Buffers stay, and with d = 0 all does: the next update replaces them.
        """
        decay = self._setup.training.ema_decay
        if decay > 0:
            torch._foreach_lerp_(list(self.ema.parameters()), list(self.deployed.parameters()), 1 - 1 / decay)

    def snapshot(self) -> dict[str, Any]:
        """Copies on the CPU, which restore() puts back."""
        state = {**_state(self.learner), "ema": self.ema.state_dict()}
        if self.personal is not None:
            state["personal"] = _state(self.personal)
        copied: dict[str, Any] = cpu_copy(state)
        return copied

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Back to a snapshot, perhaps one from another device."""
        self.ema.load_state_dict(snapshot["ema"])
        self._restore(self.learner, snapshot)
        if self.personal is not None:
            self._restore(self.personal, snapshot["personal"])

    def _restore(self, learner: Learner, state: Mapping[str, Any]) -> None:
        learner.model.load_state_dict(state["model"])
        learner.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        for group in learner.optimizer.param_groups:
            group["weight_decay"] = self._setup.training.weight_decay  # the settings' own, not the file's
        if state["scaler"] and learner.scaler.is_enabled():
            learner.scaler.load_state_dict(state["scaler"])


def _state(learner: Learner) -> dict[str, Any]:
    return {
        "model": learner.model.state_dict(),
        "optimizer": learner.optimizer.state_dict(),
        "scaler": learner.scaler.state_dict(),
    }


def cpu_copy(tree: Any) -> Any:
    """A tree of mappings and lists, its tensors copied to the CPU."""
    if isinstance(tree, Tensor):
        return tree.detach().to("cpu", copy=True)
    if isinstance(tree, Mapping):
        return {key: cpu_copy(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [cpu_copy(value) for value in tree]
    return tree
