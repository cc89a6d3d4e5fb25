"""The trainer: rounds of one site, and all that must survive between them.

    start     under a coordinator, the global model replaces the tensors that travel (global_model.py)
    arrival   a model that came is checked and merged into the shared one; a site with no round behind it
              takes it over outright (reception.py)
    steps     E steps of the shared model and of the personal one, on identical batches (step_loop.py,
              dp_step_loop.py)
    average   the averages take in the site's own training (round_end.py)
    judgement the guard undoes an earlier merge that did harm (reception.py, guard.py)
    close     validation, the choice of what is deployed, export (round_end.py, deploy/prediction.py)

A round can be interrupted between any two steps or validation cases and goes on from there; one in which a
model came in starts again from its beginning, because that model is not kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import nn

from gossipseg.algos import registry as algorithms
from gossipseg.errors import LocalError, PeerRefused
from gossipseg.learn import protocol
from gossipseg.learn.deploy.choice import OWN_MODELS, Mix
from gossipseg.learn.deploy.earlier import of_earlier_version
from gossipseg.learn.deploy.prediction import LEAST_ROUNDS_OF_A_COPY, young
from gossipseg.learn.engine.build import build_model, build_personal, check_features
from gossipseg.learn.engine.dry_run import check_output
from gossipseg.learn.engine.history import History
from gossipseg.learn.engine.model_state import ModelState, cpu_copy
from gossipseg.learn.engine.run_state import Gate, Report, RunState
from gossipseg.learn.engine.site_data import SiteData
from gossipseg.learn.evaluation.evaluate import Scores
from gossipseg.learn.exchange.admission import Admission, Examination
from gossipseg.learn.exchange.aggregate import aggregate
from gossipseg.learn.exchange.global_model import GlobalModel, everything, frozen
from gossipseg.learn.exchange.guard import Guard, Merge, start_over
from gossipseg.learn.exchange.personal_models import PersonalExchange
from gossipseg.learn.exchange.reception import TAKEN_OVER, Reception, rounds_kept
from gossipseg.learn.exchange.swap import Swaps
from gossipseg.learn.exchange.visit import Visitor
from gossipseg.learn.exchange.wire_format import all_finite, content_hash, wire_schema
from gossipseg.learn.settings import WorkerSettings
from gossipseg.learn.training.dp_step_loop import DpStepLoop, open_account
from gossipseg.learn.training.personal import OWN, Personal
from gossipseg.learn.training.round_end import RoundEnd
from gossipseg.learn.training.step_loop import StepLoop
from gossipseg.nets import registry as networks


class Trainer:
    """One site's shared model, the personal one beside it, and where they stand."""

    def __init__(
        self,
        site: SiteData,
        report: Report,
        gate: Gate,
        make_personal: Callable[..., Personal] = Personal,
    ) -> None:
        """`make_personal`: takes what Personal takes."""
        self.run = run = RunState(site, report, gate)
        self.site, self.compute = site, site.compute
        model = build_model(run.settings)
        self.algorithm = algorithm = algorithms.build(
            run.settings.algorithm, networks.norm_parameter_names(model), networks.private_names(model)
        )
        self.network_signature = networks.network_signature(model, algorithm.is_shared)
        self.initial_hash = content_hash(model.state_dict(), algorithm.is_shared)
        self.personal: Personal | None = None
        if run.settings.has_personal:
            check_output(run.settings)
            own = model if run.settings.personal_network is None else build_personal(run.settings)
            self.personal = make_personal(run, own, algorithm=algorithm)
        if algorithm.wants_features:
            check_features(model, self.personal.learner.model if self.personal is not None else model)
        self.model_state = ModelState(
            model,
            run.settings,
            run.compute,
            keeps_rounds=rounds_kept(algorithm, swaps=run.settings.spec.swaps),
        )
        self.admission = Admission(run.settings.admission, averages=algorithm.averages)
        self.global_model = GlobalModel(
            algorithm, self.model_state, run.settings.spec, self.admission, run.settings.privacy
        )
        self.reception = Reception(run, algorithm, self.model_state, self.admission, self.global_model)
        self.swaps = Swaps(run, algorithm, self.model_state, self.admission, self.global_model)
        self.steps = StepLoop(run, algorithm, self.model_state, self.global_model, self.personal)
        self.private = open_account(run, self.model_state)
        self.private_steps: DpStepLoop | None = None
        if self.private is not None:
            self.private_steps = DpStepLoop(
                run, algorithm, self.model_state, self.private, self.steps.context
            )
        self.round_end = RoundEnd(
            run,
            algorithm,
            self.model_state,
            self.admission,
            self.global_model,
            self.personal,
            self.reception.guard,
        )
        self.peers: PersonalExchange | None = None
        if self.personal is not None:
            self.peers = PersonalExchange(run, algorithm, self.personal.model_state, self.model_state)
        if self.personal is not None and not self.personal.begun and self.round_end.prediction is not None:
            first = run.settings.training.personal_from_round
            self.round_end.prediction.begins_anew(f"the personal model begins with round {first}")
        self._notice = ""
        """What an administrator should know with the next round's report."""

    @property
    def settings(self) -> WorkerSettings:
        """The settings in force."""
        return self.run.settings

    @settings.setter
    def settings(self, settings: WorkerSettings) -> None:
        self.run.settings = settings

    @property
    def history(self) -> History:
        """Where the run stands."""
        return self.run.history

    @property
    def guard(self) -> Guard:
        """Over merges that have not been judged yet."""
        return self.reception.guard

    @property
    def deployed(self) -> nn.Module:
        """What the site evaluates and predicts with."""
        return self.round_end.deployed

    @property
    def mix(self) -> Mix | None:
        """Which models predict, and why; None where there is one only."""
        return self.round_end.prediction.mix if self.round_end.prediction is not None else None

    @property
    def gradients(self) -> int:
        """Gradients computed so far, by all models."""
        private = self.private_steps.gradients if self.private_steps is not None else 0
        return self.steps.gradients + private

    @property
    def resumable(self) -> bool:
        """Whether the present position, perhaps within a round, may be checkpointed."""
        return self.run.resumable

    @property
    def schema(self) -> protocol.WireSchema:
        """What travels."""
        return wire_schema(
            self.model_state.weights(), self.algorithm.is_shared, self.settings.spec.wire_dtype
        )

    @property
    def update_schema(self) -> protocol.WireSchema:
        """What goes to a coordinator; empty where the algorithm has none."""
        if self.settings.algorithm.exchange != "rounds":
            return {}
        return wire_schema(self.global_model.update(), everything, self.settings.spec.wire_dtype)

    def aggregate(
        self, order: protocol.Aggregate, on_tensor: Callable[[], None] = lambda: None
    ) -> protocol.AggregateDone:
        """The coordinator's work, between two rounds of this site's own. Raises LocalError, DiskFull."""
        spec = self.settings.spec
        outbox = Path(spec.state_dir) / "outbox"
        own = self.model_state.weights()

        def examine(site: str) -> Examination | None:
            return None if site == spec.site else self.admission.against(own)

        return aggregate(
            order, self.algorithm, self.update_schema, spec.wire_dtype, outbox, on_tensor, examine
        )

    # ------------------------------------------------------------ swaps, between two steps or while idle

    def export_snapshot(self, order: protocol.ExportSnapshot) -> protocol.SnapshotExported:
        """The shared model as it is now, in a file."""
        return self.swaps.export(order)

    def admit_snapshot(self, order: protocol.AdmitSnapshot) -> protocol.SnapshotAdmitted:
        """Whether a partner's snapshot may be mixed in."""
        return self.swaps.admit(order)

    def apply_swap(self, order: protocol.ApplySwap) -> protocol.SwapApplied:
        """Apply a swap, once; the caller checkpoints before it tells anybody."""
        fresh = self.history.last_swap != (order.swap.asker, order.swap.number)
        done = self.swaps.apply(order)
        if fresh and order.part == "copy" and not done.reason:
            self._copy_personal(self.history.round + 1, order.hash)
            done = msgspec.structs.replace(done, copied=True)
            if (prediction := self.round_end.prediction) is not None:
                mix = prediction.not_validated()
                done = msgspec.structs.replace(done, deployed=mix.name, deployed_reason=mix.reason)
        return done

    # ------------------------------------------------------------ personal models, while idle

    @property
    def personal_schema(self) -> protocol.WireSchema:
        """What a file of a personal model holds; empty where there is none."""
        return self.peers.schema if self.peers is not None else {}

    @property
    def personal_refusal(self) -> str:
        """Why this site's personal model is never sent; "" where it may be."""
        return self.peers.refusal if self.peers is not None else "no_personal"

    @property
    def takes_personal(self) -> bool:
        """Whether peers' personal models are of use here."""
        prediction = self.round_end.prediction
        if prediction is None or self.peers is None or not self.peers.takes:
            return False
        return prediction.looks_wider and self.settings.inference.max_members > len(OWN_MODELS)

    @property
    def held_personal(self) -> frozenset[str]:
        """Hashes of the peers' personal models that are held."""
        prediction = self.round_end.prediction
        held = prediction.peers.held.values() if prediction is not None else ()
        return frozenset(model.hash for model in held)

    def export_personal(self, order: protocol.ExportPersonal) -> protocol.PersonalExported:
        """The personal model as it is now, in a file."""
        if self.peers is None:
            return protocol.PersonalExported(None, self.history.round, self.personal_refusal)
        return self.peers.export()

    def hold_personal(self, order: protocol.HoldPersonal) -> protocol.PersonalHeld:
        """Take peers' personal models in, and let go of all others; the mix is chosen again where training
        has ended, or one of its members is gone. The caller checkpoints. Raises what the gate raises."""
        prediction, refused = self.round_end.prediction, list[protocol.PersonalRefused]()
        if prediction is None or self.peers is None:
            return protocol.PersonalHeld(refused)
        gone = prediction.drop_peers({file.site: file.hash for file in order.models})
        came = False
        for file in order.models:
            if file.site in prediction.peers.held or not self.takes_personal:
                continue
            self.run.alive()
            try:
                prediction.peers.put(self.peers.admit(file))
                came = True
            except PeerRefused as e:
                refused.append(protocol.PersonalRefused(file.site, file.hash, e.reason, e.detail))
        ended = self._ended
        if not (gone or (came and ended)):
            return protocol.PersonalHeld(refused, ended)
        scores, mix = self.round_end.choose_again(self.history.round), prediction.mix
        return protocol.PersonalHeld(
            refused, ended, True, mix.name, mix.reason, scores.mean, self.history.dice_test
        )

    @property
    def choice_is_stale(self) -> bool:
        """Whether training has ended, and what predicts was chosen among other models, or by other cases,
        than there are now. Before the end the next validation chooses."""
        prediction = self.round_end.prediction
        return prediction is not None and prediction.stale and self._ended

    @property
    def _ended(self) -> bool:
        return self.history.round > 0 and self.run.is_last(self.history.round)

    def choose_again(self) -> protocol.MixChosen:
        """Choose what predicts anew, from what is there now; the caller checkpoints. Raises what the gate
        raises."""
        scores, mix = self.round_end.choose_again(self.history.round), self.mix
        assert mix is not None
        return protocol.MixChosen(mix.name, mix.reason, scores.mean, self.history.dice_test)

    def score_test_at_start(self, on_progress: Callable[[str, float], None]) -> None:
        """The test split before the first round (kept in the checkpoint)."""
        self.round_end.score_test_at_start(on_progress)

    # ------------------------------------------------------------ a round

    def run_round(self, order: protocol.StartRound) -> protocol.RoundDone:
        """Complete round `order.round`. Raises what the gate raises; then `resumable` says what is left."""
        if order.round != self.history.round + 1:
            raise LocalError(
                f"asked for round {order.round}; the model stands at the end of round {self.history.round}. "
                "The daemon and its worker disagree; restart the daemon."
            )
        started = time.perf_counter()
        trouble, self._notice = _join(self._notice, self._start(order)), ""
        visitor, visit = self._arrival(order)
        trouble = _join(trouble, self._train(order), self._sound())
        undone = self.reception.undo_not_finite()
        trouble = _join(trouble, self.round_end.take_in(order.round))
        if undone is None:
            undone = self.reception.judgement(order.round)
        self._forget_copy_of(undone, order.round)
        scores = self.round_end.close(order)
        export, warning = self.round_end.export(order) if order.export else (None, "")
        if visitor is not None:
            visit = visitor.result()
        done = self._done(order, scores, started)
        done |= {"export": export, "visit": visit, "warning": _join(trouble, self._skips(), warning)}
        if self.history.reverted is not None:
            done["reverted"], done["reverted_frm"] = self.history.reverted
        self.run.end_round(order)
        return protocol.RoundDone(**done)

    def _start(self, order: protocol.StartRound) -> str:
        """Take the global model in, unless that was done before an interruption; what went wrong, or ""."""
        trouble, global_model, history = "", order.start_from, self.history
        if self.settings.algorithm.exchange == "rounds":
            history.ahead = order.ahead
        if self.personal is not None and self.personal.begin(order.round, self.model_state):
            self._personal_is_young()
        if global_model is not None and global_model.hash != history.last_global:
            start_over(self.run, self.model_state, self.guard)
            taken, trouble = self.global_model.begin(
                global_model, settling_in=order.settling_in, finetuning=order.finetuning
            )
            history.last_global = global_model.hash
            if order.settling_in and taken:
                history.settling_round = order.round
                self._copy_personal(order.round, global_model.hash)
        if order.finetuning and not (history.finetuned or history.step or history.averaged):
            self.round_end.before_finetuning(order.round)
        return trouble

    def _arrival(self, order: protocol.StartRound) -> tuple[Visitor | None, protocol.VisitDone | None]:
        """Take in the model that came; a site that takes it over has a personal model that is its copy, or
        of a network of its own."""
        visitor, visit = self.reception.arrival(order)
        if visit is not None and visit.reason == TAKEN_OVER:
            self._copy_personal(order.round, visit.hash)
        return visitor, visit

    def _train(self, order: protocol.StartRound) -> str:
        """The round's steps; why fewer were taken, or ""."""
        with frozen(self.model_state.learner, self.algorithm, self.run.moment(order, 0)):
            if self.private_steps is None:
                self.steps.take(order)
                return ""
            trouble = self.private_steps.take(order)
            ended = bool(trouble) and self.private is not None and self.private.spent.over
            if not ended:
                self.steps.take_personal(order)
            return trouble

    def _sound(self) -> str:
        """Under swaps a merge is never undone: weights that are not finite become the average again."""
        if not self.settings.spec.swaps or all_finite(self.model_state.weights()):
            return ""
        self.model_state.return_to_average()
        return "the shared model's weights were not finite: it goes on from its average"

    def _copy_personal(self, round: int, source: str) -> None:
        if self.personal is not None:
            self.personal.copy(self.model_state, round, source)
            if self.round_end.prediction is not None:
                self.round_end.prediction.not_validated()
            self._personal_is_young()

    def _personal_is_young(self) -> None:
        """Beside a model that was taken over it has no say before it has trained for a while."""
        rounds = self.personal.rounds if self.personal is not None else 0
        if self.round_end.prediction is not None and rounds < LEAST_ROUNDS_OF_A_COPY:
            self.round_end.prediction.begins_anew(young(rounds))

    def _forget_copy_of(self, undone: Merge | None, round: int) -> None:
        """A personal model that was a copy of one that did harm begins anew, as a copy of the shared one.

        Once that take-over is judged, the same model may come again and be undone for its own sake.
        """
        personal = self.personal
        if personal is None or not personal.copied_from:
            return
        if undone is not None and personal.copied_from == undone.hash:
            self._copy_personal(round + 1, OWN)
        elif all(merge.hash != personal.copied_from for merge in self.guard.pending):
            personal.copied_from = OWN

    def _done(self, order: protocol.StartRound, scores: Scores | None, started: float) -> dict[str, Any]:
        loss, terms = self.run.tally.means()
        return {
            "round": order.round,
            "steps": self.history.steps,
            "own_steps": self.history.own_steps,
            "ahead": self.history.ahead,
            "loss": loss,
            "terms": terms,
            "dice_val": scores.mean if scores else None,
            "dice_val_local": list(scores.per_class.values()) if scores else None,
            "seconds": time.perf_counter() - started,
            "dice_test": self.history.dice_test,
            "dice_test_start": self.history.dice_test_start,
            "spent": self.private.spent if self.private is not None else None,
            "deployed": self.mix.name if self.mix is not None else "",
            "deployed_reason": self.mix.reason if self.mix is not None else "",
        }

    def _skips(self) -> str:
        skipped = self.run.tally.skipped
        if not skipped:
            return ""
        return f"{skipped} training steps were skipped: their loss or gradient was not finite"

    # ------------------------------------------------------------ state

    def state(self) -> dict[str, Any]:
        """All that a checkpoint carries; plain values and CPU tensors."""
        rng: dict[str, Any] = {"torch": torch.get_rng_state()}
        if self.compute.device.type == "cuda":
            rng["cuda"] = torch.cuda.get_rng_state(self.compute.device)
        return {
            **self.model_state.snapshot(),
            "history": self.history.state(),
            "tally": self.run.tally.state(),
            "guard": self.guard.state(),
            "recent": [dict(weights) for weights in self.model_state.recent],
            "rng": rng,
            "anchor": cpu_copy(self.global_model.anchor),
            "best": self.round_end.best,
            "admission": self.admission.state(),
            "harm": self.swaps.harm.state(),
            "released": self.global_model.private_state(),
            "rest": self.global_model.rest.state(),
            "spent": self.private.state() if self.private is not None else None,
            **self._personal_state(),
        }

    def _personal_state(self) -> dict[str, Any]:
        if self.personal is None or self.round_end.prediction is None:
            return {}
        prediction = self.round_end.prediction
        state = {"personal_model": self.personal.state(), **prediction.state()}
        if self.peers is not None:
            state |= {"released_personal": self.peers.release.state()}
        return state

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from what state() gave, perhaps on another device."""
        state = of_earlier_version(state)
        self.model_state.restore(state)
        self.run.history = History.of(state["history"])
        self.run.tally.load(state["tally"])
        self.guard.load(state["guard"])
        if self.settings.spec.swaps:
            self.guard.forget()
        self.model_state.recent.extend(state.get("recent", []))
        self.global_model.set_anchor(state.get("anchor", {}))
        self.round_end.best = state.get("best")
        self.admission.load(state.get("admission"))
        self.swaps.harm.load(state.get("harm"))
        exchanged = self.history.first_exchange is not None
        self.global_model.load_private(state.get("released"), exchanged=exchanged)
        self.global_model.rest.load(state.get("rest"))
        if self.private_steps is not None:
            self.private_steps.load(state.get("spent"))
        self._load_personal(state)
        torch.set_rng_state(state["rng"]["torch"])
        if self.compute.device.type == "cuda" and "cuda" in state["rng"]:
            torch.cuda.set_rng_state(state["rng"]["cuda"], self.compute.device)

    def _load_personal(self, state: Mapping[str, Any]) -> None:
        """A checkpoint without a personal model: it begins as a copy of the shared one, or from the first
        weights of its own network. Raises ConfigError where it is of another network."""
        personal, prediction = self.personal, self.round_end.prediction
        if personal is None or prediction is None:
            if "personal_model" in state:
                self._notice = "training.personal is none: the personal model of the checkpoint is let go of"
            return
        if "personal_model" in state:
            personal.load(state["personal_model"])
            prediction.load(state, self.settings.spec.listed)
            if self.peers is not None:
                self.peers.release.load(state.get("released_personal"))
        elif personal.begun and (self.history.round or self.history.step):
            origin = "as a copy of the shared one"
            if self.settings.personal_network is not None:
                origin = "from the first weights of its own network"
            self._notice = f"the personal model begins {origin}: the checkpoint had none"
            self._copy_personal(self.history.round + 1, OWN)


def _join(*parts: str) -> str:
    return "; ".join(part for part in parts if part)
