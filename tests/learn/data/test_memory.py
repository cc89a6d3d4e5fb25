"""What is said where memory does not suffice."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from gossipseg.errors import DataError, LocalError
from gossipseg.learn.commands import cli
from gossipseg.learn.commands.costs import Memory
from gossipseg.learn.data import memory
from gossipseg.learn.data.cases import Case
from gossipseg.learn.data.dataset import load_item
from gossipseg.learn.params import DataParams
from tests.learn.imagery import VOLUME, blob, write_nifti

CASE = Case("p0", Path("d/images/p0.nii"), Path("d/labels/p0.nii"))


def wrapped() -> RuntimeError:
    """As MONAI hands it on."""
    try:
        torch.empty(1 << 60)
    except RuntimeError as e:
        try:
            raise RuntimeError("applying transform <object>") from e
        except RuntimeError as outer:
            return outer
    raise AssertionError("so much memory")


@pytest.mark.parametrize("error", [MemoryError(), wrapped(), RuntimeError("CUDA out of memory. Tried")])
def test_a_case_that_does_not_fit_is_named_with_its_size(error: Exception) -> None:
    with pytest.raises(LocalError) as caught, memory.memory_for(CASE, (1, 400, 400, 300)):
        raise error
    text = str(caught.value)
    assert text.startswith("d/images/p0.nii: not enough memory") and "400×400×300, 0.2 GB as float32" in text


def test_a_series_is_as_large_as_its_files(tmp_path: Path) -> None:
    for k in range(4):
        (tmp_path / f"{k}.dcm").write_bytes(bytes(500_000))
    with pytest.raises(LocalError, match=r"2\.0 MB on disk"), memory.memory_for(Case("p0", tmp_path)):
        raise MemoryError


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(DataError), memory.memory_for(CASE):
        raise DataError("holds NaN")
    with pytest.raises(LocalError, match="on disk"), memory.memory_for(CASE):
        raise DataError("cannot be read") from wrapped()
    with pytest.raises(ValueError, match="shape"), memory.memory_for(CASE):
        raise ValueError("shape")


def test_a_limit_of_the_process_is_what_is_free() -> None:
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (3 * 10**9, resource.RLIM_INFINITY));"
        "from gossipseg.learn.data.memory import available_bytes; print(available_bytes())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 0 < int(done.stdout) < 3 * 10**9
    assert (memory.available_bytes() or 1) > 0


def test_a_command_says_so_without_a_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def command(args: object) -> int:
        raise wrapped()

    code = cli.run(command, cli.parser("x", "x"), ["--spec", "-"])
    assert code == 1 and capsys.readouterr().err.startswith("error: not enough memory")


def test_what_the_cache_takes_is_compared_with_what_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, label = blob((10, 10, 10), 0)
    files = write_nifti(tmp_path / "i.nii", image), write_nifti(tmp_path / "l.nii", label)
    item = load_item(Case("a", *files), VOLUME)
    costs = Memory(DataParams("d"), keeps_test=False)
    for split in ("training", "validation", "test"):
        costs.add(split, item)
    assert costs.kept_bytes == 2 * 5 * 1000  # float32 and a byte of label; test is read when it is scored
    assert costs.warnings() == []
    monkeypatch.setattr("gossipseg.learn.commands.costs.available_bytes", lambda: 9_000)
    assert len(costs.warnings()) == 1 and "data.cache: false" in costs.warnings()[0]
    uncached = Memory(DataParams("d", cache=False), keeps_test=False)
    uncached.add("training", item)
    assert uncached.warnings() == [] and uncached.document()["cache_bytes"] == 0
    assert np.isfinite(uncached.document()["largest_case_bytes"] or 0)
