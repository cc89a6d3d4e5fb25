"""A swap at two workers: the mean is kept, whatever is trained meanwhile, and nothing is applied twice."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from gossipseg.algos.params import GcmlParams, GossipAverageParams
from gossipseg.learn import protocol
from gossipseg.learn.exchange.swap import add_difference
from tests.learn.harness import make_spec, make_trainer, same, worker
from tests.learn.training.test_resume import through_a_file

SWAP = protocol.Swap("north", 1)


def trainer_of(data: Path, folder: Path, site: str, dtype: str = "float32", **more: Any) -> Any:
    spec = make_spec(data, folder / site, site=site, **more)
    return make_trainer(dataclasses.replace(spec, swaps=True, wire_dtype=dtype))


def floats(trainer: Any) -> dict[str, Tensor]:
    return {n: t.clone() for n, t in trainer.model_state.weights().items() if t.is_floating_point()}


def snapshots(*trainers: Any, swap: protocol.Swap = SWAP) -> list[protocol.Export]:
    found = [t.export_snapshot(protocol.ExportSnapshot(swap)) for t in trainers]
    assert all(f.reason == "" and f.swap == swap for f in found)
    return [f.export for f in found]


def mix(own: protocol.Export, theirs: protocol.Export, weight: float, **more: Any) -> protocol.ApplySwap:
    return protocol.ApplySwap(SWAP, "x", "mix", weight, theirs.path, "h", own.path, **more)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_the_weighted_mean_is_kept_though_both_train_on(data: Path, tmp_path: Path, dtype: str) -> None:
    north, south = (trainer_of(data, tmp_path, site, dtype) for site in ("north", "south"))
    for trainer in (north, south):
        trainer.run_round(protocol.StartRound(1))
    ours, theirs = snapshots(north, south)
    for trainer in (north, south):
        trainer.run_round(protocol.StartRound(2))
    before = [floats(t) for t in (north, south)]
    share = 0.3
    assert north.apply_swap(mix(ours, theirs, share)).reason == ""
    assert south.apply_swap(mix(theirs, ours, 1 - share)).reason == ""
    after = [floats(t) for t in (north, south)]
    for name in before[0]:
        # m_north : m_south = 1 − share : share
        mean = [(1 - share) * a[name] + share * b[name] for a, b in (before, after)]
        assert torch.allclose(mean[0], mean[1], atol=1e-6), name
    head = "network.head.weight"
    assert not torch.equal(before[0][head], after[0][head])


def test_the_mix_by_hand() -> None:
    weights = {"w": torch.tensor([10.0, 20.0]), "n": torch.tensor(3)}
    theirs = {"w": torch.tensor([5.0, 1.0]), "n": torch.tensor(7)}
    own = {"w": torch.tensor([1.0, 2.0]), "n": torch.tensor(3)}
    add_difference(weights, theirs, own, 0.25)
    assert weights["w"].tolist() == [11.0, 19.75] and weights["n"].item() == 3


def test_without_steps_between_two_equal_sites_have_one_model(data: Path, tmp_path: Path) -> None:
    north, south = (trainer_of(data, tmp_path, site) for site in ("north", "south"))
    for trainer in (north, south):
        trainer.run_round(protocol.StartRound(1))
    moments = through_a_file(north.model_state.learner.optimizer.state_dict())
    ours, theirs = snapshots(north, south)
    north.apply_swap(mix(ours, theirs, 0.5))
    south.apply_swap(mix(theirs, ours, 0.5))
    one, other = floats(north), floats(south)
    assert all(torch.allclose(one[n], other[n], atol=1e-6) for n in one)
    assert same(north.model_state.learner.optimizer.state_dict(), moments), "the moments stay"


def test_a_swap_is_applied_once_also_across_a_restart(data: Path, tmp_path: Path) -> None:
    north, south = (trainer_of(data, tmp_path, site) for site in ("north", "south"))
    for trainer in (north, south):
        trainer.run_round(protocol.StartRound(1))
    ours, theirs = snapshots(north, south)
    north.apply_swap(mix(ours, theirs, 0.5))
    once = floats(north)
    assert north.apply_swap(mix(ours, theirs, 0.5)).reason == "" and same(floats(north), once)
    again = trainer_of(data, tmp_path, "north")
    again.load(through_a_file(north.state()))
    assert again.apply_swap(mix(ours, theirs, 0.5)).reason == "" and same(floats(again), once)
    assert again.history.last_swap == ("north", 1) and again.history.first_exchange == 2


def test_a_swap_is_applied_once_though_the_worker_is_stopped_while_it_validates(
    data: Path, tmp_path: Path
) -> None:
    """The weights are mixed by then, and a checkpoint of that moment says so."""
    north, south = (trainer_of(data, tmp_path, site) for site in ("north", "south"))
    for trainer in (north, south):
        trainer.run_round(protocol.StartRound(1))
    ours, theirs = snapshots(north, south)
    once = trainer_of(data, tmp_path, "north")
    once.load(through_a_file(north.state()))
    once.apply_swap(mix(ours, theirs, 0.5))
    before, gate = floats(north), north.run.gate

    def stop_once_mixed() -> None:
        if not same(floats(north), before):
            raise InterruptedError

    north.run.gate = stop_once_mixed
    with pytest.raises(InterruptedError):
        north.apply_swap(mix(ours, theirs, 0.5))
    again = trainer_of(data, tmp_path, "north")
    again.load(through_a_file(north.state()))
    north.run.gate = gate
    assert again.apply_swap(mix(ours, theirs, 0.5)).reason == "" and same(floats(again), floats(once))
    assert again.history.first_exchange == 2


def test_with_dp_no_partner_is_told_of(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is set aside would tell of the validation data, which no noise hides."""
    north, south = (trainer_of(data, tmp_path, site, privacy={"dp": {}}) for site in ("north", "south"))
    ours, theirs = snapshots(north, south)
    monkeypatch.setattr(north.site, "losses", lambda *a, **k: pytest.fail("it is not even measured"))
    assert north.apply_swap(mix(ours, theirs, 0.5)).harm == ""
    assert north.history.last_swap == ("north", 1)


