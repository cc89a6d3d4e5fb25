"""A site's images, checked and ready for a network."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from glob import escape
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gossipseg.errors import DataError
from gossipseg.learn.data import own_values
from gossipseg.learn.data.cases import Case, Splits
from gossipseg.learn.data.datalist import load_cases
from gossipseg.learn.data.formats.dicom.files import files_under
from gossipseg.learn.data.formats.grid import offset_note, onto_image
from gossipseg.learn.data.labels import FileValues, LabelRule, label_rule, notes_of, values_of
from gossipseg.learn.data.memory import memory_for
from gossipseg.learn.data.readers import Volume, read_label, read_volume
from gossipseg.learn.data.splitfile import keep_of, write_division
from gossipseg.learn.data.transforms import Grid, Prepared, prepare_image, prepare_label
from gossipseg.learn.params import ONE_SHOT_ALGORITHM, DataParams, SplitName, TaskParams, WorkerSpec
from gossipseg.learn.settings import WorkerSettings, read_settings

HEADERS = (".mhd", ".nhdr")
"""Suffixes of headers whose voxels may lie in a file of the same name."""

OnProgress = Callable[[str, float], None]


@dataclass(frozen=True, slots=True)
class Item:
    """A case as tensors. `image`: (C, *spatial) float32; `label`: (1, *spatial) uint8, or None."""

    case: Case
    image: Tensor
    label: Tensor | None
    spacing_mm: tuple[float, ...] | None
    """Voxel size; None for PNG and JPEG."""
    truth: Tensor | None = None
    """The label on the image file's own grid, (*file spatial) uint8: what scores are counted on. None without
    a label, and for training cases, which are not scored."""
    grid: Grid | None = None
    """That grid, and the way to it from the task's."""
    file_values: Mapping[int, int] = field(default_factory=dict)
    """Value in the label file → voxels; empty where it has segments instead of numbers."""
    notes: tuple[str, ...] = ()
    """What the readers decided that the site should know."""


class Dataset:
    """All cases of a site, by split. Made by `open`, which refuses data that the task cannot use."""

    def __init__(
        self, task: TaskParams, splits: Splits, *, cache: bool, rule: LabelRule | None = None
    ) -> None:
        self.task, self.splits, self.rule = task, splits, rule or label_rule(task)
        self._items: dict[tuple[str, int], Item] = {}
        self._seen: dict[tuple[str, int], tuple[str, ...]] = {}

    @classmethod
    def open(cls, spec: WorkerSpec, on_progress: OnProgress = lambda activity, fraction: None) -> Dataset:
        """Read and check every case, and keep the preprocessed tensors where data.cache says so.

        Where masks are made, the labels of training cases are left on the disk, unread, if there are any.
        Test cases are kept only where the training process is to score them.

        The division is kept in the state directory from then on, where no list says it.
        Raises DataError for the first problem (`gossipctl check` lists them all), LocalError.
        """
        settings = read_settings(spec)
        task, params = settings.task, settings.data
        splits = load_cases(params, spec.site, makes_masks=not needs_labels(settings), keep=keep_of(spec))
        if spec.report_test:
            _need_test(splits, params)
        rule = label_rule(task, params)
        data = cls(task, splits, cache=params.cache, rule=rule)
        total, values = sum(splits.counts.values()), FileValues()
        for done, (split, index, case) in enumerate(data._all()):
            on_progress(f"reading {split} case {case.id}", done / total)
            item = data._load(split, index)
            values.update(item.file_values)
            if split == "training":
                item = replace(item, truth=None)
            if params.cache and (split != "test" or spec.report_test):
                data._items[split, index] = item
        data.splits = write_division(splits)
        own_values.keep(Path(spec.state_dir), params, values)
        on_progress("data read", 1.0)
        return data

    def keep_all(self) -> None:
        """Read every case now, and keep it in memory."""
        for split, index, _ in self._all():
            self._items[split, index] = self._load(split, index)

    def _load(self, split: SplitName, index: int) -> Item:
        case = self.splits.of(split)[index]
        if split != "training":  # a patch of each batch comes this way, and nothing is scored on it
            self._seen[split, index] = seen_of(case)
        return load_item(case, self.task, self.rule)

    def seen(self, split: SplitName) -> list[tuple[str, ...]]:
        """Name, patient, and size and time of the files of each case, as they were when it was read: others
        where the case has changed since."""
        cases = enumerate(self.splits.of(split))
        return [self._seen.get((split, index)) or seen_of(case) for index, case in cases]

    @property
    def counts(self) -> dict[str, int]:
        """Number of cases by split name."""
        return self.splits.counts

    def item(self, split: SplitName, index: int) -> Item:
        """One case, from the cache or read anew."""
        cached = self._items.get((split, index))
        return cached if cached is not None else self._load(split, index)

    def items(self, split: SplitName) -> Iterator[Item]:
        """The cases of a split, in the order of the data list."""
        return (self.item(split, i) for i in range(len(self.splits.of(split))))

    def _all(self) -> Iterator[tuple[SplitName, int, Case]]:
        counters: dict[str, int] = {}
        for split, case in self.splits:
            index = counters.get(split, 0)
            counters[split] = index + 1
            yield split, index, case


