"""The file in which a site's division is kept: splits.json in the state directory.

    {"schema": 1, "made": "drawn", "training": [names of cases], "validation": […], "test": […]}

A person may write it beforehand ("made" may then be left out), also in nnU-Net's form, a list of folds
[{"train": […], "val": […]}]. A case that is named stays where it is, whatever else comes or goes; one that
vanished stays named. A case that is not named goes where its patient is, and a new patient where the shares
lack most. The data list goes before the file, and a file written by hand must not contradict it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gossipseg.errors import DataError
from gossipseg.learn.data.cases import SPLITS, Case, Origin, Splits
from gossipseg.learn.data.division import drawn_order, patients_in, placed, shares
from gossipseg.learn.data.formats.kinds import case_stem
from gossipseg.learn.data.lists.folds import (
    KEYS,
    check_keys,
    check_known,
    fold_of,
    names_of,
    plain_name,
    warn_unknown,
)
from gossipseg.learn.data.lists.listing import Listing, Report, Warn
from gossipseg.learn.data.lists.paths import same_letters
from gossipseg.learn.data.lists.text import read_json
from gossipseg.learn.data.olddraw import old_division
from gossipseg.learn.data.patients import matched
from gossipseg.learn.data.trained_cases import trained_before_splits
from gossipseg.learn.params import DataParams, SplitName, WorkerSpec
from gossipseg.store.atomic import atomic_write, make_directory

PATIENTS_STAY_WHOLE = (
    " All cases of a patient stay in one split; if their names are misread, give data.patient_pattern in "
    "site.yaml, or `patient` for each case of a data list."
)
FILE = "splits.json"
DRAWN, BY_HAND = "drawn", "by hand"
_TO_BE_KEPT, _KEPT = "to be kept in", "kept in"
_NAMED = 8


@dataclass(frozen=True, slots=True)
class Keep:
    """Where a site's division is kept, and what it is drawn from."""

    state_dir: Path
    seed: int

    @property
    def file(self) -> Path:
        return self.state_dir / FILE


def keep_of(spec: WorkerSpec) -> Keep:
    """That of a training process."""
    return Keep(Path(spec.state_dir), spec.seed)


def written_in_folds(keep: Keep | None) -> bool:
    """Whether the site's splits.json has nnU-Net's form, so that data.fold is about it."""
    try:
        return keep is not None and keep.file.is_file() and isinstance(read_json(keep.file), list)
    except (DataError, OSError):  # told where it is used
        return False


def write_division(splits: Splits) -> Splits:
    """Write the site's splits.json, where it is to change. For the training process, which alone does so.

    Returns the same splits, kept. Raises DiskFull, LocalError.
    """
    origin = splits.origin
    if origin.file is not None and origin.document is not None:
        make_directory(origin.file.parent)
        text = json.dumps(origin.document, indent=2, ensure_ascii=False)
        atomic_write(origin.file, f"{text}\n".encode())
    told = origin.text.replace(_TO_BE_KEPT, _KEPT)
    return replace(splits, origin=replace(origin, text=told, document=None))


# ---------------------------------------------------------------- reading


@dataclass(frozen=True, slots=True)
class _Kept:
    """A splits.json, read."""

    file: Path
    by_hand: bool
    document: Any
    names: Mapping[SplitName, tuple[str, ...]]
    fold: int | None

    @property
    def where(self) -> dict[str, SplitName]:
        return {name: split for split, names in self.names.items() for name in names}

    def with_cases(self, added: Mapping[str, SplitName]) -> Any:
        """The document with more cases; all else that stands in it stays as it is.

        Those that it had in a split which a list now rules out are no longer there.
        """
        part = self.document[self.fold] if self.fold is not None else self.document
        moved = added.keys() & self.where.keys()
        part = {k: [n for n in v if n not in moved] if KEYS.get(k) else v for k, v in part.items()}
        grown = dict(part)
        for split in SPLITS:
            more = [name for name, where in added.items() if where == split]
            if more:
                key = next((k for k in part if KEYS.get(k) == split), None) or _key(split, self.fold)
                grown[key] = [*part.get(key, ()), *sorted(more)]
        if self.fold is None:
            return grown
        return [grown if i == self.fold else fold for i, fold in enumerate(self.document)]


