"""The encoder of FedCoWPro: its output stride, its norms, pretrained weights, refusals."""

from __future__ import annotations

import copy
import hashlib
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from gossipseg.errors import ConfigError
from gossipseg.nets.cowpro_encoder import CowproEncoder, FrozenBatchNorm, Shortcut
from gossipseg.nets.params import NetworkParams
from gossipseg.nets.registry import build
from gossipseg.nets.segmenter import Segmenter


def make(
    folder: Path | None = None,
    channels: int = 1,
    patch: tuple[int, ...] = (32, 32),
    dims: int = 2,
    **settings: Any,
) -> Segmenter:
    options = {"depth": 18, **settings.pop("options", {})}
    params = NetworkParams("cowpro_encoder", **{"width": 4, "norm": "group", "options": options, **settings})
    return build(
        params,
        spatial_dims=dims,
        in_channels=channels,
        out_channels=2,
        patch_size=patch,
        weights_folder=folder,
    )


@pytest.mark.parametrize(("depth", "parameters"), [(18, 11_176_512), (50, 23_508_032), (101, 42_500_160)])
def test_sizes_are_those_of_resnet(depth: int, parameters: int) -> None:
    """Published ResNets without their classifier, plus ours: group norm has as many weights as batch norm."""
    with torch.device("meta"):
        found = CowproEncoder(3, 64, depth, lambda channels: nn.GroupNorm(8, channels))
    inputs = 512 if depth == 18 else 2048
    assert sum(p.numel() for p in found.parameters()) == parameters + inputs * 256


@pytest.mark.parametrize("depth", [18, 50])
def test_features_at_an_eighth_of_the_input(depth: int) -> None:
    net = make(options={"depth": depth})
    x = torch.randn(2, 1, 32, 48)
    output = net(x)
    assert output.logits.shape == (2, 256, 4, 6)
    output.logits.square().mean().backward()
    assert all(p.grad is not None for p in net.parameters())
    copy.deepcopy(net)
    net.eval()
    with torch.no_grad():
        assert torch.allclose(net(x).logits, output.logits, atol=1e-5), "nothing in it depends on the mode"


