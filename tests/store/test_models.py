"""The model store: by content, resumed after a break, nothing half in it, nothing kept without need."""

from __future__ import annotations

import errno
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from gossipseg.errors import DiskFull, LocalError
from gossipseg.store import (
    HashMismatch,
    IncompleteModel,
    ModelStore,
    OversizeModel,
    PartialBusy,
    hash_file,
)
from tests.store.faults import each_fault

CONTENT = random.Random(0).randbytes(3_000_000)
HASH = blake3(CONTENT).hexdigest()
OTHER = blake3(b"other").hexdigest()


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "models")


def put(store: ModelStore, content: bytes, mtime: float | None = None) -> str:
    file = store.root.parent / "export"
    file.write_bytes(content)
    hash, _ = store.adopt(file)
    if mtime is not None:
        os.utime(store.path(hash), (mtime, mtime))
    return hash


def test_adopt_moves_the_file_in_under_its_hash(store: ModelStore, tmp_path: Path) -> None:
    file = tmp_path / "export"
    file.write_bytes(CONTENT)
    assert hash_file(file) == (HASH, len(CONTENT))
    assert store.adopt(file) == (HASH, len(CONTENT))
    assert not file.exists() and store.has(HASH) and store.path(HASH).read_bytes() == CONTENT
    assert [(m.hash, m.size_bytes) for m in store.list()] == [(HASH, len(CONTENT))]
    store.path(HASH).write_bytes(b"rotten on the disk")
    assert put(store, CONTENT) == HASH
    assert store.path(HASH).read_bytes() == CONTENT
    assert store.remove(HASH) and not store.remove(HASH) and store.list() == []


def test_every_failure_of_adopt_leaves_the_model_somewhere_whole(store, tmp_path, monkeypatch) -> None:
    file = tmp_path / "export"
    file.write_bytes(CONTENT)
    failed = set()
    for operation, raised in each_fault(monkeypatch, lambda: store.adopt(file)):
        assert isinstance(raised, LocalError), operation
        places = [p for p in (file, store.path(HASH)) if p.exists()]
        assert [p.read_bytes() == CONTENT for p in places] == [True], operation
        places[0].replace(file)
        failed.add(operation)
    assert {"fsync", "replace"} <= failed and store.has(HASH)


def test_adopt_from_another_file_system(store: ModelStore) -> None:
    shm = Path("/dev/shm")
    if not shm.is_dir() or shm.stat().st_dev == store.root.stat().st_dev:
        pytest.skip("no second file system here")
    file = shm / f"gossipseg-test-{os.getpid()}"
    try:
        file.write_bytes(CONTENT)
        assert store.adopt(file)[0] == HASH
        assert not file.exists() and store.path(HASH).read_bytes() == CONTENT
    finally:
        file.unlink(missing_ok=True)


def test_a_model_arrives_in_chunks(store: ModelStore) -> None:
    with store.partial(HASH, "north", size_bytes=len(CONTENT)) as partial:
        for at in range(0, len(CONTENT), 1 << 20):
            assert partial.offset == at and not store.has(HASH)
            partial.write(CONTENT[at : at + (1 << 20)])
        assert partial.finish(HASH, len(CONTENT)) == store.path(HASH)
    assert store.path(HASH).read_bytes() == CONTENT
    assert list((store.root / "partial").iterdir()) == []


@settings(max_examples=40, deadline=None)
@given(
    cuts=st.lists(st.integers(0, 5000), max_size=8),
    breaks=st.sets(st.integers(0, 8)),
    flip=st.none() | st.integers(0, 4999),
)
def test_any_chunks_and_breaks_give_the_model_or_a_mismatch(tmp_path_factory, cuts, breaks, flip) -> None:
    store = ModelStore(tmp_path_factory.mktemp("models"))
    content = bytearray(CONTENT[:5000])
    hash = blake3(content).hexdigest()
    if flip is not None:
        content[flip] ^= 1
    partial = store.partial(hash, "north", size_bytes=5000)
    for i, (begin, end) in enumerate(zip(edges := [0, *sorted(cuts), 5000], edges[1:], strict=False)):
        if i in breaks:
            partial.close()
            partial = store.partial(hash, "north", size_bytes=5000)
        assert partial.offset == begin
        partial.write(bytes(content[begin:end]))
    if flip is None:
        assert partial.finish(hash, 5000).read_bytes() == content
    else:
        with pytest.raises(HashMismatch, match="promised"):
            partial.finish(hash, 5000)
        assert not store.has(hash)
    assert list((store.root / "partial").iterdir()) == []


def test_damage_of_the_part_on_disk_is_found_on_resume(store: ModelStore) -> None:
    partial = store.partial(HASH, "north")
    partial.write(CONTENT[:2_000_000])
    partial.close()
    with partial.path.open("r+b") as f:
        f.seek(1_500_000)
        f.write(b"????")
    partial = store.partial(HASH, "north")
    partial.write(CONTENT[2_000_000:])
    with pytest.raises(HashMismatch) as e:
        partial.finish(HASH, len(CONTENT))
    assert e.value.reason == "hash_mismatch" and not partial.path.exists()


def test_too_short_is_kept_and_too_long_is_not(store: ModelStore) -> None:
    partial = store.partial(HASH, "north", size_bytes=len(CONTENT))
    partial.write(CONTENT[:1000])
    with pytest.raises(IncompleteModel, match="1000 of 3000000") as short:
        partial.finish(HASH, len(CONTENT))
    assert short.value.reason == "incomplete"
    partial = store.partial(HASH, "north", size_bytes=len(CONTENT))
    assert partial.offset == 1000
    with pytest.raises(OversizeModel, match="declared") as long:
        partial.write(CONTENT)
    assert long.value.reason == "too_large" and not partial.path.exists()
    partial = store.partial(HASH, "north")
    partial.write(CONTENT)
    with pytest.raises(OversizeModel):
        partial.finish(HASH, 1000)
    assert not partial.path.exists() and not store.has(HASH)


