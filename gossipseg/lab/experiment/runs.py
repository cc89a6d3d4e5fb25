"""Does the missing runs in parallel worker processes; each result is a file.

OUT/settings.json      The settings that all runs of this folder share.
OUT/runs/RUN.json      A finished run; written whole or not at all.
OUT/runs/worker-N.log  The log of a worker process.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import queue
import subprocess
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from gossipseg.children import directory, environment, python_module
from gossipseg.errors import ConfigError, GossipsegError, LocalError
from gossipseg.lab.experiment.progress import ProgressDisplay
from gossipseg.lab.plan.run_plans import RunPlan
from gossipseg.lab.plan.study import digest
from gossipseg.store import atomic_write

SCHEMA = 1
GRACE_S = 5.0


@dataclass(slots=True)
class RunOutcome:
    """Finished runs by key, and the reason for each unfinished one."""

    done: dict[str, dict[str, Any]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    exit_code: int = 0


# ---------------------------------------------------------------- the folder


def prepare(out: Path, identity: Mapping[str, Any]) -> None:
    """Make the folder one for these settings. Raises ConfigError when it holds runs of others."""
    file = out / "settings.json"
    wanted = json.loads(json.dumps(identity))
    if file.exists():
        held = read_json(file)
        if held.get("settings") != wanted:
            key, ours, theirs = first_difference(wanted, held.get("settings"))
            raise ConfigError(
                f"this folder holds runs {theirs}",
                file=file,
                key=key,
                value=ours,
                remedy="Give another --out, or the same settings to go on with those runs.",
            )
        return
    try:
        (out / "runs").mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise LocalError(f"{out}: cannot be made: {e.strerror}. Give another --out.") from e
    write_json(file, {"schema": SCHEMA, "fingerprint": digest(wanted), "settings": wanted})


def missing(out: Path, plans: Sequence[RunPlan]) -> list[RunPlan]:
    """The runs whose file is missing."""
    return [plan for plan in plans if not _file(out, plan).exists()]


def _file(out: Path, plan: RunPlan) -> Path:
    return out / "runs" / f"{plan.key}.json"


def finished(out: Path, plan: RunPlan) -> dict[str, Any] | None:
    """The run's document, if the file exists. Raises ConfigError when it was made with other settings."""
    file = _file(out, plan)
    if not file.exists():
        return None
    document = read_json(file)
    if document.get("fingerprint") != plan.settings:
        raise ConfigError(
            f"{plan.label} was run here with other settings of the algorithm",
            file=file,
            remedy="Remove the file to run it again, or give another --out.",
        )
    return document


def read_json(file: Path) -> dict[str, Any]:
    """A JSON document of ours. Raises ConfigError."""
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise ConfigError(f"cannot be read: {e}", file=file, remedy="Remove it, and run again.") from None
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise ConfigError("is not a document of this gossiplab", file=file, remedy="Give another --out.")
    return document


def write_json(file: Path, document: Mapping[str, Any]) -> None:
    """Write the whole document or nothing."""
    atomic_write(file, json.dumps(document, indent=1, allow_nan=False, ensure_ascii=False).encode() + b"\n")


