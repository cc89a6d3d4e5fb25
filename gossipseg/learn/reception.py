"""Whom a site takes in: a visitor arrives, trains beside the local model, leaves, and is judged after.

What belongs here: the order of a visit's events, residents, and the guard over the last visit. What must
not: the visitor itself (visit.py), the steps it trains for (steps.py), the comparison of scores (guard.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

from torch import Tensor

from gossipseg.algos.base import Algorithm, Role, Weights
from gossipseg.errors import PeerRefused
from gossipseg.learn import jobs
from gossipseg.learn.admission import Admission
from gossipseg.learn.closing import start_over
from gossipseg.learn.guard import Guard, harmful
from gossipseg.learn.normstats import BATCHES, reestimate
from gossipseg.learn.params import MOST
from gossipseg.learn.peer_ensemble import PeerEnsemble
from gossipseg.learn.run import Run
from gossipseg.learn.student import Student
from gossipseg.learn.visit import Visitor, admit, dress, seat
from gossipseg.learn.weights import all_finite
from gossipseg.nets.segmenter import Segmenter

LATE_JOINER_RATIO = 20
"""A site takes its first visitor's model over when that has so many times its own steps behind it."""

DETAIL_CHARACTERS = 300
"""Of what is told of a refused model: names in it may be the sender's."""


