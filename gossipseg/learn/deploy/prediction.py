"""What a site predicts with: the averages (EMA) of its personal and its shared model, mixed.

The mix is chosen anew at each validation, by the rules of choice.py. A personal model that began as a copy of
the shared one has no say until it has trained for a while. Nor has one with a network of its own, where the
site took the shared model over.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from torch import nn

from gossipseg.learn.deploy.choice import SHARES, Mix, choose, counted, share_of_personal, shared_alone
from gossipseg.learn.engine.run_state import RunState
from gossipseg.learn.evaluation.evaluate import Scores, summarise
from gossipseg.learn.evaluation.mixture import Mixture

LEAST_ROUNDS_OF_A_COPY = 5
"""Rounds that a personal model trains before it predicts, where the shared one was taken over."""


def young(rounds: int) -> str:
    """Why a personal model beside a shared one that was taken over has no say yet."""
    return f"the personal model has trained {rounds} of {LEAST_ROUNDS_OF_A_COPY} rounds since it began"


class Prediction:
    """The present mix, and how it is chosen."""

    def __init__(self, run: RunState) -> None:
        self._run = run
        self.mix = Mix({"personal": 0.5, "shared": 0.5})

    def judge(
        self, personal: nn.Module, shared: nn.Module, round: int, *, trained: int | None
    ) -> tuple[Scores, Scores]:
        """Choose the mix from now on; its scores over the validation split, and the shared model's.

        `trained`: rounds that the personal model has trained, where it needs some before it has a say; None:
        it needs none.
        """
        if trained is not None and trained < LEAST_ROUNDS_OF_A_COPY:
            why = young(trained)
            scores = self.shared_alone(shared, round, why)
            return scores, scores
        patients = self._run.site.patients("validation")
        n = counted(self._run.site.told_patients("validation"))
        by_best = {best: share_of_personal(best, n) for best in SHARES}
        found = self._run.score_pair(personal, shared, round, SHARES, by_best.values())
        alone = [case.mean for case in found.personal]
        shared_scores = [case.mean for case in found.shared]
        mixes = {best: [case.mean for case in found.mixes[share]] for best, share in by_best.items()}
        self.mix, best = choose(found.losses, alone, shared_scores, mixes, patients)
        single = {"personal": found.personal, "shared": found.shared}
        cases = single.get(self.mix.name, found.mixes[by_best[best]])
        task = self._run.settings.task
        return summarise(cases, task), summarise(found.shared, task)

    def shared_alone(self, shared: nn.Module, round: int, why: str) -> Scores:
        """Predict with the shared model alone from now on; its scores over the validation split."""
        scores = self._run.score(shared, "validation", round)
        patients = self._run.site.patients("validation")
        self.mix = shared_alone(why, [case.mean for case in scores.per_case], patients)
        return scores

    def begins_anew(self, why: str) -> None:
        """Predict with the shared model alone until the next validation."""
        self.mix = shared_alone(why)

    def net(self, personal: nn.Module, shared: nn.Module) -> nn.Module:
        """What the site evaluates and predicts with."""
        return mixed_net(self.mix, personal, shared, self._run.settings.training.output)

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return asdict(self.mix)

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from what state() gave."""
        self.mix = Mix(**state)


def mixed_net(mix: Mix, personal: nn.Module, shared: nn.Module, output: str) -> nn.Module:
    """The network that a mix stands for. `output`: training.output."""
    nets = {"personal": personal, "shared": shared}
    members = {name: weight for name, weight in mix.weights.items() if weight > 0}
    if len(members) == 1:
        return nets[next(iter(members))]
    return Mixture([nets[name] for name in members], list(members.values()), output)
