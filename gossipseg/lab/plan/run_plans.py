"""The settings of one run of a comparison: an algorithm, a seed, a split, and what goes with them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gossipseg.algos.params import AlgorithmParams
from gossipseg.algos.params.common import robust_problem
from gossipseg.algos.params.common import settings as algorithm_settings
from gossipseg.config.exchange import exchange_terms, exchange_times, together_problem
from gossipseg.config.files import FederationFile
from gossipseg.errors import ConfigError
from gossipseg.lab.plan import splits, variants
from gossipseg.lab.plan.site_settings import personal_networks
from gossipseg.lab.plan.study import SiteSource, Study, digest, plain
from gossipseg.lab.plan.variants import LONE_PAIR, POOLED, Variant
from gossipseg.learn.params import DataParams


@dataclass(frozen=True, slots=True)
class Replicate:
    """One repetition of every algorithm."""

    seed: int
    split: int = splits.OWN


@dataclass(frozen=True, slots=True)
class RunPlan:
    """One run: an algorithm with a seed on a split. Plain values, so that another process can receive
    them."""

    label: str
    name: str
    slug: str
    seed: int
    federation: Mapping[str, Any]
    """Sections of peers.yaml, with the algorithm's."""
    sites: Mapping[str, str]
    """Name → data folder, in order."""
    rounds: int
    settings: str
    """Fingerprint of all settings."""
    pooled_steps: str = "all"
    site_dropout: float = 0.0
    late_join: Mapping[str, int] = field(default_factory=dict)
    speed: Mapping[str, float] = field(default_factory=dict)
    kept_cases: Mapping[str, float] = field(default_factory=dict)
    equal_evaluations: bool = False
    device: str = "cpu"
    pictures: str = ""
    """Folder for predictions of a few test cases; "": none are made."""
    pseudolabels: str = ""
    """Folder of the pseudo-masks that runs share; "": each run makes its own."""
    personal_records: str = ""
    """Folder of the personal models that runs share; "": each run trains its own."""
    split: int = splits.OWN
    adversaries: Mapping[str, str] = field(default_factory=dict)
    ignored: Mapping[str, int] = field(default_factory=dict)
    """data.ignore_label of the sites whose lists name one."""
    personal_networks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """personal_network of the sites that have one."""

    def data(self, site: str) -> DataParams:
        """The folder of the site's images, and what its list says of its labels."""
        return DataParams(self.sites[site], ignore_label=self.ignored.get(site))

    @property
    def key(self) -> str:
        """The run's file, without suffix."""
        return f"{self.slug}-seed{self.seed}" + (f"-split{self.split}" if self.split != splits.OWN else "")

    def budget(self, site: str) -> int:
        """Rounds that the site trains: a late joiner ends with the others."""
        return self.rounds - self.late_join.get(site, 1) + 1

    def parsed(self) -> FederationFile:
        """The settings as the product reads them."""
        return variants.validated(self.federation, f"run {self.key}")


def plans(
    study: Study, chosen: Sequence[Variant], replicates: Sequence[Replicate], out: Path | None
) -> list[RunPlan]:
    """All runs of a comparison, one repetition after the other.

    `out`, if given, receives their pictures and the data lists that the lab writes. Raises ConfigError for an
    algorithm that cannot be run with these settings.
    """
    return [_plan(study, variant, replicate, out) for replicate in replicates for variant in chosen]


def _plan(study: Study, variant: Variant, replicate: Replicate, out: Path | None) -> RunPlan:
    if study.adversaries and variant.name == POOLED:
        remedy = "Leave it out, or run it without --adversary."
        raise _impossible(variant, "pooled has no sites", remedy)
    federation = _federation(study, variant)
    _check_sites(federation.algorithm, study, variant)
    _check_rounds(federation, study, variant)
    pooled = variants.pooled_steps(variant) if variant.name == POOLED else "all"
    sections = plain(dataclasses.asdict(federation))
    del sections["sites"]
    return RunPlan(
        label=variant.label,
        name=variant.name,
        slug=variant.slug,
        seed=replicate.seed,
        federation={**sections, "seed": replicate.seed},
        sites={s.name: _folder(s, replicate.split, out) for s in study.sites},
        rounds=study.rounds,
        settings=_fingerprint(study, variant, federation, replicate, pooled),
        pooled_steps=pooled,
        site_dropout=study.site_dropout,
        late_join=study.late_join,
        speed=study.speed,
        kept_cases=study.kept_cases,
        equal_evaluations=study.equal_evaluations,
        device=study.device,
        pictures=str(out.absolute() / "pictures") if out else "",
        pseudolabels=str(out.absolute() / "pseudolabels") if out else "",
        personal_records=str(out.absolute() / "personal") if out else "",
        split=replicate.split,
        adversaries=study.adversaries,
        ignored={s.name: s.data.ignore_label for s in study.sites if s.data.ignore_label is not None},
        personal_networks=personal_networks(variant, study.names, federation),
    )


