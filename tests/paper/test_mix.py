"""The mix of the personal and the shared model (gossipseg/learn/deploy/choice.py), worked out by hand."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gossipseg.learn.deploy.choice import (
    SHARES,
    Mix,
    best_share,
    best_single,
    choose,
    counted,
    only,
    share_of_personal,
    supported,
)
from gossipseg.learn.evaluation.mixture import Mixture, mixed, negative_log_likelihood
from gossipseg.nets.output import NetOutput

# ---------------------------------------------------------------- predicting together


def test_probabilities_are_averaged_by_weight() -> None:
    p, t = torch.tensor([[0.8, 0.2], [0.1, 0.9]]).T.log(), torch.tensor([[0.4, 0.6], [0.5, 0.5]]).T.log()
    found = mixed((p, t), (0.25, 0.75), "softmax").exp()
    # ¼·.8 + ¾·.4 and ¼·.1 + ¾·.5
    assert found[0].tolist() == pytest.approx([0.5, 0.4]) and found.sum(0).tolist() == pytest.approx([1, 1])


def test_sigmoid_outputs_are_averaged_channel_by_channel() -> None:
    p, t = torch.logit(torch.tensor([[0.9, 0.2]])), torch.logit(torch.tensor([[0.5, 0.6]]))
    assert mixed((p, t), (0.5, 0.5), "sigmoid").sigmoid()[0].tolist() == pytest.approx([0.7, 0.4])


@pytest.mark.parametrize("output", ["softmax", "sigmoid"])
def test_networks_that_are_sure_are_not_rounded(output: str) -> None:
    """exp(−200) is 0 in float32: the logarithm of its mean with 1 is not."""
    sure = torch.tensor([[200.0], [-200.0]])
    found = mixed((sure, -sure), (0.999, 0.001), output)
    assert found.isfinite().all()
    log_odds = found[0] - found[1] if output == "softmax" else found[0]
    assert float(log_odds) == pytest.approx(math.log(999), rel=1e-5)


class Fixed(torch.nn.Module):
    def __init__(self, *p: float) -> None:
        super().__init__()
        self.logits = torch.tensor(p).log().reshape(1, -1, 1, 1)

    def forward(self, x: torch.Tensor) -> NetOutput:
        return NetOutput(self.logits.expand(len(x), -1, *x.shape[2:]))


def test_a_mixture_is_a_network() -> None:
    net = Mixture([Fixed(0.8, 0.2), Fixed(0.4, 0.6)], [3, 1], "softmax")
    found = net(torch.zeros(2, 1, 4, 5)).logits.softmax(1)
    assert found.shape == (2, 2, 4, 5) and torch.allclose(found[:, 0], torch.tensor(0.7))
    assert net.weights == (0.75, 0.25) and not net.training


@pytest.mark.parametrize("weights", [[], [1.0], [1.0, 0.0], [1.0, -1.0]])
def test_each_member_has_a_weight_above_0(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="need one above 0 for each"):
        Mixture([Fixed(0.8, 0.2), Fixed(0.4, 0.6)], weights, "softmax")


def test_the_likelihood_by_hand() -> None:
    logits = torch.tensor([[0.8, 0.2, 0.5], [0.2, 0.8, 0.5]]).log()
    target = torch.tensor([[0, 0, -1]])  # nobody says what the last one is
    expected = -(math.log(0.8) + math.log(0.2)) / 2
    assert negative_log_likelihood(logits, target, "softmax") == pytest.approx(expected)
    assert negative_log_likelihood(logits, torch.full((1, 3), -1), "softmax") is None
    odds = torch.logit(torch.tensor([[0.8, 0.2]]))
    target = torch.tensor([[1.0, 0.0]])
    assert negative_log_likelihood(odds, target, "sigmoid") == pytest.approx(-math.log(0.8))


# ---------------------------------------------------------------- the rules


def test_at_most_three_cases_of_a_patient_count() -> None:
    assert counted(["a", "a", "b", "a", "a"]) == 4 and counted([]) == 0


def test_a_prior_of_one_half_that_validation_moves() -> None:
    # (n·α̂ + 4·½)/(n + 4)
    assert share_of_personal(1.0, 0) == 0.5
    assert share_of_personal(1.0, 4) == 0.75
    assert share_of_personal(0.0, 12) == 0.125
    assert share_of_personal(0.25, 4) == 0.375


def test_the_best_share_is_the_one_with_the_least_mean_loss() -> None:
    assert best_share({0.0: [3.0, 1.0], 0.5: [2.0, 1.9], 1.0: [1.0, 2.8]}) == 1.0
    assert best_share({0.0: [1.0, None], 0.5: [9.0, None], 1.0: [2.0, None]}) == 0.0
    assert best_share({0.0: [1.0], 0.25: [1.0], 1.0: [1.0]}) == 0.25  # the nearest to one half
    assert best_share({0.0: [math.nan], 0.5: [math.inf], 1.0: [5.0]}) == 1.0
    assert best_share({share: [] for share in SHARES}) == 0.5


@pytest.mark.parametrize(
    ("shared", "patients", "share"),
    [
        ([0.8, 0.9, 0.8], "abc", 0.25),  # T is above P by .1 ± .033
        ([0.8, 0.9, 0.8], "aab", 0.5),  # two patients
        ([1.0, 0.8, 0.6], "abc", 0.5),  # by .067 ± .12
        ([0.6, 0.7, 0.6], "abc", 0.5),  # below P
        ([0.8, 0.9, None], "abc", 0.5),  # the third has no score
    ],
)
def test_the_share_is_below_one_half_only_where_dice_proves_the_shared_model_better(
    shared: list[float | None], patients: str, share: float
) -> None:
    personal = [0.7, 0.7, 0.8]
    assert supported(0.25, personal, shared, list(patients)) == share
    assert supported(0.75, personal, shared, list(patients)) == 0.75
    mixes = {found: [0.9] * 3 for found in SHARES}
    _, best = choose(losses(0.25, 3), personal, shared, mixes, list(patients))
    assert best == share


def losses(best: float, cases: int) -> dict[float, list[float | None]]:
    return {share: [abs(share - best)] * cases for share in SHARES}


def test_without_validation_both_have_half() -> None:
    mix, _ = choose(losses(0.5, 0), [], [], {share: [] for share in SHARES}, [])
    assert mix.weights == {"personal": 0.5, "shared": 0.5} and mix.name == "mix"
    assert mix.reason == "personal 0.50, shared 0.50; no validation case has been scored"


def test_the_mix_by_hand() -> None:
    personal, shared, together = [0.6, 0.8, 0.7], [0.5, 0.5, 0.5], [0.7, 0.8, 0.75]
    mixes = {share: together if share == 0.75 else [0.0] * 3 for share in SHARES}
    mix, best = choose(losses(0.75, 3), personal, shared, mixes, ["a", "b", "c"])
    # α = (3·¾ + 2)/7
    assert best == 0.75 and mix.weights["personal"] == pytest.approx(4.25 / 7)
    assert (mix.alone, mix.shared, mix.deployed) == pytest.approx((0.7, 0.5, 0.75))
    assert mix.standard_error == pytest.approx(statistics.stdev([0.1, 0, 0.05]) / math.sqrt(3))
    assert (mix.patients, mix.cases) == (3, 3)
    assert mix.reason.startswith("alone 0.7000, deployed 0.7500, gain +0.0500 ± 0.0289 on 3 patients; ")


def test_a_case_without_a_loss_does_not_count() -> None:
    """Of three cases one has no annotated voxel: n is 2, and α = (2·¾ + 2)/6."""
    told = {share: [*values, None] for share, values in losses(0.75, 2).items()}
    scores = [0.7, 0.7, None]
    mix, _ = choose(told, scores, scores, {share: scores for share in SHARES}, ["a", "b", "c"])
    assert mix.cases == 2 and mix.weights["personal"] == pytest.approx(3.5 / 6)


@pytest.mark.parametrize(
    ("together", "patients", "alone"),
    [
        ([0.5, 0.5, 0.5], ["a", "b", "c"], True),  # −.2 each, without a spread
        ([0.75, 0.75, 0.4], ["a", "b", "c"], False),  # −.067 ± .117
        ([0.5, 0.5, 0.5], ["a", "b", "b"], False),  # two patients
    ],
)
def test_the_personal_model_predicts_alone_where_the_mix_is_worse_beyond_chance(
    together: list[float], patients: list[str], alone: bool
) -> None:
    mixes = dict.fromkeys(SHARES, together)
    mix, _ = choose(losses(0.0, 3), [0.7] * 3, [0.4] * 3, mixes, patients)
    assert (mix.name == "personal") == alone == (mix.weights == {"personal": 1.0})
    if alone:
        assert mix.deployed == mix.alone == pytest.approx(0.7)
        assert "personal alone, because with the shared model validation Dice falls by 0.2000" in mix.reason


def test_the_best_single_model_says_what_is_lost() -> None:
    both = Mix({"personal": 0.4, "shared": 0.6}, alone=0.7, shared=0.72, deployed=0.75)
    assert best_single(both) == ("shared", pytest.approx(0.03))
    assert only(both).weights == {"shared": 1.0} and "0.7500 with both, +0.0300" in only(both).why
    assert only(both).deployed == 0.72 and "deployed 0.7200" in only(both).reason
    assert best_single(Mix({"personal": 0.4, "shared": 0.6})) == ("shared", None)


DICE = st.floats(0, 1)


@given(data=st.data(), cases=st.integers(0, 9))
def test_the_order_of_the_rules(data: st.DataObject, cases: int) -> None:
    """Whatever the scores: the share lies between the prior and α̂, and P is alone exactly by rule 2."""
    some = st.lists(st.none() | DICE, min_size=cases, max_size=cases)
    loss = {share: data.draw(some) for share in SHARES}
    personal, shared = data.draw(some), data.draw(some)
    mixes = {share: data.draw(some) for share in SHARES}
    patients = data.draw(st.lists(st.sampled_from("abcde"), min_size=cases, max_size=cases))
    mix, best = choose(loss, personal, shared, mixes, patients)
    by_patient: dict[str, list[float]] = {}
    for p, m, who in zip(personal, mixes[best], patients, strict=True):
        if p is not None and m is not None:
            by_patient.setdefault(who, []).append(p - m)
    falls = [statistics.fmean(values) for values in by_patient.values()]
    error = statistics.stdev(falls) / math.sqrt(len(falls)) if len(falls) > 1 else math.inf
    worse = len(falls) >= 3 and statistics.fmean(falls) > error
    assert (mix.weights == {"personal": 1.0}) == worse
    if not worse:
        share = mix.weights["personal"]
        assert min(best, 0.5) <= share <= max(best, 0.5) and 0 < share < 1
        assert mix.weights["shared"] == pytest.approx(1 - share)
    assert mix.reason
