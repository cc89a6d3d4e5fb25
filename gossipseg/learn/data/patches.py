"""Training batches: patches drawn from a site's cases, fully determined by (seed, site, round, step).

A site with few cases takes as many steps a round as any other: cases are drawn with replacement. A share of
the patches (training.foreground_patches) is centred on a foreground voxel, whose class is drawn first, evenly
among the classes present in the case; the rest, and those of cases without foreground, lie uniformly. A patch
larger than the image is padded with zeros, as the sliding window does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from gossipseg.learn.data.augment import Draw, draw_augmentation, draw_intensity
from gossipseg.learn.data.dataset import Dataset, Item
from gossipseg.learn.data.flips import resolve
from gossipseg.learn.data.labels import IGNORE
from gossipseg.learn.params import TaskParams, TrainingParams

FOREGROUND_VOXELS_KEPT = 20_000
"""Per case and class: to centre patches, an evenly spaced sample is as good as all of them."""

Batch = dict[str, Tensor]


class TrainBatches:
    """Batches of one site: any of them can be had at any time, in any order.

    `groups`: sizes of parts of the training cases, one after the other; a part is drawn evenly, then a case
    of it. Unless given all cases are one part.
    """

    def __init__(
        self, data: Dataset, task: TaskParams, training: TrainingParams, groups: Sequence[int] = ()
    ) -> None:
        self._data, self._task, self._training = data, task, training
        self._mirrored = resolve(task, training).axes
        self._cases, self._groups = data.counts["training"], tuple(groups)
        if groups and (sum(groups) != self._cases or min(groups) < 1):
            raise ValueError(f"{self._cases} cases do not fall into parts of {self._groups}")
        self._foreground: dict[int, dict[int, np.ndarray]] = {}

    def batch(self, seed: int, site: str, round: int, step: int) -> Batch:
        """`image` (B, C, *patch) float32 and `label` (B, 1, *patch) int64 label values, on the CPU."""
        rng = batch_rng(seed, site, round, step)
        pairs = [self._sample(rng) for _ in range(self._training.batch_size)]
        images, labels = zip(*pairs, strict=True)
        return {"image": torch.stack(images), "label": torch.stack(labels).long()}

    def case(self, index: int, rng: np.random.Generator) -> Batch:
        """A batch of one: a patch of the training case `index`."""
        image, label = self._patch(rng, index)
        return {"image": image[None], "label": label[None].long()}

    def grouped(self, groups: Sequence[int]) -> TrainBatches:
        """The same, drawn by these groups."""
        return TrainBatches(self._data, self._task, self._training, groups)

    def _sample(self, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        return self._patch(rng, self._draw(rng))

    def _draw(self, rng: np.random.Generator) -> int:
        if not self._groups:
            return int(rng.integers(self._cases))
        group = int(rng.integers(len(self._groups)))
        return sum(self._groups[:group]) + int(rng.integers(self._groups[group]))

    def _patch(self, rng: np.random.Generator, index: int) -> tuple[Tensor, Tensor]:
        item = self._data.item("training", index)
        assert item.label is not None
        centre = self._centre(rng, index, item)
        augment, dims = self._training.augment, self._task.spatial_dims
        draw = draw_augmentation(rng, augment, dims, item.spacing_mm, self._mirrored)
        image, label = cut(item.image, item.label, centre, self._task.patch_size, draw)
        if augment == "standard":
            image = draw_intensity(rng, image)
        return image, label

    def _centre(self, rng: np.random.Generator, index: int, item: Item) -> np.ndarray:
        """Voxel coordinates of the patch's middle, moved so that the patch stays inside where it fits."""
        shape, patch = np.array(item.image.shape[1:]), np.array(self._task.patch_size)
        wants_foreground = rng.random() < self._training.foreground_patches
        classes = self._classes(index, item) if wants_foreground else {}
        if classes:
            voxels = classes[sorted(classes)[rng.integers(len(classes))]]
            middle = np.array(np.unravel_index(voxels[rng.integers(len(voxels))], tuple(shape)), dtype=float)
        else:
            middle = (patch - 1) / 2 + rng.random(len(shape)) * np.maximum(shape - patch, 0)
        low = (patch - 1) / 2
        inside = np.clip(middle, low, np.maximum(low, shape - 1 - low))
        return np.where(shape > patch, inside, (shape - 1) / 2)

    def _classes(self, index: int, item: Item) -> Mapping[int, np.ndarray]:
        """Flat indices of foreground voxels by class, of one training case."""
        if index not in self._foreground:
            assert item.label is not None
            self._foreground[index] = foreground_voxels(item.label)
        return self._foreground[index]


