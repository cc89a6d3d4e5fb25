"""Files are replaced whole: after any failure, and after kill -9, the old or the new is there."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gossipseg.errors import DiskFull, LocalError
from gossipseg.store import atomic_write, sweep_temporaries
from tests.store.faults import each_fault

OLD, NEW = b"old" * 1000, b"new!" * 700_000


def leftovers(directory: Path) -> list[str]:
    return [p.name for p in directory.iterdir() if p.name.endswith(".tmp")]


@pytest.mark.parametrize(
    "data", [NEW, lambda f: [f.write(NEW[i : i + 9999]) for i in range(0, len(NEW), 9999)]]
)
def test_replaces_the_content(tmp_path: Path, data) -> None:
    path = tmp_path / "file"
    atomic_write(path, OLD)
    atomic_write(path, data)
    assert path.read_bytes() == NEW
    assert path.stat().st_mode & 0o777 == 0o600
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("data", [NEW, lambda f: f.write(NEW)], ids=["bytes", "function"])
def test_every_failing_operation_leaves_old_or_new(tmp_path, monkeypatch, error, data) -> None:
    path = tmp_path / "file"
    failed = set()
    atomic_write(path, OLD)
    for operation, raised in each_fault(monkeypatch, lambda: atomic_write(path, data), error):
        assert path.read_bytes() in (OLD, NEW), operation
        assert leftovers(tmp_path) == []
        assert isinstance(raised, LocalError), operation
        if error != errno.EIO and operation in ("FileIO.write", "open"):
            assert isinstance(raised, DiskFull) or "durable" in str(raised)
        atomic_write(path, OLD)
        failed.add(operation)
    assert {"open", "flock", "FileIO.write", "fsync", "replace"} <= failed
    assert path.read_bytes() == NEW


def test_a_full_disk_says_where_and_how_much(tmp_path, monkeypatch) -> None:
    path = tmp_path / "round-7.pt"
    errors = [e for _, e in each_fault(monkeypatch, lambda: atomic_write(path, NEW), errno.ENOSPC)]
    full = [e for e in errors if isinstance(e, DiskFull)]
    assert full and all(str(path) in str(e) and str(len(NEW)) in str(e) for e in full)
    assert all("bytes free" in str(e) for e in full)


@pytest.mark.parametrize(
    ("number", "kind", "words"),
    [
        (errno.ENOSPC, DiskFull, "the disk is full"),
        (errno.EFBIG, LocalError, "cannot be written: File too large"),
        (errno.EIO, LocalError, "cannot be written: Input/output error"),
    ],
)
def test_a_writer_that_hides_the_reason_does_not_lose_it(
    tmp_path, monkeypatch, number: int, kind: type[LocalError], words: str
) -> None:
    # torch.save turns what its file raises into a RuntimeError.
    def writer(f) -> None:
        try:
            f.write(NEW)
        except OSError:
            raise RuntimeError("unexpected pos") from None

    path = tmp_path / "file"
    by_operation = dict(each_fault(monkeypatch, lambda: atomic_write(path, writer), number))
    assert type(by_operation["FileIO.write"]) is kind and words in str(by_operation["FileIO.write"])


def test_what_the_writer_raises_passes_through(tmp_path: Path) -> None:
    def writer(f) -> None:
        f.write(b"half")
        raise KeyError("mine")

    path = tmp_path / "file"
    atomic_write(path, OLD)
    with pytest.raises(KeyError, match="mine"):
        atomic_write(path, writer)
    assert path.read_bytes() == OLD and leftovers(tmp_path) == []


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(LocalError, match=r"nowhere/file: cannot be written: No such file"):
        atomic_write(tmp_path / "nowhere" / "file", b"x")


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o600, 0o664])
@pytest.mark.parametrize("umask", [0o077, 0o022, 0o000])
def test_a_replaced_file_keeps_its_mode_and_a_new_one_obeys_the_umask(
    tmp_path: Path, mode: int, umask: int
) -> None:
    path, before = tmp_path / "file", os.umask(umask)
    try:
        path.write_bytes(OLD)
        path.chmod(mode)
        for asked in ({}, {"mode": 0o666}):
            atomic_write(path, NEW, **asked)
            assert path.stat().st_mode & 0o777 == mode
        atomic_write(tmp_path / "new", NEW, mode=0o644)
        assert (tmp_path / "new").stat().st_mode & 0o777 == 0o644 & ~umask
    finally:
        os.umask(before)


def test_a_writer_may_set_the_mode_itself(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(OLD)
    path.chmod(0o644)
    atomic_write(path, lambda f: os.fchmod(f.fileno(), 0o400))
    assert path.stat().st_mode & 0o777 == 0o400


@pytest.mark.skipif(os.geteuid() != 0, reason="giving files away needs root")
def test_root_leaves_a_file_to_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(OLD)
    os.chown(path, 65534, 65533)
    path.chmod(0o640)
    atomic_write(path, NEW)
    found = path.stat()
    assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (65534, 65533, 0o640)


def test_where_the_owner_cannot_stay_it_is_said_and_the_mode_stays(tmp_path, monkeypatch, caplog) -> None:
    def refused(fd: int, uid: int, gid: int) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    path, real = tmp_path / "file", Path.stat

    def another_owner(self: Path, **_: bool) -> os.stat_result:
        found = real(self)
        return os.stat_result((*found[:4], found.st_uid + 1, *found[5:])) if self == path else found

    path.write_bytes(OLD)
    path.chmod(0o644)
    monkeypatch.setattr(os, "fchown", refused)
    monkeypatch.setattr(Path, "stat", another_owner)
    atomic_write(path, NEW)
    assert path.read_bytes() == NEW and real(path).st_mode & 0o777 == 0o644
    me, group = os.geteuid(), real(path).st_gid
    assert f"{path}: its owner becomes {me}:{group}, it was {me + 1}:{group}" in caplog.text


def test_extended_attributes_go_along_where_the_file_system_has_them(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(OLD)
    try:
        os.setxattr(path, "user.origin", b"radiology")
    except OSError:
        pytest.skip("no extended attributes here")
    atomic_write(path, NEW)
    assert os.getxattr(path, "user.origin") == b"radiology"


WRITER = """
import sys
from pathlib import Path
from gossipseg.store import atomic_write
path = Path(sys.argv[1])
n = 0
while True:
    n += 1
    atomic_write(path, str(n % 10).encode() * 300_000)
    print(n, flush=True)
