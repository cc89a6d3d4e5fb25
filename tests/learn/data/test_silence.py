"""The standard error stream is one for all threads: turning it aside must never lose it."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest
import SimpleITK as sitk

from gossipseg.learn.data.formats.silence import DECODERS, STDERR, libraries_silent
from gossipseg.learn.data.readers import read_volume


def test_lines_of_libraries_are_told_and_others_come_out(capfd: pytest.CaptureFixture[str]) -> None:
    with libraries_silent(DECODERS) as said:
        os.write(STDERR, b"Corrupt JPEG data\nround 3 finished\n")
    assert said == ["Corrupt JPEG data"]
    assert capfd.readouterr().err == "round 3 finished\n"


def test_readers_in_several_threads_leave_the_stream_as_it_was(tmp_path: Path) -> None:
    for i in range(4):
        image = sitk.GetImageFromArray(np.full((6, 5, 4), i, np.int16))
        sitk.WriteImage(image, str(tmp_path / f"p{i}.mha"))
    before, together = os.fstat(STDERR), Barrier(4)

    def read(i: int) -> float:
        together.wait()
        return max(float(read_volume(tmp_path / f"p{i}.mha", 3).array.mean()) for _ in range(20))

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(read, range(4))) == [0, 1, 2, 3]
    after = os.fstat(STDERR)
    assert (after.st_dev, after.st_ino) == (before.st_dev, before.st_ino)
