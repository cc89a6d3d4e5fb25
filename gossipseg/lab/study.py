"""What all runs of a comparison have in common, and what one run is told.

What belongs here: these values, their checks and fingerprints. What must not: running, files of results.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gossipseg.algos.params.common import Coordinated, robust_problem
from gossipseg.algos.params.common import settings as algorithm_settings
from gossipseg.config.files import FederationFile
from gossipseg.config.problems import nearest
from gossipseg.config.reading import set_dotted
from gossipseg.core.types import fingerprint
from gossipseg.errors import ConfigError
from gossipseg.lab import splits, variants
from gossipseg.lab.variants import POOLED, Variant
from gossipseg.learn.datalist import load_cases
from gossipseg.learn.params import ONE_SHOT_ALGORITHM, ONE_SHOT_NETWORK, DataParams
from gossipseg.testbed import dataset, presets

VALIDATIONS = 20
"""Unless set otherwise, validation is due about so often in a run: its curves need no more."""
SLOWEST = 4.0
FEWER = 0.25
HETEROGENEITY = {
    "speed": "sites differ in speed, evenly up to ×4; the first is the fastest",
    "cases": "one site (the one with fewest, or cases:SITE) keeps a quarter of its training cases",
}
ADVERSARIES = ("nan", "scaled", "label_flipped", "random_weights")
"""What a site that has turned bad may do (lab.adversary)."""
NOT_COMPARED = ("version", "federation", "seed", "membership", "rounds")
"""Sections that the lab sets itself, in virtual time (of `rounds`, all but the quorum), or that are names."""
MAX_SEED = 2**32 - 1
EACH = "each"
"""In place of --splits: a split of its own for each seed."""


@dataclass(frozen=True, slots=True)
class SiteSource:
    """A site's images."""

    name: str
    folder: str
    cases: Mapping[str, int]
    """By split."""
    digest: str
    """Changes when another case, or another split, is listed."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """The user's choices, as the command line gives them."""

    data: Path
    sites: str | None = None
    rounds: int | None = None
    steps: int | None = None
    peers: Path | None = None
    settings: tuple[str, ...] = ()
    """`key=value` each: a dotted key of peers.yaml."""
    site_dropout: float = 0.0
    late_join: tuple[str, ...] = ()
    """`SITE:ROUND` each."""
    heterogeneity: str = ""
    equal_evaluations: bool = False
    device: str = "cpu"
    adversary: tuple[str, ...] = ()
    """`SITE:KIND` each."""


@dataclass(frozen=True, slots=True)
class Study:
    """The common settings, checked."""

    sections: Mapping[str, Any]
    """Of peers.yaml, without sites; `algorithm` only where --peers brought one."""
    sites: tuple[SiteSource, ...]
    rounds: int
    site_dropout: float = 0.0
    """Chance that a site vanishes for a while, each time it would begin a round."""
    late_join: Mapping[str, int] = field(default_factory=dict)
    """Site → the round at which the others are when it begins."""
    speed: Mapping[str, float] = field(default_factory=dict)
    """Site → time that a step takes, in units of the fastest site's."""
    kept_cases: Mapping[str, float] = field(default_factory=dict)
    """Site → share of its training cases that it keeps."""
    equal_evaluations: bool = False
    device: str = "cpu"
    adversaries: Mapping[str, str] = field(default_factory=dict)
    """Site that has turned bad → what it does (ADVERSARIES)."""

    @property
    def names(self) -> list[str]:
        return [site.name for site in self.sites]

    def document(self) -> dict[str, Any]:
        """All settings, defaults among them, as JSON."""
        federation = dataclasses.asdict(_validated(self.sections, "peers.yaml"))
        del federation["sites"], federation["algorithm"], federation["seed"]
        return {**self.identity(), "federation": _plain(federation)}

    def identity(self) -> dict[str, Any]:
        """What was chosen, as JSON: runs of one folder agree in it. A setting that a later version adds is
        not among them, so that a study can go on."""
        return {
            "chosen": _plain({k: v for k, v in self.sections.items() if k not in NOT_COMPARED}),
            "quorum": self.sections.get("rounds", {}).get("quorum"),
            "sites": {s.name: {"cases": dict(s.cases), "digest": s.digest} for s in self.sites},
            "rounds": self.rounds,
            "site_dropout": self.site_dropout,
            "late_join": dict(self.late_join),
            "speed": dict(self.speed),
            "kept_cases": dict(self.kept_cases),
            "equal_evaluations": self.equal_evaluations,
            "device": self.device,
            **({"adversaries": dict(self.adversaries)} if self.adversaries else {}),
        }