def _parts(file: Path) -> list[Path]:
    """The file, with what lies beside a header of its name, or those in the folder, as the reader of DICOM
    finds them."""
    try:
        if file.suffix.lower() in HEADERS:
            beside = file.parent.glob(f"{escape(file.stem)}.*")
            return [file, *sorted(p for p in beside if p != file and p.is_file())]
        return files_under(file) if file.is_dir() else [file]
    except (DataError, OSError):  # who reads it says so
        return []


def content_of(case: Case) -> str:
    """sha256 (hex) of the bytes of a case's files. Raises DataError."""
    found = hashlib.sha256()
    for file in (*case.files, *([case.label] if case.label is not None else [])):
        for part in _parts(file):
            try:
                with part.open("rb") as f:
                    found.update(hashlib.file_digest(f, "sha256").digest())
            except OSError as e:
                remedy = "Let this user read it."
                raise DataError(f"cannot be read: {e.strerror or e}", file=part, remedy=remedy) from None
        found.update(b"/")
    return found.hexdigest()


def seen_of(case: Case) -> tuple[str, ...]:
    """Name, patient, and size and time of each file of a case; of a folder, of the files in it."""
    found = [case.id, str(case.patient)]
    for file in (*case.files, *([case.label] if case.label is not None else [])):
        for part in _parts(file):
            try:
                stat = part.stat()
                found.append(f"{part.name} {stat.st_size} {stat.st_mtime_ns}")
            except OSError:  # who reads it says so
                found.append("")
    return tuple(found)


def load_item(case: Case, task: TaskParams, rule: LabelRule | None = None) -> Item:
    """Read, check and preprocess one case. `rule`: the site's; None is the task's. Raises DataError, and
    LocalError where memory does not suffice."""
    with memory_for(case):
        prepared, volume = load_image(case, task)
        if case.label is None:
            return Item(
                case, prepared.image, None, prepared.spacing_mm, None, prepared.grid, {}, volume.notes
            )
        counts = FileValues()
        values, notes = _label_on(volume, case.label, case, task, rule or label_rule(task), counts)
        label = prepare_label(values, volume.affine, task, case.label)
        truth = torch.from_numpy(values) if prepared.grid.to_task is not None else label[0]
        notes = (*volume.notes, *notes)
        return Item(case, prepared.image, label, prepared.spacing_mm, truth, prepared.grid, counts, notes)


def load_image(case: Case, task: TaskParams) -> tuple[Prepared, Volume]:
    """The preprocessed image and the volume as it is in the file."""
    volume = read_volume(case.image, task.image_dims)
    volume = replace(volume, notes=(*volume.notes, *_emptiness(volume.array)))
    with memory_for(case, volume.array.shape):
        return prepare_image(volume, task, case.files[0]), volume


def _emptiness(array: np.ndarray) -> list[str]:
    """What is said of channels that show nothing. `array`: (C, *spatial)."""
    flat = [channel.min() == channel.max() for channel in array]
    if not any(flat):
        return []
    if all(flat):
        return ["every voxel of the image has one value: it shows nothing, and no mask of it means anything"]
    which = ", ".join(str(i + 1) for i, empty in enumerate(flat) if empty)
    return [f"channel {which} of {len(flat)} has one value everywhere: it shows nothing"]


def load_label(
    file: Path, image: Volume, case: Case, task: TaskParams, rule: LabelRule | None = None
) -> np.ndarray:
    """Label values (*spatial) uint8, with IGNORE, on the image's own grid. Raises DataError."""
    return _label_on(image, file, case, task, rule or label_rule(task), FileValues())[0]


def _label_on(
    image: Volume, file: Path, case: Case, task: TaskParams, rule: LabelRule, counts: FileValues
) -> tuple[np.ndarray, tuple[str, ...]]:
    label = read_label(file, task.image_dims, image)
    values = values_of(label, rule, file, counts)
    placed: np.ndarray = onto_image(values[None], label.affine, image, file, case.files[0])[0]
    beside = offset_note(values.shape, label.affine, image, file)
    return placed, (*label.notes, *beside, *notes_of(label, rule, file, counts))


def needs_labels(settings: WorkerSettings) -> bool:
    """Whether cases for training and validation are of no use without a label: not where masks are made."""
    return settings.algorithm.name != ONE_SHOT_ALGORITHM


def _need_test(splits: Splits, params: DataParams) -> None:
    """A list of images without labels, as the Decathlon publishes its test cases, is no error: there is
    nothing to score, and the score stays empty."""
    if not splits.test:
        raise DataError(
            "this split is empty, but the test score was asked for",
            file=params.path,
            key="test",
            remedy="Add labelled test cases to the data list, or set report_test: false in site.yaml.",
        )
