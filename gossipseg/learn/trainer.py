"""The trainer: rounds of one site, with or without a visitor, and all that must survive between them.

What belongs here: the order of events in a round.
What must not: the step (step.py), sockets, checkpoint files, anything an algorithm decides.

    start     under a coordinator, the common model replaces the tensors that travel
    arrival   an incoming model is checked; a site with no round behind it takes it over outright
    steps     E steps, both models on identical batches where the algorithm trains the visitor
    judgement the guard undoes an earlier visit that did harm
    departure the algorithm may merge; what is merged here is judged after the next round's steps
    close     EMA, validation, export

A local round can be interrupted between any two steps or validation cases and goes on from there; a round
with a visitor starts again from its beginning, because the visitor is not kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gossipseg.algos import registry as algorithms
from gossipseg.algos.base import Moment, Role, StepContext, Weights
from gossipseg.errors import ConfigError, DiskFull, LocalError, PeerRefused
from gossipseg.learn import jobs
from gossipseg.learn.admission import Admission, Examination
from gossipseg.learn.aggregate import aggregate
from gossipseg.learn.common import CommonModels, everything, frozen
from gossipseg.learn.dp import FILE as ACCOUNT
from gossipseg.learn.dp import PrivateTraining, check_network
from gossipseg.learn.evaluate import Scores
from gossipseg.learn.guard import Guard, harmful
from gossipseg.learn.history import History, Pace, Tally
from gossipseg.learn.losses import make_target, segmentation_loss
from gossipseg.learn.model import build_model
from gossipseg.learn.normstats import BATCHES, reestimate
from gossipseg.learn.optim import learning_rate, set_learning_rate, step_seed
from gossipseg.learn.params import MOST, SplitName
from gossipseg.learn.site import SiteContext
from gossipseg.learn.step import Learner, StepResult, private_step, train_step
from gossipseg.learn.student import Student, cpu_copy
from gossipseg.learn.visit import Visitor, admit, dress, seat
from gossipseg.learn.weights import all_finite, content_hash, export_wire, wire_schema
from gossipseg.nets import registry as networks

Report = Callable[[Callable[[], jobs.Progress], jobs.Activity], None]
"""Takes a maker of Progress, and calls it only when it is time for another one, or the activity is new."""

Gate = Callable[[], None]
"""Called between steps and between cases: holds while paused, raises when the worker shall stop."""


LATE_JOINER_RATIO = 20
"""A site takes its first visitor's model over when that has so many times its own steps behind it."""

DETAIL_CHARACTERS = 300
"""Of what is told of a refused model: names in it may be the sender's."""


