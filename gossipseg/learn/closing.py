"""The close of a round: what is deployed from now on, how good it is, and the file that may travel."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor, nn

from gossipseg.algos.base import Algorithm
from gossipseg.errors import DiskFull, LocalError
from gossipseg.learn import jobs
from gossipseg.learn.admission import Admission
from gossipseg.learn.common import CommonModels, everything
from gossipseg.learn.evaluate import Scores
from gossipseg.learn.guard import Guard
from gossipseg.learn.peer_ensemble import PeerEnsemble
from gossipseg.learn.run import Run
from gossipseg.learn.shadow import Shadow
from gossipseg.learn.student import Student, cpu_copy
from gossipseg.learn.weights import all_finite, export_wire


def start_over(run: Run, student: Student, guard: Guard) -> None:
    """The round begins anew, and the EMA, if it has taken in what the round came to so far, gives it back.

    Must be called before other weights are taken in.
    """
    if run.history.in_average:
        student.withdraw_round()
        guard.round_withdrawn()
    run.start_over()


class Closing:
    """The deployed model at the end of each round. `best`: that of the best fine-tuning round, on the CPU."""

    def __init__(
        self,
        run: Run,
        algorithm: Algorithm,
        student: Student,
        admission: Admission,
        common: CommonModels,
        shadow: Shadow | None,
        ensemble: PeerEnsemble | None,
        guard: Guard,
    ) -> None:
        """At most one of `shadow` and `ensemble` chooses what is deployed; without them it is the EMA."""
        self._run, self._algorithm, self._student = run, algorithm, student
        self._admission, self._common, self._shadow, self._guard = admission, common, shadow, guard
        self.choice: Shadow | PeerEnsemble | None = shadow or ensemble
        self.best: dict[str, Tensor] | None = None

    @property
    def deployed(self) -> nn.Module:
        """What the site evaluates and predicts with: the EMA, or what the last verdict says."""
        ema = self._student.ema
        return ema if self.choice is None else self.choice.deployed(ema)

    def take_in(self) -> str:
        """Let the EMA take in the round, once. What went wrong, in words, or ""."""
        history, student = self._run.history, self._student
        if history.averaged:
            return ""
        if not (all_finite(student.deployed.state_dict()) and all_finite(student.weights())):
            return "the weights are not finite: the average that is deployed leaves this round out"
        self._admission.note_own(student.deployed.state_dict(), student.ema.state_dict())
        student.take_in_round()
        self._guard.round_trained()
        history.averaged = history.in_average = True
        return ""

    def before_finetuning(self, round: int) -> None:
        """The average begins anew. Where the best model is kept, the one before fine-tuning may be that."""
        if self._algorithm.keeps_best_finetuned:
            dice = self._run.score(self._student.ema, "validation", round).mean
            self.best, self._run.history.best_finetuned = cpu_copy(self._student.ema.state_dict()), dice
        self._student.begin_average()

    def close(self, order: jobs.StartRound) -> Scores | None:
        """Validation of the EMA where it is due, and the test split after the last round."""
        run, history, round = self._run, self._run.history, order.round
        picks = order.finetuning and self._algorithm.keeps_best_finetuned
        last = run.is_last(round)
        due = last or picks or round % max(1, run.setup.training.validate_every_rounds) == 0
        scores = self._validated(round, picks=picks, last=last) if due else None
        if not order.finetuning:  # an earlier budget's best is nothing to go back to
            self.best, history.best_finetuned = None, None
        if last and run.setup.spec.report_test:
            history.dice_test = run.score(self.deployed, "test", round).mean
        if scores is not None:
            history.dice_val = scores.mean
            history.dice_history.append((round, scores.mean))
        return scores

    def _validated(self, round: int, *, picks: bool, last: bool) -> Scores:
        """Of the model that is deployed from now on."""
        scores = self._run.score(self._student.ema, "validation", round)
        if picks and self._pick(scores.mean, last):
            scores = self._run.score(self._student.ema, "validation", round)
        return scores if self.choice is None else self.choice.judge(self._student.ema, scores, round)

    def _pick(self, dice: float | None, last: bool) -> bool:
        """Keep the best deployment model of fine-tuning; deploy it after the last round.

        Without a validation score the last one is as good as any. Whether an earlier one is deployed now.
        """
        best = self._run.history.best_finetuned
        if self.best is None or best is None or (dice is not None and dice > best):
            self.best, self._run.history.best_finetuned = cpu_copy(self._student.ema.state_dict()), dice
            return False
        if last:
            self._student.ema.load_state_dict(self.best)
        return last

    def score_test_at_start(self, on_progress: Callable[[str, float], None]) -> None:
        """The test split before the first round (kept in the checkpoint)."""
        run = self._run
        scores = run.site.score(self.deployed, "test", lambda fraction: on_progress("testing", fraction))
        run.history.dice_test_start = scores.mean

    def export(self, order: jobs.StartRound) -> tuple[jobs.Export | None, str]:
        """Write the wire file; without it the round still counts."""
        spec, history, cases = self._run.setup.spec, self._run.history, self._run.site.cases
        path = Path(spec.state_dir) / "outbox" / f"round-{order.round}.safetensors"
        metadata = {
            "site": spec.site,
            "round": order.round,
            "steps": history.steps,
            "cases": cases,
            "dice_val": history.dice_val,
        }
        try:
            export_wire(path, self._common.release(order.round), everything, spec.wire_dtype, metadata)
        except LocalError as e:
            full = "the disk is full: " if isinstance(e, DiskFull) else ""
            return None, f"the model was not exported: {full}{e}"
        return jobs.Export(str(path), cases, history.steps), ""
