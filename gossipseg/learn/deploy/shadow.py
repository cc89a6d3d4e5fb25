"""The shadow (`training.shadow_local`): a model that trains beside the exchanging one and meets nobody.

It sees the same batches with the same seeds under the algorithm `local`, so that it is, step for step, what
the site would have had without exchange. At each validation both averages (EMA) are scored on the same cases.
The shadow is deployed where its mean Dice is better by more than 2 standard errors of the paired difference,
counted by patient, on at least 15 cases of at least three patients; else the mean of both predicted
probabilities. With fewer, or before the first validation, it is the mean, whatever the scores say.

It costs a second training in time and memory, and two more scores at each validation.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from torch import Tensor, nn

from gossipseg.algos.base import StepContext, StepPosition
from gossipseg.algos.local import Local
from gossipseg.errors import ConfigError
from gossipseg.learn.deploy.ensemble import Ensemble
from gossipseg.learn.engine.model_state import ModelState
from gossipseg.learn.engine.run_state import RunState
from gossipseg.learn.engine.train_step import Learner
from gossipseg.learn.evaluation.evaluate import Scores
from gossipseg.learn.evaluation.paired import LEAST_PATIENTS, CaseScores, by_patient, paired_drop
from gossipseg.nets.segmenter import Segmenter

LEAST_CASES = 15
"""With fewer the standard error itself is a guess."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is deployed, and the paired comparison behind it."""

    deployed: Literal["shadow", "averaged"] = "averaged"
    dice: float | None = None
    """Mean validation Dice of the exchanging model's EMA over the patients; None without a case."""
    dice_shadow: float | None = None
    cases: int = 0
    """Validation cases scored with both."""
    standard_error: float | None = None
    """Standard error of the mean difference, by patient; None with fewer than two."""
    patients: int | None = None
    """Whose those cases are; None in the checkpoint of a version that counted the error by case."""

    @property
    def reason(self) -> str:
        """In words, with the figures."""
        if self.dice is None or self.dice_shadow is None:
            return "no validation case has been scored with both models"
        figures = f"{self.dice_shadow:.4f} without exchange, {self.dice:.4f} with it"
        if self.cases < LEAST_CASES:
            return f"{figures}; {self.cases} validation cases decide nothing, it takes {LEAST_CASES}"
        if self.patients is not None and self.patients < LEAST_PATIENTS:
            few = f"too few validation patients to choose by ({self.patients}; it takes {LEAST_PATIENTS})"
            return f"{figures}; {few}"
        beyond = "more" if self.deployed == "shadow" else "no more"
        of = f"{self.cases} cases" + (f" of {self.patients} patients" if self.patients is not None else "")
        error = f"standard error {self.standard_error or 0.0:.4f} of the difference over {of}"
        return f"{figures}; better by {beyond} than 2 standard errors ({error})"


def verdict_of(shadow: CaseScores, exchanging: CaseScores, patients: Sequence[str]) -> Verdict:
    """The paired rule. Dice by case, and whose it is, in one order; cases without a Dice count on neither
    side."""
    rows = zip(shadow, exchanging, patients, strict=True)
    pairs = [(s, e, p) for s, e, p in rows if s is not None and e is not None]
    if not pairs:
        return Verdict()
    own, other, whose = zip(*pairs, strict=True)
    drop = paired_drop(own, other, whose)
    enough = len(pairs) >= LEAST_CASES and drop.patients >= LEAST_PATIENTS
    better = enough and drop.standard_error is not None and drop.mean > 2 * drop.standard_error
    return Verdict(
        "shadow" if better else "averaged",
        statistics.fmean(by_patient(other, whose)),
        statistics.fmean(by_patient(own, whose)),
        len(pairs),
        drop.standard_error,
        drop.patients,
    )


def deployed_net(verdict: Verdict, exchanging: nn.Module, shadow: nn.Module, output: str) -> nn.Module:
    """The network that a verdict stands for. `output`: training.output."""
    return shadow if verdict.deployed == "shadow" else Ensemble(exchanging, [shadow], output)


class Shadow:
    """The model, its optimizer and EMA, its own place in the run, and the last verdict."""

    def __init__(self, run: RunState, initial: Segmenter) -> None:
        """`initial`: W_0, which is copied."""
        self._run, self._algorithm = run, Local()
        self.model_state = ModelState(copy.deepcopy(initial), run.settings, run.compute)
        self.verdict = Verdict()
        self._round, self._step, self._averaged = 0, 0, 0

    @property
    def learner(self) -> Learner:
        """What trains."""
        return self.model_state.learner

    def step(self, moment: StepPosition, batch: Mapping[str, Tensor], context: StepContext) -> None:
        """One step, unless it was taken before the round started over for the exchanging model's sake."""
        if (moment.round, moment.step) < (self._round, self._step):
            return
        self._run.train(moment, batch, {"local": self.learner}, self._algorithm, context)
        self._round, self._step = moment.round, moment.step + 1

    def average(self, round: int) -> None:
        """Let the EMA take in `round`, once."""
        if self._averaged < round:
            self.model_state.take_in_round()
            self._averaged = round

    def judge(self, exchanging: nn.Module, scores: Scores, round: int) -> Scores:
        """Choose what is deployed from now on, and score it. `scores`: of the exchanging model's EMA."""
        own = self._run.score(self.model_state.ema, "validation", round)
        patients = self._run.site.patients("validation")
        verdict = verdict_of([c.mean for c in own.per_case], [c.mean for c in scores.per_case], patients)
        if verdict.deployed == "averaged":
            pair = deployed_net(verdict, exchanging, self.model_state.ema, self._run.settings.training.output)
            own = self._run.score(pair, "validation", round)
        self.verdict = verdict
        return own

    def deployed(self, exchanging: nn.Module) -> nn.Module:
        """What the site evaluates and predicts with."""
        return deployed_net(
            self.verdict, exchanging, self.model_state.ema, self._run.settings.training.output
        )

    def state(self) -> dict[str, Any]:
        """For a checkpoint; `model_state` is laid out like the exchanging model's."""
        place = {"round": self._round, "step": self._step, "averaged": self._averaged}
        return {"student": self.model_state.snapshot(), "verdict": asdict(self.verdict), **place}

    def load(self, state: Mapping[str, Any] | None) -> None:
        """Go on from what state() gave. Raises ConfigError for a run that began without a shadow."""
        history = self._run.history
        if state is None:
            if history.round or history.step:
                raise ConfigError(
                    "this site's checkpoint was trained without it: a shadow that begins later is not what "
                    "the site would have had alone",
                    key="training.shadow_local",
                    value=True,
                    remedy="Remove it, or start afresh: give the site another state_dir, or move "
                    f"{self._run.settings.spec.state_dir} away.",
                )
            return
        self.model_state.restore(state["student"])
        self.verdict = Verdict(**state["verdict"])
        self._round, self._step, self._averaged = state["round"], state["step"], state["averaged"]
