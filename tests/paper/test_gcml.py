"""GCML, equation by equation (numbers as in gossipseg/algos/gcml.py), and its limits.

Every expected value was worked out by hand from the probabilities in the comments beside it.
"""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gossipseg.algos.base import Losses, Outputs, StepContext
from gossipseg.algos.gcml import Gcml, feature_contrast, lambda_of, mutual_terms
from gossipseg.algos.params import GcmlParams
from gossipseg.algos.params.common import settings as common_settings
from gossipseg.algos.terms import (
    bernoulli_kl,
    categorical_kl,
    class_regions,
    info_nce,
    label_log_odds,
    region_features,
)


def bernoulli(*p: float, channels: int = 1) -> Tensor:
    """Logits (1, C, V) of these probabilities, channel after channel."""
    return torch.logit(torch.tensor(p, dtype=torch.float64)).float().reshape(1, channels, -1)


def categorical(*p: tuple[float, ...]) -> Tensor:
    """Logits (1, C, V) of one tuple of class probabilities for each voxel."""
    return torch.tensor(p, dtype=torch.float64).log().float().T.unsqueeze(0)


def seg_sigmoid(outputs: Outputs, target: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(outputs.logits, target.float())


def seg_softmax(outputs: Outputs, target: Tensor) -> Tensor:
    return F.cross_entropy(outputs.logits, target[:, 0].long())


def context(output: str, since: int | None = 5) -> StepContext:
    return StepContext(output, since, seg_sigmoid if output == "sigmoid" else seg_softmax)  # type: ignore[arg-type]


def terms_of(m: Tensor, n: Tensor, y: Tensor, output: str, **params: object) -> tuple[float, float]:
    found = mutual_terms(Outputs(m), Outputs(n), y, output, GcmlParams(**params))  # type: ignore[arg-type]
    return found.l_pos.item(), found.l_neg.item()


# the sigmoid example:        both right   n wrong, m right   both right, outside   n right, m wrong
SIGMOID_M = bernoulli(0.8, 0.4, 0.3, 0.6)
SIGMOID_N = bernoulli(0.6, 0.9, 0.2, 0.25)
SIGMOID_Y = torch.tensor([[[1.0, 0.0, 0.0, 0.0]]])
# KL(.6‖.8) = .104650;  δ − KL(.9‖.4) = 1 − .550661;  KL(.2‖.3) = .025732;  KL(.25‖.6) = .252589
PULLS, PUSH, PULL_OUTSIDE = (0.104650, 0.252589), 0.449339, 0.025732

# the softmax example: both right; n wrong, m right; the same, but q_n > q_m; background, both right
SOFTMAX_M = categorical((0.2, 0.7, 0.1), (0.5, 0.3, 0.2), (0.4, 0.3, 0.3), (0.8, 0.1, 0.1))
SOFTMAX_N = categorical((0.1, 0.6, 0.3), (0.2, 0.7, 0.1), (0.45, 0.5, 0.05), (0.6, 0.3, 0.1))
SOFTMAX_Y = torch.tensor([[[1, 0, 0, 0]]])
# KL((.1,.6,.3)‖(.2,.7,.1)) = .167779;  1 − KL(.2‖.5) = 1 − .192745;  no push;  KL outside = .156975
SOFTMAX_PULL, SOFTMAX_PUSH, SOFTMAX_PULL_OUTSIDE = 0.167779, 0.807255, 0.156975


# ---------------------------------------------------------------- the divergences


def test_bernoulli_kl_by_hand() -> None:
    # .6·ln(.6/.8) + .4·ln(.4/.2) = −.172609 + .277259
    assert bernoulli_kl(bernoulli(0.6), bernoulli(0.8)).item() == pytest.approx(0.104650, abs=1e-6)


def test_categorical_kl_by_hand() -> None:
    # .1·ln(.1/.2) + .6·ln(.6/.7) + .3·ln(.3/.1) = −.069315 − .092490 + .329584
    found = categorical_kl(categorical((0.1, 0.6, 0.3)), categorical((0.2, 0.7, 0.1)))
    assert found.shape == (1, 1, 1)
    assert found.item() == pytest.approx(0.167779, abs=1e-6)


def test_label_log_odds_are_those_of_the_labels_probability() -> None:
    found = label_log_odds(categorical((0.1, 0.6, 0.3)), torch.tensor([[[1]]]))
    assert found.sigmoid().item() == pytest.approx(0.6)
    assert (-found).sigmoid().item() == pytest.approx(0.4)


@pytest.mark.parametrize("size", [80.0, 1e4, 1e30])
def test_divergences_keep_their_gradient_far_from_the_partner(size: float) -> None:
    q = torch.full((1, 2, 1), 0.0)
    q[0, 0, 0] = size
    q.requires_grad_()
    far = torch.tensor([[[0.0], [size]]])
    label = torch.zeros(1, 1, 1, dtype=torch.long)
    for value in (
        bernoulli_kl(-far.flip(1) - 1, q).sum(),
        categorical_kl(far, q).sum(),
        bernoulli_kl(label_log_odds(far, label), label_log_odds(q, label)).sum(),
    ):
        (gradient,) = torch.autograd.grad(value, q)
        assert value.isfinite()
        assert gradient.isfinite().all()
        assert gradient.abs().max() > 0.1


def test_half_precision_logits_are_judged_in_float32() -> None:
    half = mutual_terms(
        Outputs(SIGMOID_M.half()), Outputs(SIGMOID_N.half()), SIGMOID_Y, "sigmoid", GcmlParams()
    )
    assert half.l_pos.dtype == half.l_neg.dtype == torch.float32


# ---------------------------------------------------------------- (1)–(4)


@pytest.mark.parametrize(
    ("region", "l_pos", "l_neg"),
    [
        ("union", sum(PULLS) / 3, PUSH / 3),
        ("label", PULLS[0] / 1, 0.0),
        ("whole", (sum(PULLS) + PULL_OUTSIDE) / 4, PUSH / 4),
    ],
)
def test_equations_1_to_4_for_sigmoid_networks(region: str, l_pos: float, l_neg: float) -> None:
    found = terms_of(SIGMOID_M, SIGMOID_N, SIGMOID_Y, "sigmoid", region=region)
    assert found == pytest.approx((l_pos, l_neg), abs=1e-6)


@pytest.mark.parametrize(
    ("region", "l_pos", "l_neg"),
    [
        ("union", SOFTMAX_PULL / 3, SOFTMAX_PUSH / 3),
        ("label", SOFTMAX_PULL / 1, 0.0),
        ("whole", (SOFTMAX_PULL + SOFTMAX_PULL_OUTSIDE) / 4, SOFTMAX_PUSH / 4),
    ],
)
def test_equations_1_to_4_for_softmax_networks(region: str, l_pos: float, l_neg: float) -> None:
    found = terms_of(SOFTMAX_M, SOFTMAX_N, SOFTMAX_Y, "softmax", region=region)
    assert found == pytest.approx((l_pos, l_neg), abs=1e-6)


def test_equation_1_takes_in_false_alarms_of_either_model() -> None:
    quiet, alarm, y = bernoulli(0.1, 0.1), bernoulli(0.1, 0.7), torch.zeros(1, 1, 2)
    # Ω is the one voxel of the alarm: as learner the quiet model is pushed, the other one pulled
    _, push = terms_of(quiet, alarm, y, "sigmoid", delta_nats=2.0)
    pull, _ = terms_of(alarm, quiet, y, "sigmoid")
    assert push == pytest.approx(2 - (0.7 * math.log(7) + 0.3 * math.log(0.3 / 0.9)), abs=1e-6)
    assert pull == pytest.approx(0.1 * math.log(1 / 7) + 0.9 * math.log(3), abs=1e-6)


def test_equation_3_leaves_voxels_alone_where_both_are_wrong() -> None:
    m, n, y = bernoulli(0.4, 0.6), bernoulli(0.2, 0.9), torch.tensor([[[1.0, 0.0]]])
    assert terms_of(m, n, y, "sigmoid") == (0.0, 0.0)


def test_equation_3_ends_at_the_margin() -> None:
    # KL(.9‖.4) = .550661: beyond a margin of half a nat there is no push left, and no gradient
    m = SIGMOID_M.clone().requires_grad_()
    found = mutual_terms(
        Outputs(m), Outputs(SIGMOID_N), SIGMOID_Y, "sigmoid", GcmlParams(delta_nats=0.5)
    ).l_neg
    assert found.item() == 0
    assert torch.autograd.grad(found, m)[0].abs().max() == 0


def test_equation_4_divides_by_a_hundredth_of_the_voxels_at_least() -> None:
    y = torch.zeros(1, 1, 400)
    y[..., 0] = 1
    m, n = bernoulli(0.8, *[0.1] * 399), bernoulli(0.6, *[0.1] * 399)
    assert terms_of(m, n, y, "sigmoid") == pytest.approx((0.104650 / 4, 0.0), abs=1e-6)
    # with a second channel that has an empty Ω, |V| is still that of one channel: half of it by the mean
    m, n, y = (
        torch.cat([x, fill], 1) for x, fill in ((m, m[..., 1:2].expand_as(m)), (n, -3 + 0 * n), (y, 0 * y))
    )
    assert terms_of(m, n, y, "sigmoid") == pytest.approx((0.104650 / 8, 0.0), abs=1e-6)


def test_equation_4_is_per_channel_over_the_batch() -> None:
    def stack(x: Tensor) -> Tensor:
        """Voxels 0–1 and 2–3 as two images of a batch, and the same once more as a second channel."""
        one = torch.cat([x[..., :2], x[..., 2:]])
        return torch.cat([one, one], dim=1)

    m, n, y = stack(SIGMOID_M), stack(SIGMOID_N), stack(SIGMOID_Y)
    m[:, 1], n[:, 1], y[:, 1] = -5, -5, 0
    # the second channel's Ω is empty: it adds nothing, and the mean over channels halves the first one's
    assert terms_of(m, n, y, "sigmoid") == pytest.approx((sum(PULLS) / 6, PUSH / 6), abs=1e-6)


@pytest.mark.parametrize("output", ["sigmoid", "softmax"])
def test_empty_sets_give_zero_with_finite_gradients(output: str) -> None:
    m = torch.tensor([[[4.0, 5.0], [-4.0, -5.0]]]) * (-1 if output == "sigmoid" else 1)
    if output == "sigmoid":
        m[:, 1] = -3
    m.requires_grad_()
    y = torch.zeros(1, 2 if output == "sigmoid" else 1, 2)
    found = mutual_terms(Outputs(m), Outputs(m.detach() * 0.5), y, output, GcmlParams())  # type: ignore[arg-type]
    assert found.l_pos.item() == found.l_neg.item() == 0
    (gradient,) = torch.autograd.grad(found.l_pos + found.l_neg, m)
    assert (gradient == 0).all()


def test_the_partner_is_judged_and_imitated_with_its_dropout_off() -> None:
    shown = mutual_terms(
        Outputs(SIGMOID_M), Outputs(-SIGMOID_N, clean=SIGMOID_N), SIGMOID_Y, "sigmoid", GcmlParams()
    )
    assert shown.l_pos.item() == pytest.approx(sum(PULLS) / 3, abs=1e-6)


# ---------------------------------------------------------------- (5) and (6)


def step(params: GcmlParams, since: int | None = 5) -> tuple[Losses, Tensor, Tensor]:
    m, n = SIGMOID_M.clone().requires_grad_(), SIGMOID_N.clone().requires_grad_()
    outputs = {"local": Outputs(m), "personal": Outputs(n)}
    return Gcml(params).losses(outputs, SIGMOID_Y, context("sigmoid", since)), m, n  # type: ignore[arg-type]


def test_equation_5_for_both_models() -> None:
    losses, m, n = step(GcmlParams(lambda_=0.2, gamma=0.5, mutual="both"))
    seg = seg_sigmoid(Outputs(m), SIGMOID_Y).item()
    expected = seg + 0.2 * (sum(PULLS) / 3 + 0.5 * PUSH / 3)
    assert losses.total["local"].item() == pytest.approx(expected, abs=1e-6)
    # the other way round: m is right at voxels 0 and 1 of Ω, wrong at voxel 3, where n is right
    pulls = 0.8 * math.log(0.8 / 0.6) + 0.2 * math.log(0.2 / 0.4)
    pulls += 0.4 * math.log(0.4 / 0.9) + 0.6 * math.log(0.6 / 0.1)
    push = 1 - (0.6 * math.log(0.6 / 0.25) + 0.4 * math.log(0.4 / 0.75))
    expected = seg_sigmoid(Outputs(n), SIGMOID_Y).item() + 0.2 * (pulls / 3 + 0.5 * push / 3)
    assert losses.total["personal"].item() == pytest.approx(expected, abs=1e-6)
    assert losses.terms["pull"].item() == pytest.approx(sum(PULLS) / 3, abs=1e-6)
    assert losses.terms["push"].item() == pytest.approx(PUSH / 3, abs=1e-6)
    assert losses.terms["personal_push"].item() == pytest.approx(push / 3, abs=1e-6)
    # where both are right within Ω, m gives the label .8
    assert losses.terms["confidence"].item() == pytest.approx(0.8, abs=1e-6)
    assert all(not term.requires_grad for term in losses.terms.values())


def test_the_partner_gets_no_gradient() -> None:
    losses, m, n = step(GcmlParams(lambda_=1.0, gamma=1.0, mutual="both"))
    losses.total["local"].backward()
    assert m.grad is not None
    assert n.grad is None
    m.grad = None
    losses.total["personal"].backward()
    assert n.grad is not None
    assert m.grad is None


def test_where_the_shared_model_alone_learns_the_personal_one_has_no_loss_here() -> None:
    losses, m, n = step(GcmlParams(lambda_=0.2, gamma=0.5, mutual="shared"))
    assert losses.total.keys() == {"local"}
    expected = seg_sigmoid(Outputs(m), SIGMOID_Y).item() + 0.2 * (sum(PULLS) / 3 + 0.5 * PUSH / 3)
    assert losses.total["local"].item() == pytest.approx(expected, abs=1e-6)
    losses.total["local"].backward()
    assert m.grad is not None and n.grad is None


def test_equation_6_ramps_lambda_over_the_rounds_since_the_first_exchange() -> None:
    ramp = [lambda_of(GcmlParams(lambda_=0.2, lambda_ramp_rounds=5), since) for since in range(8)]
    assert ramp == pytest.approx([0, 0.04, 0.08, 0.12, 0.16, 0.2, 0.2, 0.2])
    assert lambda_of(GcmlParams(lambda_=0.2, lambda_ramp_rounds=0), 0) == 0.2
    assert step(GcmlParams(lambda_=0.2), since=1)[0].terms["lambda"].item() == pytest.approx(0.04)


@pytest.mark.parametrize("mutual", ["shared", "both"])
def test_before_the_first_exchange_the_loss_is_that_of_segmentation(mutual: str) -> None:
    losses, m, n = step(GcmlParams(mutual=mutual, lambda_ramp_rounds=0), since=None)  # type: ignore[arg-type]
    assert losses.total["local"].item() == pytest.approx(seg_sigmoid(Outputs(m), SIGMOID_Y).item())
    if mutual == "both":
        assert losses.total["personal"].item() == pytest.approx(seg_sigmoid(Outputs(n), SIGMOID_Y).item())
    assert "pull" not in losses.terms


def test_without_a_personal_model_the_loss_is_that_of_segmentation() -> None:
    losses = Gcml(GcmlParams()).losses({"local": Outputs(SIGMOID_M)}, SIGMOID_Y, context("sigmoid"))
    assert losses.total.keys() == {"local"}
    assert losses.total["local"].item() == pytest.approx(seg_sigmoid(Outputs(SIGMOID_M), SIGMOID_Y).item())


# ---------------------------------------------------------------- limits


def test_gamma_zero_is_regional_mutual_learning() -> None:
    losses, m, _ = step(GcmlParams(lambda_=0.2, gamma=0.0))
    expected = seg_sigmoid(Outputs(m), SIGMOID_Y).item() + 0.2 * sum(PULLS) / 3
    assert losses.total["local"].item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("output", ["sigmoid", "softmax"])
def test_gamma_zero_and_the_whole_region_is_plain_deep_mutual_learning(output: str) -> None:
    generator = torch.Generator().manual_seed(3)
    m, n = (torch.randn(2, 3, 5, 6, generator=generator) for _ in range(2))
    label = torch.randint(0, 3, (2, 1, 5, 6), generator=generator)
    y = label if output == "softmax" else (torch.rand(2, 3, 5, 6, generator=generator) > 0.5).float()
    if output == "softmax":  # Zhang 2018, equation 5: the mean over samples of KL(p_n ‖ p_m)
        p_n, p_m = n.softmax(1), m.softmax(1)
        expected = (p_n * (p_n / p_m).log()).sum(1).mean().item()
    else:
        p_n, p_m = n.sigmoid(), m.sigmoid()
        both = p_n * (p_n / p_m).log() + (1 - p_n) * ((1 - p_n) / (1 - p_m)).log()
        expected = both.mean().item()
    pull, _ = terms_of(m, n, y, output, region="whole", gamma=0.0)
    assert pull == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("output", ["sigmoid", "softmax"])
@pytest.mark.parametrize(("lambda_", "since"), [(0.0, 9), (0.2, 0)])
def test_lambda_zero_is_two_independent_trainings(output: str, lambda_: float, since: int) -> None:
    torch.manual_seed(5)
    together = {role: nn.Conv2d(1, 2, 3, padding=1) for role in ("local", "personal")}
    alone = copy.deepcopy(together)
    x = torch.randn(2, 1, 8, 8)
    y = torch.randint(0, 2, (2, 1 if output == "softmax" else 2, 8, 8))
    losses = Gcml(GcmlParams(lambda_=lambda_, mutual="both")).losses(
        {role: Outputs(net(x)) for role, net in together.items()},  # type: ignore[misc]
        y,
        context(output, since),
    )
    for role, net in together.items():
        losses.total[role].backward()  # type: ignore[index]
        context(output).segmentation_loss(Outputs(alone[role](x)), y).backward()
        for mine, reference in zip(net.parameters(), alone[role].parameters(), strict=True):
            assert torch.equal(mine.grad, reference.grad)  # type: ignore[arg-type]


def test_lambda_zero_keeps_a_broken_partner_out() -> None:
    outputs = {"local": Outputs(SIGMOID_M), "personal": Outputs(SIGMOID_N * math.inf)}
    losses = Gcml(GcmlParams(lambda_=0)).losses(outputs, SIGMOID_Y, context("sigmoid"))  # type: ignore[arg-type]
    assert losses.total["local"].isfinite()


@pytest.mark.parametrize("output", ["sigmoid", "softmax"])
@pytest.mark.parametrize("region", ["union", "label", "whole"])
def test_identical_models_have_nothing_to_pull(output: str, region: str) -> None:
    z = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    m = z.clone().requires_grad_()
    y = (torch.rand(2, 3 if output == "sigmoid" else 1, 6, 6) > 0.5).long()
    found = mutual_terms(Outputs(m), Outputs(z), y, output, GcmlParams(region=region))  # type: ignore[arg-type]
    assert found.l_pos.item() == pytest.approx(0, abs=1e-7)
    assert found.l_neg.item() == 0
    assert torch.autograd.grad(found.l_pos, m)[0].abs().max() < 1e-7


LOGIT = st.floats(-8, 8, width=32)


@settings(max_examples=300, deadline=None)
@given(
    output=st.sampled_from(["sigmoid", "softmax"]),
    m=st.lists(LOGIT, min_size=12, max_size=12),
    n=st.lists(LOGIT, min_size=12, max_size=12),
    labels=st.lists(st.integers(0, 2), min_size=4, max_size=4),
    delta=st.floats(0.1, 20),
    region=st.sampled_from(["union", "label", "whole"]),
    step=st.floats(0.01, 5),
)
def test_no_push_ever_lowers_the_labels_own_probability(
    output: str, m: list[float], n: list[float], labels: list[int], delta: float, region: str, step: float
) -> None:
    z_m = torch.tensor(m).reshape(1, 3, 4).requires_grad_()
    z_n = torch.tensor(n).reshape(1, 3, 4)
    label = torch.tensor(labels).reshape(1, 1, 4)
    y = label if output == "softmax" else torch.zeros(1, 3, 4).scatter(1, label, 1.0)
    params = GcmlParams(delta_nats=delta, region=region)  # type: ignore[arg-type]
    push = mutual_terms(Outputs(z_m), Outputs(z_n), y, output, params).l_neg  # type: ignore[arg-type]
    stepped = (z_m - step * torch.autograd.grad(push, z_m)[0]).detach()

    def odds(z: Tensor) -> Tensor:
        return z * (2 * y - 1) if output == "sigmoid" else label_log_odds(z, label)

    assert (odds(stepped) >= odds(z_m.detach()) - 1e-5).all()


def test_a_push_does_happen_and_raises_the_labels_probability() -> None:
    m = SOFTMAX_M.clone().requires_grad_()
    push = mutual_terms(Outputs(m), Outputs(SOFTMAX_N), SOFTMAX_Y, "softmax", GcmlParams()).l_neg
    gradient = torch.autograd.grad(push, m)[0][0]
    # voxel 1 alone: its label is class 0, which rises, while the others fall in proportion .3 : .2
    assert (gradient[:, [0, 2, 3]] == 0).all()
    assert gradient[0, 1] < 0
    assert gradient[1, 1].item() / gradient[2, 1].item() == pytest.approx(1.5, rel=1e-4)


# ---------------------------------------------------------------- what comes in

LOCAL = {"conv.weight": torch.tensor([2.0, 4.0]), "norm.weight": torch.tensor([1.0]), "n": torch.tensor(3)}
INCOMING = {"conv.weight": torch.tensor([4.0, 8.0]), "norm.weight": torch.tensor([5.0]), "n": torch.tensor(9)}


def test_what_comes_in_is_averaged_with_the_shared_model() -> None:
    found = Gcml(GcmlParams()).on_arrival(LOCAL, INCOMING)
    assert found is not None and found["conv.weight"].tolist() == [3.0, 6.0]
    assert LOCAL["conv.weight"].tolist() == [2.0, 4.0]


def test_norms_are_averaged_and_counters_stay_the_receivers() -> None:
    found = Gcml(GcmlParams()).on_arrival(LOCAL, INCOMING)
    assert found is not None
    assert found["norm.weight"].tolist() == [3.0]
    assert found["n"].item() == 3


# ---------------------------------------------------------------- (7) and (8): features of class regions

# two features, five voxels in two images: classes 0, 0, 1 | 1, and one of which nobody says what it is
REGIONS_Y = torch.tensor([[[0, 0, 1]], [[1, -1, -1]]])
# class 0: (3,0) and (1,0) → (2,0) → (1,0);  class 1: (0,1) and (6,7) → (3,4) → (.6,.8)
FEATURES_N = torch.tensor([[[3.0, 1.0, 0.0], [0.0, 0.0, 1.0]], [[6.0, 99.0, 9.0], [7.0, 99.0, -9.0]]])
# class 0: (0,2), (0,4) → (0,1);  class 1: (8,0), (4,0) → (1,0)
FEATURES_M = torch.tensor([[[0.0, 0.0, 8.0], [2.0, 4.0, 0.0]], [[4.0, 5.0, 5.0], [0.0, 5.0, 5.0]]])


def with_features(features: Tensor, channels: int = 2, clean: Tensor | None = None) -> Outputs:
    logits = torch.zeros(features.shape[0], channels, *features.shape[2:])
    return Outputs(logits, features=features, clean_features=clean)


def test_equation_7_by_hand() -> None:
    regions = class_regions(REGIONS_Y, 2, "softmax")
    assert regions.int().tolist() == [[[1, 1, 0], [0, 0, 1]], [[0, 0, 0], [1, 0, 0]]]
    assert region_features(FEATURES_N, regions).tolist() == [
        pytest.approx([1.0, 0.0]),
        pytest.approx([0.6, 0.8]),
    ]


def test_regions_of_a_sigmoid_network_may_overlap_and_background_is_none_of_them() -> None:
    y = torch.tensor([[[1.0, 1.0, 0.0, -1.0], [0.0, 1.0, 0.0, 0.0]]])
    found = class_regions(y, 2, "sigmoid").int().tolist()
    assert found == [[[0, 0, 1, 0], [1, 1, 0, 0], [0, 1, 0, 0]]]


def test_equation_8_by_hand() -> None:
    """Scores, divided by τ = 0.1: class 0 of m has 0 with class 0 of n and 8 with class 1; class 1 has 6 with
    class 1, and 10 with class 0. So −ln(1/(1+e⁸)) = 8.000335 and −ln(e⁶/(e⁶+e¹⁰)) = 4.018150; mean 6.009243.
    """
    found = feature_contrast(with_features(FEATURES_M), with_features(FEATURES_N), REGIONS_Y, "softmax")
    assert found.item() == pytest.approx((8.000335 + 4.018150) / 2, abs=1e-5)
    same = feature_contrast(with_features(FEATURES_N), with_features(FEATURES_N), REGIONS_Y, "softmax")
    # 10 with itself, 6 with the other, at both classes: ln(1 + e⁻⁴)
    assert same.item() == pytest.approx(0.018150, abs=1e-5)


def test_features_take_the_place_of_the_push_and_the_partner_is_detached() -> None:
    m, n = FEATURES_M.clone().requires_grad_(), FEATURES_N.clone().requires_grad_()
    params = GcmlParams(lambda_=2.0, gamma=0.5, contrast="features", lambda_ramp_rounds=0)
    gcml = Gcml(params)
    assert gcml.wants_features and not Gcml(GcmlParams()).wants_features
    outputs = {"local": with_features(m), "personal": with_features(n)}
    known = StepContext("softmax", 5, lambda o, y: F.cross_entropy(o.logits, y[:, 0], ignore_index=-1))
    found: Losses = gcml.losses(outputs, REGIONS_Y, known)  # type: ignore[arg-type]
    # equal logits: no pull. L = L_seg + λ·γ·L_nce
    assert found.terms["pull"].item() == 0
    assert found.terms["push"].item() == pytest.approx(6.009243, abs=1e-5)
    difference = found.total["local"].item() - found.terms["seg"].item()
    assert difference == pytest.approx(2.0 * 0.5 * 6.009243, abs=1e-4)
    found.total["local"].backward()  # type: ignore[no-untyped-call]
    assert m.grad is not None and m.grad.abs().sum() > 0
    assert n.grad is None, "P is detached"


def test_what_a_partner_shows_without_dropout_is_what_counts() -> None:
    noisy = with_features(torch.rand(2, 2, 3), clean=FEATURES_N)
    found = feature_contrast(with_features(FEATURES_M), noisy, REGIONS_Y, "softmax")
    assert found.item() == pytest.approx(6.009243, abs=1e-5)


def test_with_one_class_alone_there_is_nothing_to_contrast() -> None:
    for y in (torch.zeros(2, 1, 3, dtype=torch.long), torch.full((2, 1, 3), -1)):
        m = FEATURES_M.clone().requires_grad_()
        found = feature_contrast(with_features(m), with_features(FEATURES_N), y, "softmax")
        assert found.item() == 0
        found.backward()  # type: ignore[no-untyped-call]
        assert m.grad is not None and not m.grad.any()
    empty = torch.zeros(3, 2)
    assert info_nce(empty, empty, torch.zeros(3, dtype=torch.bool), 0.1).item() == 0


def test_contrast_none_is_imitation_alone() -> None:
    """As with γ = 0: the push is worked out for the log, and is no part of the loss."""
    y = SIGMOID_Y
    outputs = {"local": Outputs(SIGMOID_M), "personal": Outputs(SIGMOID_N)}
    for region in ("union", "whole"):
        totals = []
        for params in ({"contrast": "none"}, {"gamma": 0.0}, {}):
            gcml = Gcml(GcmlParams(lambda_=1.0, region=region, **params))  # type: ignore[arg-type]
            totals.append(gcml.losses(outputs, y, context("sigmoid")).total["local"].item())  # type: ignore[arg-type]
        assert totals[0] == totals[1] != totals[2], region


def test_the_contrast_is_of_what_sites_agree_on_where_it_is_another_than_before() -> None:
    assert "contrast" not in common_settings(GcmlParams())
    assert common_settings(GcmlParams(contrast="features"))["contrast"] == "features"
