"""Settings of FedCoWPro."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from gossipseg.algos.params.common import Coordinated, Personal

PseudoLabelMethod = Literal["alp", "cow"]


@dataclass(frozen=True, slots=True)
class FedCoWProParams(Coordinated):
    """Self-supervised one-shot segmentation (arXiv 2503.23507); symbols as in docs/design/equations.md §3."""

    personal: ClassVar[Personal] = "no"
    networks: ClassVar[tuple[str, ...] | None] = ("cowpro_encoder",)
    name: Literal["fedcowpro"] = "fedcowpro"
    """The algorithm."""
    pseudo_labels: PseudoLabelMethod = "alp"
    """Superpixels of the plain slice, or merged regions of the smoothed one."""
    weighting: Literal["cases", "uniform"] = "uniform"
    """CT scans have many more slices than MR: uniform unless said otherwise."""
