"""Reading, checking and preprocessing cases: PNG, JPEG, NIfTI, DICOM."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gossipseg.errors import DataError
from gossipseg.learn.data.cases import Case
from gossipseg.learn.data.dataset import Dataset, load_image, load_item
from gossipseg.learn.data.labels import map_labels
from gossipseg.learn.data.readers import Volume, read_label, read_volume
from gossipseg.learn.data.transforms import restore
from gossipseg.learn.params import TaskParams
from tests.learn.imagery import (
    GREY,
    RGB,
    VOLUME,
    blob,
    nifti_site,
    png_site,
    spec,
    write_dicom_series,
    write_list,
    write_nifti,
    write_png,
)

OBLIQUE = np.array([[-2.0, 0, 0, 30], [0, 0, 1.5, -20], [0, 3.0, 0, 5], [0, 0, 0, 1]])


def with_(task: TaskParams, **changes: object) -> TaskParams:
    return dataclasses.replace(task, **changes)  # type: ignore[arg-type]


# ---------------------------------------------------------------- the good cases


def test_a_grey_png_site_opens_with_rows_as_rows(tmp_path: Path) -> None:
    png_site(tmp_path, {"training": 2, "validation": 1, "test": 1}, shape=(48, 40))
    seen: list[tuple[str, float]] = []
    data = Dataset.open(spec(tmp_path, GREY), lambda activity, fraction: seen.append((activity, fraction)))
    item = data.item("training", 0)
    assert data.counts == {"training": 2, "validation": 1, "test": 1}
    assert item.image.shape == (1, 48, 40) and item.image.dtype == torch.float32
    assert item.label is not None and item.label.shape == (1, 48, 40) and item.label.dtype == torch.uint8
    assert type(item.image) is torch.Tensor and type(item.label) is torch.Tensor
    pixels = np.asarray(Image.open(tmp_path / "images/training_0.png"), dtype=np.float32)
    np.testing.assert_allclose(item.image[0], (pixels - pixels.mean()) / pixels.std(), atol=1e-4)
    assert (item.label[0].numpy() == np.asarray(Image.open(tmp_path / "masks/training_0.png"))).all()
    assert [f for _, f in seen] == [0.0, 0.25, 0.5, 0.75, 1.0] and "training_0" in seen[0][0]


def test_rgb_channels_are_standardised_one_by_one(tmp_path: Path) -> None:
    png_site(tmp_path, {"training": 1, "validation": 1}, rgb=True)
    image = Dataset.open(spec(tmp_path, RGB)).item("training", 0).image
    assert image.shape == (3, 48, 40)
    torch.testing.assert_close(image.mean((1, 2)), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(image.std((1, 2), correction=0), torch.ones(3), atol=1e-3, rtol=0)


def test_nifti_volumes_keep_their_axes_and_spacing(tmp_path: Path) -> None:
    nifti_site(tmp_path, {"training": 1, "validation": 1}, np.diag([0.5, 1.0, 2.0, 1.0]))
    item = Dataset.open(spec(tmp_path, VOLUME)).item("training", 0)
    assert item.image.shape == (1, 20, 24, 18) and item.spacing_mm == (0.5, 1.0, 2.0)
    assert item.label is not None and item.label.unique().tolist() == [0, 1, 2]


def test_a_ct_window_maps_to_zero_and_one(tmp_path: Path) -> None:
    hu = np.linspace(-1000, 1000, 16 * 16 * 16).reshape(16, 16, 16).astype(np.int16)
    file = write_nifti(tmp_path / "ct.nii.gz", hu)
    task = with_(VOLUME, intensity="ct_window", ct_window_hu=(-160.0, 240.0))
    image = load_image(Case("ct", file), task)[0].image[0].numpy()
    expected = np.clip((hu.astype(np.float64) + 160) / 400, 0, 1)
    np.testing.assert_allclose(image, expected, atol=1e-5)


def test_spacing_and_orientation_and_the_way_back(tmp_path: Path) -> None:
    image, label = blob((20, 24, 18), 3)
    file = write_nifti(tmp_path / "i.nii.gz", image.astype(np.float32), OBLIQUE)
    label_file = write_nifti(tmp_path / "l.nii.gz", label, OBLIQUE)
    task = with_(VOLUME, orientation="RAS", spacing_mm=(1.0, 1.5, 2.0))
    item = load_item(Case("c", file, label_file), task)
    # R is −x of the file, A its z (1.5 mm), S its y (3 mm): 20·2 mm, 18·1.5 mm, 24·3 mm.
    assert item.label is not None and item.image.shape[1:] == item.label.shape[1:]
    assert [abs(n - e) <= 1 for n, e in zip(item.image.shape[1:], (39, 18, 36), strict=True)] == [True] * 3
    np.testing.assert_allclose(item.spacing_mm, (1.0, 1.5, 2.0))
    prepared, volume = load_image(Case("c", file), task)
    one_hot = torch.stack([(item.label[0] == v).float() for v in (0, 1)])
    for _ in range(2):
        back = restore(one_hot, prepared.grid).argmax(0).numpy()
        assert back.shape == volume.shape
        assert 2 * (back * label).sum() / (back.sum() + label.sum()) > 0.85


def test_resampling_a_label_invents_no_class_between_two(tmp_path: Path) -> None:
    label = np.zeros((12, 12, 12), np.uint8)
    label[3:8, 3:8, 3:8] = 2
    file = write_nifti(tmp_path / "i.nii.gz", label.astype(np.float32))
    label_file = write_nifti(tmp_path / "l.nii.gz", label)
    item = load_item(Case("c", file, label_file), with_(VOLUME, spacing_mm=(0.7, 0.7, 0.7)))
    assert item.label is not None and item.label.unique().tolist() == [0, 2]


def test_test_cases_are_kept_only_where_they_will_be_scored(tmp_path: Path) -> None:
    png_site(tmp_path, {"training": 1, "validation": 1, "test": 1})
    for report_test in (False, True):
        data = Dataset.open(spec(tmp_path, GREY, report_test=report_test))
        assert (data.item("test", 0) is data.item("test", 0)) == report_test


def test_cache_off_reads_anew_and_gives_the_same(tmp_path: Path) -> None:
    png_site(tmp_path, {"training": 1, "validation": 1})
    kept = Dataset.open(spec(tmp_path, GREY))
    anew = Dataset.open(spec(tmp_path, GREY, data={"cache": False}))
    assert kept.item("training", 0) is kept.item("training", 0)
    assert anew.item("training", 0) is not anew.item("training", 0)
    torch.testing.assert_close(kept.item("training", 0).image, anew.item("training", 0).image)


def test_a_declared_conversion_repeats_the_grey_channel(tmp_path: Path) -> None:
    file = write_png(tmp_path / "g.png", blob((32, 32), 0)[0])
    image = load_image(Case("g", file), with_(RGB, convert_grey_to_rgb=True))[0].image
    assert image.shape == (3, 32, 32) and (image[0] == image[2]).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "1", "I;16"])
def test_png_modes(tmp_path: Path, mode: str) -> None:
    _, label = blob((32, 24), 0)
    file = tmp_path / "x.png"
    if mode == "I;16":
        Image.fromarray(label.astype(np.uint16) * 40_000).save(file)
    elif mode == "P":
        palette = Image.new("P", label.shape[::-1])
        palette.putpalette([0, 0, 0, 250, 10, 10])
        palette.putdata(label.ravel().tolist())
        palette.save(file)
    else:
        Image.fromarray(label * 255).convert(mode).save(file)
    volume = read_volume(file, 2)
    assert volume.array.shape == (3 if mode in ("RGBA", "P") else 1, 32, 24)
    expected = {"I;16": 40_000, "P": 250, "1": 1}.get(mode, 255) * label.astype(int)
    assert (volume.array[0] == expected).all()
    if mode == "P":  # colours to a network, indices to a mask
        mask = read_label(file, 2, volume)
        assert isinstance(mask, Volume) and (mask.array == label).all()


def test_channels_in_separate_files_are_stacked(tmp_path: Path) -> None:
    files = tuple(write_nifti(tmp_path / f"{i}.nii.gz", np.full((8, 8, 8), i, np.float32)) for i in range(3))
    assert read_volume(files, 3).array[:, 0, 0, 0].tolist() == [0, 1, 2]
    odd = write_nifti(tmp_path / "odd.nii.gz", np.zeros((8, 8, 9), np.float32))
    with pytest.raises(DataError, match=r"odd\.nii\.gz.*shape"):
        read_volume((files[0], odd), 3)


def test_a_dicom_series_has_the_axes_of_the_same_volume_as_nifti(tmp_path: Path) -> None:
    hu = np.random.default_rng(0).integers(-200, 300, (12, 10, 6)).astype(np.int16)
    folder = write_dicom_series(tmp_path / "scan", hu, (0.7, 0.9, 2.5))
    volume = read_volume(folder, 3)
    assert volume.array.shape == (1, 12, 10, 6)
    np.testing.assert_array_equal(volume.array[0], hu)
    np.testing.assert_allclose(volume.spacing_mm, (0.7, 0.9, 2.5), rtol=1e-6)
    assert volume.affine is not None
    # DICOM's x and y point to the left and back: both are turned round in RAS.
    np.testing.assert_allclose(volume.affine[:3, 3], (30.0, 40.0, 0.0), atol=1e-4)


def test_two_series_in_one_folder_are_refused(tmp_path: Path) -> None:
    hu = np.zeros((8, 8, 3), np.int16)
    write_dicom_series(tmp_path / "a", hu, (1, 1, 1))
    write_dicom_series(tmp_path / "b", hu, (1, 1, 1))
    for file in (tmp_path / "b").iterdir():
        file.rename(tmp_path / "a" / f"other_{file.name}")
    with pytest.raises(DataError, match="2 DICOM series"):
        read_volume(tmp_path / "a", 3)
    with pytest.raises(DataError, match="no DICOM files"):
        read_volume(tmp_path / "b", 3)


# ---------------------------------------------------------------- what is refused


def _grey_in_rgb(root: Path) -> None:
    write_png(root / "images/training_1.png", blob((48, 40), 0)[0])


def _torn(root: Path) -> None:
    file = root / "images/training_1.png"
    file.write_bytes(file.read_bytes()[:200])


def _other_shape(root: Path) -> None:
    write_png(root / "masks/training_1.png", np.zeros((40, 48), np.uint8))


def _mask_0_255(root: Path) -> None:
    write_png(root / "masks/training_1.png", blob((48, 40), 0)[1] * 255)


def _interpolated(root: Path) -> None:
    write_png(root / "masks/training_1.png", np.arange(48 * 40, dtype=np.uint8).reshape(48, 40))


def _colour_label(root: Path) -> None:
    write_png(root / "masks/training_1.png", np.random.default_rng(0).integers(0, 2, (48, 40, 3), np.uint8))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (
            _grey_in_rgb,
            ["images/training_1.png", "task.channels = 3", "grey", "RGB", "convert_grey_to_rgb: true"],
        ),
        (_torn, ["images/training_1.png", "cannot be read", "Replace the file"]),
        (_other_shape, ["masks/training_1.png", "(40, 48)", "(48, 40)", "same grid"]),
        (_mask_0_255, ["masks/training_1.png", "task.label_map", "255", "label_map: {255: 1}"]),
        (_interpolated, ["masks/training_1.png", "2…255", "lossy or soft-edged"]),
        (_colour_label, ["masks/training_1.png", "colour picture", "one channel"]),
    ],
)
def test_a_bad_png_site_is_refused_at_start(
    tmp_path: Path, damage: Callable[[Path], None], words: list[str]
) -> None:
    png_site(tmp_path, {"training": 2, "validation": 1}, rgb=True)
    damage(tmp_path)
    with pytest.raises(DataError) as caught:
        Dataset.open(spec(tmp_path, RGB))
    text = str(caught.value)
    assert all(word in text for word in words), text
    assert "\n" not in text


def _moved_label(root: Path) -> None:
    affine = np.eye(4)
    affine[0, 3] = 3
    write_nifti(root / "labels/training_1.nii.gz", np.ones((20, 24, 18), np.uint8), affine)


def _half_a_voxel(root: Path) -> None:
    affine = np.eye(4)
    affine[0, 3] = 0.5
    write_nifti(root / "labels/training_1.nii.gz", np.zeros((20, 24, 18), np.uint8), affine)


def _other_spacing(root: Path) -> None:
    write_nifti(root / "labels/training_1.nii.gz", np.zeros((20, 24, 18), np.uint8), np.diag([1, 1, 2, 1]))


def _flat(root: Path) -> None:
    write_nifti(root / "images/training_1.nii.gz", np.zeros((20, 24), np.float32))


def _not_finite(root: Path) -> None:
    image = np.zeros((20, 24, 18), np.float32)
    image[3, 3, 3] = np.nan
    write_nifti(root / "images/training_1.nii.gz", image)


def _half_label(root: Path) -> None:
    write_nifti(root / "labels/training_1.nii.gz", np.full((20, 24, 18), 0.5, np.float32))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_moved_label, ["labels/training_1.nii.gz", "1296 of its 8640 labelled voxels", "outside"]),
        (_half_a_voxel, ["labels/training_1.nii.gz", "affine", "0.5 mm apart"]),
        (_other_spacing, ["labels/training_1.nii.gz", "1×1×2", "1×1×1 mm"]),
        (_flat, ["images/training_1.nii.gz", "2 dimensions", "3 spatial", "task.spatial_dims"]),
        (_not_finite, ["images/training_1.nii.gz", "NaN"]),
        (_half_label, ["labels/training_1.nii.gz", "no whole numbers", "0.5", "without interpolation"]),
    ],
)
def test_a_bad_nifti_site_is_refused_at_start(
    tmp_path: Path, damage: Callable[[Path], None], words: list[str]
) -> None:
    nifti_site(tmp_path, {"training": 2, "validation": 1})
    damage(tmp_path)
    with pytest.raises(DataError) as caught:
        Dataset.open(spec(tmp_path, VOLUME))
    text = str(caught.value)
    assert all(word in text for word in words), text


def test_rgb_in_a_grey_task_is_refused(tmp_path: Path) -> None:
    png_site(tmp_path, {"training": 1, "validation": 1}, rgb=True)
    with pytest.raises(DataError, match=r"3 channels \(RGB\), the task asks for 1 channel \(grey\)"):
        Dataset.open(spec(tmp_path, GREY))


def test_spacing_is_refused_for_pictures_without_a_voxel_size(tmp_path: Path) -> None:
    png_site(tmp_path, {"training": 1, "validation": 1})
    with pytest.raises(DataError, match=r"task\.spacing_mm = \(1\.0, 1\.0\).*no voxel size"):
        Dataset.open(spec(tmp_path, with_(GREY, spacing_mm=(1.0, 1.0))))


def test_report_test_needs_labelled_test_cases(tmp_path: Path) -> None:
    png_site(tmp_path, {"training": 1, "validation": 1})
    with pytest.raises(DataError, match=r"test: .*report_test: false"):
        Dataset.open(spec(tmp_path, GREY, report_test=True))
    lists = json.loads((tmp_path / "dataset.json").read_text())
    write_png(tmp_path / "images" / "bare.png", blob((48, 40), 9)[0])
    write_list(tmp_path, lists | {"test": ["images/bare.png"]})
    assert Dataset.open(spec(tmp_path, GREY, report_test=True)).counts["test"] == 1


def test_a_small_difference_of_affines_is_rounding(tmp_path: Path) -> None:
    nifti_site(tmp_path, {"training": 1, "validation": 1})
    affine = np.eye(4)
    affine[0, 3] = 0.1
    write_nifti(tmp_path / "labels/training_0.nii.gz", np.zeros((20, 24, 18), np.uint8), affine)
    assert Dataset.open(spec(tmp_path, VOLUME)).counts["training"] == 1


def test_label_map_translates_and_leaves_other_values(tmp_path: Path) -> None:
    task = with_(VOLUME, label_map={255: 1, 128: 2, 7: 0})
    values = map_labels(np.array([[0, 1, 2, 7, 128, 255]], np.uint8), task, Path("l"))
    assert values.tolist() == [0, 1, 2, 0, 2, 1]


def test_volumes_as_stacks_of_slices_keep_their_geometry(tmp_path: Path) -> None:
    """For a 2-D network whose task names the axis: read, turned and resampled as volumes."""
    affine = np.diag([-1.0, 2.0, 1.0, 1.0])
    nifti_site(tmp_path, {"training": 1}, affine)
    case = Case("training_0", tmp_path / "images/training_0.nii.gz", tmp_path / "labels/training_0.nii.gz")
    volume = with_(VOLUME, orientation="RAS", spacing_mm=(1.0, 1.0, 2.0))
    sliced = with_(volume, spatial_dims=2, slice_axis=2, patch_size=(32, 32))
    wanted, found = load_item(case, volume), load_item(case, sliced)
    assert found.image.shape == (1, 20, 47, 10)
    assert torch.equal(found.image, wanted.image)
    assert found.label is not None
    assert wanted.label is not None
    assert torch.equal(found.label, wanted.label)
    png_site(tmp_path / "png", {"training": 1})
    flat = Case("training_0", tmp_path / "png/images/training_0.png")
    with pytest.raises(DataError, match="slice_axis"):
        load_item(flat, with_(sliced, orientation=None, spacing_mm=None))
