"""The training steps of a round, and what the losses of each may know."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from gossipseg.algos.base import Algorithm, Outputs, Role, StepContext, StepPosition
from gossipseg.algos.local import Local
from gossipseg.learn import protocol
from gossipseg.learn.engine.history import Throughput
from gossipseg.learn.engine.losses import segmentation_loss
from gossipseg.learn.engine.model_state import ModelState
from gossipseg.learn.engine.optim import set_learning_rate, step_seed
from gossipseg.learn.engine.run_state import RunState
from gossipseg.learn.engine.train_step import Learner, StepResult, show
from gossipseg.learn.exchange.global_model import GlobalModel
from gossipseg.learn.training.personal import Personal


class StepLoop:
    """E steps of the shared model, and of the personal one beside it where there is one."""

    def __init__(
        self,
        run: RunState,
        algorithm: Algorithm,
        shared: ModelState,
        global_model: GlobalModel,
        personal: Personal | None = None,
    ) -> None:
        self._run, self._algorithm, self._alone = run, algorithm, Local()
        self._shared, self._global_model, self._personal = shared, global_model, personal
        self._segmentation_loss = segmentation_loss(run.settings.training, run.settings.task.spatial_dims)
        self.gradients = 0
        """Gradients computed so far, by any of the two models."""

    def take(self, order: protocol.StartRound) -> None:
        """The steps that the round still lacks. Raises what the gate raises, between two of them."""
        run, pace, round = self._run, Throughput(), order.round
        for step, batch in run.site.batches(round, run.history.step, run.settings.training.steps_per_round):
            run.gate()
            run.between_steps()
            result = self._step(run.moment(order, step), batch)
            run.tally.skipped += bool(result.skipped)
            if "local" not in result.skipped:
                run.tally.add(result.loss, result.terms)
            run.step_done(round, pace)
        run.gate()

    def take_personal(self, order: protocol.StartRound) -> None:
        """The steps of the personal model alone, where the shared one trains in another way."""
        run, personal = self._run, self._personal
        if personal is None:
            return
        total = run.settings.training.steps_per_round
        for step, batch in run.site.batches(order.round, 0, total):
            run.gate()
            run.between_steps()
            if personal.due(run.moment(order, step)):
                self._step_alone(personal, run.moment(order, step), batch)
            done = protocol.Progress(order.round, step + 1, total, "training", (step + 1) / total)
            run.report(lambda done=done: done, "training")  # type: ignore[misc]
        run.gate()

    def _step(self, position: StepPosition, batch: Mapping[str, Tensor]) -> StepResult:
        """One step of each model that is to take one.

        They go side by side where both losses are the algorithm's. Else the personal model goes first, and
        shows what it said before its step.
        """
        algorithm, personal = self._algorithm, self._personal
        learners: dict[Role, Learner] = {"local": self._shared.learner}
        partners: dict[Role, Outputs] = {}
        if personal is not None and algorithm.trains_personal and personal.due(position):
            learners["personal"] = personal.learner
            personal.stepped(position)
        elif personal is not None and personal.begun:
            shown = self._shown(personal, position, batch)
            if shown is not None and bool(shown.logits.isfinite().all()):
                partners["personal"] = shown
        context = self.context(position, learners)
        if "personal" in learners and personal is not None:
            set_learning_rate(personal.learner.optimizer, personal.learning_rate(position))
        self.gradients += len(learners)
        features = algorithm.wants_features
        return self._run.train(position, batch, learners, algorithm, context, partners, features=features)

    def _shown(
        self, personal: Personal, position: StepPosition, batch: Mapping[str, Tensor]
    ) -> Outputs | None:
        """Take its step if it is due; what it says of the batch, where the algorithm asks for it."""
        if personal.due(position):
            return self._step_alone(personal, position, batch).shown
        if not self._algorithm.learns_from_personal:
            return None
        seen = self._run.site.annotated.outputs
        features = self._algorithm.wants_features
        return show(personal.learner.model, batch["image"], self._run.compute, seen, features=features)

    def _step_alone(
        self, personal: Personal, position: StepPosition, batch: Mapping[str, Tensor]
    ) -> StepResult:
        """A step of the personal model as `local` takes it."""
        context = self.context(position, {"local": personal.learner})
        set_learning_rate(personal.learner.optimizer, personal.learning_rate(position))
        learners: dict[Role, Learner] = {"local": personal.learner}
        shows, features = self._algorithm.learns_from_personal, self._algorithm.wants_features
        result = self._run.train(
            position, batch, learners, self._alone, context, show=shows, features=features
        )
        self._run.tally.skipped += bool(result.skipped)
        personal.stepped(position)
        self.gradients += 1
        return result

    def context(self, position: StepPosition, learners: Mapping[Role, Learner]) -> StepContext:
        """What the losses of a step may know; the models are made ready to train."""
        training, spec, history = self._run.settings.training, self._run.settings.spec, self._run.history
        round, step, rate = position.round, position.step, self._run.learning_rate(position)
        for learner in learners.values():
            learner.model.train()
            set_learning_rate(learner.optimizer, rate)
        first = history.first_exchange
        return StepContext(
            training.output,
            None if first is None else round - first,
            self._segmentation_loss,
            {role: dict(learner.model.named_parameters()) for role, learner in learners.items()},
            self._global_model.anchor,
            position,
            step_seed(spec.seed, f"{spec.site}/noise", round, step),
        )
