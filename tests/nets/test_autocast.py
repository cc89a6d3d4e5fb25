"""Gradients under autocast, with dropout: the first call of a layer decides what later ones are handed.

torch before late 2025 kept a cast that was made under no_grad, without history, for the rest of the context.
A newer one hides that mistake: the order of the calls is looked at beside the gradients.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from gossipseg.nets.params import NetworkParams
from gossipseg.nets.registry import build, names
from gossipseg.nets.segmenter import Segmenter

SIZE = 64
WITH_A_CLEAN_HEAD = ("sanet", "dca_unet")


def network(name: str) -> Segmenter:
    torch.manual_seed(4)
    norm = "group" if name == "cowpro_encoder" else "instance"
    params = NetworkParams(name, width=12, dropout=0.3, norm=norm)
    return build(params, spatial_dims=2, in_channels=1, out_channels=2, patch_size=(SIZE, SIZE))


def first_calls(net: nn.Module) -> dict[str, bool]:
    """Each layer with weights → whether its first call from now on is one with gradients."""
    seen: dict[str, bool] = {}

    def note(name: str) -> None:
        seen.setdefault(name, torch.is_grad_enabled())

    for name, layer in net.named_modules():
        if next(layer.parameters(recurse=False), None) is not None:
            layer.register_forward_pre_hook(lambda *_, name=name: note(name))
    return seen


def one_pass(net: Segmenter) -> Tensor:
    """Logits, and what a partner is shown, as the training step has them; a loss of the former."""
    x = torch.randn(2, 1, SIZE, SIZE)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = net(x)
        assert output.logits.dtype is torch.bfloat16
        assert not net.clean_logits(x, output).requires_grad
    return output.logits.float().square().mean() + sum(a.float().square().mean() for a in output.aux)


@pytest.mark.parametrize("name", names())
def test_every_layer_is_called_with_gradients_first_and_gets_one(name: str) -> None:
    net = network(name)
    calls = first_calls(net)
    one_pass(net).backward()
    assert calls and [layer for layer, with_gradients in calls.items() if not with_gradients] == []
    assert [n for n, p in net.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("name", WITH_A_CLEAN_HEAD)
def test_a_head_that_is_called_twice_learns(name: str) -> None:
    net = network(name)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        net(torch.randn(2, 1, SIZE, SIZE))  # a validation's cast ends with its context
    one_pass(net).backward()
    grads = [p.grad for p in net.network.head.parameters()]  # type: ignore[union-attr]
    assert len(grads) == 2 and all(g is not None and g.abs().max() > 0 for g in grads)


def test_the_list_of_networks_with_a_clean_head_is_true() -> None:
    x = torch.randn(2, 1, SIZE, SIZE)
    assert {n for n in names() if network(n)(x).clean is not None} == set(WITH_A_CLEAN_HEAD)
