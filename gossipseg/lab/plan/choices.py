"""The user's choices on the command line: parsed and checked."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gossipseg.config.problems import nearest
from gossipseg.config.reading import set_dotted
from gossipseg.errors import ConfigError
from gossipseg.lab.plan.run_plans import Replicate
from gossipseg.lab.plan.splits import own_division
from gossipseg.lab.plan.study import SiteSource, Study, common_settings
from gossipseg.learn.data.dataset import content_of
from gossipseg.learn.params import PATTERN_REMEDY, DataParams, pattern_problem
from gossipseg.testbed import dataset, presets

VALIDATIONS = 20
"""Validations per run unless set otherwise: its curves need no more."""
SLOWEST = 4.0
FEWER = 0.25
HETEROGENEITY = {
    "speed": "sites differ in speed, evenly up to ×4; the first is the fastest",
    "cases": "one site (the one with fewest), or those of cases:SITE+SITE, keep a quarter of their training "
    "cases",
}
ADVERSARIES = ("nan", "scaled", "label_flipped", "random_weights")
"""Attacks that a malicious site may make (lab.simulation.adversary)."""
MOST_TIMES = 10**12
"""How many times its training cases it may claim at most."""
MAX_SEED = 2**32 - 1
_DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")
EACH = "each"
"""The value of --splits that gives each seed its own split."""


@dataclass(frozen=True, slots=True)
class WantedRuns:
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
    patient_pattern: str | None = None
    """data.patient_pattern of all sites."""


def read(wanted: WantedRuns) -> Study:
    """Read the data folders and check every choice. Raises ConfigError, DataError."""
    _check_words(wanted)
    folders = dataset.choose_sites(wanted.data, wanted.sites)
    sections, rounds = _sections(wanted, folders)
    sources = tuple(_source(folder, wanted.patient_pattern) for folder in folders)
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
        patient_pattern=wanted.patient_pattern,
        own=_own(wanted, volumes=sections["task"].get("spatial_dims", 2) == 3),
    )


def _check_words(wanted: WantedRuns) -> None:
    """Check what can be judged before any file is read."""
    if wanted.rounds is not None and wanted.rounds < 1:
        raise ConfigError(
            "must be at least 1", key="--rounds", value=wanted.rounds, remedy="Correct the number."
        )
    if not _DEVICE.fullmatch(wanted.device):
        remedy = "Write cpu, cuda, cuda:1 or auto."
        raise ConfigError("is no device", key="--device", value=wanted.device, remedy=remedy)
    problem = pattern_problem(wanted.patient_pattern)
    if problem is not None:
        raise ConfigError(
            problem, key="--patient-pattern", value=wanted.patient_pattern, remedy=PATTERN_REMEDY
        )
    if wanted.peers is not None and not wanted.peers.is_file():
        remedy = "Give the path of a peers.yaml, or leave --peers out: a preset is made from the data then."
        raise ConfigError("no such file", key="--peers", value=str(wanted.peers), remedy=remedy)


def _sections(wanted: WantedRuns, folders: list[Path]) -> tuple[dict[str, Any], int]:
    """(sections of peers.yaml, rounds): from --peers or the data, then changed by --steps and --set."""
    sections, rounds = presets.from_file(wanted.peers) if wanted.peers else presets.from_data(folders)
    if not wanted.peers:
        del sections["algorithm"]
    sections.setdefault("training", {})
    if wanted.steps is not None:
        sections["training"]["steps_per_round"] = wanted.steps
    if not _writes_budget(wanted):
        sections["training"]["rounds"] = wanted.rounds or rounds
    for text in wanted.settings:
        _set(sections, text)
    read = common_settings(sections, "--set" if wanted.settings else str(wanted.peers or "the preset"))
    of_all = read.training.rounds
    rounds = wanted.rounds or of_all or rounds
    if not wanted.peers and "training.validate_every_rounds" not in _said(wanted):
        sections["training"]["validate_every_rounds"] = max(1, rounds // VALIDATIONS)
    if of_all is not None and rounds > of_all:
        raise ConfigError(
            f"is more than training.rounds ({of_all}), at which all sites end",
            key="--rounds",
            value=rounds,
            remedy=f"Write --rounds {of_all} or less, or another training.rounds.",
        )
    return sections, rounds


def _writes_budget(wanted: WantedRuns) -> bool:
    """Whether --peers or --set has training.rounds, the default length of a cosine schedule."""
    written = presets.written(wanted.peers) if wanted.peers else presets.NOTHING_WRITTEN
    return (written.get("training") or {}).get("rounds") is not None or "training.rounds" in _said(wanted)


def _said(wanted: WantedRuns) -> set[str]:
    """The keys set by --set."""
    return {text.partition("=")[0] for text in wanted.settings}


def _own(wanted: WantedRuns, *, volumes: bool) -> dict[str, dict[str, Any]]:
    """The task and training settings of --peers and --set.

    A task of volumes yields none: where an algorithm reads volumes as slices, it needs a patch of its own.
    """
    written = presets.written(wanted.peers) if wanted.peers else presets.NOTHING_WRITTEN
    own = {name: dict(written.get(name) or {}) for name in ("task", "training")}
    for text in wanted.settings:
        key, _, value = text.partition("=")
        section, _, name = key.partition(".")
        if section in own:
            own[section][name] = value
    return {"training": own["training"]} if volumes else own


def read_replicates(seeds: str, splits: str) -> list[Replicate]:
    """Every seed with every split; `each`: every seed with the split of its number. Raises ConfigError."""
    numbers = _whole_numbers("--seeds", seeds)
    if splits.strip() == EACH:
        return [Replicate(n, n) for n in numbers]
    return [Replicate(n, split) for split in _whole_numbers("--splits", splits) for n in numbers]


def _whole_numbers(key: str, text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(p.isascii() and p.isdigit() and int(p) <= MAX_SEED for p in parts):
        problem = f"must be whole numbers up to {MAX_SEED}, with commas between"
        raise ConfigError(problem, key=key, value=text, remedy="Write 0,1,2.")
    return list(dict.fromkeys(int(p) for p in parts))


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


def _source(folder: Path, patient_pattern: str | None) -> SiteSource:
    said, _ = dataset.own_settings(folder)
    data = DataParams(str(folder.absolute()), patient_pattern=patient_pattern, **said)
    splits, rewritten, note = own_division(data, folder.name.lower())
    listed: list[Any] = [
        (split, case.id, content_of(case), *([case.patient] if case.patient is not None else []))
        for split, case in splits
    ]
    if data.ignore_label is not None:
        listed.append(("ignored", data.ignore_label))
    if not any(case.label for case in splits.test):
        raise ConfigError(
            "has no labelled test case", key="--data", value=str(folder), remedy="Leave it out with --sites."
        )
    digest = hashlib.sha256(json.dumps(listed).encode()).hexdigest()[:16]
    return SiteSource(folder.name.lower(), data, splits.counts, digest, rewritten, note)


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
    site, _, attack = text.partition(":")
    kind, star, times = attack.partition("*")
    _need_site("--adversary", site, names)
    if kind not in ADVERSARIES:
        remedy = f"Write SITE:KIND with one of {', '.join(ADVERSARIES)}."
        raise ConfigError("no such kind of adversary", key="--adversary", value=text, remedy=remedy)
    if star and not (times.isdecimal() and 1 <= int(times) <= MOST_TIMES):
        remedy = f"Write SITE:KIND*TIMES with a whole number from 1 to {MOST_TIMES}."
        raise ConfigError("no such multiple of its cases", key="--adversary", value=text, remedy=remedy)
    return site, attack


def attack_of(text: str) -> tuple[str, int]:
    """The kind of an adversary, and how many times its training cases it claims."""
    kind, _, times = text.partition("*")
    return kind, int(times or 1)


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
        poor = site.split("+") if site else [fewest]
        for one in poor:
            _need_site("--heterogeneity", one, names)
        return {}, dict.fromkeys(poor, FEWER)
    if text:
        raise ConfigError(
            "no such preset",
            key="--heterogeneity",
            value=text,
            remedy="; ".join(f"{k}: {v}" for k, v in HETEROGENEITY.items()) + ".",
        )
    return {}, {}