"""


def test_kill_at_any_instant_leaves_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for writes in (1, 2, 3, 5, 8):
        with subprocess.Popen([sys.executable, "-c", WRITER, path], stdout=subprocess.PIPE) as child:
            for _ in range(writes):
                assert child.stdout.readline()
            child.kill()
        content = path.read_bytes()
        assert len(content) == 300_000 and len(set(content)) == 1
    sweep_temporaries(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_sweeping_spares_what_is_being_written(tmp_path: Path) -> None:
    (tmp_path / ".old.1-0.tmp").write_bytes(b"left by a killed process")
    (tmp_path / ".hidden").write_bytes(b"not ours")

    def writer(f) -> None:
        assert [p.name for p in sweep_temporaries(tmp_path)] == [".old.1-0.tmp"]
        f.write(b"alive")

    atomic_write(tmp_path / "file", writer)
    assert (tmp_path / "file").read_bytes() == b"alive"
    assert (tmp_path / ".hidden").exists()


TMPFS = """
import errno, os, pathlib, sys
from gossipseg.errors import DiskFull
from gossipseg.store import Checkpoints, EventLog, ModelStore, StateFile, atomic_write
root = pathlib.Path(sys.argv[1])
atomic_write(root / "file", b"old" * 1000)
state = StateFile(root / "node.json"); state.save({"round": 3})
log = EventLog(root / "events.jsonl"); log.append("before", t=1.0)
checkpoints = Checkpoints(root / "checkpoint"); checkpoints.save(1, lambda f: f.write(b"1" * 1000))
store = ModelStore(root / "models"); partial = store.partial("0" * 64, "north"); partial.write(b"x" * 1000)

def full(action):
    try:
        action()
    except DiskFull as e:
        assert "the disk is full" in str(e), e
        return
    raise AssertionError("it fitted")

full(lambda: atomic_write(root / "file", b"n" * (4 << 20)))
full(lambda: partial.write(b"y" * (4 << 20)))
assert partial.offset == 1000
partial.discard()
with open(root / "filler", "wb", buffering=0) as f:
    try:
        while True:
            f.write(b"f" * 4096)
    except OSError as e:
        assert e.errno == errno.ENOSPC
full(lambda: state.save({"round": 4, "much": "m" * 9000}))
full(lambda: checkpoints.save(2, lambda f: f.write(b"2" * 9000)))
full(lambda: log.append("large", t=2.0, text="l" * 9000))
assert (root / "file").read_bytes() == b"old" * 1000
assert state.load() == {"round": 3}
assert [p.name for p in checkpoints.newest()] == ["round-1.pt"]
assert [e["event"] for e in log.tail(9)] == ["before"]
os.unlink(root / "filler")
log.append("after", t=3.0); state.save({"round": 4}); checkpoints.save(2, lambda f: f.write(b"2" * 9000))
assert [(e["seq"], e["event"]) for e in log.tail(9)] == [(1, "before"), (2, "after")]
assert [p.name for p in root.rglob("*.tmp")] == []
print("ok")
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(TMPFS)
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = f"mount -t tmpfs -o size=2m none '{disk}' && exec '{sys.executable}' '{script}' '{disk}'"
    done = subprocess.run(["unshare", "-m", "sh", "-c", mounted], capture_output=True, text=True, timeout=60)
    if "unshare failed" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"no mount namespace here: {done.stderr.strip()}")
    assert done.stdout == "ok\n", done.stderr
