"""The personal model: the site's own, trained beside the shared one on the same batches and never mixed.

From the first round on it is bit for bit what `local` gives on a CPU: the same first weights, batches, random
numbers and learning rate. It is another model where it begins as a copy of the shared one (a site that joins
late, or training.personal_from_round), and where the algorithm has a loss of its own for it. In the rounds of
fine-tuning it stands still.

With a network of its own (site.yaml: personal_network) it has first weights of its own, and is never a copy.
Where the site takes a shared model over, it goes on from where it is, on that model's schedule.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from gossipseg.algos.base import Algorithm, StepPosition
from gossipseg.learn.engine.build import check_identity, personal_identity
from gossipseg.learn.engine.model_state import ModelState
from gossipseg.learn.engine.run_state import RunState
from gossipseg.learn.engine.train_step import Learner
from gossipseg.learn.exchange.wire_format import all_finite
from gossipseg.nets.segmenter import Segmenter

OWN = "own"
"""The source of a copy of the site's own shared model."""


class Personal:
    """The model, its optimizer and EMA, and its own place in the run."""

    def __init__(self, run: RunState, initial: Segmenter, *, algorithm: Algorithm) -> None:
        """`initial`: the first weights, which are copied. Where the algorithm has a loss of its own for this
        model, the learning rate is always the shared model's."""
        self._run, self._always_follows = run, algorithm.trains_personal
        self._identity = personal_identity(run.settings, initial)
        self.model_state = ModelState(copy.deepcopy(initial), run.settings, run.compute)
        self.begun = run.settings.training.personal_from_round <= 1
        self.copied_from = ""
        """Hash of the model that the shared one had just taken over when this one became its copy, or OWN.
        "": it is no copy."""
        self.joined = False
        """Whether it has a network of its own, and the site has taken a shared model over beside it."""
        self._round, self._step, self._averaged = 0, 0, 0

    @property
    def learner(self) -> Learner:
        """What trains."""
        return self.model_state.learner

    @property
    def rounds(self) -> int:
        """Rounds behind its average."""
        return self.model_state.averaged_rounds

    @property
    def on_trial(self) -> int | None:
        """Rounds that it has trained, where it has to have trained some before it predicts; else None."""
        return self.rounds if self.copied_from or self.joined else None

    def begin(self, round: int, shared: ModelState) -> bool:
        """Begin as a copy of the shared model in the round that the settings say; whether it begins now."""
        if self.begun or round < self._run.settings.training.personal_from_round:
            return False
        self.copy(shared, round, OWN)
        return True

    def copy(self, shared: ModelState, round: int, source: str) -> None:
        """Be a copy of the shared model, on its schedule, from the beginning of `round`.

        One with a network of its own stays what it is.
        """
        if self._identity is not None:
            self.joined = True
            return
        self.model_state.become(shared.weights())
        self.begun, self.copied_from = True, source
        self._round, self._step, self._averaged = round, 0, round - 1

    def due(self, position: StepPosition) -> bool:
        """Whether a step is to be taken. None is taken twice where the round started over for the shared
        model's sake."""
        ahead = (position.round, position.step) >= (self._round, self._step)
        return self.begun and ahead and not position.finetuning

    def stepped(self, position: StepPosition) -> None:
        """Note that the step at `position` was taken."""
        self._round, self._step = position.round, position.step + 1

    def learning_rate(self, position: StepPosition) -> float:
        """By this site's own rounds, as `local` has it; a copy, or one that joined, by the shared model's."""
        if self._always_follows or self.copied_from or self.joined:
            return self._run.learning_rate(position)
        return self._run.learning_rate_alone(position)

    def average(self, round: int) -> str:
        """Let the EMA take in `round`, once, if it trained in it. What went wrong, in words, or ""."""
        if self._averaged >= round or (self._round, self._step > 0) != (round, True):
            return ""
        self._averaged = round
        if not all_finite(self.model_state.weights()):
            return "the personal model's weights are not finite: its average leaves this round out"
        self.model_state.take_in_round()
        return ""

    def state(self) -> dict[str, Any]:
        """For a checkpoint; `model` is laid out like the shared model's."""
        place = {"round": self._round, "step": self._step, "averaged": self._averaged}
        return {
            "model": self.model_state.snapshot(),
            "begun": self.begun,
            "copied_from": self.copied_from,
            **({"network": dict(self._identity), "joined": self.joined} if self._identity else {}),
            **place,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from what state() gave. Raises ConfigError where that is of another network."""
        check_identity(state.get("network"), self._identity)
        self.joined = state.get("joined", False)
        self.model_state.restore(state["model"])
        self.begun, self.copied_from = state["begun"], state["copied_from"]
        self._round, self._step, self._averaged = state["round"], state["step"], state["averaged"]
