"""Sizes for a quick run on a CPU: patch, network width, steps and rounds for a kind of data.

What belongs here: the testbed's defaults, all of which --peers FILE replaces. What must not: the product's
own defaults (they are in each part's params.py). With so few rounds the running average must be quicker than
the product's (0.9 a round would still hold a quarter of the untrained model after a dozen).
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field, replace

from gossipseg.core.params import GossipParams
from gossipseg.learn.params import TaskParams, TrainingParams
from gossipseg.nets.params import NetworkParams


@dataclass(frozen=True, slots=True)
class Preset:
    """What a quick run of one kind of data uses."""

    patch: int
    """Largest patch edge, in voxels."""
    network: NetworkParams
    training: TrainingParams
    rounds: int
    gossip: GossipParams = field(default_factory=GossipParams)


# Rounds are short, so that models meet while they are alike, and many, so that each site nearly surely meets
# another one's. Early in a fast training the Dice jumps by 0.1 from round to round: the guard must not take
# that for harm.
SMALL_2D = Preset(
    64,
    NetworkParams(width=8, dropout=0.1),
    TrainingParams(
        steps_per_round=24,
        batch_size=4,
        learning_rate=2e-3,
        ema_decay=0.7,
        guard_drop=0.2,
        window_overlap=0.25,
    ),
    18,
    GossipParams(sender_rate=0.7, warmup_rounds=1),
)
GREY_2D = Preset(
    96,
    NetworkParams(width=8, dropout=0.1),
    TrainingParams(steps_per_round=25, batch_size=4, learning_rate=2e-3, ema_decay=0.7, window_overlap=0.25),
    12,
)
RGB_2D = Preset(
    128,
    NetworkParams(width=8, dropout=0.1),
    TrainingParams(steps_per_round=20, batch_size=4, learning_rate=2e-3, ema_decay=0.7, window_overlap=0.125),
    10,
)
SMALL_3D = Preset(
    48,
    NetworkParams(width=8, dropout=0.1),
    TrainingParams(steps_per_round=15, batch_size=2, learning_rate=2e-3, ema_decay=0.7, window_overlap=0.25),
    10,
)
_PATCH_STEP = 16


def choose(task: TaskParams, sizes: list[tuple[int, ...]]) -> tuple[Preset, TaskParams]:
    """The preset for a task whose images have these sizes, and the task with its patch size."""
    middle = [statistics.median(size[axis] for size in sizes) for axis in range(task.spatial_dims)]
    if task.spatial_dims == 3:
        preset = SMALL_3D
    elif max(middle) <= 160:
        preset = SMALL_2D
    else:
        preset = RGB_2D if task.channels == 3 else GREY_2D
    return preset, replace(task, patch_size=tuple(_edge(m, preset.patch) for m in middle))


def _edge(size: float, largest: int) -> int:
    return max(_PATCH_STEP * 2, min(largest, _PATCH_STEP * round(size / _PATCH_STEP)))
