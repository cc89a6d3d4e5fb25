"""Training batches: determined by (seed, site, round, step); where patches lie; what augmentation does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from gossipseg.learn.data.augment import Draw, draw_augmentation, draw_intensity
from gossipseg.learn.data.cases import Case, Splits
from gossipseg.learn.data.dataset import Dataset, Item
from gossipseg.learn.data.patches import (
    FOREGROUND_VOXELS_KEPT,
    TrainBatches,
    batch_rng,
    crop,
    cut,
    foreground_voxels,
)
from gossipseg.learn.params import TaskParams, TrainingParams
from tests.learn.imagery import GREY, RGB, VOLUME, nifti_site, png_site, spec


class OneCase(Dataset):
    """A site with cases given as tensors."""

    def __init__(self, task: TaskParams, *pairs: tuple[torch.Tensor, torch.Tensor]) -> None:
        cases = tuple(Case(str(i), Path(), Path()) for i in range(len(pairs)))
        super().__init__(task, Splits(training=cases), cache=True)
        for i, (image, label) in enumerate(pairs):
            self._items["training", i] = Item(cases[i], image, label, None)


def one_voxel(task: TaskParams, shape: tuple[int, ...], at: tuple[int, ...], value: int = 1) -> OneCase:
    label = torch.zeros(1, *shape, dtype=torch.uint8)
    label[(0, *at)] = value
    return OneCase(task, (label.float(), label))


@pytest.mark.parametrize("augment", ["none", "flip", "standard"])
def test_batches_depend_on_seed_site_round_and_step_alone(tmp_path: Path, augment: str) -> None:
    png_site(tmp_path, {"training": 3, "validation": 1}, rgb=True)
    training = TrainingParams(batch_size=4, augment=augment)  # type: ignore[arg-type]
    data = Dataset.open(spec(tmp_path, RGB))
    first, again = TrainBatches(data, RGB, training), TrainBatches(data, RGB, training)
    wanted = first.batch(1, "north", 2, 3)
    again.batch(1, "north", 2, 2)
    same = again.batch(1, "north", 2, 3)
    assert wanted["image"].shape == (4, 3, 32, 32) and wanted["image"].dtype == torch.float32
    assert wanted["label"].shape == (4, 1, 32, 32) and wanted["label"].dtype == torch.int64
    assert torch.equal(wanted["image"], same["image"]) and torch.equal(wanted["label"], same["label"])
    for other in ((2, "north", 2, 3), (1, "south", 2, 3), (1, "north", 3, 3), (1, "north", 2, 4)):
        assert not torch.equal(first.batch(*other)["image"], wanted["image"]), other


def test_a_group_is_drawn_first_and_then_a_case_of_it() -> None:
    """Sites of 1 and 9 cases, each of its own grey: 1 in 2 patches is of the small one, not 1 in 10."""
    task = TaskParams("t", 1, {0: "b", 1: "x"}, patch_size=(4, 4))
    label = torch.zeros(1, 4, 4, dtype=torch.uint8)
    data = OneCase(task, *[(torch.full((1, 4, 4), float(i)), label) for i in range(10)])
    plain = TrainBatches(data, task, TrainingParams(batch_size=2000, augment="none"))

    def shares(batches: TrainBatches) -> np.ndarray:
        drawn = batches.batch(0, "s", 1, 1)["image"][:, 0, 0, 0].long().numpy()
        return np.bincount(drawn, minlength=10) / len(drawn)

    grouped = shares(plain.grouped([1, 9]))
    assert grouped[0] == pytest.approx(1 / 2, abs=0.05)
    assert grouped[1:] == pytest.approx(np.full(9, 1 / 18), abs=0.02)
    assert shares(plain) == pytest.approx(np.full(10, 1 / 10), abs=0.03)
    one, again = plain.grouped([1, 9]).batch(0, "s", 2, 3), plain.grouped([1, 9]).batch(0, "s", 2, 3)
    assert torch.equal(one["image"], again["image"])
    for wrong in ([1, 8], [0, 10]):
        with pytest.raises(ValueError, match="10 cases"):
            plain.grouped(wrong)


def test_a_site_without_groups_draws_as_ever() -> None:
    """The first number of each patch's stream is its case: batches of earlier runs stay the same."""
    task = TaskParams("t", 1, {0: "b", 1: "x"}, patch_size=(4, 4))
    label = torch.zeros(1, 4, 4, dtype=torch.uint8)
    data = OneCase(task, *[(torch.full((1, 4, 4), float(i)), label) for i in range(10)])
    batches = TrainBatches(data, task, TrainingParams(batch_size=1, augment="none"))
    for step in range(20):
        wanted = int(batch_rng(5, "north", 2, step).integers(10))
        assert (batches.batch(5, "north", 2, step)["image"] == wanted).all()


@pytest.mark.slow
def test_another_process_draws_the_same_numbers() -> None:
    drawn = "batch_rng(1, 'north', 2, 3).integers(1 << 40)"
    code = f"from gossipseg.learn.data.patches import batch_rng; print({drawn})"
    env = {"PYTHONHASHSEED": "12345", "PATH": "", "OMP_NUM_THREADS": "1"}
    there = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, env=env).stdout
    assert int(there) == int(batch_rng(1, "north", 2, 3).integers(1 << 40))


