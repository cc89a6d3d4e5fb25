"""The close of a round: what is deployed from now on, how good it is, and the file that may travel."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor, nn

from gossipseg.algos.base import Algorithm
from gossipseg.errors import DiskFull, LocalError
from gossipseg.learn import protocol
from gossipseg.learn.deploy.peer_ensemble import PeerEnsemble
from gossipseg.learn.deploy.shadow import Shadow
from gossipseg.learn.engine.model_state import ModelState, cpu_copy
from gossipseg.learn.engine.run_state import RunState
from gossipseg.learn.evaluation.evaluate import Scores
from gossipseg.learn.exchange.admission import Admission
from gossipseg.learn.exchange.global_model import GlobalModel, everything
from gossipseg.learn.exchange.guard import Guard
from gossipseg.learn.exchange.wire_format import all_finite, export_wire


class RoundEnd:
    """The deployed model at the end of each round. `best`: that of the best fine-tuning round, on the CPU."""

    def __init__(
        self,
        run: RunState,
        algorithm: Algorithm,
        model_state: ModelState,
        admission: Admission,
        global_model: GlobalModel,
        shadow: Shadow | None,
        ensemble: PeerEnsemble | None,
        guard: Guard,
    ) -> None:
        """At most one of `shadow` and `ensemble` chooses what is deployed; without them it is the EMA."""
        self._run, self._algorithm, self._model_state = run, algorithm, model_state
        self._admission, self._global_model, self._shadow, self._guard = (
            admission,
            global_model,
            shadow,
            guard,
        )
        self.choice: Shadow | PeerEnsemble | None = shadow or ensemble
        self.best: dict[str, Tensor] | None = None

    @property
    def deployed(self) -> nn.Module:
        """What the site evaluates and predicts with: the EMA, or what the last verdict says."""
        ema = self._model_state.ema
        return ema if self.choice is None else self.choice.deployed(ema)

    def take_in(self) -> str:
        """Let the EMA take in the round, once. What went wrong, in words, or ""."""
        history, model_state = self._run.history, self._model_state
        if history.averaged:
            return ""
        if not (all_finite(model_state.deployed.state_dict()) and all_finite(model_state.weights())):
            return "the weights are not finite: the average that is deployed leaves this round out"
        self._admission.note_own(model_state.deployed.state_dict(), model_state.ema.state_dict())
        model_state.take_in_round()
        self._guard.round_trained()
        history.averaged = history.in_average = True
        return ""

    def before_finetuning(self, round: int) -> None:
        """The average begins anew. Where the best model is kept, the one before fine-tuning may be that."""
        if self._algorithm.keeps_best_finetuned:
            dice = self._run.score(self._model_state.ema, "validation", round).mean
            self.best, self._run.history.best_finetuned = cpu_copy(self._model_state.ema.state_dict()), dice
        self._model_state.begin_average()

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
        """Validation scores of the model that is deployed from now on."""
        scores = self._run.score(self._model_state.ema, "validation", round)
        if picks and self._pick(scores.mean, last):
            scores = self._run.score(self._model_state.ema, "validation", round)
        return scores if self.choice is None else self.choice.judge(self._model_state.ema, scores, round)

    def _pick(self, dice: float | None, last: bool) -> bool:
        """Keep the best deployment model of fine-tuning; deploy it after the last round.

        Without a validation score the last one is as good as any. Whether an earlier one is deployed now.
        """
        best = self._run.history.best_finetuned
        if self.best is None or best is None or (dice is not None and dice > best):
            self.best, self._run.history.best_finetuned = cpu_copy(self._model_state.ema.state_dict()), dice
            return False
        if last:
            self._model_state.ema.load_state_dict(self.best)
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
            "dice_val": history.dice_val,
        }
        try:
            sent = self._global_model.release(order.round)
            self._global_model.sent(sent, export_wire(path, sent, everything, spec.wire_dtype, metadata))
        except LocalError as e:
            full = "the disk is full: " if isinstance(e, DiskFull) else ""
            return None, f"the model was not exported: {full}{e}"
        return protocol.Export(str(path), cases, history.steps), ""
