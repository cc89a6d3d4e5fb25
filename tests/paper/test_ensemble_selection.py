"""Ensemble selection over own and peers' models (gossipseg/learn/deploy/choice.py), worked out by hand.

Caruana, Niculescu-Mizil, Crew, Ksikes: Ensemble selection from libraries of models, ICML 2004.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gossipseg.learn.deploy.choice import (
    GREEDY_STEPS,
    SHARES,
    Mix,
    able,
    best_single,
    blended,
    choose,
    greedy,
    only,
    share_of_personal,
)

A, B, C = "personal of a", "personal of b", "personal of c"


def loss_of(truth: Mapping[str, Sequence[float]]) -> Callable[[Mapping[str, int]], float]:
    """NLL of the mean of the members' probabilities of the label, over voxels. `truth`: member → those."""

    def loss(counts: Mapping[str, int]) -> float:
        total = sum(counts.values())
        voxels = zip(*(truth[m] for m in counts), strict=True)
        means = [sum(p * n for p, n in zip(v, counts.values(), strict=True)) / total for v in voxels]
        return -statistics.fmean(math.log(p) for p in means)

    return loss


# ---------------------------------------------------------------- the greedy choice


def test_the_greedy_choice_by_hand() -> None:
    """Two voxels. P is sure of the first, A of the second, T of neither.

    P: −(ln .9 + ln .2)/2 = .8574; P+T: (.7, .35): .7033; P+A: (.55, .5): .6455; P+P: .8574. A is added.
    P+A+P: (.6667, .4): .6609; P+A+T: (.5333, .5): .6609; P+A+A: (.4333, .6): .6735. None is better: stop.
    """
    truth = {"personal": (0.9, 0.2), "shared": (0.5, 0.5), A: (0.2, 0.8)}
    loss = loss_of(truth)
    assert loss({"personal": 1}) == pytest.approx(0.8574, abs=1e-4)
    assert loss({"personal": 1, A: 1}) == pytest.approx(0.6455, abs=1e-4)
    assert loss({"personal": 1, "shared": 1}) == pytest.approx(0.7033, abs=1e-4)
    assert loss({"personal": 2, A: 1}) == pytest.approx(0.6609, abs=1e-4)
    assert greedy(tuple(truth), loss, 5) == {"personal": 1, A: 1}


def test_a_member_is_added_again_and_again_but_not_for_ever() -> None:
    truth = {"personal": (0.1,), "shared": (0.2,), A: (0.9,)}
    found = greedy(tuple(truth), loss_of(truth), 5)
    assert found == {"personal": 1, A: GREEDY_STEPS}


def test_no_more_models_predict_than_may() -> None:
    truth = {"personal": (0.9, 0.1, 0.1, 0.1), "shared": (0.1,) * 4}
    truth |= {A: (0.1, 0.9, 0.1, 0.1), B: (0.1, 0.1, 0.9, 0.1), C: (0.1, 0.1, 0.1, 0.9)}
    for most, peers in ((2, 0), (3, 1), (4, 2), (5, 3)):
        found = greedy(tuple(truth), loss_of(truth), most)
        assert len({A, B, C} & found.keys()) == peers, "the shared and the personal model always may"


def test_where_nothing_helps_p_stays_alone() -> None:
    truth = {"personal": (0.9,), "shared": (0.5,), A: (0.6,)}
    assert greedy(tuple(truth), loss_of(truth), 5) == {"personal": 1}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_model_without_a_finite_loss_is_never_taken(bad: float) -> None:
    def loss(counts: Mapping[str, int]) -> float:
        return bad if A in counts else 1.0 / sum(counts.values())

    assert A not in greedy(("personal", "shared", A), loss, 5)


def test_the_blend_by_hand() -> None:
    """n = 12: (12·g + 8·w)/20, with g = (½, 0, ½) and w = (¼, ¾, 0)."""
    found = blended({"personal": 1, A: 1}, {"personal": 0.25, "shared": 0.75}, 12)
    assert found == pytest.approx({"personal": 0.4, "shared": 0.3, A: 0.3})
    assert blended({"personal": 1}, {"personal": 0.5, "shared": 0.5}, 0) == {"personal": 0.5, "shared": 0.5}