def test_foreground_patches_hold_foreground_and_the_others_seldom() -> None:
    task = TaskParams("t", 1, {0: "b", 1: "x"}, patch_size=(8, 8))
    data = one_voxel(task, (64, 64), (40, 10))
    for share, low, high in ((1.0, 1.0, 1.0), (0.0, 0.0, 0.1), (1 / 3, 0.2, 0.5)):
        batches = TrainBatches(
            data, task, TrainingParams(batch_size=200, augment="none", foreground_patches=share)
        )
        held = batches.batch(0, "s", 1, 1)["label"].flatten(1).any(1).float().mean()
        assert low <= held <= high, share


def test_a_foreground_patch_is_centred_where_it_fits() -> None:
    task = TaskParams("t", 1, {0: "b", 1: "x"}, patch_size=(9, 9))
    training = TrainingParams(batch_size=1, augment="none", foreground_patches=1.0)
    label = TrainBatches(one_voxel(task, (64, 64), (40, 10)), task, training).batch(0, "s", 1, 1)["label"]
    assert label[0, 0].nonzero().tolist() == [[4, 4]]
    label = TrainBatches(one_voxel(task, (64, 64), (63, 2)), task, training).batch(0, "s", 1, 1)["label"]
    assert label[0, 0].nonzero().tolist() == [[8, 2]]


def test_rare_and_common_classes_are_centred_on_equally_often() -> None:
    task = TaskParams("t", 1, {0: "b", 1: "common", 2: "rare"}, patch_size=(3, 3))
    label = torch.zeros(1, 60, 60, dtype=torch.uint8)
    label[0, 5:50, 5:30] = 1
    label[0, 55, 55] = 2
    training = TrainingParams(batch_size=300, augment="none", foreground_patches=1.0)
    batch = TrainBatches(OneCase(task, (label.float(), label)), task, training).batch(0, "s", 1, 1)
    rare = (batch["label"][:, 0, 1, 1] == 2).float().mean()
    assert 0.4 < rare < 0.6


def test_cases_without_foreground_fall_back_to_uniform_patches() -> None:
    task = TaskParams("t", 1, {0: "b", 1: "x"}, patch_size=(8, 8))
    ramp = torch.arange(64.0).repeat(64, 1)[None]
    training = TrainingParams(batch_size=300, augment="none", foreground_patches=1.0)
    batches = TrainBatches(OneCase(task, (ramp, torch.zeros(1, 64, 64, dtype=torch.uint8))), task, training)
    left = batches.batch(0, "s", 1, 1)["image"][:, 0, 0, 0]
    assert left.min() == 0 and left.max() == 56 and len(left.unique()) > 50


def test_an_image_smaller_than_the_patch_is_padded_with_zeros(tmp_path: Path) -> None:
    nifti_site(tmp_path, {"training": 2, "validation": 1})
    task = TaskParams("t", 1, VOLUME.labels, spatial_dims=3, patch_size=(32, 16, 32))
    batches = TrainBatches(
        Dataset.open(spec(tmp_path, task)), task, TrainingParams(batch_size=2, augment="none")
    )
    image = batches.batch(0, "s", 1, 1)["image"]
    assert image.shape == (2, 1, 32, 16, 32)
    assert (image[:, :, :6] == 0).all() and (image[:, :, 26:] == 0).all() and (image[..., :7] == 0).all()
    assert (image[:, :, 6:26, :, 7:25] != 0).float().mean() > 0.9


def test_crop_reads_outside_as_zero() -> None:
    square = torch.arange(1, 17.0).reshape(1, 4, 4)
    assert crop(square, np.array([-1, 2]), np.array([3, 4]))[0].tolist() == [
        [0, 0, 0, 0],
        [3, 4, 0, 0],
        [7, 8, 0, 0],
    ]
    assert not crop(square, np.array([9, 9]), np.array([2, 2])).any()


def test_the_identity_warp_is_the_crop() -> None:
    rng = torch.Generator().manual_seed(0)
    image = torch.randn(2, 20, 17, 15, generator=rng)
    label = (torch.rand(1, 20, 17, 15, generator=rng) * 3).to(torch.uint8)
    for patch, middle in (((8, 9, 6), (10.5, 8.0, 7.5)), ((24, 8, 8), (9.5, 1.5, 13.5))):
        centre = np.array(middle)
        plain = cut(image, label, centre, patch, Draw())
        warped = cut(image, label, centre, patch, Draw(np.eye(3)))
        torch.testing.assert_close(warped[0], plain[0], atol=1e-4, rtol=1e-4)
        assert torch.equal(warped[1], plain[1])


def test_a_quarter_turn_moves_image_and_label_alike() -> None:
    image = torch.arange(25.0).reshape(1, 5, 5)
    turn = np.array([[0.0, -1.0], [1.0, 0.0]])
    out, label = cut(image, image.to(torch.uint8), np.array([2.0, 2.0]), (5, 5), Draw(turn))
    expected = torch.rot90(image[0], -1)
    torch.testing.assert_close(out[0], expected, atol=1e-3, rtol=0)
    assert torch.equal(label[0], expected.to(torch.uint8))


