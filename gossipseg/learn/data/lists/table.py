"""Lists as tables: CSV with the columns image, label, patient, split, fold."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from gossipseg.errors import DataError
from gossipseg.learn.data.cases import SPLITS, Splits
from gossipseg.learn.data.lists.decathlon import ListEntry, case_of, data_alone, divided_by_list, unique
from gossipseg.learn.data.lists.folds import KEYS, fold_number
from gossipseg.learn.data.lists.listing import Listing, Report, Warn
from gossipseg.learn.data.lists.text import read_text
from gossipseg.learn.params import SplitName

SUFFIXES = (".csv", ".tsv")
DELIMITERS = ",;\t"
_IMAGE = re.compile(r"images?[ _]?(\d*)")
_COLUMNS = {
    "label": "label",
    "mask": "label",
    "patient": "patient",
    "patient_id": "patient",
    "patient id": "patient",
    "split": "split",
    "fold": "fold",
}
_EXAMPLE = "image,label,patient,split"
FREE = ""
"""In place of a split: no split is told."""


@dataclass(frozen=True, slots=True)
class _Columns:
    images: tuple[int, ...]
    """One, or one for each channel: image, or image_0, image_1, …"""
    of: Mapping[str, int]
    count: int

    def cell(self, row: list[str], name: str) -> str:
        at = self.of.get(name)
        return row[at].strip() if at is not None and at < len(row) else ""


def from_table(
    file: Path, fold: int | None, may_lack: Collection[str], report: Report, warn: Warn
) -> Listing:
    """The cases of a table. Rows without a split are divided as cases without a list are."""
    try:
        header, *rows = _rows(file)
        columns = _columns(header[1], file, warn)
    except DataError as e:
        report(e)
        return Listing(file)
    by_split: dict[str, list[ListEntry]] = {}
    for line, row in rows:
        try:
            split, entry = _row(line, row, columns, may_lack, file)
        except DataError as e:
            report(e)
            continue
        by_split.setdefault(split or FREE, []).append(entry)
    by_split = {split: data_alone(entries, file, warn) for split, entries in by_split.items()}
    return _listing(file, by_split, fold, report, warn)


def _listing(
    file: Path, by_split: dict[str, list[ListEntry]], fold: int | None, report: Report, warn: Warn
) -> Listing:
    """Without the column split a fold divides; without both, the draw."""
    if by_split.keys() == {FREE} and any(entry.fold is not None for entry in by_split[FREE]):
        by_split = {"training": by_split[FREE]}
    named = unique(by_split)
    left = tuple(entry.case for entry in named.pop(FREE, ()))
    if not left and named:
        return divided_by_list(file, named, fold, report, warn, {}, "validation" in named)
    if fold is not None:
        remedy = "Remove data.fold from site.yaml, or give every case a fold."
        report(DataError("not all cases have a fold", file=file, key="data.fold", value=fold, remedy=remedy))
    told = Splits.of_lists({split: [entry.case for entry in entries] for split, entries in named.items()})
    into = SPLITS if not named or "test" in named else ("training", "validation")
    return Listing(file, told, left, into, rests_on="column split" if named else "")


def _rows(file: Path) -> list[tuple[int, list[str]]]:
    text = read_text(file, "data.list")
    first = next((line for line in text.splitlines() if line.strip()), "")
    if first.lower().startswith("sep=") and len(first.strip()) == 5:  # a spreadsheet's own first line
        delimiter = first.strip()[4]
    else:
        delimiter = max(DELIMITERS, key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        rows = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except csv.Error as e:
        raise DataError(f"is no table: {e}", file=file, key="data.list", remedy="Mend it.") from None
    if rows and "".join(rows[0][1]).lower().startswith("sep"):
        rows = rows[1:] if first.lower().startswith("sep=") else rows
    if len(rows) < 2:
        remedy = f"The first line names the columns ({_EXAMPLE}), each other one is a case."
        raise DataError("holds no cases", file=file, key="data.list", remedy=remedy)
    return rows


def _columns(header: list[str], file: Path, warn: Warn) -> _Columns:
    names = [cell.strip().lower() for cell in header]
    images = sorted(
        (int(m[1] or 0), at) for at, name in enumerate(names) if (m := _IMAGE.fullmatch(name)) is not None
    )
    if not images:
        remedy = f"The first line must name the columns: {_EXAMPLE} (image_0, image_1 for channels)."
        raise DataError("has no column image", file=file, key="image", value=", ".join(names), remedy=remedy)
    of: dict[str, int] = {}
    for at, name in enumerate(names):
        known = _COLUMNS.get(name)
        if known in of or (known is None and name and names.count(name) > 1 and _IMAGE.fullmatch(name)):
            remedy = "Rename or remove one of them."
            raise DataError("two columns mean this", file=file, key=known or name, remedy=remedy)
        if known is not None:
            of[known] = at
    others = [n for n in names if n and n not in _COLUMNS and not _IMAGE.fullmatch(n)]
    if others:
        warn(f"{file}: columns that are not read: {', '.join(others)}")
    return _Columns(tuple(at for _, at in images), of, len(header))


def _row(
    line: int, row: list[str], columns: _Columns, may_lack: Collection[str], file: Path
) -> tuple[SplitName | None, ListEntry]:
    key = f"line {line}"
    if any(cell.strip() for cell in row[columns.count :]):
        problem = f"has more cells than the {columns.count} columns of the first line"
        remedy = "Write names with a delimiter in them in quotation marks."
        raise DataError(problem, file=file, key=key, remedy=remedy)
    names = [row[at].strip() for at in columns.images if at < len(row)]
    if len(names) < len(columns.images) or not all(names):
        remedy = "Write the image's file, or remove the line."
        raise DataError("this line names no image", file=file, key=key, remedy=remedy)
    said, number = columns.cell(row, "split"), columns.cell(row, "fold")
    split = KEYS.get(said.lower())
    if said and split is None:
        remedy = f"Write one of {', '.join(SPLITS)}, or leave it empty."
        raise DataError("is no split", file=file, key=f"{key}, split", value=said, remedy=remedy)
    fold = fold_number(number) if number else None
    if number and fold is None:
        remedy = "Write a whole number from 0, or leave it empty."
        raise DataError("is no fold", file=file, key=f"{key}, fold", value=number, remedy=remedy)
    lacks = split in may_lack if split is not None else "training" in may_lack
    label, patient = columns.cell(row, "label") or None, columns.cell(row, "patient") or None
    return split, ListEntry(case_of(names, label, patient, key, lacks, file), fold)
