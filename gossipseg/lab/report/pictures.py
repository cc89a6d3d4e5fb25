"""Pictures of predictions: a few test cases per site, kept as small label maps beside their images.

OUT/pictures/cases/SITE/CASE.image.png     The image (RGB).
OUT/pictures/cases/SITE/CASE.label.png     The label map (8-bit grey values are label values).
OUT/pictures/RUN/SITE/CASE.png             The prediction of a run's deployment model.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from gossipseg.learn.data.cases import Case
from gossipseg.learn.data.readers import Volume
from gossipseg.learn.evaluation.evaluate import CaseScore
from gossipseg.learn.evaluation.overlays import busiest_slice, displayable

PER_SITE = 2
CASES = "cases"


class Pictures:
    """Keeps the first few cases of one site in one run. Called as commands.evaluate.SaveOverlay."""

    def __init__(self, root: Path, run: str, site: str) -> None:
        self._run, self._cases = root / run / site, root / CASES / site
        self._left = PER_SITE

    def __call__(
        self, case: Case, volume: Volume, label: np.ndarray, predicted: np.ndarray, scored: CaseScore
    ) -> None:
        if self._left == 0:
            return
        self._left -= 1
        array = volume.array
        if label.ndim == 3:
            k = busiest_slice(label)
            array, label, predicted = array[..., k], label[..., k], predicted[..., k]
        turn = volume.affine is not None and not volume.raster
        _save(self._run / f"{case.id}.png", predicted, turn)
        _save(self._cases / f"{case.id}.label.png", label, turn)
        _save(self._cases / f"{case.id}.image.png", displayable(array), turn)


def _save(path: Path, array: np.ndarray, turn: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    shown = np.rot90(array) if turn else array
    Image.fromarray(np.ascontiguousarray(shown.astype(np.uint8))).save(path)
