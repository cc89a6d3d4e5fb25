"""The documents are a public promise: their fields are pinned, and versions may differ."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

from gossipseg.wire import documents as doc
from gossipseg.wire.documents.base import Part

GOLDEN = Path(__file__).with_name("documents.golden.json")
TEXTS = Path(__file__).with_name("documents.golden.jsonl")
"""Each kind with every field set, as text: what users' scripts read."""

EXAMPLES: dict[str, Any] = {
    "str": "é \u2028 \udcff",
    "int": 2**40,
    "float": 1e-07,
    "bool": True,
    "int | None": 7,
    "float | None": 1e16,
    "tuple[str, ...]": ["b", "a"],
    "tuple[str, ...] | None": ["south"],
    "tuple[tuple[float, ...], ...]": [[1.0, 0.25], [0.25, 1.0]],
    "tuple[Mapping[str, Any], ...]": [
        {"seq": 1, "t": 2.5, "event": "paused", "x": [1, None], "y": {"z": None}}
    ],
}


def full(kind: str) -> dict[str, Any]:
    """A document with every field, made from the list of those promised."""
    raw: dict[str, Any] = {"schema": 1, "kind": kind}
    for dotted, type_ in doc.field_listing()[kind].items():
        *parts, name = dotted.split(".")
        place = raw
        for part in parts:
            if part.endswith("[]"):
                place = place.setdefault(part[:-2], [{}])[0]
            else:
                place = place.setdefault(part, {})
        place[name] = EXAMPLES[type_]
    return raw


def test_the_fields_are_those_promised() -> None:
    """Adding a field: run `python -m tests.wire.test_documents`. Removing or retyping one breaks users."""
    assert doc.field_listing() == json.loads(GOLDEN.read_text())


def test_the_texts_are_those_promised() -> None:
    texts = [doc.parse(json.dumps(full(kind))).to_json() for kind in doc.KINDS]
    assert texts == TEXTS.read_text().splitlines()
    for text in texts:
        assert json.dumps(doc.parse(text).to_dict(), separators=(",", ":")) == text
        assert doc.parse(text).to_json() == text


@pytest.mark.parametrize("kind", doc.KINDS)
def test_every_kind_survives_the_wire(kind: str) -> None:
    document = doc.KINDS[kind]()
    assert doc.parse(document.to_json()) == document
    raw = json.loads(document.to_json())
    assert raw["schema"] == 1 and raw["kind"] == kind
    assert hash(document) == hash(type(document)())
    for name in ("kind", *document.__struct_fields__):
        with pytest.raises(AttributeError):
            setattr(document, name, "other")


def full_watch() -> doc.WatchDoc:
    status = doc.StatusDoc(
        site="north",
        reasons=("disk full", "worker lost"),
        loss=0.25,
        splits=doc.SplitCounts(9, 3, 4),
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
    assert read.status.discovery == doc.DiscoveryStatus() and read.status.splits == doc.SplitCounts()
    assert read.status.inbox == 0 and read.peers.peers[0] == doc.PeerRow("south")


def test_what_may_be_null_is_null_by_default() -> None:
    """A reader takes a null for a missing field."""

    def parts(kind: type[Part]) -> Iterator[type[Part]]:
        yield kind
        for f in msgspec.structs.fields(kind):
            for inner in (f.type, *get_args(f.type)[:1]):
                if isinstance(inner, type) and issubclass(inner, Part):
                    yield from parts(inner)

    fields = [f for kind in doc.KINDS.values() for part in parts(kind) for f in msgspec.structs.fields(part)]
    assert {f.default for f in fields if type(None) in get_args(f.type)} == {None}


@pytest.mark.parametrize(
    ("field", "value"),
    [("round", "3"), ("round", 3.5), ("round", True), ("reasons", "full"), ("reasons", [1]), ("worker", [])],
)
def test_a_value_of_another_type_is_named(field: str, value: Any) -> None:
    with pytest.raises(doc.BadDocument, match=rf"kind 'status': Expected .* at `\$\.{field}"):
        doc.StatusDoc.from_dict({"schema": 1, "kind": "status", field: value})


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


def test_reading_documents_needs_nothing_heavy() -> None:
    heavy = ("grpc", "torch", "google", "numpy", "pydantic")
    code = f"import sys, gossipseg.wire.documents; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(doc.field_listing(), indent=1) + "\n")
    TEXTS.write_text("".join(doc.parse(json.dumps(full(kind))).to_json() + "\n" for kind in doc.KINDS))
