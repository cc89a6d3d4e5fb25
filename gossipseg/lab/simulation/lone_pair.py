"""`lone_pair`: two models of each site, trained alone from different seeds, that predict together.

It tells how much of what a personal and a shared model gain together is plain ensembling.
"""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

from gossipseg.errors import ConfigError
from gossipseg.lab.plan.run_plans import RunPlan
from gossipseg.lab.plan.variants import LONE_PAIR
from gossipseg.lab.report.pictures import Pictures
from gossipseg.lab.simulation import federation
from gossipseg.lab.simulation.federation import NO_TRAFFIC, kept, row
from gossipseg.lab.simulation.personal_record import PersonalRecord, record_of
from gossipseg.lab.simulation.pretrained import lend
from gossipseg.lab.simulation.training import DataCache, Progress, Training, make_spec
from gossipseg.learn import protocol
from gossipseg.learn.params import WorkerSpec

SECOND = 7919
"""The second model's seed is this much above the first's: no repetition's own."""


def run(plan: RunPlan, cache: DataCache, progress: Progress) -> list[dict[str, Any]]:
    """The rows of results.json, a row per site. Raises ConfigError, DataError, LocalError."""
    with tempfile.TemporaryDirectory(prefix="gossiplab-") as folder:
        first, second = (_alone(plan, seed) for seed in (plan.seed, plan.seed + SECOND))
        spent = [_trained(alone, Path(folder), cache, progress) for alone in (first, second)]
        return [
            _row(plan, second, name, Path(folder), cache, progress, [s.get(name, {}) for s in spent])
            for name in plan.sites
        ]


def _alone(plan: RunPlan, seed: int) -> RunPlan:
    """The run of `local` with that seed."""
    sections = {**plan.federation, "algorithm": {"name": "local"}, "seed": seed}
    return dataclasses.replace(plan, name="local", federation=sections, pictures="")


def _spec(plan: RunPlan, name: str, folder: Path) -> WorkerSpec:
    own = folder / f"{plan.name}-{plan.federation['seed']}" / name
    own.mkdir(parents=True, exist_ok=True)
    params = kept(plan.data(name), name, plan.kept_cases.get(name), own)
    settings = plan.parsed()
    lend(settings.network, Path(plan.sites[name]), Path(params.path))
    return make_spec(settings, name, params, own, plan.rounds, plan.device)


def _record(plan: RunPlan, spec: WorkerSpec) -> PersonalRecord:
    record = record_of(plan, spec)
    if record is None:
        raise ConfigError(
            "two lone models need sites that are all there from the beginning to the end, and no adversary",
            key="--algorithms",
            value=plan.label,
            remedy=f"Leave {LONE_PAIR} out, or run it by itself.",
        )
    return record


def _trained(plan: RunPlan, folder: Path, cache: DataCache, progress: Progress) -> dict[str, dict[str, Any]]:
    """Train every site alone, unless another run has; the rows by site."""
    if all(_record(plan, _spec(plan, name, folder)).complete for name in plan.sites):
        return {}
    return {row["site"]: row for row in federation.run(plan, cache, progress)}


def _row(
    plan: RunPlan,
    second: RunPlan,
    name: str,
    folder: Path,
    cache: DataCache,
    progress: Progress,
    spent: list[dict[str, Any]],
) -> dict[str, Any]:
    """Choose the mix on validation as any site does, and score it. The second model is in the shared one's
    place."""
    progress(0, f"testing {name}")
    spec = _spec(plan, name, folder)
    training = Training(spec, cache, progress, record=_record(plan, spec))
    trainer, steps = training.trainer, plan.parsed().training.steps_per_round * plan.rounds
    assert trainer.personal is not None
    trainer.history.round, trainer.history.steps = plan.rounds - 1, steps
    _record(plan, spec).read_last(trainer.personal.model_state)
    _record(second, _spec(second, name, folder)).read_last(trainer.model_state)
    trainer.round_end.close(protocol.StartRound(plan.rounds))
    pictures = Pictures(Path(plan.pictures), plan.key, name) if plan.pictures else None
    scores = training.test(spec, pictures)
    found = row(plan, name, scores, training, training.curve)
    found["gradient_evaluations"] = 2 * steps
    found["seconds"] = round(found["seconds"] + sum(s.get("seconds", 0.0) for s in spent), 3)
    return {**found, **training.members(), **NO_TRAFFIC}
