"""The data doctor: every problem of a site's data list, images and labels, not only the first.

And whether the network and the algorithm can be made: a package that brings one may be out of order.

The document: {"schema": 1, "kind": "check_data", "site", "splits": {split: cases}, "patients": {split:
patients, as far as lists or names tell}, "division": {"how": "list" | "by hand" | "drawn", "text", "file":
splits.json of the state directory, or null}, "kinds": {suffix: cases}, "problems": [{"file", "key", "value",
"problem", "remedy", and "part": "model" where it is not about data}], "warnings": [text], "classes": {name:
training cases that hold it}, "shape_min", "shape_max", "spacing_mm": [median] or null, "device", "memory":
{"cache_bytes", "largest_case_bytes", "available_bytes"}, "pace": {"step_s", "step_bytes",
"models", "one_model_will_do", "steps_per_round", "validation_case_s", "validation_cases", "round_s"} or
null}.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from gossipseg.algos import registry as algorithms
from gossipseg.errors import EXIT_DATA, EXIT_OK, ConfigError, DataError, LocalError
from gossipseg.learn.commands import cli
from gossipseg.learn.commands.check_labels import Vanishing
from gossipseg.learn.commands.costs import Memory, time_round
from gossipseg.learn.data.cases import SPLITS, Case, Splits
from gossipseg.learn.data.datalist import scan_cases
from gossipseg.learn.data.dataset import Item, load_item, needs_labels
from gossipseg.learn.data.division import crossing, patients_in
from gossipseg.learn.data.labels import FileValues, LabelRule, label_rule
from gossipseg.learn.data.lists.folders import kind_text
from gossipseg.learn.data.lists.paths import missing
from gossipseg.learn.data.own_values import several_text
from gossipseg.learn.data.splitfile import keep_of
from gossipseg.learn.engine.build import build_model, build_personal
from gossipseg.learn.engine.dry_run import check_output
from gossipseg.learn.engine.precision import Compute, choose_compute
from gossipseg.learn.evaluation.evaluate import foreground_names
from gossipseg.learn.params import TaskParams, WorkerSpec
from gossipseg.learn.settings import WorkerSettings, read_settings
from gossipseg.nets import registry as networks

Problem = DataError | ConfigError | LocalError
NOTES = 12
"""Different notes of the readers that are shown."""
_VERBS = {"training": "train", "validation": "validate"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns 65 when there are problems."""
    return cli.run(_check, cli.parser("check", "Check a site's data against the task."), argv)


def _check(args: Any) -> int:
    document = check(cli.spec_of(args), cli.progress())
    cli.write_json(document, "-")
    return EXIT_DATA if document["problems"] else EXIT_OK


def check(spec: WorkerSpec, show: Any = lambda activity, fraction: None) -> dict[str, Any]:
    """Read every listed case and collect what is wrong."""
    settings = read_settings(spec)
    problems: list[Problem] = []
    of_model: list[Problem] = []
    told: list[str] = []
    makes_masks = not needs_labels(settings)
    splits = scan_cases(
        settings.data,
        spec.site,
        problems.append,
        makes_masks=makes_masks,
        keep=keep_of(spec),
        warn=told.append,
    )
    findings, memory = _read_all(settings, splits, problems, show)
    _check_model(settings, of_model)
    compute = _compute(settings, problems)
    pace: dict[str, Any] | None = None
    if compute is not None and not (problems or of_model or makes_masks):
        show("timing a few training steps", 1.0)
        pace = _pace(settings, splits, compute, of_model)
    told += findings.warnings(splits, makes_masks)
    told += _patients_apart(splits)
    told += several_text(settings.task, settings.data, findings.file_values)
    told += memory.warnings()
    patients = patients_in(case for _, case in splits)
    return {
        "schema": 1,
        "kind": "check_data",
        "site": spec.site,
        "splits": splits.counts,
        "patients": {name: len({patients[case.id] for case in splits.of(name)}) for name in SPLITS},
        "division": _division(splits),
        "kinds": dict(sorted(Counter(kind_text(case.files[0]) for _, case in splits).items())),
        "problems": [
            *map(_as_dict, problems),
            *({**_as_dict(problem), "part": "model"} for problem in of_model),
        ],
        "warnings": told,
        **findings.as_dict(),
        "device": "" if compute is None else compute.name,
        "memory": memory.document(),
        "pace": pace,
    }


def _read_all(
    settings: WorkerSettings, splits: Splits, problems: list[Problem], show: Any
) -> tuple[_Findings, Memory]:
    """What all cases that can be read are like, and take."""
    findings, memory = _Findings(settings.task), Memory(settings.data, keeps_test=settings.spec.report_test)
    rule, total = label_rule(settings.task, settings.data), max(1, sum(splits.counts.values()))
    for done, (split, case) in enumerate(splits):
        show(f"checking {split} case {case.id}", done / total)
        if not any(missing(p) for p in (*case.files, *([case.label] if case.label else []))):
            item = _read(case, settings.task, rule, problems)
            if item is not None:
                findings.add(split, item)
                memory.add(split, item)
    show(f"{sum(splits.counts.values())} cases checked", 1.0)
    return findings, memory


