"""The classes of a site's labels: from its list, else from the values in its label files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gossipseg.errors import DataError
from gossipseg.learn.data.cases import Case
from gossipseg.learn.data.formats.kinds import Kind, kind_of
from gossipseg.learn.data.formats.volume import Segmentation, Volume
from gossipseg.learn.data.labels import LOSSY, MANY, file_values, ranges_text
from gossipseg.learn.data.lists.listing import Listing
from gossipseg.learn.data.readers import read_label, read_volume

LOOKED_INTO = 3
"""Label files read where a list names the classes; without such a list, all are read."""
MOST = 250
"""Largest number of values from which a guess makes classes."""
SPARSE = 4
"""A picture with many values has no classes if its largest value exceeds their number by this factor."""
_BACKGROUND = {0: "background"}
_LOSSY_KINDS = (".jpg", ".jpeg")


@dataclass(frozen=True, slots=True)
class Classes:
    """The classes of a site's labels."""

    labels: Mapping[int, str]
    """The task's label values, from 0 without a gap."""
    file: Path
    """The source of the classes: a list, or a label file."""
    label_map: Mapping[int, int] = field(default_factory=dict)
    """Value in the files → label value, where they differ."""
    ignore: int | None = None
    """File value without a known meaning."""
    values: tuple[int, ...] = ()
    """Foreground values found in the files."""
    guessed: bool = False
    """Whether the classes are guessed from the values alone."""


def look(listing: Listing, cases: Sequence[Case], volumes: Sequence[Volume], dims: int) -> Classes:
    """Determine a site's classes. `volumes`: the images of the first cases. Raises DataError naming the
    file."""
    said = declared(listing.about, listing.source)
    some = cases[:LOOKED_INTO] if said.labels else cases
    found: dict[int, Path] = {}
    names: dict[str, Path] = {}
    for number, case in enumerate(some):
        assert case.label is not None
        label = _read(case, volumes[number] if number < len(volumes) else None, dims)
        if isinstance(label, Segmentation):
            for segment in label.segments:
                names.setdefault(segment.name, case.label)
            continue
        values = sorted(file_values(label.array, case.label))
        _check_plausible([v for v in values if v != said.ignore], said, case.label, dims)
        for value in values:
            found.setdefault(value, case.label)
    if said.labels:
        return _as_declared(said, found)
    if names and not found:
        labels = _BACKGROUND | dict(enumerate(names, 1))
        return Classes(labels, next(iter(names.values())), values=tuple(labels)[1:], guessed=True)
    return guess(tuple(v for v in sorted(found) if v), found, some[0])


def _read(case: Case, image: Volume | None, dims: int) -> Volume | Segmentation:
    """Read a label; without its image only its values are read."""
    assert case.label is not None
    if image is None and kind_of(case.label) is Kind.DICOM:  # drawn onto its image
        image = read_volume(case.image, dims)
    return read_label(case.label, dims, image)


def guess(values: tuple[int, ...], first_in: Mapping[int, Path], case: Case) -> Classes:
    """Guess a class for each foreground value; a mask with one value has a foreground."""
    assert case.label is not None
    if not values:
        remedy = "Add cases in which something is marked, or give the task with --peers FILE."
        raise DataError("no label of this site marks anything", file=case.label, remedy=remedy)
    names = ["foreground"] if len(values) == 1 else [f"label {value}" for value in values]
    labels = _BACKGROUND | dict(enumerate(names, 1))
    moved = {value: n for n, value in enumerate(values, 1) if value != n}
    return Classes(labels, first_in[values[-1]], moved, values=values, guessed=True)


def common(sites: Sequence[Classes]) -> list[Classes]:
    """Combine the guesses of several sites: a site may lack a class that others have, or have its own list.

    Classes that cannot be combined stay as they are. (A mask of 0 and 255 is no class 255 of another site's.)
    """
    said = next((site for site in sites if not site.guessed), None)
    if said is not None:
        return [site if not site.guessed else _fitted(site, said) for site in sites]
    sets = {site.values for site in sites}
    if len(sets) == 1 or all(len(values) == 1 for values in sets) or (255,) in sets:
        return list(sites)
    values = tuple(sorted({value for site in sites for value in site.values}))
    names = _BACKGROUND | {n: f"label {value}" for n, value in enumerate(values, 1)}
    moved = {value: n for n, value in enumerate(values, 1) if value != n}
    return [replace(site, labels=names, label_map=moved, values=values) for site in sites]


