"""The study of two models a site: from the runs of gossiplab to the tables of study.md.

python docs/research/study.py collect SET OUT [OUT …]   keep OUT's finished runs in data/SET.jsonl
python docs/research/study.py confirm SET OUT [OUT …]   the same in data/confirm-SET.jsonl: fresh splits
python docs/research/study.py tables                    write study.md from data/*.jsonl

A line of data/SET.jsonl is a site of a run. Methods are chosen by the validation Dice in these tables. The
rule of the personal model's share is not: it was changed after test Dice of the first splits had shown what
it cost. Only fresh splits, which have chosen nothing, can confirm either.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from study_runs import (
    ALONE,
    DATA,
    FEDAVG,
    FEDAVG_INT8,
    NO_EXCHANGE,
    SETS,
    TWICE,
    Gain,
    Line,
    Method,
    at_equal_bytes,
    collect,
    equal_gradients,
    gain,
    method,
    methods,
    read,
    split_name,
)

from gossipseg.learn.deploy import choice
from gossipseg.learn.evaluation.paired import by_patient

PAGE = Path(__file__).with_name("study.md")
LEVELLED = 0.005
"""Training alone has levelled off where validation gains less than this over the last third of the rounds."""
DEFAULT = "gcml"
"""What peers.yaml sets."""
WORST_SITE = -0.02
"""A site's mean over the repetitions must not be this far below alone."""
AIMS = ((0.5, 0.0, "above FedAvg at half of its bytes or fewer"),
        (0.4, 0.0, "not below FedAvg at 40 % of its bytes or fewer"),
        (0.2, -0.005, "at most 0.005 below FedAvg at 20 % of its bytes or fewer"))  # fmt: skip
"""(share of the bytes, least gain over FedAvg, in words)."""

PAIRS = (
    ("gossip_average", "lone_pair", "exchange, beside two models trained alone"),
    ("gcml", "gossip_average", "the mutual term, λ = 0.05 against 0"),
    ("gcml[lambda=0.2]", "gossip_average", "λ = 0.2 against 0"),
    ("gcml[lambda=0.5]", "gossip_average", "λ = 0.5 against 0"),
    ("gcml[lambda=0.1]", "gcml", "λ = 0.1 against 0.05"),
    ("gcml[lambda=0.2]", "gcml", "λ = 0.2 against 0.05"),
    ("gcml[lambda=0.5]", "gcml", "λ = 0.5 against 0.05"),
    ("gcml[lambda=0.2,mutual=both]", "gcml[lambda=0.2]", "`mutual: both`, λ = 0.2"),
    ("gcml", "gcml[gossip.personal_fetches=0]", "peers' personal models"),
    ("fedavg", "fedavg[wire.dtype=float16]", "int8 on the wire, FedAvg"),
    ("gossip_average", "fedavg", "swaps against coordinated rounds"),
    ("gossip_average", "gossip_average[gossip.exchange=push,wire.dtype=float16]", "swaps against pushes"),
    ("gossip_average[gossip.swaps_per_round=2]", "gossip_average", "a second swap a round"),
    ("gossip_average[exchange_at.summed_rate=0.05]", "gossip_average", "fewer exchanges, by the summed rate"),
    (TWICE[ALONE], ALONE, "twice the steps, alone"),
    (TWICE[FEDAVG], FEDAVG, "twice the steps, FedAvg"),
)
"""Methods that differ in one thing: (with it, without it, what it is)."""


def page() -> str:
    """study.md, from data/*.jsonl."""
    parts = [HEAD]
    for name, title in SETS.items():
        file = DATA / f"{name}.jsonl"
        if file.exists():
            fresh = DATA / f"confirm-{name}.jsonl"
            parts.append(section(title, read(file), read(fresh) if fresh.exists() else ()))
    return "\n".join(parts)


HEAD = """# Two models a site: the study

This page is written by `python docs/research/study.py tables` from [the runs' own figures](data).
[Results](results.md) says what they mean; [reproduce](reproduce.md) says how to run them.

Three columns compare each method with training alone and with FedAvg: after as many **rounds**, with as
many **gradients** (two models take twice as many: the yardstick then takes twice the steps, with one model),
and with about as many **bytes** sent. A dash stands where no such row was run; for bytes, where no row of
FedAvg sent about as many (a factor of 1.35 at most). "Shared model alone" is what travels, without the
personal model beside it. Of `pooled` the gradients of its one network count: it takes all sites' steps, and
`pooled[steps=site]` as many as one site.

**Intervals** are 90 %, by bootstrap over repetitions and sites, drawn independently of each other. They are
too narrow: about 79 % with three sites and three repetitions, and 53 % with one, in a simulation
(`tests/test_study.py`).

| verdict | when |
|---|---|
| not worse | the interval's lower end is above −0.005, and it is not wider than 0.02 |
| worse | its upper end is below −0.005, however wide it is |
| undecided | otherwise |

**Validation Dice** is of what is deployed, at the last round. Methods are chosen by it. The rule of the
personal model's share was changed after test Dice of the main splits had shown what the loss alone cost. All
rows have today's, but those of one-way pushes and of the sites with eight validation patients. The fresh
splits have chosen nothing. They divide the same patients anew: two thirds of their test patients had been
test patients of the first splits, too.
"""


