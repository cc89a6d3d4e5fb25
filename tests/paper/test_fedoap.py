"""FedOAP, equation by equation: what travels, and the fine-tuning with the perturbed boundary loss."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from gossipseg.algos.base import Outputs, StepContext, StepPosition, Weights
from gossipseg.algos.fedoap import FedOap, boundary, noise
from gossipseg.algos.params import FedOapParams
from gossipseg.algos.registry import build
from gossipseg.errors import ConfigError
from gossipseg.nets import registry
from gossipseg.nets.params import NetworkParams

RHO = frozenset({"head.weight", "head.bias"})
FINETUNING = StepPosition(round=9, finetuning=True)


@dataclass
class Sent:
    """An update in memory."""

    site: str
    cases: int
    tensors: Mapping[str, Tensor]
    names: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self.names = sorted(self.tensors)

    def tensor(self, name: str) -> Tensor:
        return self.tensors[name].clone()


def fedoap(**settings: Any) -> FedOap:
    return FedOap(FedOapParams(**settings), RHO)


def mean_of_logits(outputs: Outputs, target: Tensor) -> Tensor:
    """An L_seg that shows its argument."""
    return outputs.logits.mean()


def bce(outputs: Outputs, target: Tensor) -> Tensor:
    return torch.nn.functional.binary_cross_entropy_with_logits(outputs.logits, target)


def context(moment: StepPosition | None = FINETUNING, seed: int = 1, **more: Any) -> StepContext:
    settings = {"output": "sigmoid", "since_exchange": None, "segmentation_loss": mean_of_logits, **more}
    return StepContext(**settings, moment=moment, noise_seed=seed)


# ---------------------------------------------------------------- (1): what travels


def test_equation_1_and_nothing_of_rho() -> None:
    algorithm = fedoap()
    local = {"body.weight": torch.tensor([2.0]), "head.weight": torch.tensor([5.0])}
    one = algorithm.update_of(local, {})
    two = {name: tensor + 4 for name, tensor in one.items()}
    combined = algorithm.aggregate([Sent("a", 10, one), Sent("b", 30, two)], round=1)
    assert {n: t.tolist() for n, t in combined.tensors} == {"body.weight": [(10 * 2 + 30 * 6) / 40]}


def test_rho_is_never_overwritten() -> None:
    local = {"body.weight": torch.tensor([2.0]), "head.weight": torch.tensor([5.0])}
    common = {"body.weight": torch.tensor([7.0]), "head.weight": torch.tensor([9.0])}
    loaded = fedoap().on_global(local, common)
    assert {n: t.item() for n, t in loaded.items()} == {"body.weight": 7.0, "head.weight": 5.0}


def test_of_the_real_network_only_gamma_travels() -> None:
    net = registry.build(
        NetworkParams("dca_unet", width=2), spatial_dims=2, in_channels=1, out_channels=1, patch_size=(32, 32)
    )
    private = registry.private_names(net)
    algorithm = build(FedOapParams(), private_names=private)
    local = net.state_dict()
    sent = algorithm.update_of(local, {})
    assert private and set(sent) == set(local) - private
    assert not any(
        part in name for name in sent for part in ("query_bottleneck", "query.", "adapter", "head")
    )
    wire = dict(algorithm.aggregate([Sent("a", 1, sent), Sent("b", 1, sent)], 1).tensors)
    assert set(wire) == set(sent)
    loaded = algorithm.on_global(local, {n: t + 1 for n, t in local.items()})
    assert all(torch.equal(loaded[n], local[n]) == (n in private) for n in local)


def test_a_network_without_private_parts_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"network\.name.*dca_unet"):
        build(FedOapParams())


def test_a_late_joiner_first_trains_rho_alone() -> None:
    algorithm = fedoap()
    names = ["body.weight", "head.weight", "head.bias"]
    late, settled = StepPosition(round=1, settling_in=True), StepPosition(round=2)
    assert [algorithm.is_frozen(n, late) for n in names] == [True, False, False]
    assert not any(algorithm.is_frozen(n, settled) for n in names)


def test_the_best_of_the_finetuning_is_kept() -> None:
    assert FedOap.keeps_best_finetuned and not FedOap.needs_anchor


# ---------------------------------------------------------------- (2): the boundary


def test_equation_2_sigmoid() -> None:
    # p = 0.2, 0.3 where y = 1: |p − y| = 0.8, 0.7; p = 0.8, 0.7 where y = 0 the same
    z = torch.tensor([0.2, 0.3, 0.8, 0.7]).logit().reshape(1, 1, 2, 2)
    y = torch.tensor([1.0, 1.0, 0.0, 0.0]).reshape(1, 1, 2, 2)
    assert boundary(z, y, "sigmoid", 0.75).flatten().tolist() == [True, False, True, False]
    assert not boundary(z, y, "sigmoid", 0.85).any()


def test_equation_2_softmax() -> None:
    # p = (0.7, 0.1, 0.2): |p − y| of the true label is 0.3, 0.9, 0.8 for the labels 0, 1, 2
    z = torch.tensor([0.7, 0.1, 0.2]).log().reshape(1, 3, 1, 1).expand(1, 3, 1, 3)
    y = torch.tensor([0, 1, 2]).reshape(1, 1, 1, 3)
    assert boundary(z, y, "softmax", 0.75).flatten().tolist() == [False, True, True]
    assert boundary(z, y, "softmax", 0.85).flatten().tolist() == [False, True, False]


def test_two_classes_of_a_softmax_are_one_of_a_sigmoid() -> None:
    z, y = torch.randn(2, 1, 8, 8) * 3, torch.randint(0, 2, (2, 1, 8, 8))
    both = torch.cat([torch.zeros_like(z), z], dim=1)
    assert torch.equal(boundary(both, y, "softmax", 0.75), boundary(z, y.float(), "sigmoid", 0.75))


# ---------------------------------------------------------------- (3): the noise


def test_equation_3() -> None:
    z = torch.zeros(4, 1, 100, 100)
    eps = noise(z, 0.1, seed=3)
    assert eps.std().item() == pytest.approx(0.1, rel=0.02)
    assert eps.mean().item() == pytest.approx(0.0, abs=2e-3)
    assert torch.equal(eps, noise(z, 0.1, seed=3)), "the same after a resume"
    assert not torch.equal(eps, noise(z, 0.1, seed=4)), "fresh each step"


def test_other_random_numbers_stay_as_they_were() -> None:
    before = torch.get_rng_state()
    z, y = torch.full((1, 1, 2, 2), 9.0), torch.zeros(1, 1, 2, 2)
    fedoap().losses({"local": Outputs(z)}, y, context())
    assert torch.equal(torch.get_rng_state(), before)


def test_only_wrong_voxels_are_perturbed() -> None:
    z = torch.tensor([[[[9.0, -9.0]]]])
    y = torch.zeros(1, 1, 1, 2)  # the first is wrong
    seen = []

    def keep(outputs: Outputs, target: Tensor) -> Tensor:
        seen.append(outputs.logits.clone())
        return outputs.logits.mean()

    fedoap(sigma=1.0).losses({"local": Outputs(z)}, y, context(segmentation_loss=keep))
    clean, perturbed = seen
    assert torch.equal(clean, z)
    torch.testing.assert_close(perturbed, z + noise(z, 1.0, 1) * torch.tensor([1.0, 0.0]))


def test_auxiliary_heads_weigh_in_both_terms() -> None:
    heads = []

    def keep(outputs: Outputs, target: Tensor) -> Tensor:
        heads.append(outputs.aux)
        return outputs.logits.mean()

    z = torch.zeros(1, 1, 2, 2)
    fedoap().losses({"local": Outputs(z, (z,))}, z, context(segmentation_loss=keep))
    assert [len(aux) for aux in heads] == [1, 1]


# ---------------------------------------------------------------- (4): the loss


def test_equation_4() -> None:
    z, y = torch.full((1, 1, 2, 2), 9.0), torch.zeros(1, 1, 2, 2)  # all wrong
    eps = noise(z, 0.5, seed=1)
    losses = fedoap(lambda_=0.25, sigma=0.5).losses({"local": Outputs(z)}, y, context())
    # L_seg is the mean of the logits here: 0.75·9 + 0.25·(9 + mean ε)
    expected = 0.75 * 9 + 0.25 * (9 + eps.mean().item())
    assert losses.total["local"].item() == pytest.approx(expected)
    assert losses.terms["seg"].item() == 9
    assert losses.terms["perturbed"].item() == pytest.approx(9 + eps.mean().item())
    assert losses.terms["wrong"].item() == 1


def test_the_gradient_is_the_one_of_both_terms() -> None:
    z = torch.tensor([[[[3.0, -2.0]]]], requires_grad=True)
    y = torch.zeros(1, 1, 1, 2)
    lambda_, sigma = 0.4, 1.0
    total = fedoap(lambda_=lambda_, sigma=sigma).losses(
        {"local": Outputs(z)}, y, context(segmentation_loss=bce)
    )
    total.total["local"].backward()
    # d BCE/dz = (σ(z) − y)/2 for two voxels; the first one (p = 0.95) is perturbed
    moved = 3.0 + noise(z.detach(), sigma, 1).flatten()[0].item()
    s = lambda v: 1 / (1 + math.exp(-v))  # noqa: E731
    first = ((1 - lambda_) * s(3.0) + lambda_ * s(moved)) / 2
    assert z.grad is not None
    torch.testing.assert_close(z.grad.flatten(), torch.tensor([first, s(-2.0) / 2]))


def steps(lambda_: float, moment: StepPosition | None, **settings: Any) -> Iterator[Weights]:
    """Weights of a small network over three steps."""
    torch.manual_seed(0)
    net = torch.nn.Conv2d(1, 1, 3, padding=1)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
    x, y = torch.randn(2, 1, 8, 8), torch.randint(0, 2, (2, 1, 8, 8)).float()
    for step in range(3):
        where = context(moment, seed=step, segmentation_loss=bce)
        losses = fedoap(lambda_=lambda_, tau=0.3, **settings).losses({"local": Outputs(net(x))}, y, where)
        optimizer.zero_grad()
        losses.total["local"].backward()
        optimizer.step()
        yield {name: tensor.detach().clone() for name, tensor in net.state_dict().items()}


def same(a: Iterator[Weights], b: Iterator[Weights]) -> bool:
    return all(all(torch.equal(x[n], y[n]) for n in x) for x, y in zip(a, b, strict=True))


def test_lambda_0_is_plain_finetuning_bit_for_bit() -> None:
    assert same(steps(0.0, FINETUNING), steps(0.5, StepPosition(round=1)))
    assert same(steps(0.0, FINETUNING, sigma=9.0), steps(0.0, None))
    assert not same(steps(0.5, FINETUNING), steps(0.0, FINETUNING)), "or the test shows nothing"


def test_lambda_0_costs_nothing() -> None:
    calls = []

    def count(outputs: Outputs, target: Tensor) -> Tensor:
        calls.append(1)
        return outputs.logits.mean()

    z = torch.zeros(1, 1, 2, 2)
    losses = fedoap(lambda_=0.0).losses({"local": Outputs(z)}, z, context(segmentation_loss=count))
    assert len(calls) == 1 and set(losses.terms) == {"seg"}


def test_before_the_finetuning_nothing_is_perturbed() -> None:
    assert same(steps(0.9, StepPosition(round=1)), steps(0.0, None))


def test_without_noise_both_terms_are_one() -> None:
    z, y = torch.randn(1, 1, 4, 4), torch.zeros(1, 1, 4, 4)
    plain = fedoap(sigma=0.0, lambda_=0.3).losses({"local": Outputs(z)}, y, context(segmentation_loss=bce))
    torch.testing.assert_close(plain.total["local"], bce(Outputs(z), y))


def test_softmax_outputs_are_finetuned_too() -> None:
    z = torch.tensor([[9.0, -9.0], [0.0, 0.0]]).reshape(1, 2, 1, 2)  # label 1: the first voxel is wrong
    y = torch.ones(1, 1, 1, 2, dtype=torch.long)
    seen = []

    def keep(outputs: Outputs, target: Tensor) -> Tensor:
        seen.append(outputs.logits.clone())
        return torch.nn.functional.cross_entropy(outputs.logits, target[:, 0])

    fedoap().losses({"local": Outputs(z)}, y, context(output="softmax", segmentation_loss=keep))
    changed = (seen[1] != seen[0])[0, :, 0]
    assert changed.tolist() == [[True, False], [True, False]]
