"""What the tests of learning share: one thread, a site's images, another site's model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gossipseg.learn import protocol
from tests.learn.harness import make_spec, make_trainer, write_png_site


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    """Bits agree between runs, and tests side by side do not starve each other."""
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site's folder of a few small pictures."""
    return write_png_site(tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="module")
def guest(data: Path, tmp_path_factory: pytest.TempPathFactory) -> protocol.Visit:
    """The wire file of another site of the federation after one round."""
    spec = make_spec(data, tmp_path_factory.mktemp("south"), site="south")
    done = make_trainer(spec).run_round(protocol.StartRound(1, export=True))
    return protocol.Visit(done.export.path, "g" * 64, "south", steps=50, cases=9)
