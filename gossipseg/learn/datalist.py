"""Which images a site has, and which split each belongs to.

What belongs here: reading Decathlon data lists and plain folders, and checks that need names only. What must
not: who goes into which split where no list says it (division.py), opening an image, torch, numpy.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gossipseg.errors import DataError
from gossipseg.learn.cases import SPLITS, Case, Splits
from gossipseg.learn.division import carve_validation, crossing, split_by_hash
from gossipseg.learn.params import DataParams, SplitName
from gossipseg.learn.patients import matched

SUFFIXES = (".nii.gz", ".nii", ".png", ".jpg", ".jpeg", ".dcm")
LABEL_FOLDERS = ("masks", "labels")
PATIENTS_STAY_WHOLE = (
    " All cases of a patient stay in one split; if their names are misread, give data.patient_pattern in "
    "site.yaml, or `patient` for each case of a data list."
)

Report = Callable[[DataError], None]


def load_cases(
    data: DataParams, site: str, *, needs_labels: bool = True, makes_masks: bool = False
) -> Splits:
    """The site's cases by split. Raises DataError for the first problem found.

    `needs_labels` False: training and validation cases may lack a label, as test cases always may.
    `makes_masks`: neither do they, and what labels training cases have is left out: nobody will read them.
    """
    return scan_cases(data, site, _raise, needs_labels=needs_labels, makes_masks=makes_masks)


def scan_cases(
    data: DataParams, site: str, report: Report, *, needs_labels: bool = True, makes_masks: bool = False
) -> Splits:
    """As load_cases, but hands each problem to `report` and goes on where that makes sense."""
    needs_labels = needs_labels and not makes_masks
    may_lack = frozenset(SPLITS) if not needs_labels else frozenset({"test"})
    root = Path(data.path)
    if not root.is_dir():
        report(
            DataError(
                "no such folder",
                file=root,
                key="data.path",
                remedy=f"Correct data.path in site.yaml of {site}.",
            )
        )
        return Splits()
    listed = root / (data.list or "dataset.json")
    if data.list is not None or listed.is_file():
        splits = _from_list(listed, data, may_lack, report)
    else:
        splits = _from_folders(root, data, needs_labels, report)
    if makes_masks:
        splits = replace(splits, training=tuple(replace(case, label=None) for case in splits.training))
    source = listed if listed.is_file() else root
    _check_files(splits, source, report)
    _check_disjoint(splits, source, report)
    _check_not_empty(splits, source, report)
    return splits


def case_stem(path: Path) -> str:
    """The file's name without its (double) image suffix."""
    lower = path.name.lower()
    suffix = next((s for s in SUFFIXES if lower.endswith(s)), "")
    return path.name[: len(path.name) - len(suffix)] if suffix else path.name


# ---------------------------------------------------------------- Decathlon lists


def _from_list(file: Path, data: DataParams, may_lack: Collection[str], report: Report) -> Splits:
    raw = _read_json(file, report)
    if raw is None:
        return Splits()
    parsed = {name: tuple(_entries(raw.get(name), name, file, name in may_lack, report)) for name in SPLITS}
    splits = Splits(**{name: _told(cases, data, report) for name, cases in _unique_ids(parsed).items()})
    if "validation" not in raw and splits.training:
        splits = carve_validation(splits, data.validation_fraction)
    return splits


def _read_json(file: Path, report: Report) -> dict[str, Any] | None:
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except OSError as e:
        report(DataError(f"the data list cannot be read: {e.strerror or e}", file=file, key="data.list"))
        return None
    except ValueError as e:
        report(
            DataError(f"the data list is not valid JSON: {e}", file=file, remedy="Mend the line it names.")
        )
        return None
    if not isinstance(raw, dict) or "training" not in raw:
        report(
            DataError(
                "the data list has no such key",
                file=file,
                key="training",
                remedy='It must be a Decathlon list: {"training": [{"image": …, "label": …}], "test": […]}.',
            )
        )
        return None
    return raw


def _entries(entries: Any, split: SplitName, file: Path, may_lack: bool, report: Report) -> Iterator[Case]:
    if entries is None:
        return
    if not isinstance(entries, list):
        report(DataError("must be a list of cases", file=file, key=split, remedy="Write it in brackets."))
        return
    for i, entry in enumerate(entries):
        case = _entry(entry, f"{split}.{i}", may_lack, file, report)
        if case is not None:
            yield case


def _entry(entry: Any, key: str, may_lack: bool, file: Path, report: Report) -> Case | None:
    if isinstance(entry, str):
        entry = {"image": entry}
    image = entry.get("image") if isinstance(entry, dict) else None
    label = entry.get("label") if isinstance(entry, dict) else None
    names = [image] if isinstance(image, str) else image
    if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
        report(
            DataError(
                "is no case",
                file=file,
                key=key,
                value=entry,
                remedy='Write {"image": "images/a.png", "label": "masks/a.png"}; a list of images, one per '
                "channel, is allowed.",
            )
        )
        return None
    if isinstance(label, list) and len(label) == 1:
        label = label[0]
    if not isinstance(label, str) and (label is not None or not may_lack):
        report(
            DataError(
                "this image has no label",
                file=file,
                key=f"{key}.label",
                value=label,
                remedy=f"Name the label of {names[0]}, or take the case out; only `test` may lack labels.",
            )
        )
        return None
    patient = entry.get("patient")
    if patient is not None and (
        isinstance(patient, bool) or not isinstance(patient, str | int) or patient == ""
    ):
        problem, remedy = "is no name of a patient", "Write a text or a whole number, or leave it out."
        report(DataError(problem, file=file, key=f"{key}.patient", value=patient, remedy=remedy))
        return None
    paths = tuple(file.parent / n for n in names)
    return Case(
        str(case_stem(paths[0])),
        paths[0] if len(paths) == 1 else paths,
        file.parent / label if isinstance(label, str) else None,
        None if patient is None else str(patient),
    )


