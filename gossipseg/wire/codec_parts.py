"""The values inside messages as protobuf, and back, each with its limits.

What belongs here: sites, records, models, contracts. What must not: which message holds which (codec).
A value that no honest peer sends raises Malformed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

from gossipseg.core.types import (
    AliveRecord,
    LeftRecord,
    ModelRef,
    PeerInfo,
    Phase,
    Record,
    Site,
    SuspectRecord,
)
from gossipseg.wire import peer_pb2 as pb

MAX_RECORDS = 8192
MAX_CONTRACT_ENTRIES = 1024
_MAX_COUNT = 1 << 53
_MAX_TEXT, _MAX_VALUE, _MAX_SIGNATURE = 256, 64 << 10, 1024
_SITE = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_HASH = re.compile(r"[0-9a-f]{64}")
_PHASES = {phase: getattr(pb, f"PHASE_{phase.name}") for phase in Phase}
_PHASE_OF = {number: phase for phase, number in _PHASES.items()}


class Malformed(ValueError):
    """What came does not say what a message of its kind must say."""


def write_info(info: PeerInfo) -> Any:
    return pb.PeerInfo(
        round=info.round,
        steps=info.steps,
        cases=info.cases,
        phase=_PHASES[info.phase],
        contract=info.contract,
    )


def read_info(message: Any) -> PeerInfo:
    info = sub(message, "info")
    require(info.phase in _PHASE_OF, f"unknown phase {info.phase}")
    return PeerInfo(
        round=count(info.round, "round"),
        steps=count(info.steps, "steps"),
        cases=count(info.cases, "cases"),
        phase=_PHASE_OF[info.phase],
        contract=text(info.contract, "contract"),
    )


def write_records(records: Iterable[Record]) -> list[Any]:
    return [_record(r) for r in records]


def _record(record: Record) -> Any:
    match record:
        case AliveRecord():
            alive = pb.AliveRecord(
                site=record.site,
                nonce=record.nonce,
                incarnation=record.incarnation,
                address=record.address,
                cases=record.cases,
                signature=record.signature,
            )
            return pb.Record(alive=alive)
        case LeftRecord():
            left = pb.LeftRecord(
                site=record.site,
                nonce=record.nonce,
                incarnation=record.incarnation,
                signature=record.signature,
            )
            return pb.Record(left=left)
        case SuspectRecord():
            suspect = pb.SuspectRecord(
                site=record.site,
                incarnation=record.incarnation,
                accuser=record.accuser,
                signature=record.signature,
            )
            return pb.Record(suspect=suspect)


def read_records(records: Any) -> tuple[Record, ...]:
    require(len(records) <= MAX_RECORDS, f"{len(records)} records, at most {MAX_RECORDS}")
    return tuple(_read_record(r) for r in records)


def _read_record(message: Any) -> Record:
    kind = message.WhichOneof("kind")
    require(kind is not None, "a record of no known kind")
    r = getattr(message, kind)
    require(len(r.signature) <= _MAX_SIGNATURE, "a signature too long")
    site, incarnation = site_name(r.site), count(r.incarnation, "incarnation")
    if kind == "alive":
        address, cases = text(r.address, "address"), count(r.cases, "cases")
        return AliveRecord(site, r.nonce, incarnation, address, cases, bytes(r.signature))
    if kind == "left":
        return LeftRecord(site, r.nonce, incarnation, bytes(r.signature))
    return SuspectRecord(site, incarnation, site_name(r.accuser), bytes(r.signature))


def write_model(model: ModelRef) -> Any:
    return pb.ModelRef(
        hash=model.hash,
        size_bytes=model.size_bytes,
        round=model.round,
        steps=model.steps,
        cases=model.cases,
        dice_val=model.dice_val,
    )


def read_model(ref: Any) -> ModelRef:
    require(_HASH.fullmatch(ref.hash) is not None, "a model's hash must be 64 hex digits")
    require(ref.size_bytes > 0, "a model of no bytes")
    dice = ref.dice_val if ref.HasField("dice_val") else None
    require(dice is None or math.isfinite(dice), "dice_val is not finite")
    return ModelRef(
        hash=ref.hash,
        size_bytes=count(ref.size_bytes, "size_bytes"),
        round=count(ref.round, "round"),
        steps=count(ref.steps, "steps"),
        cases=count(ref.cases, "cases"),
        dice_val=dice,
    )


def write_contract(pairs: Iterable[tuple[str, str]]) -> list[Any]:
    return [pb.ContractEntry(key=key, value=value) for key, value in pairs]


def read_contract(entries: Any) -> tuple[tuple[str, str], ...]:
    require(len(entries) <= MAX_CONTRACT_ENTRIES, f"{len(entries)} contract entries")
    pairs = tuple((text(e.key, "key"), text(e.value, "value", _MAX_VALUE)) for e in entries)
    keys = [key for key, _ in pairs]
    require(keys == sorted(set(keys)), "contract entries are not sorted, or one is there twice")
    return pairs


# ---------------------------------------------------------------- checks


def require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise Malformed(otherwise)


def sub(message: Any, name: str) -> Any:
    require(message.HasField(name), f"{name} is missing")
    return getattr(message, name)


def count(value: int, name: str) -> int:
    require(value < _MAX_COUNT, f"{name} is beyond all measure")
    return value


def text(value: str, name: str, limit: int = _MAX_TEXT) -> str:
    require(len(value) <= limit, f"{name} has more than {limit} characters")
    return value


def site_name(value: str) -> Site:
    require(_SITE.fullmatch(value) is not None, "a name that no site can have")
    return value
