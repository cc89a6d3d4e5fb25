"""A few windows of a case, for a loss that is compared with itself often.

A whole image may take a hundred windows of the network, and what is asked is only whether a loss has risen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from gossipseg.learn.data.labels import IGNORE

MOST_WINDOWS = 4
"""Windows of a case, where it has more."""

Window = tuple[slice, ...]


def few_windows(label: np.ndarray, patch_size: Sequence[int]) -> list[Window]:
    """Where to look in an image with this label (*spatial): always the same places.

    The whole image where MOST_WINDOWS tiles cover it. Else windows of the patch's size: all but one centred
    on foreground voxels that are evenly spaced in their order, the last on the middle voxel of the rest;
    without foreground all on evenly spaced voxels.
    """
    tiles = math.prod(math.ceil(n / p) for n, p in zip(label.shape, patch_size, strict=True))
    if tiles <= MOST_WINDOWS:
        return [tuple(slice(None) for _ in label.shape)]
    found = np.flatnonzero((label > 0) & (label != IGNORE))
    rest = np.flatnonzero(label == 0) if found.size else np.arange(label.size)
    near = _evenly(found, MOST_WINDOWS - 1)
    middles = [*near, *_evenly(rest if rest.size else found, MOST_WINDOWS - len(near))]
    return [_around(np.unravel_index(m, label.shape), label.shape, patch_size) for m in middles]


def _evenly(voxels: np.ndarray, n: int) -> list[int]:
    return [int(voxels[(2 * k + 1) * len(voxels) // (2 * n)]) for k in range(n)] if voxels.size else []


def _around(centre: Sequence[int | np.integer], shape: Sequence[int], size: Sequence[int]) -> Window:
    """A window of this size within the image, as near to the centre as can be."""
    starts = (max(0, min(int(c) - s // 2, n - s)) for c, n, s in zip(centre, shape, size, strict=True))
    return tuple(slice(start, min(start + s, n)) for start, s, n in zip(starts, size, shape, strict=True))
