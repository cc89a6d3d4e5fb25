"""From a file's array to what a network sees, and back to the file's grid.

Intensity: `zscore` is (x − mean) / std per channel and image; `ct_window` maps the window to 0…1 (so that
the zeros a patch is padded with are air); `rgb` scales to 0…1 and then standardises each channel of each
image: cameras differ in colour and exposure.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, NormalizeIntensity, Orientation, ScaleIntensityRange, Spacing
from torch import Tensor
from torch.nn import functional as F

from gossipseg.errors import DataError
from gossipseg.learn.data.formats.volume import Volume, spacing_of
from gossipseg.learn.params import TaskParams

SLAB_VOXELS = 1 << 22
"""Voxels of the file's grid that are interpolated at once."""


@dataclass(frozen=True, slots=True)
class Grid:
    """A file's own grid, and how it lies in the task's."""

    shape: tuple[int, ...]
    """Voxels per axis in the file."""
    spacing_mm: tuple[float, ...] | None
    """Voxel size in the file; None where it has none."""
    to_task: np.ndarray | None
    """4×4 from voxel indices of the file to those of the task's grid; None: they are the same."""

    def slabs(self, logits: Tensor) -> Iterator[tuple[int, int, Tensor]]:
        """Logits (K, *task grid) float32 on the file's grid, a part at a time: (first, end, (K, end − first,
        …)) along its first axis. Linear between voxels, the outer ones carried on."""
        if self.to_task is None:
            yield 0, self.shape[0], logits
            return
        thickness = max(1, SLAB_VOXELS // max(1, math.prod(self.shape[1:])))
        for first in range(0, self.shape[0], thickness):
            end = min(self.shape[0], first + thickness)
            yield first, end, _sampled(logits, self._at(first, end))

    def _at(self, first: int, end: int) -> Tensor:
        """Task indices (end − first, …, dims) of the file's voxels."""
        assert self.to_task is not None
        dims = len(self.shape)
        matrix, offset = self.to_task[:dims, :dims], self.to_task[:dims, 3]
        axes = [np.arange(first, end), *(np.arange(n) for n in self.shape[1:])]
        at = np.zeros((*map(len, axes), dims), dtype=np.float32)
        for i in range(dims):
            at[..., i] = offset[i]
            for j, axis in enumerate(axes):
                if matrix[i, j]:
                    at[..., i] += (matrix[i, j] * axis).reshape([-1 if k == j else 1 for k in range(dims)])
        return torch.from_numpy(at)


def _sampled(logits: Tensor, at: Tensor) -> Tensor:
    """Logits (K, *grid) at voxel indices (*out, dims): (K, *out) float32."""
    size = torch.tensor(logits.shape[1:], dtype=torch.float32)
    scaled = torch.where(size > 1, 2 * at / (size - 1).clamp(min=1) - 1, torch.zeros_like(at))
    options: dict[str, Any] = {"mode": "bilinear", "padding_mode": "border", "align_corners": True}
    return F.grid_sample(logits[None].float(), scaled.flip(-1)[None], **options)[0]


@dataclass(frozen=True, slots=True)
class Prepared:
    """A preprocessed image and the way back."""

    image: Tensor
    """(C, *spatial) float32, on the task's grid."""
    spacing_mm: tuple[float, ...] | None
    """Voxel size of `image`; None where the file has none."""
    grid: Grid
    """The file's own grid."""


def prepare_image(volume: Volume, task: TaskParams, file: Path) -> Prepared:
    """Apply the task's channels, geometry and intensity to an image. Raises DataError naming `file`."""
    array = match_channels(volume.array, task, file)
    if task.orientation and task.image_dims == 3 and volume.affine is not None and not volume.placed:
        raise DataError(
            "does not say how it lies in the patient, but the task asks for an orientation",
            file=file,
            key="task.orientation",
            value=task.orientation,
            remedy="Convert the image anew from its source, with its place in the header, or take it out.",
        )
    with np.errstate(over="ignore"):
        single = array.astype(np.float32)
    if not np.isfinite(single).all():
        said = "numbers beyond 3e38" if np.isfinite(array).all() else "NaN or infinite values"
        raise DataError(f"holds {said}", file=file, remedy="Repair the image, or take the case out.")
    own = _in_its_axes(volume.affine, task)
    traced = _to_grid(single, own, task, file, _geometry(task, "bilinear"))
    image = _plain(_intensity(task)(traced.as_tensor()))
    affine = traced.affine.numpy()
    spacing = None if volume.affine is None else spacing_of(affine, image.dim() - 1)
    to_task = None if own is None else _to_task(own, affine)
    if to_task is None and tuple(image.shape[1:]) != volume.shape:
        to_task = np.eye(4)
    grid = Grid(volume.shape, volume.spacing_mm, to_task)
    return Prepared(image.to(torch.float32).contiguous(), spacing, grid)


def _in_its_axes(affine: np.ndarray | None, task: TaskParams) -> np.ndarray | None:
    """The affine that resampling goes by. A two-dimensional image may lie anyhow in the patient, and is
    resampled in its own plane: of its place the voxel size alone counts."""
    if affine is None or task.image_dims == 3:
        return affine
    return np.diag([*spacing_of(affine, 2), 1.0, 1.0])


def _to_task(file: np.ndarray, task: np.ndarray) -> np.ndarray | None:
    """Voxel indices of the file → those of the task's grid; None where they are the same."""
    matrix = np.linalg.inv(task.astype(np.float64)) @ file
    return None if np.allclose(matrix, np.eye(4), atol=1e-6) else matrix


def prepare_label(values: np.ndarray, affine: np.ndarray | None, task: TaskParams, file: Path) -> Tensor:
    """Label values (*spatial) of the task, on its grid: (1, *spatial) uint8."""
    own = _in_its_axes(affine, task)
    traced = _to_grid(values[None].astype(np.float32), own, task, file, _geometry(task, "nearest"))
    return _plain(traced).round().to(torch.uint8).contiguous()


def restore(logits: Tensor, grid: Grid) -> Tensor:
    """Logits (K, *task grid) → (K, *file grid)."""
    return torch.cat([part for _, _, part in grid.slabs(logits)], dim=1)


def match_channels(array: np.ndarray, task: TaskParams, file: Path) -> np.ndarray:
    """(C, *spatial) with the task's channels. Grey becomes RGB only where the task declares it.

    Grey that was saved in colour, three equal channels, is grey to a task of one channel.
    """
    channels = array.shape[0]
    if channels == task.channels:
        return array
    if channels == 3 and task.channels == 1 and (array == array[:1]).all():
        return array[:1]
    if channels == 1 and task.channels == 3 and task.convert_grey_to_rgb:
        return np.repeat(array, 3, axis=0)
    kind = {1: "1 channel (grey)", 3: "3 channels (RGB)", 4: "4 channels (RGBA)"}
    wanted = kind.get(task.channels, f"{task.channels} channels")
    remedy = "Convert this site's images, or take them out of the data list."
    if channels == 1 and task.channels == 3:
        remedy = (
            "Set task.convert_grey_to_rgb: true in peers.yaml (at all sites: it is part of the contract), "
            "or convert the images."
        )
    raise DataError(
        f"has {kind.get(channels, f'{channels} channels')}, the task asks for {wanted}",
        file=file,
        key="task.channels",
        value=task.channels,
        remedy=remedy,
    )


# ---------------------------------------------------------------- geometry and intensity


def _geometry(task: TaskParams, mode: str) -> Compose:
    steps: list[Any] = []
    if task.orientation and task.image_dims == 3:
        steps.append(Orientation(axcodes=task.orientation, labels=(("L", "R"), ("P", "A"), ("I", "S"))))
    if task.spacing_mm:
        padding = "border" if mode == "bilinear" else "zeros"
        steps.append(Spacing(pixdim=task.spacing_mm, mode=mode, padding_mode=padding))
    return Compose(steps)


def _to_grid(
    array: np.ndarray, affine: np.ndarray | None, task: TaskParams, file: Path, geometry: Compose
) -> MetaTensor:
    if affine is None and geometry.transforms:
        raise DataError(
            "carries no voxel size or orientation, but the task asks for one",
            file=file,
            key="task.spacing_mm" if task.spacing_mm else "task.orientation",
            value=task.spacing_mm or task.orientation,
            remedy="Use NIfTI or DICOM images, or leave spacing_mm and orientation out of the task.",
        )
    traced = MetaTensor(torch.from_numpy(np.ascontiguousarray(array)), affine=_as_affine(affine))
    out = geometry(traced) if geometry.transforms else traced
    assert isinstance(out, MetaTensor)
    return out


def _as_affine(affine: np.ndarray | None) -> Tensor:
    return torch.from_numpy(np.eye(4) if affine is None else np.asarray(affine, dtype=np.float64))


def _plain(tensor: Any) -> Tensor:
    """Without MONAI's metadata, which slows every operation on a tensor."""
    return tensor.as_tensor() if isinstance(tensor, MetaTensor) else torch.as_tensor(tensor)


def _intensity(task: TaskParams) -> Compose:
    if task.intensity == "ct_window":
        low, high = task.ct_window_hu
        return Compose([ScaleIntensityRange(a_min=low, a_max=high, b_min=0.0, b_max=1.0, clip=True)])
    standardise = NormalizeIntensity(channel_wise=True)
    if task.intensity == "rgb":
        return Compose([ScaleIntensityRange(a_min=0, a_max=255, b_min=0, b_max=1), standardise])
    return Compose([standardise])
