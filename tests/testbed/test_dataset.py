"""What the testbed takes a site's task to be: by the reader that trains, and told by which file."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import yaml
from PIL import Image

from gossipseg import config
from gossipseg.errors import DataError
from gossipseg.testbed import dataset, experiment, layout

BOX = np.zeros((20, 24, 18), np.uint8)
BOX[3:9, 3:9, 3:9] = 1


def nifti(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), path)
    return path


def picture(path: Path, array: np.ndarray, **how: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **how)
    return path


def site(folder: Path, *labels: np.ndarray) -> Path:
    """Volumes, one for each of these labels."""
    for i, label in enumerate(labels):
        nifti(folder / "images" / f"p{i}.nii.gz", np.full(label.shape, 90 + i, np.float32))
        nifti(folder / "labels" / f"p{i}.nii.gz", label)
    return folder


def task(*folders: Path) -> Any:
    return dataset.task_of("t", [dataset.describe(folder) for folder in folders])


def valued(*values: int) -> np.ndarray:
    label = np.zeros(BOX.shape, np.uint8)
    for i, value in enumerate(values):
        label[2 * i : 2 * i + 2, :5, :5] = value
    return label


def init(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    code = "import sys; from gossipseg.ctl.main import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "testbed", "init", "--out", str(folder / "bed"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


# ---------------------------------------------------------------- classes


@pytest.mark.parametrize(
    ("labels", "names", "label_map"),
    [
        ([valued(1)] * 3, ["foreground"], {}),
        ([valued(255)] * 3, ["foreground"], {255: 1}),
        ([valued(7)] * 3, ["foreground"], {7: 1}),
        ([valued(1, 2, 4)] * 3, ["label 1", "label 2", "label 4"], {4: 3}),
        ([valued(85, 170, 255)] * 3, ["label 85", "label 170", "label 255"], {85: 1, 170: 2, 255: 3}),
        ([valued(1)] * 5 + [valued(1, 4)], ["label 1", "label 4"], {4: 2}),
        ([valued(1).astype(np.float32) * np.float32(1.0000001)] * 3, ["foreground"], {}),
    ],
)
def test_values_that_no_list_names(
    tmp_path: Path, labels: list[np.ndarray], names: list[str], label_map: dict[int, int]
) -> None:
    found = task(site(tmp_path / "a", *labels))
    assert found.labels == dict(enumerate(["background", *names])) and found.label_map == label_map


def test_a_site_may_lack_a_class_that_another_has(tmp_path: Path) -> None:
    found = task(site(tmp_path / "a", *[valued(1, 2)] * 3), site(tmp_path / "b", *[valued(1, 4)] * 3))
    assert found.labels == {0: "background", 1: "label 1", 2: "label 2", 3: "label 4"}
    assert found.label_map == {4: 3}


def test_a_site_without_a_list_takes_the_names_of_one_that_has_one(tmp_path: Path) -> None:
    listed = site(tmp_path / "a", *[valued(1, 4)] * 3)
    (listed / "dataset.json").write_text(json.dumps({"labels": {"0": "bg", "1": "core", "4": "rim"}}))
    for other in (valued(1, 4), valued(4)):
        found = task(listed, site(tmp_path / f"b{other.max()}{other.sum()}", *[other] * 3))
        assert found.labels == {0: "bg", 1: "core", 2: "rim"} and found.label_map == {4: 2}


def test_a_value_that_means_two_classes_is_refused(tmp_path: Path) -> None:
    """Under one label map the oedema of the one would be the tumour of the other, and nobody would know."""
    for name, labels in (("a", {"1": "tumour", "2": "oedema"}), ("b", {"2": "tumour", "4": "oedema"})):
        listed = site(tmp_path / name, *[valued(*map(int, labels))] * 3)
        (listed / "dataset.json").write_text(json.dumps({"labels": {"0": "background", **labels}}))
    with pytest.raises(DataError, match=r"b/dataset\.json.*2: means tumour at site b, and oedema at site a"):
        task(tmp_path / "a", tmp_path / "b")


def test_a_mask_of_0_and_255_is_no_class_of_another_sites(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"b/labels/p0.nii.gz: labels = .*a/labels/p0.nii.gz"):
        task(site(tmp_path / "a", *[valued(1, 2)] * 3), site(tmp_path / "b", *[valued(255)] * 3))


@pytest.mark.parametrize(
    "labels",
    [
        {"0": "background", "1": "lesion"},
        {"background": 0, "lesion": 1},
        {"background": "0", "lesion": "1"},
        {"lesion": 1},
        {"background": 0, "lesion": 1, "ignore": 2},
    ],
)
def test_labels_both_ways_round(tmp_path: Path, labels: dict[str, Any]) -> None:
    folder = site(tmp_path / "a", *[valued(1, 2) if "ignore" in labels else valued(1)] * 3)
    (folder / "dataset.json").write_text(json.dumps({"labels": labels}))
    assert task(folder).labels == {0: "background", 1: "lesion"}
    asked, _ = dataset.own_settings(folder)
    assert asked == ({"ignore_label": 2} if "ignore" in labels else {})
    made = layout.init_testbed(tmp_path / "bed", [folder])
    assert config.load(made.sites[0].config_path, env={}).site.data.ignore_label == asked.get("ignore_label")


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ({"background": 0, "whole": [1, 2], "core": 2}, "whole is a region of several values"),
        ({"background": 0, "a": 1, "b": 1}, "two names, a and b"),
        ({"0": "background", "1": "a", "2": "a"}, "gives 1 and 2 one name, a"),
        ({"background": 0, "a": "one"}, "must give every value"),
        ({"0": "background", "1": 2}, "must give every value"),
        ({"background": 0}, "names no class"),
        (["background", "a"], "must be an object"),
        ({}, "must be an object"),
    ],
)
def test_labels_of_a_list_that_are_none(tmp_path: Path, labels: Any, words: str) -> None:
    folder = site(tmp_path / "a", *[valued(1)] * 3)
    (folder / "dataset.json").write_text(json.dumps({"labels": labels}))
    with pytest.raises(DataError, match=words) as caught:
        task(folder)
    assert caught.value.key == "labels" and caught.value.file == folder / "dataset.json"
    assert caught.value.remedy


def soft() -> np.ndarray:
    edge = np.linspace(0, 255, 48).astype(np.uint8)
    return np.repeat(edge[None], 40, axis=0)


@pytest.mark.parametrize(
    ("suffix", "how", "mask"),
    [
        (".jpg", {"quality": 90}, np.kron(np.eye(2, dtype=np.uint8), np.full((20, 24), 255, np.uint8))),
        (".png", {}, soft()),
    ],
)
def test_lossy_and_soft_edged_masks_are_named_in_few_words(
    tmp_path: Path, suffix: str, how: dict[str, Any], mask: np.ndarray
) -> None:
    for i in range(3):
        picture(tmp_path / "a" / "images" / f"p{i}.png", np.full((40, 48), 90 + i, np.uint8))
        picture(tmp_path / "a" / "masks" / f"p{i}{suffix}", mask, **how)
    with pytest.raises(DataError, match="lossy or soft-edged") as caught:
        task(tmp_path / "a")
    assert f"masks/p0{suffix}: holds the values 0" in str(caught.value)
    assert len(str(caught.value)) < 500


def test_labels_that_mark_nothing_tell_no_task(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="marks anything"):
        task(site(tmp_path / "a", *[valued()] * 3))


@pytest.mark.parametrize("which", ["images", "labels"])
def test_broken_files_are_named_with_exit_code_65(tmp_path: Path, which: str) -> None:
    folder = site(tmp_path / "data" / "a", *[valued(1)] * 4)
    broken = folder / which / "p0.nii.gz"
    broken.write_bytes(broken.read_bytes()[: broken.stat().st_size // 2])
    done = init(tmp_path, "--data", str(tmp_path / "data"), "--sites", "a")
    assert done.returncode == 65 and str(broken) in done.stderr, done.stderr
    assert "unexpectedly" not in done.stderr and "Traceback" not in done.stderr


def test_nan_in_a_label_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"labels/p1\.nii\.gz: holds NaN"):
        task(site(tmp_path / "a", valued(1), np.where(BOX > 0, 1, np.nan).astype(np.float32)))


# ---------------------------------------------------------------- channels and sizes


def pictures(folder: Path, *images: np.ndarray) -> Path:
    for i, image in enumerate(images):
        picture(folder / "images" / f"p{i}.png", image)
        picture(folder / "masks" / f"p{i}.png", np.eye(40, 48, dtype=np.uint8))
    return folder


def test_grey_saved_in_colour_is_grey(tmp_path: Path) -> None:
    grey = np.random.default_rng(0).integers(0, 200, (40, 48), dtype=np.uint8)
    colour = np.stack([grey, grey // 2, grey], -1)
    assert task(pictures(tmp_path / "grey", *[np.stack([grey] * 3, -1)] * 3)).channels == 1
    assert task(pictures(tmp_path / "rgb", np.stack([grey] * 3, -1), colour)).channels == 3


def test_what_differs_is_told_by_the_files(tmp_path: Path) -> None:
    grey = np.full((40, 48), 90, np.uint8)
    colour = np.stack([grey, grey // 2, grey], -1)
    with pytest.raises(DataError, match=r"b/images/p0\.png: channels = 3.*a/images/p0\.png"):
        task(pictures(tmp_path / "a", grey), pictures(tmp_path / "b", colour))


def test_a_slice_in_a_file_for_volumes_is_two_dimensional(tmp_path: Path) -> None:
    assert task(site(tmp_path / "a", *[valued(1)[..., :1]] * 3)).spatial_dims == 2


def test_folders_of_nnunet_with_their_channels(tmp_path: Path) -> None:
    for i in range(6):
        for k in range(2):
            nifti(tmp_path / "a" / f"imagesTr/c{i}_000{k}.nii.gz", np.full(BOX.shape, i + k, np.float32))
        nifti(tmp_path / "a" / f"labelsTr/c{i}.nii.gz", BOX)
    about = {"channel_names": {"0": "T1", "1": "T2"}, "labels": {"background": 0, "lesion": 1}}
    (tmp_path / "a" / "dataset.json").write_text(json.dumps(about))
    found = task(*dataset.choose_sites(tmp_path, None))
    assert (found.channels, found.spatial_dims, found.modality) == (2, 3, "T1/T2")
    about["channel_names"] = {"0": "T1"}
    (tmp_path / "a" / "dataset.json").write_text(json.dumps(about))
    with pytest.raises(DataError, match="is channel 1, and there are 1"):
        dataset.describe(tmp_path / "a")


def test_a_site_given_as_the_folder_of_sites_is_told(tmp_path: Path) -> None:
    site(tmp_path / "data" / "a", valued(1))
    with pytest.raises(DataError, match="It is a site itself"):
        experiment.make_testbed(tmp_path / "bed", tmp_path / "data" / "a", None, layout.WantedTestbed())


# ---------------------------------------------------------------- site.yaml


@pytest.mark.parametrize(
    ("test", "asked"), [(["images/p3.nii.gz"], False), ([], False), ([{"image": 3, "label": 3}], True)]
)
def test_the_test_score_is_asked_for_where_there_is_one(tmp_path: Path, test: list[Any], asked: bool) -> None:
    folder = site(tmp_path / "a", *[valued(1)] * 4)
    entries = [{"image": f"images/p{i}.nii.gz", "label": f"labels/p{i}.nii.gz"} for i in range(4)]
    listed = {"training": entries[:3], "test": [entries[3]] if asked else test}
    (folder / "dataset.json").write_text(json.dumps(listed))
    made = layout.init_testbed(tmp_path / "bed", [folder])
    assert yaml.safe_load(made.sites[0].config_path.read_text())["report_test"] is asked


def test_init_without_data_makes_the_folders_and_says_what_goes_there(tmp_path: Path) -> None:
    done = init(tmp_path, "--sites", "1")
    assert done.returncode == 0
    assert f"{tmp_path}/bed/data/SITE/images" in done.stdout and "run this again" in done.stdout
    site_file = tmp_path / "bed" / "sites" / "north" / "site.yaml"
    path = site_file.parent / yaml.safe_load(site_file.read_text())["data"]["path"]
    assert (path / "images").is_dir() and (path / "masks").is_dir()
    pictures(path, *(np.full((40, 48), 90 + i, np.uint8) for i in range(3)))
    assert init(tmp_path, "--sites", "1").returncode == 0
    assert config.load(site_file, env={}).federation.task.labels == {0: "background", 1: "foreground"}
