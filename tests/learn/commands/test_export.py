"""What is exported loads elsewhere and gives identical logits: plain torch, safetensors, monai.bundle."""

from __future__ import annotations

import dataclasses
import json
import warnings
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow, load
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from gossipseg.learn.bundle import network_def
from gossipseg.learn.commands.export import main
from gossipseg.learn.commands.predict import predict_labels
from gossipseg.learn.data.cases import Case
from gossipseg.learn.deploy.deployment import Deployment, load_deployment
from gossipseg.learn.evaluation.evaluate import predict_logits
from gossipseg.learn.evaluation.mixture import Mixture
from gossipseg.learn.params import TaskParams
from tests.learn.imagery import (
    GREY,
    RGB,
    VOLUME,
    blob,
    spec,
    spec_file,
    write_checkpoint,
    write_nifti,
    write_png,
)

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*_target_.*importable callable:UserWarning",  # MONAI's advice about bundles of strangers
    "ignore:.*NvImgCodec.*:UserWarning",  # it registers every reader it has, also those that cannot work
)

METADATA_REQUIRED = {
    "schema": str,
    "version": str,
    "monai_version": str,
    "pytorch_version": str,
    "numpy_version": str,
    "required_packages_version": dict,
    "task": str,
    "description": str,
    "authors": str,
    "copyright": str,
    "network_data_format": dict,
}
TENSOR_REQUIRED = {
    "type": str,
    "format": str,
    "num_channels": int,
    "spatial_shape": list,
    "dtype": str,
    "value_range": list,
}
CT = dataclasses.replace(VOLUME, intensity="ct_window", spacing_mm=(1.2, 0.9, 1.1), orientation="LPS")
DECLARED = dataclasses.replace(RGB, convert_grey_to_rgb=True)


PAIR = {"personal": 0.4, "shared": 0.6}
SEGRESNET = {"name": "segresnet", "width": 4}


def exported(
    tmp_path: Path, task: TaskParams, mix: dict[str, float] | None = None, *options: str, **changes: Any
) -> tuple[Deployment, Path]:
    made = spec(tmp_path, task, **{"algorithm": {"name": "fedavg"}} if mix else {}, **changes)
    write_checkpoint(made, 5, mix=mix)
    assert main(["--spec", spec_file(tmp_path, made), "-o", str(tmp_path / "out"), *options]) == 0
    return load_deployment(made, single="--single" in options), tmp_path / "out"


