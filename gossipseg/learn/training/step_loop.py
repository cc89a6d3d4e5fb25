"""The training steps of a round, and what the losses of each may know."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from gossipseg.algos.base import Algorithm, Role, StepContext, StepPosition
from gossipseg.learn import protocol
from gossipseg.learn.deploy.shadow import Shadow
from gossipseg.learn.engine.history import Throughput
from gossipseg.learn.engine.losses import segmentation_loss
from gossipseg.learn.engine.model_state import ModelState
from gossipseg.learn.engine.optim import set_learning_rate, step_seed
from gossipseg.learn.engine.run_state import RunState
from gossipseg.learn.engine.train_step import Learner, StepResult
from gossipseg.learn.exchange.global_model import GlobalModel
from gossipseg.learn.exchange.visit import Visitor

OWN: frozenset[Role] = frozenset({"local", "personal"})
"""Models of the site itself: a step that one of them skips is told of."""


class StepLoop:
    """E steps of the local model, of the personal one where there is one, and of a visitor beside it.

    `shadow`: trains on the same batches and has no part in the others' losses.
    """

    def __init__(
        self,
        run: RunState,
        algorithm: Algorithm,
        model_state: ModelState,
        global_model: GlobalModel,
        shadow: Shadow | None = None,
    ) -> None:
        self._run, self._algorithm, self._model_state, self._global_model = (
            run,
            algorithm,
            model_state,
            global_model,
        )
        self._shadow = shadow
        self._segmentation_loss = segmentation_loss(run.settings.training, run.settings.task.spatial_dims)

    def take(self, order: protocol.StartRound, visitor: Visitor | None) -> None:
        """The steps that the round still lacks. Raises what the gate raises, between two of them."""
        run, pace, round = self._run, Throughput(), order.round
        activity: protocol.Activity = "training" if visitor is None else "visit"
        frm = visitor.order.frm if visitor is not None else None
        for step, batch in run.site.batches(round, run.history.step, run.settings.training.steps_per_round):
            run.gate()
            moment = run.moment(order, step)
            result = self._step(moment, batch, visitor)
            if self._shadow is not None:
                context = self.context(moment, {"local": self._shadow.learner})
                set_learning_rate(self._shadow.learner.optimizer, run.learning_rate_alone(moment))
                self._shadow.step(moment, batch, context)
            run.tally.skipped += bool(result.skipped & OWN)
            if "local" not in result.skipped:
                run.tally.add(result.loss, result.terms)
            if visitor is not None and visitor.learner is not None:
                visitor.note_step(result.at_fault("incoming"))
            run.step_done(round, pace, activity, frm)
        run.gate()

    def _step(self, moment: StepPosition, batch: Mapping[str, Tensor], visitor: Visitor | None) -> StepResult:
        learners: dict[Role, Learner] = {"local": self._model_state.learner}
        if self._model_state.personal is not None:
            learners["personal"] = self._model_state.personal
        if visitor is not None and visitor.learner is not None:
            learners["incoming"] = visitor.learner
        context = self.context(moment, learners)
        return self._run.train(moment, batch, learners, self._algorithm, context)

    def context(self, moment: StepPosition, learners: Mapping[Role, Learner]) -> StepContext:
        """What the losses of a step may know; the models are made ready to train."""
        training, spec = self._run.settings.training, self._run.settings.spec
        round, step, rate = moment.round, moment.step, self._run.learning_rate(moment)
        for learner in learners.values():
            learner.model.train()
            set_learning_rate(learner.optimizer, rate)
        return StepContext(
            training.output,
            self._run.history.visits,
            self._segmentation_loss,
            {role: dict(learner.model.named_parameters()) for role, learner in learners.items()},
            self._global_model.anchor,
            moment,
            step_seed(spec.seed, f"{spec.site}/noise", round, step),
        )
