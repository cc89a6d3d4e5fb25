"""Data lists in JSON, as the Medical Segmentation Decathlon and MONAI have them."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gossipseg.errors import DataError
from gossipseg.learn.data.cases import SPLITS, Case, Splits
from gossipseg.learn.data.formats.kinds import case_stem, is_system_file, suffix_of
from gossipseg.learn.data.lists.folds import KEYS, by_folds, fold_number
from gossipseg.learn.data.lists.listing import Listing, Report, Warn
from gossipseg.learn.data.lists.paths import missing, path_of, same_letters, shown
from gossipseg.learn.params import SplitName

CHANNELS = 1000
"""More files than that are no channels of one image."""
PATIENT = ("patient", "patient_id")
_READ = frozenset({"image", "label", "fold", "split", *PATIENT})


@dataclass(frozen=True, slots=True)
class ListEntry:
    """A case of a list, and its fold."""

    case: Case
    fold: int | None = None


def is_list(raw: Mapping[str, Any]) -> bool:
    """Whether a dataset.json names cases: nnU-Net's describes them, and leaves them to the folders."""
    return any(KEYS.get(key) == "training" for key in raw)


def from_json(
    file: Path,
    raw: Mapping[str, Any],
    fold: int | None,
    may_lack: Collection[str],
    report: Report,
    warn: Warn,
) -> Listing:
    """The cases of a list. What is wrong with single ones is reported, and they are left out."""
    by_split: dict[str, list[ListEntry]] = {}
    for key, given in raw.items():
        split = KEYS.get(key)
        if split is None:
            _say_unread(key, given, file, warn)
        elif split in by_split:
            remedy = f"Join them under {split}."
            report(DataError(f"stands beside another key for {split}", file=file, key=key, remedy=remedy))
        else:
            by_split[split] = data_alone(
                _entries(given, split, key, file, split in may_lack, report), file, warn
            )
            _say_unread_keys(given, key, file, warn)
    return divided_by_list(file, unique(by_split), fold, report, warn, raw, "validation" in by_split)


def divided_by_list(
    file: Path,
    by_split: Mapping[str, list[ListEntry]],
    fold: int | None,
    report: Report,
    warn: Warn,
    about: Mapping[str, Any],
    validates: bool,
) -> Listing:
    """The listing of a list that has splits: without validation, it is a fold or a share of training."""
    lists = {split: tuple(entry.case for entry in by_split.get(split, ())) for split in SPLITS}
    folds = [entry.fold for entry in by_split.get("training", ())]
    has_folds = any(number is not None for number in folds)
    if fold is not None and (validates or not has_folds):
        problem = "has a list `validation`" if validates else "has no folds"
        remedy = "Remove data.fold from site.yaml, or give the cases of `training` a fold instead."
        report(DataError(problem, file=file, key="data.fold", value=fold, remedy=remedy))
    if validates:
        if has_folds:
            warn(f"{file} has a list `validation`: the folds beside its cases are not used")
        return Listing(file, Splits.of_lists(lists), about=about)
    if has_folds:
        try:
            training, validation = by_folds(lists["training"], folds, fold, file)
        except DataError as e:
            report(e)
            return Listing(file, Splits.of_lists(lists), about=about)
        told = Splits(training, validation, lists["test"])
        return Listing(file, told, about=about, rests_on=f"fold {fold or 0} validates")
    carved: tuple[SplitName, ...] = ("training", "validation")
    return Listing(
        file, Splits(test=lists["test"]), lists["training"], carved, by_hand_into=carved, about=about
    )


def _say_unread(key: str, given: Any, file: Path, warn: Warn) -> None:
    """Cases under a key that nobody reads would be skipped in silence."""
    if isinstance(given, list) and given and all(map(_seems_case, given)):
        warn(f"{file}: {len(given)} cases stand under {key}, which is not read: name it {', '.join(SPLITS)}")


def _seems_case(entry: Any) -> bool:
    return bool(suffix_of(entry)) if isinstance(entry, str) else isinstance(entry, dict) and "image" in entry


def _say_unread_keys(given: Any, key: str, file: Path, warn: Warn) -> None:
    entries = [entry for entry in given if isinstance(entry, dict)] if isinstance(given, list) else []
    unread = dict.fromkeys(name for entry in entries for name in entry if name not in _READ)
    if unread:
        warn(f"{file}: keys of cases in {key} that are not read: {', '.join(unread)}")


def data_alone(entries: list[ListEntry], file: Path, warn: Warn) -> list[ListEntry]:
    """The cases without those that a system left behind, as a list of all files in a folder has them."""
    names = [entry.case.files[0].name for entry in entries]
    if others := [name for name in names if is_system_file(name)]:
        warn(f"{file}: {len(others)} cases are system files, and left out: {', '.join(others[:3])}")
    return [entry for entry, name in zip(entries, names, strict=True) if not is_system_file(name)]


