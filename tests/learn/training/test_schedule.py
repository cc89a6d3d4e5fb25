"""The learning rate by the federation's budget: its end, late joiners, coordinators, fine-tuning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from gossipseg.algos.params import FedAvgFinetuneParams, FedAvgParams, GossipAverageParams
from gossipseg.learn import protocol
from gossipseg.learn.engine import run_state
from gossipseg.learn.engine.optim import learning_rate
from gossipseg.learn.params import FINAL_SHARE, MAX_CLAIMED_COUNT, TrainingParams
from tests.learn.harness import make_spec, make_trainer

E = 2
RATE = 0.01


@pytest.fixture
def rates(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Filled with the local model's learning rate, step by step."""
    found: list[float] = []
    step = run_state.train_step

    def spy(learners: Any, *args: Any, **more: Any) -> Any:
        found.append(learners["local"].optimizer.param_groups[0]["lr"])
        return step(learners, *args, **more)

    monkeypatch.setattr(run_state, "train_step", spy)
    return found


def at(round: int, budget: int, step: int = 0) -> float:
    """The cosine over the budget."""
    training = TrainingParams(rounds=budget, steps_per_round=E, learning_rate=RATE)
    return learning_rate(training, round, step)


@pytest.mark.parametrize("budget", [1, 2, 3, 18, 60, 100, 1000])
def test_whatever_the_budget_the_last_step_has_nearly_a_hundredth_of_the_first(budget: int) -> None:
    training = TrainingParams(rounds=budget, steps_per_round=100, learning_rate=RATE)
    assert training.schedule_in_force == "cosine"
    assert learning_rate(training, 1, 0) == RATE
    last = learning_rate(training, budget, 99)
    assert FINAL_SHARE * RATE < last < 1.03 * FINAL_SHARE * RATE
    assert learning_rate(training, budget + 1, 0) == pytest.approx(FINAL_SHARE * RATE)


def test_the_schedule_that_is_in_force() -> None:
    for given, wanted in (
        ({}, "constant"),
        ({"schedule": "cosine"}, "constant"),
        ({"rounds": 9}, "cosine"),
        ({"schedule_rounds": 9}, "cosine"),
        ({"rounds": 9, "schedule": "constant"}, "constant"),
        ({"rounds": 9, "schedule": "step_decay"}, "step_decay"),
    ):
        assert TrainingParams(**given).schedule_in_force == wanted, given
    both = TrainingParams(rounds=9, schedule_rounds=5, steps_per_round=1)
    assert learning_rate(both, 6, 0) == pytest.approx(FINAL_SHARE * both.learning_rate)
    assert {learning_rate(TrainingParams(), r, 0) for r in (1, 50, 5000)} == {1e-3}


def test_a_site_trains_by_the_federations_budget_and_may_end_earlier(
    data: Path, tmp_path: Path, rates: list[float]
) -> None:
    training = {"steps_per_round": E, "learning_rate": RATE, "rounds": 3, "validate_every_rounds": 100}
    trainer = make_trainer(
        make_spec(data, tmp_path, algorithm=GossipAverageParams(), rounds=2, training=training)
    )
    done = [trainer.run_round(protocol.StartRound(r)) for r in (1, 2)]
    assert rates == pytest.approx([at(r, 3, s) for r in (1, 2) for s in range(E)])
    assert [d.dice_val is not None for d in done] == [False, True], "validated at its own last round"


def test_a_late_joiner_takes_the_round_of_the_model_that_it_takes_over(
    data: Path, tmp_path: Path, guest: protocol.Visit, rates: list[float]
) -> None:
    spec = make_spec(data, tmp_path, training={"steps_per_round": E, "learning_rate": RATE, "rounds": 10})
    trainer = make_trainer(spec)
    done = trainer.run_round(protocol.StartRound(1, replace(guest, round=7)))
    assert done.visit.reason == "taken_over" and done.ahead == 7
    again = make_trainer(spec)
    again.load(trainer.state())
    assert [again.run_round(protocol.StartRound(r)).ahead for r in (2, 3)] == [7, 7]
    assert rates == pytest.approx([at(r, 10, s) for r in (8, 9, 10) for s in range(E)])
    assert again.run.is_last(3) and not again.run.is_last(2)


