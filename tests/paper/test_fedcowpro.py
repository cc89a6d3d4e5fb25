"""FedCoWPro, equation by equation (docs/design/equations.md §3), each against values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from gossipseg.algos.base import Outputs, StepContext
from gossipseg.algos.fedcowpro import (
    SCALE,
    Bag,
    FedCoWPro,
    background_prototypes,
    correlation_score,
    edge_dice,
    edges,
    foreground_prototypes,
    normalised,
    predict,
    query_cross_entropy,
    spatial_dice,
    support_cross_entropy,
)
from gossipseg.algos.params import FedCoWProParams
from gossipseg.algos.registry import build

COUNTING = torch.stack([torch.arange(16.0), torch.zeros(16)]).view(1, 2, 4, 4)
LEFT = torch.tensor([1.0, 1.0, 0.0, 0.0]).repeat(4, 1)[None, None]


def kept(bag: Bag) -> list[list[float]]:
    return bag.vectors[0][bag.kept[0]].tolist()


def losses(features: Tensor, target: Tensor) -> tuple[Tensor, dict[str, float]]:
    context = StepContext("softmax", 0, lambda out, target: out.logits.mean())
    found = FedCoWPro().losses({"local": Outputs(features)}, target, context)
    return found.total["local"], {name: float(term) for name, term in found.terms.items()}


# ---------------------------------------------------------------- (1) prototypes


def test_1_windows_inside_the_mask_and_the_masked_mean() -> None:
    # means of the 2×2 windows: 2.5 and 4.5 above, 10.5 and 12.5 below; of the whole left half: 6.5
    assert kept(foreground_prototypes(COUNTING, LEFT, 2)) == [[2.5, 0], [10.5, 0], [6.5, 0]]
    assert kept(background_prototypes(COUNTING, LEFT, 2)) == [[4.5, 0], [12.5, 0]]


@pytest.mark.parametrize(("inside", "belongs"), [(61, True), (60, False)])  # of 64: 0.953 and 0.9375
def test_1_a_window_belongs_where_the_pooled_mask_is_above_095(inside: int, belongs: bool) -> None:
    features = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).view(1, 1, 2, 2)
    mask = (torch.arange(64) < inside).float().view(1, 1, 8, 8)
    window = [[2.5]] if belongs else []
    found = kept(foreground_prototypes(features, mask, 2))
    assert found[:-1] == window
    # 16 pixels a cell; the missing ones are all in the last
    last = inside - 48
    assert found[-1][0] == pytest.approx((16 * (1 + 2 + 3) + last * 4) / inside)


def test_1_the_mask_is_brought_to_the_feature_map_by_area() -> None:
    features = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).view(1, 1, 2, 2)
    mask = torch.zeros(1, 1, 4, 4)
    mask[..., 0, 0] = mask[..., 2, 2] = mask[..., 2, 3] = 1  # a quarter of cell 1, a half of cell 4
    assert kept(foreground_prototypes(features, mask, 2)) == [[pytest.approx((1 * 1 + 2 * 4) / 3)]]


def test_1_an_empty_background_bag_falls_back_to_its_masked_mean() -> None:
    mask = torch.ones(1, 1, 4, 4)
    mask[..., 3, 3] = 0
    assert kept(background_prototypes(COUNTING, mask, 2)) == [[15.0, 0.0]]
    assert kept(background_prototypes(COUNTING, 1 - LEFT, 2)) == [[2.5, 0], [10.5, 0]]


def test_1_each_support_of_a_batch_has_its_own_bag() -> None:
    features, masks = COUNTING.repeat(2, 1, 1, 1), torch.cat([LEFT, 1 - LEFT])
    bag = foreground_prototypes(features, masks, 2)
    assert bag.vectors[0][bag.kept[0]][:, 0].tolist() == [2.5, 10.5, 6.5]
    assert bag.vectors[1][bag.kept[1]][:, 0].tolist() == [4.5, 12.5, 8.5]


def test_1_a_class_without_a_pixel_scores_least_and_never_0() -> None:
    query = torch.randn(1, 2, 4, 4)
    nothing = background_prototypes(COUNTING, torch.ones(1, 1, 4, 4), 2)
    assert not nothing.kept.any()
    assert (correlation_score(query, nothing) == -20).all()
    assert (correlation_score(query, foreground_prototypes(COUNTING, torch.zeros_like(LEFT), 2)) == -20).all()


# ---------------------------------------------------------------- (2), (3) scores


def test_2_vectors_are_centred_over_channels_and_of_length_1() -> None:
    found = normalised(torch.tensor([[1.0, 3.0, 5.0]]), 1)
    assert found[0].tolist() == pytest.approx([-1 / math.sqrt(2), 0, 1 / math.sqrt(2)])
    shifted_and_stretched = normalised(torch.tensor([[17.0, 21.0, 25.0]]), 1)
    assert torch.allclose(found, shifted_and_stretched)


def bag(*vectors: list[float], present: list[bool] | None = None) -> Bag:
    return Bag(torch.tensor([vectors]), torch.tensor([present or [True] * len(vectors)]))


def test_2_a_single_prototype_scores_20_times_the_correlation() -> None:
    q = torch.tensor([1.0, -1.0, 0.0]).view(1, 3, 1, 1)
    for vector, expected in ([2.0, 0, 1], 20), ([0, 2.0, 1], -20), ([0, 1.0, -1], -10), ([1.0, 1, -2], 0):
        assert float(correlation_score(q, bag(vector))) == pytest.approx(expected, abs=1e-4)


def test_3_the_score_is_weighted_by_a_softmax_of_the_correlations() -> None:
    # q~ with p1~ and p2~: cosines 1/2 and −1/2; d = 10 and −10
    q = torch.tensor([1.0, 0.0, -1.0]).view(1, 3, 1, 1)
    low = math.exp(-10) / (math.exp(10) + math.exp(-10))
    found = float(correlation_score(q, bag([1.0, -1, 0], [-1.0, 1, 0])))
    assert found == pytest.approx(10 * (1 - low) - 10 * low)
    assert float(correlation_score(q, bag([1.0, -1, 0], [0.0, 1, -1]))) == pytest.approx(10)


def test_3_equals_the_correlation_with_the_weighted_prototype() -> None:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(1, 5, 2, 2, generator=generator)
    vectors = torch.randn(1, 4, 5, generator=generator)
    found = correlation_score(query, Bag(vectors, torch.ones(1, 4, dtype=torch.bool)))
    q, p = normalised(query, 1)[0].flatten(1).T, normalised(vectors, 2)[0]
    for pixel, score in zip(q, found.flatten(), strict=True):
        a = torch.softmax(SCALE * (p @ pixel), 0)
        assert float(score) == pytest.approx(float(SCALE * pixel @ (a[:, None] * p).sum(0)), abs=1e-4)


def test_3_prototypes_that_are_not_there_have_no_say() -> None:
    q = torch.tensor([1.0, -1.0, 0.0]).view(1, 3, 1, 1)
    both = bag([0.0, 1, -1], [1.0, -1, 0], present=[True, False])
    assert float(correlation_score(q, both)) == pytest.approx(-10)


def test_scores_are_computed_in_float32_and_brought_to_the_size_of_the_mask() -> None:
    features = torch.randn(1, 6, 4, 4).to(torch.bfloat16)
    mask = torch.zeros(1, 1, 32, 32)
    mask[..., :16] = 1
    logits = predict(features, features, mask, 2)
    assert logits.shape == (1, 2, 32, 32)
    assert logits.dtype == torch.float32


# ---------------------------------------------------------------- (4) to (6) losses


def test_4_cross_entropies() -> None:
    logits = torch.tensor([[0.0, 1.0], [0.0, 3.0]]).view(
        1, 2, 1, 2
    )  # background and foreground of two pixels
    mask = torch.tensor([0.0, 1.0]).view(1, 1, 1, 2)
    first, second = math.log(2), math.log(1 + math.exp(-2))
    weighted = (0.05 * first + 1.0 * second) / 1.05
    assert float(query_cross_entropy(logits, mask)) == pytest.approx(weighted)
    assert float(support_cross_entropy(logits, mask)) == pytest.approx((first + second) / 2)


def test_5_spatial_dice() -> None:
    p = torch.tensor([0.5, 0.5, 0.0, 0.0]).view(1, 1, 2, 2)
    y = torch.tensor([1.0, 0.0, 0.0, 0.0]).view(1, 1, 2, 2)
    assert float(spatial_dice(p, y)) == pytest.approx(1 - (2 * 0.5 + 1) / (0.5 + 1 + 1))
    assert float(spatial_dice(y, y)) == 0
    assert float(spatial_dice(0 * y, 0 * y)) == 0
    assert float(spatial_dice(torch.cat([p, y]), torch.cat([y, y]))) == pytest.approx(0.2 / 2)


def test_6_edges_are_sobel_magnitudes_and_a_border_is_none() -> None:
    step = torch.tensor([0.0, 0.0, 1.0, 1.0]).repeat(4, 1)[None, None]
    expected = torch.tensor([0.0, 4.0, 4.0, 0.0]).repeat(4, 1)  # 1 + 2 + 1 on both sides of the step
    assert torch.allclose(edges(step)[0, 0], expected, atol=1e-5)
    assert torch.allclose(edges(step.mT)[0, 0], expected.T, atol=1e-5)
    corner = torch.zeros(1, 1, 3, 3)
    corner[..., 1:, 1:] = 1
    assert float(edges(corner)[0, 0, 1, 1]) == pytest.approx(math.hypot(3, 3))


def test_6_edge_dice() -> None:
    y = torch.tensor([0.0, 0.0, 1.0, 1.0]).repeat(4, 1)[None, None]
    # eight pixels of magnitude 2 in p, 4 in y
    assert float(edge_dice(y / 2, y)) == pytest.approx(1 - (2 * 8 * 8 + 1) / (8 * 4 + 8 * 16 + 1))
    assert float(edge_dice(y, y)) == pytest.approx(0, abs=1e-6)
    assert float(edge_dice(1 - y, y)) == pytest.approx(0, abs=1e-6)  # edges know no side


def test_6_gradient_flows_through_the_edges_also_where_all_is_flat() -> None:
    y = torch.tensor([0.0, 0.0, 1.0, 1.0]).repeat(4, 1)[None, None]
    p = (0.2 + 0.5 * y).requires_grad_()
    edge_dice(p, y).backward()  # type: ignore[no-untyped-call]
    assert p.grad is not None
    assert p.grad[..., 2].max() < 0 < p.grad[..., 1].min()  # a steeper step is better
    flat = torch.full((1, 1, 4, 4), 0.5, requires_grad=True)
    edge_dice(flat, y).backward()  # type: ignore[no-untyped-call]
    assert flat.grad is not None
    assert torch.isfinite(flat.grad).all()


def episode(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 6, 4, 4, generator=generator), torch.cat([LEFT, LEFT.mT])


def test_the_loss_is_the_sum_of_its_three_parts_supports_before_queries() -> None:
    features, masks = episode()
    s, q = features.chunk(2)
    of_query, of_support = predict(q, s, masks[:1]), predict(s, q, masks[1:])
    p = torch.softmax(of_query, 1)[:, 1:]
    cowpro = query_cross_entropy(of_query, masks[1:]) + support_cross_entropy(of_support, masks[:1])
    total, terms = losses(features, masks.long())
    expected = [cowpro, spatial_dice(p, masks[1:]), edge_dice(p, masks[1:])]
    assert list(terms) == ["cowpro", "spatial_dice", "edge_dice"]
    assert list(terms.values()) == pytest.approx([float(term) for term in expected])
    assert float(total) == pytest.approx(sum(terms.values()))


def test_episodes_of_a_batch_do_not_see_each_other() -> None:
    (first, masks), (second, _) = episode(0), episode(1)
    both = torch.cat([first[:1], second[:1], first[1:], second[1:]])
    total, terms = losses(both, masks.repeat_interleave(2, 0).long())
    alone = [losses(features, masks.long())[1] for features in (first, second)]
    assert terms["spatial_dice"] == pytest.approx(sum(one["spatial_dice"] for one in alone) / 2)
    assert terms["cowpro"] == pytest.approx(sum(one["cowpro"] for one in alone) / 2)
    assert torch.isfinite(total)


def test_features_that_tell_the_two_apart_leave_nothing_to_learn() -> None:
    inside, outside = torch.tensor([1.0, -1.0, 0.0]), torch.tensor([-1.0, 1.0, 0.0])
    one = LEFT * inside.view(1, 3, 1, 1) + (1 - LEFT) * outside.view(1, 3, 1, 1)
    total, _ = losses(torch.cat([one, one]), torch.cat([LEFT, LEFT]).long())
    assert float(total) == pytest.approx(0, abs=1e-5)


def test_every_part_moves_the_features() -> None:
    features, masks = episode()
    features = (0.05 * features).requires_grad_()  # small differences: scores are not saturated
    losses(features, masks.long())[0].backward()  # type: ignore[no-untyped-call]
    assert features.grad is not None
    assert torch.isfinite(features.grad).all()
    assert (features.grad.flatten(1).abs().sum(1) > 0).all(), "support and query both learn"


# ---------------------------------------------------------------- aggregation


class Sent:
    def __init__(self, site: str, cases: int, value: float) -> None:
        self.site, self.cases, self.names = site, cases, ["w"]
        self._value = value

    def tensor(self, name: str) -> Tensor:
        return torch.tensor([self._value])


@pytest.mark.parametrize(("params", "expected"), [({}, 2.0), ({"weighting": "cases"}, 2.5)])
def test_models_are_averaged_as_in_fedavg_uniformly_unless_said_otherwise(
    params: dict[str, str], expected: float
) -> None:
    algorithm = build(FedCoWProParams(**params))  # type: ignore[arg-type]
    combined = algorithm.aggregate([Sent("ct", 30, 3.0), Sent("mr", 10, 1.0)], 1)
    assert {name: float(t) for name, t in combined.tensors} == {"w": expected}
