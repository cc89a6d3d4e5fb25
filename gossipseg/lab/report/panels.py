"""The methods' predictions: test images beside the expert's label and each prediction, as one picture."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from scipy import ndimage

from gossipseg.lab.report.statistics import replicate_of, replicates
from gossipseg.learn.evaluation.overlays import COLOURS as LABEL_COLOURS
from gossipseg.testbed.plots import DPI, INK, WIDTH_IN, png

Document = Mapping[str, Any]
_CHARACTERS_PER_IN = 14
"""Characters of a title per inch: 8 points, with some space between two titles."""
_CROP_PX = 320
"""Size to which a larger picture is cropped, around most of the label: outlines must be visible."""


def predictions(document: Document, folder: Path) -> bytes | None:
    """A row per test case: the image, the expert's label, then each algorithm's prediction.

    Predictions are tinted; the thin line is the outline of the expert's label.
    """
    found = _kept(document, folder)
    if not found:
        return None
    algorithms = [a for a in document["algorithms"] if any(a in shown for *_, shown in found)]
    columns = 2 + len(algorithms)
    cell_in = min(2.2, max(1.25, WIDTH_IN / columns))
    titles = {name: broken(name, int(cell_in * _CHARACTERS_PER_IN)) for name in algorithms}
    title_in = 0.32 + 0.12 * max(title.count("\n") for title in titles.values())
    size_in = (cell_in * columns, len(found) * (cell_in + title_in))
    figure = Figure(figsize=size_in, dpi=DPI, layout="constrained")
    grid = figure.subplots(len(found), columns, squeeze=False)
    for line, (site, case, image, label, shown) in zip(grid, found, strict=True):
        for axes in line:
            axes.set_axis_off()
        line[0].imshow(image)
        line[0].set_title(f"{site}\n{case}", loc="left", fontsize=8, fontweight="bold", color=INK)
        line[1].imshow(overlay(image, label, label))
        line[1].set_title("expert's label", fontsize=8, color=INK)
        for axes, name in zip(line[2:], algorithms, strict=True):
            if name in shown:
                predicted, dice = shown[name]
                axes.imshow(overlay(image, predicted, label))
                axes.set_title(f"{titles[name]}\nDice {dice}", fontsize=8, color=INK)
    return png(figure)


def broken(name: str, characters: int) -> str:
    """A method's name in lines of limited length, broken where its punctuation allows."""
    lines = [""]
    for piece in re.findall(r"[^\[,._=]*[\[,._=]?", name):
        if lines[-1] and len(lines[-1]) + len(piece) > characters:
            lines.append("")
        lines[-1] += piece
    return "\n".join(lines)


_Shown = dict[str, tuple[np.ndarray, str]]


def _kept(document: Document, folder: Path) -> list[tuple[str, str, np.ndarray, np.ndarray, _Shown]]:
    """(site, case, image, label, algorithm → prediction and its Dice) of the first replicate's pictures."""
    first = replicates(document)[0]
    rows = [row for row in document["runs"] if replicate_of(row) == first]
    found = []
    for site in document["sites"]:
        for path in sorted((folder / "cases" / site).glob("*.image.png")):
            case = path.name.removesuffix(".image.png")
            shown: _Shown = {}
            window = None
            label = _read(path.with_name(f"{case}.label.png"))
            window = crop(label)
            for row in rows:
                picture = folder / str(row.get("run", "")) / site / f"{case}.png"
                dice = next((c["dice"] for c in row["cases"] if c["id"] == case), None)
                if row["site"] == site and picture.is_file():
                    words = "-" if dice is None else f"{dice:.3f}"
                    shown[row["algorithm"]] = (enlarged(_read(picture)[window]), words)
            if shown:
                found.append((site, case, enlarged(_read(path)[window]), enlarged(label[window]), shown))
    return found


def crop(label: np.ndarray) -> tuple[slice, slice]:
    """The part of a large picture that is shown: a square around the middle of the label."""
    where = np.argwhere(label > 0)
    middle = where.mean(0) if len(where) else np.array(label.shape) / 2
    begin = [
        int(np.clip(m - _CROP_PX / 2, 0, max(0, n - _CROP_PX)))
        for m, n in zip(middle, label.shape, strict=True)
    ]
    return slice(begin[0], begin[0] + _CROP_PX), slice(begin[1], begin[1] + _CROP_PX)


def enlarged(array: np.ndarray) -> np.ndarray:
    """A small picture with enlarged pixels, so that a line of one pixel is thin on it."""
    factor = max(1, _CROP_PX // max(array.shape[:2]))
    return array.repeat(factor, 0).repeat(factor, 1)


def overlay(image: np.ndarray, predicted: np.ndarray, label: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8: the prediction as a tint, and the label's outline one pixel outside it. So the outline
    does not cover a thin structure."""
    out = image.astype(np.float32)
    for value in np.unique(predicted[predicted > 0]):
        tint = np.array(LABEL_COLOURS[(int(value) - 1) % len(LABEL_COLOURS)], np.float32)
        where = predicted == value
        out[where] = 0.4 * out[where] + 0.6 * tint
    for value in np.unique(label[label > 0]):
        mask = label == value
        out[ndimage.binary_dilation(mask) & ~mask] = (255, 235, 59)
    return out.clip(0, 255).astype(np.uint8)


def _read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)
