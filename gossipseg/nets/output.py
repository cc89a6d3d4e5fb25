"""The output of every network in the registry."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class NetOutput(NamedTuple):
    """The answer of a network to a batch (B, channels, *spatial)."""

    logits: Tensor
    """(B, C, *spatial), at the resolution of the input."""
    aux: tuple[Tensor, ...] = ()
    """Heads of deep supervision, finest first, coarser than the input; empty in evaluation."""
    clean: Tensor | None = None
    """Detached logits with dropout off, where the network has them almost for free; else None."""
