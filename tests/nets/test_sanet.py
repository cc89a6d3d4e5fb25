"""SA-Net: its size, its shapes, and the pieces whose working can be checked by hand."""

from __future__ import annotations

import pytest
import torch

from gossipseg.nets.sanet import Layers, ResidualBlock, SANet, ScaleAttention, SqueezeExcite

INSTANCE = ("instance", {"affine": True})


def parameters(net: torch.nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize(("width", "millions"), [(12, 4.12), (24, 16.5)])
def test_as_many_parameters_as_published(width: int, millions: float) -> None:
    with torch.device("meta"):
        net = SANet(spatial_dims=3, in_channels=2, out_channels=1, width=width)
    assert parameters(net) == pytest.approx(millions * 1e6, rel=0.02)


def test_the_centre_is_never_wider_than_384() -> None:
    with torch.device("meta"):
        assert SANet(2, 1, 2, width=32).centre.conv.out_channels == 384
        assert SANet(2, 1, 2, width=12).centre.conv.out_channels == 192


@pytest.mark.parametrize("dims", [2, 3])
def test_shapes_in_training_and_evaluation(dims: int) -> None:
    net = SANet(dims, in_channels=3, out_channels=4, width=4)
    size = (32, 48, 32)[:dims]
    x = torch.randn(2, 3, *size)
    output = net(x)
    assert output.logits.shape == (2, 4, *size)
    assert [a.shape for a in output.aux] == [(2, 4, *(n // k for n in size)) for k in (2, 4, 8)]
    net.eval()
    with torch.no_grad():
        output = net(x)
    assert output.logits.shape == (2, 4, *size)
    assert (output.aux, output.clean) == ((), None)


def test_every_parameter_learns() -> None:
    # group norm: the mean that squeeze-excite looks at is always the bias after instance norm
    torch.manual_seed(3)
    net = SANet(2, 1, 2, width=16, norm=("group", {"num_groups": 4}))
    output = net(torch.randn(2, 1, 32, 32))
    (output.logits.square().mean() + sum(a.square().mean() for a in output.aux)).backward()
    idle = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert idle == []


def test_convolutions_before_a_norm_have_no_bias() -> None:
    names = [name for name, _ in SANet(2, 1, 2, width=4).named_parameters()]
    biases = [n for n in names if n.endswith("bias") and "norm" not in n]
    heads = ["head.bias", *(f"aux_heads.{s}.bias" for s in range(3))]
    assert sorted(biases) == sorted([*heads, *(f"ups.{s}.conv.bias" for s in range(4))])


def test_clean_logits_are_those_without_dropout() -> None:
    net = SANet(2, 1, 2, width=8, dropout=0.5)
    x = torch.randn(1, 1, 32, 32)
    output = net(x)
    assert output.clean is not None
    assert not output.clean.requires_grad
    assert not torch.equal(output.clean, output.logits)
    net.eval()
    torch.testing.assert_close(output.clean, net(x).logits)
    assert SANet(2, 1, 2, width=8, dropout=0.0)(x).clean is None


def test_squeeze_excite_scales_channels_by_a_sigmoid() -> None:
    block = SqueezeExcite(Layers(2, INSTANCE), channels=8)
    torch.nn.init.zeros_(block.up.weight)
    x = torch.randn(2, 8, 4, 4)
    torch.testing.assert_close(block(x), x / 2)


def test_a_block_that_changes_nothing_passes_the_identity_on() -> None:
    block = ResidualBlock(Layers(2, INSTANCE), 4, 4)
    torch.nn.init.zeros_(block.norm.weight)
    x = torch.rand(1, 4, 8, 8)
    torch.testing.assert_close(block(x), x)


@pytest.mark.parametrize("scale", range(4))
def test_scale_attention_is_a_convex_mixture_of_all_scales(scale: int) -> None:
    attention = ScaleAttention(Layers(2, INSTANCE), widths=[4, 8, 16, 32], scale=scale)
    maps = [torch.randn(1, 4 * 2**s, 64 // 2**s, 64 // 2**s) for s in range(4)]
    here = torch.stack([bring(m) for bring, m in zip(attention.to_scale, maps, strict=True)])
    assert here.shape[1:] == maps[scale].shape
    skip = attention(maps)
    assert (skip <= here.amax(0) + 1e-5).all()
    assert (skip >= here.amin(0) - 1e-5).all()
    for up in attention.up:  # equal votes: the plain mean
        torch.nn.init.zeros_(up.weight)
    torch.testing.assert_close(attention(maps), here.mean(0))


@pytest.mark.parametrize("dims", [2, 3])
def test_channels_last_gives_the_same_step(dims: int) -> None:
    # group norm: after instance norm, squeeze-excite's ReLU starts at exactly 0, where rounding decides
    torch.manual_seed(1)
    norm = ("group", {"num_groups": 2})
    plain, last = (SANet(dims, 1, 2, width=4, dropout=0.0, norm=norm).double() for _ in range(2))
    last.load_state_dict(plain.state_dict())
    memory = torch.channels_last if dims == 2 else torch.channels_last_3d
    last.to(memory_format=memory)
    x = torch.randn(2, 1, *[32] * dims, dtype=torch.float64)
    for net, images in ((plain, x), (last, x.contiguous(memory_format=memory))):
        net(images).logits.square().mean().backward()
    for a, b in zip(plain.parameters(), last.parameters(), strict=True):
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad)


def test_channels_last_steps_do_not_crash() -> None:
    """In float32, where torch 2.13 corrupts memory in a 1×1 convolution of stride 2 (see ResidualBlock)."""
    net = SANet(2, 1, 2, width=8).to(memory_format=torch.channels_last)
    for _ in range(8):
        x = torch.randn(4, 1, 64, 64).contiguous(memory_format=torch.channels_last)
        net(x).logits.square().mean().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("norm", [INSTANCE, ("group", {"num_groups": 4}), ("batch", {})])
def test_a_step_under_autocast_stays_near_that_of_float32(norm: tuple[str, dict[str, object]]) -> None:
    torch.manual_seed(1)
    net = SANet(2, 1, 2, width=8, dropout=0.0, norm=norm)
    x = torch.randn(2, 1, 32, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = net(x)
        output.logits.float().square().mean().backward()
    assert output.logits.dtype == torch.bfloat16
    exact = net(x).logits
    assert (output.logits - exact).abs().mean() < 0.1 * exact.abs().mean()
    assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())
