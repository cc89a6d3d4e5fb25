"""Label maps come back in the image's own format, size and orientation."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from gossipseg.errors import EXIT_CONFIG, EXIT_DATA, EXIT_OK
from gossipseg.learn.commands.predict import main, predict_file, predict_labels
from gossipseg.learn.data.cases import Case
from gossipseg.learn.deploy.deployment import Deployment, load_deployment
from gossipseg.learn.params import TaskParams
from gossipseg.nets.output import NetOutput
from tests.learn.imagery import (
    GREY,
    RGB,
    VOLUME,
    blob,
    png_site,
    spec,
    spec_file,
    write_checkpoint,
    write_dicom_series,
    write_nifti,
    write_png,
)

OBLIQUE = np.array([[-2.0, 0, 0, 30], [0, 0, 1.5, -20], [0, 3.0, 0, 5], [0, 0, 0, 1]])


class Bright(nn.Module):
    """Class 1 where the first channel is bright."""

    def __init__(self, classes: int, threshold: float) -> None:
        super().__init__()
        self.classes, self.threshold = classes, threshold

    def forward(self, x: Tensor) -> NetOutput:
        bright = (x[:, :1] - self.threshold) * 5
        return NetOutput(torch.cat([-bright, bright, *[bright - 99] * (self.classes - 2)], 1))


@pytest.fixture
def deploy(tmp_path: Path) -> Callable[..., Deployment]:
    """A deployment of a task whose network is Bright."""

    def make(task: TaskParams) -> Deployment:
        made = load_deployment(spec(tmp_path, task), initial=True)
        return dataclasses.replace(
            made, net=Bright(len(task.labels), 0.7 if task.intensity == "ct_window" else 1.3)
        )

    return make


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize("task", [GREY, RGB], ids=["grey", "rgb"])
def test_a_picture_comes_back_as_png_in_its_own_orientation(
    tmp_path: Path, deploy: Callable[..., Deployment], suffix: str, task: TaskParams
) -> None:
    image, label = blob((50, 37), 5)
    pixels = image if task is GREY else np.stack([image, image, image], -1)
    file = write_png(tmp_path / f"scan{suffix}", pixels)
    out = tmp_path / "scan_out.png"
    report = predict_file(deploy(task), Case("scan", file), tmp_path / "scan_out")
    with Image.open(out) as got:
        assert got.format == "PNG" and got.mode == "L" and got.size == (37, 50)
        values = np.asarray(got)
    assert 2 * (values * label).sum() / (values.sum() + label.sum()) > (0.9 if suffix == ".jpg" else 0.999)
    assert ("JPG cannot hold label values" in report.pop("note", "")) == (suffix == ".jpg")
    voxels = {"blob": int(values.sum())}
    assert report == {"image": str(file), "output": str(out), "voxels": voxels, "format": ".png"}


@pytest.mark.parametrize("resampled", [False, True], ids=["as it is", "spacing and orientation"])
def test_nifti_keeps_affine_and_grid(
    tmp_path: Path, deploy: Callable[..., Deployment], resampled: bool
) -> None:
    image, label = blob((28, 24, 18), 6)
    file = write_nifti(tmp_path / "scan.nii.gz", image.astype(np.float32), OBLIQUE)
    task = VOLUME
    if resampled:
        task = dataclasses.replace(VOLUME, spacing_mm=(1.5, 1.0, 2.0), orientation="RAS")
    out = tmp_path / "out.nii.gz"
    predict_file(deploy(task), Case("scan", file), tmp_path / "out")
    got, source = nibabel.load(out), nibabel.load(file)
    assert got.shape == source.shape and got.get_data_dtype() == np.uint8
    np.testing.assert_allclose(got.affine, source.affine)
    assert int(got.header["sform_code"]) == int(source.header["sform_code"])
    values = np.asarray(got.dataobj)
    # A network without context sees noise blurred by the resampling: the box is found, its rim is not sharp.
    assert 2 * (values * label).sum() / (values.sum() + label.sum()) > (0.8 if resampled else 0.97)


def test_a_dicom_series_gives_nifti_in_place(tmp_path: Path, deploy: Callable[..., Deployment]) -> None:
    _, label = blob((24, 20, 12), 7)
    folder = write_dicom_series(tmp_path / "scan", label.astype(np.int16) * 300, (0.8, 0.9, 2.0))
    task = dataclasses.replace(VOLUME, intensity="ct_window")
    labels, volume = predict_labels(deploy(task), Case("scan", folder))
    assert (labels == label).all()
    predict_file(deploy(task), Case("scan", folder), tmp_path / "o")
    got = nibabel.load(tmp_path / "o.nii.gz")
    assert (np.asarray(got.dataobj) == label).all()
    np.testing.assert_allclose(got.affine, volume.affine)
    np.testing.assert_allclose(got.header.get_zooms(), (0.8, 0.9, 2.0), rtol=1e-5)


def test_a_nifti_slice_of_a_flat_task_keeps_its_three_dimensions(
    tmp_path: Path, deploy: Callable[..., Deployment]
) -> None:
    image, label = blob((40, 36), 8)
    file = write_nifti(tmp_path / "slice.nii.gz", image[..., None].astype(np.float32))
    predict_file(deploy(GREY), Case("slice", file), tmp_path / "o")
    got = np.asarray(nibabel.load(tmp_path / "o.nii.gz").dataobj)
    assert got.shape == (40, 36, 1)
    assert 2 * (got[..., 0] * label).sum() / (got.sum() + label.sum()) > 0.95


def test_the_command_does_the_good_images_and_names_the_bad(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = spec(tmp_path, RGB)
    write_checkpoint(made)
    good = write_png(tmp_path / "good.png", np.stack([blob((40, 44), 1)[0]] * 3, -1))
    grey = write_png(tmp_path / "grey.png", blob((40, 44), 1)[0])
    arguments = ["--spec", spec_file(tmp_path, made), "-o", str(tmp_path / "out")]
    assert main([*arguments, str(good), str(grey), str(tmp_path / "none.png")]) == EXIT_DATA
    captured = capsys.readouterr()
    assert [o["image"] for o in json.loads(captured.out)["outputs"]] == [str(good)]
    assert "grey.png: task.channels = 3" in captured.err and "none.png: no such file" in captured.err
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["good.png"]
    assert main([*arguments[:-1], str(tmp_path / "new"), str(good)]) == EXIT_OK


def test_outputs_never_overwrite_each_other_or_the_image(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = spec(tmp_path, GREY)
    write_checkpoint(made)
    a = write_png(tmp_path / "a/x.png", blob((40, 40), 1)[0])
    b = write_png(tmp_path / "b/x.png", blob((40, 40), 2)[0])
    file = spec_file(tmp_path, made)
    assert main(["--spec", file, "-o", str(tmp_path / "out"), str(a), str(b)]) == EXIT_CONFIG
    assert "would overwrite the output of" in capsys.readouterr().err
    before = a.read_bytes()
    assert main(["--spec", file, "-o", str(tmp_path / "a"), str(a)]) == EXIT_CONFIG
    assert a.read_bytes() == before


def test_what_may_be_an_image_or_a_label_is_never_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The next training would take the site's own predictions for the truth."""
    site = png_site(tmp_path / "site", {"training": 2, "validation": 1})
    made = spec(site, GREY)
    write_checkpoint(made)
    file = spec_file(tmp_path, made)
    image, mask = (site / folder / "validation_0.png" for folder in ("images", "masks"))
    before = mask.read_bytes()
    assert main(["--spec", file, "-o", str(site / "masks"), str(image)]) == EXIT_CONFIG
    assert str(mask) in capsys.readouterr().err and mask.read_bytes() == before
    photo = tmp_path / "other" / "a.jpg"
    other = write_png(tmp_path / "other" / "a.png", blob((40, 40), 1)[0])
    Image.open(other).save(photo)
    before = other.read_bytes()
    assert main(["--spec", file, "-o", str(photo.parent), str(photo)]) == EXIT_CONFIG
    assert other.read_bytes() == before
    truth = tmp_path / "truth"
    (site / "masks").rename(truth)
    (site / "masks").symlink_to(truth)
    before = (truth / "validation_0.png").read_bytes()
    for folder in (truth, site / "masks"):
        assert main(["--spec", file, "-o", str(folder), str(image)]) == EXIT_CONFIG
    assert (truth / "validation_0.png").read_bytes() == before
    elsewhere = tmp_path / "truth"
    for lost in (site / "images").glob("training_*.png"):
        lost.unlink()  # the site's files cannot be listed any more
    assert main(["--spec", file, "-o", str(elsewhere), str(image)]) == EXIT_CONFIG
    assert "is not known" in capsys.readouterr().err
    assert (truth / "validation_0.png").read_bytes() == before


