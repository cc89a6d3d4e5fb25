"""What a person sees while runs are under way: lines on a pipe, bars on a terminal, nothing if quiet."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from gossipseg.lab.experiment import progress
from gossipseg.lab.experiment.progress import Bars, Lines, ProgressDisplay, expected, make_display
from gossipseg.lab.plan.run_plans import RunPlan
from tests.lab import rig


@pytest.fixture
def made(hospitals: Path) -> list[RunPlan]:
    return [rig.plan(hospitals, name) for name in ("local", "gcml", "pooled[steps=site]")]


def tell(display: ProgressDisplay, made: list[RunPlan]) -> None:
    """Of one run that comes to its end and one that fails."""
    display.begin(made[:2], kept=1)
    try:
        display.progress(made[0].key, 6, "training")
        display.done(made[0].key, 61.4, [{"dice_test": 0.5}, {"dice_test": 0.6}, {"dice_test": None}])
        display.progress(made[1].key, 3, "testing north")
        display.failed(made[1].key, "a picture [that] is none")
    finally:
        display.end()


def test_a_run_is_expected_to_take_the_steps_of_all_its_sites(made: list[RunPlan]) -> None:
    # 3 sites of 2 rounds of 2 steps; pooled with the steps of one of them
    assert [expected(plan) for plan in made] == [12, 12, 4]


def test_a_pipe_gets_a_plain_line_for_each_end(
    made: list[RunPlan], capsys: pytest.CaptureFixture[str]
) -> None:
    display = make_display(quiet=False)
    assert isinstance(display, Lines), "nobody's terminal here"
    tell(display, made)
    said = capsys.readouterr()
    assert said.out == "" and "\x1b" not in said.err and "\r" not in said.err
    assert [re.sub(r"^ *\d+\.\d s  ", "", line) for line in said.err.splitlines()] == [
        "2 runs to do; 1 are there already",
        "local-seed0: test Dice 0.550, 61 s (1 of 2)",
        "gcml-seed0: FAILED: a picture [that] is none",
    ]


def test_a_pipe_is_told_now_and_then_how_far_a_run_is(
    made: list[RunPlan], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
    tell(Lines(lines.append), made)
    assert lines[1].endswith("local-seed0: 50 % (training)")
    assert lines[3].endswith("gcml-seed0: 25 % (testing north)")


def test_quiet_says_nothing(made: list[RunPlan], capsys: pytest.CaptureFixture[str]) -> None:
    tell(make_display(quiet=True), made)
    assert capsys.readouterr() == ("", "")


def terminal() -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=120, color_system=None)


def shown_on(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_terminal_gets_a_bar_for_all_runs_and_a_line_for_each_end(made: list[RunPlan]) -> None:
    console = terminal()
    tell(Bars(console), made)
    shown = shown_on(console)
    assert "local-seed0: test Dice 0.550, 61 s" in shown
    assert "gcml-seed0: FAILED: a picture [that] is none" in shown
    last = shown.rpartition("2 runs")[2]
    assert "100 %" in last and "1 there already" in last


def test_a_bar_is_as_long_as_what_is_done_and_goes_with_its_run(made: list[RunPlan]) -> None:
    bars = Bars(terminal())
    bars.begin(made[:2], kept=0)
    try:
        bars.progress(made[0].key, 6, "training")
        everything, run = bars.tasks
        assert (run.description, run.completed, run.total) == ("local-seed0", 6, 12)
        assert (everything.completed, everything.total) == (6, 24)
        bars.progress(made[0].key, 99, "training")
        assert run.completed == 12, "a run may take more steps than was thought"
        bars.done(made[0].key, 1.0, [])
        bars.progress(made[1].key, 3, "training")
        assert [task.completed for task in bars.tasks] == [15, 3]
    finally:
        bars.end()


def test_nothing_to_do_draws_no_bar() -> None:
    console = terminal()
    bars = Bars(console)
    bars.begin([], kept=3)
    bars.end()
    assert "%" not in shown_on(console)
