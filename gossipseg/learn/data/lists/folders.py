"""Folders without a list: images/ with masks/ or labels/, and what else lies in them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from gossipseg.errors import DataError, DataMissing
from gossipseg.learn.data.cases import SPLITS, Case
from gossipseg.learn.data.formats.kinds import READ, case_stem, is_sidecar, is_system_file, kind_of, suffix_of
from gossipseg.learn.data.lists.listing import Listing, Report, Warn
from gossipseg.learn.data.lists.paths import name_problem, same_letters, shown

IMAGES, LABEL_FOLDERS = "images", ("masks", "labels")
SHOWN = 3


def from_folders(root: Path, needs_labels: bool, report: Report, warn: Warn) -> Listing:
    """The cases of images/, with the labels of the same name."""
    images, folders = root / IMAGES, [root / n for n in LABEL_FOLDERS if (root / n).is_dir()]
    if not images.is_dir() or len(folders) > 1 or (needs_labels and not folders):
        found = ", ".join(sorted(p.name for p in root.iterdir() if p.is_dir())) or "no folders"
        kind = DataError if len(folders) > 1 else DataMissing
        report(
            kind(
                "holds neither dataset.json nor images/ with masks/ or labels/ (one of the two)",
                file=root,
                key="data.path",
                remedy=f"Found {found}. Write a dataset.json (or .csv), or lay the files out so, or as "
                "nnU-Net does (imagesTr/, labelsTr/).",
            )
        )
        return Listing(root)
    by_id = by_stem(images, report, warn)
    labels = by_stem(folders[0], report, warn) if folders else {}
    unpaired = by_id.keys() ^ labels.keys() if needs_labels else labels.keys() - by_id.keys()
    for name in sorted(unpaired):
        report_unpaired(name, by_id, labels, images, folders[0], report)
    usable = by_id.keys() & labels.keys() if needs_labels else by_id.keys()
    cases = tuple(Case(name, by_id[name], labels.get(name)) for name in sorted(usable))
    return Listing(root, undivided=cases, into=SPLITS)


def by_stem(
    folder: Path, report: Report, warn: Warn, stem_of: Callable[[Path], str] = case_stem
) -> dict[str, Path]:
    """What is read of a folder's files, by name without suffix; the others are named."""
    found: dict[str, Path] = {}
    for path in readable(folder, report, warn):
        stem = same_letters(stem_of(path))
        if stem in found:
            problem, remedy = "two files have this case id", f"Rename it, or {found[stem].name}."
            report(DataError(problem, file=path, key="case", value=stem, remedy=remedy))
        found[stem] = path
    return found


def readable(folder: Path, report: Report, warn: Warn) -> list[Path]:
    """The folder's files (and folders: DICOM series) that are read, by name.

    Others are counted and named: a problem where nothing is left, a warning otherwise.
    """
    paths = sorted(p for p in folder.iterdir() if not is_system_file(p.name))
    for path in paths:
        if problem := name_problem(path.name):
            remedy = "Rename it; letters that are not of ASCII in UTF-8."
            report(DataError(problem, file=folder, key="name", value=shown(path.name), remedy=remedy))
    paths = [p for p in paths if name_problem(p.name) is None]
    names = [p.name for p in paths]
    paths = [p for p in paths if not is_sidecar(p.name, names)]
    found = [p for p in paths if kind_of(p) is not None]
    unread = [p for p in paths if kind_of(p) is None]
    if not unread:
        return found
    problem = _unread(folder, unread)
    remedy = f"Convert them, or move them away; what is read: {READ}."
    if found:
        warn(f"{folder}: {problem}. {remedy}")
    else:
        report(DataError(problem, file=folder, remedy=remedy))
    return found


def _unread(folder: Path, paths: list[Path]) -> str:
    kinds = ", ".join(sorted({p.suffix.lower() or "no suffix" for p in paths}))
    names = ", ".join(p.name for p in paths[:SHOWN]) + (" …" if len(paths) > SHOWN else "")
    count = "1 file is" if len(paths) == 1 else f"{len(paths)} files are"
    return f"{count} of a kind that is not read ({kinds}) in {folder.name}/: {names}"


def report_unpaired(
    name: str,
    images: dict[str, Path],
    labels: dict[str, Path],
    folder: Path,
    label_folder: Path,
    report: Report,
) -> None:
    """An image without a label, or a label without an image."""
    if name in images:
        problem = f"this image has no label in {label_folder.name}/"
        remedy = (
            f"Put {name}.png (or .nii.gz) into {label_folder}, move the image away, or write a dataset.json."
        )
        report(DataError(problem, file=images[name], key="case", value=name, remedy=remedy))
        return
    remedy = "Labels are matched by the name without suffix; rename or remove it, or write a dataset.json."
    problem = f"this label has no image in {folder.name}/"
    report(DataError(problem, file=labels[name], key="case", value=name, remedy=remedy))


def kind_text(path: Path) -> str:
    """The kind of an image for counting: its suffix, or DICOM."""
    return suffix_of(path.name) or "DICOM"
