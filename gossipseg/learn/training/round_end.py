"""The close of a round: what is deployed from now on, how good it is, and the file that may travel."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor, nn

from gossipseg.algos.base import Algorithm
from gossipseg.errors import DiskFull, LocalError
from gossipseg.learn import protocol
from gossipseg.learn.deploy.prediction import Prediction, kept_predictions
from gossipseg.learn.engine.model_state import ModelState, cpu_copy
from gossipseg.learn.engine.run_state import RunState
from gossipseg.learn.evaluation.evaluate import Scores
from gossipseg.learn.exchange.admission import Admission
from gossipseg.learn.exchange.global_model import GlobalModel, everything
from gossipseg.learn.exchange.guard import Guard
from gossipseg.learn.exchange.wire_format import all_finite, export_wire
from gossipseg.learn.training.personal import Personal


class RoundEnd:
    """The deployed model at the end of each round. `best`: the shared one's average of the best fine-tuning
    round, on the CPU."""

    def __init__(
        self,
        run: RunState,
        algorithm: Algorithm,
        shared: ModelState,
        admission: Admission,
        global_model: GlobalModel,
        personal: Personal | None,
        guard: Guard,
    ) -> None:
        """Without a personal model the shared one's average is deployed."""
        self._run, self._algorithm, self._shared, self._personal = run, algorithm, shared, personal
        self._admission, self._global_model, self._guard = admission, global_model, guard
        self.prediction = Prediction(run) if personal is not None else None
        if personal is None:
            kept_predictions(run.settings).sweep((), ())  # of a time when there were two models
        self.best: dict[str, Tensor] | None = None

    @property
    def deployed(self) -> nn.Module:
        """What the site evaluates and predicts with."""
        if self.prediction is None or self._personal is None:
            return self._shared.ema
        return self.prediction.net(self._personal.model_state.ema, self._shared.ema)

    def take_in(self, round: int) -> str:
        """Let the averages take in the round, once. What went wrong, in words, or ""."""
        trouble = self._personal.average(round) if self._personal is not None else ""
        history, shared = self._run.history, self._shared
        if history.averaged:
            return trouble
        if not all_finite(shared.weights()):
            return "the weights are not finite: the average that is deployed leaves this round out"
        self._admission.note_own(shared.weights(), shared.ema.state_dict())
        shared.take_in_round()
        self._guard.round_trained()
        history.averaged = history.in_average = True
        return trouble

    def before_finetuning(self, round: int) -> None:
        """The average begins anew. Where the best model is kept, the one before fine-tuning may be that."""
        if self._algorithm.keeps_best_finetuned:
            dice = self._run.score(self._shared.ema, "validation", round).mean
            self.best, self._run.history.best_finetuned = cpu_copy(self._shared.ema.state_dict()), dice
        self._shared.begin_average()

    def close(self, order: protocol.StartRound) -> Scores | None:
        """Validation of the EMA where it is due, and the test split after the last round."""
        run, history, round = self._run, self._run.history, order.round
        picks = order.finetuning and self._algorithm.keeps_best_finetuned
        last = run.is_last(round)
        due = last or picks or round % max(1, run.settings.training.validate_every_rounds) == 0
        scores = self._validated(round, picks=picks, last=last) if due else None
        if not order.finetuning:  # an earlier budget's best is nothing to go back to
            self.best, history.best_finetuned = None, None
        if last and run.settings.spec.report_test:
            history.dice_test = run.score(self.deployed, "test", round).mean
        if scores is not None:
            history.dice_val = scores.mean
            history.dice_history.append((round, scores.mean))
        return scores

    def _validated(self, round: int, *, picks: bool, last: bool) -> Scores:
        """Validation scores of what is deployed from now on."""
        if not picks:
            return self._judged(round)
        scores = self._run.score(self._shared.ema, "validation", round)
        changed = self._pick(scores.mean, last)
        if self.prediction is not None or changed:
            return self._judged(round)
        self._run.history.dice_shared = scores.mean
        return scores

    def _judged(self, round: int) -> Scores:
        """Choose what is deployed, and score it."""
        prediction, personal, shared = self.prediction, self._personal, self._shared.ema
        if prediction is None or personal is None:
            scores = of_shared = self._run.score(shared, "validation", round)
        elif not personal.begun:
            first = self._run.settings.training.personal_from_round
            why = f"the personal model begins with round {first}"
            scores = of_shared = prediction.shared_alone(shared, round, why)
        else:
            own, trained = personal.model_state.ema, personal.on_trial
            scores, of_shared = prediction.judge(own, shared, round, trained=trained)
        self._run.history.dice_shared = of_shared.mean
        return scores

    def choose_again(self, round: int) -> Scores:
        """Choose what is deployed anew, as `round`'s validation did, from the models that are there now."""
        scores, history = self._judged(round), self._run.history
        if history.dice_history and history.dice_history[-1][0] == round:
            history.dice_history[-1] = (round, scores.mean)
        history.dice_val = scores.mean
        if history.dice_test is not None:
            history.dice_test = self._run.score(self.deployed, "test", round).mean
        return scores

    def _pick(self, dice: float | None, last: bool) -> bool:
        """Keep the best deployment model of fine-tuning; deploy it after the last round.

        Without a validation score the last one is as good as any. Whether an earlier one is deployed now.
        """
        best = self._run.history.best_finetuned
        if self.best is None or best is None or (dice is not None and dice > best):
            self.best, self._run.history.best_finetuned = cpu_copy(self._shared.ema.state_dict()), dice
            return False
        if last:
            self._shared.ema.load_state_dict(self.best)
        return last

    def score_test_at_start(self, on_progress: Callable[[str, float], None]) -> None:
        """The test split before the first round (kept in the checkpoint)."""
        run = self._run
        scores = run.site.score(self.deployed, "test", lambda fraction: on_progress("testing", fraction))
        run.history.dice_test_start = scores.mean

    def export(self, order: protocol.StartRound) -> tuple[protocol.Export | None, str]:
        """Write the wire file; without it the round still counts."""
        spec, history, cases = self._run.settings.spec, self._run.history, self._run.site.cases
        path = Path(spec.state_dir) / "outbox" / f"round-{order.round}.safetensors"
        metadata = {
            "site": spec.site,
            "round": order.round,
            "steps": history.steps,
            "cases": cases,
            "dice_val": history.dice_shared,
        }
        try:
            sent = self._global_model.release(order.round)
            self._global_model.sent(sent, export_wire(path, sent, everything, spec.wire_dtype, metadata))
        except LocalError as e:
            full = "the disk is full: " if isinstance(e, DiskFull) else ""
            return None, f"the model was not exported: {full}{e}"
        return protocol.Export(str(path), cases, history.steps, history.dice_shared), ""
