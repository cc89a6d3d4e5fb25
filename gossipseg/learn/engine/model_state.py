"""A site's model and what goes with it: weights W, optimizer, scaler, and the EMA that is deployed.

The EMA is an average over trained weights alone. W_t are the weights at the end of a round's own steps,
before any merge; e_1 = W_1, and

    e_t = d_t·e_(t−1) + (1 − d_t)·W_t,   d_t = min(d, (t−1)/(t+8)),   d = training.ema_decay

so that the weights on W_1 … W_t sum to one and none lies on what was there before. t counts the rounds since
the average began: it begins anew when the site takes a model over, and with fine-tuning. The decay warms up
instead of being bias-corrected: a corrected average of three rounds has 30 % of its weight on the first and
37 % on the last, this one 2 % and 82 %, and early in a training the last weights are by far the best.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gossipseg.algos.base import Weights
from gossipseg.learn.engine.precision import Compute
from gossipseg.learn.engine.train_step import Learner, make_learner
from gossipseg.learn.settings import WorkerSettings
from gossipseg.nets.segmenter import Segmenter


class ModelState:
    """The training model with its optimizer, and the EMA of it."""

    def __init__(
        self,
        model: Segmenter,
        settings: WorkerSettings,
        compute: Compute,
        *,
        keeps_rounds: int = 0,
    ) -> None:
        """`keeps_rounds`: how many rounds' W are kept (`recent`)."""
        self._settings, self._compute = settings, compute
        model = compute.place_model(model, settings.task.spatial_dims)
        self.learner: Learner = make_learner(model, settings.training, compute)
        self.ema: Segmenter = copy.deepcopy(model).requires_grad_(False).eval()
        self.averaged_rounds = 0
        """t: rounds that the EMA has taken in since it began; 0: it is no average yet."""
        self.recent: deque[dict[str, Tensor]] = deque(maxlen=keeps_rounds)
        """W at the end of the last rounds' steps, the newest last, on the CPU."""

    @property
    def model(self) -> Segmenter:
        """The training model W."""
        return self.learner.model

    def weights(self) -> dict[str, Tensor]:
        """W's state dict, live."""
        return dict(self.model.state_dict())

    def renew_optimizer(self) -> None:
        """Forget the moments: they belonged to other weights."""
        self.learner = make_learner(self.model, self._settings.training, self._compute)

    def become(self, incoming: Weights) -> None:
        """Take over the named weights outright: model and EMA, which begins anew, with a fresh optimizer."""
        for model in (self.model, self.ema):
            model.load_state_dict(dict(incoming), strict=False)
        self.begin_average()
        self.recent.clear()
        self.renew_optimizer()

    def return_to_average(self) -> None:
        """Be the average again, with a fresh optimizer: the weights are lost."""
        self.model.load_state_dict(self.ema.state_dict())
        self.renew_optimizer()

    def begin_average(self) -> None:
        """Let the next round's weights be the whole of the EMA."""
        self.averaged_rounds = 0

    @torch.no_grad()
    def take_in_round(self) -> None:
        """The round's steps are done: e_t, over the parameters (buffers are copied), and W_t is kept."""
        self.averaged_rounds += 1
        self._move_average(1 - self._decay)
        for mine, its in zip(self.ema.buffers(), self.model.buffers(), strict=True):
            mine.copy_(its)
        self.keep_round()

    def keep_round(self) -> None:
        """Keep W as that of a round's end."""
        if self.recent.maxlen:
            self.recent.append(cpu_copy(self.model.state_dict()))

    @torch.no_grad()
    def withdraw_round(self) -> None:
        """Undo take_in_round() while W is still what it took in: e_(t−1) = (e_t − (1−d_t)·W_t)/d_t, within
        rounding.

        Buffers stay, and at t = 1 all of the EMA does: the next round replaces them. An average that has
        taken in nothing has nothing to give back.
        """
        if not self.averaged_rounds:
            return
        if self._decay > 0:
            self._move_average(1 - 1 / self._decay)
        self.averaged_rounds -= 1
        if self.recent:
            self.recent.pop()

    @property
    def _decay(self) -> float:
        """d_t."""
        return decay_of(self._settings.training.ema_decay, self.averaged_rounds)

    def _move_average(self, share: float) -> None:
        torch._foreach_lerp_(list(self.ema.parameters()), list(self.model.parameters()), share)

    def snapshot(self) -> dict[str, Any]:
        """Copies on the CPU, which restore() puts back."""
        state: dict[str, Any] = {**_state(self.learner), "ema": self.ema.state_dict()}
        state["averaged_rounds"] = self.averaged_rounds
        copied: dict[str, Any] = cpu_copy(state)
        return copied

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Back to a snapshot, perhaps one from another device."""
        self.ema.load_state_dict(snapshot["ema"])
        # A checkpoint of version 0.1 has no such number, and an average that its first weights are part of:
        # the next round begins it anew.
        self.averaged_rounds = snapshot.get("averaged_rounds", 0)
        self._restore(self.learner, snapshot)

    def _restore(self, learner: Learner, state: Mapping[str, Any]) -> None:
        learner.model.load_state_dict(state["model"])
        learner.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        for group in learner.optimizer.param_groups:
            group["weight_decay"] = self._settings.training.weight_decay  # the settings' own, not the file's
        if state["scaler"] and learner.scaler.is_enabled():
            learner.scaler.load_state_dict(state["scaler"])


def decay_of(most: float, round: int) -> float:
    """d_t of the average's round t (from 1): min(`most`, (t−1)/(t+8))."""
    return min(most, (round - 1) / (round + 8))


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
