"""The algebra of the deployed average: its weights lie on trained models alone, and sum to one.

No step trains here: round t leaves the t-th unit vector in one parameter, so that the same parameter of the
EMA holds the weight of each W_t. Entry 0 is W_0's, entry FOREIGN that of models which come from elsewhere.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec.structs import replace
from safetensors.torch import load_file, save_file

from gossipseg.algos.params import (
    FedAvgFinetuneParams,
    FedAvgParams,
    GossipAverageParams,
    LocalParams,
)
from gossipseg.learn import protocol
from gossipseg.learn.engine.model_state import decay_of
from gossipseg.learn.worker.link import StopRequested
from tests.learn.harness import make_spec, make_trainer, write_png_site
from tests.learn.training.test_resume import through_a_file

NAME = "network.encoder.0.first.conv.weight"
FOREIGN, PERSONAL = 9, 10
"""Where models from elsewhere stand; where a personal model's rounds begin."""


def unit(at: int) -> torch.Tensor:
    found = torch.zeros(18)
    found[at] = 1.0
    return found.reshape(2, 1, 3, 3)


def put(model: Any, at: int) -> None:
    with torch.no_grad():
        model.state_dict()[NAME].copy_(unit(at))


def trainer_of(data: Path, state_dir: Path, algorithm: Any = None, gate: Any = None, **more: Any) -> Any:
    """A trainer whose W_0 is the first unit vector, and whose steps put the round's in its place."""
    spec = make_spec(data, state_dir, algorithm=algorithm or LocalParams(), **more)
    trainer = make_trainer(dataclasses.replace(spec, admission={"enabled": False}))
    put(trainer.model_state.model, 0)
    put(trainer.model_state.ema, 0)
    personal = trainer.personal
    if personal is not None:
        put(personal.model_state.ema, 0)

    def take(order: protocol.StartRound) -> None:
        put(trainer.model_state.model, order.round)
        if personal is not None and not order.finetuning:
            put(personal.model_state.model, PERSONAL + order.round)
            personal.stepped(trainer.run.moment(order, 3))
        trainer.history.step, trainer.history.steps = 4, trainer.history.steps + 4

    trainer.steps.take = take
    if gate is not None:
        trainer.run.gate = gate
    return trainer


def weights(of: Any) -> dict[int, float]:
    """Entry → its weight in the average of a trainer's shared model, or of a personal one; without zeros."""
    held = of.model_state.ema.state_dict()[NAME].flatten()
    return {at: float(w) for at, w in enumerate(held) if abs(float(w)) > 1e-7}


def expected(rounds: list[int], most: float = 0.9) -> dict[int, float]:
    """By the recursion of the docstring of engine.model_state, from these rounds alone."""
    found: dict[int, float] = {}
    for t, number in enumerate(rounds, start=1):
        d = min(most, (t - 1) / (t + 8))
        found = {at: w * d for at, w in found.items() if d} | {number: 1 - d}
    assert sum(found.values()) == pytest.approx(1)
    return found


def check(trainer: Any, rounds: list[int]) -> None:
    found = weights(trainer)
    assert found == pytest.approx(expected(rounds), abs=1e-6)
    assert 0 not in found and sum(found.values()) == pytest.approx(1, abs=1e-6)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """So many cases that three patients are there to judge by."""
    return write_png_site(tmp_path_factory.mktemp("site"), cases=20)


@pytest.fixture
def foreign(data: Path, tmp_path: Path) -> Path:
    """Another site's model."""
    trainer = make_trainer(make_spec(data, tmp_path / "foreign", site="south"))
    path = Path(trainer.run_round(protocol.StartRound(1, export=True)).export.path)
    tensors: Mapping[str, torch.Tensor] = load_file(path)
    save_file({**tensors, NAME: unit(FOREIGN).half()}, path)
    return path


def test_by_hand() -> None:
    assert [decay_of(0.9, t) for t in (1, 2, 3, 10, 82, 500)] == pytest.approx(
        [0, 1 / 10, 2 / 11, 9 / 18, 81 / 90, 0.9]
    )
    assert decay_of(0.3, 10) == 0.3 and decay_of(0.0, 10) == 0.0
    assert expected([1, 2, 3]) == pytest.approx({1: 0.1 * 2 / 11, 2: 0.9 * 2 / 11, 3: 9 / 11})


@pytest.mark.parametrize("decay", [0.9, 0.3, 0.0])
def test_alone(data: Path, tmp_path: Path, decay: float) -> None:
    trainer = trainer_of(data, tmp_path, training={"ema_decay": decay})
    for number in range(1, 8):
        trainer.run_round(protocol.StartRound(number))
        held = expected(list(range(1, number + 1)), decay)
        assert weights(trainer) == pytest.approx(held, abs=1e-6)
        assert 0 not in weights(trainer)


