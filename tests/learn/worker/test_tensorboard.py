"""TensorBoard scalars: what is in the file, a missing package, a disk that fails."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from gossipseg.errors import ConfigError
from gossipseg.learn import protocol
from gossipseg.learn.worker.tensorboard import Scalars


def done(number: int, **changes: Any) -> protocol.RoundDone:
    fields = {"round": number, "steps": 6 * number, "loss": 1.0 / number, "terms": {"seg": 0.5, "pull": None}}
    return protocol.RoundDone(
        **{**fields, "dice_val": 0.7, "dice_val_local": [0.6, None], "seconds": 2.0, **changes}
    )


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_curves_can_be_read_back(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    scalars = Scalars(tmp_path)
    scalars.round(done(1), 0.01)
    scalars.round(done(2, dice_val=None), 0.005)
    scalars.close()
    read = EventAccumulator(str(tmp_path / "tensorboard"))
    read.Reload()
    curves = {tag: [(p.step, round(p.value, 4)) for p in read.Scalars(tag)] for tag in read.Tags()["scalars"]}
    assert curves["train/loss"] == [(1, 1.0), (2, 0.5)]
    assert curves["train/learning_rate"] == [(1, 0.01), (2, 0.005)]
    assert curves["validation/dice"] == [(1, 0.7)] and curves["validation/dice_class_1"] == [
        (1, 0.6),
        (2, 0.6),
    ]
    assert "train/pull" not in curves and "validation/dice_class_2" not in curves


def test_without_the_package_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match=r"gossipseg\[tensorboard\].*tensorboard: false"):
        Scalars(tmp_path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_disk_that_fails_ends_the_curves_and_not_the_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "tensorboard").write_text("in the way")
    scalars = Scalars(tmp_path)
    scalars.round(done(1), 0.01)
    scalars.close()
    told = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert len(told) == 1 and "not written any more" in told[0]
    assert (tmp_path / "tensorboard").read_text() == "in the way"
