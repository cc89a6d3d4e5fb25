"""The trainer: rounds of one site, with or without a visitor, and all that must survive between them.

    start     under a coordinator, the global model replaces the tensors that travel (global_model.py)
    arrival   an incoming model is checked; a site with no round behind it takes it over outright
              (reception.py)
    steps     E steps, both models on identical batches where the algorithm trains the visitor (step_loop.py,
              dp_step_loop.py)
    average   the EMA takes in the site's own training, before anything is merged into it (round_end.py)
    judgement the guard undoes an earlier merge that did harm (reception.py, guard.py)
    close     validation, export (round_end.py)
    departure the algorithm may merge; the next rounds train what comes of it (reception.py)

Where the settings ask for it, a shadow takes the same steps and meets nobody (shadow.py), or the models that
came help to predict (peer_ensemble.py).

A local round can be interrupted between any two steps or validation cases and goes on from there; a round
with a visitor starts again from its beginning, because the visitor is not kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gossipseg.algos import registry as algorithms
from gossipseg.errors import LocalError
from gossipseg.learn import protocol
from gossipseg.learn.deploy.peer_ensemble import PeerEnsemble, PeerVerdict
from gossipseg.learn.deploy.shadow import Shadow, Verdict
from gossipseg.learn.engine.build import build_model
from gossipseg.learn.engine.history import History
from gossipseg.learn.engine.model_state import ModelState, cpu_copy
from gossipseg.learn.engine.run_state import Gate, Report, RunState
from gossipseg.learn.engine.site_data import SiteData
from gossipseg.learn.evaluation.evaluate import Scores
from gossipseg.learn.exchange.admission import Admission, Examination
from gossipseg.learn.exchange.aggregate import aggregate
from gossipseg.learn.exchange.global_model import GlobalModel, everything, frozen
from gossipseg.learn.exchange.guard import Guard, start_over
from gossipseg.learn.exchange.reception import Reception, rounds_kept
from gossipseg.learn.exchange.visit import Visitor
from gossipseg.learn.exchange.wire_format import content_hash, wire_schema
from gossipseg.learn.settings import WorkerSettings
from gossipseg.learn.training.dp_step_loop import DpStepLoop, open_account
from gossipseg.learn.training.round_end import RoundEnd
from gossipseg.learn.training.step_loop import StepLoop
from gossipseg.nets import registry as networks


class Trainer:
    """One site's training model W, its optimizer, its EMA, and where they stand."""

    def __init__(self, site: SiteData, report: Report, gate: Gate) -> None:
        self.run = run = RunState(site, report, gate)
        self.site, self.compute = site, site.compute
        model = build_model(run.settings)
        self.algorithm = algorithms.build(
            run.settings.algorithm, networks.norm_parameter_names(model), networks.private_names(model)
        )
        self.network_signature = networks.network_signature(model, self.algorithm.is_shared)
        self.initial_hash = content_hash(model.state_dict(), self.algorithm.is_shared)
        self.shadow = Shadow(run, model) if run.settings.training.shadow_local else None
        self.ensemble = PeerEnsemble(run) if run.settings.ensembles_peers else None
        self.model_state = ModelState(
            model,
            run.settings,
            run.compute,
            has_personal=self.algorithm.has_personal,
            keeps_rounds=rounds_kept(self.algorithm),
        )
        self.admission = Admission(run.settings.admission, averages=self.algorithm.averages)
        self.global_model = GlobalModel(
            self.algorithm, self.model_state, run.settings.spec, self.admission, run.settings.privacy
        )
        self.reception = Reception(run, self.algorithm, self.model_state, self.admission, self.ensemble)
        self.steps = StepLoop(run, self.algorithm, self.model_state, self.global_model, self.shadow)
        self.private = open_account(run, self.model_state)
        self.private_steps: DpStepLoop | None = None
        if self.private is not None:
            self.private_steps = DpStepLoop(
                run, self.algorithm, self.model_state, self.private, self.steps.context
            )
        self.round_end = RoundEnd(
            run,
            self.algorithm,
            self.model_state,
            self.admission,
            self.global_model,
            self.shadow,
            self.ensemble,
            self.reception.guard,
        )

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
    def verdict(self) -> Verdict | PeerVerdict | None:
        """How it was chosen; None where there is nothing to choose from."""
        return self.round_end.choice.verdict if self.round_end.choice is not None else None

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
        trouble = self._start(order)
        visitor, visit = self.reception.arrival(order)
        with frozen(self.model_state.learner, self.algorithm, self.run.moment(order, 0)):
            if self.private_steps is None:
                self.steps.take(order, visitor)
            else:
                trouble = _join(trouble, self.private_steps.take(order))
        if self.shadow is not None:
            self.shadow.average(order.round)
        undone = self.reception.undo_not_finite()
        if undone is None:
            trouble = _join(trouble, self.round_end.take_in())
            undone = self.reception.judgement(order.round)
        if visitor is not None:
            self.reception.leave(visitor)
        scores = self.round_end.close(order)
        export, warning = self.round_end.export(order) if order.export else (None, "")
        if visitor is not None:
            visit = self.reception.departure(order.round, visitor, undone)
        done = self._done(order, scores, started)
        done["beside"] = _beside(visitor)
        done |= {"export": export, "visit": visit, "warning": _join(trouble, self._skips(), warning)}
        if self.history.reverted is not None:
            done["reverted"], done["reverted_frm"] = self.history.reverted
        self.run.end_round(order)
        return protocol.RoundDone(**done)

    def _start(self, order: protocol.StartRound) -> str:
        """Take the global model in, unless that was done before an interruption; what went wrong, or ""."""
        if self.ensemble is not None and order.listed is not None:
            self.ensemble.keep_only(order.listed)
        trouble, global_model, history = "", order.start_from, self.history
        if self.settings.algorithm.exchange == "rounds":
            history.ahead = order.ahead
        if global_model is not None and global_model.hash != history.last_global:
            start_over(self.run, self.model_state, self.guard)
            trouble = self.global_model.begin(
                global_model, settling_in=order.settling_in, finetuning=order.finetuning
            )
            history.last_global = global_model.hash
            if order.settling_in:
                history.settling_round = order.round
        if order.finetuning and not (history.finetuned or history.step or history.averaged):
            self.round_end.before_finetuning(order.round)
        return trouble

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
            "deployed": self.verdict.deployed if self.verdict is not None else "",
            "deployed_reason": self.verdict.reason if self.verdict is not None else "",
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
            "released": self.global_model.private_state(),
            "rest": self.global_model.rest.state(),
            "spent": self.private.state() if self.private is not None else None,
            **({"shadow": self.shadow.state()} if self.shadow is not None else {}),
            **({"ensemble": self.ensemble.state()} if self.ensemble is not None else {}),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from what state() gave, perhaps on another device."""
        self.model_state.restore(state)
        self.run.history = History.of(state["history"])
        self.run.tally.load(state["tally"])
        self.guard.load(state["guard"])
        self.model_state.recent.extend(state.get("recent", []))
        self.global_model.set_anchor(state.get("anchor", {}))
        self.round_end.best = state.get("best")
        self.admission.load(state.get("admission"))
        self.global_model.load_private(state.get("released"))
        self.global_model.rest.load(state.get("rest"))
        if self.private_steps is not None:
            self.private_steps.load(state.get("spent"))
        if self.shadow is not None:
            self.shadow.load(state.get("shadow"))
        if self.ensemble is not None:
            self.ensemble.load(state.get("ensemble"))
        torch.set_rng_state(state["rng"]["torch"])
        if self.compute.device.type == "cuda" and "cuda" in state["rng"]:
            torch.cuda.set_rng_state(state["rng"]["cuda"], self.compute.device)


def _beside(visitor: Visitor | None) -> str | None:
    return visitor.order.frm if visitor is not None and visitor.learner is not None else None


def _join(*parts: str) -> str:
    return "; ".join(part for part in parts if part)
