"""A malicious listed site: what it does to the models that it sends.

Its training, its messages and its turns as coordinator are those of an honest site. Only its own models are
bad: those it sends in gossip, and its updates.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from gossipseg.learn.engine.site_data import Batch, Batches
from gossipseg.learn.exchange.wire_format import to_wire

SCALE = 100.0
"""Factor by which `scaled` multiplies the model."""


def spoiler(kind: str, seed: int) -> Callable[[Path], None] | None:
    """A function that rewrites an exported wire file as this attack does; None: the trained model is sent."""
    if kind == "label_flipped":
        return None
    generator = torch.Generator().manual_seed(seed)
    return lambda path: _rewrite(path, lambda tensor: _spoilt(tensor, kind, generator))


def _spoilt(tensor: Tensor, kind: str, generator: torch.Generator) -> Tensor:
    if kind == "nan":
        return torch.full_like(tensor, float("nan"))
    if kind == "scaled":
        return to_wire(tensor.float() * SCALE, "float16")
    # a model of the usual size, so that no norm reveals it
    size = float(tensor.float().square().mean().sqrt()) if tensor.numel() else 0.0
    return to_wire(torch.randn(tensor.shape, generator=generator) * size, "float16")


def _rewrite(path: Path, spoil: Callable[[Tensor], Tensor]) -> None:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (it is no mapping)
    changed = {name: spoil(t) if t.is_floating_point() else t for name, t in tensors.items()}
    save_file(changed, path, metadata)


class FlippedLabels:
    """Batches with flipped labels: background for the last class, the last class for background."""

    def __init__(self, batches: Batches, labels: int) -> None:
        self._batches, self._labels = batches, labels

    def batch(self, seed: int, site: str, round: int, step: int) -> Batch:
        """A batch of the wrapped object; `label` values l become L − 1 − l."""
        batch = self._batches.batch(seed, site, round, step)
        return {**batch, "label": self._labels - 1 - batch["label"]}
