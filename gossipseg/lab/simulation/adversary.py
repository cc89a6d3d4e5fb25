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
from gossipseg.learn.exchange.wire_format import INT8, entries_of, read_tensor, to_wire
from gossipseg.store import SCALES, is_scales

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
        return tensor.float() * SCALE
    # a model of the usual size, so that no norm reveals it
    size = float(tensor.float().square().mean().sqrt()) if tensor.numel() else 0.0
    return torch.randn(tensor.shape, generator=generator) * size


def _rewrite(path: Path, spoil: Callable[[Tensor], Tensor]) -> None:
    changed: dict[str, Tensor] = {}
    with safe_open(path, framework="pt") as file:
        metadata, names = file.metadata(), set(file.keys())
        for name in sorted(name for name in names if not is_scales(name)):
            quantised = name + SCALES in names
            tensor = read_tensor(file, name, quantised=quantised)
            if not tensor.is_floating_point():
                changed[name] = tensor
            elif quantised:
                changed |= _in_int8(name, spoil(tensor))
            else:
                spoilt = spoil(tensor)
                changed[name] = spoilt if spoilt.isnan().any() else to_wire(spoilt, "float16")
    save_file(changed, path, metadata)


def _in_int8(name: str, spoilt: Tensor) -> dict[str, Tensor]:
    """The entries of a spoilt tensor; what is not finite shows in the scales."""
    entries = entries_of(name, spoilt.nan_to_num(), INT8)
    if spoilt.isnan().any():
        entries[name + SCALES].fill_(float("nan"))
    return entries


class FlippedLabels:
    """Batches with flipped labels: background for the last class, the last class for background."""

    def __init__(self, batches: Batches, labels: int) -> None:
        self._batches, self._labels = batches, labels

    def batch(self, seed: int, site: str, round: int, step: int) -> Batch:
        """A batch of the wrapped object; `label` values l become L − 1 − l."""
        batch = self._batches.batch(seed, site, round, step)
        return {**batch, "label": self._labels - 1 - batch["label"]}
