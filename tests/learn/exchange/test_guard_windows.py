"""Which rounds' weights the guard scores: before a merge, after it, and in times without one.

As in test_average, round t leaves the t-th unit vector in one parameter: what is scored shows its rounds.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from gossipseg.algos.params import GossipAverageParams
from gossipseg.learn import protocol
from gossipseg.learn.evaluation.evaluate import CaseScore, Scores
from gossipseg.learn.worker.link import StopRequested
from tests.learn.engine.test_average import NAME, data, foreign, trainer_of
from tests.learn.harness import make_spec, make_trainer, write_png_site
from tests.learn.training.test_resume import through_a_file

__all__ = ["data", "foreign"]

Windows = list[dict[int, float]]


def watch(trainer: Any, windows: Windows, dice: list[float]) -> None:
    """Note what the guard scores, and let the validation say what it says; 0.8 when `dice` is empty."""

    def score(model: Any, split: str, round: int) -> Scores:
        value = 0.5
        if model is not trainer.model_state.ema:
            held = model.state_dict()[NAME].flatten()
            windows.append({at: round_(float(w)) for at, w in enumerate(held) if float(w) > 1e-6})
            value = dice.pop(0) if dice else 0.8
        cases = trainer.site.patients("validation")
        return Scores(
            value, {"disc": value}, tuple(CaseScore(f"c{i}", {"disc": value}, {}) for i in range(len(cases)))
        )

    trainer.run.score = score


def round_(value: float) -> float:
    return float(f"{value:.4f}")


def mean(*rounds: int) -> dict[int, float]:
    return {r: round_(1 / len(rounds)) for r in rounds}


def rounds(trainer: Any, *numbers: int) -> list[str | None]:
    return [trainer.run_round(protocol.StartRound(n)).reverted for n in numbers]


def visit(trainer: Any, number: int, file: Path, hash: str = "v", steps: int = 9) -> Any:
    return trainer.run_round(
        protocol.StartRound(number, protocol.Visit(str(file), hash, "south", steps=steps))
    )


def test_three_rounds_before_a_merge_and_three_after_it(data: Path, tmp_path: Path, foreign: Path) -> None:
    windows: Windows = []
    trainer = trainer_of(data, tmp_path / "n", GossipAverageParams())
    watch(trainer, windows, [])
    rounds(trainer, 1, 2, 3, 4)
    assert windows == [mean(1, 2, 3)], "a window without a merge"
    assert visit(trainer, 5, foreign).visit.outcome == "merged"
    assert rounds(trainer, 6, 7) == [None] * 2
    assert windows[1:] == [mean(2, 3, 4), mean(5, 6, 7)]


def test_two_rounds_before_a_merge_are_a_window_too(data: Path, tmp_path: Path, foreign: Path) -> None:
    windows: Windows = []
    trainer = trainer_of(data, tmp_path / "n", GossipAverageParams())
    watch(trainer, windows, [])
    rounds(trainer, 1, 2)
    visit(trainer, 3, foreign)
    rounds(trainer, 4, 5)
    assert windows == [mean(1, 2), mean(3, 4, 5)]


def test_after_a_merge_is_undone_windows_begin_with_what_was_put_back(
    data: Path, tmp_path: Path, foreign: Path
) -> None:
    """Rounds that are undone are in no window."""
    windows: Windows = []
    trainer = trainer_of(data, tmp_path / "n", GossipAverageParams())
    watch(trainer, windows, [0.8, 0.2])
    rounds(trainer, 1)
    visit(trainer, 2, foreign)
    assert rounds(trainer, 3, 4) == [None, "v"]
    rounds(trainer, 5)
    visit(trainer, 6, foreign, "w")
    assert windows == [mean(1), mean(2, 3, 4), mean(1, 5)]


def test_of_a_model_that_was_taken_over_no_window_holds_the_weights_before(
    data: Path, tmp_path: Path, foreign: Path
) -> None:
    windows: Windows = []
    trainer = trainer_of(data, tmp_path / "n", GossipAverageParams())
    watch(trainer, windows, [])
    rounds(trainer, 1)
    assert visit(trainer, 2, foreign, steps=10**6).visit.reason == "taken_over"
    visit(trainer, 3, foreign, "w")
    assert windows == [mean(1), mean(2)]
    rounds(trainer, 4, 5)
    assert windows[2:] == [mean(2, 3, 4), mean(3, 4, 5)]


def test_a_take_over_leaves_nothing_to_be_judged_of_earlier_merges(
    data: Path, tmp_path: Path, foreign: Path
) -> None:
    trainer = trainer_of(data, tmp_path / "n", GossipAverageParams())
    watch(trainer, [], [])
    rounds(trainer, 1)
    visit(trainer, 2, foreign)
    trainer.history.visits = 0
    assert visit(trainer, 3, foreign, "w", steps=10**6).visit.reason == "taken_over"
    assert [merge.hash for merge in trainer.guard.pending] == ["w"]


def test_an_earlier_merge_is_judged_by_what_is_left_after_it_when_a_later_one_is_undone(
    data: Path, tmp_path: Path, foreign: Path
) -> None:
    """The weights are no longer finite; they go back to before the last merge, which the first one is in."""
    windows: Windows = []
    trainer = trainer_of(data, tmp_path / "n", GossipAverageParams())
    watch(trainer, windows, [])
    rounds(trainer, 1)
    visit(trainer, 2, foreign)
    visit(trainer, 3, foreign, "w")
    take = trainer.steps.take

    def spoil(order: Any) -> None:
        take(order)
        with torch.no_grad():
            trainer.model_state.model.state_dict()[NAME].fill_(float("inf"))

    trainer.steps.take = spoil
    assert rounds(trainer, 4) == ["w"]
    trainer.steps.take = take
    assert [(merge.hash, merge.rounds) for merge in trainer.guard.pending] == [("v", 1)]
    rounds(trainer, 5, 6)
    assert windows == [mean(1), mean(1, 2), mean(2, 5, 6)]


def test_a_round_that_starts_over_counts_once(data: Path, tmp_path: Path, foreign: Path) -> None:
    """Stopped in its validation, when it is in the average already; on resuming a visitor comes."""

    class Gate:
        left = 10**6

        def __call__(self) -> None:
            self.left -= 1
            if self.left < 0:
                raise StopRequested

    gate, windows = Gate(), []
    trainer = trainer_of(data, tmp_path / "n", GossipAverageParams(), gate=gate)
    rounds(trainer, 1, 2)
    visit(trainer, 3, foreign)
    gate.left = 1
    with pytest.raises(StopRequested):
        trainer.run_round(protocol.StartRound(4))
    assert trainer.history.in_average and trainer.guard.pending[0].rounds == 2
    again = trainer_of(data, tmp_path / "n", GossipAverageParams())
    again.load(through_a_file(trainer.state()))
    watch(again, windows, [])
    visit(again, 4, foreign, "w")
    assert [(merge.hash, merge.rounds) for merge in again.guard.pending] == [("v", 2), ("w", 1)]
    assert len(windows) == 1, "before the second merge"
    rounds(again, 5)
    assert windows[1:] == [mean(3, 4, 5)]


@pytest.mark.slow
def test_cases_that_changed_since_are_left_out(data: Path, tmp_path: Path, foreign: Path) -> None:
    """More validation cases after a restart, other ones, or fewer: those that both hold are compared."""
    trainer = make_trainer(make_spec(data, tmp_path / "n"))
    trainer.run_round(protocol.StartRound(1))
    trainer.run_round(protocol.StartRound(2, protocol.Visit(str(foreign), "v", "south", steps=9)))
    state = trainer.state()
    more = write_png_site(tmp_path / "more", cases=40)
    for folder in (more, write_png_site(tmp_path / "few", cases=6)):
        again = make_trainer(make_spec(folder, tmp_path / "n"))
        again.load(through_a_file(state))
        for number in (3, 4, 5, 6, 7, 8):
            again.run_round(protocol.StartRound(number))
        assert not again.guard.pending


@pytest.mark.slow
@pytest.mark.parametrize("harm", [True, False])
def test_a_model_that_does_harm_is_undone_and_one_that_does_none_stays(tmp_path: Path, harm: bool) -> None:
    """Real training and real scores: the visitor is this site's own model, or random weights beside it."""
    images = write_png_site(tmp_path / "site", cases=30)
    training = {"steps_per_round": 20, "learning_rate": 0.01, "rounds": 12, "ema_decay": 0.5}
    spec = make_spec(images, tmp_path / "n", algorithm=GossipAverageParams(), training=training)
    trainer = make_trainer(dataclasses.replace(spec, admission={"enabled": False}))
    for number in range(1, 9):
        good = trainer.run_round(protocol.StartRound(number, export=number == 8))
    tensors = load_file(good.export.path)
    if harm:
        generator = torch.Generator().manual_seed(0)
        tensors = {n: (4 * torch.randn(t.shape, generator=generator)).to(t.dtype) for n, t in tensors.items()}
    save_file(tensors, tmp_path / "visitor.safetensors")
    undone = [visit(trainer, 9, tmp_path / "visitor.safetensors").reverted, *rounds(trainer, 10, 11)]
    after = trainer.run_round(protocol.StartRound(12)).dice_val
    assert undone == [None, None, "v" if harm else None]
    assert len(set(trainer.site.patients("validation"))) >= 3
    assert good.dice_val > 0.5 and after > good.dice_val - 0.1
