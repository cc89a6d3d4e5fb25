"""The newest checkpoints stay, whatever happens while the next one is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from gossipseg.errors import LocalError
from gossipseg.store import Checkpoints
from tests.store.faults import each_fault


def names(checkpoints: Checkpoints) -> list[str]:
    return [p.name for p in checkpoints.newest()]


def put(checkpoints: Checkpoints, round: int, content: bytes = b"") -> Path:
    return checkpoints.save(round, lambda f: f.write(content or str(round).encode()))


def test_keeps_the_newest_two_by_number(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoint")
    assert names(checkpoints) == [] and not (tmp_path / "checkpoint").exists()
    for round in (8, 9, 10, 11):
        put(checkpoints, round)
    assert names(checkpoints) == ["round-11.pt", "round-10.pt"]
    assert Checkpoints.round_of(checkpoints.newest()[0]) == 11
    put(checkpoints, 11, b"again")
    assert names(checkpoints) == ["round-11.pt", "round-10.pt"]
    assert checkpoints.newest()[0].read_bytes() == b"again"


def test_one_just_saved_is_never_dropped(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    for round in (5, 6, 2):
        put(checkpoints, round)
    assert names(checkpoints) == ["round-6.pt", "round-2.pt"]


def test_every_failing_operation_leaves_a_whole_newest(tmp_path: Path, monkeypatch) -> None:
    checkpoints = Checkpoints(tmp_path)
    put(checkpoints, 1)
    put(checkpoints, 2)
    seen = set()
    for operation, raised in each_fault(monkeypatch, lambda: put(checkpoints, 3)):
        assert isinstance(raised, LocalError) or operation == "mkdir", operation
        rounds = {Checkpoints.round_of(p): p.read_bytes() for p in checkpoints.newest()}
        assert rounds.items() <= {1: b"1", 2: b"2", 3: b"3"}.items() and 2 in rounds, operation
        assert len(rounds) >= 2
        seen.add(operation)
        (tmp_path / "round-3.pt").unlink(missing_ok=True)
        put(checkpoints, 1), put(checkpoints, 2)
    assert {"FileIO.write", "fsync", "replace", "unlink"} <= seen
    assert names(checkpoints) == ["round-3.pt", "round-2.pt"]


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    for name in ("round-x.pt", "round-1.pt.corrupt", "notes", "xround-1.pt"):
        (tmp_path / name).write_bytes(b"")
    for round in (1, 2, 3):
        put(checkpoints, round)
    assert names(checkpoints) == ["round-3.pt", "round-2.pt"]
    assert (tmp_path / "round-x.pt").exists() and (tmp_path / "xround-1.pt").exists()
    with pytest.raises(ValueError, match="not the name"):
        Checkpoints.round_of(tmp_path / "notes")


def test_a_damaged_one_is_set_aside_for_the_one_before(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    put(checkpoints, 1)
    aside = checkpoints.set_aside(put(checkpoints, 2))
    assert names(checkpoints) == ["round-1.pt"] and aside.read_bytes() == b"2"
    with pytest.raises(LocalError, match="cannot be set aside"):
        checkpoints.set_aside(tmp_path / "round-9.pt")


def test_prepare_removes_what_a_killed_writer_left(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoint")
    checkpoints.prepare()
    (checkpoints.directory / ".round-3.pt.99-0.tmp").write_bytes(b"half")
    checkpoints.prepare()
    assert list(checkpoints.directory.iterdir()) == []


def test_at_least_one_is_kept(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="keep = 0"):
        Checkpoints(tmp_path, keep=0)
