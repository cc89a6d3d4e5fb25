"""The numbers that predictions are written with: those that this site's own labels have.

A site whose masks are 0 and 255 gets masks of 0 and 255. Which numbers its labels hold is counted when they
are read for training, and kept in the state directory.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from gossipseg.errors import ConfigError, DataError, LocalError
from gossipseg.learn.data.cases import Case
from gossipseg.learn.data.datalist import load_cases
from gossipseg.learn.data.formats.volume import Segmentation
from gossipseg.learn.data.labels import IGNORE, FileValues, LabelRule, file_values, label_rule
from gossipseg.learn.data.readers import read_label
from gossipseg.learn.data.splitfile import keep_of
from gossipseg.learn.params import LARGEST_WRITTEN, DataParams, TaskParams
from gossipseg.learn.settings import WorkerSettings
from gossipseg.store import StateFile

FILE = "label-values.json"


def keep(state_dir: Path, data: DataParams, counts: FileValues) -> None:
    """Note which values this site's labels have: those of data.path.

    A state directory that cannot be written changes nothing: they are counted again where they are needed.
    """
    file = StateFile(state_dir / FILE)
    voxels = {str(value): number for value, number in sorted(counts.items())}
    document = {"schema": 1, "path": data.path, "voxels": voxels}
    with contextlib.suppress(LocalError, OSError):
        state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        if file.load() != document:
            file.save(document)


def kept(state_dir: Path, data: DataParams) -> FileValues | None:
    """What keep() noted; None where it never did for this data.path."""
    try:
        document = StateFile(state_dir / FILE).load()
        if document is None or document.get("path", data.path) != data.path:
            return None
        voxels = document.get("voxels")
        return Counter({int(k): int(v) for k, v in voxels.items()}) if isinstance(voxels, dict) else None
    except (LocalError, ValueError):
        return None


def of_site(settings: WorkerSettings) -> tuple[dict[int, int], str]:
    """What out_values() gives for a site, and what its user should know, or "".

    Where nothing was kept the labels are read for it. Raises ConfigError.
    """
    state_dir = Path(settings.spec.state_dir)
    counts, note = kept(state_dir, settings.data), ""
    if counts is None:
        try:
            splits = load_cases(
                settings.data, settings.spec.site, needs_labels=False, keep=keep_of(settings.spec)
            )
            labelled = [case for _, case in splits if case.label is not None]
            found = [_values(case, settings.task) for case in labelled]
            counts = _summed(found)
            unread = bool(found) and all(values is None for values in found)
        except (DataError, LocalError):
            unread = True
        if unread:
            note = "this site's labels cannot be read: the values are those that the task has for the classes"
    return out_values(settings.task, settings.data, counts or {}), note


def counted(cases: Iterable[Case], task: TaskParams) -> FileValues:
    """The values in the label files of these cases; what cannot be read is left out."""
    return _summed([_values(case, task) for case in cases])


def _summed(each: Iterable[FileValues | None]) -> FileValues:
    found = FileValues()
    for values in each:
        found.update(values or {})
    return found


def _values(case: Case, task: TaskParams) -> FileValues | None:
    """The values in a label file; None where it cannot be read. Named segments have no values."""
    if case.label is None:
        return FileValues()
    try:
        label = read_label(case.label, task.image_dims, None)
        if isinstance(label, Segmentation):
            return FileValues()
        return FileValues(file_values(label.array, case.label))
    except (DataError, LocalError):
        return None


def out_values(task: TaskParams, data: DataParams, counts: Mapping[int, int]) -> dict[int, int]:
    """Label value of the task → value that predictions are written with.

    data.label_map_out; else the file value that most voxels of the class have; else, of a class that no label
    holds, the one value that the label map has for it; else the task's own. Raises ConfigError where two
    classes would get one value.
    """
    rule = label_rule(task, data)
    out = {value: data.label_map_out.get(value, _own(value, rule, counts)) for value in sorted(task.labels)}
    for written in out.values():
        same = [other for other in out if out[other] == written]
        if len(same) > 1 or not 0 <= written <= LARGEST_WRITTEN:
            names = " and ".join(f"{task.labels[v]!r}" for v in same)
            raise ConfigError(
                f"predictions of {names} would be written with the value {written}",
                key="data.label_map_out",
                value=dict(data.label_map_out),
                remedy=f"Give each class a value of its own there, from 0 to {LARGEST_WRITTEN}.",
            )
        if written == rule.ignore and same[0] != 0:
            raise ConfigError(
                f"predictions of {task.labels[same[0]]!r} would be written with the value {written}, which "
                "says here that the class is not known",
                key="data.label_map_out",
                value=dict(data.label_map_out),
                remedy="Give the class another value there, or change data.ignore_label.",
            )
    return out


def _own(value: int, rule: LabelRule, counts: Mapping[int, int]) -> int:
    found = values_of_class(value, rule, counts)
    if found:
        return found[0]
    mapped = [v for v, target in rule.label_map.items() if target == value]
    return mapped[0] if len(mapped) == 1 else value


def values_of_class(value: int, rule: LabelRule, counts: Mapping[int, int]) -> list[int]:
    """The file values that are of one class, the most frequent first."""
    found = [v for v in counts if counts[v] and rule.target(v) == value and value != IGNORE]
    return sorted(found, key=lambda v: (-counts[v], v))


def several_text(task: TaskParams, data: DataParams, counts: Mapping[int, int]) -> list[str]:
    """For `check`: classes for which this site's labels have more than one value, and which is written; and
    why predictions could not be written, where two classes would get one value."""
    rule, said = label_rule(task, data), []
    for value, name in sorted(task.labels.items()):
        found = values_of_class(value, rule, counts)
        if len(found) > 1 and value not in data.label_map_out and value != 0:
            texts = ", ".join(f"{v} ({counts[v]} voxels)" for v in found)
            said.append(
                f"this site's labels have several values for {name}: {texts}; predictions are written with "
                f"{found[0]}. data.label_map_out in site.yaml says otherwise"
            )
    try:
        out_values(task, data, counts)
    except ConfigError as e:
        said.append(f"`gossipctl predict` will write no label maps: {e}")
    return said
