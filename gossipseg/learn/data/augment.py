"""Random changes of a training patch, drawn from the batch's own stream.

`flip`: each axis that flips.py allows, with probability ½. `standard`: flips; with probability 0.4 a rotation
(±15° in 2-D, and about each axis in 3-D; in mm where the voxel size is known) and zoom (0.85 … 1.2); then
contrast, brightness, gamma and noise with probabilities 0.3, 0.3, 0.3, 0.2.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

Augment = Literal["none", "flip", "standard"]

AFFINE_PROBABILITY = 0.4
ROTATION_DEG = 15.0
ZOOM = (0.85, 1.2)
CONTRAST = (0.75, 1.3)
BRIGHTNESS_STD = 0.15
GAMMA = (0.7, 1.5)
NOISE_STD = 0.15


@dataclass(frozen=True, slots=True)
class Draw:
    """Geometry of one patch: offsets in voxels times `matrix`, then the axes `flips` turned round."""

    matrix: np.ndarray | None = None
    flips: tuple[int, ...] = ()


def draw_augmentation(
    rng: np.random.Generator,
    augment: Augment,
    dims: int,
    spacing_mm: tuple[float, ...] | None,
    mirrored: Collection[int],
) -> Draw:
    """The geometric part for one patch. `mirrored`: the axes that may be, counted from 0 without the channel.

    All axes are drawn for, whichever may be mirrored: the draws that follow are the same.
    """
    if augment == "none":
        return Draw()
    flips = tuple(1 + int(a) for a in np.flatnonzero(rng.random(dims) < 0.5) if a in mirrored)
    if augment == "flip" or rng.random() >= AFFINE_PROBABILITY:
        return Draw(None, flips)
    rotation = _rotation(rng, dims) / rng.uniform(*ZOOM)
    spacing = np.array(spacing_mm or (1.0,) * dims)
    return Draw(rotation * spacing[None, :] / spacing[:, None], flips)


def _rotation(rng: np.random.Generator, dims: int) -> np.ndarray:
    matrix = np.eye(dims)
    for i, j in [(0, 1), (0, 2), (1, 2)][: 1 if dims == 2 else 3]:
        angle = np.deg2rad(rng.uniform(-ROTATION_DEG, ROTATION_DEG))
        turn = np.eye(dims)
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        matrix = matrix @ turn
    return matrix


def draw_intensity(rng: np.random.Generator, image: Tensor) -> Tensor:
    """Contrast, brightness, gamma and noise of one patch (C, *patch) float32."""
    contrast, brightness, gamma, noise = rng.random(4) < (0.3, 0.3, 0.3, 0.2)
    if contrast:
        mean = image.mean()
        image = (image - mean) * rng.uniform(*CONTRAST) + mean
    if brightness:
        image = image + rng.normal(0, BRIGHTNESS_STD)
    if gamma:
        low = image.amin()
        extent = (image.amax() - low).clamp(min=1e-6)
        image = ((image - low) / extent).pow(rng.uniform(*GAMMA)) * extent + low
    if noise:
        scale = rng.uniform(0, NOISE_STD)
        image = image + torch.from_numpy(rng.standard_normal(tuple(image.shape), dtype=np.float32)) * scale
    return image