def first_difference(ours: Any, theirs: Any, prefix: str = "") -> tuple[str, Any, str]:
    """(dotted key, our value, theirs in words) of the first difference."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key in sorted({**ours, **theirs}):
            if ours.get(key) != theirs.get(key):
                return first_difference(ours.get(key), theirs.get(key), f"{prefix}.{key}" if prefix else key)
    return prefix, ours, "without it" if theirs is None else f"with {theirs!r}"


# ---------------------------------------------------------------- running


def run_all(out: Path, plans: Sequence[RunPlan], jobs: int, display: ProgressDisplay) -> RunOutcome:
    """Finish every run; finished ones are kept. Whatever happens, no worker process is left behind."""
    outcome = RunOutcome()
    todo: deque[RunPlan] = deque()
    for plan in plans:
        document = finished(out, plan)
        if document is None:
            todo.append(plan)
        else:
            outcome.done[plan.key] = document
    display.begin([plan for plan in todo], kept=len(outcome.done))
    if todo:
        _Pool(out, todo, min(jobs, len(todo)), display, outcome).run()
    return outcome


class _Worker:
    """A process that does runs, one after the other."""

    def __init__(self, number: int, out: Path, news: queue.Queue[tuple[int, Any]]) -> None:
        self.plan: RunPlan | None = None
        self.log = out / "runs" / f"worker-{number}.log"
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                python_module("gossipseg.lab.experiment.worker"),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=directory(),
                env=environment(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1"),
            )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._stdin = self._process.stdin
        self._listener = threading.Thread(
            target=_listen, args=(number, self._process.stdout, news), daemon=True
        )
        self._listener.start()

    def order(self, plan: RunPlan) -> None:
        self.plan = plan
        self._stdin.write(json.dumps(dataclasses.asdict(plan)).encode() + b"\n")
        self._stdin.flush()

    def last_words(self) -> str:
        """The process's own reason for its end, if it gave one."""
        code = self._process.wait()
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return f"its process ended with code {code}" + (f": {lines[-1]}" if lines else "")

    def end(self) -> None:
        """End the process: close its standard input, then terminate it, then kill it."""
        with contextlib.suppress(BrokenPipeError):  # it may be gone already
            self._stdin.close()
        if self._process.poll() is None and self.plan is not None:
            self._process.terminate()
        try:
            self._process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._listener.join()


def _listen(number: int, stdout: IO[bytes], news: queue.Queue[tuple[int, Any]]) -> None:
    with stdout:
        for line in stdout:
            news.put((number, json.loads(line)))
    news.put((number, None))


class _Pool:
    def __init__(
        self, out: Path, todo: deque[RunPlan], count: int, display: ProgressDisplay, outcome: RunOutcome
    ) -> None:
        self._out, self._todo, self._display, self._outcome = out, todo, display, outcome
        self._news: queue.Queue[tuple[int, Any]] = queue.Queue()
        self._workers: dict[int, _Worker] = {}
        self._count, self._last = count, 0

    def run(self) -> None:
        try:
            for _ in range(self._count):
                self._hire()
            while self._workers:
                number, message = self._news.get()
                if number in self._workers:
                    self._hear(number, message)
        finally:
            for worker in self._workers.values():
                worker.end()

    def _hire(self) -> None:
        self._last += 1
        self._workers[self._last] = _Worker(self._last, self._out, self._news)
        self._next(self._last)

    def _next(self, number: int) -> None:
        worker = self._workers[number]
        worker.plan = None
        if self._todo:
            worker.order(self._todo.popleft())
        else:
            self._workers.pop(number).end()

    def _hear(self, number: int, message: dict[str, Any] | None) -> None:
        worker = self._workers[number]
        plan = worker.plan
        assert plan is not None, "a worker speaks of its run alone"
        if message is None:
            self._lost(number, plan)
        elif message["type"] == "progress":
            self._display.progress(plan.key, message["done"], message["text"])
        elif message["type"] == "done":
            self._keep(plan, message["rows"], message["seconds"])
            self._next(number)
        else:
            self._fail(plan, message["message"], message["exit_code"])
            self._next(number)

    def _keep(self, plan: RunPlan, rows: list[dict[str, Any]], seconds: float) -> None:
        document = {
            "schema": SCHEMA,
            "fingerprint": plan.settings,
            "algorithm": plan.label,
            "seed": plan.seed,
            "split": plan.split,
            "seconds": round(seconds, 2),
            "federation": plan.federation,
            "rows": rows,
        }
        write_json(_file(self._out, plan), document)
        self._outcome.done[plan.key] = json.loads(json.dumps(document))
        self._display.done(plan.key, seconds, rows)

    def _fail(self, plan: RunPlan, why: str, exit_code: int) -> None:
        self._outcome.failed[plan.key] = why
        self._outcome.exit_code = self._outcome.exit_code or exit_code
        self._display.failed(plan.key, why)

    def _lost(self, number: int, plan: RunPlan) -> None:
        """Replace a process that died in the middle of a run."""
        worker = self._workers.pop(number)
        self._fail(plan, worker.last_words(), GossipsegError.exit_code)
        worker.end()
        if self._todo:
            self._hire()
