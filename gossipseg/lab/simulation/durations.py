"""Durations in virtual time, and absences: all drawn from the run's seed."""

from __future__ import annotations

import random
from collections.abc import Callable

STEP_S = 1.0
"""Seconds per gradient evaluation of a site of ordinary speed."""
COMBINING_STEPS = 0.5
"""Duration of the coordinator's aggregation, in steps."""
JITTER = 0.1
"""Largest share by which a round's duration varies, as in real life."""
AWAY_ROUNDS = (0.5, 2.5)
"""Shortest and longest absence of a site, in rounds of its own."""


class Durations:
    """One site's times. `away(seconds)` cuts it off from the others for that time."""

    def __init__(
        self,
        site: str,
        seed: int,
        *,
        slowness: float,
        steps_per_round: int,
        dropout: float,
        away: Callable[[float], None],
    ) -> None:
        self._site, self._seed = site, seed
        self._step_s, self._steps, self._dropout = STEP_S * slowness, steps_per_round, dropout
        self._away = away
        self.absences = 0
        self.combining_s = COMBINING_STEPS * STEP_S * slowness

    def before(self, round: int) -> float:
        """Seconds until the round may begin: 0, unless the site goes away now."""
        rng = self._rng("away", round)
        if rng.random() >= self._dropout:
            return 0.0
        away_s = rng.uniform(*AWAY_ROUNDS) * self._steps * self._step_s
        self.absences += 1
        self._away(away_s)
        return away_s

    def of_round(self, round: int, evaluations: int) -> float:
        """Seconds that a round with these gradient evaluations takes."""
        return evaluations * self._step_s * self._rng("pace", round).uniform(1 - JITTER, 1 + JITTER)

    def _rng(self, what: str, round: int) -> random.Random:
        return random.Random(f"{self._seed}/{self._site}/{what}/{round}")