def test_the_last_stages_dilate_instead_of_halving() -> None:
    """Rings that a pixel can see: with dilation the field of view is wide, the map is not coarser."""
    net = make()
    convolutions = [m for m in net.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    assert [m.dilation[0] for m in convolutions] == [1] * 8 + [1, 1, 2, 2] + [2, 2, 4, 4]
    assert [m.stride[0] for m in convolutions if m.stride[0] > 1] == [2]


def test_a_sliced_shortcut_is_a_strided_convolution() -> None:
    found = Shortcut(3, 5, 2, nn.Identity)
    x = torch.randn(1, 3, 8, 8)
    convolution = found[0]
    assert isinstance(convolution, nn.Conv2d)
    assert torch.allclose(found(x), nn.functional.conv2d(x, convolution.weight, stride=2), atol=1e-6)


# ---------------------------------------------------------------- pretrained weights


def resnet18_tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    """A file as torchvision saves it, with random numbers in it."""
    torch.manual_seed(seed)
    reference = CowproEncoder(3, 64, 18, nn.BatchNorm2d).eval()
    for module in reference.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
            module.running_mean.normal_(std=0.1)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
    state = {n: t for n, t in reference.state_dict().items() if not n.startswith("project.")}
    return {**state, "fc.weight": torch.zeros(10, 512), "fc.bias": torch.zeros(10)}


def write_weights(folder: Path, tensors: dict[str, torch.Tensor], name: str = "resnet18.safetensors") -> str:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / name
    if name.endswith(".safetensors"):
        safetensors.torch.save_file(tensors, file)
    else:
        torch.save(tensors, file)
    return hashlib.sha256(file.read_bytes()).hexdigest()


def options(sha256: str, name: str = "resnet18.safetensors") -> dict[str, Any]:
    return {"depth": 18, "encoder_weights": name, "encoder_weights_sha256": sha256}


@pytest.mark.parametrize("name", ["resnet18.safetensors", "resnet18.pth"])
def test_pretrained_weights_compute_what_they_computed_in_their_own_network(
    tmp_path: Path, name: str
) -> None:
    tensors = resnet18_tensors()
    sha256 = write_weights(tmp_path, tensors, name)
    net = make(tmp_path, 3, width=64, norm="batch", options=options(sha256, name))
    reference = CowproEncoder(3, 64, 18, nn.BatchNorm2d).eval()
    reference.load_state_dict(tensors, strict=False)
    reference.project.load_state_dict(net.network.project.state_dict())  # type: ignore[union-attr]
    x = torch.randn(1, 3, 32, 32)
    net.train()
    with torch.no_grad():
        assert torch.allclose(net(x).logits, reference(x).logits, atol=1e-3)


def test_pretrained_norms_are_frozen_and_convolutions_are_not(tmp_path: Path) -> None:
    sha256 = write_weights(tmp_path, resnet18_tensors())
    net = make(tmp_path, 1, width=64, norm="batch", options=options(sha256))
    before = {n: t.clone() for n, t in net.state_dict().items() if ".bn" in n}
    net(torch.randn(2, 1, 32, 32)).logits.square().mean().backward()
    assert all(torch.equal(t, net.state_dict()[n]) for n, t in before.items())
    assert not any(".bn" in n or "downsample.1" in n for n, _ in net.named_parameters())
    assert all(p.grad is not None for p in net.parameters())
    assert any(isinstance(m, FrozenBatchNorm) for m in net.modules())


def test_a_grey_image_is_seen_as_if_it_came_three_times(tmp_path: Path) -> None:
    sha256 = write_weights(tmp_path, resnet18_tensors())
    x = torch.randn(1, 1, 32, 32)
    found = []
    for channels in (1, 3):
        net = make(tmp_path, channels, width=64, norm="batch", options=options(sha256))
        nn.init.constant_(net.network.project.weight, 0.01)  # type: ignore[union-attr, arg-type]
        with torch.no_grad():
            found.append(net(x.expand(1, channels, 32, 32)).logits)
    assert torch.allclose(*found, atol=1e-3)


def test_the_backbone_of_a_segmentation_network_fits(tmp_path: Path) -> None:
    tensors = {f"backbone.{n}": t for n, t in resnet18_tensors().items() if not n.startswith("fc.")}
    tensors["classifier.0.weight"] = torch.zeros(3)
    sha256 = write_weights(tmp_path, tensors)
    net = make(tmp_path, 3, width=64, norm="batch", options=options(sha256))
    assert torch.equal(net.state_dict()["network.conv1.weight"], tensors["backbone.conv1.weight"])


def test_without_a_folder_weights_are_left_out_because_a_checkpoint_follows() -> None:
    net = make(None, 3, width=64, norm="batch", options=options("0" * 64))
    assert any(isinstance(m, FrozenBatchNorm) for m in net.modules())


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("settings", "key", "words"),
    [
        ({"patch": (24, 32)}, "task.patch_size", "fewer than 4 voxels"),
        ({"patch": (36, 32)}, "task.patch_size", "[32, 32]"),
        ({"patch": (32, 32, 32), "dims": 3}, "task.spatial_dims", "slice_axis"),
        ({"norm": "instance"}, "network.norm", "group"),
        ({"norm": "batch"}, "network.norm", "random weights"),
        ({"options": {"depth": 34}}, "network.options.depth", "18, 50 or 101"),
        ({"options": {"dpeth": 18}}, "network.options.dpeth", "`depth`"),
    ],
)
def test_refusals(settings: dict[str, Any], key: str, words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        make(**settings)
    assert refused.value.key == key
    assert words in str(refused.value)


@pytest.mark.parametrize("what", ["missing", "another", "empty", "shape", "name", "width", "norm"])
def test_refused_weights(tmp_path: Path, what: str) -> None:
    tensors = resnet18_tensors()
    key, word = "network.options.encoder_weights", ""
    if what == "shape":
        tensors["layer4.0.conv1.weight"], word = torch.zeros(1), "layer4.0.conv1.weight"
    if what == "name":
        del tensors["layer2.1.bn1.running_var"]
        word = "layer2.1.bn1.running_var"
    sha256 = write_weights(tmp_path, tensors)
    file = tmp_path / "resnet18.safetensors"
    if what == "missing":
        file.unlink()
        word = "nothing is downloaded"
    if what == "another":
        sha256, key, word = "0" * 64, "network.options.encoder_weights_sha256", sha256
    if what == "empty":
        file.write_bytes(b"no weights")
        sha256, word = hashlib.sha256(b"no weights").hexdigest(), "no file of weights"
    settings: dict[str, Any] = {"width": 64, "norm": "batch"}
    if what == "width":
        settings["width"], key, word = 32, "network.width", "64"
    if what == "norm":
        settings["norm"], key, word = "group", "network.norm", "batch"
    with pytest.raises(ConfigError) as refused:
        make(tmp_path, 3, options=options(sha256), **settings)
    assert refused.value.key == key
    assert word in str(refused.value)


def test_an_image_off_the_stride_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="no multiple"):
        make()(torch.randn(1, 1, 33, 32))
