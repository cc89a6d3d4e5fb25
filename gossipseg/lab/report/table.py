"""The comparison on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gossipseg.lab.report.intervals import Interval
from gossipseg.lab.report.statistics import (
    BASELINE,
    FLOOR,
    Claim,
    ScoreSpread,
    Summary,
    class_mean,
    found_counts,
)
from gossipseg.lab.report.words import figure, p_text, range_text, star, yardstick

NOTHING = "-"
Row = Sequence[str]


def show(document: Mapping[str, Any], summaries: Sequence[Summary], claims: Sequence[Claim]) -> None:
    """Print the tables: aligned columns on a terminal and on a pipe."""
    _print("Test Dice, mean ± sd over repetitions", *dice_table(document, summaries))
    heading, rows = found_table(document)
    if rows:
        _print("Test images in which each class was found, all sites and repetitions", heading, rows)
    _print("Against training alone, against FedAvg, and what was moved", *gain_table(summaries))
    if named := [c for c in claims if c.reference not in (FLOOR, BASELINE)]:
        _print("Claims named for this comparison", *claim_table(named))
    if claims:
        print(f"\n{star(claims)}")
    print(f"\nBytes/FedAvg: {yardstick(document)}")


def dice_table(document: Mapping[str, Any], summaries: Sequence[Summary]) -> tuple[Row, Sequence[Row]]:
    """Heading and rows: every site, all sites, HD95."""
    sites = list(document["sites"])
    rows = [
        (
            s.algorithm,
            *(spread_text(s.by_site.get(site)) for site in sites),
            spread_text(s.overall),
            spread_text(s.hd95, 1),
        )
        for s in summaries
    ]
    return ("algorithm", *sites, "all sites", "HD95"), rows


def found_table(document: Mapping[str, Any]) -> tuple[Row, Sequence[Row]]:
    """Heading and rows: how often each algorithm found each class, all sites and repetitions together. There
    are no rows for results of earlier versions."""
    rows = []
    for name in document["algorithms"]:
        for label, counts in found_counts(document, name).items():
            without = counts["cases"] - counts["present"]
            rows.append(
                (
                    name,
                    label,
                    f"{counts['detected']} of {counts['present']}",
                    str(counts["missed"]),
                    f"{counts['false_alarms']} of {without}",
                    str(counts["false_alarm_voxels"]),
                    *(
                        distance_text(class_mean(document, name, key, label))
                        for key in ("hd95_per_class", "hd95_without_missed")
                    ),
                )
            )
    return ("algorithm", "class", "detected", "missed", "false alarms", "voxels", "HD95", "w/o missed"), rows


def deployed_table(document: Mapping[str, Any]) -> tuple[Row, Sequence[Row]]:
    """Heading and rows: what each site deployed at the end of each run, where two models trained. There are
    no rows for results of earlier versions."""
    rows = [
        (row["algorithm"], row["site"], str(row.get("split", 0)), str(row["seed"]), row["deployed"]["reason"])
        for row in document["runs"]
        if row.get("deployed", {}).get("reason")
    ]
    return ("algorithm", "site", "split", "seed", "by validation"), rows


def gain_table(summaries: Sequence[Summary]) -> tuple[Row, Sequence[Row]]:
    """Heading and rows: differences with intervals, the worst site, bytes, gradients.

    A star marks the differences that are significant after correction.
    """
    rows = [
        (
            s.algorithm,
            _marked(s.against.get(FLOOR)),
            _marked(s.against.get(BASELINE)),
            NOTHING if s.worst_gain is None else f"{figure(s.worst_gain)} {s.worst_site}",
            share_text(s.relative_bytes),
            f"{s.gradient_evaluations:.0f}",
            f"{s.seconds:.0f}",
        )
        for s in summaries
    ]
    heading = (
        "algorithm",
        "gain over local [95 %]",
        "gain over fedavg [95 %]",
        "worst site's gain",
        "bytes/FedAvg",
        "gradients",
        "s",
    )
    return heading, rows


def claim_table(claims: Sequence[Claim]) -> tuple[Row, Sequence[Row]]:
    """Heading and rows: every claim that was tested, with p before and after the correction."""
    rows = [
        (
            f"{c.algorithm} against {c.reference}",
            interval_text(c),
            str(c.repetitions),
            str(c.patients),
            p_text(c.p),
            p_text(c.p_holm),
            c.verdict,
        )
        for c in claims
    ]
    return ("claim", "difference [95 %]", "repetitions", "patients", "p", "p, corrected", "verdict"), rows


def similarity_table(similarity: Mapping[str, Any]) -> tuple[Row, Sequence[Row]]:
    """Heading and rows: similarity of the changes of every two sites, 0 to 1."""
    sites = similarity["sites"]
    rows = [
        (site, *(f"{value:.2f}" for value in values))
        for site, values in zip(sites, similarity["matrix"], strict=True)
    ]
    return ("site", *sites), rows


def _marked(claim: Claim | None) -> str:
    return interval_text(claim) + ("" if claim is None or claim.verdict == "unclear" else " *")


def spread_text(spread: ScoreSpread | None, digits: int = 3) -> str:
    """`0.712 ± 0.004`."""
    if spread is None:
        return NOTHING
    sd = "" if spread.sd is None else f" ± {spread.sd:.{digits}f}"
    return f"{spread.mean:.{digits}f}{sd}"


def distance_text(distance: float | None) -> str:
    """`12.3`."""
    return NOTHING if distance is None else f"{distance:.1f}"


def interval_text(interval: Interval | None) -> str:
    """`+0.012 [+0.003 to +0.021]`."""
    return NOTHING if interval is None else f"{figure(interval.mean)} [{range_text(interval)}]"


def share_text(share: float | None) -> str:
    """`33 %`."""
    return NOTHING if share is None else f"{100 * share:.0f} %"


def plain(heading: Row, rows: Sequence[Row]) -> str:
    """Aligned by spaces; all but the first column flush right."""
    lines = [list(heading), *[list(row) for row in rows]]
    widths = [max(len(line[i]) for line in lines) for i in range(len(heading))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _print(title: str, heading: Row, rows: Sequence[Row]) -> None:
    if not sys.stdout.isatty():
        print(f"\n{title}\n{plain(heading, rows)}")
        return
    table = Table(box=None, pad_edge=False, header_style="bold", title=title, title_justify="left")
    for i, name in enumerate(heading):
        table.add_column(name, justify="left" if i == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console(highlight=False).print(table)