def _key(split: SplitName, fold: int | None) -> str:
    return {"training": "train", "validation": "val"}.get(split, split) if fold is not None else split


def _read(file: Path, data: DataParams, known: Sequence[Case]) -> _Kept | None:
    """None where there is no file. Raises DataError for one that cannot be used."""
    try:
        file.lstat()  # a link whose file is away is no lost file
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as e:  # the state directory is the daemon's alone
        remedy = "Run this as the user that the daemon runs as."
        raise DataError(f"cannot be read: {e.strerror or e}", file=file, remedy=remedy) from None
    raw = read_json(file)
    fold = None
    if isinstance(raw, list):
        fold = data.fold or 0
        part = fold_of(raw, data.fold, file)
    else:
        part = raw
    if not isinstance(part, dict) or not {KEYS.get(key) for key in part} & {"training", "validation"}:
        remedy = f'Write {{"training": ["a", …], "validation": ["b", …], "test": […]}}; {_LOST}'
        raise DataError("does not say which cases train and which validate", file=file, remedy=remedy)
    made = part.get("made", BY_HAND)
    if made not in (DRAWN, BY_HAND):
        remedy = f'Write "{BY_HAND}", or leave the key out.'
        raise DataError("is no way to make splits", file=file, key="made", value=made, remedy=remedy)
    ids = {case.id for case in known}
    check_keys(part, ids, file)
    names = names_of(part, file, lambda name: plain_name(name, ids))
    return _Kept(file, made == BY_HAND, raw, names, fold)


# ---------------------------------------------------------------- dividing

_LOST = (
    "or restore the file from a backup. trained-on.json beside it names the cases that were trained on: they "
    "belong into training. Or begin anew with an empty state_dir."
)


def divide(
    listing: Listing, data: DataParams, site: str, keep: Keep | None, report: Report, warn: Warn
) -> Splits:
    """The site's splits: as its list says, else as splits.json says, else drawn. Writes nothing.

    `keep` None: drawn from the seed 0, and kept nowhere.
    """
    try:
        kept = _read(keep.file, data, listing.cases) if keep is not None else None
        if kept is not None and kept.by_hand:
            _check_by_hand(kept, listing, data)
        if not listing.undivided:
            return _as_listed(listing, kept, warn)
        return _divided(listing, data, site, keep, kept, warn)
    except DataError as e:
        report(e)
        # So that all cases are looked at.
        return replace(listing.told, training=(*listing.told.training, *listing.undivided))


def _as_listed(listing: Listing, kept: _Kept | None, warn: Warn) -> Splits:
    if kept is not None and not kept.by_hand and listing.cases:
        warn(f"{kept.file} was drawn before {listing.source.name} told the splits: the list is followed")
    text = f"as {listing.source.name} says" + (f" ({listing.rests_on})" if listing.rests_on else "")
    return replace(listing.told, origin=Origin("list", text))


def _divided(
    listing: Listing, data: DataParams, site: str, keep: Keep | None, kept: _Kept | None, warn: Warn
) -> Splits:
    into = [s for s in listing.into if s != "test" or data.test_fraction > 0]
    note = ""
    if kept is not None:
        where = _named(kept, listing, warn)
        if keep is not None:
            _check_any(kept, where, listing, keep.state_dir)
    elif keep is not None and _has_checkpoint(keep.state_dir):
        where = _as_before(keep, listing, data)
        note = "drawn by version 0.2, whose division is kept"
    else:
        where = {}
    added = _added(listing, data, where, into, keep.seed if keep is not None else 0, site)
    where = where | added
    lists = {
        split: (*listing.told.of(split), *(c for c in listing.undivided if where.get(c.id) == split))
        for split in SPLITS
    }
    document = _document(where, note) if kept is None else kept.with_cases(added) if added else None
    return replace(Splits.of_lists(lists), origin=_origin(listing, keep, kept, document))


def _origin(listing: Listing, keep: Keep | None, kept: _Kept | None, document: Any) -> Origin:
    told = [split for split in SPLITS if listing.told.of(split)]
    also = f", {' and '.join(told)} as {listing.source.name} says" if told else ""
    if kept is not None and kept.by_hand:
        return Origin("by hand", f"written by hand in {kept.file}{also}", kept.file, document)
    if keep is None:
        return Origin("drawn", f"drawn{also}")
    where = _KEPT if kept is not None else _TO_BE_KEPT
    return Origin("drawn", f"drawn from the seed, {where} {keep.file}{also}", keep.file, document)


