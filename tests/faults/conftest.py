"""What every scenario of the fault suite reports: one row for the table in docs/faults.md."""

from __future__ import annotations

from collections.abc import Callable

import pytest

_ROWS = pytest.StashKey[list[tuple[str, str]]]()


@pytest.fixture
def seen(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Call it with what was seen, in figures; shown at the end of the run."""
    rows = request.config.stash.setdefault(_ROWS, [])
    return lambda text: rows.append((request.node.name, text))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    rows = config.stash.get(_ROWS, [])
    if rows:
        terminalreporter.section("what was seen")
        for name, text in rows:
            terminalreporter.line(f"{name}: {text}")
