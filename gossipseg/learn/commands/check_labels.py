"""What the task's grid does to a site's labels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from gossipseg.learn.data.dataset import Item
from gossipseg.learn.evaluation.scoring import foreground_names
from gossipseg.learn.params import TaskParams

NAMED = 5
"""Cases that a warning tells of, the smallest first."""


@dataclass(frozen=True, slots=True)
class Lost:
    """A class of a case of which the task's grid has no voxel."""

    case: str
    name: str
    voxels: int
    """In the file."""
    mm3: float | None

    def __str__(self) -> str:
        volume = "" if self.mm3 is None else f", {self.mm3:.3g} mm³"
        return f"{self.case} ({self.name}, {self.voxels} voxels{volume})"


class Vanishing:
    """Collects them, case by case."""

    def __init__(self, task: TaskParams) -> None:
        self._task, self._names = task, foreground_names(task)
        self._lost: list[tuple[str, Lost]] = []

    def add(self, split: str, item: Item) -> None:
        """Compare a case's label on both grids."""
        if item.truth is None or item.grid is None or item.label is None or item.grid.to_task is None:
            return
        here, there = (np.bincount(t.numpy().ravel(), minlength=256) for t in (item.truth, item.label))
        spacing = item.grid.spacing_mm
        voxel_mm3 = math.prod(spacing) if spacing is not None and len(spacing) == 3 else None
        for value, name in self._names.items():
            voxels = int(here[value])
            if voxels and not there[value]:
                volume = None if voxel_mm3 is None else voxels * voxel_mm3
                self._lost.append((split, Lost(item.case.id, name, voxels, volume)))

    def warnings(self) -> list[str]:
        """One for all cases; none where nothing is lost."""
        if not self._lost:
            return []
        found = sorted((lost for _, lost in self._lost), key=lambda lost: lost.voxels)
        told = ", ".join(map(str, found[:NAMED]))
        more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
        unseen = sum(split == "training" for split, _ in self._lost)
        trained = f", and training never sees {unseen} of them" if unseen else ""
        cases = len({(split, lost.case) for split, lost in self._lost})
        grid = "task.spacing_mm " + "×".join(f"{s:g}" for s in self._task.spacing_mm or ())
        return [
            f"in {cases} case{'s' if cases > 1 else ''} a class vanishes at {grid}: {told}{more}. Scores "
            f"still count them, on the label's own grid{trained}. A smaller task.spacing_mm in peers.yaml "
            "(at all sites) keeps them"
        ]