@pytest.mark.parametrize("private", [False, True])
def test_what_goes_with_a_model_tells_nothing_of_the_mix(data: Path, tmp_path: Path, private: bool) -> None:
    """Neither weights nor members: under dp they would tell of data that are not accounted for."""
    more: dict[str, Any] = {"algorithm": GossipAverageParams(), "training": {"personal": "always"}}
    if private:
        pytest.importorskip("opacus")
        more["privacy"] = {"dp": {"noise_multiplier": 1.0, "delta": 0.1}, "seed": 3}
    north = trainer_of(data, tmp_path, "north", **more)
    update = north.run_round(protocol.StartRound(1, export=True)).export
    (snapshot,) = snapshots(north)
    for file in (update.path, snapshot.path):
        with safe_open(file, "pt") as opened:
            metadata = opened.metadata()
        assert set(metadata) == {"gossipseg", "site", "round", "steps", "cases", "dice_val"}
        assert float(metadata["dice_val"]) == pytest.approx(north.history.dice_shared)


def test_a_young_site_takes_the_partners_model_over(data: Path, tmp_path: Path) -> None:
    north, south = (
        trainer_of(data, tmp_path, site, algorithm=GcmlParams(), training={"rounds": 9})
        for site in ("north", "south")
    )
    south.run_round(protocol.StartRound(1))
    (theirs,) = snapshots(south)
    order = protocol.ApplySwap(SWAP, "south", "copy", 1.0, theirs.path, "h", None, steps=40, round=6)
    done = north.apply_swap(order)
    assert (done.reason, done.steps, done.ahead) == ("", 40, 6)
    assert done.copied and done.deployed == "shared" and done.deployed_reason == north.mix.reason
    assert "has trained 0 of 5 rounds" in done.deployed_reason
    assert all(torch.equal(t, floats(south)[n]) for n, t in floats(north).items())
    assert north.personal.copied_from == "h" and not north.model_state.learner.optimizer.state
    assert same(north.personal.model_state.weights(), north.model_state.weights())


