"""Pseudo-masks of slices: superpixels that stand in for labels (docs/design/equations.md §3), kept on disk.

    alp   felzenszwalb(slice, min_size=400, sigma=1), inside the body (SSL-ALPNet) [P, code]
    cow   bilateral filter → min-max → felzenszwalb(scale=.01, sigma=.1) → regions of nearly one mean merged
          → corners dropped → regions of 255 … 16 384 px, dilated when used (CoWPro) [P, code]

Both are made at the size that the network sees. Pixel counts are meant for 256² and scale with the area [O].
The body is what lies above a tenth of the slice's range, its largest piece, filled [O]; a superpixel of which
it leaves less than a quarter of min_size is no candidate [O]. OpenCV's bilateral(9, 75, 75) is skimage's
denoise_bilateral(win_size=9, sigma_color=75/255, sigma_spatial=75) of the slice scaled to 0 … 1: square
instead of round window, reflected at the border.
Slices are cast to float64 first: skimage rescales integers. Regions are merged by union over neighbouring
pixels, which is skimage.graph.cut_threshold on a mean-colour graph without its loop over pixels, and without
its error for a slice of a single segment.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import blake3
import numpy as np
from scipy import ndimage, sparse

from gossipseg.algos.params.fedcowpro import PseudoLabelMethod
from gossipseg.errors import ConfigError
from gossipseg.learn.data.dataset import Item
from gossipseg.learn.oneshot.slices import resized, slices_of
from gossipseg.store.atomic import atomic_write, make_directory

VERSION = 1
"""Part of the cache's key: raise it when the regions change."""
FULL_AREA = 256 * 256
ALP_MIN_SIZE, ALP_SIGMA = 400, 1.0
COW_MIN_SIZE, COW_SCALE, COW_SIGMA = 20, 0.01, 0.1
BILATERAL_WINDOW, BILATERAL_COLOUR, BILATERAL_SPACE = 9, 75 / 255, 75
MERGE_BELOW = 4 / 255
COW_SMALLEST, COW_LARGEST = 255, 16_384
DILATIONS = 3
BODY_SHARE = 0.1

OnSlice = Callable[[int, int], None]
"""Called with (slices done, slices in all) of a case."""


def need_skimage() -> None:
    """Raise ConfigError where scikit-image is not installed."""
    if importlib.util.find_spec("skimage") is None:
        raise ConfigError(
            "its pseudo-labels need the package scikit-image, which is not installed",
            key="algorithm.name",
            value="fedcowpro",
            remedy="Install it: pip install 'gossipseg[fedcowpro]'. Or choose another algorithm.",
        )


def regions(grey: np.ndarray, method: PseudoLabelMethod) -> np.ndarray:
    """Candidates of a slice (H, W): uint16 (H, W), numbered from 1, 0 elsewhere; all 0 if there are none."""
    from skimage.segmentation import relabel_sequential

    grey = np.asarray(grey, dtype=np.float64)
    found = alp_regions(grey) if method == "alp" else cow_regions(grey)
    numbered: np.ndarray = relabel_sequential(found)[0]
    return numbered.astype(np.uint16)


def alp_regions(grey: np.ndarray) -> np.ndarray:
    """Superpixels inside the body; float64 (H, W) → integers (H, W)."""
    from skimage.segmentation import felzenszwalb

    least = _pixels(ALP_MIN_SIZE, grey)
    segments = felzenszwalb(grey, min_size=round(least), sigma=ALP_SIGMA, channel_axis=None) + 1
    segments[~body(grey)] = 0
    return _of_size(segments, least / 4, grey.size)


def cow_regions(grey: np.ndarray) -> np.ndarray:
    """Merged regions of the smoothed slice, before their dilation; float64 (H, W) → integers (H, W)."""
    from skimage.restoration import denoise_bilateral
    from skimage.segmentation import felzenszwalb

    smooth = denoise_bilateral(
        _unit(grey), BILATERAL_WINDOW, BILATERAL_COLOUR, BILATERAL_SPACE, mode="reflect"
    )
    smooth = _unit(smooth)
    least = max(1, round(_pixels(COW_MIN_SIZE, grey)))
    merged = merge_alike(
        felzenszwalb(smooth, COW_SCALE, COW_SIGMA, least, channel_axis=None), smooth, MERGE_BELOW
    )
    corners = merged[[0, 0, -1, -1], [0, -1, 0, -1]]
    merged[np.isin(merged, corners)] = 0
    return _of_size(merged, _pixels(COW_SMALLEST, grey), _pixels(COW_LARGEST, grey))


