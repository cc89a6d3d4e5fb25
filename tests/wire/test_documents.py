"""The documents are a public promise: their fields are pinned, and versions may differ."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from gossipseg.wire import documents as doc

GOLDEN = Path(__file__).with_name("documents.golden.json")


def test_the_fields_are_those_promised() -> None:
    """Adding a field: run `python -m tests.wire.test_documents`. Removing or retyping one breaks users."""
    assert doc.field_listing() == json.loads(GOLDEN.read_text())


@pytest.mark.parametrize("kind", doc.KINDS)
def test_every_kind_survives_the_wire(kind: str) -> None:
    document = doc.KINDS[kind]()
    assert doc.parse(document.to_json()) == document
    raw = json.loads(document.to_json())
    assert raw["schema"] == 1 and raw["kind"] == kind
    assert dataclasses.is_dataclass(document) and hash(document) == hash(type(document)())
    with pytest.raises((dataclasses.FrozenInstanceError, TypeError)):
        document.kind = "other"  # type: ignore[misc]


def full_watch() -> doc.WatchDoc:
    status = doc.StatusDoc(
        site="north",
        reasons=("disk full", "worker lost"),
        loss=0.25,
        splits=doc.Splits(9, 3, 4),
        members=doc.MemberCounts(alive=2, dead=1),
        worker=doc.WorkerStatus("training", pid=7),
        discovery=doc.DiscoveryStatus(mdns=True, foreign=("federation 'x'",)),
    )
    return doc.WatchDoc(status, doc.PeersDoc((doc.PeerRow("south", rtt_ms=1.5), doc.PeerRow("west"))))


def test_nested_values_survive_the_wire() -> None:
    assert doc.WatchDoc.from_json(full_watch().to_json()) == full_watch()
    models = doc.ModelsDoc((doc.ModelRow("ab", 3, "inbox", "south", 4, 1.5),))
    assert doc.parse(models.to_json()) == models
    assert json.loads(models.to_json())["models"][0]["from"] == "south"
    events = doc.EventsDoc(({"seq": 1, "t": 2.0, "event": "paused", "x": [1, None]},))
    assert doc.parse(events.to_json()) == events


def test_an_older_reader_skips_what_it_does_not_know() -> None:
    raw = json.loads(full_watch().to_json())
    raw["new"] = raw["status"]["new"] = raw["status"]["worker"]["new"] = raw["peers"]["peers"][0]["new"] = {
        "a": 1
    }
    assert doc.WatchDoc.from_dict(raw) == full_watch()


def test_a_newer_reader_fills_in_what_an_older_daemon_leaves_out() -> None:
    raw = json.loads(full_watch().to_json())
    del raw["status"]["discovery"], raw["status"]["inbox"], raw["peers"]["peers"][0]["rtt_ms"]
    raw["status"]["splits"] = None
    read = doc.WatchDoc.from_dict(raw)
    assert read.status.discovery == doc.DiscoveryStatus() and read.status.splits == doc.Splits()
    assert read.status.inbox == 0 and read.peers.peers[0] == doc.PeerRow("south")


def test_numbers_json_has_not_become_null() -> None:
    document = doc.StatusDoc(loss=math.nan, dice_val=math.inf, reasons=("a",))
    raw = json.loads(document.to_json(), parse_constant=lambda c: pytest.fail(c))
    assert raw["loss"] is None and raw["dice_val"] is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not JSON"),
        ("[]", "not a JSON object"),
        ("[" * 100_000, "not JSON"),
        (b"\xff", "not JSON"),
        ('{"schema": 2, "kind": "status"}', "schema 2: this gossipseg reads schema 1 only"),
        ('{"kind": "status"}', "schema None"),
        ('{"schema": 1, "kind": "peers"}', "kind 'peers', expected 'status'"),
        ('{"schema": 1}', "kind None"),
    ],
)
def test_what_is_no_such_document_is_named(text: str | bytes, says: str) -> None:
    with pytest.raises(doc.BadDocument, match=says):
        doc.StatusDoc.from_json(text)
    if "expected" not in says:
        with pytest.raises(doc.BadDocument):
            doc.parse(text)


def test_reading_documents_needs_no_third_party() -> None:
    heavy = ("grpc", "torch", "google", "numpy", "pydantic")
    code = f"import sys, gossipseg.wire.documents; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(doc.field_listing(), indent=1) + "\n")
