"""The controls beside GCML: `local` and `gossip_average`; the average they stand on; what travels."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gossipseg.algos.average import merged, weighted_average
from gossipseg.algos.base import Algorithm, Outputs, StepContext
from gossipseg.algos.gcml import Gcml
from gossipseg.algos.gossip_average import GossipAverage
from gossipseg.algos.local import Local
from gossipseg.algos.params import (
    FedBnParams,
    GcmlParams,
    GossipAverageParams,
    LocalParams,
)
from gossipseg.algos.registry import build

NORMS = frozenset({"block.norm.weight", "block.norm.bias"})
NAMES = [
    "block.conv.weight",
    "block.norm.weight",
    "block.norm.bias",
    "block.norm.running_mean",
    "block.norm.running_var",
    "block.norm.num_batches_tracked",
]


# ---------------------------------------------------------------- the average


def test_an_average_is_weighted_by_what_was_received() -> None:
    models = [
        {"w": torch.tensor([1.0, 0.0])},
        {"w": torch.tensor([4.0, 6.0])},
        {"w": torch.tensor([7.0, 3.0])},
    ]
    # (10·1 + 30·4) / 40 and (10·0 + 30·6) / 40: a model that did not come has no share
    assert weighted_average(models[:2], [10, 30])["w"].tolist() == [3.25, 4.5]
    assert weighted_average(models, [1, 1, 2])["w"].tolist() == [4.75, 3.0]


def test_half_precision_is_averaged_in_float32() -> None:
    # in float16, 2048 + 1 is 2048: a running sum would lose every one of the ones
    ones = [{"w": torch.tensor([1.0], dtype=torch.float16)} for _ in range(4095)]
    big = {"w": torch.tensor([2048.0], dtype=torch.float16)}
    found = weighted_average([big, *ones], [1.0] * 4096)["w"]
    assert found.dtype == torch.float16
    assert found.item() == pytest.approx((2048 + 4095) / 4096, rel=1e-3)


def test_double_precision_stays_double() -> None:
    tiny = torch.tensor([1.0 + 1e-12], dtype=torch.float64)
    assert weighted_average([{"w": tiny}, {"w": tiny}], [1, 3])["w"].item() == tiny.item()


def test_counters_are_copied_never_averaged() -> None:
    models = [{"n": torch.tensor([3, 5])}, {"n": torch.tensor([100, 100])}]
    assert weighted_average(models, [1, 1])["n"].tolist() == [3, 5]


def test_an_average_is_a_copy() -> None:
    model = {"w": torch.tensor([1.0], requires_grad=True), "n": torch.tensor([1])}
    found = weighted_average([model], [1])
    assert not found["w"].requires_grad
    found["w"][0], found["n"][0] = 9.0, 9
    assert (model["w"].item(), model["n"].item()) == (1.0, 1)


@pytest.mark.parametrize(
    ("models", "weights", "message"),
    [
        ([], [], "at least one"),
        ([{"w": torch.ones(1)}], [1, 2], "one weight for each"),
        ([{"w": torch.ones(1)}] * 2, [0, 0], "not all zero"),
        ([{"w": torch.ones(1)}] * 2, [2, -1], "not negative"),
        ([{"w": torch.ones(1)}] * 2, [1, float("nan")], "finite"),
        ([{"w": torch.ones(1)}, {"v": torch.ones(1)}], [1, 1], "in one model"),
        ([{"w": torch.ones(1)}, {"w": torch.ones(2)}], [1, 1], r"\(1,\) in one, \(2,\)"),
    ],
)
def test_what_cannot_be_averaged_is_refused(models: list, weights: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        weighted_average(models, weights)


def test_a_merge_needs_every_shared_tensor() -> None:
    local = {"a": torch.ones(1), "b": torch.ones(1)}
    with pytest.raises(ValueError, match="lacks b"):
        merged(local, {"a": torch.ones(1)}, lambda name: True)
    found = merged(local, {"a": torch.zeros(1), "x": torch.ones(1)}, "a".__eq__)
    assert {name: tensor.item() for name, tensor in found.items()} == {"a": 0.5, "b": 1.0}


def test_a_merge_needs_tensors_of_one_shape() -> None:
    with pytest.raises(ValueError, match=r"\(2,\) in one"):
        merged({"a": torch.ones(2)}, {"a": torch.ones(1)}, lambda _: True)


# ---------------------------------------------------------------- the controls


def seg(outputs: Outputs, target: torch.Tensor) -> torch.Tensor:
    return (outputs.logits - target).square().mean()


def test_local_exchanges_nothing() -> None:
    algorithm = Local()
    assert not algorithm.exchanges
    weights = {"w": torch.ones(1)}
    assert algorithm.on_arrival(weights, weights) is None


def test_gossip_average_averages_at_arrival() -> None:
    algorithm = GossipAverage()
    assert algorithm.exchanges
    local, incoming = {"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([3.0, 8.0])}
    found = algorithm.on_arrival(local, incoming)
    assert found is not None
    assert found["w"].tolist() == [2.0, 5.0]


@pytest.mark.parametrize("algorithm", [Local(), GossipAverage(), Gcml(GcmlParams())])
def test_alone_every_algorithm_has_the_same_loss(algorithm: Algorithm) -> None:
    z = torch.tensor([[[1.0, 3.0]]], requires_grad=True)
    losses = algorithm.losses(
        {"local": Outputs(z)},
        torch.zeros(1, 1, 2),
        StepContext("sigmoid", since_exchange=9, segmentation_loss=seg),
    )
    assert losses.total["local"].item() == losses.terms["seg"].item() == 5.0
    losses.total["local"].backward()
    assert z.grad.tolist() == [[[1.0, 3.0]]]  # type: ignore[union-attr]


# ---------------------------------------------------------------- what travels


@pytest.mark.parametrize("params", [GcmlParams(), GossipAverageParams(), LocalParams()])
def test_running_statistics_stay_at_the_site(params: Any) -> None:
    algorithm = build(params, NORMS)
    assert algorithm.name == params.name
    assert [n for n in NAMES if algorithm.is_shared(n)] == NAMES[:3]


def test_under_fedbn_norms_stay_too() -> None:
    algorithm = build(FedBnParams(), NORMS)
    assert [n for n in NAMES if algorithm.is_shared(n)] == NAMES[:1]
    # by exact name: another layer that happens to be called alike travels
    assert algorithm.is_shared("other.norm.weight")
