"""Plans of tiny runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gossipseg.lab.plan import choices, run_plans, variants
from gossipseg.lab.plan.choices import WantedRuns
from gossipseg.lab.plan.run_plans import Replicate, RunPlan
from gossipseg.lab.simulation import federation, pooled
from gossipseg.lab.simulation.training import DataCache

TINY = (
    *("network.width=2", "task.patch_size=[32,32]", "training.batch_size=2"),
    *("gossip.exchange=push", "wire.dtype=float16"),
)
Rows = dict[str, dict[str, Any]]


def plan(data: Path, algorithm: str, *, seed: int = 0, **wanted: Any) -> RunPlan:
    """One run: two rounds of two steps unless `wanted` says otherwise."""
    settings = (*TINY, *wanted.pop("settings", ()))
    chosen = WantedRuns(data, **{"rounds": 2, "steps": 2, "settings": settings, **wanted})
    (only,) = run_plans.plans(choices.read(chosen), variants.parse(algorithm), [Replicate(seed)], None)
    return only


def run(made: RunPlan, cache: DataCache | None = None) -> Rows:
    """Site → its row."""
    do = pooled.run if made.name == pooled.NAME else federation.run
    return {row["site"]: row for row in do(made, cache or DataCache(), lambda steps, text: None)}


def timeless(rows: Rows) -> Rows:
    """Without what a clock has measured."""
    clocks = ("seconds", "seconds_by", "cpu_seconds_by")
    return {site: {k: v for k, v in row.items() if k not in clocks} for site, row in rows.items()}
