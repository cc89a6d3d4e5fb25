"""Pseudo-masks: what they are of simple slices, the traps of their library, the cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from skimage import graph
from skimage.segmentation import felzenszwalb

from gossipseg.errors import LocalError
from gossipseg.learn.data.cases import Case
from gossipseg.learn.data.dataset import Item
from gossipseg.learn.oneshot import pseudolabels
from gossipseg.learn.oneshot.pseudolabels import (
    PseudoLabels,
    alp_regions,
    body,
    cow_regions,
    dilated,
    merge_alike,
    regions,
)


def scene(side: int = 128, kind: type = float) -> np.ndarray:
    """A grey body on black, two organs in it, and a bright table line beside it."""
    rows, columns = np.mgrid[:side, :side] / side
    image = np.zeros((side, side))
    image[(rows - 0.5) ** 2 + (columns - 0.5) ** 2 < 0.16] = 100
    image[(rows - 0.4) ** 2 + (columns - 0.4) ** 2 < 0.01] = 180
    image[(rows - 0.6) ** 2 + (columns - 0.65) ** 2 < 0.015] = 40
    image[int(0.95 * side) :, side // 4 : side // 2] = 200
    return image.astype(kind)


def organ(side: int = 128) -> np.ndarray:
    return scene(side) == 180


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def best(found: np.ndarray, wanted: np.ndarray) -> float:
    return max(dice(found == value, wanted) for value in range(1, int(found.max()) + 1))


# ---------------------------------------------------------------- the body


def test_the_body_is_the_largest_piece_filled() -> None:
    image = scene()
    image[60:64, 60:64] = 0  # air within
    found = body(image)
    assert dice(found, (np.hypot(*(np.mgrid[:128, :128] / 128 - 0.5)) < 0.4)) > 0.98
    assert found[60:64, 60:64].all()
    assert not found[-3:].any(), "the table is no part of it"


# ---------------------------------------------------------------- both methods


@pytest.mark.parametrize("method", ["alp", "cow"])
@pytest.mark.parametrize("side", [96, 256])
def test_an_organ_becomes_a_region_at_any_size(method: Any, side: int) -> None:
    found = regions(scene(side), method)
    assert found.dtype == np.uint16
    assert sorted(np.unique(found)) == list(range(int(found.max()) + 1)), "numbered from 1 without holes"
    assert best(found, organ(side)) > {"alp": 0.95, "cow": 0.8}[method]  # cow smooths over 9 px first


@pytest.mark.parametrize("method", ["alp", "cow"])
@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.float32])
def test_integers_are_taken_for_what_they_are(method: Any, kind: type) -> None:
    """skimage would scale uint8 by 1/255 and int16 by 1/32767, and then cut it otherwise."""
    assert np.array_equal(regions(scene(kind=kind), method), regions(scene(), method))


@pytest.mark.parametrize("method", ["alp", "cow"])
@pytest.mark.parametrize("value", [0.0, 7.0])
def test_a_slice_of_one_value_has_no_candidates(method: Any, value: float) -> None:
    assert not regions(np.full((64, 64), value), method).any()


@pytest.mark.parametrize("method", ["alp", "cow"])
def test_a_slice_of_a_single_segment_has_no_candidates_or_itself(method: Any) -> None:
    """A region graph of one segment raises in skimage."""
    image = np.full((64, 64), 100.0)
    image[0, 0] = 101  # not constant, but one segment
    found = regions(image, method)
    assert found.max() <= 1
    if method == "cow":
        assert not found.any(), "it touches the corners"


def test_alp_stays_inside_the_body_and_drops_what_it_cuts_off() -> None:
    image = scene()
    found = alp_regions(image)
    assert not found[~body(image)].any()
    sizes = np.bincount(found.ravel())[1:]
    assert sizes[sizes > 0].min() >= 400 * (128 / 256) ** 2 / 4


def test_cow_drops_corners_and_sizes_out_of_range() -> None:
    image = scene(256)
    found = cow_regions(image)
    assert not found[[0, 0, -1, -1], [0, -1, 0, -1]].any()
    sizes = np.bincount(found.ravel())[1:]
    sizes = sizes[sizes > 0]
    assert sizes.min() >= 255
    assert sizes.max() <= 16_384
    assert best(found, (image == 100)) < 0.5, "the body itself is too large"


def test_cow_drops_what_lies_in_a_corner() -> None:
    image = np.zeros((256, 256))
    image[:40, :40] = image[100:140, 100:140] = 1
    found = regions(image, "cow") > 0
    assert not found[:60, :60].any()
    assert found[110:130, 110:130].all()


def test_pixel_counts_scale_with_the_area() -> None:
    """The organ's region has 1 600 px at 256²; at 64², where it has 70, it still is a candidate."""
    assert best(cow_regions(scene(64)), organ(64)) > 0.5
    speck = np.zeros((256, 256))
    speck[100:112, 100:112] = 1  # 144 px: under 255
    assert not regions(speck, "cow").any()