def batch(deployment: Deployment) -> torch.Tensor:
    task = deployment.settings.task
    shape = (2, task.channels, *task.patch_size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def test_state_dict_and_safetensors_hold_the_ema(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    deployment, out = exported(tmp_path, GREY)
    document = json.loads(capsys.readouterr().out)
    assert document["kind"] == "export" and document["round"] == 5
    assert [Path(f).name for f in document["files"]] == ["model.pt", "model.safetensors", "bundle"]
    plain = torch.load(out / "model.pt", weights_only=True)
    safe = load_file(out / "model.safetensors")
    for name, tensor in deployment.net.state_dict().items():
        assert torch.equal(plain[name], tensor) and torch.equal(safe[name], tensor)
    with safe_open(out / "model.safetensors", "pt") as f:
        assert f.metadata() == {
            "site": "north", "federation": "test", "round": "5", "steps": "500", "weights": "ema"
        }  # fmt: skip


def test_a_bundle_that_would_read_images_at_another_scale_is_not_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, out = exported(tmp_path, dataclasses.replace(GREY, spacing_mm=(0.5, 0.5)))
    document = json.loads(capsys.readouterr().out)
    assert sorted(p.name for p in out.iterdir()) == ["model.pt", "model.safetensors"]
    assert "no voxel size" in document["note"] and len(document["files"]) == 2
    (out / "bundle").mkdir()
    assert main(["--spec", str(next(tmp_path.glob("*.json"))), "-o", str(out)]) != 0
    assert "is of another export" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("mix", "own"),
    [(None, None), (PAIR, None), (PAIR, SEGRESNET), ({"personal": 1.0}, SEGRESNET)],
    ids=["one", "two", "two networks", "one of its own"],
)
@pytest.mark.parametrize("task", [RGB, VOLUME], ids=["2d", "3d"])
def test_monai_bundle_loads_the_network_with_identical_logits(
    tmp_path: Path, task: TaskParams, mix: dict[str, float] | None, own: dict[str, Any] | None
) -> None:
    deployment, out = exported(tmp_path, task, mix, personal_network=own)
    assert isinstance(deployment.net, Mixture) == (mix == PAIR)
    net = load(name="bundle", bundle_dir=str(out), workflow_type="inference", source="github").eval()
    x = batch(deployment)
    with torch.inference_mode():
        assert torch.equal(net(x), deployment.net(x).logits)


def test_the_config_parser_builds_the_network_and_inferer(tmp_path: Path) -> None:
    deployment, out = exported(tmp_path, GREY, training={"output": "sigmoid"})
    parser = ConfigParser()
    parser.read_config(out / "bundle/configs/inference.json")
    parser.read_meta(out / "bundle/configs/metadata.json")
    net = parser.get_parsed_content("network_def")
    net.load_state_dict(torch.load(out / "bundle/models/model.pt", weights_only=True))
    assert net.eval()(batch(deployment)).shape == (2, 1, 32, 32)
    assert parser.get_parsed_content("inferer").roi_size == [32, 32]


def test_the_personal_and_the_shared_model_are_exported_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    deployment, out = exported(tmp_path, GREY, PAIR)
    document = json.loads(capsys.readouterr().out)
    assert (document["weights"], document["members"]) == ("mix", PAIR)
    assert "gain +0.0500 ± 0.0100 on 9 patients; personal 0.40, shared 0.60" in document["reason"]
    plain = torch.load(out / "model.pt", weights_only=True)
    assert {name.split(".")[1] for name in plain} == {
        "0",
        "1",
    } and plain.keys() == deployment.net.state_dict().keys()
    with safe_open(out / "model.safetensors", "pt") as f:
        assert json.loads(f.metadata()["members"]) == PAIR
    told = (out / "bundle/docs/README.md").read_text()
    assert document["reason"] in told
    assert "mixes its models in each window" in told and "in .2 % of the voxels" in told


@pytest.mark.parametrize("mix", [PAIR, {"personal": 1.0}])
def test_a_single_model_is_exported_as_one(
    tmp_path: Path, mix: dict[str, float], capsys: pytest.CaptureFixture[str]
) -> None:
    deployment, out = exported(tmp_path, GREY, mix, "--single")
    document = json.loads(capsys.readouterr().out)
    assert document["weights"] == "personal" and not isinstance(deployment.net, Mixture)
    assert "in each window" not in (out / "bundle/docs/README.md").read_text()
    if len(mix) > 1:
        assert "Dice 0.8500 with both, +0.0500 against this one" in document["reason"]
    net = load(name="bundle", bundle_dir=str(out), workflow_type="inference", source="github").eval()
    with torch.inference_mode():
        assert torch.equal(net(batch(deployment)), deployment.net(batch(deployment)).logits)


def test_two_networks_are_named_in_all_that_is_exported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, out = exported(tmp_path, GREY, PAIR, personal_network=SEGRESNET)
    assert json.loads(capsys.readouterr().out)["networks"] == ["segresnet", "unet"]
    with safe_open(out / "model.safetensors", "pt") as f:
        told = json.loads(f.metadata()["networks"])
    assert [network["name"] for network in told] == ["segresnet", "unet"]
    config = json.loads((out / "bundle/configs/inference.json").read_text())
    assert config["network_def"]["networks"] == told and "network" not in config["network_def"]
    assert "Network: `segresnet` and `unet`." in (out / "bundle/docs/README.md").read_text()
    metadata = json.loads((out / "bundle/configs/metadata.json").read_text())
    assert metadata["description"].startswith("segresnet and unet trained at north")


@pytest.mark.parametrize("own", [None, SEGRESNET], ids=["alike", "two networks"])
def test_a_single_model_has_its_own_network(
    tmp_path: Path, own: dict[str, Any] | None, capsys: pytest.CaptureFixture[str]
) -> None:
    deployment, out = exported(tmp_path, GREY, PAIR, "--single", personal_network=own)
    assert json.loads(capsys.readouterr().out)["networks"] == ["segresnet" if own else "unet"]
    net = load(name="bundle", bundle_dir=str(out), workflow_type="inference", source="github").eval()
    with torch.inference_mode():
        assert torch.equal(net(batch(deployment)), deployment.net(batch(deployment)).logits)


def test_a_bundle_of_an_earlier_version_with_several_networks_loads(tmp_path: Path) -> None:
    """There the first of them had half of the weight, and other names."""
    deployment, _ = exported(tmp_path, GREY, PAIR)
    assert isinstance(deployment.net, Mixture)
    own, other = deployment.net.members
    task, network = deployment.settings.task, deployment.settings.network
    shape = {"spatial_dims": 2, "in_channels": 1, "out_channels": 2, "patch_size": list(task.patch_size)}
    net = network_def(dataclasses.asdict(network), beside=1, output="softmax", **shape)
    earlier = {f"own.{n}": t for n, t in own.state_dict().items()}
    net.load_state_dict(earlier | {f"others.0.{n}": t for n, t in other.state_dict().items()})
    with torch.inference_mode():
        x = batch(deployment)
        expected = (own(x).logits.softmax(1) + other(x).logits.softmax(1)) / 2
        assert torch.allclose(net.eval()(x).exp(), expected, atol=1e-6)


@pytest.mark.parametrize("case", ["grey", "rgb", "declared", "sigmoid", "volume", "ct", "two", "networks"])
def test_running_the_bundle_gives_what_predict_gives(tmp_path: Path, case: str) -> None:
    task = {"rgb": RGB, "declared": DECLARED, "volume": VOLUME, "ct": CT}.get(case, GREY)
    changes = {"output": "sigmoid"} if case == "sigmoid" else {}
    own = SEGRESNET if case == "networks" else None
    mix = PAIR if case in ("two", "networks") else None
    deployment, out = exported(tmp_path, task, mix, training=changes, personal_network=own)
    root, shape = out / "bundle", (28, 22, 18) if task.spatial_dims == 3 else (50, 37)
    image = blob(shape, 4)[0]
    if task.spatial_dims == 3:
        affine = np.array([[-1.0, 0, 0, 9], [0, 0, 1.5, 2], [0, 2.0, 0, 5], [0, 0, 0, 1]])
        file = write_nifti(root / "data/scan.nii.gz", image.astype(np.float32), affine)
    else:
        pixels = np.stack([image, image // 2, 255 - image], -1) if case == "rgb" else image
        file = write_png(root / "data/scan.png", pixels)
    workflow = ConfigWorkflow(
        config_file=str(root / "configs/inference.json"), workflow_type="inference", bundle_root=str(root)
    )
    workflow.initialize()
    assert workflow.check_properties() == []
    workflow.run()
    (saved,) = (root / "predictions").iterdir()
    expected, volume = predict_labels(deployment, Case("scan", file))
    if task.spatial_dims == 3:
        got = nibabel.load(saved)
        np.testing.assert_allclose(got.affine, volume.affine, atol=1e-5)
        values = np.asarray(got.dataobj)
    else:
        values = np.asarray(Image.open(saved))
    assert len(np.unique(expected)) > 1
    assert values.shape == expected.shape and (values == expected).mean() > 0.999


def test_the_bundle_mixes_whole_images_as_predict_does(tmp_path: Path) -> None:
    """Mixed window by window, the logits are others where windows overlap."""
    deployment, out = exported(tmp_path, GREY, PAIR, personal_network=SEGRESNET)
    parser = ConfigParser()
    parser.read_config(out / "bundle/configs/inference.json")
    parser.read_meta(out / "bundle/configs/metadata.json")
    net, inferer = (parser.get_parsed_content(name) for name in ("network_def", "inferer"))
    net.load_state_dict(torch.load(out / "bundle/models/model.pt", weights_only=True))
    image = torch.randn(1, 50, 37, generator=torch.Generator().manual_seed(0))
    settings = deployment.settings
    expected = predict_logits(deployment.net, image, settings.task, settings.training, "cpu")
    with torch.inference_mode():
        assert torch.allclose(inferer(image[None], net.eval())[0], expected, atol=1e-6)


def test_metadata_has_what_monais_schema_requires(tmp_path: Path) -> None:
    """Required keys and types of meta_schema_20240725, which MONAI's verify_metadata downloads."""
    _, out = exported(tmp_path, VOLUME)
    document = json.loads((out / "bundle/configs/metadata.json").read_text())
    assert document["schema"].endswith("meta_schema_20240725.json")
    assert all(isinstance(document[key], kind) for key, kind in METADATA_REQUIRED.items())
    inputs, outputs = (document["network_data_format"][k] for k in ("inputs", "outputs"))
    for tensor in (inputs["image"], outputs["pred"]):
        assert all(isinstance(tensor[key], kind) for key, kind in TENSOR_REQUIRED.items())
    assert outputs["pred"]["channel_def"] == {"0": "background", "1": "liver", "2": "spleen"}
    assert outputs["pred"]["num_channels"] == 3 and inputs["image"]["spatial_shape"] == [16, 16, 16]


def test_the_bundle_is_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The README's way: load with the bundle's folder as working directory."""
    deployment, out = exported(tmp_path, GREY)
    monkeypatch.chdir(out / "bundle")
    net = load(name="bundle", bundle_dir="..", workflow_type="inference", source="github").eval()
    with torch.inference_mode():
        assert torch.equal(net(batch(deployment)), deployment.net(batch(deployment)).logits)
    assert "put PNG or JPEG pictures into `data/`" in Path("docs/README.md").read_text()
    assert Path("models/model.pt").stat().st_mode & 0o077 == 0o044


def test_no_warning_is_ours(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exported(tmp_path, GREY)
