"""From a file's array to what a network sees, and back to the file's grid.

What belongs here: the task's preprocessing (channels, orientation, spacing, intensity, label values) and its
inverse. What must not: reading files, caching, augmentation.

Intensity: `zscore` is (x − mean) / std per channel and image; `ct_window` maps the window to 0…1 (so that
the zeros a patch is padded with are air); `rgb` scales to 0…1 and then standardises each channel of each
image: cameras differ in colour and exposure.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, NormalizeIntensity, Orientation, ScaleIntensityRange, Spacing
from torch import Tensor

from gossipseg.errors import DataError
from gossipseg.learn.params import TaskParams
from gossipseg.learn.readers import Volume, spacing_of


@dataclass(frozen=True, slots=True)
class Prepared:
    """A preprocessed image and the way back."""

    image: Tensor
    """(C, *spatial) float32, on the task's grid."""
    spacing_mm: tuple[float, ...] | None
    """Voxel size of `image`; None where the file has none."""
    traced: MetaTensor
    """The image as MONAI traces it: what `restore` undoes."""
    geometry: Compose
    """The very transforms that made it: MONAI inverts by their identity."""


def prepare_image(volume: Volume, task: TaskParams, file: Path) -> Prepared:
    """Apply the task's channels, geometry and intensity to an image. Raises DataError naming `file`."""
    array = match_channels(volume.array, task, file)
    if not np.isfinite(array).all():
        raise DataError(
            "holds NaN or infinite values", file=file, remedy="Repair the image, or take the case out."
        )
    geometry = _geometry(task, "bilinear")
    traced = _to_grid(array.astype(np.float32), volume.affine, task, file, geometry)
    image = _plain(_intensity(task)(traced.as_tensor()))
    spacing = None if volume.affine is None else spacing_of(traced.affine.numpy(), image.dim() - 1)
    return Prepared(image.to(torch.float32).contiguous(), spacing, traced, geometry)


def prepare_label(values: np.ndarray, affine: np.ndarray | None, task: TaskParams, file: Path) -> Tensor:
    """Label values (*spatial) of the task, on its grid: (1, *spatial) uint8."""
    traced = _to_grid(values[None].astype(np.float32), affine, task, file, _geometry(task, "nearest"))
    return _plain(traced).round().to(torch.uint8).contiguous()


def restore(logits: Tensor, prepared: Prepared) -> Tensor:
    """Logits (K, *task grid) → (K, *file grid): inverse of orientation and spacing, linear in the logits."""
    if not prepared.traced.applied_operations:
        return logits
    traced = MetaTensor(
        logits.float().cpu(),
        affine=prepared.traced.affine,
        applied_operations=list(prepared.traced.applied_operations),
    )
    return _plain(prepared.geometry.inverse(traced))


def match_channels(array: np.ndarray, task: TaskParams, file: Path) -> np.ndarray:
    """(C, *spatial) with the task's channels. Grey becomes RGB only where the task declares it."""
    channels = array.shape[0]
    if channels == task.channels:
        return array
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


def map_labels(array: np.ndarray, task: TaskParams, file: Path) -> np.ndarray:
    """File values (C, *spatial) → the task's label values (*spatial) uint8, by task.label_map.

    A label saved as a grey picture in three equal channels is taken as it is. Raises DataError for values
    that the task does not know.
    """
    if array.shape[0] > 1 and (array != array[:1]).any():
        raise DataError(
            f"is a colour picture ({array.shape[0]} channels): a label has one number per voxel",
            file=file,
            key="channels",
            value=array.shape[0],
            remedy="Save the label as one grey channel of label values.",
        )
    found = np.unique(array[0])
    targets = [task.label_map.get(int(v), int(v)) if float(v).is_integer() else -1 for v in found]
    unknown = [v.item() for v, t in zip(found, targets, strict=True) if t not in task.labels]
    if unknown:
        raise DataError(
            f"label values {_some(unknown)} are not among the task's ({_some(sorted(task.labels))})",
            file=file,
            key="task.label_map",
            value=task.label_map,
            remedy=_label_remedy(unknown, task),
        )
    lookup = np.asarray(targets, dtype=np.uint8)
    values: np.ndarray = lookup[np.searchsorted(found, array[0])]
    return values


def _label_remedy(unknown: list[float], task: TaskParams) -> str:
    if unknown == [255] and len(task.labels) == 2:
        return "Add `label_map: {255: 1}` to the task in peers.yaml (masks saved as 0/255)."
    if len(unknown) > 8:
        return "Save the label without interpolation and lossless (PNG, NIfTI), one number per class."
    return "Correct the label, or translate these values with task.label_map in peers.yaml."


def _some(values: list[Any]) -> str:
    text = ", ".join(f"{v:g}" for v in values[:8])
    return text + (f" … ({len(values)} values)" if len(values) > 8 else "")


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
