"""Which weights are deployed, and what is said where there are none."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from gossipseg.errors import LocalError
from gossipseg.learn.deploy.deployment import load_deployment
from gossipseg.learn.engine.build import build_model
from gossipseg.learn.engine.checkpoint import digest
from gossipseg.learn.settings import read_settings
from gossipseg.store import Checkpoints
from tests.learn.imagery import GREY, spec, write_checkpoint


def kernel(net: torch.nn.Module) -> torch.Tensor:
    return kernel_of(net.state_dict())


def kernel_of(state: dict[str, torch.Tensor]) -> torch.Tensor:
    return max(state.values(), key=torch.numel)


def test_the_newest_ema_is_loaded_in_evaluation_mode(tmp_path: Path) -> None:
    made = spec(tmp_path, GREY)
    write_checkpoint(made, 9, shift=1.0)
    newest = write_checkpoint(made, 10, shift=2.0)
    content = torch.load(newest, weights_only=True)
    content["model"] = {n: t * 0 for n, t in content["model"].items()}
    del content["digest"]
    content["digest"] = digest(content)
    torch.save(content, newest)
    d = load_deployment(made)
    assert (d.weights, d.round, d.steps, d.file) == ("ema", 10, 1000, newest)
    assert not d.net.training
    torch.testing.assert_close(kernel(d.net), kernel(build_model(read_settings(made))) + 2.0)


@pytest.mark.parametrize("damage", ["torn", "empty", "not a checkpoint", "no ema", "changed"])
def test_a_broken_checkpoint_is_passed_over_for_the_one_before(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    made = spec(tmp_path, GREY)
    write_checkpoint(made, 4)
    newest = write_checkpoint(made, 5)
    good = newest.read_bytes()
    newest.write_bytes({"torn": good[: len(good) // 2], "empty": b""}.get(damage, b"hello"))
    if damage == "no ema":
        torch.save({"model": {}}, newest)
    if damage == "changed":
        content = torch.load(write_checkpoint(made, 5), weights_only=True)
        kernel_of(content["ema"]).view(-1)[0] += 1e-3
        torch.save(content, newest)
    with caplog.at_level("WARNING"):
        assert load_deployment(made).round == 4
    assert "round-5.pt" in caplog.text and "round-4.pt is used" in caplog.text
    for file in Checkpoints(tmp_path / "state/checkpoint").newest():
        file.write_bytes(b"")
    with pytest.raises(LocalError, match=r"no usable checkpoint: round-5\.pt .*round-4\.pt"):
        load_deployment(made)


def test_no_checkpoint_yet(tmp_path: Path) -> None:
    with pytest.raises(LocalError, match=r"checkpoint: there is no checkpoint yet.*gossipsegd"):
        load_deployment(spec(tmp_path, GREY))


def test_the_initial_model_is_that_of_the_seed_everywhere(tmp_path: Path) -> None:
    made = spec(tmp_path, GREY)
    torch.manual_seed(123)
    first = load_deployment(made, initial=True)
    torch.manual_seed(456)
    other = load_deployment(dataclasses.replace(made, site="south"), initial=True)
    assert first.weights == "initial" and torch.equal(kernel(first.net), kernel(other.net))
    different = load_deployment(dataclasses.replace(made, seed=8), initial=True)
    assert not torch.equal(kernel(first.net), kernel(different.net))


def test_a_checkpoint_of_another_network_is_named(tmp_path: Path) -> None:
    made = spec(tmp_path, GREY)
    write_checkpoint(made)
    wider = dataclasses.replace(made, network={**made.network, "width": 8, "options": {}})
    with pytest.raises(LocalError, match=r"round-3\.pt: the checkpoint is of another network"):
        load_deployment(wider)


def test_a_checkpoint_is_never_unpickled(tmp_path: Path) -> None:
    """A file that would run code when unpickled is passed over, and the code does not run."""
    made = spec(tmp_path, GREY)
    write_checkpoint(made, 4)
    newest = write_checkpoint(made, 5)
    marker = tmp_path / "ran"
    torch.save({"ema": {}, "evil": _Touch(marker)}, newest)
    assert load_deployment(made).round == 4 and not marker.exists()


class _Touch:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)
