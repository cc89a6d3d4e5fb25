"""A snapshot survives its way through JSON, and a file of a later version is still read."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from gossipseg.core import effects
from gossipseg.core.quarantine import PeerRecordSnapshot
from gossipseg.core.types import Manifest, ModelRef, Proposal
from gossipseg.daemon.snapshots import restore

MANIFEST = Manifest(**{
    f.name: {"str": "x", "int": 3, "bytes": "ab"}.get(str(f.type)) for f in dataclasses.fields(Manifest)
})  # fmt: skip
MODEL = ModelRef("0" * 64, 10, 2, 30, 4, manifest=MANIFEST)
ROUNDS = effects.RoundsRecord(
    committed=Proposal(2, 0, MODEL, ("a", "b"), (("c", "dead"),)), update_round=3, update=MODEL
)


def snapshot() -> effects.Snapshot:
    given: dict[str, Any] = {
        "inbox": (effects.InboxEntry("b", MODEL, 2),),
        "rounds": ROUNDS,
        "counters": (("sent", "b", 3),),
        "conduct": (PeerRecordSnapshot("b", "not_finite", 1, 5.0, (1.0, 2.0), 0.5),),
    }
    for field in dataclasses.fields(effects.Snapshot):
        if field.name not in given and field.default is dataclasses.MISSING:
            given[field.name] = {"int": 1, "bool": False, "str": ""}[str(field.type)]
    return effects.Snapshot(**given)


def test_through_json_and_back() -> None:
    before = snapshot()
    assert restore(json.loads(json.dumps(dataclasses.asdict(before)))) == before


def test_what_a_later_version_wrote_besides_is_left_out_at_every_depth() -> None:
    before = snapshot()
    doc = json.loads(json.dumps(dataclasses.asdict(before)))

    def add(value: Any) -> None:
        if isinstance(value, dict):
            for inner in list(value.values()):
                add(inner)
            value["of_a_later_version"] = 1
        elif isinstance(value, list):
            for inner in value:
                add(inner)

    add(doc)
    assert restore(doc) == before
