"""Folders as nnU-Net has them: imagesTr/CASE_0000.nii.gz with labelsTr/CASE.nii.gz, and a dataset.json.

The last number of an image's name is its channel. Where splits_final.json lies there, too, it says who
validates (folds.py).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from gossipseg.errors import DataError, DataMissing
from gossipseg.learn.data.cases import SPLITS, Case, Splits
from gossipseg.learn.data.formats.kinds import READ, case_stem
from gossipseg.learn.data.lists.decathlon import case_of
from gossipseg.learn.data.lists.folders import by_stem, readable, report_unpaired
from gossipseg.learn.data.lists.listing import Listing, Report, Warn
from gossipseg.learn.data.lists.paths import same_letters

IMAGES, LABELS = "imagesTr", "labelsTr"
TEST_IMAGES, TEST_LABELS = "imagesTs", "labelsTs"
_CHANNEL = re.compile(r"(.+)_(\d{4})")


def is_nnunet(root: Path) -> bool:
    """Whether the folder is laid out so."""
    return (root / IMAGES).is_dir()


def names_cases(about: Mapping[str, Any]) -> bool:
    """Whether dataset.json says where the files of each case are, as it may in nnU-Net's second version."""
    return isinstance(about.get("dataset"), Mapping)


def from_nnunet(
    root: Path, about: Mapping[str, Any], source: Path, needs_labels: bool, report: Report, warn: Warn
) -> Listing:
    """The cases of imagesTr/, undivided, and those of imagesTs/ as test.

    Without imagesTs/ test is drawn from the labelled ones, too.
    """
    if names_cases(about):
        training = _named(about["dataset"], source, needs_labels, report)
    else:
        training = _cases(root, IMAGES, LABELS, about, needs_labels, report, warn)
    if not (root / TEST_IMAGES).is_dir():
        return Listing(source, undivided=training, into=SPLITS, about=about)
    test = _cases(root, TEST_IMAGES, TEST_LABELS, about, False, report, warn)
    if not test:
        return Listing(source, undivided=training, into=SPLITS, about=about)
    return Listing(source, Splits(test=test), training, ("training", "validation"), about=about)


def _named(dataset: Mapping[str, Any], source: Path, needs_labels: bool, report: Report) -> tuple[Case, ...]:
    """{"dataset": {CASE: {"images": [a file for each channel], "label": file}}}"""
    found = []
    for name, entry in dataset.items():
        images = entry.get("images") if isinstance(entry, Mapping) else None
        try:
            if not isinstance(images, list) or not images or not all(isinstance(i, str) for i in images):
                remedy = 'Write {"images": ["a_0000.nii.gz", …], "label": "a.nii.gz"}.'
                raise DataError("is no case", file=source, key=f"dataset.{name}", value=entry, remedy=remedy)
            case = case_of(images, entry.get("label"), None, f"dataset.{name}", not needs_labels, source)
            found.append(replace(case, id=name))
        except DataError as e:
            report(e)
    return tuple(found)


def channels_of(about: Mapping[str, Any]) -> int | None:
    """How many channels a dataset.json tells of; None: it tells nothing."""
    named = about.get("channel_names", about.get("modality"))
    return len(named) if isinstance(named, Mapping) and named else None


def _cases(
    root: Path,
    images: str,
    labels: str,
    about: Mapping[str, Any],
    needs_labels: bool,
    report: Report,
    warn: Warn,
) -> tuple[Case, ...]:
    by_case = _images(root / images, about, report, warn)
    label_folder = root / labels
    if not label_folder.is_dir():
        if needs_labels and by_case:
            remedy = f"Put the labels there, CASE.nii.gz for {images}/CASE_0000.nii.gz."
            report(DataMissing("no such folder", file=label_folder, key="data.path", remedy=remedy))
        found: dict[str, Path] = {}
    else:
        found = by_stem(label_folder, report, warn)
        unpaired = by_case.keys() ^ found.keys() if needs_labels else found.keys() - by_case.keys()
        for name in sorted(unpaired):
            first = {case: files[0] for case, files in by_case.items()}
            report_unpaired(name, first, found, root / images, label_folder, report)
    usable = by_case.keys() & found.keys() if needs_labels else by_case.keys()
    return tuple(
        Case(name, files[0] if len(files) == 1 else files, found.get(name))
        for name, files in sorted(by_case.items())
        if name in usable
    )


def _images(
    folder: Path, about: Mapping[str, Any], report: Report, warn: Warn
) -> dict[str, tuple[Path, ...]]:
    """Case → its files in the order of their channels; cases that lack one are reported and left out."""
    parts: dict[str, dict[int, Path]] = {}
    for path in _of_ending(readable(folder, report, warn), about, folder, report, warn):
        stem = same_letters(case_stem(path))
        matched = _CHANNEL.fullmatch(stem)
        name, number = (matched[1], int(matched[2])) if matched else (stem, 0)
        other = parts.setdefault(name, {}).setdefault(number, path)
        if other != path:
            remedy = f"Rename it, or {other.name}."
            report(
                DataError("two files are the same channel", file=path, key="case", value=name, remedy=remedy)
            )
    count = channels_of(about)
    if count is None:
        count = 1 + max((n for numbers in parts.values() for n in numbers), default=0)
    found = {}
    for name, numbers in parts.items():
        wrong = sorted({*range(count)} ^ numbers.keys())
        if wrong:
            report(_wrong_channel(name, wrong[0], count, numbers))
        else:
            found[name] = tuple(numbers[n] for n in range(count))
    return found


def _wrong_channel(name: str, number: int, count: int, numbers: Mapping[int, Path]) -> DataError:
    present = next(iter(sorted(numbers.items())))[1]
    if number in numbers:
        problem = f"is channel {number}, and there are {count} (0 to {count - 1})"
        remedy = "Correct channel_names in dataset.json, or take the file away."
        return DataError(problem, file=numbers[number], key="case", value=name, remedy=remedy)
    suffix = present.name[len(case_stem(present)) :]
    missing = present.with_name(f"{name}_{number:04d}{suffix}")
    problem = f"channel {number} of {count} is missing"
    remedy = "Put the file there, or take the case and its label away."
    return DataError(problem, file=missing, key="case", value=name, remedy=remedy)


def _of_ending(
    paths: list[Path], about: Mapping[str, Any], folder: Path, report: Report, warn: Warn
) -> list[Path]:
    """The files with the ending that dataset.json tells, if it does; the others are named."""
    ending = about.get("file_ending")
    if not isinstance(ending, str) or not ending:
        return paths
    found = [p for p in paths if p.name.lower().endswith(ending.lower())]
    others = [p for p in paths if p not in found]
    if others:
        names = ", ".join(p.name for p in others[:3]) + (" …" if len(others) > 3 else "")
        problem = f"{len(others)} files do not end with {ending}, the file_ending of dataset.json: {names}"
        if found:
            warn(f"{folder}: {problem}; they are not read")
        else:
            remedy = f"Correct file_ending; what is read: {READ}."
            report(DataError(problem, file=folder, key="file_ending", value=ending, remedy=remedy))
    return found