def section(title: str, lines: Sequence[Line], fresh: Sequence[Line] = ()) -> str:
    """The section of one data set. `fresh`: runs on splits drawn once more, for what was chosen."""
    found = methods(lines)
    if ALONE not in found:
        return "\n".join([f"## {title}", "", "`local` was not run yet.", ""])
    whole = found[ALONE].repetitions
    complete = {name: one for name, one in found.items() if one.repetitions >= whole}
    text = [
        f"## {title}",
        "",
        f"{counted(len(whole), 'repetition')}. {levelled(lines, found)}{left_out(lines)}",
        "",
    ]
    text += [*against(complete), *by_site(lines, complete), *aims(complete), *single_changes(found)]
    text += [*choices(lines, whole), *rules(lines)]
    if len(complete) < len(found):
        text += fewer({name: one for name, one in found.items() if name not in complete}, found)
    return "\n".join([*text, *confirmed(fresh)])


def counted(n: int, what: str) -> str:
    return f"{n} {what}{'s' * (n != 1)}"


def left_out(lines: Sequence[Line]) -> str:
    """Names what has no test Dice."""
    missing = sorted({f"{line['algorithm']} at {line['site']}" for line in lines if line["dice"] is None})
    return f" Without a test Dice, and left out: {', '.join(missing)}." if missing else ""


def levelled(lines: Sequence[Line], found: Mapping[str, Method]) -> str:
    """Whether training alone had levelled off: its gain in validation Dice over the last third, and what
    twice the steps bring in test Dice."""
    gains: dict[str, list[float]] = {}
    for line in lines:
        curve = [(r, d) for r, d in line["curve"] if d is not None]
        if line["algorithm"] == ALONE and curve:
            rounds, values = zip(*curve, strict=True)
            start = float(np.interp(2 * line["rounds"] / 3, rounds, values))
            gains.setdefault(line["site"], []).append(values[-1] - start)
    every = [g for of_site in gains.values() for g in of_site]
    if len(every) < 2:
        return ""
    mean, error = statistics.fmean(every), statistics.stdev(every) / len(every) ** 0.5
    done = mean < LEVELLED and mean < error
    figures = f"{mean:+.3f} ± {error:.3f}"
    sites = ", ".join(f"{site} {statistics.fmean(g):+.3f}" for site, g in sorted(gains.items()))
    verdict = "had levelled off" if done else "had **not** levelled off"
    if done and error >= LEVELLED:
        verdict = "cannot be told from these whether it had levelled off"
    text = f"Over the last third of the rounds `local` gained {figures} in validation Dice ({sites}): "
    text += f"it {verdict}."
    twice = found.get(TWICE[ALONE])
    if twice is not None and (over := gain(twice, found[ALONE])) is not None:
        text += f" With twice the steps its test Dice is {over} higher."
    return text.replace("-", "−").replace("brain_mr_", "")


