"""SIGHUP and `gossipctl reload`, and what a daemon remembers: only the list of sites may change under it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gossipseg import trust
from gossipseg.core import events
from gossipseg.core.effects import Snapshot
from gossipseg.daemon.main import remembered
from gossipseg.errors import ConfigError
from gossipseg.store import EventLog, StateFile
from tests.daemon.harness import daemon_of, files_only
from tests.e2e.federation import Federation


@pytest.fixture
def files(tmp_path: Path) -> Iterator[Federation]:
    with files_only(tmp_path, "north", "south", "west") as f:
        yield f


def without(name: str) -> Any:
    return lambda doc: doc.update(sites=[s for s in doc["sites"] if s["name"] != name])


async def test_a_removed_site_is_gone_everywhere(files: Federation) -> None:
    daemon = daemon_of(files)
    files.edit(without("west"))
    daemon.runtime.node.step(events.Start(), 0.0)
    daemon.reload()
    assert set(daemon.runtime.node.members) == {"south"}
    assert daemon.runtime.intake.verifier.sites == {"north", "south"}
    assert set(daemon.transport._links) == {"south"}
    await daemon.transport.close()


async def test_site_yaml_counts_from_the_next_start(files: Federation, tmp_path: Path) -> None:
    daemon = daemon_of(files)
    before = daemon.config.site
    files["north"].edit(state_dir=str(tmp_path / "elsewhere"), rounds=3, insecure=True)
    daemon.reload()
    assert daemon.config.site == daemon.runtime.config.site == before
    assert not daemon.runtime.intake.verifier.verify("south", b"said", b"unsigned")
    await daemon.transport.close()


async def test_what_cannot_change_under_a_running_daemon_is_refused(files: Federation) -> None:
    daemon = daemon_of(files)
    before = daemon.trust
    new = trust.create_identity("north", files.root / "new")
    for file in (trust.KEY_FILE, trust.CERTIFICATE_FILE):
        (files.root / "new" / file).replace(files["north"].folder / "identity" / file)

    def rotated(doc: dict[str, Any]) -> None:
        me = next(s for s in doc["sites"] if s["name"] == "north")
        me["certificate"] = new.certificate_pem.decode()

    files.edit(rotated)
    with pytest.raises(ConfigError, match="own certificate changed"):
        daemon.reload()
    files.edit(lambda doc: doc["network"].update(width=8))
    with pytest.raises(ConfigError, match="contract"):
        daemon.reload()
    assert daemon.trust is daemon.runtime.intake.verifier is before
    assert [e["event"] for e in daemon.runtime.events.tail(2)] == ["config_refused"] * 2
    await daemon.transport.close()


async def test_a_hangup_before_the_start_waits_for_it(files: Federation) -> None:
    daemon = daemon_of(files)
    daemon._hangup()
    assert daemon._hung_up and daemon.runtime.events.tail(9) == []
    await daemon.transport.close()


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[1]",
        '{"inbox": [{}]}',
        '{"inbox": [{"frm": "b", "model": {"strange": 1}, "arrived_round": 1}]}',
        '{"counters": 7}',
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
