"""The chained log on disk: rotation, crashes, a full disk, and where tampering is found."""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gossipseg.errors import DiskFull, LocalError
from gossipseg.store.auditlog import AuditLog, audit_files, line_hash
from gossipseg.store.auditverify import read_audit, verify_audit
from tests.store.faults import each_fault


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


@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("state", ["full", "torn", "full_torn"])
def test_whichever_file_operation_fails_the_chain_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int, state: str
) -> None:
    """Of opening, mending a torn end, changing files and dropping the oldest; with and without a restart."""
    options = {"max_file_bytes": 400, "max_files": 2} if "full" in state else {}
    origin = tmp_path / "origin"
    write(origin, 9, **options)
    if "torn" in state:
        with (origin / "audit.jsonl").open("ab") as f:
            f.write(b'{"seq":10,"t":1.0,"pr')
    used: list[AuditLog] = []

    def prepare() -> None:
        shutil.copytree(origin, tmp_path / f"run{len(used)}")

    def action() -> None:
        used.append(AuditLog(tmp_path / f"run{len(used)}", **options))
        for i in range(5):
            used[-1].append([(1.0, "while_it_fails", {"n": i})])

    prepare()
    hit = []
    for name, raised in each_fault(monkeypatch, action, error):
        hit.append(name)
        log = used[-1]
        assert raised is None or isinstance(raised, LocalError)
        log.append([(2.0, "afterwards", {})])
        log.close()
        verdict = verify_audit(log.directory)
        assert verdict.flaws == (), (name, len(hit), verdict.flaws)
        write(log.directory, 3, **options)
        assert verify_audit(log.directory).flaws == (), (name, len(hit))
        prepare()
    assert {"open", "write", "fsync"} <= set(hit)
    assert "full" not in state or {"replace", "unlink"} <= set(hit)


def test_a_torn_line_at_the_end_of_a_full_file_is_closed_in_it(tmp_path: Path) -> None:
    write(tmp_path, 9)
    with (tmp_path / "audit.jsonl").open("ab") as f:
        f.write(b'{"seq":10,"t":1.0,"pr')
    write(tmp_path, 3, max_file_bytes=400)
    verdict = verify_audit(tmp_path)
    assert (verdict.flaws, verdict.torn, verdict.files) == ((), 1, 2)


def test_a_line_that_is_torn_and_not_closed_yet_is_no_tampering(tmp_path: Path) -> None:
    """The daemon may be between its two writes, or wait for space."""
    write(tmp_path, 3)
    with (tmp_path / "audit.jsonl").open("ab") as f:
        f.write(b'{"seq":4,"t\n')
    verdict = verify_audit(tmp_path)
    assert (verdict.flaws, verdict.open_end) == ((), True)


@pytest.mark.parametrize("how", ["removed", "moved", "replaced", "all"])
def test_a_file_that_vanishes_under_the_daemon_is_noticed(tmp_path: Path, how: str) -> None:
    log = AuditLog(tmp_path, max_file_bytes=500)
    for i in range(9):
        log.append([(1.0, "before", {"n": i})])
    path = tmp_path / "audit.jsonl"
    if how == "moved":
        path.rename(tmp_path / "elsewhere")
    elif how == "replaced":
        path.unlink()
        path.write_bytes(b"")
    else:
        for file in audit_files(tmp_path) if how == "all" else [path]:
            file.unlink()
    log.append([(2.0, "after", {})])
    log.close()
    assert [r["event"] for r in read_audit(tmp_path)][-1] == "after", "it went where nobody can read it"
    assert verify_audit(tmp_path).flaws


def test_after_tampering_no_full_file_is_replaced_by_another(tmp_path: Path) -> None:
    write(tmp_path, 12, max_file_bytes=300)
    for file in audit_files(tmp_path)[1:]:
        file.unlink()
    whole = audit_files(tmp_path)[0].read_bytes()
    (tmp_path / "audit.jsonl").write_bytes(
        b'{"seq":1,"t":1,"prev":"x","event":"forged","long":"%s"}\n' % (b"x" * 300)
    )
    write(tmp_path, 6, max_file_bytes=300)
    assert audit_files(tmp_path)[0].read_bytes() == whole
    assert verify_audit(tmp_path).flaws


def test_a_reader_beside_the_writer_sees_a_chain_that_holds(tmp_path: Path) -> None:
    """Files change all the time under it: at worst it says that they do."""
    log, done = AuditLog(tmp_path, max_file_bytes=2000, max_files=3), threading.Event()

    def go_on() -> None:
        for i in range(1500):
            log.append([(1.0, "model_received", {"n": i, "peer": "south"})])
        done.set()

    writing = threading.Thread(target=go_on)
    writing.start()
    read = 0
    try:
        while not done.is_set():
            try:
                verdict = verify_audit(tmp_path)
            except LocalError as e:
                assert "change faster" in str(e)
                continue
            assert verdict.flaws == ()
            numbers = [r["seq"] for r in read_audit(tmp_path)]
            assert numbers == list(range(numbers[0], numbers[0] + len(numbers))) if numbers else True
            read += 1
    finally:
        writing.join()
        log.close()
    assert read and verify_audit(tmp_path).last_seq > 1500