def _fitted(site: Classes, said: Classes) -> Classes:
    """A guess in the form of another site's list, where the values are the list's."""
    if len(site.values) == len(said.labels) - 1 == 1:
        return replace(site, labels=said.labels)
    known = {value for value in said.labels if value not in said.label_map.values()} | {*said.label_map}
    if {*site.values} <= known:
        return replace(site, labels=said.labels, label_map=said.label_map)
    return site


# ---------------------------------------------------------------- the classes of a list


def declared(about: Mapping[str, Any], file: Path) -> Classes:
    """The labels of a dataset.json, {"0": "background"} or nnU-Net's way round; none where it has none.

    Raises DataError.
    """
    given = about.get("labels")
    if given is None:
        return Classes({}, file)
    if not isinstance(given, Mapping) or not given:
        raise _unclear(given, "must be an object of values and names", file)
    numbers = {key: _number(key) for key in given}
    if all(number is not None for number in numbers.values()):
        pairs = [(number, given[key]) for key, number in numbers.items()]
    else:
        pairs = [(_value(name, value, file), name) for name, value in given.items()]
    found: dict[int, str] = {}
    for value, name in pairs:
        if value is None or value < 0 or not isinstance(name, str):
            raise _unclear(given, "must give every value of the label files a name", file)
        same = next((v for v, other in found.items() if other == name), value)
        if same != value:
            raise _unclear(given, f"gives {same} and {value} one name, {name}", file)
        if value in found:
            raise _unclear(given, f"gives {value} two names, {found[value]} and {name}", file)
        found[value] = name
    ignore = next((v for v, name in found.items() if name.strip().lower() == "ignore" and v), None)
    names = _BACKGROUND | {v: n for v, n in found.items() if v != ignore}
    values = sorted(v for v in names if v)
    if not values:
        raise _unclear(given, "names no class beside the background", file)
    labels = {0: names[0]} | {n: names[v] for n, v in enumerate(values, 1)}
    moved = {value: n for n, value in enumerate(values, 1) if value != n}
    return Classes(labels, file, moved, ignore, tuple(values))


def _value(name: str, value: Any, file: Path) -> int | None:
    """nnU-Net's label value; a list of values is a region."""
    if isinstance(value, list):
        raise DataError(
            f"{name} is a region of several values; classes that overlap are not trained on",
            file=file,
            key="labels",
            value=value,
            remedy="Name each value of the label files by itself, in the list or in a task given with "
            "--peers FILE.",
        )
    return _number(value)


def _number(value: Any) -> int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, str) and value.strip().lstrip("-").isdecimal():
        return int(value)
    return value if isinstance(value, int) else None


def _unclear(given: Any, problem: str, file: Path) -> DataError:
    remedy = 'Write {"0": "background", "1": "lesion"}, or as nnU-Net does {"background": 0, "lesion": 1}.'
    return DataError(problem, file=file, key="labels", value=given, remedy=remedy)


def _as_declared(said: Classes, found: Mapping[int, Path]) -> Classes:
    """The list's classes; the one foreground of a mask may have any value."""
    unknown = [v for v in found if v and v not in said.values and v != said.ignore]
    if not unknown:
        return said
    if len(unknown) == 1 and len(said.values) == 1 and said.values[0] not in found:
        return replace(said, label_map={unknown[0]: 1})
    held = [v for v, file in found.items() if file == found[unknown[0]]]
    names = ranges_text([0, *said.values])
    raise DataError(
        f"holds the values {ranges_text(sorted(held))}; {said.file} names {names}",
        file=found[unknown[0]],
        key="labels",
        value=ranges_text(sorted(unknown)),
        remedy="Add the missing labels to the list, correct the file, or give a task with label_map by "
        "--peers FILE.",
    )


def _check_plausible(values: Sequence[int], said: Classes, file: Path, dims: int) -> None:
    """Refuse values that nobody drew as classes. Raises DataError."""
    foreground = [v for v in values if v and v not in said.values]
    many = len(foreground)
    if values and values[0] < 0:
        raise DataError(
            f"holds values below 0 ({ranges_text(values)})",
            file=file,
            remedy="Save the label as whole numbers from 0.",
        )
    picture = kind_of(file) in (Kind.PICTURE, Kind.TIFF) and dims == 2
    lossy = picture and (
        (many > 1 and file.name.lower().endswith(_LOSSY_KINDS))
        or (many > MANY and (max(foreground) > SPARSE * many or many > 3 * MANY))
    )
    if lossy or many > MOST:
        raise DataError(f"holds the values {ranges_text(values)}", file=file, remedy=LOSSY)
