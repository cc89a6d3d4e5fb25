"""The pictures of a report: learning curves, exchange timeline, predictions. PNG bytes in, PNG bytes out."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from gossipseg.testbed.curves import Curve, Exchange

COLOURS = ("#2f6db3", "#d2762c", "#3d9a6d", "#b2475b", "#7b68b5", "#8a7a4f", "#3fa3b5", "#5b6572")
_OUTCOME_STYLE = {
    "merged": ("#2b2f36", "o"),
    "kept out": ("#8b93a1", "o"),
    "refused": ("#c0392b", "X"),
    "broken": ("#c0392b", "X"),
    "reverted": ("#c0392b", "v"),
    "dropped": ("#b5bac4", "s"),
    "waiting": ("#b5bac4", "s"),
}
INK, FAINT = "#2b2f36", "#e4e7ec"
WIDTH_IN, DPI = 10.0, 120


def colours(names: Sequence[str]) -> dict[str, str]:
    """A colour per site, the same in every picture."""
    return {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}


def learning(curves: Mapping[str, Curve]) -> bytes:
    """Validation Dice and training loss by round; dots where another site's model was merged."""
    figure = Figure(figsize=(WIDTH_IN, 3.7), dpi=DPI, layout="constrained")
    left, right = figure.subplots(1, 2)
    colour = colours(list(curves))
    any_taken = False
    for name, curve in curves.items():
        for axes, values in ((left, curve.dice_val), (right, curve.loss)):
            axes.plot(curve.rounds, values, color=colour[name], linewidth=1.9, label=name)
            taken = [(r, v) for r, v, frm in zip(curve.rounds, values, curve.visits, strict=True) if frm]
            any_taken = any_taken or bool(taken)
            axes.scatter(
                [r for r, _ in taken], [v for _, v in taken], s=22, color=colour[name], zorder=3, linewidth=0
            )
    dress(left, "Validation Dice", "round")
    dress(right, "Training loss", "round")
    left.set_ylim(0, 1)
    right.set_ylim(bottom=0)
    for axes in (left, right):
        axes.xaxis.get_major_locator().set_params(integer=True)
    handles, labels = left.get_legend_handles_labels()
    if any_taken:
        handles.append(Line2D([], [], marker="o", linestyle="", color="#7c8490", markersize=4.5))
        labels.append("merged a peer's model")
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=min(6, len(labels)), frameon=False)
    return png(figure)


def timeline(names: Sequence[str], exchanges: Sequence[Exchange], wall_s: float) -> bytes:
    """A lane per site; an arrow per model, from its sender to its receiver at the time of its arrival."""
    height = 1.5 + 0.62 * max(2, len(names))
    figure = Figure(figsize=(WIDTH_IN, height), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    colour = colours(names)
    lane = {name: len(names) - 1 - i for i, name in enumerate(names)}
    for name in names:
        axes.axhline(lane[name], color=FAINT, linewidth=6, zorder=0, solid_capstyle="round")
    for e in exchanges:
        if e.sender in lane and e.receiver in lane:
            _arrow(axes, e, lane, colour[e.sender])
    axes.set_yticks([lane[n] for n in names], list(names))
    for label, name in zip(axes.get_yticklabels(), names, strict=True):
        label.set_color(colour[name])
        label.set_fontweight("bold")
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.set_xlim(0, max(1.0, wall_s))
    dress(axes, "Models exchanged", "seconds since the start")
    axes.grid(False)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    _outcome_legend(figure, {e.outcome for e in exchanges})
    return png(figure)


def _arrow(axes: Any, e: Exchange, lane: Mapping[str, int], colour: str) -> None:
    top, bottom = lane[e.sender], lane[e.receiver]
    ink, marker = _OUTCOME_STYLE[e.outcome]
    taken = e.outcome == "merged"
    axes.annotate(
        "",
        xy=(e.arrived_s, bottom),
        xytext=(e.arrived_s, top),
        arrowprops={
            "arrowstyle": "-|>",
            "color": colour if taken else ink,
            "linewidth": 1.4,
            "shrinkA": 0,
            "shrinkB": 4,
            "linestyle": "-" if taken else (0, (3, 2)),
        },
    )
    if e.done_s is not None:
        axes.plot([e.arrived_s, e.done_s], [bottom, bottom], color=colour if taken else ink, linewidth=2.2)
    axes.scatter([e.done_s or e.arrived_s], [bottom], s=26, color=ink, marker=marker, zorder=3, linewidth=0)


_SHOWN = {"kept out": "rejected"}


def _outcome_legend(figure: Figure, outcomes: set[str]) -> None:
    shown = [o for o in _OUTCOME_STYLE if o in outcomes]
    if not shown:
        return
    handles = [
        Line2D([], [], linestyle="", marker=_OUTCOME_STYLE[o][1], color=_OUTCOME_STYLE[o][0]) for o in shown
    ]
    figure.legend(
        handles,
        [_SHOWN.get(o, o) for o in shown],
        loc="outside lower center",
        ncols=len(shown),
        frameon=False,
    )


def samples(pictures: Mapping[str, Sequence[Path]], per_site: int = 2) -> bytes | None:
    """Overlay pictures as they came from the sites, a row per site; None without any."""
    rows = {name: list(paths)[:per_site] for name, paths in pictures.items() if paths}
    if not rows:
        return None
    columns = max(len(paths) for paths in rows.values())
    loaded = {name: [_read(p) for p in paths] for name, paths in rows.items()}
    aspect = max(a.shape[1] / a.shape[0] for arrays in loaded.values() for a in arrays)
    cell_in = (WIDTH_IN - 0.3) / columns
    height = len(rows) * (cell_in / aspect + 0.3) + 0.3
    figure = Figure(figsize=(WIDTH_IN, height), dpi=DPI, layout="constrained")
    grid = figure.subplots(len(rows), columns, squeeze=False)
    colour = colours(list(pictures))
    for line, (name, arrays) in zip(grid, loaded.items(), strict=True):
        for axes in line:
            axes.set_axis_off()
        for axes, array in zip(line, arrays, strict=False):
            axes.imshow(array, interpolation="nearest")
        line[0].set_title(name, loc="left", fontsize=10, fontweight="bold", color=colour[name])
    return png(figure)


def together(path: Path, parts: Sequence[bytes]) -> None:
    """All pictures below each other in one file."""
    images = [Image.open(io.BytesIO(part)).convert("RGB") for part in parts]
    width = max(image.width for image in images)
    page = Image.new("RGB", (width, sum(image.height for image in images)), "white")
    top = 0
    for image in images:
        page.paste(image, (0, top))
        top += image.height
    page.save(path)


def _read(path: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def dress(axes: Any, title: str, x_label: str) -> None:
    """Apply the style of every diagram: a bold title on the left, a faint grid, no box."""
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=INK)
    axes.set_xlabel(x_label, color=INK)
    axes.grid(True, color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, labelsize=9)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#b9c0ca")


def png(figure: Figure) -> bytes:
    """The figure as the bytes of a PNG file."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()