# ---------------------------------------------------------------- the rules in their order

PATIENTS = [f"p{i}" for i in range(8)]
MEMBERS = ("personal", "shared", A)


class Scored:
    """Candidates whose choice is {P, A}, and whose Dice is given."""

    members = MEMBERS

    def __init__(self, dice: Sequence[float], alone: float = 1.0) -> None:
        self._dice, self._alone, self.asked = list(dice), alone, 0

    def alone(self, member: str) -> list[float | None]:
        assert member == A
        return [self._alone] * len(self._dice)

    def loss(self, counts: Mapping[str, int]) -> float:
        return 0.5 if counts == {"personal": 1, A: 1} else 1.0

    def dice(self, weights: Mapping[str, float]) -> list[float | None]:
        self.asked += 1
        return list(self._dice)


def losses(cases: int) -> dict[float, list[float | None]]:
    return {share: [abs(share - 0.5)] * cases for share in SHARES}


def chosen(
    personal: Sequence[float],
    pair: Sequence[float],
    wide: Sequence[float],
    patients: Sequence[str] = PATIENTS,
    alone: float = 1.0,
) -> tuple[Mix, Scored]:
    candidates = Scored(wide, alone)
    mixes = {share: list(pair) for share in SHARES}
    mix, _ = choose(losses(len(patients)), personal, pair, mixes, patients, candidates, 5)
    return mix, candidates


def test_with_seven_patients_nobody_is_chosen_from() -> None:
    mix, candidates = chosen([0.5] * 7, [0.6] * 7, [0.9] * 7, PATIENTS[:7])
    assert not candidates.asked and set(mix.weights) == {"personal", "shared"}
    mix, candidates = chosen([0.5] * 9, [0.6] * 9, [0.9] * 9, [*PATIENTS[:7], "p0", "p1"])
    assert not candidates.asked, "patients count, not cases"


def test_a_gain_beyond_chance_is_taken() -> None:
    """n = 8: g and w of (1) count alike, (½, 0, ½) and (½, ½, 0)."""
    mix, _ = chosen([0.5] * 8, [0.6] * 8, [0.7, 0.8] * 4)
    assert mix.weights == pytest.approx({"personal": 0.5, "shared": 0.25, A: 0.25})
    assert mix.deployed == pytest.approx(0.75) and mix.alone == pytest.approx(0.5)
    assert f"{A} 0.25" in mix.reason and "gain +0.2500" in mix.reason


@pytest.mark.parametrize(("alone", "taken"), [(0.0, False), (0.24, False), (0.25, True), (0.6, True)])
def test_a_model_without_half_of_p_s_dice_has_no_say_whatever_it_gains(alone: float, taken: bool) -> None:
    """One of random weights lowers the loss of a model that is too sure of itself."""
    mix, candidates = chosen([0.5] * 8, [0.6] * 8, [0.7, 0.8] * 4, alone=alone)
    assert (A in mix.weights) == taken
    assert able(candidates, [0.5] * 8, PATIENTS) == [*MEMBERS[:2], *[A] * taken]
    assert able(candidates, [None] * 8, PATIENTS) == ["personal", "shared"], "nothing says that it is able"


def test_patients_count_where_it_is_asked_whether_a_model_is_able() -> None:
    """Seven cases of one patient at 0.1, and one of another at 1: by patient 0.55, by case 0.21."""

    class Uneven(Scored):
        def alone(self, member: str) -> list[float | None]:
            return [0.1] * 7 + [1.0]

    patients = ["p0"] * 7 + ["p1"]
    assert A in able(Uneven([0.5] * 8), [0.9] * 8, patients)
    assert A not in able(Uneven([0.5] * 8), [0.9] * 8, PATIENTS)


