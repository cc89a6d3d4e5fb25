"""The study's runs: collected from gossiplab's folders, grouped to methods, and compared.

A line of data/SET.jsonl is a site of a run.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

DATA = Path(__file__).parent / "data"

SETS = {
    "hippocampus": "Three hippocampus sites that look alike",
    "hippocampus-long": "The hippocampus sites, trained twice as long",
    "hippocampus-eight": "The hippocampus sites with eight validation patients each",
    "retina": "Five retinal cameras",
    "brain": "Three brain sites, one task in three MR sequences",
    "brain-long": "The brain sites, trained twice as long",
    "nuclei": "Three groups of microscopy nuclei",
    "poor": "One rich hippocampus site and two poor ones",
}
MARGIN, UNDECIDED = 0.005, 0.02
"""Not worse: the 90 % interval's lower end is above −MARGIN, and it is not wider than UNDECIDED."""
RESAMPLES, CONFIDENCE = 10_000, 0.9
ALONE, FEDAVG = "local", "fedavg[wire.dtype=float16], shared model alone"
FEDAVG_INT8 = "fedavg, shared model alone"
SHIPPED = {"gossip.exchange": "swap", "wire.dtype": "int8"}
"""Defaults that have changed since some runs were made: a row's name says what differs from them."""
NO_EXCHANGE = ("local", "lone_pair", "pooled")
"""Heads of the names of rows in which no site sends anything."""
NEAR = 1.35
"""Bytes are about equal where neither is more than this many times the other."""
TWICE = {
    ALONE: "local[training.steps_per_round=30]",
    FEDAVG: "fedavg[training.personal=none,training.steps_per_round=30,wire.dtype=float16]",
}
"""The same with as many gradients as two models take. Where all train twice as long, those of the longest
runs stand in their place (`methods`)."""
BASE, LONG = "training.steps_per_round=30", "training.steps_per_round=60"

Line = dict[str, Any]
Cell = tuple[int, int, str]
"""(split, seed, site)."""


# ---------------------------------------------------------------- collecting


def collect(name: str, folders: Sequence[Path]) -> int:
    """Add what the folders' finished runs say to data/NAME.jsonl; how many lines it has now.

    Raises SystemExit where a personal model is not the model of training alone: the runs would not belong
    together.
    """
    file = DATA / f"{name}.jsonl"
    lines = {identity(line): line for line in (read(file) if file.exists() else [])}
    for folder in folders:
        for run in sorted((folder / "runs").glob("*.json")):
            document = json.loads(run.read_text(encoding="utf-8"))
            entry = named(document["algorithm"], document["federation"])
            for row in document["rows"]:
                line = {**kept(row), "algorithm": entry}
                lines[identity(line)] = line
    if strange := strangers(lines.values()):
        raise SystemExit(f"{name}: the personal model is not what local gives in {', '.join(strange)}")
    DATA.mkdir(exist_ok=True)
    text = "".join(json.dumps(lines[key], sort_keys=True) + "\n" for key in sorted(lines))
    file.write_text(text, encoding="utf-8")
    return len(lines)


def named(label: str, federation: Mapping[str, Any]) -> str:
    """The entry of `gossiplab --algorithms` that makes this run under today's defaults."""
    name, _, inside = label.removesuffix("]").partition("[")
    if name in NO_EXCHANGE:
        return label
    keys = dict(pair.split("=", 1) for pair in inside.split(",") if pair)
    for key, shipped in SHIPPED.items():
        section, _, setting = key.partition(".")
        value = federation[section][setting]
        keys.pop(key, None)
        if value != shipped and (key != "gossip.exchange" or name.startswith(("gcml", "gossip"))):
            keys[key] = value
    return f"{name}[{','.join(f'{k}={v}' for k, v in sorted(keys.items()))}]" if keys else name


def kept(row: Mapping[str, Any]) -> Line:
    """What the study reads of a row of results.json."""
    deployed = row.get("deployed") or {}
    line = {key: row[key] for key in ("algorithm", "split", "seed", "site", "rounds", "curve")}
    return line | {
        "dice": row["dice_test"],
        "bytes": row["model_bytes_out"],
        "gradients": row["gradient_evaluations"],
        "cases": row["cases_training"],
        "patients": len(set(row["patients"].values())),
        "members": row.get("members") or {},
        "weights": deployed.get("weights", {}),
        "validated": deployed.get("patients"),
        "why": deployed.get("why", ""),
        "by_share": row.get("by_share", {}),
        "whose": row.get("validated", []),
    }


def strangers(lines: Iterable[Line]) -> list[str]:
    """Runs whose personal model differs from training alone on the same split and seed."""
    lines = list(lines)
    alone = {identity(line)[1:]: line["dice"] for line in lines if line["algorithm"] == ALONE}
    return sorted({
        f"{line['algorithm']} (seed {line['seed']})"
        for line in lines
        if line["members"] and not OTHER_PERSONAL.match(line["algorithm"])
        and line["members"]["personal"] != alone.get(identity(line)[1:], line["members"]["personal"])
    })  # fmt: skip


OTHER_PERSONAL = re.compile(r"ditto|lone_pair|gcml\[.*mutual=both")
"""Rows whose personal model is no lone model of this seed."""


def identity(line: Line) -> tuple[str, int, int, str]:
    return line["algorithm"], line["split"], line["seed"], line["site"]


def read(file: Path) -> list[Line]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


# ---------------------------------------------------------------- methods


@dataclass(frozen=True)
class Method:
    """A row of a table: what a site would have, by cell."""

    name: str
    dice: Mapping[Cell, float]
    bytes: float
    """Sent by all sites together, mean over the repetitions."""
    gradients: float
    validation: float | None = None
    """Mean validation Dice of what is deployed; None where it was not measured."""

    @property
    def repetitions(self) -> frozenset[tuple[int, int]]:
        """(split, seed) of each."""
        return frozenset(cell[:2] for cell in self.dice)

    @property
    def mean(self) -> float:
        return statistics.fmean(self.dice.values())


