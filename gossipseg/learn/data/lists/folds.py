"""Folds of a cross-validation: nnU-Net's splits_final.json, and `fold` beside the cases of a list.

One fold validates and the others train, as nnU-Net and MONAI have it: data.fold says which, 0 where it is
not given, which is their default, too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gossipseg.errors import DataError
from gossipseg.learn.data.cases import SPLITS, Case, Splits
from gossipseg.learn.data.formats.kinds import case_stem
from gossipseg.learn.data.lists.listing import Listing, Report, Warn
from gossipseg.learn.data.lists.paths import same_letters
from gossipseg.learn.data.lists.text import read_json
from gossipseg.learn.params import SplitName

FILE = "splits_final.json"
KEYS: Mapping[str, SplitName] = {
    "train": "training",
    "training": "training",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}
"""Words for a split → the product's own."""
SHOWN, NAMED = 3, 8
_WHOLE = re.compile(r"(\d+)\.0+")


def by_fold_file(listing: Listing, file: Path, fold: int | None, report: Report, warn: Warn) -> Listing:
    """The undivided cases as a splits_final.json divides them; those that it does not name stay undivided."""
    try:
        part = fold_of(read_json(file), fold, file)
        known = {known_name for case in listing.cases for known_name in (case.id, _without_channel(case.id))}
        check_keys(part, known, file)
        names = names_of(part, file, lambda name: plain_name(name, known))
        check_known(names, known, file)
    except DataError as e:
        report(e)
        return listing
    where = {name: split for split, given in names.items() for name in given}

    def name_of(case: str) -> str:  # a list may name the file of a case's first channel
        return case if case in where else _without_channel(case)

    warn_unknown([name for name in where if name not in known], file, warn)
    told = {
        split: (*listing.told.of(split), *(c for c in listing.undivided if where.get(name_of(c.id)) == split))
        for split in SPLITS
    }
    left = tuple(c for c in listing.undivided if name_of(c.id) not in where)
    said = f"fold {fold or 0} of {file.name}"
    return replace(
        listing, told=Splits.of_lists(told), undivided=left, into=("training", "validation"), rests_on=said
    )


def _without_channel(name: str) -> str:
    return name.removesuffix("_0000")


def plain_name(name: str, known: Collection[str]) -> str:
    """A person may name a case by its file, or by that of its first channel."""
    stem = same_letters(case_stem(Path(name.strip())))
    return next((n for n in (name, stem, _without_channel(stem)) if n in known), name)


def check_known(names: Mapping[SplitName, Sequence[str]], known: Collection[str], file: Path) -> None:
    """Raises DataError where a split names cases, and none that is here: they are other cases' names."""
    for split, given in names.items():
        if given and known and not {*known} & {*given}:
            remedy = f"Cases are named as here: {', '.join(sorted(known)[:NAMED])}."
            raise DataError("none of these cases is here", file=file, key=split, remedy=remedy)


def warn_unknown(names: Sequence[str], file: Path, warn: Warn) -> None:
    """Say which names of a file are of no case here."""
    if names:
        shown = ", ".join(sorted(names)[:SHOWN]) + (" …" if len(names) > SHOWN else "")
        what = "a case that is" if len(names) == 1 else f"{len(names)} cases that are"
        warn(f"{file} names {what} not here: {shown}")


def fold_of(raw: Any, fold: int | None, file: Path) -> Any:
    """One fold of nnU-Net's list of folds. Raises DataError."""
    if not isinstance(raw, list) or not raw or not all(isinstance(f, dict) for f in raw):
        remedy = 'Write [{"train": ["a", …], "val": ["b", …]}, …], an object for each fold.'
        raise DataError("is no list of folds", file=file, remedy=remedy)
    if (fold or 0) >= len(raw):
        remedy = f"Write a number from 0 to {len(raw) - 1} in site.yaml."
        raise DataError(f"has {len(raw)} folds", file=file, key="data.fold", value=fold, remedy=remedy)
    return raw[fold or 0]


def check_keys(raw: Mapping[str, Any], known: Collection[str], file: Path) -> None:
    """Raises DataError for a key that is no split and names cases, which would be drawn elsewhere."""
    for key, given in raw.items():
        if key in KEYS or not isinstance(given, list):
            continue
        name = next((n for n in given if isinstance(n, str) and n in known), None)
        if name is not None:
            problem = f"is no split, and names cases ({name})"
            remedy = f"Name it {', '.join(SPLITS)}."
            raise DataError(problem, file=file, key=key, remedy=remedy)


def names_of(
    raw: Mapping[str, Any], file: Path, plain: Callable[[str], str] = str
) -> dict[SplitName, tuple[str, ...]]:
    """Names by split, of nnU-Net's keys or the product's, as `plain` makes them.

    Raises DataError, also for a name that is twice there.
    """
    found: dict[SplitName, tuple[str, ...]] = {}
    first: dict[str, str] = {}
    for key, given in raw.items():
        split = KEYS.get(key)
        if split is None:
            continue
        if not isinstance(given, list) or not all(isinstance(n, str) for n in given):
            remedy = 'Write names in brackets: ["a", "b"].'
            raise DataError("must be a list of case names", file=file, key=key, value=given, remedy=remedy)
        names = [plain(name) for name in given]
        for name in names:
            if name in first:
                where = "twice" if first[name] == key else f"in {first[name]}, too"
                problem, remedy = f"stands there {where}", "Keep it in one of them."
                raise DataError(problem, file=file, key=key, value=name, remedy=remedy)
            first[name] = key
        found[split] = (*found.get(split, ()), *names)
    return found


def by_folds(
    cases: Sequence[Case], folds: Sequence[int | None], fold: int | None, file: Path
) -> tuple[tuple[Case, ...], tuple[Case, ...]]:
    """(training, validation) of a list whose cases have `fold`. Raises DataError."""
    lacking = next((case for case, number in zip(cases, folds, strict=True) if number is None), None)
    if lacking is not None:
        problem = f"case {lacking.id} has no fold, and others have one"
        remedy = "Give every case of `training` a fold, or none."
        raise DataError(problem, file=file, key="fold", remedy=remedy)
    known = sorted({number for number in folds if number is not None})
    if (fold or 0) not in known:
        remedy = f"Set data.fold in site.yaml to one of {', '.join(map(str, known))}."
        raise DataError("no case is in this fold", file=file, key="data.fold", value=fold or 0, remedy=remedy)
    pairs = list(zip(cases, folds, strict=True))
    return (
        tuple(case for case, number in pairs if number != (fold or 0)),
        tuple(case for case, number in pairs if number == (fold or 0)),
    )


def fold_number(value: Any) -> int | None:
    """The number of a fold, as JSON or a table has it; None: it is none."""
    if isinstance(value, str) and value.strip().isdecimal():
        return int(value)
    if isinstance(value, float | str) and (whole := _WHOLE.fullmatch(str(value).strip())):
        return int(whole[1])  # as programs write it where other cases have none
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
