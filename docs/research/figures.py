"""Draw the three figures of results.md from the tables in tables.md.

python docs/research/figures.py

Every figure in a picture is read from a table; nothing is typed here a second time. The pictures hold no
patient data.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

HERE = Path(__file__).parent
TABLES = HERE / "tables.md"
IMAGES = HERE.parent / "images"

SETS = {
    "Three hippocampus sites that look alike": "three hippocampus sites\nthat look alike",
    "Three brain sites, one task in three MR sequences": "three brain sites,\neach another MR sequence",
    "Five retinal cameras": "five retinal cameras",
}
"""Section of tables.md → title of its panel."""
FEW_CASES = "One site with few cases"
SHOWN = (
    "fedprox",
    "fedavg",
    "fedavg_finetune",
    "fedbn",
    "ditto",
    "fedavg@3",
    "gossip_average",
    "gcml",
    "gcml[training.shadow_local=true]",
    "gossip_ensemble",
)
"""Methods of the tables. The forms of gcml in them, and gossip_ensemble, were settings until version 0.4."""
SHORT = {
    "gcml": "gcml, first form",
    "gcml[training.shadow_local=true]": "gcml + local control",
    "gcml[merge=none]": "gcml, nothing merged",
    "gcml[merge=none,lambda=1]": "gcml, nothing merged, λ = 1",
    "pooled": "all images in one place",
    "local": "local (alone)",
}
# Okabe and Ito's colours, told apart by colour-blind readers too; shapes say the same once more.
GREY = "#6E6E6E"
COLOURS = {"coordinator": "#0072B2", "gossip": "#D55E00", "alone": "#000000", "pooled": GREY}
MARKERS = {"coordinator": "o", "gossip": "s", "alone": "D", "pooled": "^"}
NAMES = {
    "coordinator": "weights averaged under a coordinator",
    "gossip": "gossip, no server",
    "alone": "alone",
    "pooled": "all images in one place",
}
DPI = 100

Row = dict[str, str]


@dataclass(frozen=True)
class Difference:
    """A difference of Dice with its 95 % interval."""

    mean: float
    low: float
    high: float


def number(text: str) -> float:
    """The first number of a cell, with the page's minus sign."""
    found = re.search(r"[-−+]?\d+(?:\.\d+)?", text)
    assert found, text
    return float(found.group().replace("−", "-"))


def difference(text: str) -> Difference:
    """Of a cell such as `+0.016 (+0.011 … +0.022)`."""
    parts = [float(n.replace("−", "-")) for n in re.findall(r"[-−+]\d+\.\d+", text)]
    return Difference(*parts)


def spread(text: str) -> float:
    """The standard deviation in `0.821 ± 0.008`."""
    return number(text.split("±")[1])


def tables(after: str) -> list[list[Row]]:
    """The tables between the first line that holds `after` and the next section."""
    page = TABLES.read_text(encoding="utf-8")
    start = page.index(after)
    end = page.find("\n## ", start + 1)
    text = page[start : end if end > 0 else None]
    return [rows(block) for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)]


def rows(block: str) -> list[Row]:
    """A table's rows, by the names of its columns."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in block.strip().splitlines()]
    return [dict(zip(lines[0], line, strict=True)) for line in lines[2:]]


def repeated(section: str) -> dict[str, Row]:
    """The rows of a section's tables over three repetitions, by method."""
    kept = [row for table in tables("## " + section) for row in table if "±" in row.get("all sites", "")]
    return {row["method"].strip("`"): row for row in kept}


def family(method: str) -> str:
    if method in ("local", "pooled"):
        return {"local": "alone"}.get(method, method)
    return "gossip" if method.startswith(("gossip", "gcml")) else "coordinator"


def draw_gain() -> plt.Figure:
    """Gain over training alone, method by method, with its interval."""
    figure, axes = plt.subplots(1, 3, figsize=(10, 4.3), sharey=True, layout="constrained")
    methods = [*SHOWN, "pooled"]
    for axis, (section, title) in zip(axes, SETS.items(), strict=True):
        found = repeated(section)
        axis.axvline(0, color="black", linewidth=0.8)
        for y, method in enumerate(methods):
            if method not in found:
                missing(axis, y)
                continue
            gain, kind = difference(found[method]["over `local`"]), family(method)
            axis.plot([gain.low, gain.high], [y, y], color=COLOURS[kind], linewidth=1.6)
            axis.plot(gain.mean, y, MARKERS[kind], color=COLOURS[kind], markersize=6)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("test Dice minus that of local")
        axis.xaxis.set_major_locator(MaxNLocator(4))
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(range(len(methods)), [SHORT.get(m, m) for m in methods])
    axes[0].invert_yaxis()
    legend(figure, ("coordinator", "gossip", "pooled"))
    return figure


def missing(axis: Axes, y: float) -> None:
    """A method that has no row in the table over three repetitions."""
    box = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
    where = axis.get_yaxis_transform()
    text = "not run three times"
    axis.text(0.02, y, text, transform=where, va="center", fontsize=7, color=GREY, bbox=box)


