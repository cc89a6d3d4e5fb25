"""Adapters: the equation by hand, their places, what is a site's own, and encoders from a file."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.networks.nets import UNETR, SwinUNETR
from safetensors.torch import save_file
from torch import Tensor

from gossipseg.errors import ConfigError
from gossipseg.learn.engine.build import build_model
from gossipseg.learn.settings import read_settings
from gossipseg.nets.adapted import SamSegmenter
from gossipseg.nets.adapters import Adapter
from gossipseg.nets.params import WITH_ADAPTERS, NetworkParams
from gossipseg.nets.registry import build, initialise, private_names
from gossipseg.nets.sam_encoder import SamImageEncoder
from gossipseg.nets.segmenter import Segmenter
from tests.learn.harness import make_spec

SMALL: dict[str, dict[str, Any]] = {
    "adapted_unetr": {"width": 2, "options": {"adapter_width": 3}},
    "adapted_swinunetr": {"width": 12, "options": {"adapter_width": 3, "depths": [2, 1, 1, 2]}},
    "adapted_sam": {"width": 2, "options": {"adapter_width": 3, "depth": 4, "global_blocks": [1, 3]}},
}
SIZE = {"adapted_unetr": 32, "adapted_swinunetr": 64, "adapted_sam": 32}
ENCODER = {"adapted_unetr": "vit", "adapted_swinunetr": "swinViT", "adapted_sam": "image_encoder"}


def make(name: str, folder: Path | None = None, dims: int = 2, **options: Any) -> Segmenter:
    small = SMALL[name]
    params = NetworkParams(name, width=small["width"], dropout=0.0, options={**small["options"], **options})
    net = initialise(
        lambda: build(
            params,
            spatial_dims=dims,
            in_channels=1,
            out_channels=2,
            patch_size=[SIZE[name]] * dims,
            weights_folder=folder,
        ),
        seed=3,
    )
    assert isinstance(net, Segmenter)
    return net


def monais(name: str) -> str:
    """A tensor's name before the adapters came."""
    return name.replace(".attn.layer.", ".attn.").replace(".mlp.layer.", ".mlp.")


