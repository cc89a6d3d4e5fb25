"""Admission by values: what is measured, what is refused and why, and that honest sites are let in."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from gossipseg.algos.params import FedAvgParams, GossipAverageParams
from gossipseg.learn import protocol
from gossipseg.learn.exchange.admission import WHOLE, Admission, LayerScales, Unfit
from gossipseg.learn.params import AdmissionParams
from tests.learn.harness import make_spec, make_trainer, same

OWN = {
    "conv.weight": torch.full((4, 4), 0.5),  # norm 2
    "up.weight": torch.zeros(2, 2),
    "norm.bias": torch.zeros(9),
    "count": torch.tensor([3]),
}


def judged(admission: Admission, **changes: Tensor) -> tuple[str, str]:
    """(reason, detail) of a model that differs from OWN so; ("", "") where it is taken in."""
    examination = admission.against(OWN)
    try:
        for name, tensor in {**OWN, **changes}.items():
            examination.take(name, tensor)
        examination.accept()
    except Unfit as e:
        return e.reason, e.detail
    return "", ""


def experienced(**settings: Any) -> Admission:
    """An admission that has seen as many models as it wants, all like its own."""
    admission = Admission(AdmissionParams(**settings))
    for _ in range(admission.params.history_min):
        assert judged(admission) == ("", "")
    return admission


def test_the_scale_of_a_layer_is_its_norm_or_what_is_usual_where_it_is_nearly_zero() -> None:
    scales = LayerScales(OWN).scales
    usual = math.sqrt(4 / 20)  # root mean square of the 20 values in matrices
    assert scales == pytest.approx({"conv.weight": 2.0, "up.weight": 2 * usual, "norm.bias": 3.0})


@pytest.mark.parametrize(
    ("change", "reason", "figure"),
    [
        ({"conv.weight": torch.full((4, 4), 2.0)}, "norm_exploded", "4 times"),
        ({"conv.weight": torch.full((4, 4), -0.9)}, "layer_changed_too_much", "2.8 times"),
        ({"up.weight": torch.full((2, 2), 40.0)}, "norm_exploded", "up.weight"),
        ({"norm.bias": torch.full((9,), 3.5)}, "norm_exploded", "norm.bias"),
        ({"conv.weight": torch.full((4, 4), float("nan"))}, "not_finite", "conv.weight"),
        ({"norm.bias": torch.full((9,), float("-inf"))}, "not_finite", "norm.bias"),
        ({"conv.weight": torch.full((4, 4), 1e38)}, "norm_exploded", "conv.weight"),
    ],
)
def test_what_is_too_far_off_is_refused_by_name_figure_and_bound(
    change: dict[str, Tensor], reason: str, figure: str
) -> None:
    found, detail = judged(experienced(), **change)
    assert found == reason and figure in detail
    assert reason == "not_finite" or "bound" in detail


@pytest.mark.parametrize("factor", (-1.0, 0.0, 1.5, 2.9))
def test_a_model_of_honest_size_is_never_refused_however_little_the_others_differed(factor: float) -> None:
    anything = experienced(least_likeness=-1.0)
    assert judged(anything, **{"conv.weight": OWN["conv.weight"] * factor}) == ("", "")


@pytest.mark.parametrize(("kept", "reason"), [(1.0, ""), (0.3, ""), (0.05, "unrelated"), (0.0, "unrelated")])
def test_weights_that_have_nothing_to_do_with_this_sites_are_refused_whatever_their_size(
    kept: float, reason: str
) -> None:
    generator = torch.Generator().manual_seed(0)
    own, other = (
        {n: torch.randn(64, 64, generator=generator) for n in ("conv.weight", "up.weight")} for _ in range(2)
    )
    examination = Admission(AdmissionParams()).against(own | {"norm.weight": torch.ones(64)})
    examination.take("norm.weight", torch.ones(64))  # they are the same at every site, trained or not
    found = ""
    for name, tensor in own.items():
        examination.take(name, kept * tensor + math.sqrt(1 - kept**2) * other[name])
    try:
        examination.accept()
    except Unfit as e:
        found = e.reason
        assert "cosine" in e.detail and "bound 0.1" in e.detail
    assert found == reason


def test_a_model_of_zeros_is_like_none_and_one_whose_own_weights_are_zero_has_nothing_to_compare() -> None:
    weights, zeros = torch.ones(4, 4), torch.zeros(4, 4)
    for own, arriving, refused in ((weights, zeros, True), (zeros, weights, False), (zeros, zeros, False)):
        examination = Admission(AdmissionParams()).against({"conv.weight": own})
        examination.take("conv.weight", arriving)
        if refused:
            with pytest.raises(Unfit, match="unrelated"):
                examination.accept()
        else:
            examination.accept()


def test_bounds_are_wide_before_there_is_history_and_follow_what_was_seen_after() -> None:
    admission = Admission(AdmissionParams())
    assert admission.bounds("conv.weight") == (10.0, 10.0)
    for _ in range(5):
        assert judged(admission, **{"conv.weight": OWN["conv.weight"] * 2.5})[0] == ""  # 1.5 away
    assert admission.bounds("conv.weight") == pytest.approx((8.5, 7.5))
    assert admission.bounds("up.weight") == (3.0, 2.0)


def test_the_sites_own_restlessness_widens_its_bounds() -> None:
    admission = experienced()
    moved = {**OWN, "conv.weight": OWN["conv.weight"] * 2}
    admission.note_own(moved, OWN)
    assert admission.bounds("conv.weight") == pytest.approx((6.0, 5.0))
    assert admission.bounds(WHOLE)[1] == pytest.approx(5 * 2 / math.sqrt(4 + 0.8 + 9), rel=1e-3)


def test_a_minority_that_creeps_outwards_moves_no_bound() -> None:
    admission = experienced(history_min=6)
    for factor in (2.5, 2.9, 3.0, 3.0, 3.0):
        judged(admission, **{"conv.weight": OWN["conv.weight"] * factor})
    assert admission.bounds("conv.weight")[1] == 2.0


def test_a_site_that_sends_most_of_what_arrives_creeps_to_no_more_than_the_first_bound() -> None:
    admission, own = Admission(AdmissionParams()), {"conv.weight": torch.ones(4, 4)}
    for _ in range(100):
        norm, change = admission.bounds("conv.weight")
        examination = admission.against(own)
        examination.take("conv.weight", own["conv.weight"] * min(norm, 1 + change) * 0.99)
        examination.accept()
    assert admission.bounds("conv.weight") == (10.0, 10.0)


def test_a_refused_model_leaves_no_trace_in_the_history() -> None:
    admission = experienced()
    before = admission.state()
    judged(admission, **{"up.weight": torch.full((2, 2), 1e3)})
    assert admission.state() == before


def test_the_whole_model_has_a_bound_of_its_own() -> None:
    """Single layers are known to vary, one at a time; here all are off at once."""
    admission, own = (
        Admission(AdmissionParams(least_likeness=-1.0)),
        {f"layer{i}": torch.ones(4, 4) for i in range(3)},
    )
    for _ in range(5):
        admission.accept({}, {**dict.fromkeys(own, 2.0), WHOLE: 0.1})
    examination = admission.against(own)
    for name, tensor in own.items():
        examination.take(name, tensor * -1.5)  # 2.5 away each, and 10 would be allowed
    with pytest.raises(Unfit, match=r"the whole model: it is 2\.5"):
        examination.accept()


def test_switched_off_it_still_refuses_what_is_not_finite() -> None:
    admission = Admission(AdmissionParams(enabled=False))
    assert judged(admission, **{"conv.weight": OWN["conv.weight"] * 1e9}) == ("", "")
    assert judged(admission, **{"conv.weight": OWN["conv.weight"] / 0})[0] == "not_finite"


@given(st.floats(0.01, 1e30), st.sampled_from(sorted(n for n in OWN if n != "count")))
def test_history_survives_a_checkpoint(figure: float, name: str) -> None:
    admission = Admission(AdmissionParams())
    admission.accept({name: figure}, {name: figure / 2})
    again = Admission(AdmissionParams())
    again.load(admission.state())
    assert again.state() == admission.state() and again.bounds(name) == admission.bounds(name)
    again.load(None)
    assert again.accepted == 0


# ---------------------------------------------------------------- in the trainer


def changed(source: str, path: Path, factor: float) -> str:
    save_file({name: tensor * factor for name, tensor in load_file(source).items()}, path)
    return str(path)


def exported(data: Path, state: Path, algorithm: Any) -> str:
    trainer = make_trainer(make_spec(data, state, site="south", algorithm=algorithm))
    return str(trainer.run_round(protocol.StartRound(1, export=True)).export.path)


def test_a_scaled_visitor_is_refused_before_it_touches_the_model_and_an_honest_one_is_not(
    data: Path, tmp_path: Path
) -> None:
    algorithm = GossipAverageParams()
    honest = exported(data, tmp_path / "s", algorithm)
    scaled = changed(honest, tmp_path / "scaled.safetensors", 20.0)
    first, second = (
        make_trainer(make_spec(data, tmp_path / name, algorithm=algorithm)) for name in ("a", "b")
    )
    for trainer in (first, second):
        trainer.run_round(protocol.StartRound(1))
    done = first.run_round(protocol.StartRound(2, protocol.Visit(scaled, "s", "south", 4, 5)))
    assert (done.visit.outcome, done.visit.reason) == ("refused", "norm_exploded")
    assert "bound" in done.visit.detail
    second.run_round(protocol.StartRound(2))
    assert same(first.model_state.weights(), second.model_state.weights()) and first.admission.accepted == 0
    done = first.run_round(protocol.StartRound(3, protocol.Visit(honest, "h", "south", 4, 5)))
    assert done.visit.outcome == "merged" and first.admission.accepted == 1
    state = first.state()
    assert state["admission"]["accepted"] == 1
    second.load(state)
    assert second.admission.state() == first.admission.state()


def test_a_scaled_common_model_and_a_scaled_update_are_left_out(data: Path, tmp_path: Path) -> None:
    honest = exported(data, tmp_path / "s", FedAvgParams())
    scaled = changed(honest, tmp_path / "scaled.safetensors", -30.0)
    trainer = make_trainer(make_spec(data, tmp_path / "n", algorithm=FedAvgParams()))
    order = protocol.StartRound(1, start_from=protocol.GlobalModelFile(scaled, "c", 1))
    done = trainer.run_round(order)
    assert "norm_exploded" in done.warning and "was not taken" in done.warning
    files = [protocol.UpdateFile("south", honest, 5), protocol.UpdateFile("west", scaled, 10**9)]
    combined = trainer.aggregate(protocol.Aggregate(1, 0, files))
    assert combined.contributors == ["south"] and combined.refused == {"west": "norm_exploded"}
    assert combined.detail.startswith("west: ")


def test_models_that_are_averaged_must_be_alike(data: Path, tmp_path: Path) -> None:
    """Another seed's weights stand for a site that has grown apart."""
    strange = make_spec(data, tmp_path / "s", site="south")
    south = make_trainer(dataclasses.replace(strange, seed=8))
    export = south.run_round(protocol.StartRound(1, export=True)).export
    north = make_trainer(make_spec(data, tmp_path / "n"))
    north.run_round(protocol.StartRound(1))
    visit = north.run_round(protocol.StartRound(2, protocol.Visit(export.path, "v", "south", 4, 2))).visit
    assert (visit.outcome, visit.reason) == ("refused", "unrelated")
