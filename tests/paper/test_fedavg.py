"""FedAvg, FedProx, FedBN, Ditto: equation by equation, each against values worked out by hand."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from gossipseg.algos.average import weighted_average
from gossipseg.algos.base import Outputs, StepContext, Weights
from gossipseg.algos.ditto import Ditto
from gossipseg.algos.fedavg import FedAvg
from gossipseg.algos.fedbn import FedBn
from gossipseg.algos.fedprox import FedProx, squared_distance
from gossipseg.algos.params import (
    DittoParams,
    FedAvgFinetuneParams,
    FedAvgParams,
    FedBnParams,
    FedProxParams,
)
from gossipseg.algos.registry import build

LOGITS = torch.zeros(1, 1, 2)
TARGET = torch.ones(1, 1, 2)


@dataclass
class Sent:
    """An update in memory."""

    site: str
    cases: int
    weights: Weights
    read: list[str] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        return list(self.weights)

    def tensor(self, name: str) -> Tensor:
        self.read.append(name)
        return (
            self.weights[name].float().clone()
            if self.weights[name].is_floating_point()
            else self.weights[name]
        )


def updates() -> list[Sent]:
    return [
        Sent("a", 10, {"w": torch.tensor([1.0, 0.0]), "n": torch.tensor([7])}),
        Sent("b", 30, {"w": torch.tensor([4.0, 6.0]), "n": torch.tensor([8])}),
    ]


def context(**more: object) -> StepContext:
    return StepContext("sigmoid", 0, lambda out, target: out.logits.float().mean() + 2.0, **more)  # type: ignore[arg-type]


def test_1_the_common_model_is_weighted_by_cases() -> None:
    found = dict(FedAvg().aggregate(updates(), 1).tensors)
    assert found["w"].tolist() == [3.25, 4.5]  # (10·1 + 30·4)/40, (10·0 + 30·6)/40
    assert found["n"].tolist() == [7]  # counters are copied


def test_1_uniform_weights_and_sites_that_do_not_say_how_many_cases() -> None:
    assert dict(FedAvg("uniform").aggregate(updates(), 1).tensors)["w"].tolist() == [2.5, 3.0]
    silent = [Sent(u.site, 0, u.weights) for u in updates()]
    assert dict(FedAvg().aggregate(silent, 1).tensors)["w"].tolist() == [2.5, 3.0]


def test_1_it_is_the_weighted_average_and_reads_each_tensor_once() -> None:
    torch.manual_seed(0)
    sent = [
        Sent(s, n, {"w": torch.randn(3, 4), "v": torch.randn(5)}) for s, n in (("a", 3), ("b", 5), ("c", 9))
    ]
    want = weighted_average([u.weights for u in sent], [3, 5, 9])
    found = dict(FedAvg().aggregate(sent, 1).tensors)
    assert all(torch.allclose(found[n], want[n], atol=1e-6) for n in want)
    assert all(sorted(u.read) == ["v", "w"] for u in sent)


def test_updates_that_do_not_fit_together_are_refused() -> None:
    odd = [*updates(), Sent("c", 1, {"w": torch.zeros(2)})]
    with pytest.raises(ValueError, match="n is in one update"):
        dict(FedAvg().aggregate(odd, 1).tensors)


def test_2_the_proximal_term() -> None:
    weights = {"w": torch.tensor([1.0, 2.0], requires_grad=True), "private": torch.tensor([9.0])}
    anchor = {"w": torch.tensor([0.0, 4.0])}
    assert squared_distance(weights, anchor).item() == 5.0  # 1² + 2², nothing of the private one
    losses = FedProx(0.5).losses(
        {"local": Outputs(LOGITS)}, TARGET, context(parameters={"local": weights}, anchor=anchor)
    )
    assert losses.total["local"].item() == pytest.approx(2.0 + 0.25 * 5.0)
    losses.total["local"].backward()
    assert weights["w"].grad is not None
    assert weights["w"].grad.tolist() == [0.5, -1.0]  # μ·(w − w_global)


def test_2_without_a_weight_it_is_fedavg() -> None:
    weights = {"w": torch.tensor([1.0])}
    with_term = FedProx(0.0).losses(
        {"local": Outputs(LOGITS)},
        TARGET,
        context(parameters={"local": weights}, anchor={"w": torch.zeros(1)}),
    )
    plain = FedAvg().losses({"local": Outputs(LOGITS)}, TARGET, context())
    assert torch.equal(with_term.total["local"], plain.total["local"])


def test_3_the_personal_model_is_held_near_the_common_one_and_the_common_one_is_free() -> None:
    travels = {"w": torch.tensor([5.0], requires_grad=True)}
    personal = {"w": torch.tensor([1.0], requires_grad=True)}
    out = {"local": Outputs(LOGITS + 1), "personal": Outputs(LOGITS)}
    losses = Ditto(0.1).losses(
        out,
        TARGET,
        context(parameters={"local": travels, "personal": personal}, anchor={"w": torch.tensor([3.0])}),
    )
    assert losses.total["local"].item() == 3.0  # L_seg alone
    assert losses.total["personal"].item() == pytest.approx(2.0 + 0.05 * 4.0)
    losses.total["personal"].backward()
    assert travels["w"].grad is None


def test_what_travels() -> None:
    norms = {"block.norm.weight", "block.norm.bias"}
    names = ["block.conv.weight", "block.norm.weight", "block.norm.running_mean"]
    shared = {
        type(p).__name__: [n for n in names if build(p, norms).is_shared(n)]
        for p in (FedAvgParams(), FedProxParams(), FedAvgFinetuneParams(), FedBnParams(), DittoParams())
    }
    assert shared.pop("FedBnParams") == ["block.conv.weight"]
    assert all(found == ["block.conv.weight", "block.norm.weight"] for found in shared.values())
    assert isinstance(build(FedBnParams(), norms), FedBn)


def test_a_common_model_replaces_what_travels_and_nothing_else() -> None:
    local = {"conv": torch.zeros(1), "norm.weight": torch.ones(1)}
    new = FedBn("cases", {"norm.weight"}).on_global(local, {"conv": torch.tensor([2.0])})
    assert new["conv"].item() == 2.0 and new["norm.weight"] is local["norm.weight"]