def test_flips_turn_image_and_label_alike() -> None:
    image = torch.arange(12.0).reshape(1, 3, 4)
    out, label = cut(image, image.to(torch.uint8), np.array([1.0, 1.5]), (3, 4), Draw(flips=(1,)))
    assert torch.equal(out, image.flip(1)) and torch.equal(label, image.to(torch.uint8).flip(1))


@pytest.mark.parametrize("mirrored", [(), (1,), (0, 2), (0, 1, 2)])
def test_only_the_axes_that_may_be_are_mirrored_and_all_else_is_drawn_as_before(
    mirrored: tuple[int, ...],
) -> None:
    some, every = np.random.default_rng(3), np.random.default_rng(3)
    seen = set()
    for _ in range(100):
        draw = draw_augmentation(some, "standard", 3, None, mirrored)
        full = draw_augmentation(every, "standard", 3, None, (0, 1, 2))
        assert draw.flips == tuple(axis for axis in full.flips if axis - 1 in mirrored)
        assert (draw.matrix is None) == (full.matrix is None)
        if draw.matrix is not None:
            np.testing.assert_array_equal(draw.matrix, full.matrix)
        seen |= set(draw.flips)
    assert seen == {axis + 1 for axis in mirrored}
    assert some.random() == every.random()


@pytest.mark.parametrize("orientation", ["RAS", "ASR"])
def test_batches_mirror_no_axis_that_a_class_speaks_of(orientation: str) -> None:
    """The first class lies in front of the second in every patch, as it does in the image."""
    labels = {0: "background", 1: "anterior", 2: "posterior"}
    task = TaskParams("t", 1, labels, spatial_dims=3, orientation=orientation, patch_size=(4, 4, 4))
    label = torch.zeros(1, 4, 4, 4, dtype=torch.uint8)
    front = orientation.index("A")
    label.select(front + 1, 3)[0, 0, 0], label.select(front + 1, 0)[0, 0, 0] = 1, 2
    data = OneCase(task, (label.float(), label))
    wanted = TrainBatches(data, task, TrainingParams(batch_size=64, augment="flip")).batch(0, "s", 1, 1)
    places = [(patch[0] == 1).nonzero()[0].tolist() for patch in wanted["label"]]
    assert {place[front] for place in places} == {3}
    side, height = orientation.index("R"), orientation.index("S")
    assert {(place[side], place[height]) for place in places} == {(0, 0), (3, 0)}, (
        "left-right alone is mirrored"
    )
    chosen = TrainingParams(batch_size=64, augment="flip", flip_axes="left-right")
    same = TrainBatches(data, task, chosen).batch(0, "s", 1, 1)
    assert torch.equal(wanted["image"], same["image"])


def test_rotation_is_rigid_in_mm() -> None:
    """With voxels of 1×4 mm the matrix is sheared in voxels, but S·M·S⁻¹ is rotation times zoom."""
    rng = np.random.default_rng(0)
    spacing = np.array([1.0, 4.0])
    draws = [draw_augmentation(rng, "standard", 2, (1.0, 4.0), (0, 1)).matrix for _ in range(100)]
    warps = [m for m in draws if m is not None]
    assert 25 <= len(warps) <= 55
    for matrix in warps:
        in_mm = spacing[:, None] * matrix / spacing[None, :]
        zoom = np.sqrt(np.linalg.det(in_mm))
        np.testing.assert_allclose(in_mm @ in_mm.T, zoom**2 * np.eye(2), atol=1e-9)
        assert 1 / 1.2 <= zoom <= 1 / 0.85


def test_intensity_changes_are_finite_and_moderate() -> None:
    rng = np.random.default_rng(0)
    image = torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(0))
    for _ in range(100):
        out = draw_intensity(rng, image)
        assert torch.isfinite(out).all() and out.shape == image.shape
        assert np.corrcoef(out.flatten(), image.flatten())[0, 1] > 0.9
    assert torch.isfinite(draw_intensity(rng, torch.zeros(1, 8, 8))).all()


def test_the_index_of_a_large_structure_is_thinned_evenly() -> None:
    label = torch.zeros(1, 400, 400, dtype=torch.uint8)
    label[0, :, :200] = 1
    label[0, 0, 399] = 2
    found = foreground_voxels(label)
    assert len(found[1]) <= FOREGROUND_VOXELS_KEPT and found[2].tolist() == [399]
    rows = found[1] // 400
    assert rows.min() == 0 and rows.max() >= 395


def test_grey_site_batches_come_from_all_cases(tmp_path: Path) -> None:
    png_site(tmp_path, {"training": 3, "validation": 1}, shape=(32, 32))
    batches = TrainBatches(
        Dataset.open(spec(tmp_path, GREY)), GREY, TrainingParams(batch_size=60, augment="none")
    )
    images = batches.batch(0, "s", 1, 1)["image"]
    assert len({image.numpy().tobytes() for image in images}) == 3
