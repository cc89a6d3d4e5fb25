"""Which images a site has, and which split each belongs to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gossipseg.errors import DataError, DataMissing
from gossipseg.learn.data.cases import SPLITS, Case, Splits
from gossipseg.learn.data.division import crossing
from gossipseg.learn.data.formats.kinds import case_stem
from gossipseg.learn.data.lists import decathlon, folders, folds, nnunet, same, table
from gossipseg.learn.data.lists.listing import Listing, Report, Warn
from gossipseg.learn.data.lists.paths import home_of, missing, real, same_letters
from gossipseg.learn.data.lists.text import read_json
from gossipseg.learn.data.patients import matched
from gossipseg.learn.data.splitfile import PATIENTS_STAY_WHOLE, Keep, divide, written_in_folds
from gossipseg.learn.params import DataParams

__all__ = ["case_stem", "load_cases", "read_listing", "scan_cases"]

LISTS = ("dataset.json", "dataset.csv", "dataset.tsv")
"""Looked for where data.list is not given."""
DESCRIBING = frozenset({"channel_names", "modality", "labels", "file_ending", "name"})
"""Keys of a dataset.json that leaves its cases to the folders."""


def _ignore(warning: str) -> None:
    """Warnings are for `gossipctl check`."""


def _raise(problem: DataError) -> None:
    raise problem


def load_cases(
    data: DataParams,
    site: str,
    *,
    needs_labels: bool = True,
    makes_masks: bool = False,
    keep: Keep | None = None,
) -> Splits:
    """The site's cases by split. Raises DataError for the first problem found. Writes nothing.

    `needs_labels` False: training and validation cases may lack a label, as test cases always may.
    `makes_masks`: neither do they, and what labels training cases have is left out: nobody will read them.
    `keep`: where the site's division is kept; None draws from the seed 0.
    """
    return scan_cases(data, site, _raise, needs_labels=needs_labels, makes_masks=makes_masks, keep=keep)


def scan_cases(
    data: DataParams,
    site: str,
    report: Report,
    *,
    needs_labels: bool = True,
    makes_masks: bool = False,
    keep: Keep | None = None,
    warn: Warn = _ignore,
) -> Splits:
    """As load_cases, but hands each problem to `report` and goes on where that makes sense.

    `warn` is told what is no problem, and should be known.
    """
    found = 0

    def counted(problem: DataError) -> None:
        nonlocal found
        found += 1
        report(problem)

    by_list = replace(data, fold=None) if written_in_folds(keep) else data
    listing = read_listing(by_list, site, counted, needs_labels=needs_labels and not makes_masks, warn=warn)
    _check_all_told(listing, counted, warn)
    _check_spelling(listing, counted, warn)
    listed = found
    splits = divide(listing, data, site, keep, counted, warn)
    divided = found == listed
    if makes_masks:
        splits = replace(splits, training=tuple(replace(case, label=None) for case in splits.training))
    _check_files(splits, listing.source, counted)
    _check_disjoint(splits, listing.source, counted)
    _check_labels(splits, listing.source, counted, warn)
    _check_bytes(splits, listing.source, counted, warn)
    if divided and (listing.cases or not found):
        _check_not_empty(splits, listing.source, counted)
    return splits


def read_listing(
    data: DataParams,
    site: str,
    report: Report = _raise,
    *,
    needs_labels: bool = True,
    warn: Warn = _ignore,
) -> Listing:
    """What the site's list or folders say, with patients by data.patient_pattern."""
    root = home_of(data.path)
    problem = missing(root)
    if problem is None and not root.is_dir():
        problem = "is a file, not a folder"
    if problem is not None:
        problem = "no such folder" if problem == "no such file" else problem
        remedy = f"Correct data.path in site.yaml of {site}."
        report(DataMissing(problem, file=root, key="data.path", remedy=remedy))
        return Listing(root)
    try:
        listing = _read(root, data, needs_labels, report, warn)
    except OSError as e:  # of a folder; files are told by who reads them
        remedy = f"Let the user of {site}'s daemon read the folder."
        report(DataError(f"cannot be read: {e.strerror or e}", file=e.filename or root, remedy=remedy))
        return Listing(root)
    told = {name: _told(listing.told.of(name), data, report) for name in SPLITS}
    return replace(listing, told=Splits.of_lists(told), undivided=_told(listing.undivided, data, report))


def _read(root: Path, data: DataParams, needs_labels: bool, report: Report, warn: Warn) -> Listing:
    may_lack = frozenset({"test"}) if needs_labels else frozenset(SPLITS)
    file, folded = _list_of(root, data, report), root / folds.FILE
    fold = None if folded.is_file() else data.fold
    if file is not None and file.suffix.lower() in table.SUFFIXES:
        listing = table.from_table(file, fold, may_lack, report, warn)
        return _by_fold_file(listing, folded, data, report, warn) if folded.is_file() else listing
    about: Mapping[str, Any] = {}
    if file is not None:
        try:
            about = _read_json(file, root)
        except DataError as e:
            report(e)
            return Listing(file)
        if decathlon.is_list(about):
            listing = decathlon.from_json(file, about, fold, may_lack, report, warn)
            return _by_fold_file(listing, folded, data, report, warn) if folded.is_file() else listing
    _check_one_layout(root, report)
    if nnunet.is_nnunet(root) or nnunet.names_cases(about):
        listing = nnunet.from_nnunet(root, about, file or root, needs_labels, report, warn)
    else:
        listing = folders.from_folders(root, needs_labels, report, warn)
        listing = replace(listing, source=file or root, about=about)
    return _by_fold_file(listing, folded, data, report, warn)


