"""Where a site's training run stands and whom it tells: what all parts of a round share."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import torch
from torch import Tensor, nn

from gossipseg.algos.base import Algorithm, Outputs, Role, StepContext, StepPosition
from gossipseg.algos.params.common import Coordinated
from gossipseg.learn import protocol
from gossipseg.learn.engine.history import History, RunningMeans, Throughput
from gossipseg.learn.engine.losses import make_target
from gossipseg.learn.engine.optim import cosine_rate, learning_rate, step_seed
from gossipseg.learn.engine.site_data import SiteData
from gossipseg.learn.engine.train_step import Learner, StepResult, train_step
from gossipseg.learn.evaluation.evaluate import Scores
from gossipseg.learn.evaluation.pairs import PairScores, Predict, Seen
from gossipseg.learn.params import SplitName

Report = Callable[[Callable[[], protocol.Progress], protocol.Activity], None]
"""Takes a maker of Progress, and calls it only when it is time for another one, or the activity is new."""

Gate = Callable[[], None]
"""Called between steps and between cases: holds while paused, raises when the worker shall stop."""


class RunState:
    """One site's run: its data, settings and device, its position, and the daemon's two calls."""

    def __init__(self, site: SiteData, report: Report, gate: Gate) -> None:
        self.site, self.report, self.gate = site, report, gate
        self.settings, self.compute = site.settings, site.compute
        self.history, self.tally = History(), RunningMeans()
        self.resumable = True
        """Whether the present position, perhaps within a round, may be checkpointed."""
        self.between_steps: Gate = lambda: None
        """Called between two steps: what waits for one is done then."""

    def start_over(self) -> None:
        """The round begins anew, from other weights than those that its steps so far have led to."""
        self.history.step, self.tally = 0, RunningMeans()
        self.history.averaged = self.history.in_average = False

    def end_round(self, order: protocol.StartRound) -> None:
        """The model stands at the end of the round."""
        history = self.history
        history.round, history.step = order.round, 0
        history.averaged = history.in_average = False
        history.finetuned = history.finetuned + 1 if order.finetuning else 0
        history.reverted = None
        self.tally = RunningMeans()
        self.resumable = True

    def moment(self, order: protocol.StartRound, step: int) -> StepPosition:
        """Where the site stands before `step` of the round."""
        total = self.settings.training.steps_per_round
        # After an interruption the rest of the round is ordered as any other: its model is taken in already.
        settling_in = order.settling_in or self.history.settling_round == order.round
        return StepPosition(order.round, step, total, order.finetuning, settling_in)

    def is_last(self, round: int) -> bool:
        """Whether the training ends with this round, by the site's own budget or by the federation's."""
        federation = self.settings.training.rounds
        over = federation is not None and round + self.history.ahead >= federation
        own = self.settings.spec.rounds
        return over or (own is not None and round >= own)

    def learning_rate(self, moment: StepPosition) -> float:
        """By the federation's round; in fine-tuning by the rounds of that, from a rate of its own."""
        training, algorithm = self.settings.training, self.settings.algorithm
        if not moment.finetuning:
            return learning_rate(training, moment.round + self.history.ahead, moment.step)
        assert isinstance(algorithm, Coordinated)
        first = algorithm.finetune_learning_rate or training.learning_rate
        if algorithm.finetune_schedule == "constant":
            return first
        step = self.history.finetuned * moment.steps_per_round + moment.step
        return cosine_rate(first, step, algorithm.finetune_rounds * moment.steps_per_round)

    def learning_rate_alone(self, moment: StepPosition) -> float:
        """As learning_rate(), of a site that meets nobody: by its own rounds."""
        return learning_rate(self.settings.training, moment.round, moment.step)

    def target(self, batch: Mapping[str, Tensor]) -> Tensor:
        """What the losses compare a batch with."""
        annotated = self.site.annotated
        return make_target(annotated.label(batch["label"]), self.settings.training.output, annotated.classes)

    def train(
        self,
        moment: StepPosition,
        batch: Mapping[str, Tensor],
        learners: Mapping[Role, Learner],
        algorithm: Algorithm,
        context: StepContext,
        partners: Mapping[Role, Outputs] | None = None,
        *,
        show: bool = False,
        features: bool = False,
    ) -> StepResult:
        """One step at `moment`, with the random numbers that are this step's at this site alone."""
        spec = self.settings.spec
        torch.manual_seed(step_seed(spec.seed, spec.site, moment.round, moment.step))
        return train_step(
            learners,
            batch["image"],
            self.target(batch),
            algorithm,
            context,
            self.compute,
            self.settings.training.clip_grad_norm,
            self.site.annotated.outputs,
            partners,
            show=show,
            features=features,
        )

    def step_done(self, round: int, pace: Throughput) -> None:
        """Count an optimizer step, and tell of it."""
        self.history.step += 1
        self.history.steps += 1
        self.history.own_steps += 1
        pace.tick()
        self.report(lambda: self._training_progress(round, pace), "training")

    def _training_progress(self, round: int, pace: Throughput) -> protocol.Progress:
        total = self.settings.training.steps_per_round
        loss = self.tally.last_loss
        return protocol.Progress(
            round,
            self.history.step,
            total,
            "training",
            self.history.step / total,
            None if loss is None else float(loss),
            pace.steps_per_s,
        )

    def score(self, model: nn.Module, split: SplitName, round: int) -> Scores:
        """Dice of a model over a split. Raises what the gate raises, between two cases."""
        return self.site.score(model, split, self.scoring(split, round))

    def score_pair(
        self,
        personal: nn.Module,
        shared: nn.Module,
        round: int,
        compared: Collection[float],
        deployable: Collection[float],
        predict: Predict | None = None,
        seen: Seen = lambda item, label, p, t: None,
    ) -> PairScores:
        """Both models and their mixes over the validation split. Raises what the gate raises."""
        on_progress = self.scoring("validation", round)
        return self.site.score_pair(
            personal, shared, "validation", compared, deployable, on_progress, predict, seen
        )

    def losses(self, model: nn.Module, round: int) -> list[float | None]:
        """NLL of a model by validation case, over a few windows of each. Raises what the gate raises."""
        return self.site.losses(model, "validation", self.scoring("validation", round))

    def alive(self) -> None:
        """Say that work beside a round goes on: a worker that says nothing for long is taken for stuck."""
        history, total = self.history, self.settings.training.steps_per_round
        done = protocol.Progress(history.round, history.step, total, "validation", 0.0)
        self.report(lambda: done, "validation")

    def scoring(self, split: SplitName, round: int) -> Callable[[float], None]:
        """What is to be called after each case that was scored."""
        activity: protocol.Activity = "test" if split == "test" else "validation"

        def on_progress(fraction: float) -> None:
            self.gate()
            step, total = self.history.step, self.settings.training.steps_per_round
            self.report(lambda: protocol.Progress(round, step, total, activity, fraction), activity)

        return on_progress
