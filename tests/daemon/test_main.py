"""What a daemon remembers and what it leaves behind; older and later versions' state files are read, too."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import socket
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gossipseg.core import effects
from gossipseg.core.effects import Snapshot
from gossipseg.core.quarantine import PeerRecordSnapshot
from gossipseg.core.types import Manifest, ModelRef, Proposal
from gossipseg.daemon.main import Daemon, load_config, remembered
from gossipseg.store import EventLog, StateFile
from tests.e2e.federation import Federation

GOLDEN = Path(__file__).with_name("node.golden.json")
"""SNAPSHOT as version 0.3 has written it."""
MANIFEST = Manifest(
    schema="s",
    dtype="F16+F32",
    federation="f",
    contract="c",
    maker="b",
    kind="update",
    run="r",
    round=2,
    attempt=1,
    sequence=3,
    hash="0" * 64,
    size_bytes=10,
    steps=30,
    cases=4,
    dice_val=0.5,
    signature="ab",
    fault="unsigned",
)
MODEL = ModelRef("0" * 64, 10, 2, 30, 4, 0.5, "update", MANIFEST)
OLD_MODEL = ModelRef("1" * 64, 10, 2, 30, 4)
SNAPSHOT = effects.Snapshot(
    incarnation=4,
    round=7,
    steps=140,
    inbox=(effects.InboxEntry("b", MODEL, 2), effects.InboxEntry("c", OLD_MODEL, 3)),
    paused=True,
    counters=(("merged", "c", 1), ("sent", "b", 3)),
    rounds=effects.RoundsRecord(
        committed=Proposal(2, 0, MODEL, ("a", "b"), (("c", "dead"),)),
        promised_round=3,
        promised_attempt=1,
        promised_sites="3-ab",
        accepted=Proposal(3, 1, OLD_MODEL, ("a",)),
        update_round=3,
        update=MODEL,
        base_round=1,
        run="r",
    ),
    sequence=9,
    seen=(
        effects.SeenManifest("b", "model", 3, 2, "0" * 64, True),
        effects.SeenManifest("c", "global", 1, 1, "1" * 64),
    ),
    conduct=(PeerRecordSnapshot("b", "not_finite", 1, 5.0, (1.0, 2.5), 0.5),),
)


def read(folder: Path, text: str) -> effects.Snapshot:
    """What a daemon remembers that finds this state file."""
    (folder / "node.json").write_text(text)
    event_log = EventLog(folder / "events.jsonl")
    snapshot = remembered(StateFile(folder / "node.json"), event_log)
    assert event_log.tail(1) == [], "the file counts as damaged"
    event_log.close()
    return snapshot


def test_the_file_is_that_of_version_0_3(tmp_path: Path) -> None:
    doc = dataclasses.asdict(SNAPSHOT)
    assert doc.pop("swaps") is None and doc.pop("personal") is None  # of later versions
    StateFile(tmp_path / "node.json").save(doc)
    assert (tmp_path / "node.json").read_text() == GOLDEN.read_text().rstrip("\n")
    assert read(tmp_path, GOLDEN.read_text()) == SNAPSHOT


@settings(max_examples=50, suppress_health_check=list(HealthCheck))
@given(before=st.from_type(effects.Snapshot))
def test_through_the_file_and_back(tmp_path: Path, before: effects.Snapshot) -> None:
    """Whatever the core may say is read again: a file set aside would be a forgotten promise."""
    text = json.dumps(dataclasses.asdict(before))
    after = read(tmp_path, text)
    assert json.dumps(dataclasses.asdict(after)) == text
    assert after == before or "NaN" in text


@pytest.mark.parametrize("text", ["{}", '{"incarnation":4,"round":7,"steps":140,"inbox":[]}'])
def test_what_an_older_version_did_not_write_has_its_default(tmp_path: Path, text: str) -> None:
    assert read(tmp_path, text) == effects.Snapshot(**{**json.loads(text), "inbox": ()})


def test_a_model_of_an_older_version_has_no_manifest(tmp_path: Path) -> None:
    model = {"hash": "1" * 64, "size_bytes": 10, "round": 2, "steps": 30, "cases": 4, "dice_val": None}
    doc = {"inbox": [{"frm": "c", "model": model, "arrived_round": 3}], "rounds": {"promised_round": 3}}
    assert read(tmp_path, json.dumps(doc)) == effects.Snapshot(
        inbox=(effects.InboxEntry("c", OLD_MODEL, 3),), rounds=effects.RoundsRecord(promised_round=3)
    )


def test_what_a_later_version_wrote_besides_is_left_out_at_every_depth(tmp_path: Path) -> None:
    doc = json.loads(GOLDEN.read_text())

    def add(value: Any) -> None:
        if isinstance(value, dict):
            for inner in list(value.values()):
                add(inner)
            value["of_a_later_version"] = 1
        elif isinstance(value, list):
            for inner in value:
                add(inner)

    add(doc)
    assert read(tmp_path, json.dumps(doc)) == SNAPSHOT


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[1]",
        '{"inbox": [{}]}',
        '{"inbox": [{"frm": "b", "model": {"strange": 1}, "arrived_round": 1}]}',
        '{"counters": 7}',
        '{"round": "7"}',
        r'{"\udcff": 1}',
        '{"incarnation": 1.5}',
        '{"rounds": {"promised_attempt": null}}',
        '{"seen": [{"maker": "b", "kind": "gossip", "sequence": 1, "round": 1, "hash": ""}]}',
    ],
)
def test_a_damaged_state_file_is_set_aside_and_told(tmp_path: Path, text: str) -> None:
    (tmp_path / "node.json").write_text(text)
    event_log = EventLog(tmp_path / "events.jsonl")
    assert remembered(StateFile(tmp_path / "node.json"), event_log) == Snapshot()
    assert (tmp_path / "node.json.corrupt").read_text() == text
    assert event_log.tail(1)[0]["event"] == "state_damaged"


def test_a_whole_state_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "node.json").write_text(json.dumps({"incarnation": 4, "counters": [["sent", "b", 2]]}))
    event_log = EventLog(tmp_path / "events.jsonl")
    snapshot = remembered(StateFile(tmp_path / "node.json"), event_log)
    assert snapshot == Snapshot(incarnation=4, counters=(("sent", "b", 2),))
    assert event_log.tail(1) == []


def noted(daemon: Daemon, event: str) -> bool:
    return any(line["event"] == event for line in daemon.runtime.events.tail(50))


async def test_nothing_is_left_of_a_daemon_that_ended(files: Federation, tmp_path: Path) -> None:
    """No task, no open file of its state, no port; a scraper that says nothing does not hold it up."""
    folder = files["north"].folder
    (folder / "state").mkdir(exist_ok=True)
    args = argparse.Namespace(
        config=str(files["north"].config),
        set=["metrics.port=0"],
        listen=None,
        state_dir=None,
        rounds=None,
        device=None,
    )
    daemon, before = Daemon(load_config(args), args), asyncio.all_tasks()
    running = asyncio.create_task(daemon.run())
    async with asyncio.timeout(30):
        while daemon.exporter is None or not noted(daemon, "metrics_served"):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        port = daemon.exporter.port
        silent = socket.create_connection(("127.0.0.1", port))
        daemon.end("test")
        await running
    silent.close()
    assert asyncio.all_tasks() == before
    links = [p.readlink() for p in Path("/proc/self/fd").iterdir() if p.is_symlink()]
    assert not [link for link in links if link.is_relative_to(tmp_path)]
    for listening in (port, int(daemon.transport.address.rpartition(":")[2])):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", listening)).close()
