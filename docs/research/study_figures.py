"""Draw the three figures of the study from the runs' own figures in data/*.jsonl.

python docs/research/study_figures.py

Nothing is typed here a second time. The pictures hold no patient data.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import study_runs
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from PIL import Image
from study import counted
from study_runs import ALONE, DATA, FEDAVG, NO_EXCHANGE, SETS, TWICE, Method, methods, read

IMAGES = Path(__file__).parent.parent / "images"
DPI = 100
COLUMNS = 3
# Okabe and Ito's colours, told apart by colour-blind readers too; shapes say the same once more.
KINDS = {
    "alone": ("D", "#000000", "no exchange"),
    "one": ("o", "#0072B2", "one model: what travels predicts"),
    "two": ("s", "#D55E00", "two models: the mix predicts"),
    "pooled": ("^", "#6E6E6E", "all images in one place"),
}
PUSH, FLOAT = "[gossip.exchange=push,wire.dtype=float16]", "[wire.dtype=float16]"
SHOWN = {
    "lone_pair": ("two lone models", "alone"),
    TWICE[ALONE]: ("alone, twice the steps", "alone"),
    FEDAVG: ("FedAvg, float16", "one"),
    TWICE[FEDAVG]: ("FedAvg, float16, twice the steps", "one"),
    "fedavg, shared model alone": ("FedAvg", "one"),
    f"gossip_average{PUSH}, shared model alone": ("gossip, one way, float16", "one"),
    "gossip_average, shared model alone": ("gossip, a swap a round", "one"),
    f"fedavg{FLOAT}": ("FedAvg, float16, and personal", "two"),
    "fedavg": ("FedAvg and personal", "two"),
    f"gossip_average{PUSH}": ("gossip, one way, float16, and personal", "two"),
    "gossip_average": ("gossip, a swap a round, and personal", "two"),
    "gossip_average[gossip.swaps_per_round=2]": ("gossip, two swaps a round, and personal", "two"),
    "gossip_average[exchange_at.summed_rate=0.05]": ("gossip, by the summed rate, and personal", "two"),
    f"gcml{PUSH}": ("GCML, one way, float16", "two"),
    "gcml[gossip.personal_fetches=0]": ("GCML, without peers' personal models", "two"),
    "gcml": ("GCML, a swap a round: the default", "two"),
    "pooled": ("all images in one place", "pooled"),
}
"""Method → its name in the pictures and its kind."""
MEMBERS = {
    "shared model alone": ("o", "#0072B2"),
    "both at one half": ("v", "#009E73"),
    "deployed": ("s", "#D55E00"),
}


OFFSETS = {"shared model alone": -0.22, "both at one half": 0.0, "deployed": 0.22}


def data() -> dict[str, Mapping[str, Method]]:
    """Title → its methods with all of its repetitions, for the sets that have `local`."""
    files = {title: DATA / f"{name}.jsonl" for name, title in SETS.items()}
    sets = {title: methods(read(file)) for title, file in files.items() if file.exists()}
    shown = {}
    for title, found in sets.items():
        if ALONE in found:
            whole = found[ALONE].repetitions
            kept = {name: one for name, one in found.items() if one.repetitions >= whole}
            shown[f"{title}; {counted(len(whole), 'repetition')}"] = kept
    return shown


def run(sets: Mapping[str, Mapping[str, Method]]) -> dict[str, tuple[str, str]]:
    """Of SHOWN, what was run in all repetitions of one set at least."""
    return {name: told for name, told in SHOWN.items() if any(name in found for found in sets.values())}


def panels(sets: Sequence[str], *, height: float, shared: bool) -> tuple[plt.Figure, list[Axes]]:
    """A panel for each set; their scales differ."""
    rows = -(-len(sets) // COLUMNS)
    figure, axes = plt.subplots(
        rows,
        COLUMNS,
        figsize=(3 + 2.6 * COLUMNS, height * rows),
        sharey=shared,
        layout="constrained",
        squeeze=False,
    )
    for axis in axes.flat[len(sets) :]:
        axis.set_axis_off()
    for axis in axes[:, 0]:
        axis.tick_params(axis="y", labelsize=8)
    for axis, title in zip(axes.flat, sets, strict=False):
        axis.set_title(
            "\n".join(line for part in title.split("; ") for line in textwrap.wrap(part, 26)), fontsize=9
        )
        axis.xaxis.set_major_locator(MaxNLocator(3))
        axis.grid(axis="x", alpha=0.3)
    return figure, list(axes.flat[: len(sets)])


def draw_gain(sets: Mapping[str, Mapping[str, Method]]) -> plt.Figure:
    """Gain over training alone: the mean with its interval, and each site's mean over the repetitions, by its
    number."""
    names = run(sets)
    figure, axes = panels(list(sets), height=4.4, shared=True)
    for axis, found in zip(axes, sets.values(), strict=True):
        axis.axvline(0, color="black", linewidth=0.8)
        named: dict[int, str] = {}
        for y, (name, (_, kind)) in enumerate(names.items()):
            gain = study_runs.gain(found[name], found[ALONE]) if name in found else None
            if gain is None:
                absent(axis, y)
                continue
            marker, colour, _ = KINDS[kind]
            axis.plot([gain.low, gain.high], [y, y], color=colour, linewidth=1.6)
            axis.plot(gain.mean, y, marker, color=colour, markersize=6, zorder=3)
            for number, (site, value) in enumerate(sorted(gain.by_site.items()), start=1):
                named[number] = site
                style = {"marker": f"${number}$", "markersize": 4, "markeredgewidth": 0.3}
                axis.plot(value, y + 0.3, color=colour, **style)
        told = "   ".join(f"{number} {site.removeprefix('brain_')}" for number, site in named.items())
        axis.set_xlabel(f"test Dice minus that of training alone\n{wrapped(told, 44)}", fontsize=7)
    axes[0].set_yticks(range(len(names)), [name for name, _ in names.values()], fontsize=8)
    axes[0].set_ylim(axes[0].get_yticks()[-1] + 0.6, -0.6)
    legend(figure, {text: (marker, colour) for marker, colour, text in KINDS.values()})
    return figure


def absent(axis: Axes, y: float) -> None:
    """A method that was not run on this set in all repetitions."""
    text = "not run"
    axis.text(0.02, y, text, transform=axis.get_yaxis_transform(), va="center", fontsize=7, color="#6E6E6E")


def draw_bytes(sets: Mapping[str, Mapping[str, Method]]) -> plt.Figure:
    """Gain over training alone, with its interval, against bytes sent, relative to FedAvg's in float16; of
    the sets that have FedAvg."""
    sets = {title: found for title, found in sets.items() if FEDAVG in found}
    figure, axes = panels(list(sets), height=3.4, shared=False)
    sending = {n: text for n, (text, _) in run(sets).items() if not n.startswith(NO_EXCHANGE)}
    numbers = {name: i + 1 for i, name in enumerate(sending)}
    for axis, found in zip(axes, sets.values(), strict=True):
        yardstick = found[FEDAVG].bytes
        for name in sending:
            gain = study_runs.gain(found[name], found[ALONE]) if name in found else None
            if gain is None:
                continue
            marker, colour, _ = KINDS[SHOWN[name][1]]
            point = (100 * found[name].bytes / yardstick, gain.mean)
            axis.plot([point[0]] * 2, [gain.low, gain.high], color=colour, linewidth=0.9, alpha=0.6)
            axis.plot(*point, marker, color=colour, markersize=6, zorder=3)
            axis.annotate(
                str(numbers[name]), point, (4, 3), textcoords="offset points", fontsize=7, color=colour
            )
        axis.axhline(0, color="black", linewidth=0.8, linestyle="--")
        axis.set_xlabel("bytes sent, % of FedAvg's in float16", fontsize=8)
        axis.set_ylabel("test Dice minus that of training alone", fontsize=8)
        axis.grid(alpha=0.3)
    named = "   ".join(f"{numbers[name]} {text}" for name, text in sending.items())
    figure.supxlabel(wrapped(named + "   dashed: training alone", 150), fontsize=7, ha="center")
    return figure


def wrapped(text: str, width: int) -> str:
    """Lines of at most `width`, broken between names."""
    lines = [""]
    for part in text.split("   "):
        if len(lines[-1]) + len(part) > width:
            lines.append("")
        lines[-1] += ("   " if lines[-1] else "") + part
    return "\n".join(lines)


def draw_members(sets: Mapping[str, Mapping[str, Method]]) -> plt.Figure:
    """What each member brings over training alone, which is the personal model."""
    names = [n for n, (_, kind) in run(sets).items() if kind == "two" or n == "lone_pair"]
    figure, axes = panels(list(sets), height=3.6, shared=True)
    for axis, found in zip(axes, sets.values(), strict=True):
        axis.axvline(0, color="black", linewidth=0.8)
        for y, name in enumerate(names):
            if name not in found:
                absent(axis, y)
            for suffix, (marker, colour) in MEMBERS.items():
                one = found.get(name if suffix == "deployed" else f"{name}, {suffix}")
                gain = study_runs.gain(one, found[ALONE]) if one is not None else None
                if gain is not None:
                    at = y + OFFSETS[suffix]
                    axis.plot([gain.low, gain.high], [at, at], color=colour, linewidth=0.9, alpha=0.7)
                    axis.plot(gain.mean, at, marker, color=colour, markersize=5)
        axis.set_xlabel("test Dice minus that of training alone", fontsize=8)
    axes[0].set_yticks(range(len(names)), [SHOWN[name][0] for name in names], fontsize=8)
    axes[0].set_ylim(axes[0].get_yticks()[-1] + 0.6, -0.6)
    legend(figure, MEMBERS)
    return figure


def legend(figure: plt.Figure, kinds: Mapping[str, tuple[str, str]]) -> None:
    handles = [
        plt.Line2D([], [], color=colour, marker=marker, linestyle="", label=text)
        for text, (marker, colour) in kinds.items()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(kinds), frameon=False, fontsize=8)


def main() -> None:
    IMAGES.mkdir(exist_ok=True)
    sets = data()
    drawn = {"gain": draw_gain(sets), "bytes": draw_bytes(sets), "members": draw_members(sets)}
    for stem, figure in drawn.items():
        path = IMAGES / f"study-{stem}.png"
        figure.savefig(path, dpi=DPI)
        plt.close(figure)
        with Image.open(path) as drawn_image:
            small = drawn_image.convert("RGB").quantize(64)
        small.save(path, optimize=True)


if __name__ == "__main__":
    main()