def methods(lines: Iterable[Line]) -> dict[str, Method]:
    """The algorithms as they were run, and what their shared models would have had alone or at one half."""
    grouped: dict[str, list[Line]] = {}
    for line in lines:
        if line["dice"] is not None:
            grouped.setdefault(line["algorithm"], []).append(line)
    found = {name: method(name, own, lambda line: line["dice"]) for name, own in grouped.items()}
    for name, own in grouped.items():
        if not all(line["members"] for line in own):
            continue
        half = f"{name}, both at one half"
        found[half] = method(half, own, lambda line: line["members"]["half"])
        if name != "lone_pair" and all(line["members"]["shared"] is not None for line in own):
            shared = f"{name}, shared model alone"
            learns_alone = not name.startswith("gcml")  # there the personal model teaches it in each step
            found[shared] = method(shared, own, lambda line: line["members"]["shared"], 1 + learns_alone)
    for twice in TWICE.values():
        longest = twice.replace(BASE, LONG)
        if longest in found and twice not in found:
            found[twice] = found.pop(longest)
    return found


def method(name: str, lines: Sequence[Line], dice: Callable[[Line], float], models: int = 1) -> Method:
    """`models`: how many were trained for each one that counts here."""
    repetitions = {(line["split"], line["seed"]) for line in lines}
    totals = [sum(line[key] for line in lines) / len(repetitions) for key in ("bytes", "gradients")]
    if name.startswith("pooled"):  # one network for all sites, and each line bears its site's part
        totals[1] *= len({line["site"] for line in lines})
    cells = {(line["split"], line["seed"], line["site"]): dice(line) for line in lines}
    ends = [line["curve"][-1][1] for line in lines if line["curve"] and line["curve"][-1][1] is not None]
    plain = not split_name(name)[1]
    validation = statistics.fmean(ends) if plain and len(ends) == len(lines) else None
    return Method(name, cells, totals[0], totals[1] / models, validation)


@dataclass(frozen=True)
class Gain:
    """A mean difference over sites and repetitions that both methods have, and its 90 % interval."""

    mean: float
    low: float
    high: float
    below: int
    """Cells that are worse."""
    cells: int
    by_site: Mapping[str, float]
    """Mean over the repetitions."""

    @property
    def worst_site(self) -> tuple[str, float]:
        """The site with the lowest mean."""
        return min(self.by_site.items(), key=lambda pair: pair[1])

    @property
    def verdict(self) -> str:
        if self.high < -MARGIN:
            return "worse"
        wide = self.high - self.low > UNDECIDED
        return "not worse" if self.low > -MARGIN and not wide else "undecided"

    def __str__(self) -> str:
        return f"{self.mean:+.3f} ({self.low:+.3f} … {self.high:+.3f})".replace("-", "−")


def gain(one: Method, other: Method) -> Gain | None:
    """Paired by cell; drawn with replacement are repetitions and, independently of them, sites: the same
    sites take part in each repetition."""
    common = sorted(one.dice.keys() & other.dice.keys())
    if not common:
        return None
    repetitions = sorted({cell[:2] for cell in common})
    sites = sorted({cell[2] for cell in common})
    table = np.full((len(repetitions), len(sites)), np.nan)
    for split, seed, site in common:
        difference = one.dice[split, seed, site] - other.dice[split, seed, site]
        table[repetitions.index((split, seed)), sites.index(site)] = difference
    rng = np.random.default_rng(0)
    drawn = [rng.multinomial(n, [1 / n] * n, size=RESAMPLES).astype(float) for n in table.shape]
    sums, counts = (
        np.einsum("kr,rs,ks->k", drawn[0], values, drawn[1])
        for values in (np.nan_to_num(table), np.isfinite(table).astype(float))
    )
    means = (sums / np.maximum(counts, 1))[counts > 0]
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    by_site = {site: float(np.nanmean(table[:, i])) for i, site in enumerate(sites)}
    mean, below = float(np.nanmean(table)), int((table < 0).sum())
    return Gain(mean, float(low), float(high), below, len(common), by_site)


def at_equal_bytes(one: Method, found: Mapping[str, Method]) -> Method | None:
    """The FedAvg whose bytes are nearest to this method's; None where none sends about as many."""
    family = [
        m for m in found.values() if m.name.startswith("fedavg") and m.name.endswith("shared model alone")
    ]
    if not family or not one.bytes:
        return None
    nearest = min(family, key=lambda m: ratio(m.bytes, one.bytes))
    return nearest if ratio(nearest.bytes, one.bytes) <= NEAR else None


def ratio(one: float, other: float) -> float:
    """At least 1."""
    return max(one, other) / max(min(one, other), 1e-9)


def split_name(name: str) -> tuple[str, str]:
    """`a[b=c,d=e], shared model alone` → the entry, and the rest with its comma."""
    for suffix in (", shared model alone", ", both at one half"):
        if name.endswith(suffix):
            return name.removesuffix(suffix), suffix
    return name, ""


def equal_gradients(one: Method, yardstick: str, found: Mapping[str, Method]) -> Gain | None:
    """Against the yardstick with as many gradients; None where it was not run."""
    if yardstick not in found:
        return None
    times = one.gradients / found[ALONE].gradients
    if not (0.9 <= times <= 1.1 or 1.8 <= times <= 2.2):
        return None
    other = found.get(TWICE[yardstick]) if times > 1.5 else found[yardstick]
    return gain(one, other) if other is not None and other.name != one.name else None