@dataclass(frozen=True, slots=True)
class RunPlan:
    """One run: an algorithm with a seed on a split. Plain values, so that another process can be told."""

    label: str
    name: str
    slug: str
    seed: int
    federation: Mapping[str, Any]
    """Sections of peers.yaml, the algorithm's among them."""
    sites: Mapping[str, str]
    """Name → data folder, in order."""
    rounds: int
    settings: str
    """Fingerprint of all of it."""
    pooled_steps: str = "all"
    site_dropout: float = 0.0
    late_join: Mapping[str, int] = field(default_factory=dict)
    speed: Mapping[str, float] = field(default_factory=dict)
    kept_cases: Mapping[str, float] = field(default_factory=dict)
    equal_evaluations: bool = False
    device: str = "cpu"
    pictures: str = ""
    """Folder for predictions of a few test cases; "" makes none."""
    pseudolabels: str = ""
    """Folder of the pseudo-masks that runs share; "" makes them anew for each."""
    split: int = splits.OWN
    adversaries: Mapping[str, str] = field(default_factory=dict)

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


# ---------------------------------------------------------------- from the command line


def study(wanted: Wanted) -> Study:
    """Read the data folders and check every choice. Raises ConfigError, DataError."""
    if wanted.rounds is not None and wanted.rounds < 1:
        raise ConfigError(
            "must be at least 1", key="--rounds", value=wanted.rounds, remedy="Correct the number."
        )
    folders = dataset.choose_sites(wanted.data, wanted.sites)
    sections, rounds = presets.from_file(wanted.peers) if wanted.peers else presets.from_data(folders)
    if not wanted.peers:
        del sections["algorithm"]
    rounds = wanted.rounds or rounds
    sections.setdefault("training", {})
    if wanted.steps is not None:
        sections["training"]["steps_per_round"] = wanted.steps
    if not wanted.peers:
        sections["training"]["validate_every_rounds"] = max(1, rounds // VALIDATIONS)
    for text in wanted.settings:
        _set(sections, text)
    _validated(sections, "--set" if wanted.settings else str(wanted.peers or "the preset"))
    sources = tuple(_source(folder) for folder in folders)
    names = [s.name for s in sources]
    speed, kept = _heterogeneity(wanted.heterogeneity, sources)
    return Study(
        sections,
        sources,
        rounds,
        site_dropout=_share("--site-dropout", wanted.site_dropout),
        late_join=dict(_late(text, names, rounds) for text in wanted.late_join),
        speed=speed,
        kept_cases=kept,
        equal_evaluations=wanted.equal_evaluations,
        device=wanted.device,
        adversaries=dict(_adversary(text, names) for text in wanted.adversary),
    )


@dataclass(frozen=True, slots=True)
class Replicate:
    """One repetition of every algorithm."""

    seed: int
    split: int = splits.OWN


def plans(
    study: Study, chosen: Sequence[Variant], replicates: Sequence[Replicate], out: Path | None
) -> list[RunPlan]:
    """All runs of a comparison, replicate by replicate; their pictures go into `out`, if there is one, and
    the lists of redrawn splits lie there.

    Raises ConfigError for an algorithm that cannot be run so.
    """
    return [_plan(study, variant, replicate, out) for replicate in replicates for variant in chosen]


def _plan(study: Study, variant: Variant, replicate: Replicate, out: Path | None) -> RunPlan:
    seed, split = replicate.seed, replicate.split
    if study.adversaries and variant.name == POOLED:
        remedy = "Leave it out, or run it without --adversary."
        raise ConfigError("pooled has no sites", key="--algorithms", value=variant.label, remedy=remedy)
    federation = variants.federation(study.sections, variant)
    exchanges = federation.algorithm.exchange != "none"
    least = max(getattr(federation.algorithm, "min_sites", 1), 2 if exchanges else 1)
    if len(study.sites) < least:
        raise ConfigError(
            f"exchanges models: it needs {least} sites or more, and there is {len(study.sites)}",
            key="--algorithms",
            value=variant.label,
            remedy="Give more --sites, or compare local and pooled.",
        )
    found = robust_problem(federation.algorithm, len(study.sites))
    if found is not None:
        problem, _, _, remedy = found
        raise ConfigError(problem, key="--algorithms", value=variant.label, remedy=remedy)
    sections = _plain(dataclasses.asdict(federation))
    del sections["sites"]
    sections["seed"] = seed
    pooled = variants.pooled_steps(variant) if variant.name == POOLED else "all"
    settings = {
        **study.identity(),
        "algorithm": _plain(algorithm_settings(federation.algorithm)),
        "variant": [variant.name, *variant.options],
        "seed": seed,
        "pooled": pooled,
        **({"split": split} if split != splits.OWN else {}),
    }
    if isinstance(federation.algorithm, Coordinated) and federation.algorithm.finetune_rounds >= study.rounds:
        raise ConfigError(
            f"finetune_rounds ({federation.algorithm.finetune_rounds}) leaves no round to learn together",
            key="--algorithms",
            value=variant.label,
            remedy=f"Give more --rounds, or {variant.name}[finetune_rounds={max(0, study.rounds // 4)}].",
        )
    return RunPlan(
        variant.label,
        variant.name,
        variant.slug,
        seed,
        sections,
        {s.name: _folder(s, split, out) for s in study.sites},
        study.rounds,
        digest(settings),
        pooled,
        study.site_dropout,
        study.late_join,
        study.speed,
        study.kept_cases,
        study.equal_evaluations,
        study.device,
        str(out.absolute() / "pictures") if out else "",
        str(out.absolute() / "pseudolabels") if out else "",
        split,
        study.adversaries,
    )


def _folder(source: SiteSource, split: int, out: Path | None) -> str:
    if split == splits.OWN or out is None:
        return source.folder
    return str(splits.folder_of(out.absolute(), split, source.name))


def digest(document: Mapping[str, Any]) -> str:
    """32 hex digits that stand for a JSON document."""
    return fingerprint((("lab", json.dumps(document, sort_keys=True)),))


def read_replicates(seeds: str, splits: str) -> list[Replicate]:
    """Every seed with every split; `each`: every seed with the split of its number. Raises ConfigError."""
    numbers = _whole_numbers("--seeds", seeds)
    if splits.strip() == EACH:
        return [Replicate(n, n) for n in numbers]
    return [Replicate(n, split) for split in _whole_numbers("--splits", splits) for n in numbers]


def _whole_numbers(key: str, text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(p.isascii() and p.isdigit() and int(p) <= MAX_SEED for p in parts):
        raise ConfigError("are whole numbers with commas between", key=key, value=text, remedy="Write 0,1,2.")
    return list(dict.fromkeys(int(p) for p in parts))


def _validated(sections: Mapping[str, Any], origin: str) -> FederationFile:
    """The common settings, under an algorithm that their network suits. Raises ConfigError."""
    network = sections.get("network", {})
    if "algorithm" not in sections and network.get("name") == ONE_SHOT_NETWORK:
        sections = {**sections, "algorithm": {"name": ONE_SHOT_ALGORITHM}}
    return variants.validated(sections, origin)


def _set(sections: dict[str, Any], text: str) -> None:
    key, equals, value = text.partition("=")
    if not equals or not key or not value:
        raise ConfigError(
            "is no setting", key="--set", value=text, remedy="Write --set training.learning_rate=1e-3."
        )
    if key.startswith(("sites", "algorithm")) or key == "seed":
        raise ConfigError(
            "is not set so",
            key="--set",
            value=text,
            remedy="Use --sites, --seeds, and --algorithms NAME[key=value].",
        )
    set_dotted(sections, key, value, "--set", is_text=False)


def _source(folder: Path) -> SiteSource:
    splits = load_cases(DataParams(str(folder.absolute())), folder.name, needs_labels=False)
    listed = [
        (split, case.id, [f.stat().st_size for f in (*case.files, *([case.label] if case.label else []))])
        for split, case in splits
    ]
    if not any(case.label for case in splits.test):
        raise ConfigError(
            "has no labelled test case", key="--data", value=str(folder), remedy="Leave it out with --sites."
        )
    digest = hashlib.sha256(json.dumps(listed).encode()).hexdigest()[:16]
    return SiteSource(folder.name.lower(), str(folder.absolute()), splits.counts, digest)


def _share(key: str, value: float) -> float:
    if not (math.isfinite(value) and 0 <= value < 1):
        raise ConfigError("must be at least 0 and below 1", key=key, value=value, remedy="Write 0.1, say.")
    return value


def _late(text: str, names: Sequence[str], rounds: int) -> tuple[str, int]:
    site, _, number = text.rpartition(":")
    _need_site("--late-join", site, names)
    if not number.isdigit() or not 2 <= int(number) <= rounds:
        raise ConfigError(
            f"needs a round from 2 to {rounds}",
            key="--late-join",
            value=text,
            remedy="Write SITE:ROUND, such as " + f"{site}:{max(2, rounds // 2)}.",
        )
    return site, int(number)


def _adversary(text: str, names: Sequence[str]) -> tuple[str, str]:
    site, _, kind = text.partition(":")
    _need_site("--adversary", site, names)
    if kind not in ADVERSARIES:
        remedy = f"Write SITE:KIND with one of {', '.join(ADVERSARIES)}."
        raise ConfigError("no such kind of adversary", key="--adversary", value=text, remedy=remedy)
    return site, kind


def _need_site(key: str, site: str, names: Sequence[str]) -> None:
    if site not in names:
        hint = nearest(site, names) or f"The sites are {', '.join(names)}."
        raise ConfigError("no such site", key=key, value=site, remedy=hint)


def _heterogeneity(text: str, sources: Sequence[SiteSource]) -> tuple[dict[str, float], dict[str, float]]:
    """(speed, kept_cases) of a preset."""
    name, _, site = text.partition(":")
    names = [s.name for s in sources]
    if name == "speed" and not site:
        last = max(1, len(names) - 1)
        return {n: round(SLOWEST ** (i / last), 4) for i, n in enumerate(names)}, {}
    if name == "cases":
        fewest = min(sources, key=lambda s: (s.cases["training"], s.name)).name
        _need_site("--heterogeneity", site or fewest, names)
        return {}, {site or fewest: FEWER}
    if text:
        raise ConfigError(
            "no such preset",
            key="--heterogeneity",
            value=text,
            remedy="; ".join(f"{k}: {v}" for k, v in HETEROGENEITY.items()) + ".",
        )
    return {}, {}


def _plain(value: Any) -> Any:
    """As JSON would give it back, but for integer keys."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value
