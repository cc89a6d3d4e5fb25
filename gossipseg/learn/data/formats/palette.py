"""What the numbers of a picture with a palette mean.

An image shows its colours: they are what a network sees. A mask with a coloured palette has its label values
in the indices, as PASCAL VOC and annotation tools write it. A palette of greys is a grey picture that a tool
has packed: its greys are the values, for image and mask alike. Where such a palette turns light and dark
round, both readings are in use (ImageJ, optimisers), and a mask of that kind is refused.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gossipseg.errors import DataError


def resolve(indices: np.ndarray, colours: np.ndarray, as_label: bool, file: Path) -> np.ndarray:
    """Indices (*shape) and colours (n, 3) → (*shape) greys or labels, or (*shape, 3). Raises DataError."""
    used = np.unique(indices)
    if used.size and used[-1] >= len(colours):
        raise DataError(
            f"uses entry {used[-1]} of a palette of {len(colours)}", file=file, remedy="Save it anew."
        )
    shown = colours[used]
    grey = bool((shown == shown[:, :1]).all())
    if not grey:
        return indices if as_label else colours[indices]
    if as_label and not (np.diff(shown[:, 0].astype(int)) > 0).all():
        raise DataError(
            "is a mask whose palette turns its greys round: index and grey value contradict each other",
            file=file,
            key="palette",
            value={int(i): int(g) for i, g in zip(used[:8], shown[:8, 0], strict=True)},
            remedy="Save it as plain 8-bit grey with the label values.",
        )
    greys: np.ndarray = colours[indices, 0]
    return greys
