"""What a person sees during the runs: bars on a terminal, plain lines on a pipe."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any, Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from gossipseg.lab.plan.run_plans import RunPlan

LINE_EVERY_S = 30.0


class ProgressDisplay(Protocol):
    """Receives the progress of the runs."""

    def begin(self, plans: Sequence[RunPlan], kept: int) -> None: ...

    def progress(self, key: str, steps: int, text: str) -> None: ...

    def done(self, key: str, seconds: float, rows: Sequence[dict[str, Any]]) -> None: ...

    def failed(self, key: str, why: str) -> None: ...

    def end(self) -> None: ...


def make_display(*, quiet: bool) -> ProgressDisplay:
    """Bars on a terminal, lines on a pipe; only failures if quiet."""
    console = Console(stderr=True)
    if quiet:
        return Lines(write=lambda line: None)
    return Bars(console) if console.is_terminal else Lines()


def expected(plan: RunPlan) -> int:
    """Local steps of the run, all sites together: fewer with --equal-evaluations."""
    steps = int(plan.federation["training"]["steps_per_round"])
    rounds = sum(plan.budget(site) for site in plan.sites)
    if plan.name == "lone_pair":
        rounds *= 2
    if plan.name == "pooled":
        rounds = plan.rounds * (len(plan.sites) if plan.pooled_steps == "all" else 1)
    return steps * rounds


def mean_dice(rows: Sequence[dict[str, Any]]) -> str:
    """Mean test Dice over the sites, in words."""
    known = [r["dice_test"] for r in rows if r["dice_test"] is not None]
    return f"test Dice {sum(known) / len(known):.3f}" if known else "no test Dice"


class Lines:
    """A line at each end of a run, and occasional lines in between."""

    def __init__(self, write: Any = None) -> None:
        self._write = write or (lambda line: print(line, file=sys.stderr, flush=True))
        self._began = self._told = time.monotonic()
        self._expected: dict[str, int] = {}
        self._finished = self._count = 0

    def begin(self, plans: Sequence[RunPlan], kept: int) -> None:
        self._expected = {plan.key: expected(plan) for plan in plans}
        self._count = len(plans)
        had = f"; {kept} are there already" if kept else ""
        self._say(f"{len(plans)} runs to do{had}")

    def progress(self, key: str, steps: int, text: str) -> None:
        now = time.monotonic()
        if now - self._told >= LINE_EVERY_S:
            share = min(1.0, steps / max(1, self._expected[key]))
            self._say(f"{key}: {100 * share:.0f} % ({text})")

    def done(self, key: str, seconds: float, rows: Sequence[dict[str, Any]]) -> None:
        self._finished += 1
        self._say(f"{key}: {mean_dice(rows)}, {seconds:.0f} s ({self._finished} of {self._count})")

    def failed(self, key: str, why: str) -> None:
        self._finished += 1
        self._say(f"{key}: FAILED: {why}")

    def end(self) -> None:
        pass

    def _say(self, text: str) -> None:
        self._told = time.monotonic()
        self._write(f"{self._told - self._began:7.1f} s  {text}")


class Bars:
    """A bar for the whole comparison, and one for each run under way."""

    def __init__(self, console: Console) -> None:
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[text]}", style="dim"),
            console=console,
        )
        self._all: TaskID | None = None
        self._tasks: dict[str, TaskID] = {}
        self._expected: dict[str, int] = {}
        self._past, self._now = 0, dict[str, int]()

    @property
    def tasks(self) -> list[Task]:
        """The bars shown: the whole comparison's, then those of the runs under way."""
        return self._bars.tasks

    def begin(self, plans: Sequence[RunPlan], kept: int) -> None:
        self._expected = {plan.key: expected(plan) for plan in plans}
        if not plans:
            return
        had = f"{kept} there already" if kept else ""
        self._all = self._bars.add_task(
            f"[bold]{len(plans)} runs", total=sum(self._expected.values()), text=had
        )
        self._bars.start()

    def progress(self, key: str, steps: int, text: str) -> None:
        if key not in self._tasks:
            self._tasks[key] = self._bars.add_task(key, total=self._expected[key], text=text)
        self._bars.update(self._tasks[key], completed=min(steps, self._expected[key]), text=text)
        self._now[key] = min(steps, self._expected[key])
        self._sum()

    def done(self, key: str, seconds: float, rows: Sequence[dict[str, Any]]) -> None:
        self._over(key)
        self._bars.console.print(f"{key}: {mean_dice(rows)}, {seconds:.0f} s", highlight=False, markup=False)

    def failed(self, key: str, why: str) -> None:
        self._over(key)
        self._bars.console.print(f"{key}: FAILED: {why}", style="red", highlight=False, markup=False)

    def end(self) -> None:
        self._bars.stop()

    def _over(self, key: str) -> None:
        self._past += self._expected[key]
        self._now.pop(key, None)
        if key in self._tasks:
            self._bars.remove_task(self._tasks.pop(key))
        self._sum()

    def _sum(self) -> None:
        assert self._all is not None
        self._bars.update(self._all, completed=self._past + sum(self._now.values()))
