"""What most tests of the daemon begin with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon.harness import files_only
from tests.e2e.federation import Federation


@pytest.fixture
def files(tmp_path: Path) -> Iterator[Federation]:
    """The files of two sites, north and south."""
    with files_only(tmp_path, "north", "south") as f:
        yield f
