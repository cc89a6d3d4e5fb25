"""Clip and noise: what leaves a site is its change, cut to a length and blurred.

With W the site's tensors that travel and R the reference that everybody may know (the last global model that
the site took in; in one-way gossip the model it released last; under swaps (2); a model that was taken over;
W_0 at the beginning), over all floating-point tensors together,

    Δ = W − R
    W' = R + Δ·min(1, C/‖Δ‖) + N(0, (z·C)²)          C: clip_norm, z: noise_multiplier                     (1)

Whole numbers travel as they are. In one-way gossip R is what was released, so that the clipped remainder and
the noise do not add up: the next Δ holds what is missing, and takes the noise out again. Under swaps R is the
part of W that others know. It moves when a swap is applied, as the model does (learn/exchange/swap.py), by
the partner's snapshot S and its weight w,

    R' = B + w·(S − B)          B: this site's own snapshot where the partner got it, else R               (2)

so that W − R is what nobody has been told, and a snapshot that reached nobody moves nothing. A site that only
gives (its partner copies it, or cannot be called back) has released its snapshot when it is made.

Equation (1) is the Gaussian mechanism on the update of one release. It gives no ε here, and none is shown:
steps, batches and the number of releases would have to be accounted for together. What it does protect:
docs/ml/privacy.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gossipseg.algos.base import Weights
from gossipseg.learn.engine.optim import step_seed
from gossipseg.learn.params import PrivacyParams
from gossipseg.learn.privacy.csprng import secret_generator


class Release:
    """Equation (1), and the reference that it needs: one more model on the CPU."""

    def __init__(self, params: PrivacyParams, site: str, reference: Weights) -> None:
        """`reference`: the tensors of W_0 that travel."""
        self._params, self._site = params, site
        self.reference: dict[str, Tensor] = {}
        self.set_reference(reference)

    @property
    def active(self) -> bool:
        """Whether anything is clipped at all."""
        return self._params.clip_norm is not None

    def set_reference(self, tensors: Weights) -> None:
        """A global model was taken in, a model released, or one taken over."""
        if self.active:
            self.reference = {
                name: tensor.detach().to("cpu", copy=True)
                for name, tensor in tensors.items()
                if tensor.is_floating_point()
            }

    def swapped(self, theirs: Weights, weight: float, told: Weights | None) -> None:
        """Equation (2). `theirs`: the partner's snapshot; `told`: the own one, where the partner got it."""
        moved = {}
        for name, reference in self.reference.items():
            base = reference if told is None else told[name].detach().to("cpu", torch.float32)
            moved[name] = base + weight * (theirs[name].detach().to("cpu", torch.float32) - base)
        self.reference = moved

    def of(self, weights: Weights, round: int) -> dict[str, Tensor]:
        """W' of the tensors that travel, each on its own device."""
        clip = self._params.clip_norm
        if clip is None:
            return dict(weights)
        known = {name: tensor for name, tensor in weights.items() if name in self.reference}
        length = math.sqrt(sum(_square(tensor, self.reference[name]) for name, tensor in known.items()))
        share = min(1.0, clip / length) if length > 0 else 1.0
        generator = self._generator(round)
        released = dict(weights)
        for name in sorted(known):
            released[name] = self._blurred(known[name], self.reference[name], share, clip, generator)
        return released

    def _blurred(
        self, tensor: Tensor, reference: Tensor, share: float, clip: float, generator: torch.Generator
    ) -> Tensor:
        mine = tensor.detach().to("cpu", torch.float32)
        noise = torch.randn(mine.shape, generator=generator) * (self._params.noise_multiplier * clip)
        return (reference + (mine - reference) * share + noise).to(tensor.device, tensor.dtype)

    def _generator(self, round: int) -> torch.Generator:
        """A generator of the system's own randomness; from the seed where one is set, for experiments."""
        seed = self._params.seed
        if seed is None:
            return secret_generator()
        return torch.Generator().manual_seed(step_seed(seed, f"{self._site}/release", round, 0))

    def state(self) -> dict[str, Any]:
        """The reference, for a checkpoint; empty where nothing is clipped."""
        return dict(self.reference)

    def load(self, state: Mapping[str, Tensor] | None) -> None:
        """Go on from state(); without one the reference stays."""
        if self.active and state:
            self.reference = {name: tensor.clone() for name, tensor in state.items()}


def _square(tensor: Tensor, reference: Tensor) -> float:
    return float((tensor.detach().to("cpu", torch.float32) - reference).double().square().sum())
