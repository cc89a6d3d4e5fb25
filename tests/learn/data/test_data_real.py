"""The real data sets, where they are at hand: what they hold is what the task says, or is refused clearly."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from gossipseg.errors import DataError
from gossipseg.learn.commands.check import check
from gossipseg.learn.data.dataset import Dataset
from gossipseg.learn.data.patches import TrainBatches
from gossipseg.learn.params import TaskParams, TrainingParams
from tests.learn.imagery import spec

REPOSITORY = Path(__file__).parents[3]
DATA = Path(os.environ.get("GOSSIPSEG_DATA", REPOSITORY / ".." / "shared" / "data")).resolve()
VESSELS = TaskParams(
    "vessels", 3, {0: "background", 1: "vessel"}, patch_size=(96, 96), intensity="rgb", label_map={255: 1}
)
HIPPOCAMPUS = TaskParams(
    "hippocampus",
    1,
    {0: "background", 1: "anterior", 2: "posterior"},
    spatial_dims=3,
    patch_size=(32, 32, 32),
)
NUCLEI = TaskParams("nuclei", 3, {0: "background", 1: "nucleus"}, intensity="rgb", label_map={255: 1})


def folder(name: str) -> Path:
    path = DATA / name
    if not path.is_dir():
        pytest.skip(f"{path} is not there: set GOSSIPSEG_DATA to the folder of the real data sets")
    return path


@pytest.mark.data
def test_drive_loads_as_rgb_with_its_vessels(tmp_path: Path) -> None:
    data = Dataset.open(spec(folder("retina_vessels/drive"), VESSELS, tmp_path))
    assert data.counts == {"training": 22, "validation": 6, "test": 12}
    for item in data.items("validation"):
        assert item.image.shape[0] == 3 and item.image.shape[1] == 512
        assert item.label is not None and item.label.shape[1:] == item.image.shape[1:]
        assert item.label.unique().tolist() == [0, 1]
        assert 0.03 < item.label.float().mean() < 0.25
        # Vessels are darker than the tissue around them, in green above all: image and label lie alike.
        green, vessel = item.image[1], item.label[0] == 1
        ring = torch.nn.functional.max_pool2d(vessel[None].float(), 9, 1, 4)[0].bool() & ~vessel
        assert green[vessel].mean() < green[ring].mean() - 0.05
    batch = TrainBatches(data, VESSELS, TrainingParams()).batch(0, "drive", 1, 1)
    assert batch["image"].shape == (4, 3, 96, 96) and batch["label"].any()


@pytest.mark.data
def test_without_the_label_map_the_error_gives_it(tmp_path: Path) -> None:
    task = dataclasses.replace(VESSELS, label_map={})
    with pytest.raises(DataError, match=r"masks/.*255 are not among.*label_map: \{255: 1\}"):
        Dataset.open(spec(folder("retina_vessels/stare"), task, tmp_path))


@pytest.mark.data
@pytest.mark.parametrize("site", ["site_a_uint8", "site_b_float_1e3", "site_c_float_4e5"])
def test_hippocampus_volumes_have_one_scale_after_preprocessing(tmp_path: Path, site: str) -> None:
    data = Dataset.open(spec(folder(f"hippocampus_mr_3d/{site}"), HIPPOCAMPUS, tmp_path))
    assert data.counts == {"training": 18, "validation": 5, "test": 10}
    for item in data.items("training"):
        assert item.spacing_mm == (1.0, 1.0, 1.0) and item.image.ndim == 4
        np.testing.assert_allclose([item.image.mean(), item.image.std()], [0, 1], atol=1e-2)
        assert item.label is not None and item.label.unique().tolist() == [0, 1, 2]


@pytest.mark.data
def test_grey_nuclei_in_an_rgb_task_break_the_contract_unless_declared(tmp_path: Path) -> None:
    grey = folder("nuclei/fluo_256x256")
    with pytest.raises(DataError) as caught:
        Dataset.open(spec(grey, NUCLEI, tmp_path))
    text = str(caught.value)
    assert "fluo_256x256/images/" in text and "1 channel (grey)" in text and "convert_grey_to_rgb" in text
    declared = dataclasses.replace(NUCLEI, convert_grey_to_rgb=True)
    for site in ("fluo_256x256", "fluo_696x520", "histology_320x256"):
        assert (
            Dataset.open(spec(folder(f"nuclei/{site}"), declared, tmp_path)).item("test", 0).image.shape[0]
            == 3
        )


@pytest.mark.data
@pytest.mark.parametrize("site", ["chase_db1", "hrf", "les_av", "stare"])
def test_the_doctor_finds_the_other_cameras_healthy(tmp_path: Path, site: str) -> None:
    document = check(spec(folder(f"retina_vessels/{site}"), VESSELS, tmp_path))
    assert document["problems"] == [] and document["warnings"] == []
