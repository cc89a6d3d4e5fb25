"""Checkpoints: which one a worker starts from, and what it refuses to start from."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from gossipseg.algos.params import LocalParams
from gossipseg.errors import ConfigError, DiskFull, LocalError
from gossipseg.learn import protocol
from gossipseg.learn.engine.checkpoint import FORMAT, contract_of, digest, load_checkpoint, save_checkpoint
from gossipseg.learn.params import WorkerSpec
from gossipseg.learn.settings import read_settings
from gossipseg.store import Checkpoints
from tests.learn.harness import make_spec, make_trainer, same, write_png_site

CONTRACT = {"network.signature": "abc", "algorithm.name": "gcml"}


def state(round: int) -> dict[str, Any]:
    return {"history": {"round": round, "steps": 10 * round}, "model": {"w": torch.full((3,), float(round))}}


@pytest.fixture
def store(tmp_path: Path) -> Checkpoints:
    store = Checkpoints(tmp_path / "checkpoint")
    for round in (1, 2, 3):
        save_checkpoint(store, state(round), CONTRACT)
    return store


def test_the_newest_two_are_kept_and_the_newest_is_used(store: Checkpoints) -> None:
    assert [p.name for p in store.newest()] == ["round-3.pt", "round-2.pt"]
    loaded, warning = load_checkpoint(store, CONTRACT)
    assert loaded is not None and warning == ""
    assert (loaded["round"], loaded["steps"]) == (3, 30) and same(loaded["model"], state(3)["model"])


def test_nothing_there_is_a_fresh_start(tmp_path: Path) -> None:
    assert load_checkpoint(Checkpoints(tmp_path / "none"), CONTRACT) == (None, "")


@pytest.mark.parametrize("damage", ["cut", "empty", "noise", "other"])
def test_a_damaged_one_is_set_aside_for_the_one_before(store: Checkpoints, damage: str) -> None:
    newest = store.newest()[0]
    whole = newest.read_bytes()
    if damage == "other":
        torch.save({"something": "else"}, newest)
    else:
        newest.write_bytes({"cut": whole[: len(whole) // 2], "empty": b"", "noise": b"x" * 500}[damage])
    loaded, warning = load_checkpoint(store, CONTRACT)
    assert loaded is not None and loaded["round"] == 2
    assert "round-3.pt" in warning and "round-2.pt" in warning
    assert [p.name for p in store.newest()] == ["round-2.pt"]
    assert newest.with_name("round-3.pt.corrupt").exists()


def test_a_single_changed_bit_is_noticed(store: Checkpoints) -> None:
    """torch reads a file whose tensors have changed on the disk without a word."""
    newest = store.newest()[0]
    whole = bytearray(newest.read_bytes())
    at = whole.index(torch.full((3,), 3.0).numpy().tobytes())
    whole[at + 2] ^= 1
    newest.write_bytes(bytes(whole))
    assert not same(torch.load(newest, weights_only=True)["model"], state(3)["model"])
    loaded, warning = load_checkpoint(store, CONTRACT)
    assert loaded is not None and loaded["round"] == 2 and "round-3.pt" in warning


def test_no_readable_one_is_an_error_and_nothing_is_touched(store: Checkpoints) -> None:
    for path in store.newest():
        path.write_bytes(b"gone")
    with pytest.raises(LocalError, match="backup"):
        load_checkpoint(store, CONTRACT)
    assert len(store.newest()) == 2


def test_another_contract_is_refused_with_the_way_out(store: Checkpoints) -> None:
    with pytest.raises(ConfigError, match=r"algorithm\.name = 'local'.*trained with.*'gcml'.*state_dir"):
        load_checkpoint(store, {**CONTRACT, "algorithm.name": "local"})


def test_one_of_an_earlier_version_says_nothing_of_what_was_added_since(store: Checkpoints) -> None:
    added = {"network.norm": "group", "network.options": "{}", "task.intensity": "rgb"}
    told, _ = load_checkpoint(store, {**CONTRACT, **added})
    assert told is not None


def test_one_trained_with_private_norms_says_that_this_version_has_none(store: Checkpoints) -> None:
    with pytest.raises(
        ConfigError, match=r"start afresh: .*private_norm: true, it goes on under version 0\.3"
    ):
        load_checkpoint(store, {**CONTRACT, "network.signature": "of all tensors"})
    other = Checkpoints(store.newest()[0].parent.parent / "other")
    contract = {**CONTRACT, "algorithm.name": "fedavg"}
    save_checkpoint(other, state(1), contract)
    with pytest.raises(ConfigError, match="start afresh") as caught:
        load_checkpoint(other, {**contract, "network.signature": "of another network"})
    assert "private_norm" not in str(caught.value)


def test_code_in_a_checkpoint_does_not_run(store: Checkpoints) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (pytest.fail, ("code of the checkpoint ran",))

    torch.save({"format": 1, "contract": CONTRACT, "trap": Trap()}, store.newest()[0])
    loaded, warning = load_checkpoint(store, CONTRACT)
    assert loaded is not None and loaded["round"] == 2 and warning


def test_a_full_disk_leaves_the_old_ones(store: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno
    import os

    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(DiskFull):
            save_checkpoint(store, state(4), CONTRACT)
    assert [p.name for p in store.newest()] == ["round-3.pt", "round-2.pt"]
    assert not [p for p in store.directory.iterdir() if p.suffix == ".tmp"]


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"federation": "other"}, "federation"),
        ({"site": "west"}, "site"),
        ({"seed": 8}, "seed"),
        ({"algorithm": dataclasses.asdict(LocalParams())}, "algorithm.name"),
        ({"training": {"optimizer": "sgd"}}, "training.optimizer"),
        ({"network": {"name": "sanet", "norm": "group"}}, "network.norm"),
        ({"network": {"name": "sanet", "options": {"x": 1}}}, "network.options"),
        ({"task": {"intensity": "ct_window"}}, "task.intensity"),
        ({"task": {"spacing_mm": (1.0, 2.0)}}, "task.spacing_mm"),
        ({"task": {"orientation": "RAS"}}, "task.orientation"),
        ({"task": {"ct_window_hu": (0.0, 9.0)}}, None),  # zscore has no window
        ({"training": {"learning_rate": 0.5}}, None),
        ({"training": {"steps_per_round": 50}}, None),
        ({"report_test": True}, None),
    ],
)
def test_what_must_not_change_and_what_may(tmp_path: Path, change: dict[str, Any], key: str | None) -> None:
    spec = make_spec(tmp_path, tmp_path)

    def changed(spec: WorkerSpec) -> WorkerSpec:
        merged = {k: {**getattr(spec, k), **v} if k in ("task", "training") else v for k, v in change.items()}
        return dataclasses.replace(spec, **merged)

    old, new = (contract_of(read_settings(s), "sig") for s in (spec, changed(spec)))
    assert [k for k in old if old[k] != new[k]] == ([key] if key else [])


def test_another_window_is_another_image(tmp_path: Path) -> None:
    spec = make_spec(tmp_path, tmp_path)
    windows = [{"intensity": "ct_window", "ct_window_hu": w} for w in ((-160.0, 240.0), (-160.0, 90.0))]
    found = [dataclasses.replace(spec, task={**spec.task, **window}) for window in windows]
    one, other = (contract_of(read_settings(s), "sig")["task.intensity"] for s in found)
    assert one != other


# ---------------------------------------------------------------- the version before


def test_a_checkpoint_of_version_0_1_is_gone_on_with_and_its_average_begins_anew(tmp_path: Path) -> None:
    """It holds no count of averaged rounds, no rounds' weights, and a guard of another form."""
    data = write_png_site(tmp_path / "site")
    trainer = make_trainer(make_spec(data, tmp_path / "a"))
    for number in (1, 2):
        trainer.run_round(protocol.StartRound(number))
    state = trainer.state()
    for key in ("averaged_rounds", "recent"):
        del state[key]
    for key in ("in_average", "ahead", "finetuned"):
        del state["history"][key]
    state["guard"] = {
        "hash": "v",
        "frm": "south",
        "judge_round": 3,
        "before": [0.5],
        "steps": 4,
        "snapshot": {},
    }
    store = Checkpoints(tmp_path / "store", keep=2)
    path = save_checkpoint(store, state, CONTRACT)
    document = torch.load(path, weights_only=True)
    document["format"] = 1
    document["digest"] = digest({k: v for k, v in document.items() if k != "digest"})
    torch.save(document, path)

    loaded, warning = load_checkpoint(store, CONTRACT)
    assert loaded is not None and warning == ""
    again = make_trainer(make_spec(data, tmp_path / "a"))
    again.load(loaded)
    assert same(again.model_state.ema.state_dict(), trainer.model_state.ema.state_dict())
    again.run_round(protocol.StartRound(3))
    assert same(again.model_state.ema.state_dict(), again.model_state.model.state_dict())
    assert again.model_state.averaged_rounds == 1 and not again.guard.pending


def test_a_checkpoint_of_a_later_version_is_neither_read_nor_set_aside(store: Checkpoints) -> None:
    """Or training would go back to an older one in silence."""
    newest = store.newest()[0]
    torch.save({**torch.load(newest, weights_only=True), "format": FORMAT + 1}, newest)
    with pytest.raises(LocalError, match=r"round-3\.pt: was written by a later version"):
        load_checkpoint(store, CONTRACT)
    assert newest.exists()
