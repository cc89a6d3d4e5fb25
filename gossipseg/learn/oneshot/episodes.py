"""Episodes: a slice with one pseudo-mask, seen twice. Batches are determined by (seed, site, round, step).

A view is rotated by up to ±5°, shifted by ±5 px (of 256), sheared by ±5°, scaled by 0.9 … 1.2 and bent
elastically (α = 10, σ = 5 at 256²; scaled with the slice); the image alone gets a gamma of 0.5 … 1.5. A view
in which the mask has vanished, or fills everything, is drawn again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from gossipseg.algos.params.fedcowpro import PseudoLabelMethod
from gossipseg.errors import DataError
from gossipseg.learn.data.dataset import Dataset
from gossipseg.learn.data.patches import Batch, batch_rng
from gossipseg.learn.oneshot.pseudolabels import PseudoLabels, dilated
from gossipseg.learn.oneshot.slices import resized, slices_of

FULL_SIDE = 256
ROTATION_DEG, SHEAR_DEG, SHIFT_PX = 5.0, 5.0, 5.0
ZOOM = (0.9, 1.2)
ELASTIC_ALPHA, ELASTIC_SIGMA_PX = 10.0, 5.0
GAMMA = (0.5, 1.5)
DRAWS = 10
"""Draws of a view before the slice is taken as it is."""

OnProgress = Callable[[str, float], None]


@dataclass(frozen=True, slots=True)
class Candidates:
    """The slices of a site that have pseudo-masks."""

    maps: Sequence[np.ndarray]
    """By training case: uint16 (S, H, W), regions numbered from 1."""
    usable: Sequence[tuple[int, int, int]]
    """(case, slice, number of regions)."""


def find_candidates(
    data: Dataset, labels: PseudoLabels, on_progress: OnProgress = lambda activity, fraction: None
) -> Candidates:
    """Make or read the pseudo-masks of all training cases. Raises DataError where no slice has any."""
    total = data.counts["training"]
    maps, usable = [], []
    for i, item in enumerate(data.items("training")):

        def on_slice(done: int, slices: int, i: int = i, name: str = item.case.id) -> None:
            on_progress(f"pseudo-labels of {name}", (i + done / slices) / total)

        on_slice(0, 1)
        maps.append(labels.of(item, on_slice))
        counts = maps[-1].reshape(len(maps[-1]), -1).max(1)
        usable += [(i, k, int(count)) for k, count in enumerate(counts) if count]
    on_progress("pseudo-labels made", 1.0)
    if not usable:
        raise DataError(
            "no training slice has a region that could serve as a pseudo-mask",
            key="algorithm.pseudo_labels",
            value=labels.method,
            remedy="Try the other method, a larger task.patch_size, or images with more contrast.",
        )
    return Candidates(maps, usable)


class EpisodeBatches:
    """Batches of one site: any of them can be had at any time, in any order."""

    def __init__(
        self,
        data: Dataset,
        candidates: Candidates,
        method: PseudoLabelMethod,
        batch_size: int,
        size: Sequence[int],
    ) -> None:
        self._data, self._candidates = data, candidates
        self._method, self._episodes, self._size = method, batch_size, size

    def batch(self, seed: int, site: str, round: int, step: int) -> Batch:
        """`image` (2B, C, H, W) float32, `label` (2B, 1, H, W) int64 of 0/1: B supports, then B queries."""
        rng = batch_rng(seed, site, round, step)
        pairs = [self._episode(rng) for _ in range(self._episodes)]
        views = [support for support, _ in pairs] + [query for _, query in pairs]
        images, masks = zip(*views, strict=True)
        return {"image": torch.stack(images), "label": torch.stack(masks).long()}

    def _episode(self, rng: np.random.Generator) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Support and query: a slice is drawn first, then one of its regions."""
        usable = self._candidates.usable
        case, index, count = usable[int(rng.integers(len(usable)))]
        image = slices_of(self._data.item("training", case).image, self._data.task.slice_axis)[index]
        region = self._candidates.maps[case][index] == 1 + int(rng.integers(count))
        mask = torch.from_numpy(dilated(region) if self._method == "cow" else region)[None]
        image = resized(image[None], self._size)[0]
        return view(rng, image, mask), view(rng, image, mask)


def view(rng: np.random.Generator, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """One view: image (C, H, W) float32, mask (1, H, W) bool → the same, float32 both, mask of 0/1."""
    gamma = rng.uniform(*GAMMA)
    mask = mask.float()
    for _ in range(DRAWS):
        grid = draw_grid(rng, (image.shape[1], image.shape[2]))
        moved = F.grid_sample(mask[None], grid, mode="nearest", align_corners=True)[0]
        if 0 < int(moved.sum()) < moved.numel():
            seen = F.grid_sample(image[None], grid, padding_mode="border", align_corners=True)[0]
            return with_gamma(seen, gamma), moved
    return with_gamma(image, gamma), mask


def draw_grid(rng: np.random.Generator, size: tuple[int, int]) -> Tensor:
    """Where each pixel of a view comes from: (1, H, W, 2) as grid_sample wants it."""
    angle, shear = (
        np.deg2rad(rng.uniform(-ROTATION_DEG, ROTATION_DEG)),
        np.deg2rad(rng.uniform(-SHEAR_DEG, SHEAR_DEG)),
    )
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = turn @ np.array([[1, np.tan(shear)], [0, 1]]) / rng.uniform(*ZOOM)
    share = np.sqrt(size[0] * size[1]) / FULL_SIDE
    shift = rng.uniform(-SHIFT_PX, SHIFT_PX, 2) * share
    rows, columns = np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in size), indexing="ij")
    at = np.stack([columns, rows], -1) @ matrix.T + shift + elastic(rng, size, share)
    half = (np.array([size[1], size[0]]) - 1) / 2
    return torch.from_numpy(at / half)[None].float()


def elastic(rng: np.random.Generator, size: tuple[int, int], share: float) -> np.ndarray:
    """Displacements in pixels (H, W, 2): noise in −1 … 1, smoothed by σ, times α (Simard 2003).

    `share`: side of the slice over 256. α goes with its square: fewer pixels smooth less.
    """
    sigma = ELASTIC_SIGMA_PX * share
    noise = rng.uniform(-1, 1, (*size, 2))
    smooth: np.ndarray = ndimage.gaussian_filter(noise, (sigma, sigma, 0), mode="reflect", truncate=3.0)
    return ELASTIC_ALPHA * share**2 * smooth


def with_gamma(image: Tensor, gamma: float) -> Tensor:
    """((x − min) / range)^γ, back on the image's own range."""
    low = image.amin()
    extent = (image.amax() - low).clamp(min=1e-6)
    out: Tensor = ((image - low) / extent).pow(gamma) * extent + low
    return out
