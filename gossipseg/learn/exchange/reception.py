"""What becomes of a model that came: it is admitted and merged, or not, and its merge is judged.

Nothing is merged in the last round: it would be neither trained nor judged.
"""

from __future__ import annotations

from gossipseg.algos.base import Algorithm, Weights
from gossipseg.errors import PeerRefused
from gossipseg.learn import protocol
from gossipseg.learn.engine.model_state import ModelState
from gossipseg.learn.engine.run_state import RunState
from gossipseg.learn.exchange.admission import Admission
from gossipseg.learn.exchange.global_model import GlobalModel
from gossipseg.learn.exchange.guard import WINDOW, Guard, Merge, start_over
from gossipseg.learn.exchange.visit import Visitor, admit
from gossipseg.learn.exchange.wire_format import all_finite
from gossipseg.learn.params import MAX_CLAIMED_COUNT

LATE_JOINER_RATIO = 20
"""A site takes its first visitor's model over when that has this many times its own steps behind it."""

LAST_ROUND = "last_round"
"""Why a model is kept out that would be neither trained nor judged."""

DETAIL_CHARACTERS = 300
"""Longest text about a refused model, in characters: names in it may be the sender's."""


def rounds_kept(algorithm: Algorithm, *, swaps: bool) -> int:
    """How many rounds' weights the guard needs of a site (ModelState.recent). Under swaps it has no part."""
    guards = algorithm.exchanges and (algorithm.averages or algorithm.takes_over) and not swaps
    return WINDOW if guards else 0


TAKEN_OVER = "taken_over"
"""Why a model was merged that replaced the site's own outright."""


class Reception:
    """The fate of the model that came, and the guard over merges that are not judged yet."""

    def __init__(
        self,
        run: RunState,
        algorithm: Algorithm,
        model_state: ModelState,
        admission: Admission,
        global_model: GlobalModel,
    ) -> None:
        self._run, self._algorithm = run, algorithm
        self._model_state, self._admission, self._global_model = model_state, admission, global_model
        self.guard = Guard(run, model_state)

    # ------------------------------------------------------------ arrival

    def arrival(self, order: protocol.StartRound) -> tuple[Visitor | None, protocol.VisitDone | None]:
        """The admitted visitor, or what became of the one that may not stay."""
        if order.visit is None:
            return None, None
        run = self._run
        try:
            visitor = admit(
                order.visit,
                self._model_state.model,
                self._algorithm,
                run.settings.spec.wire_dtype,
                run.compute,
                self._admission,
            )
        except PeerRefused as e:
            run.history.last_visit = order.visit.hash
            detail = e.detail[:DETAIL_CHARACTERS]
            return None, protocol.VisitDone(order.visit.hash, "refused", e.reason, detail, order.visit.frm)
        run.resumable = False
        start_over(run, self._model_state, self.guard)
        if self._joins_late(visitor):
            return None, self._take_over(order.round, visitor)
        run.history.visits += 1
        run.history.last_visit = order.visit.hash
        merged = self._algorithm.on_arrival(self._model_state.weights(), visitor.incoming)
        if merged is not None:
            self._merge(order.round, visitor, merged)
        return visitor, None

    def _joins_late(self, visitor: Visitor) -> bool:
        """Nothing behind this site, or so little beside its first visitor that averaging would only harm."""
        history = self._run.history
        if not self._algorithm.takes_over:
            return False
        young = history.visits == 0 and LATE_JOINER_RATIO * history.steps <= visitor.order.steps
        return history.round == 0 or young

    def _take_over(self, round: int, visitor: Visitor) -> protocol.VisitDone:
        """A late joiner starts from the first model that comes.

        Steps are what the other site says. One that has trained lets the guard judge this visit, too, and
        counts it, or the next claim would be believed outright again.
        """
        history = self._run.history
        self.guard.forget()
        if history.round > 0:
            self.guard.before_merge(visitor.order.hash, visitor.order.frm, round)
            for merge in self.guard.pending:  # this one alone, if anything can be judged
                merge.known = self._global_model.private_state()
            history.visits += 1
        self._model_state.become(visitor.incoming)
        self._global_model.became(visitor.incoming)
        history.steps = min(visitor.order.steps, MAX_CLAIMED_COUNT)
        history.ahead = self._ahead_of(visitor, round)
        history.last_visit = visitor.order.hash
        visitor.outcome, visitor.reason = "merged", TAKEN_OVER
        self._exchanged(round)
        return visitor.result()

    def _exchanged(self, round: int) -> None:
        if self._run.history.first_exchange is None:
            self._run.history.first_exchange = round

    def _ahead_of(self, visitor: Visitor, round: int) -> int:
        """The model that is taken over brings its round: the present one is the next. What its sender says of
        it ends the training here at the earliest with this round."""
        ahead = max(0, min(visitor.order.round, MAX_CLAIMED_COUNT) + 1 - round)
        budget = self._run.settings.training.rounds
        return ahead if budget is None else min(ahead, max(0, budget - round))

    # ------------------------------------------------------------ judgement

    def judgement(self, round: int) -> Merge | None:
        """The merge that has just been undone after the steps of `round`, or None."""
        merge = self.guard.judge(round)
        if merge is not None:
            self._undo(merge)
        return merge

    def undo_not_finite(self) -> Merge | None:
        """Weights that are not finite go back to before the last merge, if that is not judged yet."""
        if not self.guard.pending or all_finite(self._model_state.weights()):
            return None
        merge = self.guard.pending[-1]
        self._undo(merge)
        return merge

    def _undo(self, merge: Merge) -> None:
        history = self._run.history
        self._model_state.restore(merge.snapshot)
        if merge.known:
            self._global_model.load_private(merge.known)
        history.steps, history.own_steps, history.ahead = merge.steps, merge.own_steps, merge.ahead
        history.reverted = (merge.hash, merge.frm)
        # The average is as it was, too, and holds these weights already.
        history.averaged, history.in_average = True, False
        self.guard.undone(merge)

    def _merge(self, round: int, visitor: Visitor, weights: Weights) -> None:
        """Take the algorithm's weights, unless this is the last round."""
        if self._run.is_last(round):
            visitor.reason = LAST_ROUND
            return
        self.guard.before_merge(visitor.order.hash, visitor.order.frm, round)
        self._model_state.model.load_state_dict(dict(weights), strict=False)
        visitor.outcome = "merged"
        self._exchanged(round)
        history = self._run.history
        history.steps = max(history.steps, min(visitor.order.steps, MAX_CLAIMED_COUNT))