def test_a_copy_that_claims_a_far_round_leaves_a_round_to_train(data: Path, tmp_path: Path) -> None:
    north, south = (
        trainer_of(data, tmp_path, s, algorithm=GcmlParams(), training={"rounds": 3}) for s in ("n", "s")
    )
    (theirs,) = snapshots(south)
    north.run_round(protocol.StartRound(1))
    order = protocol.ApplySwap(SWAP, "s", "copy", 1.0, theirs.path, "h", None, steps=40, round=10**12)
    assert north.apply_swap(order).ahead == 1
    assert north.mix.weights == {"shared": 1.0} and north.history.dice_val is None
    north.run_round(protocol.StartRound(2))
    late = protocol.ApplySwap(protocol.Swap("s", 9), "s", "copy", 1.0, theirs.path, "h", None, round=3)
    before = floats(north)
    assert north.apply_swap(late).reason == "last_round" and same(floats(north), before)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t: t["network.head.weight"].fill_(float("nan")), "not_finite"),
        (lambda t: t.update(renamed=t.pop("network.head.bias")), "schema_mismatch"),
    ],
)
def test_a_bad_snapshot_is_not_admitted(data: Path, tmp_path: Path, change: Any, reason: str) -> None:
    north, south = (trainer_of(data, tmp_path, site) for site in ("north", "south"))
    (good,) = snapshots(south)
    tensors = load_file(good.path)
    change(tensors)
    bad = tmp_path / "bad.safetensors"
    save_file(tensors, bad)
    asked = protocol.AdmitSnapshot(SWAP, "south", str(bad), "h")
    assert north.admit_snapshot(asked).reason == reason
    fine = protocol.AdmitSnapshot(SWAP, "south", good.path, "h")
    assert north.admit_snapshot(fine).reason == ""
    before = floats(north)
    (own,) = snapshots(north)
    order = protocol.ApplySwap(SWAP, "south", "mix", 0.5, str(bad), "h", own.path)
    assert north.apply_swap(order).reason == reason and same(floats(north), before)
    assert north.history.last_swap is None


def test_a_model_that_is_not_finite_is_never_sent_and_becomes_its_average(data: Path, tmp_path: Path) -> None:
    trainer = trainer_of(data, tmp_path, "north")
    trainer.run_round(protocol.StartRound(1))
    with torch.no_grad():
        next(iter(trainer.model_state.model.parameters())).fill_(float("inf"))
    told = trainer.export_snapshot(protocol.ExportSnapshot(SWAP))
    assert told.export is None and told.reason == "not_finite"
    done = trainer.run_round(protocol.StartRound(2))
    assert "goes on from its average" in done.warning
    assert all(torch.isfinite(t).all() for t in floats(trainer).values())


def test_a_partner_that_does_harm_is_told_of(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    north, south = (trainer_of(data, tmp_path, site) for site in ("north", "south"))
    ours, theirs = snapshots(north, south)
    monkeypatch.setattr(north.site, "patients", lambda split: ("a", "b", "c"))
    losses = iter([[1.0, 1.0, 1.0], [1.3, 1.4, 1.2]] * 3)
    monkeypatch.setattr(north.site, "losses", lambda model, split, on_progress: next(losses))
    orders = [
        protocol.ApplySwap(protocol.Swap("x", n), "west", "mix", 0.5, theirs.path, "h", ours.path)
        for n in (1, 2, 3)
    ]
    said = [north.apply_swap(order).harm for order in orders]
    assert said[:2] == ["", ""] and "raised the validation loss by 0.300" in said[2]
    assert north.apply_swap(orders[2]).harm == "", "told once"


def test_under_swaps_the_guard_has_no_part(data: Path, tmp_path: Path) -> None:
    trainer = trainer_of(data, tmp_path, "north")
    for number in (1, 2, 3, 4):
        trainer.run_round(protocol.StartRound(number))
    assert not trainer.model_state.recent and trainer.guard.state()["calm"] == 0


@pytest.mark.slow
def test_a_worker_swaps_between_two_steps_and_its_checkpoint_names_the_swap(
    data: Path, tmp_path: Path
) -> None:
    south = trainer_of(data, tmp_path, "south", "float16")
    south.run_round(protocol.StartRound(1))
    (theirs,) = snapshots(south)
    spec = make_spec(data, tmp_path / "w", training={"steps_per_round": 60})
    spec = dataclasses.replace(spec, swaps=True)
    with worker(spec) as w:
        assert w.wait(protocol.Ready).last_swap is None
        w.send(protocol.StartRound(1))
        w.wait(protocol.Progress)
        w.send(protocol.ExportSnapshot(SWAP))
        own = w.wait(protocol.SnapshotExported).export
        w.send(protocol.AdmitSnapshot(SWAP, "south", theirs.path, "h"))
        assert w.wait(protocol.SnapshotAdmitted).reason == ""
        w.send(protocol.ApplySwap(SWAP, "south", "mix", 0.5, theirs.path, "h", own.path))
        done = w.wait(protocol.SwapApplied)
        assert (done.swap, done.frm, done.reason) == (SWAP, "south", "")
        assert not any(isinstance(m, protocol.RoundDone) for m in w.messages), "the round goes on"
        w.kill()
    with worker(spec) as w:
        assert w.wait(protocol.Ready).last_swap == SWAP
        w.send(protocol.ApplySwap(SWAP, "south", "mix", 0.5, theirs.path, "h", own.path))
        assert w.wait(protocol.SwapApplied).reason == "", "told of again, and not applied"
        assert w.stop() == 0, w.stderr
