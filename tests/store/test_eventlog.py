"""The event log: numbered, bounded, whole after a crash, cheap to read from its end."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from gossipseg.errors import LocalError
from gossipseg.store import EventLog, read_events
from tests.store.faults import each_fault


def seqs(records: list[dict]) -> list[int]:
    return [r["seq"] for r in records]


def test_append_and_tail(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    record = log.append("round_finished", t=12.5, round=1, terms={"dice": 0.5, "path": Path("x")})
    assert record == {
        "seq": 1, "t": 12.5, "event": "round_finished", "round": 1, "terms": {"dice": 0.5, "path": "x"}
    }  # fmt: skip
    log.append("paused", t=13.0)
    assert log.tail(10) == [record, {"seq": 2, "t": 13.0, "event": "paused"}]
    assert seqs(log.tail(1)) == [2] and seqs(log.tail(10, since_seq=1)) == [2] and log.tail(0) == []
    assert log.tail(10, since_seq=2) == [] and log.last_seq == 2


def test_numbers_json_has_not_become_null(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    log.append("x", t=0.0, loss=math.nan, terms=[math.inf, {"a": -math.inf}, (1, 2)])
    (line,) = (tmp_path / "events.jsonl").read_text().splitlines()
    assert json.loads(line, parse_constant=lambda c: pytest.fail(c))["terms"] == [None, {"a": None}, [1, 2]]


def test_numbers_go_on_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    for n in range(1, 5):
        log = EventLog(path)
        assert log.append("daemon_started", t=float(n))["seq"] == n
        log.close()


@pytest.mark.parametrize(
    "torn", [b'{"seq":4,"t":1', b"{", b"\0" * 70_000, b'{"seq":4,"t":1.0,"event":"whole, but no newline"}']
)
def test_a_line_torn_by_a_crash_is_cut_off(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "events.jsonl"
    log = EventLog(path)
    for n in range(3):
        log.append("x", t=float(n))
    log.close()
    with path.open("ab") as f:
        f.write(torn)
    assert seqs(read_events(path, 9)) == [1, 2, 3]  # a reader in another process
    log = EventLog(path)
    log.append("y", t=4.0)
    assert [(r["seq"], r["event"]) for r in log.tail(9)] == [(1, "x"), (2, "x"), (3, "x"), (4, "y")]
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_damage_in_the_middle_costs_only_the_lines_it_hit(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"seq":1,"event":"a"}\nrubbish\n{"seq":"2"}\n[3]\n\n{"seq":4,"event":"b"}\n')
    assert seqs(read_events(path, 9)) == [1, 4]
    assert EventLog(path).append("c", t=0.0)["seq"] == 5


def test_stays_within_its_bound_and_keeps_the_newest(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    log = EventLog(path, max_bytes=4000)
    for n in range(1, 501):
        log.append("x", t=0.0, text="y" * (n % 40))
        assert sum(p.stat().st_size for p in tmp_path.iterdir()) <= 4000
    kept = seqs(log.tail(1000))
    assert kept == list(range(kept[0], 501)) and len(kept) > 20
    assert sorted(p.name for p in tmp_path.iterdir()) == ["events.1.jsonl", "events.jsonl"]
    assert seqs(log.tail(5)) == [496, 497, 498, 499, 500]
    assert seqs(log.tail(1000, since_seq=490)) == list(range(491, 501))
    log.close()
    assert EventLog(path, max_bytes=4000).append("z", t=0.0)["seq"] == 501


def test_numbers_go_on_when_only_the_older_file_is_left(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    log = EventLog(path)
    log.append("x", t=0.0)
    log.close()
    path.rename(tmp_path / "events.1.jsonl")  # killed between the two steps of a rotation
    log = EventLog(path)
    assert log.append("y", t=0.0)["seq"] == 2 and seqs(log.tail(9)) == [1, 2]


@pytest.mark.parametrize("max_bytes", [8 << 20, 200], ids=["plain", "rotating"])
def test_a_failed_append_costs_that_event_alone(tmp_path: Path, monkeypatch, max_bytes: int) -> None:
    log = EventLog(tmp_path / "events.jsonl", max_bytes)
    log.append("before", t=0.0, text="x" * 20)
    failed = set()
    for operation, raised in each_fault(monkeypatch, lambda: log.append("tried", t=1.0, text="y" * 30)):
        if raised is not None:  # an operation whose failure does no harm to the event
            assert isinstance(raised, LocalError), operation
        after = log.append("after", t=2.0, text="x" * 20)
        assert after == log.tail(1)[0], operation
        assert [r["seq"] for r in log.tail(2)] == [after["seq"] - 1, after["seq"]]
        failed.add(operation)
    assert "write" in failed and (max_bytes > 200 or {"replace", "open"} <= failed)
    everything = log.tail(100)
    assert seqs(everything) == sorted(set(seqs(everything)))


def test_many_threads_one_numbering(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl", max_bytes=1 << 20)
    threads = [
        threading.Thread(target=lambda: [log.append("x", t=0.0) for _ in range(100)]) for _ in range(5)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seqs(log.tail(1000)) == list(range(1, 501))


WRITER = """
import sys
from pathlib import Path
from gossipseg.store import EventLog
log = EventLog(Path(sys.argv[1]), max_bytes=20_000)
while True:
    print(log.append("x", t=0.0, text="y" * 200)["seq"], flush=True)
"""


def test_kill_loses_no_event_that_was_acknowledged(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    last = 0
    for count in (3, 60, 130):
        with subprocess.Popen([sys.executable, "-c", WRITER, path], stdout=subprocess.PIPE) as child:
            acknowledged = [int(child.stdout.readline()) for _ in range(count)]
            child.kill()
        assert acknowledged[0] > last
        last = read_events(path, 1)[0]["seq"]
        assert last >= acknowledged[-1]


def test_reading_the_end_does_not_read_the_whole(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "events.jsonl"
    line = json.dumps({"t": 0.0, "event": "x" * 100})[1:]
    path.write_text("".join(f'{{"seq":{n},{line}\n' for n in range(1, 30_001)))
    parsed = []
    real = json.loads
    monkeypatch.setattr("gossipseg.store.eventlog.json.loads", lambda s: parsed.append(1) or real(s))
    assert seqs(read_events(path, 3)) == [29_998, 29_999, 30_000]
    assert seqs(read_events(path, 100, since_seq=29_998)) == [29_999, 30_000]
    assert len(parsed) < 20
