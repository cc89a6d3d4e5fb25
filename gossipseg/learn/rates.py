"""The learning rate of a step, and its sum over a round. Torch-free."""

from __future__ import annotations

import math

from gossipseg.learn.params import FINAL_SHARE, TrainingParams, cosine_rate


def learning_rate(training: TrainingParams, round: int, step: int) -> float:
    """The learning rate of step `step` (0-based) of round `round` (1-based) of the federation's budget.

    A function of the position alone: a resumed run needs no scheduler state.
    """
    schedule = training.schedule_in_force
    if schedule == "constant":
        return training.learning_rate
    steps = (round - 1) * training.steps_per_round + step
    if schedule == "step_decay":
        return training.learning_rate * training.decay_factor ** (steps // training.decay_every_steps)
    assert training.cosine_rounds is not None
    return cosine_rate(training.learning_rate, steps, training.cosine_rounds * training.steps_per_round)


def summed_rate(training: TrainingParams, round: int) -> float:
    """The sum of learning_rate() over the steps of a round, in closed form: a budget may have 10⁷ steps."""
    steps, first = training.steps_per_round, training.learning_rate
    schedule = training.schedule_in_force
    if schedule == "constant":
        return first * steps
    begin = (round - 1) * steps
    if schedule == "step_decay":
        return first * _decayed(begin, begin + steps, training.decay_every_steps, training.decay_factor)
    assert training.cosine_rounds is not None
    if round > training.cosine_rounds:
        return first * FINAL_SHARE * steps
    angle = math.pi / (training.cosine_rounds * steps)
    middle = math.cos(angle * (begin + (steps - 1) / 2))
    cosines = math.sin(steps * angle / 2) / math.sin(angle / 2) * middle
    return first * (FINAL_SHARE * steps + (1 - FINAL_SHARE) * 0.5 * (steps + cosines))


def _decayed(begin: int, end: int, every: int, factor: float) -> float:
    """Σ factor^⌊s/every⌋ over the steps begin ≤ s < end."""
    total = 0.0
    for block in range(begin // every, (end - 1) // every + 1):
        total += (min(end, (block + 1) * every) - max(begin, block * every)) * factor**block
    return total
