"""The power fails between any two file operations: the old or the new is there, whole, and never less."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from blake3 import blake3

from gossipseg.learn.engine.checkpoint import intact, save_checkpoint
from gossipseg.store import Checkpoints, EventLog, ModelStore, StateFile, hash_file, read_events
from gossipseg.store.auditlog import AuditLog, audit_files
from gossipseg.store.auditverify import read_audit, verify_audit
from tests.faults.powercut import Cut, power_cuts

Seen = Callable[[str], None]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "disk").mkdir()
    return tmp_path / "disk"


class Bench:
    """Lays out every cut and asks a question of it."""

    def __init__(self, tmp_path: Path, during: list[Cut], after: list[Cut], directories: list[str]) -> None:
        self._tmp, self._directories = tmp_path, directories
        self.during, self.after = during, after
        self.count = len(during) + len(after)

    def each(self, cuts: list[Cut]):
        for cut in cuts:
            folder = self._tmp / f"cut-{len(list(self._tmp.glob('cut-*')))}"
            folder.mkdir()
            yield cut, cut.lay_out(folder, self._directories)


def test_the_state_is_old_or_new(root: Path, tmp_path: Path, monkeypatch, seen: Seen) -> None:
    old, new = {"round": 1, "inbox": ["x" * 500]}, {"round": 2, "inbox": ["y" * 900]}
    state = StateFile(root / "node.json")
    state.save(old)
    bench = Bench(tmp_path, *power_cuts(monkeypatch, root, lambda: state.save(new)))
    found = []
    for cut, folder in bench.each(bench.during):
        found.append(StateFile(folder / "node.json").load())
        assert found[-1] in (old, new), cut
    assert old in found and new in found
    for cut, folder in bench.each(bench.after):
        assert StateFile(folder / "node.json").load() == new, cut
    seen(f"{bench.count} disks, each with the old or the new state")


def test_a_checkpoint_is_there_and_whole(root: Path, tmp_path: Path, monkeypatch, seen: Seen) -> None:
    store = Checkpoints(root / "checkpoint")

    def save(number: int) -> None:
        state = {"history": {"round": number, "steps": number}, "student": {"w": torch.full((500,), number)}}
        save_checkpoint(store, state, {})

    save(1), save(2)
    bench = Bench(tmp_path, *power_cuts(monkeypatch, root, lambda: save(3)))

    def newest(folder: Path, cut: Cut) -> int:
        path = Checkpoints(folder / "checkpoint").newest()[0]
        document = torch.load(path, weights_only=True)
        assert intact(document) and document["round"] == Checkpoints.round_of(path), cut
        return int(document["round"])

    assert {newest(folder, cut) for cut, folder in bench.each(bench.during)} == {2, 3}
    assert {newest(folder, cut) for cut, folder in bench.each(bench.after)} == {3}
    seen(f"{bench.count} disks, the newest checkpoint whole on each")


@pytest.mark.parametrize("way", ["adopted", "received"])
def test_a_model_in_the_store_is_whole(root: Path, tmp_path: Path, monkeypatch, seen: Seen, way: str) -> None:
    content = blake3(b"model").digest(length=300_000)
    hash = blake3(content).hexdigest()
    store = ModelStore(root / "models")
    outbox = root / "export.safetensors"

    def receive() -> None:
        with store.partial(hash, "south", size_bytes=len(content)) as partial:
            for begin in range(0, len(content), 100_000):
                partial.write(content[begin : begin + 100_000])
            partial.finish(hash, len(content))

    if way == "adopted":
        outbox.write_bytes(content)
        cuts = power_cuts(monkeypatch, root, lambda: store.adopt(outbox), (outbox.name,))
    else:
        cuts = power_cuts(monkeypatch, root, receive)
    bench = Bench(tmp_path, *cuts)
    whole = 0
    for cut, folder in bench.each(bench.during):
        after = ModelStore(folder / "models")
        for model in after.list():
            assert hash_file(after.path(model.hash))[0] == model.hash, cut
            whole += 1
    assert whole
    for cut, folder in bench.each(bench.after):
        assert ModelStore(folder / "models").has(hash), cut
    seen(f"{bench.count} disks, {whole} with the model, whole each time")


def test_a_part_that_lost_its_end_is_never_taken_for_the_model(
    root: Path, tmp_path: Path, monkeypatch
) -> None:
    """What was received and not synced may be gone: the resume finds out by the hash."""
    content = blake3(b"model").digest(length=200_000)
    hash = blake3(content).hexdigest()
    store = ModelStore(root / "models")

    def receive_half() -> None:
        with store.partial(hash, "south", size_bytes=len(content)) as partial:
            partial.write(content[:100_000])

    bench = Bench(tmp_path, *power_cuts(monkeypatch, root, receive_half))
    for cut, folder in bench.each(bench.during + bench.after):
        after = ModelStore(folder / "models")
        with after.partial(hash, "south", size_bytes=len(content)) as partial:
            partial.write(content[partial.offset :])
            partial.finish(hash, len(content))
        assert hash_file(after.path(hash))[0] == hash, cut


def test_the_event_log_has_whole_lines_in_order(root: Path, tmp_path: Path, monkeypatch, seen: Seen) -> None:
    log = EventLog(root / "events.jsonl", max_bytes=1200)
    for number in range(4):
        log.append("before", t=float(number))

    def write() -> None:
        for number in range(12):  # past a change of files
            log.append("during", t=float(number), text="x" * 60)

    bench = Bench(tmp_path, *power_cuts(monkeypatch, root, write))
    for cut, folder in bench.each(bench.during + bench.after):
        again = EventLog(folder / "events.jsonl", max_bytes=1200)
        last = again.last_seq
        again.append("after the cut", t=99.0)
        numbers = [e["seq"] for e in read_events(folder / "events.jsonl", 1000)]
        assert numbers == list(range(numbers[0], last + 2)), cut
        again.close()
    log.close()
    seen(f"{bench.count} disks, whole lines in order on each")


def test_the_audit_log_has_a_chain_that_holds(root: Path, tmp_path: Path, monkeypatch, seen: Seen) -> None:
    options = {"max_file_bytes": 900, "max_files": 2}
    log = AuditLog(root, **options)
    for number in range(9):
        log.append([(float(number), "before", {})])
    noted = log.head

    def write() -> None:
        for number in range(12):  # past two changes of files and the removal of the oldest
            log.append([(float(number), "during", {"n": number}), (float(number), "during", {"n": -number})])

    bench = Bench(tmp_path, *power_cuts(monkeypatch, root, write))
    torn = 0
    for cut, folder in bench.each(bench.during + bench.after):
        again = AuditLog(folder, **options)
        again.append([(99.0, "after the cut", {})])
        again.close()
        verdict = verify_audit(folder)
        assert verdict.flaws == (), (cut, verdict.flaws)
        assert verdict.last_seq > noted[0], cut
        assert [r["event"] for r in read_audit(folder)][-1] == "after the cut", cut
        torn += verdict.torn
    ended = [r for cut, folder in bench.each(bench.after) for r in read_audit(folder) if r.get("n") == 11]
    assert len(ended) == len(bench.after), "what append() took is there"
    assert torn and len(audit_files(root)) == 2
    log.close()
    seen(f"{bench.count} disks, the chain holds on each; {torn} torn lines closed")
