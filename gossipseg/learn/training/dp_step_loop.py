"""The training steps of a round under differential privacy, and the account they are charged to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from gossipseg.algos.base import Algorithm, Role, StepContext, StepPosition
from gossipseg.errors import ConfigError
from gossipseg.learn import protocol
from gossipseg.learn.engine.history import Throughput
from gossipseg.learn.engine.model_state import ModelState
from gossipseg.learn.engine.run_state import RunState
from gossipseg.learn.engine.train_step import Learner, StepResult, private_step
from gossipseg.learn.privacy.dp_sgd import FILE as ACCOUNT
from gossipseg.learn.privacy.dp_sgd import PrivateTraining, check_network

MakeContext = Callable[[StepPosition, Mapping[Role, Learner]], StepContext]


class DpStepLoop:
    """Steps of the local model alone: the settings allow no algorithm that would let another train."""

    def __init__(
        self,
        run: RunState,
        algorithm: Algorithm,
        model_state: ModelState,
        private: PrivateTraining,
        make_context: MakeContext,
    ) -> None:
        self._run, self._algorithm, self._model_state = run, algorithm, model_state
        self._private, self._make_context = private, make_context
        self.gradients = 0
        """Steps taken so far."""

    def take(self, order: protocol.StartRound) -> str:
        """The steps that the round still lacks; why fewer were taken, or "". Raises what the gate raises."""
        run, private = self._run, self._private
        pace, round, before = Throughput(), order.round, run.history.step
        allowed, trouble = private.begin(run.settings.training.steps_per_round - before)
        try:
            while run.history.step < before + allowed:
                run.gate()
                run.between_steps()
                result = self.step(run.moment(order, run.history.step))
                if result is not None:
                    run.tally.add(result.loss, result.terms)
                self.gradients += 1
                run.step_done(round, pace)
            run.gate()
        finally:
            private.settle(run.history.step - before)
        return trouble

    def step(self, moment: StepPosition) -> StepResult | None:
        """One step on the cases drawn for it; None where none was."""
        run, private, learner = self._run, self._private, self._model_state.learner
        round, step = moment.round, moment.step
        context = self._make_context(moment, {"local": learner})
        drawn = private.draw(round, step)
        batches = ((run.site.case(index, rng), seed) for index, rng, seed in drawn)
        cases = ((batch["image"], run.target(batch), seed) for batch, seed in batches)
        optimizer = private.optimizer(learner.optimizer, round, step)
        seen = run.site.annotated.outputs
        return private_step(learner, cases, self._algorithm, context, run.compute, optimizer, seen)

    def load(self, state: Sequence[Sequence[float]] | None) -> None:
        """Take the account over. Raises ConfigError for a model that learned from its cases without one."""
        run = self._run
        if state is None and (run.history.round or run.history.step):
            raise ConfigError(
                "this site's checkpoint was trained without it: its epsilon is beyond all numbers",
                key="privacy.dp",
                remedy="Start afresh: give the site another state_dir, or move "
                f"{run.settings.spec.state_dir} away. Or remove privacy.dp.",
            )
        self._private.load(state)


def open_account(run: RunState, model_state: ModelState) -> PrivateTraining | None:
    """What the settings ask for in the way of privacy, with its account's file; None: nothing."""
    settings, privacy = run.settings, run.settings.privacy
    if privacy.dp is None:
        return None
    check_network(model_state.model, run.compute)
    cases, file = run.site.cases, Path(settings.spec.state_dir) / ACCOUNT
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    return PrivateTraining(
        privacy.dp, privacy.seed, settings.spec.site, cases, settings.training.batch_size, file
    )
