"""Pictures of a case for people: image, label and prediction side by side."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from gossipseg.learn.data.labels import IGNORE
from gossipseg.learn.data.readers import Volume

COLOURS = ((0, 230, 210), (255, 140, 30), (190, 100, 255), (110, 220, 60), (255, 80, 140), (90, 150, 255))
"""Cyan first: it stands out of grey slices, of fundus pictures and of stained tissue alike."""
IGNORED = (128, 128, 128)
"""Voxels of which nobody says what they are."""
OPACITY = 0.55
SMALLEST_SIDE_PX = 256
CAPTION_PX = 26
FONT_PX = 18
GAP_PX = 4


def triplet(
    volume: Volume, label: np.ndarray, predicted: np.ndarray, captions: tuple[str, str, str]
) -> Image.Image:
    """image | label | prediction as one RGB picture. `label`, `predicted`: (*spatial) label values.

    Of a 3-D image the slice along the last axis is shown that holds most label, the middle one of equals.
    """
    array = volume.array
    if label.ndim == 3:
        k = busiest_slice(label)
        array, label, predicted = array[..., k], label[..., k], predicted[..., k]
    picture = displayable(array)
    panels = [picture, _tinted(picture, label), _tinted(picture, predicted)]
    if volume.affine is not None and not volume.raster:
        panels = [np.rot90(p) for p in panels]
    factor = max(1, -(-SMALLEST_SIDE_PX // min(panels[0].shape[:2])))
    return _side_by_side([p.repeat(factor, 0).repeat(factor, 1) for p in panels], captions)


def busiest_slice(label: np.ndarray) -> int:
    """Index along the last axis of the slice with most foreground."""
    counts = np.count_nonzero((label != 0) & (label != IGNORE), axis=(0, 1))
    best = np.flatnonzero(counts == counts.max())
    return int(best[len(best) // 2])


def displayable(array: np.ndarray) -> np.ndarray:
    """(C, H, W) of any range → (H, W, 3) uint8; three 8-bit channels are taken as the picture they are."""
    if array.shape[0] == 3 and array.dtype == np.uint8:
        return np.moveaxis(array, 0, -1)
    grey = array[0].astype(np.float32)
    low, high = np.percentile(grey, (1, 99.5))
    scaled = np.clip((grey - low) / max(float(high - low), 1e-6), 0, 1) * 255
    return np.repeat(scaled.astype(np.uint8)[..., None], 3, axis=-1)


def _tinted(picture: np.ndarray, labels: np.ndarray) -> np.ndarray:
    out = picture.astype(np.float32)
    for value in np.unique(labels[labels > 0]):
        shown = IGNORED if value == IGNORE else COLOURS[(int(value) - 1) % len(COLOURS)]
        colour = np.array(shown, np.float32)
        where = labels == value
        out[where] = (1 - OPACITY) * out[where] + OPACITY * colour
    return out.astype(np.uint8)


def _side_by_side(panels: list[np.ndarray], captions: tuple[str, str, str]) -> Image.Image:
    height, width = panels[0].shape[:2]
    out = Image.new("RGB", (3 * width + 2 * GAP_PX, height + CAPTION_PX), "white")
    draw = ImageDraw.Draw(out)
    for i, (panel, caption) in enumerate(zip(panels, captions, strict=True)):
        left = i * (width + GAP_PX)
        out.paste(Image.fromarray(np.ascontiguousarray(panel)), (left, CAPTION_PX))
        draw.text((left + 2, 2), caption, fill="black", font=ImageFont.load_default(FONT_PX))
    return out
