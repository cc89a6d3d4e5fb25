"""The study of two models a site: from the runs of gossiplab to the tables of study.md.

python docs/research/study.py collect SET OUT [OUT …]   keep OUT's finished runs in data/SET.jsonl
python docs/research/study.py tables                    write study.md from data/*.jsonl

A line of data/SET.jsonl is a site of a run. Test images choose nothing: they are compared, and no more.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
DATA = HERE / "data"
PAGE = HERE / "study.md"

SETS = {
    "hippocampus": "Three hippocampus sites that look alike",
    "retina": "Five retinal cameras",
    "brain": "Three brain sites, one task in three MR sequences",
    "nuclei": "Three groups of microscopy nuclei",
    "poor": "One rich site and several poor ones",
}
MARGIN, UNDECIDED = 0.005, 0.02
"""Not worse: the 90 % interval's lower end is above −MARGIN. One wider than UNDECIDED proves nothing."""
RESAMPLES, CONFIDENCE = 10_000, 0.9
LEVELLED = 0.005
"""Training alone has levelled off where validation gains less than this over the last third of the rounds."""
ALONE, FEDAVG = "local", "fedavg, shared model alone"
TWICE = {
    ALONE: "local[training.steps_per_round=30]",
    FEDAVG: "fedavg[training.personal=none,training.steps_per_round=30]",
}
"""The same with as many gradients as two models take."""

Line = dict[str, Any]
Cell = tuple[int, int, str]
"""(split, seed, site)."""


# ---------------------------------------------------------------- collecting


def collect(name: str, folders: Sequence[Path]) -> int:
    """Add what the folders' finished runs say to data/NAME.jsonl; how many lines it has now."""
    file = DATA / f"{name}.jsonl"
    lines = {identity(line): line for line in (read(file) if file.exists() else [])}
    for folder in folders:
        for run in sorted((folder / "runs").glob("*.json")):
            rows = json.loads(run.read_text(encoding="utf-8"))["rows"]
            lines.update({identity(line): line for line in map(kept, rows)})
    DATA.mkdir(exist_ok=True)
    text = "".join(json.dumps(lines[key], sort_keys=True) + "\n" for key in sorted(lines))
    file.write_text(text, encoding="utf-8")
    return len(lines)


def kept(row: Mapping[str, Any]) -> Line:
    """What the study reads of a row of results.json."""
    deployed = row.get("deployed") or {}
    line = {key: row[key] for key in ("algorithm", "split", "seed", "site", "rounds", "curve")}
    return line | {
        "dice": row["dice_test"],
        "bytes": row["model_bytes_out"],
        "gradients": row["gradient_evaluations"],
        "patients": len(set(row["patients"].values())),
        "members": row.get("members") or {},
        "weights": deployed.get("weights", {}),
        "validated": deployed.get("patients"),
        "why": deployed.get("why", ""),
    }


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


def methods(lines: Iterable[Line]) -> dict[str, Method]:
    """The algorithms as they were run, and what their shared models would have had alone or at one half."""
    grouped: dict[str, list[Line]] = {}
    for line in lines:
        if line["dice"] is not None:
            grouped.setdefault(line["algorithm"], []).append(line)
    found = {name: method(name, own, lambda line: line["dice"], 1) for name, own in grouped.items()}
    for name, own in grouped.items():
        if name != "lone_pair" and all(line["members"] for line in own):
            shared = f"{name}, shared model alone"
            found[shared] = method(shared, own, lambda line: line["members"]["shared"], 2)
        if all(line["members"] for line in own):
            half = f"{name}, both at one half"
            found[half] = method(half, own, lambda line: line["members"]["half"], 1)
    return found


def method(name: str, lines: Sequence[Line], dice: Callable[[Line], float], models: int) -> Method:
    """`models`: how many were trained for each one that counts here."""
    repetitions = {(line["split"], line["seed"]) for line in lines}
    totals = [sum(line[key] for line in lines) / len(repetitions) for key in ("bytes", "gradients")]
    cells = {(line["split"], line["seed"], line["site"]): dice(line) for line in lines}
    return Method(name, cells, totals[0], totals[1] / models)


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
        if self.high - self.low > UNDECIDED:
            return "undecided"
        return "not worse" if self.low > -MARGIN else "worse"

    def __str__(self) -> str:
        return f"{self.mean:+.3f} ({self.low:+.3f} … {self.high:+.3f})".replace("-", "−")


