"""Images as stacks of slices, and slices at the network's size.

A one-shot network sees whole slices, not patches: each is brought to task.patch_size, axis by axis.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor


def slices_of(image: Tensor, axis: int | None) -> Tensor:
    """(C, H, W) → (1, C, H, W); a volume (C, *spatial) → (S, C, H, W), a view, S along spatial `axis`."""
    if image.dim() == 3:
        return image[None]
    assert axis is not None, "volumes are sliced along task.slice_axis"
    return image.movedim(axis + 1, 0)


def resized(slices: Tensor, size: Sequence[int]) -> Tensor:
    """(S, C, H, W) float → (S, C, *size), linear; averaging where that makes it smaller."""
    if tuple(slices.shape[2:]) == tuple(size):
        return slices
    shrinks = any(new < old for new, old in zip(size, slices.shape[2:], strict=True))
    height, width = size
    return F.interpolate(
        slices, size=(height, width), mode="bilinear", align_corners=False, antialias=shrinks
    )