def _compute(settings: WorkerSettings, problems: list[Problem]) -> Compute | None:
    """The device that site.yaml asks for; None where it is not there."""
    try:
        return choose_compute(settings.device)
    except (ConfigError, LocalError) as e:
        problems.append(e)
        return None


def _pace(
    settings: WorkerSettings, splits: Splits, compute: Compute, problems: list[Problem]
) -> dict[str, Any] | None:
    try:
        return time_round(settings, splits, compute)
    except LocalError as e:
        problems.append(e)
        return None


def _check_model(settings: WorkerSettings, problems: list[Problem]) -> None:
    """Make the networks and the algorithm as a worker does at its start."""
    try:
        model = build_model(settings)
        norms, private = networks.norm_parameter_names(model), networks.private_names(model)
        algorithms.build(settings.algorithm, norms, private)
        if settings.has_personal:
            check_output(settings)
            build_personal(settings)
    except ConfigError as e:
        problems.append(e)


def _read(case: Case, task: TaskParams, rule: LabelRule, problems: list[Problem]) -> Item | None:
    try:
        return load_item(case, task, rule)
    except (DataError, LocalError) as e:
        problems.append(e)
        return None


def _division(splits: Splits) -> dict[str, str | None]:
    origin = splits.origin
    return {
        "how": origin.how,
        "text": origin.text,
        "file": None if origin.file is None else str(origin.file),
    }


def _patients_apart(splits: Splits) -> list[str]:
    """Where lists are the site's own, names alone are no proof: it is told, and trained all the same."""
    found = crossing(splits)
    if not found:
        return []
    patient, one, other = found[0]
    more = f" and {len(found) - 1} more" if len(found) > 1 else ""
    return [
        f"by the names of the cases, patient {patient}{more} has images in {one} and {other}: scores would "
        "mean little. Correct the data list; if the names tell something else, write `patient` there for "
        "each case, or data.patient_pattern in site.yaml"
    ]


class _Findings:
    """What the readable cases are like."""

    def __init__(self, task: TaskParams) -> None:
        self._names = foreground_names(task)
        self._held = {"training": Counter[str](), "validation": Counter[str](), "test": Counter[str]()}
        self._shapes: list[tuple[int, ...]] = []
        self._spacings: list[tuple[float, ...]] = []
        self._notes: Counter[str] = Counter()
        self._vanishing = Vanishing(task)
        self.file_values = FileValues()

    def add(self, split: str, item: Item) -> None:
        self._shapes.append(tuple(item.image.shape[1:]))
        self._notes.update(item.notes)
        self.file_values.update(item.file_values)
        if item.spacing_mm:
            self._spacings.append(item.spacing_mm)
        if item.label is not None:
            values = set(np.unique(item.label.numpy()).tolist())
            self._held[split].update(name for value, name in self._names.items() if value in values)
            self._vanishing.add(split, item)

    def warnings(self, splits: Splits, makes_masks: bool) -> list[str]:
        out = []
        for split in ("validation",) if makes_masks else ("training", "validation"):
            missing = [n for n in self._names.values() if not self._held[split][n]]
            if splits.counts[split] and missing and self._shapes:
                out.append(
                    f"no {split} case holds {', '.join(missing)}: the site cannot {_VERBS[split]} this class"
                )
        if not any(c.label for c in splits.test):
            out.append(
                "no labelled test cases: `gossipctl evaluate --split test` and report_test will not work"
            )
        out += self._vanishing.warnings()
        out += [
            text + (f" ({count} cases)" if count > 1 else "")
            for text, count in self._notes.most_common(NOTES)
        ]
        more = len(self._notes) - NOTES
        return out + ([f"and {more} more notes like these"] if more > 0 else [])

    def as_dict(self) -> dict[str, Any]:
        """Shapes and spacing on the task's grid."""
        shapes = np.array(self._shapes) if self._shapes else np.zeros((1, 0), int)
        return {
            "classes": {name: self._held["training"][name] for name in self._names.values()},
            "shape_min": shapes.min(axis=0).tolist(),
            "shape_max": shapes.max(axis=0).tolist(),
            "spacing_mm": np.median(self._spacings, axis=0).tolist() if self._spacings else None,
        }


def _as_dict(problem: Problem) -> dict[str, Any]:
    if isinstance(problem, LocalError):
        return {"file": None, "key": None, "value": None, "problem": str(problem), "remedy": ""}
    value = (
        problem.value if isinstance(problem.value, str | int | float | bool | None) else str(problem.value)
    )
    return {
        "file": None if problem.file is None else str(problem.file),
        "key": problem.key,
        "value": value,
        "problem": problem.problem,
        "remedy": problem.remedy,
    }


if __name__ == "__main__":
    sys.exit(main())