def _document(where: Mapping[str, SplitName], note: str) -> dict[str, Any]:
    document: dict[str, Any] = {"schema": 1, "made": DRAWN} | ({"note": note} if note else {})
    return document | {split: sorted(n for n, s in where.items() if s == split) for split in SPLITS}


def _named(kept: _Kept, listing: Listing, warn: Warn) -> dict[str, SplitName]:
    """Cases that the file names and the list does not divide, vanished ones among them.

    Of a drawn file, a split that the list rules out is passed over.
    """
    known = {case.id for case in listing.cases}
    renamed = _renamed(kept, listing)
    gone = kept.where.keys() - known - set(renamed.values())
    warn_unknown([name for name in kept.where if name in gone], kept.file, warn)
    told = {case.id for _, case in listing.told}
    where = kept.where | {new: kept.where[old] for new, old in renamed.items()}
    return {n: s for n, s in where.items() if n not in told and s in listing.by_hand_into}


def _renamed(kept: _Kept, listing: Listing) -> dict[str, str]:
    """New id → the name that the file has for this image.

    What else is listed decides how many folders an id has (`lists.decathlon.unique`). Raises DataError where
    several images may be the one that is named, or one may be several.
    """
    gone = kept.where.keys() - {case.id for case in listing.cases}
    news: dict[str, list[str]] = {}
    olds: dict[str, list[str]] = {}
    for case in listing.undivided if gone else ():
        if case.id not in kept.where:
            for old in sorted(_earlier_ids(case) & gone):
                news.setdefault(old, []).append(case.id)
                olds.setdefault(case.id, []).append(old)
    for old, alike in news.items():
        if len(alike) > 1:
            problem = f"several images have this name now: {', '.join(alike[:_NAMED])}"
            remedy = "Write there which of them it is."
            raise DataError(problem, file=kept.file, key=kept.where[old], value=old, remedy=remedy)
    for new, several in olds.items():
        if len(several) > 1:
            problem = f"{new} may be each of these: {', '.join(several[:_NAMED])}"
            remedy = f"Write there where {new} belongs."
            raise DataError(problem, file=kept.file, key="case", value=new, remedy=remedy)
    return {new: several[0] for new, several in olds.items()}


def _earlier_ids(case: Case) -> set[str]:
    """What a case may have been called when other images were listed beside it."""
    file = case.files[0]
    stem = same_letters(case_stem(file))
    folders = [file.parts[at:-1] for at in range(1, len(file.parts))]
    return {"_".join((*parts, name)) for parts in folders for name in (stem, stem.removesuffix("_0000"))} | {
        file.name
    }


def _check_any(kept: _Kept, where: Mapping[str, SplitName], listing: Listing, state_dir: Path) -> None:
    """Where the file names none of the images, and a model was trained on them, nobody knows on which."""
    here = {case.id for case in listing.cases}
    named = here & (kept.where.keys() | where.keys())
    told = len(listing.cases) > len(listing.undivided)  # by the list, which then says what was trained on
    if listing.undivided and not told and kept.where and not named and _has_checkpoint(state_dir):
        some = ", ".join([*kept.where][:3])
        raise DataError(
            f"names none of the {len(here)} cases that are here (it names {some} …), beside a checkpoint: "
            "a new draw could test on what was trained on",
            file=kept.file,
            remedy="Write their new names there, if they were renamed or moved; else begin anew with an "
            "empty state_dir.",
        )


