"""The chained log on disk: rotation, crashes, a full disk, and where tampering is found."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gossipseg.errors import DiskFull
from gossipseg.store.auditlog import (
    AuditLog,
    audit_files,
    line_hash,
    read_audit,
    verify_audit,
)


def write(folder: Path, count: int, *, first: int = 0, **options: int) -> AuditLog:
    log = AuditLog(folder, **options)
    for i in range(first, first + count):
        log.append([(1000.0 + i, "model_merged", {"n": i, "dice": float("nan")})])
    log.close()
    return log


def test_a_chain_holds_and_goes_on_after_a_restart(tmp_path: Path) -> None:
    write(tmp_path, 3)
    log = write(tmp_path, 2, first=3)
    verdict = verify_audit(tmp_path)
    assert (verdict.lines, verdict.first_seq, verdict.last_seq, verdict.flaws) == (5, 1, 5, ())
    assert log.head == (5, verdict.last_hash)
    lines = (tmp_path / "audit.jsonl").read_bytes().splitlines()
    assert json.loads(lines[1])["prev"] == line_hash(lines[0])
    assert [r["n"] for r in read_audit(tmp_path)] == list(range(5))
    assert (tmp_path / "audit.jsonl").stat().st_mode & 0o777 == 0o600
    assert verify_audit(tmp_path / "nothing").lines == 0


def test_rotation_keeps_the_chain_and_says_what_it_dropped(tmp_path: Path) -> None:
    write(tmp_path, 40, max_file_bytes=500, max_files=3)
    files = audit_files(tmp_path)
    assert len(files) == 3 and files[-1].name == "audit.jsonl"
    verdict = verify_audit(tmp_path)
    assert verdict.flaws == () and verdict.first_seq > 1
    write(tmp_path, 1, first=40)  # a restart finds the end of the chain
    assert verify_audit(tmp_path).flaws == ()
    files[0].unlink()
    assert [f.reason for f in verify_audit(tmp_path).flaws] == ["missing"]


def test_a_restart_right_after_a_rotation_goes_on_from_the_full_file(tmp_path: Path) -> None:
    write(tmp_path, 3)
    (tmp_path / "audit.jsonl").rename(tmp_path / "audit-000000000001.jsonl")
    write(tmp_path, 1, first=3)
    verdict = verify_audit(tmp_path)
    assert (verdict.last_seq, verdict.files, verdict.flaws) == (4, 2, ())


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_a_line_torn_anywhere_is_closed_by_a_line_that_says_so(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("torn")
    write(folder, 4)
    path = folder / "audit.jsonl"
    whole = path.read_bytes()
    start = whole[:-1].rfind(b"\n") + 1
    path.write_bytes(whole[: data.draw(st.integers(start, len(whole) - 1), "cut")])
    before = verify_audit(folder)
    assert before.flaws == () and before.open_end == (not path.read_bytes().endswith(b"\n"))
    write(folder, 2, first=9)
    verdict = verify_audit(folder)
    assert verdict.flaws == () and not verdict.open_end
    names = [r["event"] for r in read_audit(folder)]
    assert verdict.torn == names.count("audit_torn") <= 1


def test_a_second_crash_between_the_newline_and_the_closing_line_is_mended(tmp_path: Path) -> None:
    write(tmp_path, 2)
    with (tmp_path / "audit.jsonl").open("ab") as f:
        f.write(b'{"seq":3,"t\n')
    write(tmp_path, 1, first=2)
    verdict = verify_audit(tmp_path)
    assert (verdict.flaws, verdict.torn, verdict.lines) == ((), 1, 4)


def edit(path: Path, line: int, new: bytes | None) -> None:
    lines = path.read_bytes().split(b"\n")
    lines[line - 1 : line] = [] if new is None else [new]
    path.write_bytes(b"\n".join(lines))


def test_tampering_is_found_and_its_place_named(tmp_path: Path) -> None:
    for i, (new, reason, at) in enumerate(
        [
            (b'{"seq":3,"t":1,"prev":"x","event":"model_merged"}', "changed", 3),  # and line 4 names another
            (None, "changed", 3),
            (b"scribble", "unreadable", 3),
        ]
    ):
        folder = tmp_path / str(i)
        write(folder, 6)
        edit(folder / "audit.jsonl", 3, new)
        flaws = verify_audit(folder).flaws
        assert flaws and (flaws[0].reason, flaws[0].line, flaws[0].file) == (reason, at, "audit.jsonl")


@given(st.integers(0, 10_000), st.integers(1, 255))
@settings(max_examples=80, deadline=None)
def test_no_byte_before_the_last_line_can_change_unseen(
    tmp_path_factory: pytest.TempPathFactory, position: int, change: int
) -> None:
    folder = tmp_path_factory.mktemp("bytes")
    write(folder, 5)
    path = folder / "audit.jsonl"
    data = bytearray(path.read_bytes())
    end = bytes(data[:-1]).rfind(b"\n")
    data[position % end] ^= change
    path.write_bytes(bytes(data))
    assert verify_audit(folder).flaws


def test_an_end_that_was_cut_off_is_found_by_a_head_noted_earlier(tmp_path: Path) -> None:
    noted = write(tmp_path, 6).head
    assert verify_audit(tmp_path, noted=noted).flaws == ()
    edit(tmp_path / "audit.jsonl", 6, None)
    assert verify_audit(tmp_path).flaws == ()
    assert [f.reason for f in verify_audit(tmp_path, noted=noted).flaws] == ["head_missing"]


def test_a_full_disk_leaves_no_half_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = AuditLog(tmp_path)
    log.append([(1.0, "a", {})])
    real, calls = os.write, 0

    def write_some(fd: int, data: bytes) -> int:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise OSError(28, "No space left on device")
        return real(fd, data[:20])

    monkeypatch.setattr(os, "write", write_some)
    with pytest.raises(DiskFull):
        log.append([(2.0, "b", {}), (2.0, "c", {})])
    monkeypatch.setattr(os, "write", real)
    log.append([(3.0, "d", {})])
    assert [r["event"] for r in read_audit(tmp_path)] == ["a", "d"]
    verdict = verify_audit(tmp_path)
    assert (verdict.flaws, verdict.torn) == ((), 0)
