"""The victim, its listed peers' keys, and what every attack reports: one row for docs/security.md."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.attacks.rig import Attack, attack

_ROWS = pytest.StashKey[list[tuple[str, str]]]()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attack]:
    """A victim that lists south (the attacker) and west (honest), with generous limits."""
    with attack(tmp_path_factory.mktemp("attack"), calls_per_s=1e6, burst_calls=1e6) as made:
        yield made


@pytest.fixture
def seen(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Call it with what was seen, in figures; shown at the end of the run."""
    rows = request.config.stash.setdefault(_ROWS, [])
    return lambda text: rows.append((request.node.name, text))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    rows = config.stash.get(_ROWS, [])
    if rows:
        terminalreporter.section("what attacks met")
        for name, text in rows:
            terminalreporter.line(f"{name}: {text}")