def _added(
    listing: Listing,
    data: DataParams,
    where: Mapping[str, SplitName],
    into: Sequence[SplitName],
    seed: int,
    site: str,
) -> dict[str, SplitName]:
    """The undivided cases that nobody has placed yet: with their patient, or by the draw."""
    patients = patients_in([*listing.cases, *_vanished(listing, where, data)])
    there: dict[str, SplitName] = {}
    for split in SPLITS:  # nobody is drawn into test without a share of it, but who is there stays whole
        if split in into:
            there |= {patients[c.id]: split for c in listing.told.of(split) if patients[c.id] not in there}
        there |= {patients[n]: split for n, s in where.items() if s == split and patients[n] not in there}
    new = [case for case in listing.undivided if case.id not in where]
    unplaced = {patients[case.id] for case in new} - there.keys()
    if not where and not any(listing.told.of(split) for split in into):
        _check_enough(unplaced, into, listing)
    present = {patients[case.id] for case in listing.cases}
    counts = {split: sum(s == split for p, s in there.items() if p in present) for split in into}
    goal = shares(len(unplaced) + sum(counts.values()), data.test_fraction, data.validation_fraction, into)
    there |= placed(drawn_order(unplaced, seed, site), counts, goal)
    return {case.id: there[patients[case.id]] for case in new}


def _vanished(listing: Listing, where: Mapping[str, SplitName], data: DataParams) -> list[Case]:
    """Cases that are named and not there: their names, too, tell whose the others are."""
    known = {case.id for case in listing.cases}
    pattern = data.patient_pattern
    return [
        Case(name, Path(name), None, None if pattern is None else matched(pattern, name))
        for name in where
        if name not in known
    ]


def _check_enough(patients: set[str], into: Sequence[SplitName], listing: Listing) -> None:
    if len(patients) >= len(into):
        return
    names = ", ".join(case.id for case in listing.undivided[:_NAMED])
    names += " …" if len(listing.undivided) > _NAMED else ""
    count = "1 patient" if len(patients) == 1 else f"{len(patients)} patients"
    found = f"{count} in {len(listing.undivided)} cases ({names})"
    missing = len(into) - len(patients)
    more = "1 more patient" if missing == 1 else f"{missing} more patients"
    less = " With test_fraction: 0 two are enough." if "test" in into else ""
    raise DataError(
        f"{found} cannot be divided: {', '.join(into[:-1])} and {into[-1]} need a patient each",
        file=listing.source,
        key="data.path",
        remedy=f"Add cases of {more}.{less}{PATIENTS_STAY_WHOLE}",
    )


# ---------------------------------------------------------------- written by hand


def _check_by_hand(kept: _Kept, listing: Listing, data: DataParams) -> None:
    told = {case.id: split for split, case in listing.told}
    undivided = {case.id for case in listing.undivided}
    for name, split in kept.where.items():
        says = told.get(name)
        if says is None and name in undivided and split not in listing.by_hand_into:
            says = "training"
        if says is not None and says != split:
            problem = f"{listing.source} has this case in {says}"
            remedy = "Correct one of the two: the data list goes first."
            raise DataError(problem, file=kept.file, key=split, value=name, remedy=remedy)
    check_known(kept.names, {*told, *undivided}, kept.file)
    _check_whole(kept, listing, data)


def _check_whole(kept: _Kept, listing: Listing, data: DataParams) -> None:
    """No patient of the cases that are here stands in two splits."""
    patients = patients_in([*listing.cases, *_vanished(listing, kept.where, data)])
    first: dict[str, tuple[str, SplitName]] = {}
    for name, split in kept.where.items():
        other, where = first.setdefault(patients[name], (name, split))
        if where != split:
            problem = f"patient {patients[name]} has {other} in {where}, too: their scores would mean nothing"
            remedy = (
                "Keep all cases of a patient in one split; if the names are misread, give "
                "data.patient_pattern in site.yaml."
            )
            raise DataError(problem, file=kept.file, key=split, value=name, remedy=remedy)


# ---------------------------------------------------------------- beside a checkpoint


def _has_checkpoint(state_dir: Path) -> bool:
    try:
        return any(path.name.startswith("round-") for path in (state_dir / "checkpoint").iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:  # nobody can say that there is none
        return True


def _as_before(keep: Keep, listing: Listing, data: DataParams) -> dict[str, SplitName]:
    """The division of version 0.2, which kept none, where it fits what was trained on. Raises DataError."""
    trained = trained_before_splits(keep.state_dir)
    where = old_division(listing, data, trained) if trained else None
    if where is None:
        raise DataError(
            "is missing beside a checkpoint: a new draw could test on what was trained on",
            file=keep.file,
            remedy='Write it by hand ({"training": ["a", …], "validation": ["b", …], "test": ["c", …]}), '
            + _LOST,
        )
    return where
