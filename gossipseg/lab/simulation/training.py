"""One site's trainer in the lab: whole rounds, their costs, and the scores at the end."""

from __future__ import annotations

import dataclasses
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from gossipseg.config import worker_spec_for
from gossipseg.config.files import FederationFile
from gossipseg.lab.simulation import personal_record
from gossipseg.lab.simulation.personal_record import PersonalRecord, Replayed
from gossipseg.learn import protocol
from gossipseg.learn.commands.evaluate import SaveOverlay, evaluate_case
from gossipseg.learn.data.datalist import load_cases
from gossipseg.learn.data.dataset import Dataset
from gossipseg.learn.data.division import patients_in
from gossipseg.learn.deploy.choice import SHARES
from gossipseg.learn.deploy.deployment import Deployment
from gossipseg.learn.engine.precision import choose_compute
from gossipseg.learn.engine.site_data import SiteData
from gossipseg.learn.engine.sites import EpisodeSite, open_site
from gossipseg.learn.evaluation.scoring import Scores, mean_of, summarise
from gossipseg.learn.params import ONE_SHOT_ALGORITHM, DataParams, DeviceParams, WorkerSpec
from gossipseg.learn.settings import read_settings
from gossipseg.learn.training.trainer import Trainer
from gossipseg.store.tensors import ITEM_BYTES

Progress = Callable[[int, str], None]
"""Called with the number of local steps done, counted once however many models took each, and the
activity."""


HALF = 0.5
"""Share of the personal model in a mix that nothing was chosen for."""


class DataCache:
    """Preprocessed images by data list and task: the runs of one process share them."""

    def __init__(self) -> None:
        self._held: dict[str, Dataset] = {}

    def open(self, spec: WorkerSpec) -> Dataset:
        """As SiteData.open; a list made for one run is not kept. Raises DataError."""
        if spec.data["path"] == spec.state_dir:
            return Dataset.open(spec)
        key = repr((spec.data, spec.task, spec.algorithm["name"] == ONE_SHOT_ALGORITHM))
        if key not in self._held:
            self._held[key] = Dataset.open(spec)
        return self._held[key]


def make_spec(
    federation: FederationFile,
    site: str,
    data: DataParams,
    folder: Path,
    rounds: int,
    device: str,
    personal_network: Mapping[str, Any] | None = None,
) -> WorkerSpec:
    """The specification that a daemon would give its worker; the lab scores the test split itself."""
    threads = 1 if device == "cpu" else None
    return worker_spec_for(
        federation,
        site,
        data=data,
        device=DeviceParams(device, amp="off" if device == "cpu" else "auto", threads=threads),
        state_dir=str(folder),
        rounds=rounds,
        personal_network=None if personal_network is None else dict(personal_network),
    )


@dataclass(frozen=True, slots=True)
class Round:
    """A finished round and its cost."""

    report: protocol.RoundDone
    evaluations: int
    """Gradients computed: two a step where two models trained."""