def test_a_site_that_takes_a_model_over_begins_anew(data: Path, tmp_path: Path, foreign: Path) -> None:
    trainer = trainer_of(data, tmp_path / "n", GossipAverageParams())
    trainer.run_round(protocol.StartRound(1))
    visit = protocol.Visit(str(foreign), "v", "south", steps=10**6, cases=3, round=7)
    assert trainer.run_round(protocol.StartRound(2, visit)).visit.reason == "taken_over"
    check(trainer, [2])
    trainer.run_round(protocol.StartRound(3))
    check(trainer, [2, 3])


def test_what_is_merged_comes_in_by_training_alone_and_leaves_when_it_is_undone(
    data: Path, tmp_path: Path, foreign: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_of(data, tmp_path / "n", GossipAverageParams())
    trainer.run_round(protocol.StartRound(1))
    done = trainer.run_round(protocol.StartRound(2, protocol.Visit(str(foreign), "v", "south", steps=9)))
    assert done.visit.outcome == "merged"
    check(trainer, [1, 2])
    trainer.run_round(protocol.StartRound(3))
    check(trainer, [1, 2, 3])
    monkeypatch.setattr("gossipseg.learn.exchange.guard.harmful", lambda *_: True)
    assert trainer.run_round(protocol.StartRound(4)).reverted == "v"
    check(trainer, [1])
    trainer.run_round(protocol.StartRound(5))
    check(trainer, [1, 5])


def test_under_a_coordinator(data: Path, tmp_path: Path, foreign: Path) -> None:
    """The site's own weights at the end of its steps count, not the global model that a round begins with."""
    trainer = trainer_of(data, tmp_path / "n", FedAvgParams())
    trainer.run_round(protocol.StartRound(1))
    for number in (2, 3):
        trainer.run_round(
            protocol.StartRound(
                number, start_from=protocol.GlobalModelFile(str(foreign), f"c{number}", number - 1)
            )
        )
    check(trainer, [1, 2, 3])


def test_a_late_joiner_and_fine_tuning_begin_anew(data: Path, tmp_path: Path, foreign: Path) -> None:
    trainer = trainer_of(data, tmp_path / "n", FedAvgFinetuneParams(finetune_rounds=2))
    trainer.run_round(protocol.StartRound(1))
    common = protocol.GlobalModelFile(str(foreign), "c", 4)
    trainer.run_round(protocol.StartRound(2, start_from=common, settling_in=True))
    check(trainer, [2])
    trainer.run_round(protocol.StartRound(3))
    check(trainer, [2, 3])
    last = replace(common, hash="d", round=6)
    trainer.run_round(protocol.StartRound(4, start_from=last, finetuning=True))
    check(trainer, [4])
    again = trainer_of(data, tmp_path / "n", FedAvgFinetuneParams(finetune_rounds=2))
    again.load(through_a_file(trainer.state()))
    again.run_round(protocol.StartRound(5, finetuning=True))
    check(again, [4, 5])


def test_a_personal_model_has_an_average_of_its_own(data: Path, tmp_path: Path, foreign: Path) -> None:
    """It stands still in fine-tuning, and is left alone by what is merged."""
    algorithm = FedAvgFinetuneParams(finetune_rounds=1)
    trainer = trainer_of(data, tmp_path / "n", algorithm, training={"personal": "always"})
    trainer.run_round(protocol.StartRound(1))
    trainer.run_round(protocol.StartRound(2, start_from=protocol.GlobalModelFile(str(foreign), "c", 1)))
    trainer.run_round(protocol.StartRound(3, finetuning=True))
    check(trainer, [3])
    held = weights(trainer.personal)
    assert held == pytest.approx({PERSONAL + at: w for at, w in expected([1, 2]).items()}, abs=1e-6)


def test_who_takes_a_model_over_has_a_personal_model_that_is_its_copy(
    data: Path, tmp_path: Path, foreign: Path
) -> None:
    trainer = trainer_of(data, tmp_path / "n", training={"personal": "always"}, algorithm=FedAvgParams())
    trainer.run_round(protocol.StartRound(1))
    common = protocol.GlobalModelFile(str(foreign), "c", 4)
    trainer.run_round(protocol.StartRound(2, start_from=common, settling_in=True))
    assert weights(trainer.personal) == pytest.approx({PERSONAL + 2: 1.0})
    assert trainer.personal.copied_from


def test_across_a_restart(data: Path, tmp_path: Path) -> None:
    """Between rounds, and within one whose weights the average has taken in already."""

    class Gate:
        left = 99

        def __call__(self) -> None:
            self.left -= 1
            if self.left < 0:
                raise StopRequested

    gate = Gate()
    trainer = trainer_of(data, tmp_path, gate=gate)
    trainer.run_round(protocol.StartRound(1))
    trainer.run_round(protocol.StartRound(2))
    second = trainer_of(data, tmp_path, gate=gate)
    second.load(through_a_file(trainer.state()))
    gate.left = 1  # the second validation case
    with pytest.raises(StopRequested):
        second.run_round(protocol.StartRound(3))
    assert second.history.averaged and second.resumable
    third = trainer_of(data, tmp_path)
    third.load(through_a_file(second.state()))
    third.run_round(protocol.StartRound(3))
    check(third, [1, 2, 3])