def test_a_gain_within_chance_is_not() -> None:
    wide = [0.6 + d for d in (0.1, -0.09, 0.1, -0.09, 0.1, -0.09, 0.1, -0.09)]  # .005 ± .036
    mix, _ = chosen([0.5] * 8, [0.6] * 8, wide)
    assert set(mix.weights) == {"personal", "shared"} and mix.deployed == pytest.approx(0.6)


def test_p_alone_is_asked_of_what_would_be_deployed() -> None:
    """The pair falls below P; with A it does not."""
    mix, _ = chosen([0.7] * 8, [0.6] * 8, [0.75] * 8)
    assert A in mix.weights and not mix.why
    mix, _ = chosen([0.7] * 8, [0.6] * 8, [0.65] * 8)
    assert mix.weights == {"personal": 1.0} and "with the other models validation Dice falls" in mix.why
    mix, _ = chosen([0.7] * 8, [0.6] * 8, [0.55] * 8)
    assert mix.weights == {"personal": 1.0} and "with the shared model validation Dice falls" in mix.why


def test_where_an_own_model_is_broken_no_peer_stands_in() -> None:
    broken = losses(8) | {0.0: [math.nan] * 8}
    candidates = Scored([0.9] * 8)
    mixes: dict[float, list[float | None]] = {share: [0.5] * 8 for share in SHARES}
    mix, _ = choose(broken, [0.5] * 8, [0.5] * 8, mixes, PATIENTS, candidates, 5)
    assert mix.weights == {"personal": 1.0} and not candidates.asked


DICE = st.lists(st.floats(0, 1), min_size=12, max_size=12)


@settings(max_examples=300, deadline=None)
@given(DICE, DICE, DICE, st.lists(st.integers(0, 11), min_size=12, max_size=12))
def test_the_order_of_the_rules(
    personal: list[float], pair: list[float], wide: list[float], whose: list[int]
) -> None:
    """Whatever the scores: (2) is taken by its gain over (1) alone, and (3) looks at what (2) has left."""
    patients = [f"p{i}" for i in whose]
    mix, candidates = chosen(personal, pair, wide, patients)
    enough = len(set(patients)) >= 8
    assert candidates.asked == enough
    deployed = pair
    if enough:
        gain, error = by_hand(pair, wide, patients)
        deployed = wide if gain > error else pair
    gain, error = by_hand(personal, deployed, patients)
    alone = len(set(patients)) >= 3 and -gain > error
    if alone:
        assert mix.weights == {"personal": 1.0}
    else:
        assert (A in mix.weights) == (deployed is wide)
        assert sum(mix.weights.values()) == pytest.approx(1)
        if mix.alone is not None and mix.deployed is not None:
            assert mix.deployed - mix.alone == pytest.approx(gain)
    if not enough:
        share = share_of_personal(0.5, mix.cases)
        assert alone or mix.weights == {"personal": share, "shared": 1 - share}


def by_hand(before: Sequence[float], after: Sequence[float], patients: Sequence[str]) -> tuple[float, float]:
    """Mean gain by patient, and its standard error (infinite with one patient)."""
    gains: dict[str, list[float]] = {}
    for b, a, patient in zip(before, after, patients, strict=True):
        gains.setdefault(patient, []).append(b - a)
    means = [statistics.fmean(g) for g in gains.values()]
    error = statistics.stdev(means) / math.sqrt(len(means)) if len(means) > 1 else math.inf
    return -statistics.fmean(means), error


# ---------------------------------------------------------------- one model alone


def test_the_best_single_model_may_be_a_peer() -> None:
    mix = Mix(
        {"personal": 0.5, "shared": 0.2, A: 0.3},
        alone=0.70,
        shared=0.65,
        deployed=0.80,
        peers={A: 0.75, B: 0.90},
    )
    assert best_single(mix) == (A, pytest.approx(0.05)), "B does not predict: it was not chosen"
    found = only(mix)
    assert found.weights == {A: 1.0} and found.deployed == 0.75
    assert "validation Dice 0.8000 with all 3, +0.0500 against this one" in found.why
