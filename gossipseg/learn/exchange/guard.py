"""The validation guard: a merge that did harm is undone.

The model is copied just before a merge. When WINDOW rounds have been trained after it, the mean of the
weights at their ends is scored, and compared with that of the WINDOW rounds before the merge: single rounds
jump from one to the next, and an average with a long memory would not see one merge. At the last round, what
has been trained by then is judged. Where further models were merged meanwhile, the fault is the first one's
after which the weights were harmed. Times without a merge show how much the score changes by itself.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from gossipseg.learn.engine.model_state import ModelState
from gossipseg.learn.engine.run_state import RunState
from gossipseg.learn.evaluation.paired import LEAST_PATIENTS, CaseScores, harmful, paired_drop
from gossipseg.nets.segmenter import Segmenter

WINDOW = 3
"""k: rounds before and after a merge."""
CHANGES_KEPT = 8
"""The newest: those of the early rise say nothing of a training that has levelled off."""


Dice = Mapping[str, float | None]
"""Mean Dice by case."""


@dataclass(slots=True)
class Merge:
    """A merge that has not been judged yet."""

    hash: str
    frm: str
    before: dict[str, float | None]
    """Validation Dice by case of the mean of the last weights before it."""
    snapshot: dict[str, Any]
    """Weights, optimizer, scaler and EMA (ModelState.snapshot) as they were."""
    steps: int
    own_steps: int
    ahead: int
    """These three as they were (history.History)."""
    rounds: int = 0
    """Rounds trained after it."""
    known: dict[str, Any] | None = None
    """What others knew of the model before it was taken over (GlobalModel.private_state)."""


class Guard:
    """The merges of one site that wait for their judgement, the oldest first."""

    def __init__(self, run: RunState, model_state: ModelState) -> None:
        self._run, self._model_state = run, model_state
        self.pending: list[Merge] = []
        self._calm = 0
        """Rounds since the last merge."""
        self._base: dict[str, float | None] = {}
        """Scores of the last window of calm rounds that a second one is to be compared with."""
        self._base_at = 0
        self._changes: list[float] = []
        """Mean falls between two windows without a merge; no two of them share a window."""

    def before_merge(self, hash: str, frm: str, round: int) -> None:
        """Keep what a merge in `round` may have to be undone to."""
        self._calm = self._base_at = 0
        recent = list(self._model_state.recent)
        if not recent:
            return
        history = self._run.history
        merge = Merge(
            hash,
            frm,
            dict(self._scores(recent, round)),
            self._model_state.snapshot(),
            history.steps,
            history.own_steps,
            history.ahead,
        )
        self.pending.append(merge)

    def round_trained(self) -> None:
        """The weights at the end of a round are the newest of ModelState.recent, if it keeps any."""
        if not self._model_state.recent:
            return
        self._calm += 1
        for merge in self.pending:
            merge.rounds += 1

    def round_withdrawn(self) -> None:
        """The round that round_trained() was told of begins anew."""
        if not self._calm:
            return
        self._calm -= 1
        if self._base_at > self._calm:
            self._base_at = 0
        for merge in self.pending:
            merge.rounds -= 1

    def judge(self, round: int) -> Merge | None:
        """The merge that must be undone, after the steps of `round`; those that pass are let go of.

        Raises what the gate raises; the judgement is then still to be made.
        """
        last = self._run.is_last(round)
        after: Dice | None = None
        while self.pending and (self.pending[0].rounds >= WINDOW or (last and self.pending[0].rounds)):
            oldest = self.pending[0]
            after = self._scores(self._since(oldest), round)
            if self._harmed(oldest, after):
                at = self._culprit(round)
                del self.pending[:at]
                return self.pending[0]
            self.pending.pop(0)
        if not self.pending:
            self._note_calm(round, after)
        return None

    def undone(self, merge: Merge) -> None:
        """The model is as it was before `merge`: later merges are gone with it."""
        del self.pending[self.pending.index(merge) :]
        self._calm = self._base_at = 0
        self._model_state.recent.clear()
        self._model_state.keep_round()
        for earlier in self.pending:
            earlier.rounds = 1

    def forget(self) -> None:
        """The weights that were merged into are gone."""
        self.pending, self._calm, self._base_at = [], 0, 0

    # ------------------------------------------------------------ scores

    def _culprit(self, round: int) -> int:
        """Which of the pending merges harmed the weights, of those in the oldest one's window."""
        oldest = self.pending[0]
        weights = self._since(oldest)
        for at, following in enumerate(self.pending[1:]):
            until = weights[: oldest.rounds - following.rounds]
            if not until or self._harmed(oldest, self._scores(until, round)):
                return at
        return len(self.pending) - 1

    def _since(self, merge: Merge) -> list[dict[str, Tensor]]:
        """W at the ends of the rounds after a merge, at most WINDOW."""
        return list(self._model_state.recent)[-merge.rounds :]

    def _harmed(self, merge: Merge, after: Dice) -> bool:
        if not after:
            return False
        drop = self._run.settings.training.guard_drop
        return harmful(*self._paired(merge.before, after), drop, self._changes)

    def _paired(self, before: Dice, after: Dice) -> tuple[CaseScores, CaseScores, list[str]]:
        """Both scores, and whose the cases are that both hold: a site's cases may have changed since."""
        cases = [case for case in after if case in before]
        patients = dict(zip(after, self._run.site.patients("validation"), strict=True))
        return [before[c] for c in cases], [after[c] for c in cases], [patients[c] for c in cases]

    def _scores(self, weights: Sequence[Mapping[str, Tensor]], round: int) -> Dice:
        """Validation Dice by case of the mean of some weights; none where too few patients could judge."""
        if len(set(self._run.site.patients("validation"))) < LEAST_PATIENTS:
            return {}
        scores = self._run.score(mean_model(self._model_state.model, weights), "validation", round)
        return {case.id: case.mean for case in scores.per_case}

    def _note_calm(self, round: int, found: Dice | None) -> None:
        """Two windows on end without a merge show how much the score changes by itself. `found`: the scores
        of the present one, where it has just been judged."""
        if self._calm == 0 or self._calm % WINDOW or self._calm == self._base_at:
            return
        found = found or self._scores(list(self._model_state.recent), round)
        if found and self._calm % (2 * WINDOW) == 0 and self._base_at == self._calm - WINDOW:
            self._changes.append(paired_drop(*self._paired(self._base, found)).mean)
            del self._changes[:-CHANGES_KEPT]
        self._base, self._base_at = dict(found), self._calm

    # ------------------------------------------------------------ state

    def state(self) -> dict[str, Any]:
        """For a checkpoint: plain values and CPU tensors."""
        merges = [{f.name: getattr(merge, f.name) for f in fields(Merge)} for merge in self.pending]
        calm = {"calm": self._calm, "base": self._base, "base_at": self._base_at, "changes": self._changes}
        return {"pending": merges, **calm}

    def load(self, state: Mapping[str, Any] | None) -> None:
        """Go on from what state() gave. A visit that version 0.1 was about to judge is not judged."""
        self.pending, self._calm, self._base, self._base_at, self._changes = [], 0, {}, 0, []
        if state is not None and "pending" in state:
            self.pending = [Merge(**merge) for merge in state["pending"]]
            self._calm, self._base, self._base_at = state["calm"], state["base"], state["base_at"]
            self._changes = list(state["changes"])


def mean_model(like: Segmenter, weights: Sequence[Mapping[str, Tensor]]) -> Segmenter:
    """A network like `like`, on its device, with the mean of some state dicts (floating-point tensors; of
    others the last one's)."""
    mean: dict[str, Tensor] = {}
    for name, last in weights[-1].items():
        mean[name] = last
        if torch.is_floating_point(last):
            mean[name] = torch.stack([w[name].float() for w in weights]).mean(0).to(last.dtype)
    net = copy.deepcopy(like)
    net.load_state_dict(mean)
    return net


def start_over(run: RunState, model_state: ModelState, guard: Guard) -> None:
    """The round begins anew, and the EMA, if it has taken in what the round came to so far, gives it back.

    Must be called before other weights are taken in.
    """
    if run.history.in_average:
        model_state.withdraw_round()
        guard.round_withdrawn()
    run.start_over()
