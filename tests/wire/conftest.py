from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from gossipseg.trust import Identity
from tests.wire.harness import federation, make_identities


@pytest.fixture(scope="session")
def identities(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Identity]:
    return make_identities(tmp_path_factory.mktemp("identities"))


@pytest.fixture(params=["memory", "grpc"])
def transports(request: pytest.FixtureRequest, tmp_path: Path, identities: dict[str, Identity]):
    """A federation of either kind: `async with transports() as f:`."""
    return partial(federation, request.param, tmp_path, identities)


@pytest.fixture
def over_grpc(tmp_path: Path, identities: dict[str, Identity]):
    return partial(federation, "grpc", tmp_path, identities)
