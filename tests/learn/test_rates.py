"""The sum of the learning rate over a round (learn/rates.py) is that of its steps."""

from __future__ import annotations

from typing import Any

import pytest

from gossipseg.learn.params import TrainingParams
from gossipseg.learn.rates import learning_rate, summed_rate

SCHEDULES: list[dict[str, Any]] = [
    {"schedule": "constant"},
    {"rounds": 7},
    {"rounds": 9, "schedule_rounds": 4},
    {"rounds": 7, "steps_per_round": 1},
    {"schedule": "step_decay", "decay_every_steps": 4, "decay_factor": 0.5},
    {"schedule": "step_decay", "decay_every_steps": 1000, "decay_factor": 0.5},
]


@pytest.mark.parametrize("given", SCHEDULES, ids=str)
def test_the_sum_of_a_round_is_that_of_its_steps(given: dict[str, Any]) -> None:
    training = TrainingParams(**{"steps_per_round": 6, "learning_rate": 0.02, **given})
    for round in range(1, 12):
        steps = range(training.steps_per_round)
        by_step = sum(learning_rate(training, round, step) for step in steps)
        assert summed_rate(training, round) == pytest.approx(by_step, rel=1e-12), round


def test_by_hand() -> None:
    """Halved after every second step: a round of three has 1 + 1 + ½, then ½ + ¼ + ¼."""
    training = TrainingParams(
        steps_per_round=3, learning_rate=1.0, schedule="step_decay", decay_every_steps=2, decay_factor=0.5
    )
    assert [summed_rate(training, r) for r in (1, 2)] == [2.5, 1.0]
