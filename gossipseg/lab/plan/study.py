"""The settings that all runs of a comparison share, and the fingerprint that distinguishes two such sets."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gossipseg.config.files import FederationFile
from gossipseg.core.types import fingerprint
from gossipseg.lab.plan import variants
from gossipseg.learn.params import ONE_SHOT_ALGORITHM, ONE_SHOT_NETWORK, DataParams

NOT_COMPARED = ("version", "federation", "seed", "membership", "rounds")
"""Sections that the lab sets itself, in virtual time (of `rounds`, all but the quorum), or that are names."""


@dataclass(frozen=True, slots=True)
class SiteSource:
    """A site's images."""

    name: str
    data: DataParams
    cases: Mapping[str, int]
    """Number of cases by split."""
    digest: str
    """A hash that changes when another case, or another split, is listed."""
    rewritten: bool = False
    """Whether a list of the lab's replaces the site's own split (lab.plan.splits)."""
    note: str = ""
    """A note to the user on that split."""


@dataclass(frozen=True, slots=True)
class Study:
    """The shared settings, checked."""

    sections: Mapping[str, Any]
    """Sections of peers.yaml, without sites; `algorithm` only where --peers had one."""
    sites: tuple[SiteSource, ...]
    rounds: int
    site_dropout: float = 0.0
    """Probability that a site is away for a while, each time it would begin a round."""
    late_join: Mapping[str, int] = field(default_factory=dict)
    """Site → the others' round at which it begins."""
    speed: Mapping[str, float] = field(default_factory=dict)
    """Site → duration of its step, in units of the fastest site's."""
    kept_cases: Mapping[str, float] = field(default_factory=dict)
    """Site → share of its training cases that it keeps."""
    equal_evaluations: bool = False
    device: str = "cpu"
    adversaries: Mapping[str, str] = field(default_factory=dict)
    """Malicious site → its attack (choices.ADVERSARIES)."""
    patient_pattern: str | None = None
    """data.patient_pattern of every site."""
    own: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """What the user wrote in the sections: no algorithm's preset replaces it."""

    @property
    def names(self) -> list[str]:
        return [site.name for site in self.sites]

    def document(self) -> dict[str, Any]:
        """All settings, defaults among them, as JSON."""
        federation = dataclasses.asdict(common_settings(self.sections, "peers.yaml"))
        del federation["sites"], federation["algorithm"], federation["seed"]
        return {**self.identity(), "federation": plain(federation)}

    def identity(self) -> dict[str, Any]:
        """The choices, as JSON: runs of one folder agree in them. A setting that a later version adds is not
        among them, so that a study can continue."""
        return {
            "chosen": plain({k: v for k, v in self.sections.items() if k not in NOT_COMPARED}),
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
            **({"patient_pattern": self.patient_pattern} if self.patient_pattern else {}),
        }


def common_settings(sections: Mapping[str, Any], origin: str) -> FederationFile:
    """The shared settings, under an algorithm that their network suits. Raises ConfigError."""
    network = sections.get("network", {})
    if "algorithm" not in sections and network.get("name") == ONE_SHOT_NETWORK:
        sections = {**sections, "algorithm": {"name": ONE_SHOT_ALGORITHM}}
    return variants.validated(sections, origin)


def digest(document: Mapping[str, Any]) -> str:
    """Hash of a JSON document, 32 hex digits."""
    return fingerprint((("lab", json.dumps(document, sort_keys=True)),))


def plain(value: Any) -> Any:
    """The value as JSON would return it, but with integer keys."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    return [plain(v) for v in value] if isinstance(value, list | tuple) else value
