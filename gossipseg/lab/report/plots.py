"""The pictures of a comparison's figures. results.json in, PNG bytes out."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from gossipseg.lab.plan.variants import POOLED
from gossipseg.lab.report.intervals import Replicate
from gossipseg.lab.report.statistics import FLOOR, Summary, replicate_of, rows_of
from gossipseg.testbed.plots import COLOURS, DPI, FAINT, INK, WIDTH_IN, dress, png

Document = Mapping[str, Any]
_GREY = "#8b93a1"
_MARKERS = "osD^vPX*"


def colours(algorithms: Sequence[str]) -> dict[str, str]:
    """A colour per algorithm, the same in every picture; floor and ceiling are grey and black."""
    own = [a for a in algorithms if a != FLOOR and not a.startswith(POOLED)]
    found = {a: COLOURS[i % len(COLOURS)] for i, a in enumerate(own)}
    return {a: found.get(a, _GREY if a == FLOOR else INK) for a in algorithms}


# ---------------------------------------------------------------- curves


def learning(document: Document) -> bytes | None:
    """Validation Dice by round: the mean over sites, then each site; a band spans the repetitions."""
    sites, algorithms = list(document["sites"]), list(document["algorithms"])
    curves = {a: _curves(document, a) for a in algorithms}
    if not any(curves.values()):
        return None
    columns = 3
    rows = math.ceil((len(sites) + 1) / columns)
    figure = Figure(figsize=(WIDTH_IN, 2.7 * rows + 0.5), dpi=DPI, layout="constrained")
    grid = list(figure.subplots(rows, columns, squeeze=False, sharey=True).flat)
    colour = colours(algorithms)
    for axes, site in zip(grid, [None, *sites], strict=False):
        for name in algorithms:
            _curve(axes, curves[name], site, colour[name], name)
        dress(axes, site or "all sites (mean)", "round")
        if axes.get_subplotspec().is_first_col():
            axes.set_ylabel("validation Dice")
        axes.xaxis.get_major_locator().set_params(integer=True)
    for axes in grid[len(sites) + 1 :]:
        axes.set_visible(False)
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(5, len(labels)), frameon=False)
    return png(figure)


def _curves(document: Document, algorithm: str) -> dict[tuple[str, Replicate], dict[int, float]]:
    """(site, replicate) → round → Dice."""
    return {
        (row["site"], replicate_of(row)): {n: d for n, d in row["curve"] if d is not None}
        for row in rows_of(document, algorithm)
        if row["curve"]
    }


def _curve(
    axes: Any,
    curves: Mapping[tuple[str, Replicate], Mapping[int, float]],
    site: str | None,
    colour: str,
    name: str,
) -> None:
    found: defaultdict[Replicate, list[Mapping[int, float]]] = defaultdict(list)
    for (where, replicate), curve in curves.items():
        if site in (None, where):
            found[replicate].append(curve)
    lines = [_mean_curve(several) for several in found.values()]
    rounds = sorted(set.intersection(*(set(line) for line in lines))) if lines else []
    if not rounds:
        return
    values = np.array([[line[n] for n in rounds] for line in lines])
    marker = "o" if len(rounds) < 3 else None
    axes.plot(rounds, values.mean(0), color=colour, linewidth=1.8, label=name, marker=marker, markersize=4)
    if len(lines) > 1:
        axes.fill_between(rounds, values.min(0), values.max(0), color=colour, alpha=0.15, linewidth=0)


def _mean_curve(curves: Sequence[Mapping[int, float]]) -> dict[int, float]:
    """Mean over the sites, in the rounds that all of them have."""
    common = set.intersection(*(set(c) for c in curves))
    return {n: statistics.fmean(c[n] for c in curves) for n in common}


# ---------------------------------------------------------------- figures by site and case


def sites(document: Document, summaries: Sequence[Summary]) -> bytes:
    """Bars of test Dice by site; whiskers are the standard deviation over the repetitions."""
    names = list(document["sites"])
    figure = Figure(figsize=(WIDTH_IN, 3.6), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    colour = colours([s.algorithm for s in summaries])
    width = 0.84 / max(1, len(summaries))
    for i, s in enumerate(summaries):
        groups = [*(s.by_site.get(n) for n in names), s.overall]
        at = [g + (i - (len(summaries) - 1) / 2) * width for g in range(len(groups))]
        axes.bar(
            at,
            [g.mean if g else 0.0 for g in groups],
            width * 0.92,
            color=colour[s.algorithm],
            yerr=[(g.sd or 0.0) if g else 0.0 for g in groups] if any(g and g.sd for g in groups) else None,
            error_kw={"ecolor": INK, "elinewidth": 0.9, "capsize": 2},
            label=s.algorithm,
        )
    axes.axvline(len(names) - 0.5, color=FAINT, linewidth=1.5)
    dress(axes, "Test Dice by site", "")
    axes.set_ylabel("Dice")
    axes.set_xticks(range(len(names) + 1), [*names, "all sites"])
    axes.grid(False, axis="x")
    axes.set_ylim(*_dice_limits([g.mean for s in summaries for g in s.by_site.values()]))
    figure.legend(loc="outside lower center", ncols=min(5, len(summaries)), frameon=False)
    return png(figure)


def _dice_limits(values: Sequence[float]) -> tuple[float, float]:
    """Axis limits, from 0, so that bars may be compared by their length."""
    return 0.0, min(1.0, 1.12 * max([*values, 0.1]))


def cases(document: Document) -> bytes:
    """A box per algorithm over all test cases, each averaged over the repetitions; a dot is a case."""
    algorithms, names = list(document["algorithms"]), list(document["sites"])
    figure = Figure(figsize=(WIDTH_IN, 0.9 + 0.62 * len(algorithms)), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    colour = colours(algorithms)
    rng = np.random.default_rng(0)
    for i, name in enumerate(reversed(algorithms)):
        by_site = _case_means(document, name)
        values = [v for site in names for v in by_site.get(site, [])]
        if not values:
            continue
        axes.boxplot(
            [values],
            positions=[i],
            orientation="horizontal",
            widths=0.55,
            showfliers=False,
            medianprops={"color": INK, "linewidth": 1.6},
            boxprops={"color": colour[name], "linewidth": 1.4},
            whiskerprops={"color": colour[name]},
            capprops={"color": colour[name]},
        )
        for marker, site in zip(_MARKERS * len(names), names, strict=False):
            found = by_site.get(site, [])
            jitter = i + rng.uniform(-0.2, 0.2, len(found))
            axes.scatter(found, jitter, s=13, marker=marker, color=colour[name], alpha=0.55, linewidth=0)
    for marker, site in zip(_MARKERS * len(names), names, strict=False):
        axes.scatter([], [], s=22, marker=marker, color=_GREY, label=site)
    dress(axes, "Test Dice of every case", "Dice")
    axes.set_yticks(range(len(algorithms)), list(reversed(algorithms)))
    axes.grid(False, axis="y")
    figure.legend(loc="outside lower center", ncols=min(6, len(names)), frameon=False)
    return png(figure)


def _case_means(document: Document, algorithm: str) -> dict[str, list[float]]:
    """Site → Dice of each test case, averaged over the repetitions."""
    found: dict[str, dict[str, list[float]]] = {}
    for row in rows_of(document, algorithm):
        for case in row["cases"]:
            if case["dice"] is not None:
                found.setdefault(row["site"], {}).setdefault(case["id"], []).append(case["dice"])
    return {site: [statistics.fmean(v) for v in by_case.values()] for site, by_case in found.items()}


def intervals(summaries: Sequence[Summary], reference: str) -> bytes | None:
    """Differences from a reference with their 95 % intervals: all sites, and the worst site's as a cross."""
    shown = [s for s in summaries if reference in s.against]
    if not shown:
        return None
    figure = Figure(figsize=(WIDTH_IN, 1.1 + 0.42 * len(shown)), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    colour = colours([s.algorithm for s in summaries])
    for i, s in enumerate(reversed(shown)):
        found = s.against[reference]
        ink = colour[s.algorithm]
        axes.plot([found.low, found.high], [i, i], color=ink, linewidth=3, solid_capstyle="round")
        axes.scatter([found.mean], [i], s=52, color=ink, zorder=3, linewidth=0)
        if reference == FLOOR and s.worst_gain is not None:
            axes.scatter([s.worst_gain], [i], s=34, marker="x", color=ink, zorder=3)
    axes.axvline(0, color=INK, linewidth=1)
    words = {FLOOR: "training alone"}.get(reference, reference)
    cross = "; cross: the site that gains least" if reference == FLOOR else ""
    dress(
        axes,
        f"Difference from {words}",
        f"difference in Dice (dot: mean over sites, bar: 95 % interval{cross})",
    )
    axes.set_yticks(range(len(shown)), [s.algorithm for s in reversed(shown)])
    axes.set_ylim(-0.6, len(shown) - 0.4)
    axes.grid(False, axis="y")
    return png(figure)


# ---------------------------------------------------------------- who sent to whom


def exchange(document: Document) -> bytes | None:
    """A graph per algorithm: an arrow's width is the number of models sent, mean over the repetitions."""
    graphs = {a: _sent(document, a) for a in document["algorithms"]}
    graphs = {a: sent for a, sent in graphs.items() if sent}
    if not graphs:
        return None
    columns = min(4, len(graphs))
    rows = math.ceil(len(graphs) / columns)
    side = WIDTH_IN / 4
    figure = Figure(figsize=(WIDTH_IN, rows * (0.66 * side + 0.3)), dpi=DPI, layout="constrained")
    grid = list(figure.subplots(rows, 4, squeeze=False).flat)
    colour = colours(list(document["algorithms"]))
    shown = [axes for i, axes in enumerate(grid) if i % 4 < columns]
    for axes, (name, sent) in zip(shown, graphs.items(), strict=False):
        _graph(axes, list(document["sites"]), sent, colour[name])
        total = sum(sent.values())
        axes.set_title(f"{name}: {total:.0f} models", loc="left", fontsize=9.5, fontweight="bold", color=INK)
    for axes in grid:
        axes.set_axis_off()
    return png(figure)


def _sent(document: Document, algorithm: str) -> dict[tuple[str, str], float]:
    """(sender, receiver) → models a run, mean over the repetitions."""
    rows = rows_of(document, algorithm)
    runs = len({replicate_of(row) for row in rows}) or 1
    total: defaultdict[tuple[str, str], float] = defaultdict(float)
    for row in rows:
        for receiver, count in row["sent_to"].items():
            total[row["site"], receiver] += count / runs
    return dict(total)


def _graph(axes: Any, names: Sequence[str], sent: Mapping[tuple[str, str], float], colour: str) -> None:
    angle = {name: math.pi / 2 - 2 * math.pi * i / len(names) for i, name in enumerate(names)}
    place = {name: (math.cos(a), math.sin(a)) for name, a in angle.items()}
    most = max(sent.values())
    for (frm, to), count in sent.items():
        axes.annotate(
            "",
            xy=place[to],
            xytext=place[frm],
            arrowprops={
                "arrowstyle": "-|>,head_width=0.22,head_length=0.4",
                "connectionstyle": "arc3,rad=0.16",
                "color": colour,
                "alpha": 0.85,
                "linewidth": 0.5 + 2.2 * count / most,
                "shrinkA": 7,
                "shrinkB": 7,
            },
        )
    for name, (x, y) in place.items():
        axes.scatter([x], [y], s=70, color=INK, zorder=3, linewidth=0)
        side = "center" if abs(x) < 0.3 else "left" if x > 0 else "right"
        above = "bottom" if y > 0.9 else "top" if y < -0.9 else "center"
        axes.text(1.2 * x, 1.16 * y, short(name), ha=side, va=above, fontsize=7.5, color=INK)
    axes.set_xlim(-2.3, 2.3)
    axes.set_ylim(-1.45, 1.6)
    axes.set_aspect("equal")


def short(name: str) -> str:
    """A long name on two lines."""
    breaks = [i for i, letter in enumerate(name[:-1]) if letter in "_-"]
    if len(name) < 12 or not breaks:
        return name
    middle = min(breaks, key=lambda i: (abs(i + 1 - len(name) / 2), -i))
    return f"{name[: middle + 1]}\n{name[middle + 1 :]}"
