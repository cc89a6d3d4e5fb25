"""Consistency rules of the section `task`: dimensions, labels, intensities."""

from __future__ import annotations

from collections.abc import Iterator

from gossipseg.config.reading import Source
from gossipseg.learn.params import TaskParams

MOST_LABELS = 255
"""Labels are of one byte, and its last value stands for voxels whose class is not known."""


def check_task(task: TaskParams, source: Source) -> None:
    """Check the consistency of the section `task`. Raises ConfigError about the first fault."""
    for problem, key, value, remedy in _task_problems(task):
        raise source.error(problem, f"task.{key}", value, remedy)


def _task_problems(task: TaskParams) -> Iterator[tuple[str, str, object, str]]:
    if task.slice_axis is not None and task.spatial_dims != 2:
        yield "is for 2-D networks", "slice_axis", task.slice_axis, "Remove it, or write spatial_dims: 2."
    for key, dims in (("patch_size", task.spatial_dims), ("spacing_mm", task.image_dims)):
        value = getattr(task, key)
        if value is not None and len(value) != dims:
            yield (
                f"needs {dims} numbers, one for each spatial dimension",
                key,
                list(value),
                "Give one number per axis, or change task.spatial_dims.",
            )
    if len(task.labels) < 2 or sorted(task.labels) != list(range(len(task.labels))):
        yield (
            "labels must be numbered 0, 1, 2 … with 0 the background",
            "labels",
            task.labels,
            "Use task.label_map to translate the values in the files.",
        )
    if len(task.labels) > MOST_LABELS:
        yield (
            f"has {len(task.labels)} labels; {MOST_LABELS} are possible, the background among them",
            "labels",
            len(task.labels),
            "Leave some out, or put some together by task.label_map.",
        )
    if len(set(task.labels.values())) != len(task.labels):
        yield "two labels have one name", "labels", task.labels, "Give each label its own name."
    stray = sorted(set(task.label_map.values()) - set(task.labels))
    if stray:
        yield (
            f"maps to {stray[0]}, which is not in task.labels",
            "label_map",
            task.label_map,
            f"Map file values to {', '.join(map(str, sorted(task.labels)))}.",
        )
    yield from _intensity_problems(task)


def _intensity_problems(task: TaskParams) -> Iterator[tuple[str, str, object, str]]:
    if task.intensity == "rgb" and task.channels != 3:
        yield "rgb needs task.channels: 3", "channels", task.channels, "Write 3, or another task.intensity."
    if task.convert_grey_to_rgb and task.channels != 3:
        yield (
            "is for tasks of 3 channels",
            "convert_grey_to_rgb",
            task.convert_grey_to_rgb,
            f"Remove it, or change task.channels ({task.channels}) to 3.",
        )
    if task.ct_window_hu[0] >= task.ct_window_hu[1]:
        yield (
            "the lower end must be below the upper end",
            "ct_window_hu",
            list(task.ct_window_hu),
            "Write [low, high] in Hounsfield units.",
        )
    if task.orientation is not None and not _is_orientation(task.orientation):
        yield (
            "is no orientation",
            "orientation",
            task.orientation,
            "Write three letters, one of R/L, A/P and S/I each, such as RAS.",
        )
    if task.orientation is not None and task.image_dims == 2:
        yield "is for 3-D images", "orientation", task.orientation, "Remove it, or write spatial_dims: 3."


def _is_orientation(text: str) -> bool:
    axes = {"R": 0, "L": 0, "A": 1, "P": 1, "S": 2, "I": 2}
    return len(text) == 3 and {axes.get(c) for c in text} == {0, 1, 2}
