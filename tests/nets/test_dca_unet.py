"""FedOAP's network: the attention by hand, the sizes of the paper, and which parts are a site's own."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from gossipseg.errors import ConfigError
from gossipseg.nets.dca_unet import CrossAttention, DcaUNet, SpatialAdapter, attention
from gossipseg.nets.params import WITH_PRIVATE_PARTS, NetworkParams
from gossipseg.nets.registry import build, names, private_names
from gossipseg.nets.sanet import Layers
from gossipseg.nets.segmenter import Segmenter

NORM = ("instance", {"affine": True})


def make(dims: int = 2, width: int = 4, size: int = 32, dropout: float = 0.0) -> Segmenter:
    params = NetworkParams("dca_unet", width=width, dropout=dropout)
    return build(params, spatial_dims=dims, in_channels=1, out_channels=1, patch_size=[size] * dims)


def test_the_papers_size() -> None:
    with torch.device("meta"):
        net = make(width=64)
    private = private_names(net)
    sizes = {name: p.numel() for name, p in net.named_parameters()}
    shared = sum(n for name, n in sizes.items() if name not in private)
    assert round(sum(sizes.values()) / 1e6, 1) == 49.5
    assert round(shared / 1e6, 1) == 34.2
    assert round(shared * 4 / 2**20) == 130  # MiB in float32


def test_attention_by_hand() -> None:
    # d = 1, one query voxel with Q = 1, two key voxels with K = 0 and ln 3: weights 1/4 and 3/4
    q = torch.ones(1, 1, 1, 1)
    k = torch.tensor([[[[0.0, math.log(3)]]]])
    v = torch.tensor([[[[8.0, 4.0]]]])
    assert attention(q, k, v).item() == pytest.approx(0.25 * 8 + 0.75 * 4)
    # d = 4: the same keys in every channel, QᵀK = 4·K, divided by √4 = 2
    wide = attention(q.repeat(1, 4, 1, 1), k.repeat(1, 4, 1, 1) / 2, v.repeat(1, 4, 1, 1))
    torch.testing.assert_close(wide, torch.full((1, 4, 1, 1), 5.0))


def test_every_query_voxel_asks_for_itself() -> None:
    q = torch.tensor([[[[60.0, -60.0], [-60.0, 60.0]]]])  # sharp: each looks at one key
    k, v = torch.tensor([[[[1.0, -1.0]]]]), torch.tensor([[[[3.0, 7.0]]]])
    torch.testing.assert_close(attention(q, k, v), torch.tensor([[[[3.0, 7.0], [7.0, 3.0]]]]))


def test_the_query_comes_from_one_bottleneck_key_and_value_from_the_other() -> None:
    net = make().network
    seen: dict[str, tuple[Tensor, ...]] = {}
    for name in ("query_bottleneck", "key_value_bottleneck", "query", "attention", "attention.key"):
        net.get_submodule(name).register_forward_hook(
            lambda module, inputs, output, name=name: seen.update({name: (*inputs, output)})
        )
    net.get_submodule("attention.value").register_forward_pre_hook(
        lambda module, inputs: seen.update({"attention.value": inputs})
    )
    net(torch.randn(1, 1, 32, 32))
    pooled, z_q = seen["query_bottleneck"]
    same_map, z_kv = seen["key_value_bottleneck"]
    assert same_map is pooled and seen["query"][0] is z_q
    assert seen["attention.key"][0] is z_kv and seen["attention.value"][0] is z_kv
    query, added, other, _ = seen["attention"]
    assert query is seen["query"][1] and added is z_q and other is z_kv


def test_the_query_is_added_and_normalised() -> None:
    block = CrossAttention(Layers(2, NORM), 16)
    torch.nn.init.zeros_(block.out.weight)
    z_q, z_kv, query = torch.randn(3, 2, 16, 4, 4)
    torch.testing.assert_close(block(query, z_q, z_kv), torch.nn.functional.group_norm(z_q, 8))


def test_the_adapter_is_a_residual_block() -> None:
    adapter = SpatialAdapter(Layers(2, NORM), 4)
    torch.nn.init.zeros_(adapter.conv.weight)  # leaves the shortcut: ReLU(norm·conv1·x)
    x = torch.randn(2, 4, 8, 8)
    torch.testing.assert_close(adapter(x), adapter.shortcut(x).relu())


def test_the_private_part_is_the_one_of_the_paper() -> None:
    net = make()
    parts = {name.split(".")[1] for name in private_names(net)}
    assert parts == {"query_bottleneck", "query", "adapter", "head"}
    assert parts <= set(dict(net.network.named_children())), "a name that is no part of it would share it"
    shared = {name.split(".")[1] for name in net.state_dict() if name not in private_names(net)}
    assert shared == {"encoder", "key_value_bottleneck", "attention", "ups", "decoder"}


def test_the_list_of_networks_with_private_parts_is_true() -> None:
    found = []
    for name in names():
        norm = "group" if name == "cowpro_encoder" else "instance"
        params = NetworkParams(name, width=12, norm=norm)
        net = build(params, spatial_dims=2, in_channels=1, out_channels=1, patch_size=(64, 64))
        if private_names(net):
            found.append(name)
    assert tuple(found) == WITH_PRIVATE_PARTS


def test_both_bottlenecks_and_all_else_train() -> None:
    net = make()
    net(torch.randn(2, 1, 32, 32)).logits.square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


@pytest.mark.parametrize("dims", [2, 3])
def test_shapes(dims: int) -> None:
    net = make(dims, dropout=0.5)
    x = torch.randn(1, 1, 40, *[32] * (dims - 1))
    output = net(x)
    assert output.logits.shape == x.shape
    assert output.clean is not None
    assert not torch.equal(output.clean, output.logits)
    assert net.eval()(x).clean is None


def test_a_bottleneck_of_one_token_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"task\.patch_size = \[16, 32\].*at least \[32, 32\]"):
        params = NetworkParams("dca_unet", width=4)
        build(params, spatial_dims=2, in_channels=1, out_channels=1, patch_size=[16, 32])


def test_the_width_is_the_papers_unless_set() -> None:
    with torch.device("meta"):
        assert DcaUNet(2, 1, 1).head.in_channels == 64