def _check_one_layout(root: Path, report: Report) -> None:
    if nnunet.is_nnunet(root) and (root / folders.IMAGES).is_dir():
        problem = f"holds {folders.IMAGES}/ and {nnunet.IMAGES}/: one of the two would not be read"
        remedy = "Move one of them away, or name the cases in a dataset.json or dataset.csv."
        report(DataError(problem, file=root, key="data.path", remedy=remedy))


def _list_of(root: Path, data: DataParams, report: Report) -> Path | None:
    """The site's list, if it has one."""
    if data.list is not None:
        return root / data.list
    found = [root / name for name in LISTS if (root / name).is_file()]
    if len(found) > 1:
        names = " and ".join(file.name for file in found)
        remedy = "Name the one to read as data.list in site.yaml, or take the other away."
        report(DataError(f"holds {names}", file=root, key="data.list", remedy=remedy))
    return found[0] if found else None


def _read_json(file: Path, root: Path) -> Mapping[str, Any]:
    raw = read_json(file, "data.list")
    if isinstance(raw, dict) and (
        decathlon.is_list(raw) or nnunet.names_cases(raw) or _describes_folders(raw, root)
    ):
        return raw
    raise DataError(
        "the data list has no such key",
        file=file,
        key="training",
        remedy='It must be a Decathlon list: {"training": [{"image": …, "label": …}], "test": […]}. Without '
        "cases it may describe folders: images/ with masks/, or nnU-Net's imagesTr/ with labelsTr/.",
    )


def _describes_folders(raw: Mapping[str, Any], root: Path) -> bool:
    if not raw.keys() & DESCRIBING or not (nnunet.is_nnunet(root) or (root / folders.IMAGES).is_dir()):
        return False
    return not _lists_cases(raw)


def _lists_cases(raw: Mapping[str, Any]) -> bool:
    others = (value for key, value in raw.items() if key not in DESCRIBING)
    return any(isinstance(v, list) and any(isinstance(e, dict | str) for e in v) for v in others)


def _by_fold_file(listing: Listing, file: Path, data: DataParams, report: Report, warn: Warn) -> Listing:
    if file.is_file() and listing.undivided:
        return folds.by_fold_file(listing, file, data.fold, report, warn)
    if data.fold is not None and listing.cases:
        problem = "tells the splits itself" if file.is_file() else "has no folds"
        remedy = f"Remove data.fold from site.yaml, or put nnU-Net's {file.name} there."
        report(DataError(problem, file=listing.source, key="data.fold", value=data.fold, remedy=remedy))
    elif file.is_file() and listing.cases:
        warn(f"{file} is not used: {listing.source} tells the splits")
    return listing


def _told(cases: Sequence[Case], data: DataParams, report: Report) -> tuple[Case, ...]:
    """The cases with their patients by data.patient_pattern, where it is given and the list does not say."""
    pattern = data.patient_pattern
    if pattern is None:
        return tuple(cases)
    found = [c if c.patient is not None else replace(c, patient=matched(pattern, c.id)) for c in cases]
    for case in found:
        if case.patient is None:
            problem = f"no patient is found in the name of case {case.id} ({case.files[0]})"
            remedy = (
                "Correct the pattern (in site.yaml, or --patient-pattern of gossiplab), rename the case, or "
                "write its `patient` in a data list."
            )
            report(DataError(problem, key="data.patient_pattern", value=pattern, remedy=remedy))
    return tuple(found)


def _check_all_told(listing: Listing, report: Report, warn: Warn) -> None:
    """Cases of which only some name their patient cannot be divided by patient."""
    unknown = [case for case in listing.undivided if case.patient is None]
    if unknown and len(unknown) < len(listing.undivided):
        some = ", ".join(case.id for case in unknown[:3]) + (" …" if len(unknown) > 3 else "")
        problem = f"{len(unknown)} of {len(listing.undivided)} cases name no patient ({some})"
        remedy = "Write `patient` beside each case, or beside none."
        report(DataError(problem, file=listing.source, key="patient", remedy=remedy))
    elif len({case.patient is None for case in listing.cases}) > 1:  # test cases without a label often do
        warn(f"{listing.source}: some cases name no patient: whose they are is seen from their names alone")
    _warn_of_folders(listing, warn)