def encoder_state(net: Segmenter, name: str) -> dict[str, Tensor]:
    """The encoder's tensors as MONAI names them."""
    inner = net.network.get_submodule(ENCODER[name]).state_dict()
    return {monais(n): t.clone() for n, t in inner.items() if "_adapter." not in n}


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def pretrained(folder: Path, name: str, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Options that name a file of these tensors."""
    file = folder / name
    if name.endswith(".safetensors"):
        save_file({n: t.contiguous() for n, t in tensors.items()}, file)
    else:
        torch.save({"state_dict": dict(tensors)}, file)
    return {"encoder_weights": name, "encoder_weights_sha256": sha256(file)}


def others(name: str) -> dict[str, Tensor]:
    """Encoder weights that no seed gives."""
    return {n: t + 1 if t.is_floating_point() else t for n, t in encoder_state(make(name), name).items()}


# ---------------------------------------------------------------- (1)


def test_equation_1_by_hand() -> None:
    adapter = Adapter(2, 1, scale=0.5)
    with torch.no_grad():
        adapter.down.weight.copy_(torch.tensor([[1.0, 2.0]]))
        adapter.down.bias.fill_(-1.0)
        adapter.up.weight.copy_(torch.tensor([[3.0], [-1.0]]))
        adapter.up.bias.copy_(torch.tensor([0.2, 0.4]))
    # Down: 1·0.5 + 2·0.75 − 1 = 1;  GELU(1) = Φ(1) = 0.8413…
    phi = 0.5 * (1 + math.erf(1 / math.sqrt(2)))
    x = torch.tensor([[0.5, 0.75]])
    expected = torch.tensor([[0.5 + 0.5 * (3 * phi + 0.2), 0.75 + 0.5 * (-phi + 0.4)]])
    torch.testing.assert_close(adapter(x), expected)


def test_a_new_adapter_changes_nothing_but_learns() -> None:
    adapter = Adapter(6, 3, 1.0)
    x = torch.randn(4, 6)
    assert torch.equal(adapter(x), x)
    adapter(x).square().sum().backward()
    assert adapter.up.weight.grad is not None and adapter.up.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("name", WITH_ADAPTERS)
def test_an_adapted_network_begins_as_without_adapters(name: str) -> None:
    net = make(name).eval()
    if name == "adapted_unetr":
        plain: torch.nn.Module = UNETR(
            1, 2, (32, 32), 2, 24, 96, 6, norm_name=("instance", {"affine": True}), spatial_dims=2
        )
    elif name == "adapted_sam":
        encoder = SamImageEncoder(
            (32, 32), hidden_size=24, depth=4, mlp_dim=96, num_heads=6, global_blocks=(1, 3)
        )
        plain = SamSegmenter(encoder, 1, 2, 2, ("instance", {"affine": True}), 0.0)
    else:
        plain = SwinUNETR(
            in_channels=1,
            out_channels=2,
            feature_size=12,
            depths=(2, 1, 1, 2),
            norm_name=("instance", {"affine": True}),
            spatial_dims=2,
        )
    state = net.network.state_dict()
    mapped = {monais(n): t for n, t in state.items() if "_adapter." not in n}
    missing, unexpected = plain.load_state_dict(mapped, strict=False)
    assert not unexpected and all("norm_cross_attn" in n for n in missing)
    x = torch.randn(1, 1, SIZE[name], SIZE[name])
    with torch.no_grad():
        torch.testing.assert_close(net(x).logits, plain.eval()(x))
        for parameter_name, parameter in net.named_parameters():
            if "_adapter.up.weight" in parameter_name:
                parameter.normal_()
        assert not torch.allclose(net(x).logits, plain(x), atol=1e-3), "the adapters are not in the way"


# ---------------------------------------------------------------- places


@pytest.mark.parametrize("name", WITH_ADAPTERS)
def test_low_adapters_alone_are_shared(name: str) -> None:
    net = make(name)
    state, private = net.state_dict(), private_names(net)
    assert set(state) - private == {n for n in state if ".low_adapter." in n}
    adapters = sorted({n.rpartition("_adapter.")[0] for n in state if "_adapter." in n})
    blocks = {n.rpartition(".")[0].rpartition(".")[0] for n in adapters}
    assert len(adapters) == 2 * len(blocks), "one after attention, one after the MLP"
    low = {n for n in adapters if n.endswith("low")}
    assert len(low) == len(adapters) // 2


def test_low_is_the_first_half_of_the_blocks() -> None:
    unetr = [n for n in make("adapted_unetr").state_dict() if ".low_adapter." in n]
    assert {int(n.split(".")[3]) for n in unetr} == set(range(6))
    swin = [n for n in make("adapted_swinunetr").state_dict() if ".low_adapter." in n]
    # depths 2, 1, 1, 2: the first three of six blocks are those of the first two stages
    places = {(n.split(".")[2], n.split(".")[5]) for n in swin}
    assert places == {("layers1", "0"), ("layers1", "1"), ("layers2", "0")}


def test_width_and_scale_are_options() -> None:
    net = make("adapted_unetr", adapter_width=5, adapter_scale=0.25)
    adapters = [m for m in net.modules() if isinstance(m, Adapter)]
    assert {(m.down.out_features, m.scale) for m in adapters} == {(5, 0.25)}
    default = build(
        NetworkParams("adapted_unetr", width=2),
        spatial_dims=2,
        in_channels=1,
        out_channels=1,
        patch_size=(32, 32),
    )
    assert {m.down.out_features for m in default.modules() if isinstance(m, Adapter)} == {64}


@pytest.mark.parametrize("name", WITH_ADAPTERS)
def test_everything_trains_without_pretrained_weights(name: str) -> None:
    net = make(name)
    assert all(p.requires_grad for p in net.parameters())
    for parameter_name, parameter in net.named_parameters():
        if "_adapter.up.weight" in parameter_name:
            torch.nn.init.normal_(parameter)
    net(torch.randn(2, 1, SIZE[name], SIZE[name])).logits.square().mean().backward()
    assert all(p.grad is not None for p in net.parameters())


def test_unetr_in_three_dimensions_and_at_any_patch() -> None:
    net = make("adapted_unetr", dims=3)
    assert net(torch.randn(1, 1, 32, 32, 32)).logits.shape == (1, 2, 32, 32, 32)
    odd = build(
        NetworkParams("adapted_unetr", width=2),
        spatial_dims=2,
        in_channels=1,
        out_channels=1,
        patch_size=(40, 33),
    )
    assert odd(torch.randn(1, 1, 40, 33)).logits.shape == (1, 1, 40, 33)


# ---------------------------------------------------------------- encoders from a file


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
@pytest.mark.parametrize("name", WITH_ADAPTERS)
def test_a_pretrained_encoder_is_loaded_and_frozen(name: str, suffix: str, tmp_path: Path) -> None:
    tensors = others(name)
    net = make(name, tmp_path, **pretrained(tmp_path, f"encoder.{suffix}", tensors))
    loaded = encoder_state(net, name)
    assert all(torch.equal(loaded[n], tensors[n]) for n in tensors)
    inside = f"network.{ENCODER[name]}."
    for parameter_name, parameter in net.named_parameters():
        frozen = parameter_name.startswith(inside) and "_adapter." not in parameter_name
        assert parameter.requires_grad != frozen, parameter_name


def test_what_travels_does_not_depend_on_the_file(tmp_path: Path) -> None:
    name = "adapted_unetr"
    plain, loaded = make(name), make(name, tmp_path, **pretrained(tmp_path, "e.pt", others(name)))
    first, second = plain.state_dict(), loaded.state_dict()
    assert all(torch.equal(first[n], second[n]) for n in first.keys() - private_names(plain))


def test_weights_of_a_whole_network_serve_too(tmp_path: Path) -> None:
    tensors = others("adapted_unetr")
    whole = {f"vit.{n}": t for n, t in tensors.items()} | {"out.conv.bias": torch.zeros(2)}
    net = make("adapted_unetr", tmp_path, **pretrained(tmp_path, "e.safetensors", whole))
    assert torch.equal(encoder_state(net, "adapted_unetr")["norm.weight"], tensors["norm.weight"])


def test_the_names_of_monais_published_swin_weights(tmp_path: Path) -> None:
    tensors = others("adapted_swinunetr")
    published = {
        f"module.{n.replace('mlp.linear1', 'mlp.fc1').replace('mlp.linear2', 'mlp.fc2')}": t
        for n, t in tensors.items()
    } | {"module.rotation_head.weight": torch.zeros(4, 8)}
    net = make("adapted_swinunetr", tmp_path, **pretrained(tmp_path, "swin.pt", published))
    loaded = encoder_state(net, "adapted_swinunetr")
    assert all(torch.equal(loaded[n], tensors[n]) for n in tensors)


def test_the_file_lies_in_the_sites_data_folder(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    tensors = others("adapted_unetr")
    options = {"adapter_width": 3, **pretrained(data, "e.safetensors", tensors)}
    network = {"name": "adapted_unetr", "options": options}
    net = build_model(read_settings(make_spec(data, tmp_path / "state", network=network)))
    assert torch.equal(encoder_state(net, "adapted_unetr")["norm.weight"], tensors["norm.weight"])
    (data / "e.safetensors").unlink()
    with pytest.raises(
        ConfigError, match=r"encoder_weights = .*e\.safetensors.*cannot be read.*Put the file"
    ):
        build_model(read_settings(make_spec(data, tmp_path / "state", network=network)))


def test_a_checkpoint_needs_no_file(tmp_path: Path) -> None:
    options = pretrained(tmp_path, "e.pt", others("adapted_unetr"))
    trained = make("adapted_unetr", tmp_path, **options)
    again = make("adapted_unetr", None, **options)
    again.load_state_dict(trained.state_dict())
    assert [p.requires_grad for p in again.parameters()] == [p.requires_grad for p in trained.parameters()]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder_weights": "../e.pt"}, r"encoder_weights = '\.\./e\.pt'.*path.*file's name alone"),
        ({"encoder_weights_sha256": ""}, r"encoder_weights_sha256: is missing.*sha256sum e\.pt"),
        ({"encoder_weights_sha256": "0" * 64}, r"e\.pt.*sha256 is"),
        ({"encoder_weights": "absent.pt"}, r"absent\.pt.*cannot be read"),
        ({"hidden_size": 48}, r"e\.pt.*encoder_weights: .* is \[.*in the network"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    options = pretrained(tmp_path, "e.pt", others("adapted_unetr"))
    with pytest.raises(ConfigError, match=message):
        make("adapted_unetr", tmp_path, **{**options, **change})


def test_a_file_of_other_weights_is_refused(tmp_path: Path) -> None:
    tensors = others("adapted_unetr")
    del tensors["blocks.3.mlp.linear1.weight"]
    with pytest.raises(ConfigError, match=r"e\.pt.*lacks blocks\.3\.mlp\.linear1\.weight"):
        make("adapted_unetr", tmp_path, **pretrained(tmp_path, "e.pt", tensors))


def test_a_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "e.pt"
    torch.save({"state_dict": Path("/")}, file)  # an object: needs a real unpickler
    with pytest.raises(ConfigError, match=r"e\.pt.*no file of weights"):
        make("adapted_unetr", tmp_path, encoder_weights="e.pt", encoder_weights_sha256=sha256(file))


def test_what_comes_from_the_task_is_no_option() -> None:
    with pytest.raises(ConfigError, match=r"network\.options\.img_size"):
        make("adapted_unetr", img_size=[96, 96])
    with pytest.raises(ConfigError, match=r"network\.options\.adapter_with.*`adapter_width`"):
        make("adapted_unetr", adapter_with=3)
