"""Tiny hospitals and the settings under which they train in a second."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gossipseg.testbed import synthetic


@pytest.fixture(scope="session")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three sites of a few small pictures each."""
    root = tmp_path_factory.mktemp("hospitals")
    small = [replace(h, cases=(n, 1, 2)) for h, n in zip(synthetic.hospitals(3), (6, 4, 3), strict=True)]
    synthetic.write_federation(root, small, seed=1, size_px=40)
    return root


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """As a worker process of the lab has it."""
    torch.set_num_threads(1)
