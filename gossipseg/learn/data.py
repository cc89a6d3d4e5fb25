"""A site's images, checked and ready for a network.

What belongs here: the checks of every case against the task, and the cache of preprocessed tensors. What must
not: patches, augmentation, metrics.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from gossipseg.errors import DataError
from gossipseg.learn.cases import Case, Splits
from gossipseg.learn.datalist import load_cases
from gossipseg.learn.params import ONE_SHOT_ALGORITHM, DataParams, SplitName, TaskParams, WorkerSpec
from gossipseg.learn.readers import Volume, read_volume
from gossipseg.learn.setup import Setup, read_setup
from gossipseg.learn.transforms import Prepared, map_labels, prepare_image, prepare_label

OnProgress = Callable[[str, float], None]

AFFINE_TOLERANCE_VOXELS = 0.25
"""How far the corners of image and label may lie apart."""


@dataclass(frozen=True, slots=True)
class Item:
    """A case as tensors. `image`: (C, *spatial) float32; `label`: (1, *spatial) uint8, or None."""

    case: Case
    image: Tensor
    label: Tensor | None
    spacing_mm: tuple[float, ...] | None
    """Voxel size; None for PNG and JPEG."""


class SiteData:
    """All cases of a site, by split. Made by `open`, which refuses data that the task cannot use."""

    def __init__(self, task: TaskParams, splits: Splits, *, cache: bool) -> None:
        self.task, self.splits, self._cache = task, splits, cache
        self._items: dict[tuple[str, int], Item] = {}

    @classmethod
    def open(cls, spec: WorkerSpec, on_progress: OnProgress = lambda activity, fraction: None) -> SiteData:
        """Read and check every case, and keep the preprocessed tensors where data.cache says so.

        Where masks are made, the labels of training cases are left on the disk, unread, if there are any.
        Test cases are kept only where the training process is to score them.

        Raises DataError for the first problem (`gossipctl check` lists them all).
        """
        setup = read_setup(spec)
        task, params = setup.task, setup.data
        splits = load_cases(params, spec.site, makes_masks=not needs_labels(setup))
        if spec.report_test:
            _need_test(splits, params)
        data = cls(task, splits, cache=params.cache)
        total = sum(splits.counts.values())
        for done, (split, index, case) in enumerate(data._all()):
            on_progress(f"reading {split} case {case.id}", done / total)
            item = load_item(case, task)
            if params.cache and (split != "test" or spec.report_test):
                data._items[split, index] = item
        on_progress("data read", 1.0)
        return data

    @property
    def counts(self) -> dict[str, int]:
        """Number of cases by split name."""
        return self.splits.counts

    def item(self, split: SplitName, index: int) -> Item:
        """One case, from the cache or read anew."""
        cached = self._items.get((split, index))
        return cached if cached is not None else load_item(self.splits.of(split)[index], self.task)

    def items(self, split: SplitName) -> Iterator[Item]:
        """The cases of a split, in the order of the data list."""
        return (self.item(split, i) for i in range(len(self.splits.of(split))))

    def _all(self) -> Iterator[tuple[SplitName, int, Case]]:
        counters: dict[str, int] = {}
        for split, case in self.splits:
            index = counters.get(split, 0)
            counters[split] = index + 1
            yield split, index, case


def load_item(case: Case, task: TaskParams) -> Item:
    """Read, check and preprocess one case. Raises DataError."""
    prepared, volume = load_image(case, task)
    if case.label is None:
        return Item(case, prepared.image, None, prepared.spacing_mm)
    values = load_label(case.label, volume, case, task)
    label = prepare_label(values, volume.affine, task, case.label)
    return Item(case, prepared.image, label, prepared.spacing_mm)


def load_image(case: Case, task: TaskParams) -> tuple[Prepared, Volume]:
    """The preprocessed image and the volume as it is in the file."""
    volume = read_volume(case.image, task.image_dims)
    return prepare_image(volume, task, case.files[0]), volume


def load_label(file: Path, image: Volume, case: Case, task: TaskParams) -> np.ndarray:
    """Label values (*spatial) uint8 on the file's own grid, checked against the image and the task."""
    volume = read_volume(file, task.image_dims)
    _check_geometry(image, volume, file, case)
    return map_labels(volume.array, task, file)


def _check_geometry(image: Volume, label: Volume, file: Path, case: Case) -> None:
    if image.shape != label.shape:
        raise DataError(
            f"the shape differs from its image's {image.shape} ({case.files[0].name})",
            file=file,
            key="shape",
            value=label.shape,
            remedy="Image and label must lie on the same grid; resample the label, or correct the data list.",
        )
    if image.affine is None or label.affine is None:
        return
    apart = _corner_distance_voxels(image, label)
    if apart > AFFINE_TOLERANCE_VOXELS:
        raise DataError(
            f"the affine differs from its image's ({case.files[0].name}, spacing "
            f"{_mm(image)} mm): the corners lie up to {apart:.1f} voxels apart",
            file=file,
            key="spacing_mm",
            value=_mm(label),
            remedy="Resample the label onto the image's grid, or copy its header if only that is wrong.",
        )


def _corner_distance_voxels(a: Volume, b: Volume) -> float:
    assert a.affine is not None and b.affine is not None
    ends = [(0, n - 1) for n in a.shape] + [(0, 0)] * (3 - len(a.shape))
    corners = np.array(np.meshgrid(*ends)).reshape(3, -1)
    corners = np.vstack([corners, np.ones(corners.shape[1])])
    distance_mm = np.linalg.norm(((a.affine - b.affine) @ corners)[:3], axis=0).max()
    return float(distance_mm / min(a.spacing_mm or (1.0,)))


def _mm(volume: Volume) -> str:
    return "×".join(f"{s:g}" for s in volume.spacing_mm or ())


def needs_labels(setup: Setup) -> bool:
    """Whether cases for training and validation are of no use without a label: not where masks are made."""
    return setup.algorithm.name != ONE_SHOT_ALGORITHM


def _need_test(splits: Splits, params: DataParams) -> None:
    if not any(case.label for case in splits.test):
        raise DataError(
            "this split is empty, or has no labels, but the test score was asked for",
            file=params.path,
            key="test",
            remedy="Add labelled test cases to the data list, or set report_test: false in site.yaml.",
        )