class Reception:
    """The present visitor's fate, the resident, and the guard over a visit that is not judged yet."""

    def __init__(
        self,
        run: Run,
        algorithm: Algorithm,
        student: Student,
        admission: Admission,
        ensemble: PeerEnsemble | None = None,
    ) -> None:
        """`ensemble`: holds the models that come, to predict with."""
        self._run, self._algorithm, self._student, self._admission = run, algorithm, student, admission
        self._ensemble = ensemble
        self.guard: Guard | None = None
        self._last_scores: list[float | None] = []
        self._resident: Visitor | None = None
        """A visitor that trains on beside the local model in rounds without another one. Not kept across a
        restart: such a round then goes on, or starts again, without it."""

    # ------------------------------------------------------------ arrival

    def arrival(self, order: jobs.StartRound) -> tuple[Visitor | None, jobs.VisitDone | None]:
        """The admitted visitor, or what became of the one that may not stay."""
        if order.visit is None:
            return None, None
        run = self._run
        try:
            visitor = admit(
                order.visit,
                self._student.model,
                self._algorithm,
                run.setup.spec.wire_dtype,
                run.compute,
                self._admission,
            )
        except PeerRefused as e:
            run.history.last_visit = order.visit.hash
            detail = e.detail[:DETAIL_CHARACTERS]
            return None, jobs.VisitDone(order.visit.hash, "refused", e.reason, detail, order.visit.frm)
        run.resumable = False
        start_over(run, self._student)
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

    def _take_over(self, round: int, visitor: Visitor) -> jobs.VisitDone:
        """A late joiner starts from the first model that comes.

        Steps are what the other site says. One that has trained lets the guard judge this visit, too, and
        counts it, or the next claim would be believed outright again.
        """
        history = self._run.history
        self.guard = None
        if history.round > 0:
            self.guard = self._open_guard(visitor, round, self._case_scores(round))
            history.visits += 1
        self._student.become(visitor.incoming)
        history.steps = min(visitor.order.steps, MOST)
        history.last_visit = visitor.order.hash
        visitor.outcome, visitor.reason = "merged", "taken_over"
        return visitor.result()

    def _greet(self, round: int, visitor: Visitor) -> None:
        """Open the guard, let the algorithm merge on arrival, seat the visitor where it trains."""
        merged = self._algorithm.on_arrival(self._student.weights(), visitor.incoming)
        if self.guard is None and (merged is not None or self._algorithm.trains_visitor):
            judged = round + 1 if self._algorithm.trains_visitor else round
            self.guard = self._open_guard(visitor, judged, self._case_scores(round))
        if merged is not None:
            self._merge(visitor, merged)
        if self._algorithm.trains_visitor:
            seat(visitor, self._student.model, self._run.setup.training, self._run.compute)

    # ------------------------------------------------------------ residents

    def resident_partner(self) -> Visitor | None:
        """The resident of an earlier visit, while its time is not over and no newer one was let in."""
        partner = self._resident
        if partner is None:
            return None
        self._run.resumable = False
        start_over(self._run, self._student)
        return partner

    def keep_resident(self, partner: Visitor | None, undone: Guard | None) -> None:
        """Let a partner stay for the next round, unless its time is over or its visit was undone."""
        self._resident = None
        if partner is None or partner.learner is None or undone is not None or not partner.stays:
            return
        partner.rounds += 1
        if partner.rounds < self._algorithm.resident_rounds:
            self._resident = partner

    # ------------------------------------------------------------ judgement

    def judgement(self, round: int) -> Guard | None:
        """The guard whose visit has just been undone, or None."""
        guard, history = self.guard, self._run.history
        if guard is None or guard.judge_round > round:
            return None
        bad = not all_finite(self._student.weights())
        if not bad:
            self._last_scores = self._case_scores(round)
            bad = harmful(guard.before, self._last_scores, self._run.setup.training.guard_drop)
        # Only now: the worker may be stopped while it scores, and the visit is then still to be judged.
        self.guard = None
        if not bad:
            return None
        self._student.restore(guard.snapshot)
        history.steps = guard.steps
        history.own_steps = guard.steps if guard.own_steps is None else guard.own_steps
        history.reverted = (guard.hash, guard.frm)
        if self._ensemble is not None:
            self._ensemble.let_go(guard.frm, guard.hash)
        return guard

    def _open_guard(self, visitor: Visitor, judge_round: int, before: list[float | None]) -> Guard:
        hash, frm = visitor.order.hash, visitor.order.frm
        history, snapshot = self._run.history, self._student.snapshot()
        return Guard(hash, frm, judge_round, before, history.steps, snapshot, history.own_steps)

    def _case_scores(self, round: int) -> list[float | None]:
        """Validation Dice of the training model, by case."""
        return [case.mean for case in self._run.score(self._student.model, "validation", round).per_case]

    # ------------------------------------------------------------ departure

    def departure(self, round: int, visitor: Visitor, undone: Guard | None) -> jobs.VisitDone:
        """Let the algorithm merge. A visitor that trained beside a model now undone is kept out."""
        self._run.history.visits += 1
        self._run.history.last_visit = visitor.order.hash
        if visitor.stays and undone is None:
            self._part(round, visitor)
        elif visitor.stays and undone is not None and undone.hash != visitor.order.hash:
            visitor.outcome, visitor.reason = "kept_out", "earlier_visit_reverted"
        if self._ensemble is not None:
            self._note_held(visitor, self._ensemble)
        return visitor.result()

    def _note_held(self, visitor: Visitor, ensemble: PeerEnsemble) -> None:
        """A model that was sent away is not held; of one that is, that may be all that became of it."""
        frm, hash = visitor.order.frm, visitor.order.hash
        if not visitor.stays:
            ensemble.let_go(frm, hash)
        elif visitor.outcome == "kept_out" and ensemble.holds(frm, hash):
            visitor.outcome = "held"

    def _part(self, round: int, visitor: Visitor) -> None:
        incoming = visitor.weights(self._algorithm)
        weights = self._algorithm.on_departure(
            self._student.weights(), incoming, lambda role: self._role_score(role, visitor, round)
        )
        if self.guard is None and (weights is not None or self._algorithm.trains_visitor):
            # An earlier visit was judged in this very round: its scores are this visit's "before".
            self.guard = self._open_guard(visitor, round + 1, self._last_scores)
        if weights is None:
            return
        self._merge(visitor, weights)
        if self._algorithm.replaces_on_merge:
            self._student.forget_direction()

    def _role_score(self, role: Role, visitor: Visitor, round: int) -> float:
        model = self._student.model
        if role == "incoming" and visitor.learner is not None:
            model = visitor.learner.model
            reestimate(model, lambda: self._unseen_images(round), self._run.compute)
        elif role == "incoming":
            model = self._dressed(round, visitor)
        mean = self._run.score(model, "validation", round).mean
        return float("nan") if mean is None else mean

    def _dressed(self, round: int, visitor: Visitor) -> Segmenter:
        """The model as it came, ready to predict on this site's images."""
        model = dress(visitor, self._student.model)
        reestimate(model, lambda: self._unseen_images(round), self._run.compute)
        return model

    def _unseen_images(self, round: int) -> Iterator[Tensor]:
        """Batches of this round beyond those it trains on: for batch norm's statistics."""
        first = self._run.setup.training.steps_per_round
        for _, batch in self._run.site.batches(round, first, first + BATCHES):
            self._run.gate()
            yield batch["image"]

    def _merge(self, visitor: Visitor, weights: Weights) -> None:
        self._student.model.load_state_dict(dict(weights), strict=False)
        visitor.outcome = "merged"
        history = self._run.history
        history.steps = max(history.steps, min(visitor.order.steps, MOST))

    # ------------------------------------------------------------ state

    def state(self) -> dict[str, Any] | None:
        """The guard, for a checkpoint."""
        if self.guard is None:
            return None
        return {field.name: getattr(self.guard, field.name) for field in fields(Guard)}

    def load(self, state: Mapping[str, Any] | None) -> None:
        """Go on from what state() gave."""
        self.guard = Guard(**state) if state is not None else None
