"""A disk that fills up: training goes on, the last checkpoint stays valid, status says so."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.federation import Federation, federation

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("needs the right to mount a tmpfs")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Take every byte that is left."""
    path = folder / "filler"
    with path.open("wb", buffering=0) as f:
        for block in (1 << 20, 1 << 12, 1):
            try:
                while f.write(bytes(block)) == block:
                    pass
            except OSError:
                continue
    return path


def test_training_outlives_a_full_disk(tmp_path: Path) -> None:
    with (
        small_disk(tmp_path / "north" / "state", 24) as disk,
        federation(tmp_path, ["north"], site={"disk_reserve_bytes": 0}) as f,
    ):
        north = f["north"]
        north.start()
        f.until_round("north", 2)
        filler = fill(disk)
        at = f.round_of("north")
        f.until("status says that the disk is full", lambda: "disk" in _reasons(f, "north"))
        f.until_round("north", at + 2)  # training goes on

        filler.unlink()
        f.until("all is well again", lambda: f.well("north"))
        mended_at = f.round_of("north")
        assert north.end() == 0

        north.start()
        f.until("the worker is back", lambda: len(north.events("worker_ready")) == 2)
        assert north.events("worker_ready")[-1]["round"] >= mended_at - 1
        assert north.end() == 0


def _reasons(f: Federation, name: str) -> str:
    status = f[name].status()
    return "(no answer)" if status is None else " ".join(status.reasons)
