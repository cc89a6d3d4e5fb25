"""Robust aggregation, equation by equation: values worked out by hand, limits, and what an attack can do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gossipseg.algos import robust as module
from gossipseg.algos.base import Combined
from gossipseg.algos.params import DittoParams, FedAvgParams, FedProxParams, FedScaParams
from gossipseg.algos.params.common import robust_problem, settings
from gossipseg.algos.registry import build
from gossipseg.algos.robust import (
    Robust,
    combine,
    cut,
    krum_choice,
    krum_scores,
    median,
    squared_distances,
    trimmed_mean,
)
from gossipseg.errors import ConfigError


@dataclass
class Sent:
    """An update in memory."""

    site: str
    tensors: dict[str, Tensor]
    cases: int = 1
    names: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self.names = sorted(self.tensors)

    def tensor(self, name: str) -> Tensor:
        return self.tensors[name]

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.tensors[name].shape)

    def part(self, name: str, begin: int, end: int) -> Tensor:
        return self.tensors[name].reshape(-1)[begin:end]


def sent(*values: float | Sequence[float], **more: Any) -> list[Sent]:
    return [
        Sent(f"s{i}", {"w": torch.tensor(v).float().reshape(1, -1)}, **more) for i, v in enumerate(values)
    ]


def result(combined: Combined) -> dict[str, Tensor]:
    return dict(combined.tensors)


def test_equation_1_median() -> None:
    assert median(torch.tensor([[3.0, -1.0], [1.0, 9.0], [2.0, 0.0]])).tolist() == [2.0, 0.0]
    assert median(torch.tensor([4.0, 1.0, 9.0, 2.0])).item() == 3.0  # even: mean of the middle two
    assert median(torch.tensor([4, 1, 9, 2])).item() == 2  # whole numbers stay whole


@pytest.mark.parametrize(
    ("n", "trim", "k"), [(5, 0.2, 1), (10, 0.2, 2), (10, 0.1, 1), (3, 0.2, 1), (4, 0, 0)]
)
def test_equation_2_how_many_are_cut(n: int, trim: float, k: int) -> None:
    assert cut(n, trim) == k


def test_equation_2_trimmed_mean() -> None:
    values = torch.tensor([1e9, 1.0, 2.0, 6.0, -1e9])
    assert trimmed_mean(values, 1).item() == 3.0
    assert trimmed_mean(values, 2).item() == 2.0
    assert trimmed_mean(values[1:4], 0).item() == 3.0
    with pytest.raises(ValueError, match="nothing is left"):
        trimmed_mean(values, 3)


def test_equation_3_scores() -> None:
    """On a line at 0, 1, 2, 3, 10 with f = 1: each sums its two nearest squared distances."""
    updates = sent(0, 1, 2, 3, 10)
    distances = squared_distances(updates, ["w"])
    assert distances[0] == [0, 1, 4, 9, 100] and distances[4][3] == 49
    assert krum_scores(distances, 1) == [5, 2, 2, 5, 49 + 64]
    with pytest.raises(ValueError, match="needs 5"):
        krum_scores([[0.0] * 4] * 4, 1)


def test_equation_4_choice() -> None:
    assert krum_choice([5, 2, 2, 5, 113], ["a", "b", "c", "d", "e"], 4) == [0, 1, 2, 3]
    assert krum_choice([5, 2, 2, 5, 113], ["z", "b", "c", "d", "e"], 3) == [1, 2, 3]  # the tie goes by name
    combined = combine(sent(0, 1, 2, 3, 10), Robust("krum", byzantine=1))
    assert result(combined)["w"].item() == 1.5
    assert combined.notes["robust"]["left_out"] == ["s4"]  # type: ignore[index]
    assert combined.notes["robust"]["scores"]["s4"] == 113  # type: ignore[index]


@pytest.mark.parametrize("rule", ("median", "trimmed_mean", "krum"))
@given(bad=st.floats(-1e30, 1e30), honest=st.lists(st.floats(-1, 1, width=32), min_size=4, max_size=6))
def test_one_bad_update_never_pulls_beyond_the_honest_ones(
    rule: Any, bad: float, honest: list[float]
) -> None:
    combined = result(combine(sent(*honest, bad), Robust(rule, 0.2, 1)))["w"].item()
    spread = max(honest) - min(honest)
    # Krum may keep a bad update that lies as near as the honest ones do to each other, and no other one
    reach = spread if rule == "krum" else 1e-6
    assert min(honest) - reach - 1e-6 <= combined <= max(honest) + reach + 1e-6


@pytest.mark.parametrize("rule", ("median", "trimmed_mean", "krum"))
def test_limits(rule: Any) -> None:
    same = result(combine(sent(*[[0.25, -3.0]] * 5), Robust(rule)))
    assert torch.equal(same["w"], torch.tensor([[0.25, -3.0]]))
    alone = combine(sent([0.5, 7.0]), Robust(rule))
    assert torch.equal(result(alone)["w"], torch.tensor([[0.5, 7.0]]))
    assert alone.notes["robust"]["rule"] == "median"  # type: ignore[index]
    assert alone.notes["robust"]["asked"] == rule  # type: ignore[index]


def test_beta_0_is_the_mean_and_claimed_cases_count_for_nothing() -> None:
    updates = [Sent("a", {"w": torch.tensor([0.0])}, 10**9), *sent(1, 2)]
    updates[1:] = [Sent(u.site, {"w": u.tensors["w"].reshape(1)}) for u in updates[1:]]
    assert result(combine(updates, Robust("trimmed_mean", trim=0.0)))["w"].item() == 1.0
    assert result(combine(updates, Robust("median")))["w"].item() == 1.0


def test_a_large_layer_is_taken_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    updates = [
        Sent(f"s{i}", {"w": torch.randn(7, 5), "n": torch.tensor([i]), "z": torch.randn(0, 3)})
        for i in range(5)
    ]
    whole = {r: result(combine(updates, Robust(r))) for r in ("median", "trimmed_mean", "krum")}
    monkeypatch.setattr(module, "BLOCK_VALUES", 4)
    for rule, found in whole.items():
        again = result(combine(updates, Robust(rule)))  # type: ignore[arg-type]
        assert all(torch.equal(found[n], again[n]) for n in found) and found["z"].shape == (0, 3)
    stacked = torch.stack([u.tensors["w"] for u in updates])
    assert torch.equal(whole["median"]["w"], stacked.median(0).values) and whole["median"]["n"].tolist() == [
        2
    ]


def test_updates_that_do_not_hold_the_same_cannot_be_combined() -> None:
    other = Sent("x", {"v": torch.zeros(1)})
    with pytest.raises(ValueError, match="v is in one update and not in another"):
        result(combine([*sent(1), other], Robust("median")))


@pytest.mark.parametrize("params", (FedAvgParams, FedProxParams, DittoParams))
def test_the_fedavg_family_takes_the_rule(params: Any) -> None:
    algorithm = build(params(robust="median"))
    assert result(algorithm.aggregate(sent(1, 2, 99), 1))["w"].item() == 2.0
    assert result(build(params()).aggregate(sent(1, 2, 99), 1))["w"].item() == 34.0


def test_an_algorithm_with_its_own_aggregation_refuses_the_rule() -> None:
    with pytest.raises(ConfigError, match="a way of its own") as caught:
        build(FedScaParams(robust="krum"), private_names={"block.high_adapter.weight"})
    assert caught.value.key == "algorithm.robust"


@pytest.mark.parametrize(
    ("given", "listed", "key"),
    [
        ({"robust": "krum", "byzantine": 1}, 4, "algorithm.robust"),
        ({"robust": "krum", "byzantine": 1}, 5, None),
        ({"robust": "krum", "byzantine": 2}, 6, "algorithm.robust"),
        ({"robust": "median"}, 2, "algorithm.robust"),
        ({"robust": "trimmed_mean"}, 3, None),
        ({"robust": "trimmed_mean", "trim": 0.45}, 4, "algorithm.trim"),
        ({"robust": "krum"}, 0, None),  # sites are not listed yet
        ({}, 1, None),
    ],
)
def test_too_few_listed_sites_are_told_at_the_start(
    given: dict[str, Any], listed: int, key: str | None
) -> None:
    found = robust_problem(FedAvgParams(**given), listed)
    assert (found and found[1]) == key


def test_without_a_rule_the_settings_are_those_of_versions_that_know_none() -> None:
    assert settings(FedAvgParams()).keys() == {"name", "finetune_rounds", "weighting"}
    assert settings(FedAvgParams(robust="krum", byzantine=2))["byzantine"] == 2