def _federation(study: Study, variant: Variant) -> FederationFile:
    """The settings of a run. Of the shared settings, only the budget can be unsuitable for an algorithm."""
    if "training.rounds" in dict(variant.options):
        remedy = "Give --rounds, for all of them; training.schedule_rounds alone is the cosine's length."
        raise _impossible(
            variant, "its training.rounds would be another number of rounds than the others train", remedy
        )
    try:
        return variants.federation(study.sections, variant, study.own)
    except ConfigError as e:
        if e.key != "training.rounds":
            raise
        training = {k: v for k, v in study.sections["training"].items() if k != "rounds"}
        try:
            without = variants.federation({**study.sections, "training": training}, variant, study.own)
        except ConfigError:
            raise e from None  # exchange_at.summed_rate asks for the budget
        _check_rounds(without, study, variant)
        raise


def _check_sites(algorithm: AlgorithmParams, study: Study, variant: Variant) -> None:
    exchanges = algorithm.exchange != "none" and variant.name != LONE_PAIR
    least = max(getattr(algorithm, "min_sites", 1), 2 if exchanges else 1)
    if len(study.sites) < least:
        raise _impossible(
            variant,
            f"exchanges models: it needs {least} sites or more, and there is {len(study.sites)}",
            "Give more --sites, or compare local and pooled.",
        )
    found = robust_problem(algorithm, len(study.sites))
    if found is not None:
        problem, _, _, remedy = found
        raise _impossible(variant, problem, remedy)


def _check_rounds(federation: FederationFile, study: Study, variant: Variant) -> None:
    """Check that some rounds are learned together, and that a late joiner takes part in one of them."""
    found = together_problem(federation, study.rounds)
    if found is not None:
        problem, key, least = found
        less = {"algorithm.finetune_rounds": study.rounds // 4, "exchange_at.summed_rate": 0.1}.get(key, 1)
        other = f"{variant.name}[{key.removeprefix('algorithm.')}={less}]"
        remedy = f"Give --rounds {least} or more, or {other}."
        raise _impossible(variant, f"--rounds {study.rounds} {problem}", remedy)
    if federation.algorithm.exchange == "rounds":
        _check_late(federation, study, variant)


def _check_late(federation: FederationFile, study: Study, variant: Variant) -> None:
    times, alone = exchange_times(federation), getattr(federation.algorithm, "finetune_rounds", 0)
    last = times.end_of(times.until(study.rounds - alone))
    for site, number in study.late_join.items():
        if number > last:
            raise ConfigError(
                f"joins {variant.label} after round {last}, the last that is exchanged",
                key="--late-join",
                value=f"{site}:{number}",
                remedy=f"Write {site}:{last} or less." if last > 1 else "Give more --rounds.",
            )


def _impossible(variant: Variant, problem: str, remedy: str) -> ConfigError:
    return ConfigError(problem, key="--algorithms", value=variant.label, remedy=remedy)


def _fingerprint(
    study: Study, variant: Variant, federation: FederationFile, replicate: Replicate, pooled: str
) -> str:
    """Hash of everything that the run's result depends on. It identifies finished runs: it may not change."""
    when = {key.removeprefix("algorithm."): value for key, value in exchange_terms(federation).items()}
    return digest(
        {
            **study.identity(),
            "algorithm": plain(algorithm_settings(federation.algorithm)) | when,
            "variant": [variant.name, *variant.options],
            "seed": replicate.seed,
            "pooled": pooled,
            **({"drawn": "site, then case"} if variant.name == POOLED else {}),
            **({"split": replicate.split} if replicate.split != splits.OWN else {}),
        }
    )


def _folder(source: SiteSource, split: int, out: Path | None) -> str:
    if not splits.is_written(source.rewritten, split):
        return source.data.path
    if out is None:
        raise ValueError("the data lists of this split need a folder")
    return str(splits.folder_of(out.absolute(), split, source.name))