class Trainer:
    """One site's training model W, its optimizer, its EMA, and where they stand."""

    def __init__(self, site: SiteContext, report: Report, gate: Gate) -> None:
        self.site, self._report, self._gate = site, report, gate
        self.setup, self.compute = site.setup, site.compute
        model = build_model(self.setup)
        self.algorithm = algorithms.build(
            self.setup.algorithm, networks.norm_parameter_names(model), networks.private_names(model)
        )
        self.network_signature = networks.network_signature(model, self.algorithm.is_shared)
        self.initial_hash = content_hash(model.state_dict(), self.algorithm.is_shared)
        self.student = Student(model, self.setup, self.compute, has_personal=self.algorithm.has_personal)
        self.admission = Admission(self.setup.admission)
        self.common = CommonModels(
            self.algorithm, self.student, self.setup.spec, self.admission, self.setup.privacy
        )
        self.private = self._private_training()
        self.history, self.tally = History(), Tally()
        self.guard: Guard | None = None
        self.resumable = True
        """Whether the present position, perhaps within a round, may be checkpointed."""
        self._last_scores: list[float | None] = []
        self._best: dict[str, Tensor] | None = None
        self._resident: Visitor | None = None
        """A visitor that trains on beside the local model in rounds without another one. Not kept across a
        restart: such a round then goes on, or starts again, without it."""
        self._segmentation_loss = segmentation_loss(self.setup.training, self.setup.task.spatial_dims)

    def _private_training(self) -> PrivateTraining | None:
        setup, privacy = self.setup, self.setup.privacy
        if privacy.dp is None:
            return None
        check_network(self.student.model, self.compute)
        cases, file = self.site.cases, Path(setup.spec.state_dir) / ACCOUNT
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        return PrivateTraining(
            privacy.dp, privacy.seed, setup.spec.site, cases, setup.training.batch_size, file
        )

    @property
    def schema(self) -> jobs.WireSchema:
        """What travels."""
        return wire_schema(self.student.weights(), self.algorithm.is_shared, self.setup.spec.wire_dtype)

    @property
    def update_schema(self) -> jobs.WireSchema:
        """What goes to a coordinator; empty where the algorithm has none."""
        if self.setup.algorithm.exchange != "rounds":
            return {}
        return wire_schema(self.common.update(), everything, self.setup.spec.wire_dtype)

    def aggregate(
        self, order: jobs.Aggregate, on_tensor: Callable[[], None] = lambda: None
    ) -> jobs.AggregateDone:
        """The coordinator's work, between two rounds of this site's own. Raises LocalError, DiskFull."""
        spec = self.setup.spec
        outbox = Path(spec.state_dir) / "outbox"
        own = self.student.weights()

        def examine(site: str) -> Examination | None:
            return None if site == spec.site else self.admission.against(own)

        return aggregate(
            order, self.algorithm, self.update_schema, spec.wire_dtype, outbox, on_tensor, examine
        )

    # ------------------------------------------------------------ a round

    def run_round(self, order: jobs.StartRound) -> jobs.RoundDone:
        """Complete round `order.round`. Raises what the gate raises; then `resumable` says what is left."""
        if order.round != self.history.round + 1:
            raise LocalError(
                f"asked for round {order.round}; the model stands at the end of round {self.history.round}. "
                "The daemon and its worker disagree; restart the daemon."
            )
        started = time.perf_counter()
        trouble = self._start(order)
        visitor, visit = self._arrival(order)
        partner = visitor or self._resident_partner()
        with frozen(self.student.learner, self.algorithm, self._moment(order, 0)):
            if self.private is None:
                self._steps(order, partner)
            else:
                trouble = _join(trouble, self._private_steps(order, self.private))
        undone = self._judgement(order.round)
        if visitor is not None:
            visit = self._departure(order.round, visitor, undone)
        self._keep_resident(order.round, partner, undone)
        scores = self._close(order)
        export, warning = self._export(order) if order.export else (None, "")
        done = self._done(order, scores, started)
        done["beside"] = partner.order.frm if partner is not None and partner.learner is not None else None
        done |= {"export": export, "visit": visit, "warning": _join(trouble, self._skips(), warning)}
        if self.history.reverted is not None:
            done["reverted"], done["reverted_frm"] = self.history.reverted
        self._end_round(order.round)
        return jobs.RoundDone(**done)

    def _done(self, order: jobs.StartRound, scores: Scores | None, started: float) -> dict[str, Any]:
        loss, terms = self.tally.means()
        return {
            "round": order.round,
            "steps": self.history.steps,
            "own_steps": self.history.own_steps,
            "loss": loss,
            "terms": terms,
            "dice_val": scores.mean if scores else None,
            "dice_val_local": list(scores.per_class.values()) if scores else None,
            "seconds": time.perf_counter() - started,
            "dice_test": self.history.dice_test,
            "dice_test_start": self.history.dice_test_start,
            "spent": self.private.spent if self.private is not None else None,
        }

    def _skips(self) -> str:
        if not self.tally.skipped:
            return ""
        return f"{self.tally.skipped} training steps were skipped: their loss or gradient was not finite"

    def _end_round(self, round: int) -> None:
        self.history.round, self.history.step, self.history.averaged = round, 0, False
        self.history.reverted = None
        self.tally = Tally()
        self.resumable = True

    # ------------------------------------------------------------ start

    def _start(self, order: jobs.StartRound) -> str:
        """Take the common model in, unless that was done before an interruption; what went wrong, or ""."""
        common = order.start_from
        if common is None or common.hash == self.history.last_global:
            return ""
        self.history.step, self.history.averaged, self.tally = 0, False, Tally()
        trouble = self.common.begin(common, settling_in=order.settling_in)
        self.history.last_global = common.hash
        if order.settling_in:
            self.history.settling_round = order.round
        return trouble

    def _moment(self, order: jobs.StartRound, step: int) -> Moment:
        total = self.setup.training.steps_per_round
        # After an interruption the rest of the round is ordered as any other: its model is taken in already.
        settling_in = order.settling_in or self.history.settling_round == order.round
        return Moment(order.round, step, total, order.finetuning, settling_in)

    # ------------------------------------------------------------ arrival

    def _arrival(self, order: jobs.StartRound) -> tuple[Visitor | None, jobs.VisitDone | None]:
        """The admitted visitor, or what became of the one that may not stay."""
        if order.visit is None:
            return None, None
        try:
            visitor = admit(
                order.visit,
                self.student.model,
                self.algorithm,
                self.setup.spec.wire_dtype,
                self.compute,
                self.admission,
            )
        except PeerRefused as e:
            self.history.last_visit = order.visit.hash
            detail = e.detail[:DETAIL_CHARACTERS]
            return None, jobs.VisitDone(order.visit.hash, "refused", e.reason, detail, order.visit.frm)
        self.resumable = False
        self.history.step, self.history.averaged, self.tally = 0, False, Tally()
        if self._joins_late(visitor):
            return None, self._take_over(order.round, visitor)
        self._greet(order.round, visitor)
        return visitor, None

    def _joins_late(self, visitor: Visitor) -> bool:
        """Nothing behind this site, or so little beside its first visitor that averaging would only harm."""
        young = self.history.visits == 0 and LATE_JOINER_RATIO * self.history.steps <= visitor.order.steps
        return self.history.round == 0 or young

    def _take_over(self, round: int, visitor: Visitor) -> jobs.VisitDone:
        """A late joiner starts from the first model that comes.

        Steps are what the other site says. One that has trained lets the guard judge this visit, too, and
        counts it, or the next claim would be believed outright again.
        """
        self.guard = None
        if self.history.round > 0:
            self.guard = self._open_guard(visitor, round, self._case_scores(round))
            self.history.visits += 1
        self.student.become(visitor.incoming)
        self.history.steps = min(visitor.order.steps, MOST)
        self.history.last_visit = visitor.order.hash
        visitor.outcome, visitor.reason = "merged", "taken_over"
        return visitor.result()

    def _greet(self, round: int, visitor: Visitor) -> None:
        """Open the guard, let the algorithm merge on arrival, seat the visitor where it trains."""
        if self.guard is None:
            judged = round + 1 if self.algorithm.trains_visitor else round
            self.guard = self._open_guard(visitor, judged, self._case_scores(round))
        merged = self.algorithm.on_arrival(self.student.weights(), visitor.incoming)
        if merged is not None:
            self._merge(visitor, merged)
        if self.algorithm.trains_visitor:
            seat(visitor, self.student.model, self.setup.training, self.compute)

    def _resident_partner(self) -> Visitor | None:
        """The resident of an earlier visit, while its time is not over and no newer one was let in."""
        partner = self._resident
        if partner is None:
            return None
        self.resumable = False
        self.history.step, self.history.averaged, self.tally = 0, False, Tally()
        return partner

    def _keep_resident(self, round: int, partner: Visitor | None, undone: Guard | None) -> None:
        """Let a partner stay for the next round, unless its time is over or its visit was undone."""
        self._resident = None
        if partner is None or partner.learner is None or undone is not None or not partner.stays:
            return
        partner.rounds += 1
        if partner.rounds < self.algorithm.resident_rounds:
            self._resident = partner

    def _merge(self, visitor: Visitor, weights: Weights) -> None:
        self.student.model.load_state_dict(dict(weights), strict=False)
        visitor.outcome = "merged"
        self.history.steps = max(self.history.steps, min(visitor.order.steps, MOST))

    # ------------------------------------------------------------ steps

    def _steps(self, order: jobs.StartRound, visitor: Visitor | None) -> None:
        pace, round = Pace(), order.round
        activity: jobs.Activity = "training" if visitor is None else "visit"
        for step, batch in self.site.batches(round, self.history.step, self.setup.training.steps_per_round):
            self._gate()
            result = self._step(self._moment(order, step), batch, visitor)
            skipped = bool(result.skipped)
            if "local" in result.skipped:
                self.tally.skipped += 1
            else:
                self.tally.add(result.loss, result.terms)
            if visitor is not None and visitor.learner is not None:
                visitor.note_step(skipped)
            self._count_step()
            pace.tick()
            self._report(lambda: self._training_progress(round, pace, activity, visitor), activity)
        self._gate()

    def _count_step(self) -> None:
        self.history.step += 1
        self.history.steps += 1
        self.history.own_steps += 1

    def _step(self, moment: Moment, batch: Mapping[str, Tensor], visitor: Visitor | None) -> StepResult:
        training, spec = self.setup.training, self.setup.spec
        round, step = moment.round, moment.step
        learners: dict[Role, Learner] = {"local": self.student.learner}
        if self.student.personal is not None:
            learners["personal"] = self.student.personal
        if visitor is not None and visitor.learner is not None:
            learners["incoming"] = visitor.learner
        context = self._context(moment, learners)
        torch.manual_seed(step_seed(spec.seed, spec.site, round, step))
        return train_step(
            learners,
            batch["image"],
            self._target(batch),
            self.algorithm,
            context,
            self.compute,
            training.clip_grad_norm,
        )

    def _private_steps(self, order: jobs.StartRound, private: PrivateTraining) -> str:
        """The same with differential privacy; why fewer steps were taken than a round has, or "".

        No visitor trains here: the settings allow no algorithm that would let it.
        """
        pace, round, before = Pace(), order.round, self.history.step
        allowed, trouble = private.begin(self.setup.training.steps_per_round - before)
        try:
            while self.history.step < before + allowed:
                self._gate()
                result = self._private_step(self._moment(order, self.history.step), private)
                if result is not None:
                    self.tally.add(result.loss, result.terms)
                self._count_step()
                pace.tick()
                self._report(lambda: self._training_progress(round, pace, "training", None), "training")
            self._gate()
        finally:
            private.settle(self.history.step - before)
        return trouble

    def _private_step(self, moment: Moment, private: PrivateTraining) -> StepResult | None:
        learner, round, step = self.student.learner, moment.round, moment.step
        context = self._context(moment, {"local": learner})
        drawn = private.draw(round, step)
        batches = ((self.site.case(index, rng), seed) for index, rng, seed in drawn)
        cases = ((batch["image"], self._target(batch), seed) for batch, seed in batches)
        optimizer = private.optimizer(learner.optimizer, round, step)
        return private_step(learner, cases, self.algorithm, context, self.compute, optimizer)

    def _target(self, batch: Mapping[str, Tensor]) -> Tensor:
        return make_target(batch["label"], self.setup.training.output, len(self.setup.task.labels))

    def _context(self, moment: Moment, learners: Mapping[Role, Learner]) -> StepContext:
        """What the losses of a step may know; the models are made ready to train."""
        training, spec = self.setup.training, self.setup.spec
        round, step = moment.round, moment.step
        for learner in learners.values():
            learner.model.train()
            set_learning_rate(learner.optimizer, learning_rate(training, round, step))
        return StepContext(
            training.output,
            self.history.visits,
            self._segmentation_loss,
            {role: dict(learner.model.named_parameters()) for role, learner in learners.items()},
            self.common.anchor,
            moment,
            step_seed(spec.seed, f"{spec.site}/noise", round, step),
        )

    def _training_progress(
        self, round: int, pace: Pace, activity: jobs.Activity, visitor: Visitor | None
    ) -> jobs.Progress:
        total = self.setup.training.steps_per_round
        loss = self.tally.last_loss
        return jobs.Progress(
            round,
            self.history.step,
            total,
            activity,
            self.history.step / total,
            None if loss is None else float(loss),
            pace.steps_per_s,
            visitor.order.frm if visitor is not None else None,
        )

    # ------------------------------------------------------------ judgement

    def _judgement(self, round: int) -> Guard | None:
        """The guard whose visit has just been undone, or None."""
        guard = self.guard
        if guard is None or guard.judge_round > round:
            return None
        bad = not all_finite(self.student.weights())
        if not bad:
            self._last_scores = self._case_scores(round)
            bad = harmful(guard.before, self._last_scores, self.setup.training.guard_drop)
        # Only now: the worker may be stopped while it scores, and the visit is then still to be judged.
        self.guard = None
        if not bad:
            return None
        self.student.restore(guard.snapshot)
        self.history.steps = guard.steps
        self.history.own_steps = guard.steps if guard.own_steps is None else guard.own_steps
        self.history.reverted = (guard.hash, guard.frm)
        return guard

    def _open_guard(self, visitor: Visitor, judge_round: int, before: list[float | None]) -> Guard:
        hash, frm = visitor.order.hash, visitor.order.frm
        history, snapshot = self.history, self.student.snapshot()
        return Guard(hash, frm, judge_round, before, history.steps, snapshot, history.own_steps)

    def _case_scores(self, round: int) -> list[float | None]:
        """Validation Dice of the training model, by case."""
        return [case.mean for case in self._score(self.student.model, "validation", round).per_case]

    # ------------------------------------------------------------ departure

    def _departure(self, round: int, visitor: Visitor, undone: Guard | None) -> jobs.VisitDone:
        """Let the algorithm merge. A visitor that trained beside a model now undone is kept out."""
        self.history.visits += 1
        self.history.last_visit = visitor.order.hash
        if visitor.stays and undone is None:
            self._part(round, visitor)
        elif visitor.stays and undone is not None and undone.hash != visitor.order.hash:
            visitor.outcome, visitor.reason = "kept_out", "earlier_visit_reverted"
        return visitor.result()

    def _part(self, round: int, visitor: Visitor) -> None:
        incoming = visitor.weights(self.algorithm)
        weights = self.algorithm.on_departure(
            self.student.weights(), incoming, lambda role: self._role_score(role, visitor, round)
        )
        if self.guard is None and (weights is not None or self.algorithm.trains_visitor):
            # An earlier visit was judged in this very round: its scores are this visit's "before".
            self.guard = self._open_guard(visitor, round + 1, self._last_scores)
        if weights is None:
            return
        self._merge(visitor, weights)
        if self.algorithm.replaces_on_merge:
            self.student.forget_direction()

    def _role_score(self, role: Role, visitor: Visitor, round: int) -> float:
        model = self.student.model
        if role == "incoming":
            model = visitor.learner.model if visitor.learner is not None else dress(visitor, model)
            reestimate(model, lambda: self._unseen_images(round), self.compute)
        mean = self._score(model, "validation", round).mean
        return float("nan") if mean is None else mean

    def _unseen_images(self, round: int) -> Iterator[Tensor]:
        """Batches of this round beyond those it trains on: for batch norm's statistics."""
        first = self.setup.training.steps_per_round
        for _, batch in self.site.batches(round, first, first + BATCHES):
            self._gate()
            yield batch["image"]

    # ------------------------------------------------------------ close

    def _close(self, order: jobs.StartRound) -> Scores | None:
        """EMA, then its validation where it is due, and the test split after the last round."""
        round = order.round
        picks = order.finetuning and self.algorithm.keeps_best_finetuned
        if not self.history.averaged:
            self.admission.note_own(self.student.deployed.state_dict(), self.student.ema.state_dict())
            self.student.update_ema()
            self.history.averaged = True
        last = round == self.setup.spec.rounds
        due = last or picks or round % max(1, self.setup.training.validate_every_rounds) == 0
        scores = self._score(self.student.ema, "validation", round) if due else None
        if picks and scores is not None:
            self._pick(scores.mean, last)
        elif not order.finetuning:  # an earlier budget's best is nothing to go back to
            self._best, self.history.best_finetuned = None, None
        if last and self.setup.spec.report_test:
            self.history.dice_test = self._score(self.student.ema, "test", round).mean
        if scores is not None:
            self.history.dice_val = scores.mean
            self.history.dice_history.append((round, scores.mean))
        return scores

    def _pick(self, dice: float | None, last: bool) -> None:
        """Keep the deployment model of the best fine-tuning round; deploy it after the last one.

        Without a validation score the last one is as good as any.
        """
        best = self.history.best_finetuned
        if self._best is None or best is None or (dice is not None and dice > best):
            self._best, self.history.best_finetuned = cpu_copy(self.student.ema.state_dict()), dice
        if last:
            self.student.ema.load_state_dict(self._best)

    def score_test_at_start(self, on_progress: Callable[[str, float], None]) -> None:
        """The test split before the first round (kept in the checkpoint)."""
        scores = self.site.score(self.student.ema, "test", lambda fraction: on_progress("testing", fraction))
        self.history.dice_test_start = scores.mean

    def _score(self, model: nn.Module, split: SplitName, round: int) -> Scores:
        activity: jobs.Activity = "test" if split == "test" else "validation"

        def on_progress(fraction: float) -> None:
            self._gate()
            step, total = self.history.step, self.setup.training.steps_per_round
            self._report(lambda: jobs.Progress(round, step, total, activity, fraction), activity)

        return self.site.score(model, split, on_progress)

    def _export(self, order: jobs.StartRound) -> tuple[jobs.Export | None, str]:
        """Write the wire file; without it the round still counts."""
        spec, history = self.setup.spec, self.history
        path = Path(spec.state_dir) / "outbox" / f"round-{order.round}.safetensors"
        metadata = {
            "site": spec.site,
            "round": order.round,
            "steps": history.steps,
            "cases": self.site.cases,
            "dice_val": history.dice_val,
        }
        try:
            export_wire(path, self.common.release(order.round), everything, spec.wire_dtype, metadata)
        except LocalError as e:
            full = "the disk is full: " if isinstance(e, DiskFull) else ""
            return None, f"the model was not exported: {full}{e}"
        return jobs.Export(str(path), self.site.cases, history.steps), ""

    # ------------------------------------------------------------ state

    def state(self) -> dict[str, Any]:
        """All that a checkpoint carries; plain values and CPU tensors."""
        schedule = {"kind": self.setup.training.schedule, "rounds": self.setup.training.schedule_rounds}
        rng: dict[str, Any] = {"torch": torch.get_rng_state()}
        if self.compute.device.type == "cuda":
            rng["cuda"] = torch.cuda.get_rng_state(self.compute.device)
        guard = self.guard and {field.name: getattr(self.guard, field.name) for field in fields(Guard)}
        return {
            **self.student.snapshot(),
            "history": self.history.state(),
            "tally": self.tally.state(),
            "guard": guard,
            "schedule": schedule,
            "rng": rng,
            "anchor": cpu_copy(self.common.anchor),
            "best": self._best,
            "admission": self.admission.state(),
            "released": self.common.private_state(),
            "spent": self.private.state() if self.private is not None else None,
        }

    def _go_on_in_private(self, private: PrivateTraining, state: Mapping[str, Any]) -> None:
        """Take the account over. Raises ConfigError for a model that learned from its cases without one."""
        if state.get("spent") is None and (self.history.round or self.history.step):
            raise ConfigError(
                "this site's checkpoint was trained without it: its epsilon is beyond all numbers",
                key="privacy.dp",
                remedy=f"Start afresh: give the site another state_dir, or move {self.setup.spec.state_dir} "
                "away. Or remove privacy.dp.",
            )
        private.load(state.get("spent"))

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from what state() gave, perhaps on another device."""
        self.student.restore(state)
        self.history = History.of(state["history"])
        self.tally.load(state["tally"])
        self.guard = Guard(**state["guard"]) if state["guard"] is not None else None
        self.common.set_anchor(state.get("anchor", {}))
        self._best = state.get("best")
        self.admission.load(state.get("admission"))
        self.common.load_private(state.get("released"))
        if self.private is not None:
            self._go_on_in_private(self.private, state)
        torch.set_rng_state(state["rng"]["torch"])
        if self.compute.device.type == "cuda" and "cuda" in state["rng"]:
            torch.cuda.set_rng_state(state["rng"]["cuda"], self.compute.device)


def _join(*parts: str) -> str:
    return "; ".join(part for part in parts if part)
