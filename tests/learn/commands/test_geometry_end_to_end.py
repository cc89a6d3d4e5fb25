"""Three sites store their volumes differently; the task has 1.5 mm RAS: everything agrees with an independent
recomputation from the files (nibabel, numpy, scipy; nothing of the package)."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates

from gossipseg.learn.commands.evaluate import main as evaluate
from gossipseg.learn.commands.predict import main as predict
from gossipseg.learn.data.dataset import Dataset, Item
from gossipseg.learn.data.formats.volume import Volume
from gossipseg.learn.data.transforms import prepare_image, prepare_label
from gossipseg.learn.evaluation.evaluate import labels_on
from gossipseg.learn.params import TaskParams, TrainingParams, WorkerSpec
from tests.learn.imagery import nifti_site, spec, spec_file, write_checkpoint

TASK = TaskParams(
    "organs",
    1,
    {0: "background", 1: "liver", 2: "spleen"},
    spatial_dims=3,
    patch_size=(16, 16, 16),
    spacing_mm=(1.5, 1.5, 1.5),
    orientation="RAS",
)
SHAPE = (26, 30, 22)


def turned(degrees: float, axis: tuple[float, float, float]) -> np.ndarray:
    """A rotation about an axis (Rodrigues)."""
    k = np.array(axis) / np.linalg.norm(axis)
    cross = np.array([[0, -k[2], k[1]], [k[2], 0, -k[0]], [-k[1], k[0], 0]])
    angle = np.deg2rad(degrees)
    rotation: np.ndarray = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    return rotation


def affine_of(matrix: np.ndarray) -> np.ndarray:
    out = np.eye(4)
    out[:3, :3], out[:3, 3] = matrix, (-31.5, 17.25, 140.0)
    return out


GRIDS = {
    "ras": (affine_of(np.eye(3)), np.float32),
    "oblique": (affine_of(turned(17, (1, 2, 0.5)) @ np.diag([-1.0, 1.0, 3.0])), np.int16),
    "permuted": (affine_of(np.array([[0, 0, -1.2], [0.9, 0, 0], [0, -1.0, 0]])), np.float64),
}


@pytest.fixture(params=sorted(GRIDS))
def site(request: pytest.FixtureRequest, tmp_path: Path) -> WorkerSpec:
    """A site with two smooth balls in each volume, as that site stores it."""
    affine, kind = GRIDS[request.param]
    root = nifti_site(tmp_path / request.param, {"training": 1, "validation": 1, "test": 3}, affine)
    for i, file in enumerate(sorted((root / "images").iterdir())):
        rng = np.random.default_rng(i)
        grid = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), -1)
        one, two = (np.linalg.norm((grid - c) * [1, 1, 1.3], axis=-1) for c in ((9, 11, 8), (19, 20, 15)))
        image = 400 * np.exp(-((one / 6) ** 2)) - 300 * np.exp(-((two / 5) ** 2)) + rng.normal(0, 9, SHAPE)
        label = np.where(one < 5, 1, np.where(two < 4, 2, 0)).astype(np.uint8)
        nibabel.save(nibabel.Nifti1Image(image.astype(kind), affine), file)
        nibabel.save(nibabel.Nifti1Image(label, affine), root / "labels" / file.name)
    return spec(root, TASK, state=tmp_path / "state")


def test_the_networks_image_is_the_files_at_the_same_places(site: WorkerSpec) -> None:
    for case_item in Dataset.open(site).items("test"):
        file = nibabel.load(case_item.case.files[0])
        to_file = task_to_file(case_item)
        world = file.affine @ to_file
        assert nibabel.aff2axcodes(world) == ("R", "A", "S")
        assert np.linalg.norm(world[:3, :3], axis=0) == pytest.approx([1.5] * 3)
        at = indices(case_item.image.shape[1:], to_file)
        expected = map_coordinates(file.get_fdata(), at, order=1, mode="nearest")
        standardised = (expected - expected.mean()) / expected.std()
        assert np.abs(standardised - case_item.image[0].numpy()).max() < 1e-3


def test_the_way_back_is_linear_between_the_networks_voxels(site: WorkerSpec) -> None:
    item = Dataset.open(site).item("test", 0)
    assert item.grid is not None and item.grid.shape == SHAPE
    logits = torch.randn(3, *item.image.shape[1:], generator=torch.Generator().manual_seed(0))
    at = indices(SHAPE, np.linalg.inv(task_to_file(item)))
    expected = np.stack([map_coordinates(z.numpy(), at, order=1, mode="nearest") for z in logits])
    found = labels_on(item.grid, logits, TrainingParams())
    assert (found.numpy() == expected.argmax(0)).mean() > 0.999


def test_scores_are_those_of_the_written_masks(site: WorkerSpec, tmp_path: Path) -> None:
    """`predict` writes masks with the file's affine; Dice counted on them is what `evaluate` says."""
    write_checkpoint(site, shift=0.05)
    made = spec_file(tmp_path, dataclasses.replace(site))
    images = sorted((Path(site.data["path"]) / "images").glob("test_*"))
    assert predict(["--spec", made, "-o", str(tmp_path / "out"), *map(str, images)]) == 0
    assert evaluate(["--spec", made, "--json", str(tmp_path / "scores.json")]) == 0
    scores = {c["id"]: c["dice"] for c in json.loads((tmp_path / "scores.json").read_text())["cases"]}
    some = 0
    for image in images:
        written = nibabel.load(tmp_path / "out" / image.name)
        label = nibabel.load(image.parent.parent / "labels" / image.name)
        assert np.allclose(written.affine, label.affine, atol=1e-4)
        mask, truth = (np.asarray(n.dataobj) for n in (written, label))
        for value, name in ((1, "liver"), (2, "spleen")):
            both = 2 * ((mask == value) & (truth == value)).sum()
            dice = both / ((mask == value).sum() + (truth == value).sum())
            assert scores[image.name.split(".")[0]][name] == pytest.approx(dice, abs=1e-3)
            some += int(both > 0)
    assert some