def draw_bytes() -> plt.Figure:
    """Dice against bytes sent."""
    figure, axes = plt.subplots(1, 3, figsize=(11, 4.2), layout="constrained")
    for axis, (section, title) in zip(axes, SETS.items(), strict=True):
        found = repeated(section)
        if "pooled" in found:
            dice = number(found["pooled"]["all sites"])
            axis.axhline(dice, color=COLOURS["pooled"], linestyle="--", linewidth=1)
            lowest = dice <= min(number(row["all sites"]) for row in found.values())
            below = {"xytext": (0, -3), "va": "top"} if lowest else {"xytext": (0, 2), "va": "bottom"}
            axis.annotate(
                SHORT["pooled"], (2, dice), textcoords="offset points", fontsize=7.5, color=GREY, **below
            )
        shown = [m for m in ("local", *SHOWN) if m in found]
        points = [(number(found[m]["bytes"]), number(found[m]["all sites"]), m) for m in shown]
        for x, dice, method in points:
            kind = family(method)
            axis.plot(x, dice, MARKERS[kind], color=COLOURS[kind], markersize=6, zorder=3)
        low, high = axis.get_ylim()
        axis.set_ylim(low - 0.06 * (high - low), high + 0.04 * (high - low))
        local = number(found["local"]["all sites"])
        axis.annotate(
            "local", (0, local), (0, -8), textcoords="offset points", fontsize=7.5, ha="center", va="top"
        )
        for least, most in ((20, 60), (60, 110)):
            name(axis, [p for p in points if least <= p[0] < most])
        axis.set_title(title, fontsize=10)
        axis.set_xlim(-14, 178)
        axis.set_xticks([0, 33, 67, 100])
        axis.set_xlabel("bytes sent, % of those of fedavg")
        axis.set_ylabel("test Dice, mean of all sites")
        axis.grid(alpha=0.3)
    legend(figure, ("coordinator", "gossip", "alone"))
    return figure


def name(axis: Axes, points: list[tuple[float, float, str]]) -> None:
    """Names to the right of points that lie close together, far enough apart to be read."""
    low, high = axis.get_ylim()
    gap = 0.055 * (high - low)
    points = sorted(points, key=lambda p: p[1])
    heights: list[float] = []
    for _, dice, _ in points:
        heights.append(max(dice, heights[-1] + gap) if heights else dice)
    shift = sum(h - p[1] for h, p in zip(heights, points, strict=True)) / max(1, len(points))
    column = max((p[0] for p in points), default=0.0) + 7
    for (x, dice, method), height in zip(points, heights, strict=True):
        y = height - shift
        axis.plot([x, column - 1], [dice, y], color="#9E9E9E", linewidth=0.6, zorder=1)
        text = axis.text(column, y, SHORT.get(method, method), fontsize=7.5, va="center", zorder=4)
        text.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.5})


def draw_few_cases() -> plt.Figure:
    """A site with four training volumes instead of eighteen."""
    found = {row["method"].strip("`"): row for row in tables(FEW_CASES)[0]}
    columns = [c for c in next(iter(found.values())) if c.startswith("site") and "against" not in c]
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(10, 3.6), layout="constrained", width_ratios=(1, 1.15)
    )
    marks = dict(zip(found, ("D", "o", "s", "v"), strict=True))
    colours = dict(zip(found, ("#000000", "#0072B2", "#D55E00", "#CC79A7"), strict=True))
    for i, (method, row) in enumerate(found.items()):
        across = [x + (i - 1.5) * 0.13 for x in range(len(columns))]
        dice = [number(row[c]) for c in columns]
        left.plot(across, dice, marks[method], color=colours[method], label=SHORT.get(method, method))
    cases = [c if "cases" in c else f"{c} (18 cases)" for c in columns]
    left.set_xticks(range(len(columns)), [c.replace(" (", "\n(") for c in cases])
    left.set_xlabel("site (training volumes)")
    left.set_ylabel("test Dice")
    left.grid(axis="y", alpha=0.3)
    left.legend(fontsize=8, loc="lower right")
    others = [m for m in found if m != "local"]
    right.axvline(0, color="black", linewidth=0.8)
    for y, method in enumerate(others):
        gain = difference(found[method]["site a against alone"])
        right.plot([gain.low, gain.high], [y, y], color=colours[method], linewidth=1.6)
        right.plot(gain.mean, y, marks[method], color=colours[method], markersize=6)
    right.set_yticks(range(len(others)), [SHORT.get(m, m) for m in others])
    right.set_ylim(len(others) - 0.5, -0.5)
    right.set_xlabel("test Dice of site a minus that of local")
    right.grid(axis="x", alpha=0.3)
    return figure


def legend(figure: plt.Figure, kinds: tuple[str, ...]) -> None:
    handles = [
        plt.Line2D([], [], color=COLOURS[k], marker=MARKERS[k], linestyle="", label=NAMES[k]) for k in kinds
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(kinds), frameon=False, fontsize=9)


def main() -> None:
    IMAGES.mkdir(exist_ok=True)
    drawn = {"gain": draw_gain(), "bytes": draw_bytes(), "few-cases": draw_few_cases()}
    for stem, figure in drawn.items():
        figure.savefig(IMAGES / f"results-{stem}.png", dpi=DPI, pil_kwargs={"optimize": True})


if __name__ == "__main__":
    main()
