"""The data doctor finds everything at once and says it as JSON."""

from __future__ import annotations

import dataclasses
import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gossipseg.errors import EXIT_CONFIG, EXIT_DATA, EXIT_OK
from gossipseg.learn.commands.check import check, main
from gossipseg.learn.params import WorkerSpec
from tests.learn import oneshot_site
from tests.learn.imagery import (
    GREY,
    RGB,
    VOLUME,
    nifti_site,
    png_site,
    spec,
    spec_file,
    write_nifti,
    write_png,
)


def run(
    tmp_path: Path, made: WorkerSpec, capsys: pytest.CaptureFixture[str]
) -> tuple[int, dict[str, Any], str]:
    code = main(["--spec", spec_file(tmp_path, made)])
    captured = capsys.readouterr()
    return code, json.loads(captured.out), captured.err


def test_a_healthy_site(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nifti_site(tmp_path, {"training": 2, "validation": 1, "test": 1}, np.diag([1.0, 1.0, 2.5, 1.0]))
    code, document, progress = run(tmp_path, spec(tmp_path, VOLUME), capsys)
    assert code == EXIT_OK and "[100%]" in progress
    memory, pace = document.pop("memory"), document.pop("pace")
    voxels = 20 * 24 * 18
    assert memory["cache_bytes"] == 3 * 5 * voxels and memory["largest_case_bytes"] == 5 * voxels
    assert memory["available_bytes"] > 1e6
    assert pace["steps_per_round"] == 100 and pace["validation_cases"] == 1
    assert pace["round_s"] == pytest.approx(100 * pace["step_s"] + pace["validation_case_s"])
    assert document == {
        "schema": 1,
        "kind": "check_data",
        "site": "north",
        "splits": {"training": 2, "validation": 1, "test": 1},
        "problems": [],
        "warnings": [],
        "classes": {"liver": 2, "spleen": 2},
        "shape_min": [20, 24, 18],
        "shape_max": [20, 24, 18],
        "patients": {"training": 2, "validation": 1, "test": 1},
        "division": {"how": "list", "text": "as dataset.json says", "file": None},
        "kinds": {".nii.gz": 4},
        "spacing_mm": [1.0, 1.0, 2.5],
        "device": "cpu",
    }


def test_every_problem_is_listed_with_file_key_value_and_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    png_site(tmp_path, {"training": 5, "validation": 1}, rgb=True)
    (tmp_path / "images/training_0.png").unlink()
    write_png(tmp_path / "images/training_1.png", np.zeros((48, 40), np.uint8))
    write_png(tmp_path / "masks/training_2.png", np.full((48, 40), 255, np.uint8))
    (tmp_path / "masks/training_3.png").write_bytes(b"no picture")
    code, document, _ = run(tmp_path, spec(tmp_path, RGB, device={"device": "warp"}), capsys)
    assert code == EXIT_DATA
    found = {Path(p["file"]).name if p["file"] else "": p for p in document["problems"]}
    assert set(found) == {"training_0.png", "training_1.png", "training_2.png", "training_3.png", ""}
    assert all(p["problem"] and p["remedy"] for p in found.values())
    assert (found["training_1.png"]["key"], found["training_1.png"]["value"]) == ("task.channels", 3)
    assert found[""]["key"] == "device.device"
    assert document["splits"]["training"] == 5


def test_classes_that_no_case_holds_are_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    png_site(tmp_path, {"training": 1, "validation": 1})
    write_png(tmp_path / "masks/validation_0.png", np.zeros((48, 40), np.uint8))
    code, document, _ = run(tmp_path, spec(tmp_path, GREY), capsys)
    assert code == EXIT_OK
    assert any("no validation case holds blob" in w for w in document["warnings"])
    assert any("no labelled test cases" in w for w in document["warnings"])


def test_a_site_without_any_data_still_gives_a_document(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, document, _ = run(tmp_path, spec(tmp_path / "none", GREY), capsys)
    assert code == EXIT_DATA and document["problems"][0]["key"] == "data.path"


def test_a_bad_spec_is_a_config_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("{"))
    assert main(["--spec", "-"]) == EXIT_CONFIG
    assert "worker spec cannot be read" in capsys.readouterr().err


def test_where_masks_are_made_nobody_reads_the_labels_of_training_cases(tmp_path: Path) -> None:
    site = oneshot_site.write_scans(tmp_path / "site", {"training": 2, "validation": 2, "test": 2})
    listed = json.loads((site / "dataset.json").read_text())
    damaged, missing = (site / entry["label"] for entry in listed["training"])
    damaged.write_bytes(b"junk")
    missing.unlink()
    found = check(oneshot_site.make_spec(site, tmp_path / "state"))
    assert found["problems"] == [] and not [w for w in found["warnings"] if "training case" in w]


def test_a_class_that_vanishes_at_the_tasks_spacing_is_told_with_its_size(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nifti_site(tmp_path, {"training": 1, "validation": 1, "test": 2}, np.diag([1.0, 1.0, 2.0, 1.0]))
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    for name, voxels in (("training_0", 3), ("test_1", 2)):
        label = np.zeros((20, 24, 18), np.uint8)
        label[4:16, 4:16, 4:12] = 1
        label[18, 21 : 21 + voxels, 15] = 2
        write_nifti(tmp_path / "labels" / f"{name}.nii.gz", label, affine)
    task = dataclasses.replace(VOLUME, spacing_mm=(5.0, 5.0, 5.0))
    code, document, _ = run(tmp_path, spec(tmp_path, task), capsys)
    assert code == EXIT_OK
    (told,) = [w for w in document["warnings"] if "vanishes" in w]
    assert told.startswith(
        "in 4 cases a class vanishes at task.spacing_mm 5×5×5: test_1 (spleen, 2 voxels, 4 mm³)"
    )
    assert "training_0 (spleen, 3 voxels, 6 mm³)" in told and "training never sees 1 of them" in told
    _, document, _ = run(tmp_path, spec(tmp_path, VOLUME), capsys)
    assert not any("vanishes" in w for w in document["warnings"])


def test_a_network_of_its_own_whose_output_is_smaller_than_the_patch_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"kernel_size": [3, 3, 3], "strides": [2, 2, 2], "upsample_kernel_size": [2, 2]}
    options |= {"filters": [2, 4, 8], "deep_supervision": False}
    png_site(tmp_path, {"training": 2, "validation": 1})
    own = {"name": "dynunet", "width": 2, "options": options}
    algorithm = {"name": "gossip_average"}
    made = dataclasses.replace(spec(tmp_path, GREY), algorithm=algorithm, personal_network=own)
    code, document, _ = run(tmp_path, made, capsys)
    told = [p for p in document["problems"] if p["key"] == "personal_network.options"]
    assert code != 0 and len(told) == 1 and "the shape (1, " in told[0]["problem"]


def test_a_network_that_cannot_train_is_told_and_no_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("sizes of tensors must match\nexcept in dimension 1.")

    monkeypatch.setattr("gossipseg.learn.commands.costs.train_step", broken)
    png_site(tmp_path, {"training": 2, "validation": 1})
    code, document, _ = run(tmp_path, spec(tmp_path, GREY), capsys)
    (problem,) = document["problems"]
    assert code == EXIT_DATA and problem["part"] == "model" and document["pace"] is None
    assert "a training step with unet on cpu does not work: sizes of tensors" in problem["problem"]
