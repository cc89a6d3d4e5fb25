"""`pooled`: one trainer over the cases of all sites, scored at each. The ceiling of every comparison.

For each patch a site is drawn evenly, then one of its cases: every site counts once, as in the figures,
however many cases it has.
"""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

from gossipseg.errors import ConfigError
from gossipseg.lab.plan.run_plans import RunPlan
from gossipseg.lab.plan.splits import write_list
from gossipseg.lab.report.pictures import Pictures
from gossipseg.lab.simulation.federation import NO_TRAFFIC, kept, row
from gossipseg.lab.simulation.pretrained import lend
from gossipseg.lab.simulation.training import DataCache, Progress, Training, make_spec
from gossipseg.learn import protocol
from gossipseg.learn.data.cases import Case
from gossipseg.learn.data.datalist import load_cases
from gossipseg.learn.data.patches import TrainBatches
from gossipseg.learn.engine.site_data import Batches
from gossipseg.learn.engine.sites import open_site
from gossipseg.learn.params import DataParams
from gossipseg.learn.settings import read_settings

NAME = "pooled"
NEVER = 1 << 30


def run(plan: RunPlan, cache: DataCache, progress: Progress) -> list[dict[str, Any]]:
    """The rows of results.json, a row per site. Raises ConfigError, DataError, LocalError."""
    with tempfile.TemporaryDirectory(prefix="gossiplab-") as folder:
        return _Pooled(plan, Path(folder), cache, progress).rows()


class _Pooled:
    def __init__(self, plan: RunPlan, folder: Path, cache: DataCache, progress: Progress) -> None:
        self._plan, self._progress = plan, progress
        settings = plan.parsed()
        self._validate_every = settings.training.validate_every_rounds
        site_data = {name: self._site_data(name, folder) for name in plan.sites}
        self._specs = {
            name: make_spec(settings, name, data, folder / name, plan.rounds, plan.device)
            for name, data in site_data.items()
        }
        # Validation is done here, site by site, and the end is plan.rounds.
        steps = settings.training.steps_per_round * (len(plan.sites) if plan.pooled_steps == "all" else 1)
        training = dataclasses.replace(
            settings.training,
            steps_per_round=steps,
            validate_every_rounds=NEVER,
            rounds=None,
            schedule_rounds=settings.training.cosine_rounds,
        )
        union = make_spec(
            dataclasses.replace(settings, training=training),
            NAME,
            _union(site_data, folder / NAME),
            folder / NAME,
            plan.rounds + 1,
            plan.device,
        )
        for data, own in zip(plan.sites.values(), site_data.values(), strict=True):
            lend(settings.network, Path(data), Path(own.path))
            lend(settings.network, Path(data), folder / NAME)
        self._training = Training(union, cache, progress)
        compute = self._training.trainer.compute
        self._contexts = {
            name: open_site(read_settings(spec), cache.open(spec), compute)
            for name, spec in self._specs.items()
        }
        self._training.trainer.site.feed(self._by_site)
        self._curves: dict[str, list[tuple[int, float | None]]] = {name: [] for name in plan.sites}

    def _by_site(self, batches: Batches) -> Batches:
        """The union's cases by site: the sites follow one another in it."""
        assert isinstance(batches, TrainBatches)
        return batches.grouped([context.cases for context in self._contexts.values()])

    def _site_data(self, name: str, folder: Path) -> DataParams:
        (folder / name).mkdir(parents=True)
        return kept(self._plan.data(name), name, self._plan.kept_cases.get(name), folder / name)

    def rows(self) -> list[dict[str, Any]]:
        """Train, then score each site's test cases."""
        for number in range(1, self._plan.rounds + 1):
            self._training.run(protocol.StartRound(number))
            if number % self._validate_every == 0 or number == self._plan.rounds:
                self._validate(number)
        return [self._row(name) for name in self._plan.sites]

    def _validate(self, number: int) -> None:
        model = self._training.trainer.model_state.ema
        for name, context in self._contexts.items():
            scores = self._training.score(context, model)
            self._curves[name].append((number, scores.mean))

    def _row(self, name: str) -> dict[str, Any]:
        plan = self._plan
        self._progress(0, f"testing {name}")
        pictures = Pictures(Path(plan.pictures), plan.key, name) if plan.pictures else None
        scores = self._training.test(self._specs[name], pictures)
        found = row(plan, name, scores, self._training, self._curves[name])
        # One trainer served all: each site's row bears its share of the cost.
        share = len(plan.sites)
        found["seconds"] = round(found["seconds"] / share, 3)
        for key in ("seconds_by", "cpu_seconds_by"):
            found[key] = {k: round(v / share, 3) for k, v in found[key].items()}
        found["gradient_evaluations"] //= share
        return {**found, **NO_TRAFFIC}


def _union(site_data: dict[str, DataParams], folder: Path) -> DataParams:
    """Training and validation cases of all sites in one list."""
    folder.mkdir(parents=True)
    lists: dict[str, list[Case]] = {"training": [], "validation": []}
    for name, data in site_data.items():
        splits = load_cases(data, name)
        for split in ("training", "validation"):
            lists[split] += [_of_site(case, name) for case in splits.of(split)]
    ignored = {data.ignore_label for data in site_data.values()}
    if len(ignored) > 1:
        raise ConfigError(
            "the sites' lists do not ignore the same label value, and pooled reads all by one rule",
            key="--algorithms",
            value=NAME,
            remedy="Leave pooled out, or let the sites' dataset.json name one value `ignore`.",
        )
    return dataclasses.replace(write_list(folder, lists), ignore_label=ignored.pop())


def _of_site(case: Case, site: str) -> Case:
    """A patient's name with its site: patients of two sites may have one name."""
    return case if case.patient is None else dataclasses.replace(case, patient=f"{site}/{case.patient}")