def batch_rng(seed: int, site: str, round: int, step: int) -> np.random.Generator:
    """The random stream of one batch: the same in any process, for any algorithm."""
    digest = hashlib.sha256(f"{seed}/{site}/{round}/{step}".encode()).digest()
    return np.random.Generator(np.random.SFC64(np.random.SeedSequence(list(digest))))


def foreground_voxels(label: Tensor) -> dict[int, np.ndarray]:
    """Flat indices (at most FOREGROUND_VOXELS_KEPT of each) of the voxels of each class but 0."""
    flat = label.numpy().ravel()
    where = np.flatnonzero((flat != 0) & (flat != IGNORE))
    values = flat[where]
    out = {}
    for value in np.unique(values):
        voxels = where[values == value]
        out[int(value)] = voxels[:: -(-len(voxels) // FOREGROUND_VOXELS_KEPT)]
    return out


def cut(
    image: Tensor, label: Tensor, centre: np.ndarray, patch: tuple[int, ...], draw: Draw
) -> tuple[Tensor, Tensor]:
    """The patch around `centre`: image (C, *patch) linear, label (1, *patch) nearest; zeros outside."""
    size = np.array(patch)
    if draw.matrix is None:
        start = np.round(centre - (size - 1) / 2).astype(int)
        out = crop(image, start, size), crop(label, start, size)
    else:
        out = _warp(image, label, centre, size, draw.matrix)
    if not draw.flips:
        return out
    return out[0].flip(draw.flips), out[1].flip(draw.flips)


def crop(tensor: Tensor, start: np.ndarray, size: np.ndarray) -> Tensor:
    """A copy of the box (C, *size) that begins at `start`, which may lie outside; zeros there."""
    shape = np.array(tensor.shape[1:])
    low, high = np.clip(start, 0, shape), np.clip(start + size, 0, shape)
    if (high <= low).any():
        return tensor.new_zeros((tensor.shape[0], *map(int, size)))
    inner = tensor[(slice(None), *(slice(int(a), int(b)) for a, b in zip(low, high, strict=True)))]
    before, after = low - start, start + size - high
    if not (before.any() or after.any()):
        return inner.clone()
    padding = [int(n) for pair in zip(before[::-1], after[::-1], strict=True) for n in pair]
    return F.pad(inner, padding)


def _warp(
    image: Tensor, label: Tensor, centre: np.ndarray, size: np.ndarray, matrix: np.ndarray
) -> tuple[Tensor, Tensor]:
    """Sample at centre + matrix·(offset from the patch's middle), reading only the box that this touches."""
    reach = np.abs(matrix) @ ((size - 1) / 2)
    start = np.floor(centre - reach).astype(int)
    box = np.ceil(centre + reach).astype(int) + 2 - start
    middle = centre - start
    # grid_sample's coordinates: x first, −1 … 1 between the centres of the outer voxels (align_corners).
    axes = [torch.arange(int(n), dtype=torch.float32) - (n - 1) / 2 for n in size]
    offsets = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)
    at = offsets @ torch.from_numpy(matrix.T).float() + torch.from_numpy(middle).float()
    grid = (2 * at / torch.from_numpy(np.maximum(box - 1, 1)).float() - 1).flip(-1)[None]
    options: dict[str, Any] = {"align_corners": True, "padding_mode": "zeros"}
    image_out = F.grid_sample(crop(image, start, box)[None], grid, mode="bilinear", **options)[0]
    label_out = F.grid_sample(crop(label, start, box)[None].float(), grid, mode="nearest", **options)[0]
    return image_out, label_out.to(label.dtype)