def _unique_ids(parsed: dict[SplitName, tuple[Case, ...]]) -> dict[str, tuple[Case, ...]]:
    """Where images in different folders share a stem, as many folders become part of the id as it takes."""
    images: dict[str, set[Path]] = {}
    for cases in parsed.values():
        for case in cases:
            images.setdefault(case.id, set()).add(case.files[0])

    def unique(case: Case) -> Case:
        alike = images[case.id]
        depth = (
            0
            if len(alike) == 1
            else next(
                n
                for n in itertools.count(1)
                if len({path.parts[-1 - n : -1] for path in alike}) == len(alike)
            )
        )
        return replace(case, id="_".join((*case.files[0].parts[-1 - depth : -1], case.id)))

    return {name: tuple(unique(c) for c in cases) for name, cases in parsed.items()}


# ---------------------------------------------------------------- plain folders


def _from_folders(root: Path, data: DataParams, needs_labels: bool, report: Report) -> Splits:
    images, folders = root / "images", [root / n for n in LABEL_FOLDERS if (root / n).is_dir()]
    if not images.is_dir() or len(folders) > 1 or (needs_labels and not folders):
        found = ", ".join(sorted(p.name for p in root.iterdir() if p.is_dir())) or "no folders"
        report(
            DataError(
                "holds neither dataset.json nor images/ with masks/ or labels/ (one of the two)",
                file=root,
                key="data.path",
                remedy=f"Found {found}. Write a dataset.json, or lay the files out so.",
            )
        )
        return Splits()
    by_id = _by_stem(images, report)
    labels = _by_stem(folders[0], report) if folders else {}
    unpaired = by_id.keys() ^ labels.keys() if needs_labels else labels.keys() - by_id.keys()
    for name in sorted(unpaired):
        _report_unpaired(name, by_id, labels, folders[0], report)
    usable = by_id.keys() & labels.keys() if needs_labels else by_id.keys()
    cases = [Case(name, by_id[name], labels.get(name)) for name in sorted(usable)]
    return split_by_hash(_told(cases, data, report), data.test_fraction, data.validation_fraction)


def _by_stem(folder: Path, report: Report) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        known = path.name.lower().endswith(SUFFIXES) or path.is_dir()
        if path.name.startswith(".") or not known:
            continue
        stem = case_stem(path)
        if stem in found:
            report(
                DataError(
                    "two files have this case id",
                    file=path,
                    key="case",
                    value=stem,
                    remedy=f"Rename it, or {found[stem].name}.",
                )
            )
        found[stem] = path
    return found


def _report_unpaired(
    name: str, images: dict[str, Path], labels: dict[str, Path], folder: Path, report: Report
) -> None:
    if name in images:
        problem = f"this image has no label in {folder.name}/"
        remedy = f"Put {name}.png (or .nii.gz) into {folder}, move the image away, or write a dataset.json."
        report(DataError(problem, file=images[name], key="case", value=name, remedy=remedy))
    else:
        remedy = (
            "Labels are matched by the name without suffix; rename or remove it, or write a dataset.json."
        )
        report(
            DataError(
                "this label has no image in images/", file=labels[name], key="case", value=name, remedy=remedy
            )
        )


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


# ---------------------------------------------------------------- checks by name


def _check_files(splits: Splits, source: Path, report: Report) -> None:
    for split, case in splits:
        for path in (*case.files, *([case.label] if case.label else [])):
            if not path.exists():
                report(
                    DataError(
                        "no such file",
                        file=path,
                        key=f"{split}, case {case.id}",
                        remedy=f"Put it there, or take the case out of {source}.",
                    )
                )


def _check_disjoint(splits: Splits, source: Path, report: Report) -> None:
    seen: dict[Path, tuple[str, str]] = {}
    for split, case in splits:
        image = case.files[0].resolve()
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
    told = Splits(**{name: tuple(c for c in splits.of(name) if c.patient is not None) for name in SPLITS})
    for patient, one, other in crossing(told):
        problem = f"has images in both {one} and {other}: their scores would mean nothing"
        remedy = "Keep all images of a patient in one of the lists."
        report(DataError(problem, file=source, key="patient", value=patient, remedy=remedy))


def _check_not_empty(splits: Splits, source: Path, report: Report) -> None:
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
                        if split[0] == "v"
                        else "."
                    )
                    + PATIENTS_STAY_WHOLE,
                )
            )


def _raise(problem: DataError) -> None:
    raise problem