class Training:
    """A trainer with its costs so far."""

    def __init__(
        self,
        spec: WorkerSpec,
        cache: DataCache,
        progress: Progress,
        *,
        equal_evaluations: bool = False,
        record: PersonalRecord | None = None,
    ) -> None:
        settings = read_settings(spec)
        compute = choose_compute(settings.device)
        self._record = record
        self.trainer = Trainer(
            open_site(settings, cache.open(spec), compute),
            self._on_report,
            lambda: None,
            personal_record.maker(record, settings),
        )
        self.patients: dict[str, str] = {}
        """Case → patient, as far as the data list or the names of all the site's cases tell."""
        self.spent_s: defaultdict[str, float] = defaultdict(float)
        """Real seconds by activity: training, visit, validation, test."""
        self.cpu_s: defaultdict[str, float] = defaultdict(float)
        """The same in this process's own time, which other work on the machine does not stretch."""
        self._progress, self._equal = progress, equal_evaluations
        self._last_s, self._last_cpu_s = time.perf_counter(), time.process_time()

    def run(self, order: protocol.StartRound, pause: Callable[[], None] | None = None) -> Round:
        """Run the round. Raises LocalError as the trainer does.

        `pause` is called before each step, and holds the round while other sites go on.
        """
        self._last_s, self._last_cpu_s = time.perf_counter(), time.process_time()
        before = self.evaluations
        if pause is not None:
            self.trainer.run.between_steps = lambda: self._held(pause)
        with self._steps_shared(self._models(order)):
            report = self.trainer.run_round(order)
        if self.trainer.settings.algorithm.name == "local":
            personal_record.keep_local(self._record, self.trainer.run, order.round, self.trainer.model_state)
        self._spend("other")
        return Round(report, self.evaluations - before)

    def _held(self, pause: Callable[[], None]) -> None:
        """Hold the round; what happens meanwhile is not its own time."""
        self._spend("other")
        pause()
        self._last_s, self._last_cpu_s = time.perf_counter(), time.process_time()

    def swap(self, order: protocol.SwapOrder) -> protocol.SwapReport:
        """Carry out an order of a swap, between two steps or between two rounds."""
        self._last_s, self._last_cpu_s = time.perf_counter(), time.process_time()
        report: protocol.SwapReport
        match order:
            case protocol.ExportSnapshot():
                report = self.trainer.export_snapshot(order)
            case protocol.AdmitSnapshot():
                report = self.trainer.admit_snapshot(order)
            case protocol.ApplySwap():
                report = self.trainer.apply_swap(order)
        self._spend("swap")
        return report

    def personal(self, order: protocol.PersonalOrder) -> protocol.PersonalReport:
        """Carry out an order about personal models, between two rounds."""
        self._last_s, self._last_cpu_s = time.perf_counter(), time.process_time()
        report: protocol.PersonalReport
        match order:
            case protocol.ExportPersonal():
                report = self.trainer.export_personal(order)
            case protocol.HoldPersonal():
                report = self.trainer.hold_personal(order)
        self._spend("personal")
        return report

    @property
    def evaluations(self) -> int:
        """Gradients computed so far, those of a personal model that was read included."""
        personal = self.trainer.personal
        read = personal.gradients if isinstance(personal, Replayed) else 0
        return self.trainer.gradients + read

    def _models(self, order: protocol.StartRound) -> int:
        """Number of models that will take gradients in this round."""
        personal = self.trainer.personal
        first = self.trainer.settings.training.personal_from_round
        return 1 + (personal is not None and not order.finetuning and order.round >= first)

    @contextmanager
    def _steps_shared(self, models: int) -> Iterator[None]:
        """Let two models share the steps of one, where evaluations must be equal."""
        before = self.trainer.settings
        if self._equal and models > 1:
            steps = max(1, before.training.steps_per_round // models)
            training = dataclasses.replace(before.training, steps_per_round=steps)
            self.trainer.settings = dataclasses.replace(before, training=training)
        try:
            yield
        finally:
            self.trainer.settings = before

    def _on_report(self, make: Callable[[], protocol.Progress], activity: protocol.Activity) -> None:
        self._spend(activity)
        if activity == "training":
            self._progress(1, activity)

    def _spend(self, activity: str) -> None:
        now, cpu = time.perf_counter(), time.process_time()
        self.spent_s[activity] += now - self._last_s
        self.cpu_s[activity] += cpu - self._last_cpu_s
        self._last_s, self._last_cpu_s = now, cpu

    # ------------------------------------------------------------ scores

    def score(self, context: SiteData, model: nn.Module) -> Scores:
        """Validate a model at another site than the trainer's own."""
        self._last_s, self._last_cpu_s = time.perf_counter(), time.process_time()
        scores = context.score(model, "validation", lambda fraction: None)
        self._spend("validation")
        return scores

    def test(self, spec: WorkerSpec, save: SaveOverlay | None = None) -> Scores:
        """All scores of the deployment model over the test cases of `spec`'s data, on the labels' own grids.

        One-shot algorithms are scored by their own site: only Dice, with every labelled scan as support in
        turn.
        """
        self._last_s, self._last_cpu_s = time.perf_counter(), time.process_time()
        settings, trainer = read_settings(spec), self.trainer
        if isinstance(trainer.site, EpisodeSite):
            found = trainer.site.score(trainer.model_state.ema, "test", lambda fraction: None)
            self._spend("test")
            return found
        weights = "ema" if trainer.mix is None else trainer.mix.name
        history = trainer.history
        deployment = Deployment(
            trainer.deployed, settings, trainer.compute, weights, history.round, history.steps, None
        )
        splits = load_cases(settings.data, spec.site)
        self.patients = patients_in(case for _, case in splits)
        labelled = [case for case in splits.test if case.label is not None]
        scored = [evaluate_case(deployment, case, save) for case in labelled]
        self._spend("test")
        return summarise(scored, settings.task)

    def members(self) -> dict[str, Any]:
        """What either model alone, and their mixes, would have had; empty where there is one model only.

        `members`: mean test Dice of the personal and of the shared model alone, and of both at one half,
        whatever is deployed. `by_share`: share of the personal model → `nll` and `dice_val` by validation
        case (null: none, or not finite), `dice_test`; `validated`: whose these cases are.
        """
        trainer = self.trainer
        if trainer.personal is None or not trainer.personal.begun:
            return {}
        self._last_s, self._last_cpu_s = time.perf_counter(), time.process_time()
        models = trainer.personal.model_state.ema, trainer.model_state.ema
        site, task = trainer.site, trainer.settings.task
        chosen = site.score_pair(*models, "validation", SHARES, SHARES, lambda fraction: None)
        tested = site.score_pair(*models, "test", (), SHARES, lambda fraction: None)
        self._spend("members")
        dice = {share: summarise(scores, task).mean for share, scores in tested.mixes.items()}
        return {
            "members": {"personal": dice[1.0], "shared": dice[0.0], "half": dice[HALF]},
            "by_share": {
                str(share): {
                    "nll": numbers(chosen.losses[share]),
                    "dice_val": [case.mean for case in chosen.mixes[share]],
                    "dice_test": dice[share],
                }
                for share in SHARES
            },
            "validated": list(site.patients("validation")),
        }

    @property
    def wire_bytes(self) -> int:
        """Size of this site's transfers, without the file's header."""
        return sum(math.prod(shape) * ITEM_BYTES[code] for code, shape in self.trainer.schema.values())

    @property
    def deployed(self) -> dict[str, Any]:
        """The last decision on the deployed model, for a row of results; empty where there is no choice."""
        mix = self.trainer.mix
        if mix is None:
            return {}
        return {"deployed": {"name": mix.name, "reason": mix.reason, **dataclasses.asdict(mix)}}

    @property
    def curve(self) -> list[tuple[int, float | None]]:
        """(round, validation Dice of the deployment model)."""
        return list(self.trainer.history.dice_history)


def numbers(values: Iterable[float | None]) -> list[float | None]:
    """The values as JSON has them: None for one that is not finite."""
    return [v if v is not None and math.isfinite(v) else None for v in values]


def case_rows(scores: Scores) -> list[dict[str, Any]]:
    """Per-case results, as JSON."""
    return [
        {
            "id": case.id,
            "dice": case.mean,
            "hd95": mean_hd95(case.hd95),
            "missed": list(case.missed),
            "false_alarms": list(case.false_alarms),
        }
        for case in scores.per_case
    ]


def mean_hd95(by_class: Mapping[str, float | None]) -> float | None:
    """Mean over the classes that have a distance."""
    return mean_of(by_class.values())
