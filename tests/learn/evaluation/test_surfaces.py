"""Distances between surfaces against MONAI's, and in parts against the whole."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from monai.metrics import compute_hausdorff_distance, compute_surface_dice

from gossipseg.learn.evaluation import surfaces

SPACINGS = {2: [None, (0.5, 1.7)], 3: [None, (1.0, 1.0, 1.0), (0.6, 0.8, 4.0)]}


def shapes(seed: int, dims: int) -> tuple[np.ndarray, np.ndarray]:
    """Two ragged masks that overlap, the larger ones cut off by the border; in any corner of the image."""
    rng = np.random.default_rng(seed)
    size = rng.integers(6, 15, dims)
    axes = np.ogrid[tuple(slice(0, n) for n in size)]
    masks = []
    for _ in range(2):
        centre, radius = rng.uniform(0, 1, dims) * size, rng.uniform(2, 6)
        mask = sum((g - c) ** 2 for g, c in zip(axes, centre, strict=True)) <= radius**2
        mask &= rng.random(size) < 0.9
        mask[tuple(rng.integers(0, n) for n in size)] = True
        masks.append(mask)
    return masks[0], masks[1]


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("seed", range(8))
def test_hd95_and_surface_dice_are_monais(seed: int, dims: int) -> None:
    a, b = shapes(seed, dims)
    one, two = (torch.from_numpy(m)[None, None].float() for m in (a, b))
    for spacing in SPACINGS[dims]:
        found = surfaces.distances(a, b, spacing)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning)
            hd95 = compute_hausdorff_distance(
                one, two, include_background=True, percentile=95, spacing=spacing
            )
            for tolerance in (0.0, 1.0, 1.6, 2.0):
                nsd = compute_surface_dice(one, two, [tolerance], include_background=True, spacing=spacing)
                assert found.within(tolerance) == pytest.approx(float(nsd), abs=1e-6)
        assert found.hd95 == pytest.approx(float(hd95), rel=1e-5)


@pytest.mark.parametrize("at_once", [1, 7, 40])
@pytest.mark.parametrize("seed", range(4))
def test_much_surface_is_looked_up_in_parts_with_the_same_result(
    seed: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = shapes(seed, 3)
    a[0, 0, 0] = b[-1, -1, -1] = True
    whole = surfaces.distances(a, b, (0.6, 0.8, 4.0))
    monkeypatch.setattr(surfaces, "AT_ONCE", at_once)
    parts = surfaces.distances(a, b, (0.6, 0.8, 4.0))
    np.testing.assert_array_equal(parts.predicted, whole.predicted)
    np.testing.assert_array_equal(parts.label, whole.label)


def test_a_surface_by_hand() -> None:
    mask = np.zeros((6, 6), bool)
    mask[0:4, 1:5] = True
    assert np.argwhere(mask & ~surfaces.surface(mask)).tolist() == [[1, 2], [1, 3], [2, 2], [2, 3]]
    assert surfaces.surface(np.ones((1, 3), bool)).all()


def test_a_box_holds_a_mask_and_a_diagonal_goes_from_corner_to_corner() -> None:
    mask = np.zeros((5, 6, 7), bool)
    assert surfaces.box_of(mask) is None
    mask[1, 2, 3] = mask[3, 2, 6] = True
    assert surfaces.box_of(mask) == (slice(1, 4), slice(2, 3), slice(3, 7))
    assert surfaces.diagonal((3, 4)) == 5.0
    assert surfaces.diagonal((30, 40, 5), (0.1, 0.1, 2.4)) == pytest.approx(13.0)