def dilated(mask: np.ndarray) -> np.ndarray:
    """5×5, three times at 256², less often on smaller slices, at least once."""
    times = max(1, round(DILATIONS * (mask.size / FULL_AREA) ** 0.5))
    grown: np.ndarray = ndimage.binary_dilation(mask, np.ones((5, 5), bool), iterations=times)
    return grown


def body(grey: np.ndarray) -> np.ndarray:
    """bool (H, W): above a tenth of the way from the 1st to the 99th percentile, largest piece, filled."""
    low, high = np.percentile(grey, (1, 99))
    pieces, count = ndimage.label(grey > low + BODY_SHARE * (high - low))
    if count == 0:
        return np.zeros(grey.shape, bool)
    largest = 1 + int(np.argmax(np.bincount(pieces.ravel())[1:]))
    filled: np.ndarray = ndimage.binary_fill_holes(pieces == largest)
    return filled


def merge_alike(segments: np.ndarray, image: np.ndarray, below: float) -> np.ndarray:
    """Unite segments that touch, also at a corner, and whose means differ by less than `below`; from 1."""
    count = int(segments.max()) + 1
    means = ndimage.mean(image, segments, np.arange(count))
    pairs = [(segments[1:], segments[:-1]), (segments[:, 1:], segments[:, :-1])]
    pairs += [(segments[1:, 1:], segments[:-1, :-1]), (segments[1:, :-1], segments[:-1, 1:])]
    a, b = (np.concatenate([pair[side].ravel() for pair in pairs]) for side in (0, 1))
    alike = np.abs(means[a] - means[b]) < below
    graph = sparse.coo_array((np.ones(int(alike.sum())), (a[alike], b[alike])), shape=(count, count))
    _, united = sparse.csgraph.connected_components(graph, directed=False)
    merged: np.ndarray = united[segments] + 1
    return merged


def _of_size(segments: np.ndarray, least: float, most: float) -> np.ndarray:
    """The segments of `least` to `most` pixels; 0 instead of the others."""
    sizes = np.bincount(segments.ravel())
    kept = (sizes >= least) & (sizes <= most)
    kept[0] = False
    return np.where(kept[segments], segments, 0)


def _pixels(count: int, grey: np.ndarray) -> float:
    return count * grey.size / FULL_AREA


def _unit(grey: np.ndarray) -> np.ndarray:
    low, high = grey.min(), grey.max()
    scaled: np.ndarray = (grey - low) / max(float(high - low), 1e-12)
    return scaled


# ---------------------------------------------------------------- the cache


@dataclass(frozen=True, slots=True)
class PseudoLabels:
    """Regions of whole cases, on disk under the hash of their content."""

    folder: Path
    method: PseudoLabelMethod
    size: Sequence[int]
    """(H, W) of a slice as the network sees it."""
    axis: int | None = None
    """task.slice_axis."""

    def of(self, item: Item, on_slice: OnSlice = lambda done, total: None) -> np.ndarray:
        """uint16 (S, H, W), a read-only map of the file; computed where there is none that can be read.

        Raises LocalError, DiskFull.
        """
        path = self.folder / f"{self._key(item)}.npy"
        found = _read(path)
        if found is None:
            make_directory(self.folder)
            buffer = io.BytesIO()
            np.save(buffer, self._make(item, on_slice), allow_pickle=False)
            atomic_write(path, buffer.getvalue())
            found = _read(path)
        assert found is not None
        return found

    def _make(self, item: Item, on_slice: OnSlice) -> np.ndarray:
        slices = slices_of(item.image, self.axis)
        made = []
        for done, one in enumerate(slices):
            on_slice(done, len(slices))
            made.append(regions(resized(one[None], self.size)[0].mean(0).numpy(), self.method))
        return np.stack(made)

    def _key(self, item: Item) -> str:
        what = (
            VERSION,
            importlib.metadata.version("scikit-image"),
            self.method,
            tuple(self.size),
            self.axis,
            item.image.shape,
        )
        hasher = blake3.blake3(repr(what).encode())
        hasher.update(item.image.contiguous().numpy().tobytes())
        return str(hasher.hexdigest(length=16))


def _read(path: Path) -> np.ndarray | None:
    """The file, mapped; None where there is none, or only a part of one."""
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return found if isinstance(found, np.ndarray) else None
