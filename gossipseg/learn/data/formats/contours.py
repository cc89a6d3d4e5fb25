"""Contours to voxels: a voxel belongs to a structure when its centre lies inside, or on the line.

Inside is counted by the even-odd rule over all contours of a structure in one slice: a contour within
another one is a hole, and a keyhole contour (one line there and back) closes around its hole.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

ON_THE_LINE = 0.01
"""A centre this near to a contour, in voxels, lies on it: files round points, and some tools draw through
the centres of the outermost voxels."""


def fill(polygons: Sequence[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """Closed polygons, each (n, 2) in voxel indices of the two axes → (*shape) bool.

    Parts outside the grid are cut off.
    """
    mask = np.zeros(shape, bool)
    edges = _edges(polygons)
    if len(edges) == 0:
        return mask
    start = np.clip(np.floor(edges.min(axis=(0, 1))) - 1, 0, shape).astype(int)
    stop = np.clip(np.ceil(edges.max(axis=(0, 1))) + 2, start, shape).astype(int)
    box = mask[start[0] : stop[0], start[1] : stop[1]]
    edges = edges - start
    box[:] = _inside(edges, (box.shape[0], box.shape[1]))
    _mark_line(box, edges)
    _mark_line(box.T, edges[:, :, ::-1])
    return mask


def _edges(polygons: Sequence[np.ndarray]) -> np.ndarray:
    """(n, 2 ends, 2 axes), each edge from its lower to its higher end; those drawn there and back are gone.

    One order of the ends makes two copies of an edge cross each line at the same float.
    """
    edges = np.concatenate([np.stack([p, np.roll(p, -1, axis=0)], axis=1) for p in polygons])
    swap = (edges[:, 0, 1] > edges[:, 1, 1]) | (
        (edges[:, 0, 1] == edges[:, 1, 1]) & (edges[:, 0, 0] > edges[:, 1, 0])
    )
    edges[swap] = edges[swap, ::-1]
    unique, counts = np.unique(edges.reshape(-1, 4), axis=0, return_counts=True)
    kept: np.ndarray = unique[counts % 2 == 1].reshape(-1, 2, 2)
    return kept


def _crossings(edges: np.ndarray, first: np.ndarray, last: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where edges cross the lines `first` … `last` (whole numbers of the second axis): line, place on it."""
    counts = np.maximum(last - first + 1, 0)
    which = np.repeat(np.arange(len(edges)), counts)
    line = np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts) + first[which]
    (x0, y0), (x1, y1) = edges[which, 0].T, edges[which, 1].T
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.where(y1 > y0, (line - y0) / (y1 - y0), 0.0)
    return line, x0 + np.clip(share, 0, 1) * (x1 - x0)


def _inside(edges: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Even-odd rule along the first axis; an edge counts its lower end and not its higher one."""
    first = np.maximum(np.ceil(edges[:, 0, 1]), 0).astype(int)
    last = np.minimum(np.ceil(edges[:, 1, 1]) - 1, shape[1] - 1).astype(int)
    line, place = _crossings(edges, first, last)
    start = np.clip(np.ceil(place), 0, shape[0]).astype(int)
    turns = np.zeros((shape[0] + 1, shape[1]), np.uint8)
    np.add.at(turns, (start, line), 1)
    # Only whether the count is odd matters, and that survives an overflow.
    inside: np.ndarray = np.cumsum(turns[:-1], axis=0, dtype=np.uint8) % 2 == 1
    return inside


def _mark_line(mask: np.ndarray, edges: np.ndarray) -> None:
    """Set the voxels whose centres lie on an edge, as seen along the second axis."""
    low, high = edges[:, :, 1].min(axis=1), edges[:, :, 1].max(axis=1)
    first = np.maximum(np.ceil(low - ON_THE_LINE), 0).astype(int)
    last = np.minimum(np.floor(high + ON_THE_LINE), mask.shape[1] - 1).astype(int)
    ordered = np.where((edges[:, :1, 1:] > edges[:, 1:, 1:]), edges[:, ::-1], edges)
    line, place = _crossings(ordered, first, last)
    near = np.round(place)
    on = (np.abs(place - near) < ON_THE_LINE) & (near >= 0) & (near < mask.shape[0])
    mask[near[on].astype(int), line[on]] = True
