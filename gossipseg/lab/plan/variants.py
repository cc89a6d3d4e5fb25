"""Which algorithms are compared, and with which settings: `gcml`, `fedavg@3`, `gcml[lambda=0,region=whole]`.

A key in brackets is the algorithm's own, or a dotted key of peers.yaml: `gcml[gossip.sender_rate=1]`.
`@3` is short for exchange_at.every_rounds, as is `every_rounds` in brackets, where earlier versions had it.
One that begins with `site.` is of a site's own file (site_settings.py).
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from gossipseg import config
from gossipseg.algos import params as algorithms
from gossipseg.algos.params import params_class
from gossipseg.config.files import FederationFile
from gossipseg.config.problems import nearest
from gossipseg.config.reading import set_dotted
from gossipseg.errors import ConfigError
from gossipseg.testbed import presets

POOLED = "pooled"
"""One trainer over the training cases of all sites: the result if the images could be shared."""
LONE_PAIR = "lone_pair"
"""Two models of each site, trained alone from different seeds, that predict together."""
OF_THE_LAB = {POOLED: "local", LONE_PAIR: "gossip_average"}
"""Rows that are no algorithm, and the algorithm whose settings each has."""
POOLED_STEPS = ("all", "site")
"""`pooled[steps=…]`: per round, as many steps as all sites together take, or as one of them takes."""
OF_A_SITE = "site."
"""What a key of site.yaml begins with."""
_ENTRY = re.compile(r"(?P<name>[a-z_][a-z0-9_]*)(?:@(?P<every>\d+))?(?:\[(?P<options>[^\[\]]*)\])?")
EXCHANGE_AT = ("exchange_at.every_rounds", "exchange_at.summed_rate")
Sections = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Variant:
    """One row of the comparison."""

    label: str
    """The entry as the user wrote it, without blanks."""
    name: str
    options: tuple[tuple[str, str], ...] = ()
    """Key and value as written; keys without a dot belong to the algorithm."""

    @property
    def slug(self) -> str:
        """The entry as a file name."""
        return re.sub(r"[^A-Za-z0-9_.=-]+", "+", self.label).strip("+")


def known() -> list[str]:
    """Names that may be compared."""
    return [*algorithms.names(), *OF_THE_LAB]


def parse(text: str) -> list[Variant]:
    """Parse a comma-separated list of entries. Raises ConfigError."""
    found = [_known(read(part)) for part in _split(re.sub(r"\s+", "", text))]
    if not found:
        raise _wrong(text, "names no algorithm", f"Choose from {', '.join(known())}.")
    labels = [variant.label for variant in found]
    for label in labels:
        if labels.count(label) > 1:
            raise _wrong(label, "stands there twice", "Name each once; compare settings as gcml[lambda=0].")
    return found


def read_claims(texts: Sequence[str], chosen: Sequence[Variant]) -> list[tuple[str, str]]:
    """Parse pairs of `A:B`, two of the chosen labels. Raises ConfigError."""
    labels = [variant.label for variant in chosen]
    pairs = {f"{a}:{b}": (a, b) for a in labels for b in labels if a != b}
    for text in texts:
        if re.sub(r"\s+", "", text) not in pairs:
            raise ConfigError(
                "names no two of the algorithms",
                key="--claim",
                value=text,
                remedy=f"Write A:B, each as --algorithms has it: {', '.join(labels)}.",
            )
    return [pairs[re.sub(r"\s+", "", text)] for text in texts]


def _split(text: str) -> list[str]:
    """Split at the commas outside brackets."""
    return [part for part in re.split(r",(?![^\[\]]*\])", text) if part]


def _known(variant: Variant) -> Variant:
    if variant.name not in known():
        remedy = nearest(variant.name, known()) or f"Choose from {', '.join(known())}."
        raise _wrong(variant.label, "no such algorithm", remedy)
    return variant


def read(text: str) -> Variant:
    """Read one entry, of an algorithm that may not be installed here. Raises ConfigError."""
    match = _ENTRY.fullmatch(text)
    if match is None:
        raise _wrong(text, "cannot be read", "Write name, name@3 or name[key=value,key=value].")
    options = [("every_rounds", match["every"])] if match["every"] else []
    for pair in filter(None, (match["options"] or "").split(",")):
        key, equals, value = pair.partition("=")
        if not equals or not key or not value:
            raise _wrong(text, f"{pair} is no setting", "Write name[key=value,key=value].")
        options.append((key, value))
    return Variant(text, match["name"], tuple(options))


def _wrong(value: str, problem: str, remedy: str) -> ConfigError:
    return ConfigError(problem, key="--algorithms", value=value, remedy=remedy)


# ---------------------------------------------------------------- as settings


def federation(
    sections: Sections, variant: Variant, own: Sections = presets.NOTHING_WRITTEN
) -> FederationFile:
    """The settings of peers.yaml (without sites) under this variant; `own`: those that the user wrote.

    Raises ConfigError.
    """
    raw = copy.deepcopy(dict(sections))
    presets.set_algorithm(raw, OF_THE_LAB.get(variant.name, variant.name), own)
    if variant.name == POOLED:
        pooled_steps(variant)
    elif sections.get("algorithm", {}).get("name") == variant.name:
        raw["algorithm"] = dict(sections["algorithm"])
    if not {"every_rounds", *EXCHANGE_AT}.isdisjoint(dict(variant.options)):
        raw.pop("exchange_at", None)  # of its two keys one stands
    for key, value in variant.options:
        if key.startswith(OF_A_SITE):
            continue
        if key == "every_rounds":
            if params_class(raw["algorithm"]["name"]).exchange == "none":
                problem = f"every_rounds={value}: {variant.name} exchanges nothing"
                raise _wrong(variant.label, problem, "Leave it out.")
            set_dotted(raw, EXCHANGE_AT[0], value, f"--algorithms {variant.label}", is_text=False)
        elif "." in key:
            set_dotted(raw, key, value, f"--algorithms {variant.label}", is_text=False)
        elif variant.name != POOLED:
            # The file's spelling stands for the field (`lambda`), so that a later value replaces it.
            raw["algorithm"].pop(f"{key}_", None)
            set_dotted(raw, f"algorithm.{key}", value, f"--algorithms {variant.label}", is_text=False)
    return validated(raw, f"--algorithms {variant.label}")


def pooled_steps(variant: Variant) -> str:
    """`all` or `site`. Raises ConfigError for any other setting of `pooled`."""
    steps = "all"
    for key, value in variant.options:
        if key == "steps" and value in POOLED_STEPS:
            steps = value
        elif "." not in key:
            raise _wrong(
                variant.label, f"{key}={value} is no setting of pooled", "It takes steps=all or site."
            )
    return steps


def validated(sections: Sections, origin: str) -> FederationFile:
    """Sections as the product reads them. Raises ConfigError naming `origin`, key and value."""
    text = yaml.safe_dump(dict(sections), sort_keys=False, allow_unicode=True)
    return config.load_federation(Path(origin), text=text)
