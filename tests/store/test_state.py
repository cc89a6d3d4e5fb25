"""The small state: whole, or set aside."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossipseg.errors import LocalError
from gossipseg.store import StateFile
from tests.store.faults import each_fault


def test_round_trip(tmp_path: Path) -> None:
    state = StateFile(tmp_path / "node.json")
    assert state.load() is None and state.corrupt_copy is None
    state.save({"round": 7, "inbox": [{"frm": "süd"}]})
    assert StateFile(tmp_path / "node.json").load() == {"round": 7, "inbox": [{"frm": "süd"}]}


@pytest.mark.parametrize(
    "damage", [b"", b"{", b'{"round": 7', b"[1, 2]", b"\xff\xfe", b"\0" * 100, b"[" * 100_000, b"null"]
)
def test_damage_is_kept_aside_and_not_fatal(tmp_path: Path, damage: bytes) -> None:
    state = StateFile(tmp_path / "node.json")
    state.path.write_bytes(damage)
    assert state.load() is None
    assert state.corrupt_copy is not None and state.corrupt_copy.read_bytes() == damage
    state.save({"round": 1})
    assert state.load() == {"round": 1} and state.corrupt_copy is None


def test_every_failing_operation_leaves_old_or_new(tmp_path: Path, monkeypatch) -> None:
    state = StateFile(tmp_path / "node.json")
    old, new = {"round": 1}, {"round": 2}
    state.save(old)
    for operation, raised in each_fault(monkeypatch, lambda: state.save(new)):
        assert isinstance(raised, LocalError), operation
        assert state.load() in (old, new), operation
        state.save(old)
    assert state.load() == new


def test_what_is_not_json_is_refused_and_the_old_stays(tmp_path: Path) -> None:
    state = StateFile(tmp_path / "node.json")
    state.save({"round": 1})
    for bad in ({"x": float("nan")}, {"x": object()}):
        with pytest.raises((TypeError, ValueError)):
            state.save(bad)
    assert state.load() == {"round": 1}


def test_unreadable_is_an_error_and_not_a_fresh_start(tmp_path: Path) -> None:
    (tmp_path / "node.json").mkdir()
    with pytest.raises(LocalError, match="cannot be read"):
        StateFile(tmp_path / "node.json").load()


@given(st.binary(max_size=200))
def test_any_bytes_load_as_an_object_or_none(tmp_path_factory, raw: bytes) -> None:
    state = StateFile(tmp_path_factory.mktemp("state") / "node.json")
    state.path.write_bytes(raw)
    assert state.load() is None or isinstance(state.load(), dict)
