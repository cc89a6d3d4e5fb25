"""What holds for every test."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest

# A suite that a script has put into the background inherits an ignored SIGINT, and its children from it: what
# is tested with Ctrl-C would never end.
signal.signal(signal.SIGINT, signal.default_int_handler)

_ROWS = pytest.StashKey[list[tuple[str, str]]]()


@pytest.fixture
def anyio_backend() -> str:
    """What runs a coroutine test: asyncio, in a loop of the test's own."""
    return "asyncio"


@pytest.fixture
def seen(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Call it with what was seen, in figures: shown at the end of the run, a row for a table in the docs."""
    rows = request.config.stash.setdefault(_ROWS, [])
    return lambda text: rows.append((request.node.name, text))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    rows = config.stash.get(_ROWS, [])
    if rows:
        terminalreporter.section("what was seen")
        for name, text in rows:
            terminalreporter.line(f"{name}: {text}")