def test_a_smaller_declaration_starts_afresh(store: ModelStore) -> None:
    with store.partial(HASH, "north") as partial:
        partial.write(CONTENT[:1000])
    with store.partial(HASH, "north", size_bytes=999) as partial:
        assert partial.offset == 0 and partial.path.stat().st_size == 0


def test_every_failing_operation_of_an_arrival(store: ModelStore, monkeypatch) -> None:
    def arrive() -> None:
        with store.partial(HASH, "north", size_bytes=len(CONTENT)) as partial:
            while partial.offset < len(CONTENT):
                partial.write(CONTENT[partial.offset : partial.offset + (1 << 20)])
            partial.finish(HASH, len(CONTENT))

    failed = set()
    for operation, raised in each_fault(monkeypatch, arrive):
        assert isinstance(raised, LocalError), operation
        if store.has(HASH):  # only once all of it was there
            assert store.path(HASH).read_bytes() == CONTENT, operation
            store.remove(HASH)
        failed.add(operation)
    assert {"open", "flock", "pread", "pwrite", "ftruncate", "fsync", "replace"} <= failed
    assert store.path(HASH).read_bytes() == CONTENT


def test_after_a_full_disk_the_same_stream_goes_on(store: ModelStore, monkeypatch) -> None:
    partial = store.partial(HASH, "north", size_bytes=len(CONTENT))
    partial.write(CONTENT[:1000])
    for operation, raised in each_fault(monkeypatch, lambda: partial.write(CONTENT[1000:]), errno.ENOSPC):
        assert operation == "pwrite" and isinstance(raised, DiskFull)
        assert str(len(CONTENT) - 1000) in str(raised) and partial.offset == 1000
    assert partial.finish(HASH, len(CONTENT)).read_bytes() == CONTENT


RECEIVER = """
import sys
from pathlib import Path
from gossipseg.store import ModelStore
partial = ModelStore(Path(sys.argv[1])).partial(sys.argv[2], "north")
while chunk := sys.stdin.buffer.read(1000):
    partial.write(chunk)
    print(partial.offset, flush=True)
"""


def receiver(store: ModelStore, begin: int, count: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", RECEIVER, store.root, HASH]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    child.stdin.write(CONTENT[begin : begin + count * 1000])
    child.stdin.flush()
    for n in range(1, count + 1):
        assert int(child.stdout.readline()) == begin + n * 1000
    return child


def test_two_processes_cannot_write_one_model_and_kill_leaves_it_resumable(store: ModelStore) -> None:
    child = receiver(store, 0, 7)
    try:
        with pytest.raises(PartialBusy, match="another stream"):
            store.partial(HASH, "north")
        store.collect(set(), now_s=1e12)
        assert store.partial(HASH, "south").offset == 0  # another peer's stream of the same model is its own
    finally:
        child.kill()
        child.communicate()
    with store.partial(HASH, "north") as partial:
        assert partial.offset == 7000
        partial.write(CONTENT[7000:])
        assert partial.finish(HASH, len(CONTENT)).read_bytes() == CONTENT


def test_collect_keeps_what_is_referenced_or_young(store: ModelStore) -> None:
    kept, old, young = put(store, b"kept", 1000.0), put(store, b"old", 1000.0), put(store, b"young", 1990.0)
    with store.partial(HASH, "north") as stale, store.partial(OTHER, "north") as fresh:
        stale.write(b"s")
        fresh.write(b"f")
        os.utime(stale.path, (1000.0, 1000.0))
        os.utime(fresh.path, (1990.0, 1990.0))
    (store.root / ".x.1-0.tmp").write_bytes(b"left by a killed process")
    (store.root / "README").write_bytes(b"not ours")
    assert store.collect({kept}, now_s=2000.0, older_than_s=100.0, partials_older_than_s=500.0) == [old]
    assert {m.hash for m in store.list()} == {kept, young}
    assert not stale.path.exists() and fresh.path.exists()
    assert sorted(p.name for p in store.root.iterdir() if p.suffix != ".safetensors") == ["README", "partial"]
    assert store.collect([kept], now_s=2000.0) == [young]
    assert store.collect({kept}, now_s=500.0) == []  # a clock set back removes nothing


def test_list_is_newest_first(store: ModelStore) -> None:
    hashes = [put(store, bytes([n]), 1000.0 + n) for n in range(4)]
    assert [m.hash for m in store.list()] == hashes[::-1]


@pytest.mark.parametrize(
    "bad", ["", "../" + "0" * 61, HASH.upper(), HASH + "0", HASH[:-1], "/etc/passwd", HASH + "\n"]
)
def test_a_hash_from_the_network_is_no_path(store: ModelStore, bad: str) -> None:
    for use in (store.path, store.has, store.remove, lambda h: store.partial(h, "north")):
        with pytest.raises(ValueError, match="not a valid hash"):
            use(bad)


@pytest.mark.parametrize("bad", ["", "..", "../x", "a/b", "Nörd", "x" * 64, "a.b"])
def test_a_peer_name_is_no_path(store: ModelStore, bad: str) -> None:
    with pytest.raises(ValueError, match="not a valid peer"):
        store.partial(HASH, bad)


def test_free_bytes_and_a_root_that_cannot_be_made(store: ModelStore, tmp_path: Path) -> None:
    assert store.free_bytes() > 0
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(LocalError, match="cannot be made"):
        ModelStore(tmp_path / "file" / "models")