def test_earlier_predictions_may_be_overwritten(tmp_path: Path) -> None:
    site = png_site(tmp_path / "site", {"training": 2, "validation": 1})
    made = spec(site, GREY)
    write_checkpoint(made)
    file, image = spec_file(tmp_path, made), site / "images" / "validation_0.png"
    for _ in range(2):  # earlier predictions may be, also beneath data.path
        assert main(["--spec", file, "-o", str(site / "predicted"), str(image)]) == EXIT_OK


def test_masks_of_0_and_255_give_masks_of_0_and_255(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = dataclasses.replace(GREY, label_map={255: 1})
    site = png_site(tmp_path / "site", {"training": 2, "validation": 1})
    for file in (site / "masks").iterdir():
        write_png(file, np.asarray(Image.open(file)) * 255)
    made = spec(site, task, data={"label_map_out": {}})
    write_checkpoint(made, shift=0.3)
    image = site / "images" / "validation_0.png"
    arguments = ["--spec", spec_file(tmp_path, made), "-o", str(tmp_path / "out"), str(image)]
    found = []
    for out in ({}, {0: 7, 1: 300}):
        changed = dataclasses.replace(made, data={**made.data, "label_map_out": out})
        spec_file(tmp_path, changed)
        assert main(arguments) == EXIT_OK
        found.append(json.loads(capsys.readouterr().out))
        written = set(np.unique(np.asarray(Image.open(tmp_path / "out" / "validation_0.png"))).tolist())
        assert written and written <= ({7, 300} if out else {0, 255})
    assert found[0]["values"] == {"0": 0, "1": 255} and found[1]["values"] == {"0": 7, "1": 300}
    assert "note" not in found[0]
