"""Personal models that are trained once for all runs of a comparison.

A personal model does not depend on the exchange: with one seed, split and training it is bit for bit the
same beside every algorithm that trains it as `local` does. The first run keeps its averages of the validated
rounds in OUT/personal, and later ones read them instead of taking the steps.
"""

from __future__ import annotations

import functools
import importlib.metadata
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save

from gossipseg.algos.base import Algorithm, StepPosition
from gossipseg.errors import LocalError
from gossipseg.lab.plan.run_plans import RunPlan
from gossipseg.lab.plan.study import digest, plain
from gossipseg.learn.engine.model_state import ModelState
from gossipseg.learn.engine.run_state import RunState
from gossipseg.learn.params import WorkerSpec
from gossipseg.learn.settings import WorkerSettings
from gossipseg.learn.training.personal import Personal
from gossipseg.nets.segmenter import Segmenter
from gossipseg.store import atomic_write

MakePersonal = Callable[..., Personal]


class PersonalRecord:
    """The averages of one site's personal model, by round."""

    def __init__(self, folder: Path, last: int) -> None:
        """`last`: the round whose average is kept last."""
        self._folder, self._last = folder, last

    @property
    def complete(self) -> bool:
        """Whether the last round is there; the earlier ones were kept before it."""
        return self._file(self._last).exists()

    def keep(self, round: int, average: ModelState) -> None:
        """Keep the average after `round`."""
        self._folder.mkdir(parents=True, exist_ok=True)
        state = {name: tensor.contiguous() for name, tensor in average.ema.state_dict().items()}
        atomic_write(self._file(round), save(state))

    def read(self, round: int, into: ModelState) -> bool:
        """Let `into`'s EMA be the average after `round`; False where none was kept."""
        if not self._file(round).exists():
            return False
        into.ema.load_state_dict(load_file(self._file(round)))
        return True

    def read_last(self, into: ModelState) -> None:
        """The same after the last round. Raises LocalError where it is missing."""
        if not self.read(self._last, into):
            raise LocalError(f"{self._file(self._last)} is gone: run again without {self._folder.parent}.")

    def _file(self, round: int) -> Path:
        return self._folder / f"round-{round:06d}.safetensors"


def record_of(plan: RunPlan, spec: WorkerSpec) -> PersonalRecord | None:
    """The record that this site's runs share. None: its personal model is not the same in all of them."""
    early = spec.training.get("personal_from_round", 1) <= 1
    other = plan.late_join, plan.equal_evaluations, plan.speed, plan.site_dropout, plan.adversaries
    stands_still = spec.algorithm.get("finetune_rounds", 0) > 0
    if not (plan.personal_records and early) or stands_still or any(other) or spec.privacy.get("dp"):
        return None
    training = {k: v for k, v in spec.training.items() if not k.startswith("personal")}
    decides = {
        "data": [plan.sites[spec.site], plan.split, plan.kept_cases.get(spec.site), plan.ignored],
        "task": plain(spec.task),
        "network": plain(spec.network),
        **({"personal_network": plain(spec.personal_network)} if spec.personal_network else {}),
        "training": plain(training),
        "seed": spec.seed,
        "rounds": plan.rounds,
        "device": plan.device,
        "torch": importlib.metadata.version("torch"),
        "gossipseg": importlib.metadata.version("gossipseg"),
    }
    name = f"{spec.site}-seed{spec.seed}-{digest(decides)[:16]}"
    return PersonalRecord(Path(plan.personal_records) / name, plan.rounds)


def maker(record: PersonalRecord | None, settings: WorkerSettings) -> MakePersonal:
    """How a trainer makes its personal model: it trains, trains and is recorded, or is read."""
    if record is None or not settings.has_personal:
        return Personal
    return functools.partial(_make, record)


def _make(record: PersonalRecord, run: RunState, initial: Segmenter, *, algorithm: Algorithm) -> Personal:
    if algorithm.trains_personal:
        return Personal(run, initial, algorithm=algorithm)
    if not record.complete:
        return _Recorded(record, run, initial, algorithm=algorithm)
    if algorithm.learns_from_personal:
        return Personal(run, initial, algorithm=algorithm)
    return Replayed(record, run, initial, algorithm=algorithm)


def validated(run: RunState, round: int) -> bool:
    """Whether the models are validated, and so looked at, after this round."""
    return run.is_last(round) or round % max(1, run.settings.training.validate_every_rounds) == 0


class _Recorded(Personal):
    """Trains, and keeps its averages."""

    def __init__(self, record: PersonalRecord, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._record = record

    def average(self, round: int) -> str:
        before = self.rounds
        trouble = super().average(round)
        if self.rounds > before and validated(self._run, round) and self.on_trial is None:
            self._record.keep(round, self.model_state)
        return trouble


class Replayed(Personal):
    """Takes no step: its averages are read where they are looked at."""

    def __init__(self, record: PersonalRecord, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._record = record
        self.gradients = 0
        """Those that it would have computed."""

    def due(self, position: StepPosition) -> bool:
        if super().due(position):
            self.stepped(position)
            self.gradients += 1
        return False

    def average(self, round: int) -> str:
        if validated(self._run, round) and not self._record.read(round, self.model_state):
            raise LocalError(f"round {round} of a recorded personal model is missing. Remove OUT/personal.")
        return ""

    def copy(self, shared: ModelState, round: int, source: str) -> None:
        raise LocalError(
            "a recorded personal model is to become a copy of the shared one, or to go by its schedule. Run "
            "this algorithm with another --out, where nothing is recorded."
        )


def keep_local(record: PersonalRecord | None, run: RunState, round: int, model: ModelState) -> None:
    """Keep the average of a site that trains alone: `local`'s model is a personal one."""
    if record is not None and not record.complete and validated(run, round):
        record.keep(round, model)
