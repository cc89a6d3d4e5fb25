"""The registry: every network with every setting it honours, and every refusal."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from gossipseg.errors import ConfigError
from gossipseg.nets import registry
from gossipseg.nets.params import NetworkParams
from gossipseg.nets.registry import build, initialise, network_signature, norm_parameter_names
from gossipseg.nets.segmenter import Segmenter, cropped, dropout_off, padding

SMALLEST = {"sanet": 32, "unet": 32, "dynunet": 32, "segresnet": 16, "swinunetr": 64}
SMALLEST |= {"dca_unet": 32, "adapted_unetr": 32, "adapted_swinunetr": 64, "adapted_sam": 32}
EVERY_NORM = [
    (n, norm) for n in SMALLEST for norm in ("instance", "group", "batch") if (n, norm) != ("unet", "group")
]


def make(name: str = "sanet", dims: int = 2, size: int | None = None, **settings: Any) -> Segmenter:
    params = NetworkParams(name=name, **{"width": 12, "dropout": 0.0, **settings})
    patch = [SMALLEST[name] if size is None else size] * dims
    return build(params, spatial_dims=dims, in_channels=1, out_channels=2, patch_size=patch)


def test_every_name_in_the_settings_can_be_built() -> None:
    features_alone = {"cowpro_encoder"}  # tests/nets/test_cowpro_encoder.py
    assert set(registry.names()) == set(SMALLEST) | features_alone


@pytest.mark.parametrize(("name", "norm"), EVERY_NORM)
def test_one_step_of_each_network(name: str, norm: str) -> None:
    net = make(name, norm=norm)
    x = torch.randn(2, 1, SMALLEST[name], SMALLEST[name])
    output = net(x)
    assert output.logits.shape == (2, 2, *x.shape[2:])
    assert len(output.aux) == (3 if name in ("sanet", "dynunet") else 0)
    assert all(a.shape[2] < x.shape[2] for a in output.aux)
    (output.logits.mean() + sum(a.mean() for a in output.aux)).backward()
    assert all(p.grad is not None for p in net.parameters())
    copy.deepcopy(net)  # the EMA's; graphs kept in a network would forbid it
    net.eval()
    with torch.no_grad():
        assert net(x).aux == ()


@pytest.mark.parametrize("name", ["sanet", "unet", "dynunet", "segresnet", "swinunetr", "dca_unet"])
def test_three_dimensions(name: str) -> None:
    net = make(name, dims=3, width=12 if name == "swinunetr" else 4)
    kinds = {type(m).__name__ for m in net.modules()}
    assert "Conv3d" in kinds
    assert "Conv2d" not in kinds
    if name != "swinunetr":  # minutes on a CPU at its smallest patch
        x = torch.randn(1, 1, *[SMALLEST[name]] * 3)
        assert net(x).logits.shape == (1, 2, *x.shape[2:])


@pytest.mark.parametrize("name", list(SMALLEST))
def test_width_and_dropout_are_honoured(name: str) -> None:
    def size(net: Segmenter) -> int:
        return sum(p.numel() for p in net.parameters())

    assert size(make(name, width=24)) > 2 * size(make(name, width=12))
    x = torch.randn(1, 1, *[SMALLEST[name]] * 2)
    still, random = make(name), make(name, dropout=0.5)
    assert torch.equal(still(x).logits, still(x).logits)
    assert not torch.equal(random(x).logits, random(x).logits)


# ---------------------------------------------------------------- sizes


@pytest.mark.parametrize(
    ("name", "options", "stride"),
    [
        ("sanet", {}, 16),
        ("unet", {}, 16),
        ("unet", {"channels": [4, 8, 16], "strides": [2, 2]}, 4),
        ("dynunet", {}, 16),
        ("segresnet", {}, 8),
        ("segresnet", {"blocks_down": [1, 1, 1, 1, 1], "blocks_up": [1, 1, 1, 1]}, 16),
        ("swinunetr", {}, 32),
    ],
)
def test_stride_product(name: str, options: dict[str, Any], stride: int) -> None:
    params = NetworkParams(name=name, options=options)
    assert registry.stride_product(params, spatial_dims=2) == (stride, stride)
    registry.check_patch(params, spatial_dims=2, patch_size=(2 * stride, 2 * stride))
    with pytest.raises(ConfigError, match=rf"task\.patch_size.*at least \[{2 * stride}, {2 * stride}\]"):
        registry.check_patch(params, spatial_dims=2, patch_size=(2 * stride, stride))


def test_anisotropic_strides_count_by_axis() -> None:
    options = {"strides": [1, [2, 2, 1], 2], "kernel_size": [3] * 3, "upsample_kernel_size": [[2, 2, 1], 2]}
    params = NetworkParams(name="dynunet", options=options | {"filters": [4, 8, 16], "deep_supr_num": 1})
    assert registry.stride_product(params, spatial_dims=3) == (4, 4, 2)


@pytest.mark.parametrize("name", ["sanet", "unet", "dynunet", "segresnet"])
def test_any_size_is_padded_to_the_stride_and_cropped_again(name: str) -> None:
    net = make(name, width=4)
    x = torch.randn(1, 1, 35, 50)
    output = net(x)
    assert output.logits.shape == (1, 2, 35, 50)
    assert all(a.shape[2:] == (35, 50) for a in output.aux)
    assert output.clean is None or output.clean.shape == output.logits.shape
    net.eval()
    padded = torch.zeros(1, 1, 48, 64)
    padded[..., :35, :50] = x
    if name != "segresnet":  # stride 8: padded to another size
        torch.testing.assert_close(net(x).logits, net(padded).logits[..., :35, :50])


def test_padding_is_at_the_far_end_of_each_axis() -> None:
    assert padding((35, 48, 17), (16, 16, 4)) == [0, 3, 0, 0, 0, 13]
    assert padding((32, 48), (16, 16)) == [0, 0, 0, 0]


def test_cropped_heads_stay_aligned_with_the_image() -> None:
    ramp = torch.arange(16.0).reshape(1, 1, 16, 1).expand(1, 1, 16, 16)
    coarse = torch.nn.functional.avg_pool2d(ramp, 2)
    output = cropped(registry.NetOutput(ramp, (coarse,)), (13, 10))
    inner = (slice(None), slice(None), slice(1, 12))
    torch.testing.assert_close(output.aux[0][inner], output.logits[inner])


# ---------------------------------------------------------------- the partner's view


@pytest.mark.parametrize("name", ["sanet", "unet", "dynunet"])
@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_a_partner_is_shown_logits_without_dropout(name: str, norm: str) -> None:
    net = make(name, dropout=0.5, norm=norm)
    x = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        output = net(x)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    clean = net.clean_logits(x, output)
    assert not clean.requires_grad
    assert not torch.equal(clean, output.logits)
    torch.testing.assert_close(clean, net.clean_logits(x, output))
    assert all(torch.equal(tensor, net.state_dict()[name]) for name, tensor in before.items())
    assert all(m.training for m in net.modules())


def test_without_dropout_the_view_costs_nothing() -> None:
    net = make("unet")
    x = torch.randn(1, 1, 32, 32)
    output = net(x)
    assert net.clean_logits(x, output).data_ptr() == output.logits.data_ptr()


def test_dropout_comes_back_after_an_error() -> None:
    net = make("unet", dropout=0.5)
    with pytest.raises(RuntimeError, match="in between"), dropout_off(net):
        raise RuntimeError("in between")
    assert all(m.training for m in net.modules())


# ---------------------------------------------------------------- names, signature, W_0


@pytest.mark.parametrize("name", list(SMALLEST))
def test_no_tensor_has_two_names(name: str) -> None:
    net = make(name)
    addresses = [tensor.data_ptr() for tensor in net.state_dict().values()]
    assert len(set(addresses)) == len(addresses)
    copied = copy.deepcopy(net)
    copied.load_state_dict({n: torch.zeros_like(t) for n, t in net.state_dict().items()})
    size = SMALLEST[name]
    with torch.no_grad():
        assert copied.eval()(torch.randn(1, 1, size, size)).logits.abs().max() == 0
        assert net.eval()(torch.randn(1, 1, size, size)).logits.abs().max() > 0


@pytest.mark.parametrize(("name", "norm"), EVERY_NORM)
def test_norm_names_are_found_by_type(name: str, norm: str) -> None:
    net = make(name, norm=norm)
    state = net.state_dict()
    found = norm_parameter_names(net)
    assert found
    assert found <= state.keys()
    assert all(state[n].ndim <= 1 for n in found)
    if norm == "batch":
        assert {n for n in state if n.endswith("running_mean")} <= found
    if name == "sanet":
        assert found == {n for n in state if "norm" in n}


def test_the_signature_is_that_of_the_shared_tensors() -> None:
    def everything(name: str) -> bool:
        return True

    net = make()
    signature = network_signature(net, everything)
    assert len(signature) == 64
    assert signature == network_signature(make(), everything), "weights are no part of it"
    assert signature != network_signature(make(width=24), everything)
    assert signature != network_signature(make().half(), everything)
    norms = norm_parameter_names(net)
    assert signature != network_signature(net, lambda name: name not in norms)


@pytest.mark.parametrize("name", ["sanet", "dynunet"])
def test_w_0_comes_from_the_seed_alone(name: str) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = initialise(lambda: make(name), seed=7).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    second = initialise(lambda: make(name), seed=7).state_dict()
    other = initialise(lambda: make(name), seed=8).state_dict()
    assert all(torch.equal(first[n], second[n]) for n in first)
    assert any(not torch.equal(first[n], other[n]) for n in first)


def test_the_random_state_comes_back_after_an_error() -> None:
    before = torch.get_rng_state()
    with pytest.raises(ConfigError):
        initialise(lambda: make("unet", norm="group"), seed=7)
    assert torch.equal(torch.get_rng_state(), before)


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "sanett"}, r"network\.name = 'sanett'.*`sanet`"),
        ({"name": "vnet9"}, r"network\.name = 'vnet9'"),
        ({"name": "transformer"}, r"Choose one of: sanet, unet, dynunet, segresnet, swinunetr"),
        ({"width": 0}, r"network\.width = 0"),
        ({"name": "swinunetr", "width": 16}, r"network\.width = 16.*multiple of 12.*Try 12"),
        ({"dropout": 1.0}, r"network\.dropout = 1\.0"),
        ({"name": "unet", "norm": "group"}, r"network\.norm = 'group'.*instance, batch"),
        ({"options": {"depth": 5}}, r"network\.options\.depth = 5.*takes no options"),
        ({"name": "unet", "options": {"num_res_unit": 1}}, r"options\.num_res_unit.*`num_res_units`"),
        ({"name": "unet", "options": {"in_channels": 4}}, r"options\.in_channels.*comes from the task"),
        ({"name": "unet", "options": {"channels": [4, 8, 16], "strides": [2]}}, r"unet cannot be built"),
        ({"name": "unet", "options": {"strides": "two"}}, r"network\.options"),
        ({"name": "segresnet", "options": {"blocks_down": 4}}, r"network\.options"),
    ],
)
def test_what_a_network_cannot_do(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(NetworkParams(**settings), spatial_dims=2, in_channels=1, out_channels=2, patch_size=(64, 64))


def test_a_patch_of_the_wrong_number_of_axes_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"task\.patch_size = \[64, 64\].*3 numbers"):
        registry.check_patch(NetworkParams(), spatial_dims=3, patch_size=(64, 64))
