"""Rounds and visits of a real trainer on tiny real data, in this process."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec.structs import replace
from safetensors.torch import load_file, save_file
from torch import Tensor

from gossipseg.algos.params import GcmlParams, GossipAverageParams, LocalParams
from gossipseg.errors import LocalError
from gossipseg.learn import protocol
from gossipseg.learn.engine import run_state
from gossipseg.learn.evaluation.evaluate import CaseScore, Scores
from gossipseg.learn.exchange.reception import LATE_JOINER_RATIO
from gossipseg.learn.params import MAX_CLAIMED_COUNT
from tests.learn.harness import make_spec, make_trainer, same, write_nifti_site


def trainer_after_one_round(data: Path, state_dir: Path, algorithm: Any = None, **more: Any) -> Any:
    trainer = make_trainer(make_spec(data, state_dir, algorithm=algorithm, **more))
    trainer.run_round(protocol.StartRound(1))
    return trainer


def copy_of(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in weights.items()}


def fix_scores(monkeypatch: pytest.MonkeyPatch, trainer: Any, by_call: list[float]) -> list[Any]:
    """Let the validation say what it says of three patients, call by call (of the EMA: 0.5)."""
    calls: list[Any] = []

    def score(model: Any, split: str, on_progress: Any) -> Scores:
        on_progress(1.0)
        if model is trainer.model_state.ema:
            value = 0.5
        else:
            calls.append(model)
            value = by_call[len(calls) - 1]
        cases = tuple(CaseScore(str(i), {"disc": value}, {}) for i in range(3))
        return Scores(value, {"disc": value}, cases)

    monkeypatch.setattr(trainer.site, "score", score)
    monkeypatch.setattr(trainer.site, "patients", lambda split: ("a", "b", "c"))
    return calls


# ---------------------------------------------------------------- rounds


def test_a_local_round(data: Path, tmp_path: Path) -> None:
    reports: list[protocol.Progress] = []
    trainer = make_trainer(make_spec(data, tmp_path, algorithm=LocalParams()), reports=reports)
    before = copy_of(trainer.model_state.weights())
    done = trainer.run_round(protocol.StartRound(1, export=True))
    assert (done.round, done.steps, done.warning, done.visit) == (1, 4, "", None)
    assert done.loss is not None and done.terms["seg"] == pytest.approx(done.loss)
    assert done.dice_val is not None and done.dice_val_local == [done.dice_val]
    after = trainer.model_state.weights()
    assert not any(torch.equal(before[n], after[n]) for n in before if n.endswith("conv.weight"))
    for name, ema in trainer.model_state.ema.state_dict().items():
        assert torch.equal(ema, after[name]), name  # no weight on the initial model
    file = load_file(done.export.path)
    assert file.keys() == after.keys()
    assert all(torch.allclose(file[n].float(), after[n], atol=1e-3) for n in file)
    assert [r.step for r in reports if r.activity == "training"] == [1, 2, 3, 4]
    assert {r.activity for r in reports} == {"training", "validation"}


def test_the_same_seed_trains_the_same_model_and_algorithms_see_the_same_batches(
    data: Path, tmp_path: Path
) -> None:
    models = [
        trainer_after_one_round(data, tmp_path, algorithm).model_state.weights()
        for algorithm in (LocalParams(), LocalParams(), GcmlParams())
    ]
    assert same(models[0], models[1]) and same(models[0], models[2])


def test_sites_of_a_federation_start_from_the_same_model(data: Path, tmp_path: Path) -> None:
    north, south = (make_trainer(make_spec(data, tmp_path, site=site)) for site in ("north", "south"))
    assert north.initial_hash == south.initial_hash and len(north.initial_hash) == 64
    assert north.network_signature == south.network_signature
    north.run_round(protocol.StartRound(1))
    south.run_round(protocol.StartRound(1))
    assert not same(north.model_state.weights(), south.model_state.weights())


def test_a_round_out_of_turn_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(LocalError, match="asked for round 3"):
        make_trainer(make_spec(data, tmp_path)).run_round(protocol.StartRound(3))


def test_validation_is_as_rare_as_asked_and_never_left_out_at_the_end(data: Path, tmp_path: Path) -> None:
    spec = make_spec(data, tmp_path, algorithm=LocalParams(), rounds=3, training={"validate_every_rounds": 2})
    trainer = make_trainer(dataclasses.replace(spec, report_test=True))
    done = [trainer.run_round(protocol.StartRound(r)) for r in (1, 2, 3)]
    assert [d.dice_val is not None for d in done] == [False, True, True]
    assert [d.dice_test is not None for d in done] == [False, False, True]
    assert [r for r, _ in trainer.history.dice_history] == [2, 3]


@pytest.mark.parametrize("loss", ("dice_ce", "dice_focal", "generalized_dice"))
@pytest.mark.parametrize("output", ("softmax", "sigmoid"))
def test_every_loss_and_output_trains_with_a_visitor(
    data: Path, tmp_path: Path, loss: str, output: str
) -> None:
    settings = {"loss": loss, "output": output, "steps_per_round": 2}
    gcml = GcmlParams(lambda_ramp_rounds=0)
    north = trainer_after_one_round(data, tmp_path / "n", gcml, training=settings)
    south = make_trainer(make_spec(data, tmp_path / "s", site="south", algorithm=gcml, training=settings))
    export = south.run_round(protocol.StartRound(1, export=True)).export
    done = north.run_round(protocol.StartRound(2, protocol.Visit(export.path, "s", "south", 2, 2)))
    assert done.visit.outcome == "merged" and done.loss is not None and done.warning == ""
    assert {"pull", "push"} <= done.terms.keys() and done.deployed == "mix"


def test_three_dimensions_take_the_same_path(tmp_path: Path) -> None:
    data = write_nifti_site(tmp_path / "site", cases=5)
    settings = {"steps_per_round": 1, "batch_size": 1, "window_overlap": 0.0}
    trainer = make_trainer(make_spec(data, tmp_path / "n", dims=3, training=settings))
    first = trainer.run_round(protocol.StartRound(1, export=True))
    visit = protocol.Visit(first.export.path, "h", "south", 1, 1)
    done = trainer.run_round(protocol.StartRound(2, visit))
    assert done.visit.outcome == "merged" and done.dice_val is not None


# ---------------------------------------------------------------- visits


def test_a_visit_is_averaged_and_then_both_models_train(
    data: Path, tmp_path: Path, guest: protocol.Visit
) -> None:
    trainer = trainer_after_one_round(data, tmp_path, GcmlParams())
    seen: dict[str, Any] = {}
    merge = trainer.algorithm.on_arrival

    def spy(local: Any, incoming: Any) -> Any:
        seen.update(local=copy_of(local), merged=copy_of(merge(local, incoming)))
        return seen["merged"]

    trainer.algorithm.on_arrival = spy
    own = copy_of(trainer.personal.model_state.weights())
    done = trainer.run_round(protocol.StartRound(2, guest))
    assert (done.visit.outcome, done.visit.hash, done.visit.frm) == ("merged", guest.hash, "south")
    assert {"seg", "pull", "push"} <= done.terms.keys()
    assert done.steps == 54  # the larger of 4 own and 50 of the visitor, and this round's
    brought, name = load_file(guest.path), "network.head.weight"
    assert torch.allclose(seen["merged"][name], (seen["local"][name] + brought[name]) / 2, atol=1e-6)
    assert torch.equal(seen["local"][name], own[name]), "until then both were one model"
    assert not same(trainer.model_state.weights(), trainer.personal.model_state.weights())
    assert trainer.history.last_visit == guest.hash and trainer.history.visits == 1
    assert [merge.hash for merge in trainer.guard.pending] == [guest.hash]


def test_the_first_model_is_taken_over_outright(data: Path, tmp_path: Path, guest: protocol.Visit) -> None:
    trainer = make_trainer(make_spec(data, tmp_path, training={"learning_rate": 0.0}))
    done = trainer.run_round(protocol.StartRound(1, guest))
    assert (done.visit.outcome, done.visit.reason, done.steps) == ("merged", "taken_over", 54)
    brought = load_file(guest.path)
    for model in (trainer.model_state.model, trainer.model_state.ema):
        assert all(torch.allclose(t, brought[n].float(), atol=1e-6) for n, t in model.state_dict().items())
    assert len(trainer.model_state.learner.optimizer.state) > 0 and not trainer.guard.pending
    assert trainer.history.last_visit == guest.hash


def test_a_late_joiner_takes_over_the_first_model_and_averages_from_then_on(
    data: Path, tmp_path: Path, guest: protocol.Visit
) -> None:
    trainer = make_trainer(make_spec(data, tmp_path))
    own = trainer.run_round(protocol.StartRound(1)).steps
    far_ahead = replace(guest, steps=own * LATE_JOINER_RATIO)
    done = trainer.run_round(protocol.StartRound(2, far_ahead))
    assert done.visit is not None and done.visit.reason == "taken_over"
    assert done.steps == far_ahead.steps + own

    other = make_trainer(make_spec(data, tmp_path / "other"))
    own = other.run_round(protocol.StartRound(1)).steps
    done = other.run_round(protocol.StartRound(2, replace(guest, steps=own * LATE_JOINER_RATIO - 1)))
    assert done.visit is not None and done.visit.reason != "taken_over"


def test_a_claim_of_steps_beyond_measure_is_bounded_and_not_taken_for_this_sites_own(
    data: Path, tmp_path: Path, guest: protocol.Visit
) -> None:
    """Its own words would else be refused by everybody, and all honest models be stale to it, for good."""
    trainer = trainer_after_one_round(data, tmp_path / "merges", GossipAverageParams())
    trainer.history.visits = 1  # no late joiner
    done = trainer.run_round(protocol.StartRound(2, replace(guest, steps=2**53 - 1), export=True))
    assert done.visit.outcome == "merged" and (done.own_steps, done.steps) == (8, MAX_CLAIMED_COUNT + 4)
    assert done.export.steps < 2**53 - 2**40
    joiner = make_trainer(make_spec(data, tmp_path / "joins"))
    done = joiner.run_round(protocol.StartRound(1, replace(guest, steps=2**53 - 1)))
    assert (done.visit.reason, done.own_steps, done.steps) == ("taken_over", 4, MAX_CLAIMED_COUNT + 4)
    again = make_trainer(make_spec(data, tmp_path / "again"))
    again.load(joiner.state())
    assert (again.history.own_steps, again.history.steps) == (4, MAX_CLAIMED_COUNT + 4)


def test_who_has_trained_takes_a_model_over_on_trial(
    monkeypatch: pytest.MonkeyPatch, data: Path, tmp_path: Path, guest: protocol.Visit
) -> None:
    """Anybody can claim twenty times the steps, and a round."""
    trainer = trainer_after_one_round(data, tmp_path)
    before = copy_of(trainer.model_state.weights())
    fix_scores(monkeypatch, trainer, [0.8, 0.6])
    claim = replace(guest, steps=10**9, round=70)
    done = trainer.run_round(protocol.StartRound(2, claim))
    assert (done.visit.reason, done.reverted, done.ahead) == ("taken_over", None, 69)
    trainer.run_round(protocol.StartRound(3))
    done = trainer.run_round(protocol.StartRound(4))
    assert (done.reverted, done.reverted_frm, done.ahead) == (guest.hash, "south", 0)
    assert (done.steps, done.own_steps) == (4, 4) and same(before, trainer.model_state.weights())
    monkeypatch.undo()
    done = trainer.run_round(protocol.StartRound(5, replace(claim, hash="d" * 64)))
    assert done.visit.reason != "taken_over"  # once is enough


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t: t["network.head.weight"].fill_(float("nan")), "not_finite"),
        (lambda t: t.update(renamed=t.pop("network.head.bias")), "schema_mismatch"),
        (lambda t: t.update({"network.head.bias": torch.zeros(7)}), "schema_mismatch"),
    ],
)
def test_a_bad_model_is_refused_and_the_round_goes_on(
    data: Path, tmp_path: Path, guest: protocol.Visit, change: Any, reason: str
) -> None:
    tensors = load_file(guest.path)
    change(tensors)
    save_file(tensors, tmp_path / "bad.safetensors")
    alone = trainer_after_one_round(data, tmp_path / "a")
    alone.run_round(protocol.StartRound(2))
    trainer = trainer_after_one_round(data, tmp_path / "b")
    bad = replace(guest, path=str(tmp_path / "bad.safetensors"), hash="b" * 64)
    done = trainer.run_round(protocol.StartRound(2, bad))
    assert (done.visit.outcome, done.visit.reason, done.visit.frm) == ("refused", reason, "south")
    assert done.visit.detail and trainer.history.last_visit == bad.hash
    assert same(trainer.model_state.weights(), alone.model_state.weights())


def test_who_trains_alone_takes_nothing_in(data: Path, tmp_path: Path, guest: protocol.Visit) -> None:
    trainer = trainer_after_one_round(data, tmp_path, LocalParams())
    assert trainer.run_round(protocol.StartRound(2, guest)).visit.reason == "no_exchange"


def test_gossip_average_merges_on_arrival(data: Path, tmp_path: Path, guest: protocol.Visit) -> None:
    trainer = trainer_after_one_round(data, tmp_path, GossipAverageParams(), training={"learning_rate": 0.0})
    before = copy_of(trainer.model_state.weights())
    done = trainer.run_round(protocol.StartRound(2, guest))
    brought = load_file(guest.path)
    assert done.visit.outcome == "merged" and done.reverted is None
    assert [merge.rounds for merge in trainer.guard.pending] == [1]
    for name, mine in before.items():
        assert torch.allclose(trainer.model_state.weights()[name], (mine + brought[name]) / 2, atol=1e-6)
    assert done.terms.keys() == {"seg"}


def test_an_average_asks_for_the_score_before_it_alone_and_keeps_the_optimizers_moments(
    monkeypatch: pytest.MonkeyPatch, data: Path, tmp_path: Path, guest: protocol.Visit
) -> None:
    trainer = trainer_after_one_round(data, tmp_path)
    calls = fix_scores(monkeypatch, trainer, [0.5])  # of the guard, before the merge
    assert trainer.run_round(protocol.StartRound(2, guest)).visit.outcome == "merged"
    assert len(calls) == 1 and _moments_kept(trainer)


def _moments_kept(trainer: Any) -> bool:
    moments = [m for m in trainer.model_state.learner.optimizer.state.values() if m["exp_avg_sq"].any()]
    return bool(moments) and all(float(m["exp_avg"].abs().sum()) > 0 for m in moments)


def test_running_statistics_of_batch_norm_do_not_travel(data: Path, tmp_path: Path) -> None:
    network = {"norm": "batch"}
    south = make_trainer(make_spec(data, tmp_path / "s", site="south", network=network))
    export = south.run_round(protocol.StartRound(1, export=True)).export
    assert not [n for n in load_file(export.path) if "running" in n or "tracked" in n]
    trainer = trainer_after_one_round(data, tmp_path / "n", network=network)
    before = copy_of(trainer.model_state.weights())
    done = trainer.run_round(protocol.StartRound(2, protocol.Visit(export.path, "h", "south", 4, 2)))
    after = trainer.model_state.weights()
    assert done.visit.outcome == "merged"
    deployed = trainer.model_state.ema.state_dict()  # buffers are copied into the EMA, not averaged
    assert all(torch.equal(deployed[n], after[n]) for n in after if "running" in n or "tracked" in n)
    counter = next(n for n in after if n.endswith("num_batches_tracked"))
    assert after[counter] == before[counter] + 4


def test_both_models_follow_the_schedule(
    monkeypatch: pytest.MonkeyPatch, data: Path, tmp_path: Path, guest: protocol.Visit
) -> None:
    rates: list[dict[str, float]] = []
    step = run_state.train_step

    def spy(learners: Any, *args: Any, **more: Any) -> Any:
        rates.append({role: learner.optimizer.param_groups[0]["lr"] for role, learner in learners.items()})
        return step(learners, *args, **more)

    monkeypatch.setattr(run_state, "train_step", spy)
    training = {"schedule": "cosine", "schedule_rounds": 2, "learning_rate": 0.01, "steps_per_round": 2}
    both = GcmlParams(mutual="both")
    trainer_after_one_round(data, tmp_path, both, training=training).run_round(
        protocol.StartRound(2, replace(guest, steps=4))
    )
    assert [r.keys() for r in rates] == [{"local", "personal"}] * 4
    assert all(r["personal"] == r["local"] for r in rates)
    local = [r["local"] for r in rates]
    assert local == sorted(local, reverse=True) and len(set(local)) == 4


def test_lambda_counts_the_rounds_since_the_first_exchange(
    data: Path, tmp_path: Path, guest: protocol.Visit
) -> None:
    settings = {"steps_per_round": 1}
    trainer = make_trainer(make_spec(data, tmp_path, algorithm=GcmlParams(lambda_=0.2), training=settings))
    before = trainer.run_round(protocol.StartRound(1))
    first = trainer.run_round(protocol.StartRound(2, guest))
    later = [trainer.run_round(protocol.StartRound(r)).terms["lambda"] for r in (3, 4, 5, 6, 7, 8)]
    assert "lambda" not in before.terms and first.terms["lambda"] == 0
    assert later == pytest.approx([0.04, 0.08, 0.12, 0.16, 0.2, 0.2])


# ---------------------------------------------------------------- the guard


def test_a_harmful_merge_is_undone_after_three_rounds(
    monkeypatch: pytest.MonkeyPatch, data: Path, tmp_path: Path, guest: protocol.Visit
) -> None:
    trainer = trainer_after_one_round(data, tmp_path)
    trainer.run_round(protocol.StartRound(2))
    calls = fix_scores(monkeypatch, trainer, [0.8, 0.6])
    ends = [copy_of(weights) for weights in trainer.model_state.recent]
    before = trainer.model_state.snapshot()
    assert trainer.run_round(protocol.StartRound(3, guest)).visit.outcome == "merged"
    kept = trainer.guard.pending[0].snapshot
    assert all(same(before[part], kept[part]) for part in ("model", "optimizer", "scaler", "ema"))
    assert trainer.run_round(protocol.StartRound(4)).reverted is None
    done = trainer.run_round(protocol.StartRound(5))
    assert (done.reverted, done.reverted_frm, done.steps) == (guest.hash, "south", 8)
    assert not trainer.guard.pending and len(calls) == 2
    name = "network.head.weight"
    scored = dict(calls[0].state_dict())
    assert torch.allclose(scored[name], (ends[0][name] + ends[1][name]) / 2, atol=1e-6)
    now = trainer.model_state.snapshot()
    assert all(same(now[part], kept[part]) for part in ("model", "optimizer", "scaler", "ema"))
    assert now["averaged_rounds"] == 2  # the average holds the two rounds before the merge, and no other
    trainer.run_round(protocol.StartRound(6))
    assert trainer.model_state.averaged_rounds == 3


def test_a_harmless_merge_stays(
    monkeypatch: pytest.MonkeyPatch, data: Path, tmp_path: Path, guest: protocol.Visit
) -> None:
    trainer = trainer_after_one_round(data, tmp_path)
    calls = fix_scores(monkeypatch, trainer, [0.8, 0.76])
    done = [trainer.run_round(protocol.StartRound(2, guest))]
    done += [trainer.run_round(protocol.StartRound(r)) for r in (3, 4)]
    assert not any(d.reverted for d in done) and not trainer.guard.pending and done[-1].steps == 62
    assert len(calls) == 2  # scored around the merge only


def test_how_much_harm_is_too_much_is_a_setting(
    monkeypatch: pytest.MonkeyPatch, data: Path, tmp_path: Path, guest: protocol.Visit
) -> None:
    trainer = trainer_after_one_round(data, tmp_path, training={"guard_drop": 0.3})
    fix_scores(monkeypatch, trainer, [0.8, 0.6])
    trainer.run_round(protocol.StartRound(2, guest))
    assert not any(trainer.run_round(protocol.StartRound(r)).reverted for r in (3, 4, 5))


@pytest.mark.parametrize(
    ("scores", "undone"),
    [
        # before the first merge, before the second, the first one's three rounds, its one before the second
        ([0.8, 0.79, 0.78, 0.77], None),
        ([0.8, 0.79, 0.5, 0.5], "first"),
        ([0.8, 0.79, 0.5, 0.78], "second"),
    ],
)
def test_of_two_merges_the_one_is_undone_after_which_the_weights_were_harmed(
    monkeypatch: pytest.MonkeyPatch,
    data: Path,
    tmp_path: Path,
    guest: protocol.Visit,
    scores: list[float],
    undone: str | None,
) -> None:
    trainer = trainer_after_one_round(data, tmp_path)
    fix_scores(monkeypatch, trainer, [*scores, 0.77, 0.77])
    second = replace(guest, hash="2" * 64, frm="west")
    trainer.run_round(protocol.StartRound(2, guest))
    assert trainer.run_round(protocol.StartRound(3, second)).visit.outcome == "merged"
    first, other = (merge.snapshot["model"] for merge in trainer.guard.pending)
    done = trainer.run_round(protocol.StartRound(4))
    expected = {None: (None, None), "first": (guest.hash, "south"), "second": (second.hash, "west")}
    assert (done.reverted, done.reverted_frm) == expected[undone]
    if undone is not None:
        assert same(trainer.model_state.snapshot()["model"], first if undone == "first" else other)
        assert not trainer.guard.pending
    else:
        assert [merge.hash for merge in trainer.guard.pending] == [second.hash]
        assert trainer.run_round(protocol.StartRound(5)).reverted is None and not trainer.guard.pending


def test_a_merge_is_judged_at_the_last_round_with_what_was_trained_since(
    monkeypatch: pytest.MonkeyPatch, data: Path, tmp_path: Path, guest: protocol.Visit
) -> None:
    trainer = trainer_after_one_round(data, tmp_path, rounds=3)
    fix_scores(monkeypatch, trainer, [0.8, 0.5])
    trainer.run_round(protocol.StartRound(2, guest))
    assert trainer.run_round(protocol.StartRound(3)).reverted == guest.hash


def test_fewer_than_three_patients_judge_nothing(
    monkeypatch: pytest.MonkeyPatch, data: Path, tmp_path: Path, guest: protocol.Visit
) -> None:
    trainer = trainer_after_one_round(data, tmp_path)
    calls = fix_scores(monkeypatch, trainer, [0.8, 0.1])
    monkeypatch.setattr(trainer.site, "patients", lambda split: ("a", "a", "b"))
    trainer.run_round(protocol.StartRound(2, guest))
    assert not any(trainer.run_round(protocol.StartRound(r)).reverted for r in (3, 4, 5))
    assert calls == [] and not trainer.guard.pending


def test_windows_without_a_merge_show_how_much_a_score_changes_by_itself(
    monkeypatch: pytest.MonkeyPatch, data: Path, tmp_path: Path, guest: protocol.Visit
) -> None:
    trainer = make_trainer(make_spec(data, tmp_path, training={"steps_per_round": 1}))
    calls = fix_scores(monkeypatch, trainer, [0.5, 0.6, 0.62, 0.6, 0.65, 0.7, 0.7])
    for number in range(1, 13):
        trainer.run_round(protocol.StartRound(number))
    assert len(calls) == 4  # after 3, 6, 9 and 12 rounds: 0.5 → 0.6, 0.62 → 0.6
    assert trainer.guard.state()["changes"] == pytest.approx([-0.1, 0.02])
    trainer.run_round(protocol.StartRound(13, guest))
    for number in (14, 15, 16, 17):
        trainer.run_round(protocol.StartRound(number))
    assert len(calls) == 6  # before the merge, and after it
    assert trainer.guard.state()["changes"] == pytest.approx([-0.1, 0.02])  # no second calm window yet


@pytest.mark.slow
def test_nothing_is_merged_in_the_last_round(data: Path, tmp_path: Path, guest: protocol.Visit) -> None:
    """It would be trained for a round only, and never judged."""
    for name, algorithm, budget in (
        ("a", GcmlParams(), {"rounds": 2}),
        ("b", GossipAverageParams(), {"rounds": 2}),
        ("c", GossipAverageParams(), {"training": {"rounds": 2}}),
    ):
        trainer = trainer_after_one_round(data, tmp_path / name, algorithm, **budget)
        alone = trainer_after_one_round(data, tmp_path / f"{name}-alone", algorithm, **budget)
        done = trainer.run_round(protocol.StartRound(2, guest))
        alone.run_round(protocol.StartRound(2))
        assert (done.visit.outcome, done.visit.reason) == ("kept_out", "last_round"), name
        assert "pull" not in done.terms, "there was no exchange"
        assert same(trainer.model_state.weights(), alone.model_state.weights())


def test_a_model_that_is_no_longer_finite_is_undone(
    data: Path, tmp_path: Path, guest: protocol.Visit
) -> None:
    trainer = trainer_after_one_round(data, tmp_path)
    trainer.run_round(protocol.StartRound(2, guest))
    with torch.no_grad():
        next(iter(trainer.model_state.model.parameters())).fill_(float("inf"))
    done = trainer.run_round(protocol.StartRound(3))
    assert done.reverted == guest.hash and "skipped" in done.warning
    assert all(torch.isfinite(t).all() for t in trainer.model_state.weights().values())


def test_a_personal_model_that_is_not_finite_teaches_nothing(
    data: Path, tmp_path: Path, guest: protocol.Visit
) -> None:
    trainer = trainer_after_one_round(data, tmp_path, GcmlParams(lambda_ramp_rounds=0))
    personal = trainer.personal.model_state.model

    def overflow(net: Any, x: Any, out: Any) -> Any:
        wild = out.logits * float("inf")
        return out._replace(logits=wild, clean=None if out.clean is None else wild.detach())

    personal.register_forward_hook(overflow)
    done = trainer.run_round(protocol.StartRound(2, guest))
    assert "skipped" in done.warning and "pull" not in done.terms and done.loss is not None
    assert all(torch.isfinite(t).all() for t in trainer.model_state.weights().values())


def test_a_failed_export_does_not_cost_the_round(data: Path, tmp_path: Path) -> None:
    trainer = make_trainer(make_spec(data, tmp_path))
    (tmp_path / "outbox").write_text("a file where the folder should be")
    done = trainer.run_round(protocol.StartRound(1, export=True))
    assert done.export is None and "not exported" in done.warning and trainer.history.round == 1