def _entries(
    given: Any, split: SplitName, key: str, file: Path, may_lack: bool, report: Report
) -> list[ListEntry]:
    if given is None:
        return []
    if not isinstance(given, list):
        report(DataError("must be a list of cases", file=file, key=key, remedy="Write it in brackets."))
        return []
    found = []
    for i, entry in enumerate(given):
        try:
            found.append(_entry(entry, split, f"{key}.{i}", may_lack, file))
        except DataError as e:
            report(e)
    return found


def _entry(entry: Any, split: SplitName, key: str, may_lack: bool, file: Path) -> ListEntry:
    if isinstance(entry, str):
        entry = {"image": entry}
    image = entry.get("image") if isinstance(entry, dict) else None
    names = [image] if isinstance(image, str) else image
    if (
        not isinstance(names, list)
        or not 0 < len(names) <= CHANNELS
        or not all(isinstance(n, str) and n.strip() for n in names)
    ):
        raise DataError(
            "is no case",
            file=file,
            key=key,
            value=entry,
            remedy='Write {"image": "images/a.png", "label": "masks/a.png"}; a list of images, one per '
            "channel, is allowed.",
        )
    label = entry.get("label")
    if isinstance(label, list) and len(label) == 1:
        label = label[0]
    fold = None
    if entry.get("fold") is not None:
        fold = fold_number(entry["fold"])
        if fold is None:
            remedy = "Write a whole number from 0, or leave it out."
            raise DataError("is no fold", file=file, key=f"{key}.fold", value=entry["fold"], remedy=remedy)
    said = entry.get("split")
    if said is not None and KEYS.get(str(said).lower()) != split:
        problem, remedy = f"stands under {split}", f"Move the case under {said}, or leave the key out."
        raise DataError(problem, file=file, key=f"{key}.split", value=said, remedy=remedy)
    patient = next((entry[name] for name in PATIENT if entry.get(name) is not None), None)
    return ListEntry(case_of(names, label, patient, key, may_lack, file), fold)


def case_of(names: list[str], label: Any, patient: Any, key: str, may_lack: bool, file: Path) -> Case:
    """A case of a list, with paths relative to the list. Raises DataError naming `key`."""
    if isinstance(label, str) and not label.strip():
        label = None
    if not isinstance(label, str) and (label is not None or not may_lack):
        raise DataError(
            "this image has no label",
            file=file,
            key=f"{key}.label",
            value=label,
            remedy=f"Name the label of {names[0]}, or take the case out; only `test` may lack labels.",
        )
    if patient is not None and (
        isinstance(patient, bool) or not isinstance(patient, str | int) or patient == ""
    ):
        problem, remedy = "is no name of a patient", "Write a text or a whole number, or leave it out."
        raise DataError(problem, file=file, key=f"{key}.patient", value=patient, remedy=remedy)
    paths = tuple(_path(name, key, file) for name in names)
    stem = same_letters(case_stem(paths[0]))
    if len(paths) == 1:
        paths = _channels(paths[0])
    return Case(
        stem,
        paths[0] if len(paths) == 1 else paths,
        _path(label, f"{key}.label", file) if isinstance(label, str) else None,
        None if patient is None else str(patient),
    )


def _path(name: str, key: str, file: Path) -> Path:
    try:
        return path_of(name, file.parent)
    except ValueError as e:
        remedy = "Write the name of a file; rename the file if need be."
        raise DataError(str(e), file=file, key=key, value=shown(name), remedy=remedy) from None


def _channels(path: Path) -> tuple[Path, ...]:
    """The files that a list of nnU-Net's first version means: case.nii.gz stands for case_0000.nii.gz, …"""
    stem = case_stem(path)
    suffix = path.name[len(stem) :]
    first = path.with_name(f"{stem}_0000{suffix}")
    if missing(path) is None or missing(first) is not None:
        return (path,)
    files = (path.with_name(f"{stem}_{n:04d}{suffix}") for n in range(CHANNELS))
    return tuple(itertools.takewhile(Path.exists, files))


def unique(by_split: Mapping[str, list[ListEntry]]) -> dict[str, list[ListEntry]]:
    """Where images in different folders share a stem, as many folders become part of the id as it takes.

    In one folder (a.png, a.nii.gz) it is the whole name.
    """
    images: dict[str, set[Path]] = {}
    for entries in by_split.values():
        for entry in entries:
            images.setdefault(entry.case.id, set()).add(entry.case.files[0])

    def named(case: Case) -> Case:
        alike, file = images[case.id], case.files[0]
        depth = 0 if len(alike) == 1 else _depth(alike)
        if depth is None:
            return replace(case, id=file.name)
        return replace(case, id="_".join((*file.parts[-1 - depth : -1], case.id)))

    return {s: [replace(e, case=named(e.case)) for e in entries] for s, entries in by_split.items()}


def _depth(alike: set[Path]) -> int | None:
    """How many folders it takes to tell these paths apart; None: no number does."""
    depths = range(1, max(len(path.parts) for path in alike))
    return next((n for n in depths if len({p.parts[-1 - n : -1] for p in alike}) == len(alike)), None)