def gain(one: Method, other: Method) -> Gain | None:
    """Paired by cell; drawn with replacement are repetitions, and sites within each."""
    common = sorted(one.dice.keys() & other.dice.keys())
    if not common:
        return None
    by_repetition: dict[tuple[int, int], list[float]] = {}
    by_site: dict[str, list[float]] = {}
    for split, seed, site in common:
        difference = one.dice[split, seed, site] - other.dice[split, seed, site]
        by_repetition.setdefault((split, seed), []).append(difference)
        by_site.setdefault(site, []).append(difference)
    table = [np.array(differences) for differences in by_repetition.values()]
    rng = np.random.default_rng(0)
    draws = rng.integers(len(table), size=(RESAMPLES, len(table)))
    means = [np.mean([rng.choice(table[i], len(table[i])).mean() for i in drawn]) for drawn in draws]
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    all_of_them = np.concatenate(table)
    sites = {site: statistics.fmean(differences) for site, differences in by_site.items()}
    mean = float(np.mean([t.mean() for t in table]))
    return Gain(mean, float(low), float(high), int((all_of_them < 0).sum()), len(all_of_them), sites)


def at_equal_bytes(one: Method, found: Mapping[str, Method]) -> Method | None:
    """The FedAvg that sends most, but no more than this method; else the one that sends least."""
    family = [
        m for m in found.values() if m.name.startswith("fedavg") and m.name.endswith("shared model alone")
    ]
    if not family or not one.bytes:
        return None
    fitting = [m for m in family if m.bytes <= 1.05 * one.bytes]
    return max(fitting, key=lambda m: m.bytes) if fitting else min(family, key=lambda m: m.bytes)


# ---------------------------------------------------------------- the page


def page() -> str:
    """study.md, from data/*.jsonl."""
    parts = [HEAD]
    for name, title in SETS.items():
        file = DATA / f"{name}.jsonl"
        if file.exists():
            parts.append(section(title, read(file)))
    return "\n".join(parts)


HEAD = """# Two models a site: the study

This page is written by `python docs/research/study.py tables` from [the runs' own figures](data).
[Results](results.md) says what they mean; [reproduce](reproduce.md) says how to run them.

Three columns compare each method with training alone and with FedAvg: after as many **rounds**, with as
many **gradients** (two models take twice as many), and with as many **bytes** sent. Intervals are 90 %, by
bootstrap over repetitions and sites. "Not worse" means that the lower end is above −0.005. An interval wider
than 0.02 proves nothing: "undecided". "Shared model alone" is what the algorithm gives without a personal
model.
"""


def section(title: str, lines: Sequence[Line]) -> str:
    """The section of one data set."""
    found = methods(lines)
    repetitions = {(line["split"], line["seed"]) for line in lines}
    text = [
        f"## {title}",
        "",
        f"{len(repetitions)} repetition{'s' * (len(repetitions) != 1)}. {levelled(lines)}",
        "",
    ]
    if ALONE not in found:
        return "\n".join([*text, "`local` was not run yet.", ""])
    text += [*against(found), *choices(lines)]
    return "\n".join([*text, ""])


def levelled(lines: Sequence[Line]) -> str:
    """Whether training alone had levelled off."""
    gains = []
    for line in lines:
        curve = [(r, d) for r, d in line["curve"] if d is not None]
        if line["algorithm"] == ALONE and curve:
            start = min(curve, key=lambda point: abs(point[0] - 2 * line["rounds"] / 3))
            gains.append(curve[-1][1] - start[1])
    if len(gains) < 2:
        return ""
    mean, error = statistics.fmean(gains), statistics.stdev(gains) / len(gains) ** 0.5
    done = mean < LEVELLED and mean < error
    figures = f"{mean:+.3f} ± {error:.3f}".replace("-", "−")
    verdict = "levelled off" if done else "**not** levelled off"
    return f"Over the last third of the rounds `local` gained {figures} in validation Dice: it had {verdict}."


