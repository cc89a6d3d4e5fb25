"""Whom a site takes in: a visitor arrives, trains beside the local model, leaves, and its merge is judged.

Nothing is merged in the last round: it would be neither trained nor judged.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from gossipseg.algos.base import Algorithm, Weights
from gossipseg.errors import PeerRefused
from gossipseg.learn import protocol
from gossipseg.learn.deploy.peer_ensemble import PeerEnsemble
from gossipseg.learn.engine.model_state import ModelState
from gossipseg.learn.engine.run_state import RunState
from gossipseg.learn.exchange.admission import Admission
from gossipseg.learn.exchange.guard import WINDOW, Guard, Merge, start_over
from gossipseg.learn.exchange.norm_recalibration import BATCHES, reestimate
from gossipseg.learn.exchange.visit import Visitor, admit, dress, seat
from gossipseg.learn.exchange.wire_format import all_finite
from gossipseg.learn.params import MAX_CLAIMED_COUNT
from gossipseg.nets.segmenter import Segmenter

LATE_JOINER_RATIO = 20
"""A site takes its first visitor's model over when that has this many times its own steps behind it."""

LAST_ROUND = "last_round"
"""Why a model is kept out that would be neither trained nor judged."""

DETAIL_CHARACTERS = 300
"""Longest text about a refused model, in characters: names in it may be the sender's."""


def rounds_kept(algorithm: Algorithm) -> int:
    """How many rounds' weights the guard needs of a site (ModelState.recent)."""
    return WINDOW if algorithm.exchanges and (algorithm.averages or algorithm.takes_over) else 0


class Reception:
    """The present visitor's fate, and the guard over merges that are not judged yet."""

    def __init__(
        self,
        run: RunState,
        algorithm: Algorithm,
        model_state: ModelState,
        admission: Admission,
        ensemble: PeerEnsemble | None = None,
    ) -> None:
        """`ensemble`: holds the models that come, to predict with."""
        self._run, self._algorithm, self._model_state, self._admission = (
            run,
            algorithm,
            model_state,
            admission,
        )
        self._ensemble = ensemble
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
        if self._ensemble is not None:
            self._ensemble.take_in(order.visit.frm, order.visit.hash, self._dressed(order.round, visitor))
        if self._joins_late(visitor):
            return None, self._take_over(order.round, visitor)
        self._greet(order.round, visitor)
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
            history.visits += 1
        self._model_state.become(visitor.incoming)
        history.steps = min(visitor.order.steps, MAX_CLAIMED_COUNT)
        history.ahead = self._ahead_of(visitor, round)
        history.last_visit = visitor.order.hash
        visitor.outcome, visitor.reason = "merged", "taken_over"
        return visitor.result()

    def _ahead_of(self, visitor: Visitor, round: int) -> int:
        """The model that is taken over brings its round: the present one is the next. What its sender says of
        it ends the training here at the earliest with this round."""
        ahead = max(0, min(visitor.order.round, MAX_CLAIMED_COUNT) + 1 - round)
        budget = self._run.settings.training.rounds
        return ahead if budget is None else min(ahead, max(0, budget - round))

    def _greet(self, round: int, visitor: Visitor) -> None:
        """Let the algorithm merge on arrival, seat the visitor where it trains."""
        merged = self._algorithm.on_arrival(self._model_state.weights(), visitor.incoming)
        if merged is not None:
            self._merge(round, visitor, merged)
        if self._algorithm.trains_visitor:
            seat(visitor, self._model_state.model, self._run.settings.training, self._run.compute)

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
        history.steps, history.own_steps, history.ahead = merge.steps, merge.own_steps, merge.ahead
        history.reverted = (merge.hash, merge.frm)
        # The average is as it was, too, and holds these weights already.
        history.averaged, history.in_average = True, False
        self.guard.undone(merge)
        if self._ensemble is not None:
            self._ensemble.let_go(merge.frm, merge.hash)

    # ------------------------------------------------------------ departure

    def leave(self, visitor: Visitor) -> None:
        """Its steps are over. One that was sent away is not held to predict with."""
        self._run.history.visits += 1
        self._run.history.last_visit = visitor.order.hash
        if self._ensemble is not None and not visitor.stays:
            self._ensemble.let_go(visitor.order.frm, visitor.order.hash)

    def departure(self, round: int, visitor: Visitor, undone: Merge | None) -> protocol.VisitDone:
        """Let the algorithm merge. A visitor that trained beside a model now undone is kept out."""
        if visitor.stays and undone is None:
            self._part(round, visitor)
        elif visitor.stays and undone is not None and undone.hash != visitor.order.hash:
            visitor.outcome, visitor.reason = "kept_out", "earlier_visit_reverted"
        if self._ensemble is not None and visitor.stays:
            self._note_held(visitor, self._ensemble)
        return visitor.result()

    def _note_held(self, visitor: Visitor, ensemble: PeerEnsemble) -> None:
        """Say "held" of a model that was kept out and is held to predict with."""
        if visitor.outcome == "kept_out" and ensemble.holds(visitor.order.frm, visitor.order.hash):
            visitor.outcome = "held"

    def _part(self, round: int, visitor: Visitor) -> None:
        weights = self._algorithm.on_departure(self._model_state.weights(), visitor.weights(self._algorithm))
        if weights is not None:
            self._merge(round, visitor, weights)

    def _dressed(self, round: int, visitor: Visitor) -> Segmenter:
        """The model as it came, ready to predict on this site's images."""
        model = dress(visitor, self._model_state.model)
        reestimate(model, lambda: self._unseen_images(round), self._run.compute)
        return model

    def _unseen_images(self, round: int) -> Iterator[Tensor]:
        """Batches of this round beyond those it trains on: for batch norm's statistics."""
        first = self._run.settings.training.steps_per_round
        for _, batch in self._run.site.batches(round, first, first + BATCHES):
            self._run.gate()
            yield batch["image"]

    def _merge(self, round: int, visitor: Visitor, weights: Weights) -> None:
        """Take the algorithm's weights, unless this is the last round."""
        if self._run.is_last(round):
            visitor.reason = LAST_ROUND
            return
        self.guard.before_merge(visitor.order.hash, visitor.order.frm, round)
        self._model_state.model.load_state_dict(dict(weights), strict=False)
        visitor.outcome = "merged"
        history = self._run.history
        history.steps = max(history.steps, min(visitor.order.steps, MAX_CLAIMED_COUNT))