def _warn_of_folders(listing: Listing, warn: Warn) -> None:
    """Warn of slices that are named without their patient's folder, since no other folder has their number:
    names tell nothing of them."""
    long: set[Path] = set()
    short: dict[Path, str] = {}
    for case in listing.undivided:
        if case.patient is None:
            file = case.files[0]
            if case.id in (case_stem(file), same_letters(case_stem(file))):
                short.setdefault(file.parent, case.id)
            else:
                long.add(file.parent)
    if mixed := sorted(long & short.keys()):
        warn(
            f"{listing.source}: of the images in {mixed[0]}, those whose names other folders have, too, are "
            f"named after the folder, and others are not ({short[mixed[0]]}): if the folder is a patient's, "
            "write `patient` beside each case"
        )


def _check_spelling(listing: Listing, report: Report, warn: Warn) -> None:
    """A patient that is written in two ways would count as two."""
    spelled: dict[str, str] = {}
    folded: dict[str, str] = {}
    for case in listing.cases:
        if (patient := case.patient) is None:
            continue
        plain = same_letters(patient).strip()
        if (other := spelled.setdefault(plain, patient)) != patient:
            problem, remedy = f"is written {other!r} beside another case", "Write each patient in one way."
            report(DataError(problem, file=listing.source, key=case.id, value=patient, remedy=remedy))
            return
        if (other := folded.setdefault(plain.casefold(), plain)) != plain:
            warn(
                f"{listing.source}: the patients {other} and {plain} count as two: they differ in case alone"
            )
            return


# ---------------------------------------------------------------- checks by name and by bytes


def _check_files(splits: Splits, source: Path, report: Report) -> None:
    for split, case in splits:
        for path in (*case.files, *([case.label] if case.label else [])):
            if problem := missing(path):
                report(
                    DataError(
                        problem,
                        file=path,
                        key=f"{split}, case {case.id}",
                        remedy=f"Put it where this user can read it, or take the case out of {source}.",
                    )
                )


def _check_disjoint(splits: Splits, source: Path, report: Report) -> None:
    seen: dict[Path, tuple[str, str]] = {}
    ids: dict[str, Path] = {}
    for split, case in splits:
        if ids.setdefault(case.id, case.files[0]) != case.files[0]:
            problem = f"two images have this case id: {ids[case.id]} and {case.files[0]}"
            report(DataError(problem, file=source, key="case", value=case.id, remedy="Rename one of them."))
        image = real(case.files[0])
        if image in seen:
            before, _ = seen[image]
            problem = (
                f"is listed twice in {split}"
                if before == split
                else f"is in both {before} and {split}: its score would mean nothing"
            )
            report(
                DataError(
                    problem, file=source, key="case", value=case.id, remedy="Keep it in one of the lists."
                )
            )
        seen.setdefault(image, (split, case.id))
    told = Splits.of_lists({s: [c for c in splits.of(s) if c.patient is not None] for s in SPLITS})
    kept = splits.origin.file if splits.origin.how != "list" else None
    for patient, one, other in crossing(told):
        problem = f"has images in both {one} and {other}: their scores would mean nothing"
        remedy = "Keep all images of a patient in one of the lists."
        if kept is not None:  # of a file that was made before patients were told so
            source, remedy = kept, "Keep all cases of a patient in one split there, or correct who is whose."
        report(DataError(problem, file=source, key="patient", value=patient, remedy=remedy))


def _check_labels(splits: Splits, source: Path, report: Report, warn: Warn) -> None:
    """A label is no image, and seldom that of two."""
    first: dict[Path, str] = {}
    for _, case in splits:
        if case.label is None:
            continue
        if case.label in case.files:
            remedy = "Name its label."
            report(DataError("is its own label", file=source, key="case", value=case.id, remedy=remedy))
        elif first.setdefault(case.label, case.id) != case.id:
            warn(f"{case.label} is the label of {first[case.label]}, and of {case.id}, too")


def _check_bytes(splits: Splits, source: Path, report: Report, warn: Warn) -> None:
    for (one, first), (other, second) in same.alike(splits):
        if real(first.files[0]) == real(second.files[0]):
            continue  # told already
        files = f"{first.files[0]} and {second.files[0]} have the same bytes"
        if one == other:
            warn(f"{files}, and are two cases of {one}")
            continue
        problem = (
            f"has the same bytes as case {first.id} of {one} ({first.files[0]}): its score would mean nothing"
        )
        remedy = f"Keep one of the two in {source}."
        report(DataError(problem, file=second.files[0], key=f"{other}, case", value=second.id, remedy=remedy))


def _check_not_empty(splits: Splits, source: Path, report: Report) -> None:
    if not sum(splits.counts.values()):
        remedy = "Put the images and their labels there." if source.is_dir() else "List them there."
        kind = DataMissing if source.is_dir() else DataError
        report(kind("there are no cases", file=source, key="data.path", remedy=remedy))
        return
    by_list = splits.origin.how == "list"
    if not by_list and splits.origin.file is not None:
        source = splits.origin.file
    for split in ("training", "validation"):
        if not splits.counts[split]:
            report(
                DataError(
                    "this split is empty",
                    file=source,
                    key=split,
                    remedy="At least one case for training and one for validation is needed"
                    + (
                        " (without the key `validation`, a share of training is used)."
                        if by_list and split == "validation"
                        else "."
                    )
                    + PATIENTS_STAY_WHOLE,
                )
            )