COLUMNS = (
    "method",
    "test Dice",
    "validation Dice",
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


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Markdown, with an empty line after it."""
    head = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return [*head, *("| " + " | ".join(row) + " |" for row in rows), ""]


def against(found: Mapping[str, Method]) -> list[str]:
    """The main table. All of its rows have the same repetitions."""
    shown = [one for one in found.values() if not one.name.endswith("both at one half")]
    return table(COLUMNS, (row(one, found) for one in sorted(shown, key=lambda one: -one.mean)))


def row(one: Method, found: Mapping[str, Method]) -> list[str]:
    alone, fedavg = found[ALONE], found.get(FEDAVG)
    over = gain(one, alone) if one.name != ALONE else None
    return [
        shown_name(one.name),
        f"{one.mean:.3f}",
        f"{one.validation:.3f}" if one.validation is not None else "–",
        told(over),
        over.verdict if over else "",
        told(equal_gradients(one, ALONE, found)),
        told(gain(one, fedavg) if fedavg is not None and one.name != FEDAVG else None),
        told(equal_gradients(one, FEDAVG, found)),
        over_equal_bytes(one, found),
        share(one, found),
        f"{one.gradients / alone.gradients:.1f}",
        f"{over.below} of {over.cells}" if over else "",
        worst(over),
    ]


def over_equal_bytes(one: Method, found: Mapping[str, Method]) -> str:
    """The gain over the FedAvg that sends about as much, and how much that is."""
    near = at_equal_bytes(one, found)
    over = gain(one, near) if near is not None and near.name != one.name else None
    return f"{told(over)} at {share(near, found)}" if over is not None and near is not None else "–"


def worst(over: Gain | None) -> str:
    if over is None:
        return ""
    site, value = over.worst_site
    return f"{site} {value:+.3f}".replace("-", "−")


def share(one: Method, found: Mapping[str, Method]) -> str:
    """Bytes as a share of FedAvg's in float16."""
    whole = found[FEDAVG].bytes if FEDAVG in found else 0.0
    return f"{100 * one.bytes / whole:.0f} %" if one.bytes and whole else "–"


def shown_name(name: str) -> str:
    entry, rest = split_name(name)
    return f"`{entry}`{rest}"


def told(found: Gain | None) -> str:
    return str(found) if found is not None else "–"


def by_site(lines: Sequence[Line], found: Mapping[str, Method]) -> list[str]:
    """Each site's means over the repetitions, and what the default brings it; its spread is over these."""
    cases: dict[str, set[int]] = {}
    for line in lines:
        if "cases" in line and not line["algorithm"].startswith("pooled"):  # there they are all sites'
            cases.setdefault(line["site"], set()).add(line["cases"])
    shown = [
        name for name in (ALONE, TWICE[ALONE], "lone_pair", FEDAVG, TWICE[FEDAVG], DEFAULT) if name in found
    ]
    if DEFAULT not in found:
        return []
    rows = []
    for site in sorted({cell[2] for cell in found[ALONE].dice}):
        own = {name: {c: d for c, d in found[name].dice.items() if c[2] == site} for name in shown}
        figures = [f"{statistics.fmean(dice.values()):.3f}" for dice in own.values()]
        gains = [own[DEFAULT][cell] - alone for cell, alone in own[ALONE].items() if cell in own[DEFAULT]]
        spread = f"{statistics.fmean(gains):+.3f} ({min(gains):+.3f} … {max(gains):+.3f})".replace("-", "−")
        known = cases.get(site, set())
        count = f"{min(known)} to {max(known)}" if len(known) > 1 else "".join(map(str, known)) or "–"
        rows.append([site, count, *figures, spread])
    names = [shown_name(found[name].name) for name in shown]
    return table(("site", "training cases", *names, "default over alone (least … most)"), rows)


def aims(found: Mapping[str, Method]) -> list[str]:
    """What was aimed at, and what came out. Each method is chosen by its validation Dice."""
    rows, alone, fedavg = [], found[ALONE], found.get(FEDAVG)
    if DEFAULT in found:
        over, even = gain(found[DEFAULT], alone), equal_gradients(found[DEFAULT], ALONE, found)
        assert over is not None
        aim = ["not worse than alone", shown_name(DEFAULT)]
        rows.append([*aim, told(over), not_worse(over), told(even), not_worse(even)])
        far = [outcome(one.worst_site[1] >= WORST_SITE) if one else "–" for one in (over, even)]
        aim = ["no site 0.02 below alone", shown_name(DEFAULT)]
        rows.append([*aim, worst(over), far[0], worst(even) or "–", far[1]])
    for most, least, words in AIMS if fedavg is not None else ():
        assert fedavg is not None
        fitting = [
            one
            for one in found.values()
            if one.validation is not None
            and not one.name.startswith(NO_EXCHANGE)
            and 0 < one.bytes <= most * fedavg.bytes
        ]
        if not fitting:
            nearest = min((m.bytes for m in found.values() if m.bytes), default=0.0) / fedavg.bytes
            fewest = f"fewest bytes of any row: {100 * nearest:.1f} %"
            rows.append([words, "–", fewest, "no such row", "–", "–"])
            continue
        best = max(fitting, key=lambda one: one.validation or 0.0)
        above = least == 0.0 and most == 0.5
        gains = gain(best, fedavg), equal_gradients(best, FEDAVG, found)
        ends = [
            "–" if one is None else outcome(one.mean > least if above else one.mean >= least) for one in gains
        ]
        name = f"{shown_name(best.name)}, {share(best, found)}"
        rows.append([words, name, told(gains[0]), ends[0], told(gains[1]), ends[1]])
    columns = ("aim", "method", "at equal rounds", "outcome", "at equal gradients", "outcome")
    return table(columns, rows) if rows else []


def not_worse(over: Gain | None) -> str:
    """The outcome of this aim."""
    if over is None:
        return "–"
    return "reached" if over.verdict == "not worse" else over.verdict


def single_changes(found: Mapping[str, Method]) -> list[str]:
    """What one change brings to what sites deploy, on the repetitions that both have."""
    rows = []
    for with_it, without, words in PAIRS:
        if with_it in found and without in found and (over := gain(found[with_it], found[without])):
            common = found[with_it].repetitions & found[without].repetitions
            names = f"{shown_name(found[with_it].name)} over {shown_name(found[without].name)}"
            rows.append([words, names, str(len(common)), told(over), over.verdict])
    columns = ("one change", "methods", "repetitions", "test Dice of what is deployed", "verdict")
    return table(columns, rows) if rows else []


def outcome(met: bool) -> str:
    return "reached" if met else "**not reached**"


def fewer(some: Mapping[str, Method], found: Mapping[str, Method]) -> list[str]:
    """Methods that were not run in all repetitions; each is compared on those that it has."""
    rows = []
    for one in sorted(some.values(), key=lambda one: one.name):
        if not one.name.endswith("both at one half"):
            over = gain(one, found[ALONE])
            against_fedavg = gain(one, found[FEDAVG]) if FEDAVG in found else None
            rows.append([shown_name(one.name), str(len(one.repetitions)), told(over), told(against_fedavg)])
    columns = ("fewer repetitions", "number", "over alone", "over FedAvg")
    return table(columns, rows)


def confirmed(fresh: Sequence[Line]) -> list[str]:
    """What was chosen, on fresh splits."""
    found = methods(fresh)
    if ALONE not in found:
        return []
    rows = []
    for name in (DEFAULT, split_name(FEDAVG)[0], FEDAVG, FEDAVG_INT8, "lone_pair", *TWICE.values()):
        if name in found:
            over = gain(found[name], found[ALONE])
            against_fedavg = gain(found[name], found[FEDAVG]) if FEDAVG in found and name != FEDAVG else None
            verdict = over.verdict if over is not None else ""
            figures = [f"{found[name].mean:.3f}", told(over), verdict, worst(over), told(against_fedavg)]
            even = [told(equal_gradients(found[name], yardstick, found)) for yardstick in (ALONE, FEDAVG)]
            even.append(over_equal_bytes(found[name], found))
            rows.append([shown_name(found[name].name), *figures, *even, share(found[name], found)])
    columns = (
        *("method", "test Dice", "over alone", "verdict", "worst site", "over FedAvg"),
        *("over alone, equal gradients", "over FedAvg, equal gradients", "over FedAvg, equal bytes", "bytes"),
    )
    whole = found[ALONE].repetitions
    said = f"**On fresh splits** ({counted(len(whole), 'repetition')}; alone {found[ALONE].mean:.3f}):"
    return [
        said,
        "",
        levelled(fresh, found),
        "",
        *table(columns, rows),
        *aims(found),
        *choices(fresh, whole),
        *rules(fresh),
    ]


MEMBERS = {"personal alone": "personal", "shared alone": "shared", "both at one half": "half"}


def choices(lines: Sequence[Line], whole: frozenset[tuple[int, int]]) -> list[str]:
    """Test Dice of each member, and of what was chosen on validation."""
    columns = ("method", *MEMBERS, "deployed", "deployed over one half", "share of the personal model")
    grouped: dict[str, list[Line]] = {}
    for line in lines:
        if line["members"] and line["dice"] is not None:
            grouped.setdefault(line["algorithm"], []).append(line)
    found, rows = methods(lines), []
    for name, own in sorted(grouped.items()):
        if found[name].repetitions < whole:
            continue
        members = [statistics.fmean(line["members"][m] for line in own) for m in MEMBERS.values()]
        shares = [line["weights"].get("personal", 0.0) for line in own]
        figures = [f"{m:.3f}" for m in (*members, statistics.fmean(line["dice"] for line in own))]
        spread = f"{min(shares):.2f} … {max(shares):.2f}, mean {statistics.fmean(shares):.2f}"
        over = told(gain(found[name], found[f"{name}, both at one half"]))
        rows.append([f"`{name}`", *figures, over, spread])
    return [*table(columns, rows), *moved(grouped)] if rows else []


def moved(grouped: Mapping[str, Sequence[Line]]) -> list[str]:
    """What validation gained or cost where it moved the share away from one half, in either direction."""
    found: dict[str, list[float]] = {"below": [], "above": []}
    for name, own in grouped.items():
        for line in own if name != "lone_pair" else ():
            share = line["weights"].get("personal", 0.0)
            if abs(share - 0.5) > 1e-6:
                found["above" if share > 0.5 else "below"].append(line["dice"] - line["members"]["half"])
    said = [
        f"{way} one half at {len(gains)}: {statistics.fmean(gains):+.4f}".replace("-", "−")
        for way, gains in found.items()
        if gains
    ]
    text = "Deployed minus one half, mean over sites, repetitions and methods where the share was "
    return [f"{text}{'; '.join(said)}.", ""] if said else []


Shares = Mapping[float, Mapping[str, Any]]
"""Share of the personal model → `nll` and `dice_val` by validation case, `dice_test`."""


def least_loss(shares: Shares) -> float:
    """The share whose mean loss is lowest."""
    return choice.best_share({share: told["nll"] for share, told in shares.items()})


def by_loss(shares: Shares, whose: Sequence[str]) -> float:
    """The share by the loss alone, before the personal model may predict alone."""
    return choice.share_of_personal(least_loss(shares), choice.counted(whose))


def by_supported_loss(shares: Shares, whose: Sequence[str]) -> float:
    """The share that the product takes, before the personal model may predict alone."""
    best = least_loss(shares)
    personal, shared = (shares[share]["dice_val"] for share in (1.0, 0.0))
    return choice.share_of_personal(choice.supported(best, personal, shared, whose), choice.counted(whose))


def by_loss_of_patients(shares: Shares, whose: Sequence[str]) -> float:
    """The same, where a patient counts once, however many cases it has."""
    return choice.share_of_personal(least_loss(shares), len(set(whose)))


def by_dice(shares: Shares, whose: Sequence[str]) -> float:
    """The same, with validation Dice by patient in place of the loss."""
    found = {share: by_patient(told["dice_val"], whose) for share, told in shares.items()}
    known = {share: -statistics.fmean(values) for share, values in found.items() if values}
    best = min(known, key=lambda share: (known[share], abs(share - 0.5)), default=0.5)
    return choice.share_of_personal(best, choice.counted(whose))


RULES: Mapping[str, Callable[[Shares, Sequence[str]], float]] = {
    "by the loss": by_loss,
    "by the loss, n counts patients": by_loss_of_patients,
    "by the loss, below one half only where the shared model is proven better": by_supported_loss,
    "by the loss, never below one half": lambda shares, whose: max(0.5, by_loss(shares, whose)),
    "by validation Dice": by_dice,
    "one half always": lambda shares, whose: 0.5,
}


def rules(lines: Sequence[Line]) -> list[str]:
    """What other rules of the share would have given over training alone, without rule 4."""
    grouped: dict[str, list[Line]] = {}
    for line in lines:
        if line.get("by_share") and line["algorithm"] != "lone_pair":
            grouped.setdefault(line["algorithm"], []).append(line)
    rows = []
    for name, own in sorted(grouped.items()):
        alone = method("alone", own, lambda line: line["by_share"]["1.0"]["dice_test"])
        gains = [gain(method(rule, own, taking(share)), alone) for rule, share in RULES.items()]
        rows.append([shown_name(name), str(len(alone.repetitions)), *map(told, gains)])
    if not rows:
        return []
    said = (
        "The share of the personal model, chosen by other rules; test Dice over alone, without rule 4, and "
        "on a straight line between the five shares that were scored:"
    )
    return [said, "", *table(("method", "repetitions", *RULES), rows)]


def taking(rule: Callable[[Shares, Sequence[str]], float]) -> Callable[[Line], float]:
    """Test Dice at the share that a rule takes; between the five that were scored, on a straight line."""

    def dice(line: Line) -> float:
        shares = {float(share): told for share, told in line["by_share"].items()}
        known = sorted(shares)
        share = rule(shares, line["whose"])
        return float(np.interp(share, known, [shares[s]["dice_test"] for s in known]))

    return dice


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("collect", "confirm"):
        collecting = commands.add_parser(name)
        collecting.add_argument("set", choices=SETS)
        collecting.add_argument("folders", nargs="+", type=Path)
    commands.add_parser("tables")
    chosen = parser.parse_args()
    if chosen.command == "tables":
        PAGE.write_text(page(), encoding="utf-8")
        print(PAGE.name)
    else:
        name = chosen.set if chosen.command == "collect" else f"confirm-{chosen.set}"
        print(f"{collect(name, chosen.folders)} lines")


if __name__ == "__main__":
    main()