@pytest.mark.parametrize(
    "across",
    [((0, -0.5, 0), (-0.75, 0, 0)), ((0, 0, -0.5), (0, -0.75, 0)), ((0, 0, -0.5), (-0.6, -0.45, 0))],
    ids=["axial", "sagittal", "oblique"],
)
def test_a_picture_is_resampled_in_its_own_plane(
    tmp_path: Path, across: tuple[tuple[float, ...], ...]
) -> None:
    """Wherever it lies in the patient: 0.5 mm between rows, 0.75 mm between columns."""
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = across
    rows, columns = np.mgrid[:40, :48]
    array = (3.0 * rows + 2.0 * columns).astype(np.float32)
    task = TaskParams("t", 1, {0: "background", 1: "blob"}, patch_size=(16, 16), spacing_mm=(1.0, 1.0))
    prepared = prepare_image(Volume(array[None], affine), task, tmp_path)
    assert prepared.image.shape == (1, 20, 36) and prepared.spacing_mm == pytest.approx((1.0, 1.0))
    assert prepared.grid.to_task is not None
    at = indices((20, 36), np.linalg.inv(prepared.grid.to_task))
    expected = map_coordinates(array, at, order=1, mode="nearest")
    assert np.abs((expected - expected.mean()) / expected.std() - prepared.image[0].numpy()).max() < 1e-4
    values = (rows > 20).astype(np.uint8)
    label = prepare_label(values, affine, task, tmp_path)
    assert label.shape == (1, 20, 36)
    back = labels_on(prepared.grid, torch.stack([1 - label[0].float(), label[0].float()]), TrainingParams())
    assert (back.numpy() == values).mean() > 0.95


def task_to_file(item: Item) -> np.ndarray:
    assert item.grid is not None and item.grid.to_task is not None
    return np.linalg.inv(item.grid.to_task)


def indices(shape: tuple[int, ...], matrix: np.ndarray) -> np.ndarray:
    """Voxel indices of one grid in another one: (dims, *shape)."""
    dims = len(shape)
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"))
    offset = matrix[:dims, 3].reshape(dims, *[1] * dims)
    moved: np.ndarray = np.tensordot(matrix[:dims, :dims], grid, 1) + offset
    return moved
