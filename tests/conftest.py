"""What holds for every test."""

from __future__ import annotations

import asyncio
import resource
import signal
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# How fast hypothesis draws and runs its examples is the machine's affair, and no test's.
settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")

# A suite that a script has put into the background inherits an ignored SIGINT, and its children from it: what
# is tested with Ctrl-C would never end.
signal.signal(signal.SIGINT, signal.default_int_handler)

_SEEN, _COST = "seen", "processor seconds"


class TestLoop(asyncio.SelectorEventLoop):
    """gRPC has one queue of completions in a process. What a call left there after its test's loop was closed
    (grpc/grpc#25364) must not fail the next test."""

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        late = isinstance(context.get("exception"), RuntimeError | BlockingIOError)
        if not (late and "PollerCompletionQueue" in repr(context.get("handle"))):
            super().call_exception_handler(context)


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    """What runs a coroutine test: asyncio, in a loop of the test's own."""
    return "asyncio", {"loop_factory": TestLoop}


@pytest.fixture
def seen(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Call it with what was seen, in figures: shown at the end of the run, a row for a table in the docs."""
    return lambda text: request.node.user_properties.append((_SEEN, text))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--costs",
        metavar="FILE",
        help="write each test's processor time, its ended children's included, to FILE, the dearest first",
    )


def _processor_seconds() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Processor time, unlike the clock on the wall, is the same on a busy machine."""
    return (yield from _measured(item))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, object, object]:
    return (yield from _measured(item))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, object, object]:
    return (yield from _measured(item))


def _measured(item: pytest.Item) -> Generator[None, object, object]:
    before = _processor_seconds()
    try:
        return (yield)
    finally:
        item.user_properties.append((_COST, _processor_seconds() - before))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    reports = [report for many in terminalreporter.stats.values() for report in many]
    # A teardown's report holds what set-up and call have noted, too, also when another process ran the test.
    ended = [r for r in reports if isinstance(r, pytest.TestReport) and r.when == "teardown"]
    rows = [(r.nodeid, text) for r in ended for name, text in r.user_properties if name == _SEEN]
    if rows:
        terminalreporter.section("what was seen")
        for name, text in rows:
            terminalreporter.line(f"{name.rpartition('::')[2]}: {text}")
    if path := config.getoption("--costs"):
        costs = {r.nodeid: sum(value for name, value in r.user_properties if name == _COST) for r in ended}
        dearest = sorted(costs.items(), key=lambda row: -row[1])
        lines = [f"{seconds:8.2f} {name}" for name, seconds in dearest]
        Path(path).write_text("\n".join([f"{sum(costs.values()):8.2f} all {len(costs)} tests", *lines, ""]))