COLUMNS = (
    "method",
    "repetitions",
    "test Dice",
    "over alone, equal rounds",
    "verdict",
    "over alone, equal gradients",
    "over FedAvg, equal rounds",
    "over FedAvg, equal gradients",
    "over FedAvg, equal bytes",
    "bytes",
    "gradients",
    "below alone",
    "worst site",
)


def against(found: Mapping[str, Method]) -> list[str]:
    """The main table."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    best_first = sorted(found.values(), key=lambda one: -mean_dice(one))
    return [*lines, *("| " + " | ".join(row(one, found)) + " |" for one in best_first), ""]


def row(one: Method, found: Mapping[str, Method]) -> list[str]:
    alone, fedavg = found[ALONE], found.get(FEDAVG)
    over = gain(one, alone) if one.name != ALONE else None
    same_bytes = at_equal_bytes(one, found)
    share = one.bytes / fedavg.bytes if fedavg is not None else None
    name, comma, kind = one.name.partition(", ") if "]" not in one.name else split_name(one.name)
    return [
        f"`{name}`{comma}{kind}",
        str(len({cell[:2] for cell in one.dice})),
        f"{mean_dice(one):.3f}",
        told(over),
        over.verdict if over else "",
        told(equal_gradients(one, ALONE, found)),
        told(gain(one, fedavg) if fedavg is not None and one.name != FEDAVG else None),
        told(equal_gradients(one, FEDAVG, found)),
        told(gain(one, same_bytes) if same_bytes is not None and same_bytes.name != one.name else None),
        f"{100 * share:.0f} %" if share else "–",
        f"{one.gradients / alone.gradients:.1f}",
        f"{over.below} of {over.cells}" if over else "",
        f"{over.worst_site[0]} {over.worst_site[1]:+.3f}".replace("-", "−") if over else "",
    ]


def split_name(name: str) -> tuple[str, str, str]:
    """`a[b=c,d=e], shared model alone` → the entry, the comma, the rest."""
    entry, bracket, rest = name.rpartition("]")
    return entry + bracket, rest[:2], rest[2:]


def told(found: Gain | None) -> str:
    return str(found) if found is not None else "–"


def equal_gradients(one: Method, yardstick: str, found: Mapping[str, Method]) -> Gain | None:
    """Against the yardstick with as many gradients; None where it was not run."""
    if yardstick not in found:
        return None
    other = found.get(TWICE[yardstick]) if one.gradients > 1.5 * found[ALONE].gradients else found[yardstick]
    return gain(one, other) if other is not None and other.name != one.name else None


def mean_dice(one: Method) -> float:
    return statistics.fmean(one.dice.values())


MEMBERS = {"personal alone": "personal", "shared alone": "shared", "both at one half": "half"}


def choices(lines: Sequence[Line]) -> list[str]:
    """Test Dice of each member, and of what was chosen on validation."""
    columns = ("method", *MEMBERS, "deployed", "share of the personal model")
    text = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    grouped: dict[str, list[Line]] = {}
    for line in lines:
        if line["members"] and line["dice"] is not None:
            grouped.setdefault(line["algorithm"], []).append(line)
    for name, own in sorted(grouped.items()):
        members = [statistics.fmean(line["members"][m] for line in own) for m in MEMBERS.values()]
        shares = [line["weights"].get("personal", 0.0) for line in own]
        figures = [f"{m:.3f}" for m in (*members, statistics.fmean(line["dice"] for line in own))]
        spread = f"{min(shares):.2f} … {max(shares):.2f}, mean {statistics.fmean(shares):.2f}"
        text.append("| " + " | ".join([f"`{name}`", *figures, spread]) + " |")
    return text if grouped else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    collecting = commands.add_parser("collect")
    collecting.add_argument("set", choices=SETS)
    collecting.add_argument("folders", nargs="+", type=Path)
    commands.add_parser("tables")
    chosen = parser.parse_args()
    if chosen.command == "collect":
        print(f"{collect(chosen.set, chosen.folders)} lines")
    else:
        PAGE.write_text(page(), encoding="utf-8")
        print(PAGE.name)


if __name__ == "__main__":
    main()
