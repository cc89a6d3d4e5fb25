"""Patient splits of a comparison: a site's cases are drawn anew, so that a result does not depend on one
division.

Split 0 is the site's own. Every other one keeps its sizes, and no patient is in two splits. Where names are
bare numbers they identify no patient, and neighbouring cases may be one patient's. Then whole stretches of
the list are taken, and cases too close to another split are left out.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gossipseg.errors import DataError
from gossipseg.learn.data.cases import SPLITS, Case, Splits
from gossipseg.learn.data.datalist import load_cases
from gossipseg.learn.data.division import drawn_order, patients_in
from gossipseg.learn.params import DataParams

OWN = 0
NEAR = 3
"""Largest distance of two numbers that may be slices of one patient."""
_GOLDEN = 0.6180339887498949
"""Step between the starts of splits: multiples of it lie far from each other, for any number of splits."""


def folder_of(out: Path, split: int, site: str) -> Path:
    """Folder of a data list that the lab writes."""
    return out / "splits" / str(split) / site


def is_written(rewritten: bool, number: int) -> bool:
    """Whether the lab writes a split's data list: not for a site's own split unless `rewritten`."""
    return number != OWN or rewritten


def own_division(data: DataParams, site: str) -> tuple[Splits, bool, str]:
    """The site's own split, whether the lab writes a list of it, and a note for the user. Raises DataError.

    The lab writes it where a pattern identifies patients, and where no list divides them. Then all runs,
    whatever their seed, have one division. A figure needs a test split. Where its cases have no labels (as
    the Decathlon publishes it), a share of the training patients is set aside.
    """
    own = load_cases(data, site, needs_labels=False)
    aside = Splits() if any(case.label for case in own.test) else _set_aside(own, data, site)
    if not aside.test:
        return own, data.patient_pattern is not None or own.origin.how != "list", ""
    count = sum(case.label is not None for case in aside.test)
    cases = f"{count} of {len(own.training)} training cases"
    return aside, True, f"{site}: no test case has a label, so {cases} are set aside as test"


def _set_aside(own: Splits, data: DataParams, site: str) -> Splits:
    """The split with a share of the labelled training patients as test; empty where they are too few."""
    whose = patients_in(case for _, case in own)
    patients = {whose[case.id] for case in own.training if case.label is not None}
    if len(patients) < 2:
        return Splits()
    count = min(len(patients) - 1, max(1, round(data.test_fraction * len(patients))))
    chosen = {*drawn_order(patients, 0, f"{site}/test")[:count]}
    test = tuple(case for case in own.training if whose[case.id] in chosen and case.label is not None)
    training = tuple(case for case in own.training if whose[case.id] not in chosen)
    return Splits(training, own.validation, (*test, *own.test))


def write(out: Path, sources: Mapping[str, DataParams], numbers: Sequence[int]) -> None:
    """The data lists of all splits that need one, by site. Raises DataError."""
    for number in numbers:
        for site, data in sources.items():
            own, rewritten, _ = own_division(data, site)
            if not is_written(rewritten, number):
                continue
            splits = own if number == OWN else redrawn(own, number)
            for name in SPLITS:
                if not splits.of(name):
                    raise DataError(
                        f"split {number} leaves no case for {name}",
                        file=Path(data.path),
                        key="--splits",
                        value=number,
                        remedy="The site has too few patients to draw anew: leave it out with --sites.",
                    )
            folder = folder_of(out, number, site)
            folder.mkdir(parents=True, exist_ok=True)
            write_list(folder, {name: splits.of(name) for name in SPLITS})


def write_list(folder: Path, lists: Mapping[str, Any]) -> DataParams:
    """Write a data list of these cases into their folder."""
    document = {split: [_entry(case) for case in cases] for split, cases in lists.items()}
    (folder / "dataset.json").write_text(json.dumps(document), encoding="utf-8")
    return DataParams(str(folder))


def _entry(case: Case) -> dict[str, Any]:
    entry: dict[str, Any] = {"image": [str(file) for file in case.files]}
    entry |= {"label": str(case.label)} if case.label is not None else {}
    return entry | ({"patient": case.patient} if case.patient is not None else {})


def redrawn(own: Splits, number: int) -> Splits:
    """Another division of the same cases, with test and validation of the same size or one patient larger.

    Cases without a label stay in the test split, or are left out if their patient moved. The same number
    gives the same division everywhere.
    """
    whose = patients_in(case for _, case in own)
    fixed = tuple(case for _, case in own if case.label is None)
    labelled = [case for _, case in own if case.label is not None]
    tests = sum(case.label is not None for case in own.test)
    sizes = (tests, sum(case.label is not None for case in own.validation))
    if all(case.patient is None and case.id.isascii() and case.id.isdigit() for case in labelled):
        test, validation, training = _stretches(sorted(labelled, key=lambda c: int(c.id)), sizes, number)
    else:
        test, validation, training = _by_patient(labelled, whose, sizes, number)
    elsewhere = {whose[case.id] for case in (*training, *validation)}
    fixed = tuple(case for case in fixed if whose[case.id] not in elsewhere)
    return Splits(tuple(training), tuple(validation), (*test, *fixed))


def _by_patient(
    cases: Sequence[Case], whose: Mapping[str, str], sizes: tuple[int, int], number: int
) -> list[list[Case]]:
    patients: defaultdict[str, list[Case]] = defaultdict(list)
    for case in sorted(cases, key=lambda c: c.id):
        patients[whose[case.id]].append(case)
    parts: list[list[Case]] = [[], [], []]
    for patient in sorted(patients, key=lambda p: hashlib.sha256(f"{number}/{p}".encode()).digest()):
        part = next((i for i, size in enumerate(sizes) if len(parts[i]) < size), 2)
        parts[part] += patients[patient]
    return parts


def _stretches(cases: Sequence[Case], sizes: tuple[int, int], number: int) -> list[list[Case]]:
    """Test, validation and training in sequence, from a start that depends on the split's number."""
    start = int(len(cases) * (number * _GOLDEN % 1.0))
    turned = [*cases[start:], *cases[:start]]
    test, rest = turned[: sizes[0]], _far_from(turned[: sizes[0]], turned[sizes[0] :])
    validation, rest = rest[: sizes[1]], _far_from(rest[: sizes[1]], rest[sizes[1] :])
    return [test, validation, rest]


def _far_from(taken: Sequence[Case], cases: Sequence[Case]) -> list[Case]:
    numbers = [int(case.id) for case in taken]
    return [case for case in cases if all(abs(int(case.id) - n) > NEAR for n in numbers)]
