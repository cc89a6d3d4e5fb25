"""Clip and noise: equation (1) by hand, and that only what leaves the site is touched."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from gossipseg.algos.params import FedAvgParams, FedProxParams, GossipAverageParams
from gossipseg.errors import ConfigError
from gossipseg.learn import protocol
from gossipseg.learn.exchange.guard import Merge
from gossipseg.learn.params import PrivacyParams
from gossipseg.learn.privacy.clip_and_noise import Release
from tests.learn.harness import make_spec, make_trainer, same

START = {"a": torch.zeros(2), "b": torch.ones(1), "count": torch.tensor([4])}
NOW = {"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([5.0]), "count": torch.tensor([9])}  # ‖Δ‖ = 5


def released(**settings: Any) -> dict[str, Tensor]:
    return Release(PrivacyParams(**settings), "north", START).of(NOW, round=1)


def test_the_change_is_cut_to_its_length_over_all_tensors_together() -> None:
    out = released(clip_norm=1.0)
    assert torch.allclose(out["a"], torch.tensor([0.6, 0.0])) and torch.allclose(
        out["b"], torch.tensor([1.8])
    )
    assert out["count"].tolist() == [9]
    assert same(released(clip_norm=5.0), NOW) and same(released(), NOW)


def test_the_noise_has_the_promised_size_and_comes_from_the_system_unless_seeded() -> None:
    wide = {"w": torch.zeros(200_000)}
    noise = Release(PrivacyParams(2.0, 0.5), "north", wide).of(wide, 1)["w"]
    assert noise.std().item() == pytest.approx(1.0, rel=0.02) and abs(noise.mean().item()) < 0.02
    again = Release(PrivacyParams(2.0, 0.5), "north", wide).of(wide, 1)["w"]
    assert not torch.equal(noise, again)
    one, two, other = (
        Release(PrivacyParams(2.0, 0.5, seed=3), site, wide).of(wide, round)["w"]
        for site, round in (("north", 1), ("north", 1), ("south", 1))
    )
    assert torch.equal(one, two) and not torch.equal(one, other)


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    return sum((a[n].double() - b[n].double()).square().sum().item() for n in a) ** 0.5


@pytest.mark.parametrize("algorithm", (GossipAverageParams(), FedAvgParams(), FedProxParams()))
def test_the_sites_own_model_is_never_touched_and_the_file_is_clipped(
    data: Path, tmp_path: Path, algorithm: Any
) -> None:
    plain, private = (
        make_trainer(make_spec(data, tmp_path / name, algorithm=algorithm, privacy=privacy, rounds=9))
        for name, privacy in (("a", {}), ("b", {"clip_norm": 0.01, "noise_multiplier": 0.0}))
    )
    start = {n: t.clone() for n, t in plain.model_state.weights().items()}
    files = [
        load_file(t.run_round(protocol.StartRound(1, export=True)).export.path) for t in (plain, private)
    ]
    assert same(plain.model_state.weights(), private.model_state.weights())
    assert distance(files[0], start) > 0.05 > 0.02 > distance(files[1], start)


def test_in_gossip_the_reference_is_what_was_released_and_it_survives_a_restart(
    data: Path, tmp_path: Path
) -> None:
    spec = make_spec(data, tmp_path, algorithm=GossipAverageParams(), privacy={"clip_norm": 0.02})
    trainer, again = make_trainer(spec), make_trainer(spec)
    first = load_file(trainer.run_round(protocol.StartRound(1, export=True)).export.path)
    again.load(trainer.state())
    second = load_file(again.run_round(protocol.StartRound(2, export=True)).export.path)
    assert 0.015 < distance(first, second) < 0.025  # float16 rounds a little
    coordinated = make_trainer(
        make_spec(data, tmp_path, algorithm=FedAvgParams(), privacy={"clip_norm": 0.02})
    )
    start = {n: t.clone() for n, t in coordinated.model_state.weights().items()}
    for round in (1, 2):
        file = load_file(coordinated.run_round(protocol.StartRound(round, export=True)).export.path)
    assert distance(file, start) < 0.025  # no global model came: the reference is still W_0


def test_what_others_know_moves_with_a_swap_that_is_applied() -> None:
    """Equation (2) by hand: from the own snapshot where the partner got it, else from what was known."""
    theirs, told = (
        {"a": torch.tensor([4.0, 2.0]), "b": torch.zeros(1)},
        {"a": torch.ones(2), "b": torch.ones(1)},
    )
    given, kept = (Release(PrivacyParams(clip_norm=1.0), "north", START) for _ in range(2))
    given.swapped(theirs, 0.25, told)
    kept.swapped(theirs, 0.25, None)
    assert given.reference["a"].tolist() == [1.75, 1.25] and given.reference["b"].tolist() == [0.75]
    assert kept.reference["a"].tolist() == [1.0, 0.5] and kept.reference["b"].tolist() == [0.75]
    assert given.reference.keys() == {"a", "b"}


def test_snapshots_that_reached_nobody_do_not_add_up(data: Path, tmp_path: Path) -> None:
    trainer = swapping(data, tmp_path, "north")
    start = {n: t.clone() for n, t in trainer.model_state.weights().items()}
    for round in (1, 2, 3):
        trainer.run_round(protocol.StartRound(round))
        swap = protocol.Swap("north", round)
        file = trainer.export_snapshot(protocol.ExportSnapshot(swap)).export.path
        assert distance(load_file(file), start) < CLIP + 1e-4, "each is as near to what others know"
    assert distance(trainer.model_state.weights(), start) > 3 * CLIP


def test_a_site_that_only_gives_tells_more_each_time(data: Path, tmp_path: Path) -> None:
    """It applies nothing: its snapshots had stayed beside W_0, whatever it trained."""
    trainer = swapping(data, tmp_path, "north")
    known = {n: t.clone() for n, t in trainer.model_state.weights().items()}
    for round in range(1, 5):
        trainer.run_round(protocol.StartRound(round))
        order = protocol.ExportSnapshot(protocol.Swap("north", round), keeps=True)
        told = load_file(trainer.export_snapshot(order).export.path)
        assert distance(told, known) == pytest.approx(CLIP, rel=0.01)
        known = told


def test_a_harmful_model_that_was_taken_over_is_not_what_others_know(data: Path, tmp_path: Path) -> None:
    """Once the take-over is undone, the next release begins where it would have."""
    private = {"clip_norm": CLIP, "noise_multiplier": 0.0}
    spec = make_spec(data, tmp_path / "n", algorithm=GossipAverageParams(), rounds=40, privacy=private)
    trainer = make_trainer(spec)
    for round in (1, 2, 3):
        trainer.run_round(protocol.StartRound(round, export=True))
    bad = {n: t + 1.0 if t.is_floating_point() else t for n, t in trainer.model_state.weights().items()}
    before = {n: t.clone() for n, t in trainer.global_model.private_state().items()}
    merged = Merge("h", "x", {}, trainer.model_state.snapshot(), 12, 12, 0, known=before)
    trainer.guard.pending.append(merged)
    trainer.global_model.became(bad)
    assert not same(trainer.global_model.private_state(), before)
    again = make_trainer(spec)
    again.load(trainer.state())
    again.model_state.model.load_state_dict(
        {n: t * float("nan") for n, t in floats(again).items()}, strict=False
    )
    assert again.reception.undo_not_finite() is not None
    assert same(again.global_model.private_state(), before)


@pytest.mark.parametrize("exchanged", [True, False])
def test_where_clipping_begins_others_know_the_model_as_it_stands(
    data: Path, tmp_path: Path, exchanged: bool
) -> None:
    """Not where they have seen none yet: its first release would tell all that the site has learned."""
    plain = make_spec(data, tmp_path / "a", algorithm=GossipAverageParams(), rounds=9)
    trainer = make_trainer(dataclasses.replace(plain, swaps=True, wire_dtype="float32"))
    for round in range(1, 4):
        trainer.run_round(protocol.StartRound(round))
    trainer.history.first_exchange = 1 if exchanged else None
    clipping = swapping(data, tmp_path, "north")
    start = floats(clipping)
    clipping.load(trainer.state())
    told = clipping.export_snapshot(protocol.ExportSnapshot(protocol.Swap("north", 1))).export
    least = 0.0 if exchanged else CLIP
    known = floats(trainer) if exchanged else start
    assert distance(load_file(told.path), known) == pytest.approx(least, abs=1e-4)


@pytest.mark.parametrize("gave", [True, False])
def test_a_site_that_took_a_model_over_swaps_from_there(data: Path, tmp_path: Path, gave: bool) -> None:
    """It had gone on to release a model near W_0, and each swap dragged both sites there."""
    north, south = (swapping(data, tmp_path, site) for site in ("north", "south"))
    for round in range(1, 5):
        north.run_round(protocol.StartRound(round))
        theirs = swapped_over(north, round)
    south.apply_swap(protocol.ApplySwap(protocol.Swap("n", 1), "north", "copy", 1.0, theirs.path, "h", None))
    now, start = floats(south), floats(make_trainer(swapping_spec(data, tmp_path, "east")))
    assert distance(now, start) > 3 * CLIP
    swap = protocol.Swap("south", 2)
    own = south.export_snapshot(protocol.ExportSnapshot(swap)).export
    assert distance(load_file(own.path), now) < 1e-4, "there is nothing that north does not know"
    order = protocol.ApplySwap(swap, "north", "mix", 0.5, theirs.path, "h", own.path, gave=gave)
    assert south.apply_swap(order).reason == ""
    assert distance(floats(south), now) < 1e-4
    again = make_trainer(swapping_spec(data, tmp_path, "south"))
    again.load(south.state())
    after = again.export_snapshot(protocol.ExportSnapshot(protocol.Swap("south", 3))).export
    assert distance(load_file(after.path), now) < 1e-4


def test_a_late_joiner_of_one_way_gossip_releases_from_the_model_that_it_took_over(
    data: Path, tmp_path: Path
) -> None:
    north, south = (
        make_trainer(
            make_spec(
                data, tmp_path / site, site=site, algorithm=GossipAverageParams(), rounds=9, privacy=given
            )
        )
        for site, given in (("north", {}), ("south", {"clip_norm": CLIP}))
    )
    for round in (1, 2):
        export = north.run_round(protocol.StartRound(round, export=True)).export
    visit = protocol.Visit(export.path, "h", "north", export.steps, export.cases, 2)
    south.run_round(protocol.StartRound(1, visit))
    told = load_file(south.run_round(protocol.StartRound(2, export=True)).export.path)
    assert distance(told, load_file(export.path)) < CLIP * 1.1
    late = make_trainer(dataclasses.replace(south.settings.spec, state_dir=str(tmp_path / "late")))
    late.run_round(protocol.StartRound(1))
    before = late.global_model.private_state()
    late.run_round(protocol.StartRound(2, msgspec.structs.replace(visit, steps=10_000)))
    (merge,) = late.guard.pending
    assert same(merge.known, before) and not same(late.global_model.private_state(), before)


CLIP = 0.02


def swapping_spec(data: Path, folder: Path, site: str) -> Any:
    private = {"clip_norm": CLIP, "noise_multiplier": 0.0}
    spec = make_spec(
        data, folder / site, site=site, algorithm=GossipAverageParams(), privacy=private, rounds=9
    )
    return dataclasses.replace(spec, swaps=True, wire_dtype="float32")


def swapping(data: Path, folder: Path, site: str) -> Any:
    return make_trainer(swapping_spec(data, folder, site))


def floats(trainer: Any) -> dict[str, Tensor]:
    return {n: t.clone() for n, t in trainer.model_state.weights().items() if t.is_floating_point()}


def swapped_over(trainer: Any, number: int) -> protocol.Export:
    """Its snapshot, as told to a partner with the same: what others know follows the model step by step."""
    swap = protocol.Swap("north", number)
    own = trainer.export_snapshot(protocol.ExportSnapshot(swap)).export
    order = protocol.ApplySwap(swap, "x", "mix", 0.5, own.path, "h", own.path, gave=True)
    assert trainer.apply_swap(order).reason == ""
    return own


def test_unknown_settings_are_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"privacy\.epsilon"):
        make_trainer(make_spec(data, tmp_path, privacy={"epsilon": 3}))