@pytest.mark.parametrize("claimed", [9, 10, 2**60])
def test_what_a_model_says_of_its_round_ends_a_joiner_no_earlier_than_with_this_round(
    data: Path, tmp_path: Path, guest: protocol.Visit, claimed: int
) -> None:
    training = {"steps_per_round": E, "rounds": 10}
    trainer = make_trainer(make_spec(data, tmp_path, training=training))
    done = trainer.run_round(protocol.StartRound(1, replace(guest, round=claimed)))
    assert done.ahead == 9 and trainer.run.is_last(1)
    endless = make_trainer(make_spec(data, tmp_path / "endless", training={"steps_per_round": E}))
    assert endless.run_round(protocol.StartRound(1, replace(guest, round=claimed))).ahead <= MAX_CLAIMED_COUNT


@pytest.mark.parametrize("every", [1, 3])
def test_under_a_coordinator_the_federations_round_counts(
    data: Path, tmp_path: Path, rates: list[float], every: int
) -> None:
    """Also for a site that was away, and for one that has trained rounds alone."""
    algorithm = FedAvgParams()
    other = make_trainer(make_spec(data, tmp_path / "o", algorithm=algorithm))
    path = other.run_round(protocol.StartRound(1, export=True)).export.path
    rates.clear()
    training = {"steps_per_round": E, "learning_rate": RATE, "rounds": 40}
    trainer = make_trainer(make_spec(data, tmp_path / "n", algorithm=algorithm, training=training))
    orders = [
        (protocol.StartRound(1), 1),
        (protocol.StartRound(2, start_from=protocol.GlobalModelFile(path, "a", 10)), 10 * every + 1),
        (protocol.StartRound(3), 10 * every + 2),
        (protocol.StartRound(4), 10 * every + 3),
        (protocol.StartRound(5, start_from=protocol.GlobalModelFile(path, "b", 11)), 11 * every + 1),
        (protocol.StartRound(6, start_from=protocol.GlobalModelFile(path, "c", 99)), 40),
    ]
    for order, position in orders:
        order = replace(order, ahead=position - order.round)
        assert order.round + trainer.run_round(order).ahead == position
    assert rates == pytest.approx([at(position, 40, s) for _, position in orders for s in range(E)])
    assert trainer.run.is_last(6)


@pytest.mark.parametrize(("own", "schedule"), [(None, "cosine"), (0.004, "cosine"), (0.004, "constant")])
def test_fine_tuning_has_a_rate_and_a_schedule_of_its_own(
    data: Path, tmp_path: Path, rates: list[float], own: float | None, schedule: Any
) -> None:
    algorithm = FedAvgFinetuneParams(
        finetune_rounds=2, finetune_learning_rate=own, finetune_schedule=schedule
    )
    training = {"steps_per_round": E, "learning_rate": RATE, "rounds": 4}
    spec = make_spec(data, tmp_path, algorithm=algorithm, training=training)
    trainer = make_trainer(spec)
    for number in (1, 2):
        trainer.run_round(protocol.StartRound(number))
    trainer.run_round(protocol.StartRound(3, finetuning=True))
    again = make_trainer(spec)
    again.load(trainer.state())
    again.run_round(protocol.StartRound(4, finetuning=True))
    assert rates[:4] == pytest.approx([at(r, 4, s) for r in (1, 2) for s in range(E)])
    first = own or RATE
    tuned = TrainingParams(rounds=2, steps_per_round=E, learning_rate=first)
    expected = [learning_rate(tuned, r, s) if schedule == "cosine" else first for r in (1, 2) for s in (0, 1)]
    assert rates[4:] == pytest.approx(expected)
