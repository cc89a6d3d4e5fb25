"""The victim of the attacks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.attacks.rig import Attack, attack


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attack]:
    """A victim that lists south (the attacker) and west (honest), with generous limits."""
    with attack(tmp_path_factory.mktemp("attack"), calls_per_s=1e6, burst_calls=1e6) as made:
        yield made