# ---------------------------------------------------------------- merging and dilation


def test_merging_is_that_of_a_mean_colour_graph() -> None:
    """skimage's own way, a loop over pixels in Python, gives the same regions."""
    rng = np.random.default_rng(0)
    image = np.kron(rng.random((6, 6)), np.ones((5, 5)))
    segments = felzenszwalb(image, scale=0.01, sigma=0.1, min_size=4, channel_axis=None)
    colour = np.repeat(image[..., None], 3, -1)
    mean_colour = graph.rag_mean_color(colour, segments)
    # its distances are of three equal channels
    theirs = graph.cut_threshold(segments, mean_colour, 0.1 * np.sqrt(3), in_place=False)
    ours = merge_alike(segments, image, 0.1)
    assert 1 < len(np.unique(ours)) < len(np.unique(segments))
    pairs = set(zip(ours.ravel().tolist(), theirs.ravel().tolist(), strict=True))
    assert len(pairs) == len(np.unique(ours)) == len(np.unique(theirs))


def test_means_below_the_limit_are_merged_and_others_are_not() -> None:
    image = np.repeat([[0.0, 3.9 / 255, 8.0 / 255]], 3, 0)
    segments = np.repeat([[0, 1, 2]], 3, 0)
    assert merge_alike(segments, image, 4 / 255)[0].tolist() == [1, 1, 2]
    assert merge_alike(np.zeros((3, 3), int), image, 4 / 255).tolist() == [[1] * 3] * 3


@pytest.mark.parametrize(("side", "reach"), [(256, 6), (96, 2), (40, 2)])
def test_dilation_is_5_by_5_three_times_at_256(side: int, reach: int) -> None:
    mask = np.zeros((side, side), bool)
    mask[20, 20] = True
    wanted = np.zeros_like(mask)
    wanted[20 - reach : 21 + reach, 20 - reach : 21 + reach] = True
    assert np.array_equal(dilated(mask), wanted)


# ---------------------------------------------------------------- the cache


def item(volume: bool = True, name: str = "a") -> Item:
    image = torch.from_numpy(scene(64).astype(np.float32))[None]
    if volume:
        image = torch.stack([image, torch.zeros_like(image), image.mT], -1)
    return Item(Case(name, Path(name)), image, None, None)


def cache(folder: Path, **changes: Any) -> PseudoLabels:
    return PseudoLabels(folder, **{"method": "alp", "size": (64, 64), "axis": 2, **changes})


def test_slices_of_a_volume_each_have_their_regions(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    found = cache(tmp_path / "sub").of(item(), lambda done, total: seen.append((done, total)))
    assert found.shape == (3, 64, 64)
    assert [bool(one.any()) for one in found] == [True, False, True]
    assert np.array_equal(found[0], regions(scene(64).astype(np.float32), "alp"))
    assert seen == [(0, 3), (1, 3), (2, 3)]


def test_regions_are_made_at_the_size_of_the_network(tmp_path: Path) -> None:
    assert cache(tmp_path, size=(96, 48), axis=None).of(item(volume=False)).shape == (1, 96, 48)


def test_what_is_on_disk_is_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = np.array(cache(tmp_path).of(item()))
    monkeypatch.setattr(pseudolabels, "regions", None)  # calling it would raise
    assert np.array_equal(cache(tmp_path).of(item(name="renamed")), first)
    for other in ({"method": "cow"}, {"size": (48, 48)}, {"axis": 0}):
        with pytest.raises(TypeError):
            cache(tmp_path, **other).of(item())
    changed = item()
    changed.image[0, 0, 0, 0] = 1
    with pytest.raises(TypeError):
        cache(tmp_path).of(changed)


@pytest.mark.parametrize("damage", ["cut", "empty", "noise"])
def test_a_damaged_file_is_made_anew(tmp_path: Path, damage: str) -> None:
    first = np.array(cache(tmp_path).of(item()))
    (file,) = tmp_path.iterdir()
    content = file.read_bytes()
    file.write_bytes({"cut": content[:-10], "empty": b"", "noise": b"\x00" * 99}[damage])
    assert np.array_equal(cache(tmp_path).of(item()), first)
    assert file.read_bytes() == content


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LocalError):
        cache(tmp_path / "file" / "sub").of(item())
