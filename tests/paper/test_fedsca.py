"""FedSCA, equation by equation: what travels, and similarity-guided aggregation with its limits."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gossipseg.algos.base import Combined
from gossipseg.algos.fedsca import FedSca, projected, similarities, similarity_mix, simplex_mix
from gossipseg.algos.params import FedScaParams
from gossipseg.algos.registry import build
from gossipseg.errors import ConfigError
from gossipseg.nets import registry
from gossipseg.nets.params import NetworkParams

PRIVATE = frozenset({"b.1.high_adapter.w", "head.weight"})


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


def sent(site: str, cases: int, theta: list[float], delta: list[float]) -> Sent:
    """θ and Δ in two tensors, so that nothing can look at one alone."""
    both = {}
    for name, part in (("x.low", slice(0, 1)), ("y.low", slice(1, None))):
        both[name], both["delta/" + name] = torch.tensor(theta[part]), torch.tensor(delta[part])
    return Sent(site, cases, both)


def fedsca(**settings: Any) -> FedSca:
    return FedSca(FedScaParams(**{"warmup_rounds": 0, **settings}), PRIVATE)


def models(combined: Combined) -> dict[str, list[float]]:
    """Site, or "" for everybody else, → θ."""
    out: dict[str, list[float]] = {}
    for name, tensor in combined.tensors:
        site, _, _ = name.rpartition(":")
        out.setdefault(site, []).extend(tensor.tolist())
    return out


THREE = [
    sent("a", 10, [1.0, 0.0], [1.0, 0.0]),
    sent("b", 30, [0.0, 1.0], [1.0, 1.0]),
    sent("c", 60, [2.0, 2.0], [-1.0, 1.0]),
]
ROOT = math.sqrt(0.5)


# ---------------------------------------------------------------- what travels


def test_equation_1() -> None:
    local = {"x.low": torch.tensor([3.0]), "b.1.high_adapter.w": torch.ones(1), "head.weight": torch.ones(1)}
    update = fedsca().update_of(local, {"x.low": torch.tensor([2.5])})
    assert {n: t.item() for n, t in update.items()} == {"x.low": 3.0, "delta/x.low": 0.5}
    assert fedsca().update_of(local, {})["delta/x.low"].item() == 0.0


@pytest.mark.parametrize("name", ["adapted_unetr", "adapted_swinunetr", "adapted_sam"])
def test_of_the_real_networks_only_low_adapters_travel(name: str) -> None:
    params = NetworkParams(name, width=12, options={"adapter_width": 2})
    net = registry.build(params, spatial_dims=2, in_channels=1, out_channels=1, patch_size=(64, 64))
    algorithm = build(FedScaParams(), private_names=registry.private_names(net))
    local = net.state_dict()
    update = algorithm.update_of(local, local)
    theta = {n for n in update if not n.startswith("delta/")}
    assert theta and theta == {n for n in local if ".low_adapter." in n}
    assert set(update) == theta | {f"delta/{n}" for n in theta}
    loaded = algorithm.on_global(local, {n: t + 1 for n, t in local.items()})
    assert all(torch.equal(loaded[n], t) == (n not in theta) for n, t in local.items())


@pytest.mark.parametrize("private", [(), ("network.adapter.conv.weight", "network.head.weight")])
def test_a_network_without_adapters_is_refused(private: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match=r"network\.name.*adapted_unetr, adapted_swinunetr, adapted_sam"):
        build(FedScaParams(), private_names=private)


# ---------------------------------------------------------------- (2)


def test_equation_2() -> None:
    # cos(Δ_a, Δ_b) = 1/√2, cos(Δ_b, Δ_c) = 0, cos(Δ_a, Δ_c) = −1/√2 → 0
    found = similarities(THREE, ["x.low", "y.low"])
    expected = [[1.0, ROOT, 0.0], [ROOT, 1.0, 0.0], [0.0, 0.0, 1.0]]
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected))


def test_only_the_direction_counts() -> None:
    tiny = [sent("a", 1, [0, 0], [1e-7, 0]), sent("b", 1, [0, 0], [3e6, 3e6])]
    assert similarities(tiny, ["x.low", "y.low"])[0][1] == pytest.approx(ROOT)


def test_a_site_that_has_not_moved_is_like_nobody() -> None:
    still = [*THREE[:2], sent("c", 60, [2.0, 2.0], [0.0, 0.0])]
    combined = fedsca().aggregate(still, 1)
    found = models(combined)
    assert all(math.isfinite(v) for theta in found.values() for v in theta)
    assert combined.notes["similarity"]["matrix"][2] == [0.0, 0.0, 1.0]  # type: ignore[index]


def test_the_similarity_is_shown() -> None:
    combined = fedsca().aggregate(THREE, 1)
    list(combined.tensors)
    shown = combined.notes["similarity"]
    assert isinstance(shown, dict)
    assert shown["sites"] == ["a", "b", "c"]
    assert shown["matrix"][0][1] == pytest.approx(ROOT)


# ---------------------------------------------------------------- (3) and (4)


def test_equations_3_and_4() -> None:
    tau = 0.5
    found = models(fedsca(tau=tau).aggregate(THREE, 1))
    # site a: a_a = 0.1; w_ab ∝ 30·e^(0.7071/0.5), w_ac ∝ 60·e^0
    b, c = 30 * math.exp(ROOT / tau), 60.0
    w_b, w_c = b / (b + c), c / (b + c)
    expected = [0.1 * 1 + 0.9 * (w_b * 0 + w_c * 2), 0.1 * 0 + 0.9 * (w_b * 1 + w_c * 2)]
    assert found["a"] == pytest.approx(expected)
    # site c is like nobody: w_ca ∝ 10, w_cb ∝ 30
    assert found["c"] == pytest.approx([0.6 * 2 + 0.4 * 0.25 * 1, 0.6 * 2 + 0.4 * 0.75 * 1])


def test_uniform_weighting() -> None:
    mix = similarity_mix(0, [1.0, 0.0, 0.0], [1.0, 1.0, 1.0], 0.1)
    assert mix == pytest.approx([1 / 3] * 3)
    found = models(fedsca(weighting="uniform", tau=1e9).aggregate(THREE, 1))
    assert found["a"] == pytest.approx([1.0, 1.0])


def test_who_is_more_alike_weighs_more() -> None:
    even = similarity_mix(0, [1.0, 0.4, 0.4, 0.0], [5.0] * 4, 0.1)
    assert even[1] == pytest.approx(even[2]) and even[1] / even[3] == pytest.approx(math.exp(4))


@given(
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 500)), min_size=1, max_size=8),
    st.floats(1e-4, 100.0),
    st.data(),
)
def test_a_mix_is_one(sites: list[tuple[float, int]], tau: float, data: st.DataObject) -> None:
    i = data.draw(st.integers(0, len(sites) - 1))
    cases = [float(n) for _, n in sites]
    if sum(cases) == 0:
        cases = [1.0] * len(cases)
    mix = similarity_mix(i, [s for s, _ in sites], cases, tau)
    assert math.fsum(mix) == pytest.approx(1.0) and min(mix) >= 0
    if sum(cases) > cases[i]:
        assert mix[i] == pytest.approx(cases[i] / sum(cases))


# ---------------------------------------------------------------- limits


def average() -> list[float]:
    return [(10 * 1 + 30 * 0 + 60 * 2) / 100, (10 * 0 + 30 * 1 + 60 * 2) / 100]


def test_equal_similarities_give_fedavg_to_everybody() -> None:
    alike = [sent(u.site, u.cases, [*u.tensors["x.low"], *u.tensors["y.low"]], [1.0, 2.0]) for u in THREE]
    found = models(fedsca().aggregate(alike, 1))
    assert set(found) == {"a", "b", "c", ""}
    assert all(theta == pytest.approx(average()) for theta in found.values())


def test_a_high_temperature_gives_fedavg_to_everybody() -> None:
    found = models(fedsca(tau=1e9).aggregate(THREE, 1))
    assert set(found) == {"a", "b", "c", ""}
    assert all(theta == pytest.approx(average()) for theta in found.values())


def test_a_low_temperature_listens_to_the_most_alike_alone() -> None:
    found = models(fedsca(tau=1e-4).aggregate(THREE, 1))
    assert found["a"] == pytest.approx([0.1 * 1 + 0.9 * 0, 0.1 * 0 + 0.9 * 1])


@pytest.mark.parametrize("aggregation", ["similarity", "simplex"])
@pytest.mark.parametrize("cases", [7, 0])
def test_a_site_alone_keeps_its_own(aggregation: str, cases: int) -> None:
    alone = [sent("a", cases, [1.5, -2.0], [1.0, 0.0])]
    found = models(fedsca(aggregation=aggregation).aggregate(alone, 1))
    assert found == {"a": [1.5, -2.0], "": [1.5, -2.0]}


def test_a_site_without_cases_is_given_but_gives_nothing() -> None:
    found = models(fedsca().aggregate([THREE[0], sent("b", 0, [9.0, 9.0], [1.0, 0.0])], 1))
    assert found == {"a": [1.0, 0.0], "b": [1.0, 0.0], "": [1.0, 0.0]}


# ---------------------------------------------------------------- (5)


def test_the_projection() -> None:
    assert projected([0.2, 0.8]) == pytest.approx([0.2, 0.8])  # on it already
    assert projected([1.0, 1.0, 1.0]) == pytest.approx([1 / 3] * 3)
    assert projected([0.9, 0.5, -1.0]) == pytest.approx([0.7, 0.3, 0.0])  # t = 0.2, the last one below it
    assert projected([5.0, 0.0]) == [1.0, 0.0]


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=6), st.integers(0, 999))
def test_no_point_of_the_simplex_is_nearer(values: list[float], seed: int) -> None:
    nearest = projected(values)
    assert math.fsum(nearest) == pytest.approx(1.0) and min(nearest) >= 0
    weights = torch.rand(len(values), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    other = (weights / weights.sum()).tolist()
    assert math.dist(values, nearest) <= math.dist(values, other) + 1e-9


def test_equation_5() -> None:
    # shares 0.25, 0.75; s = 1, 0.5; α = 2: (0.25 + 0.25, 0.75 + 0.125) = (0.5, 0.875), t = 0.1875
    assert simplex_mix([1.0, 0.5], [1.0, 3.0], 2.0) == pytest.approx([0.3125, 0.6875])
    two = [sent("a", 1, [4.0, 0.0], [1.0, 0.0]), sent("b", 3, [0.0, 8.0], [1.0, math.sqrt(3)])]  # cos 60° = ½
    found = models(fedsca(aggregation="simplex", alpha=2.0).aggregate(two, 1))
    assert found["a"] == pytest.approx([4 * 0.3125, 8 * 0.6875])


def test_limits_of_the_simplex() -> None:
    wide = models(fedsca(aggregation="simplex", alpha=1e9).aggregate(THREE, 1))
    assert all(theta == pytest.approx(average()) for theta in wide.values())
    own = models(fedsca(aggregation="simplex", alpha=1e-3).aggregate(THREE, 1))
    assert own.pop("") == pytest.approx(average())
    assert own == {"a": [1.0, 0.0], "b": [0.0, 1.0], "c": [2.0, 2.0]}


# ---------------------------------------------------------------- (6)


@pytest.mark.parametrize(
    ("settings", "round"),
    [({"aggregation": "fedavg"}, 9), ({"warmup_rounds": 2}, 1), ({"warmup_rounds": 2}, 2)],
)
def test_equation_6(settings: dict[str, Any], round: int) -> None:
    combined = fedsca(**settings).aggregate(THREE, round)
    found = models(combined)
    assert list(found) == [""] and found[""] == pytest.approx(average())
    assert combined.notes["similarity"]["sites"] == ["a", "b", "c"]  # type: ignore[index]


def test_after_the_warm_up_each_site_has_its_own() -> None:
    names = [name for name, _ in fedsca(warmup_rounds=2).aggregate(THREE, 3).tensors]
    plain = ["x.low", "y.low"]
    assert names == plain + [f"{site}:{name}" for name in plain for site in "abc"]


# ---------------------------------------------------------------- (7)


@pytest.mark.parametrize("aggregation", ["similarity", "simplex"])
def test_equation_7(aggregation: str) -> None:
    found = models(fedsca(aggregation=aggregation).aggregate(THREE, 1))
    assert found[""] == pytest.approx(average())
    assert all(found[site] != pytest.approx(average()) for site in "ab"), "c is like nobody: (4) is (6) there"
    evenly = models(fedsca(aggregation=aggregation, weighting="uniform").aggregate(THREE, 1))
    assert evenly[""] == pytest.approx([1.0, 1.0])


# ---------------------------------------------------------------- updates that do not fit


def test_updates_that_do_not_fit_together() -> None:
    other = Sent("b", 1, {"x.low": torch.zeros(1), "delta/x.low": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"y\.low"):
        models(fedsca().aggregate([THREE[0], other], 1))
    lacking = {n: t for n, t in THREE[0].tensors.items() if n != "delta/y.low"}
    with pytest.raises(ValueError, match=r"delta/y\.low"):
        models(fedsca().aggregate([Sent("a", 1, lacking)], 1))


def test_memory_does_not_grow_with_the_sites() -> None:
    alive = 0
    most = 0

    class Counted(Sent):
        def tensor(self, name: str) -> Tensor:
            nonlocal alive, most
            tensor = self.tensors[name].clone()
            alive += 1
            most = max(most, alive)
            tensor.__dict__["_freed"] = _Freed()
            return tensor

    class _Freed:
        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    updates = [Counted(f"s{i}", 1, {"w": torch.ones(3) * i, "delta/w": torch.ones(3)}) for i in range(12)]
    for _ in fedsca().aggregate(updates, 1).tensors:
        pass
    assert most <= 3
