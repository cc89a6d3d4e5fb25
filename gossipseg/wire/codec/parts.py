"""The values inside messages as protobuf, and back, each with its limits.

A value that no honest peer sends raises Malformed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from gossipseg.core.types import (
    AliveRecord,
    LeftRecord,
    Manifest,
    ModelKind,
    ModelRef,
    PeerInfo,
    Phase,
    Proposal,
    Record,
    Site,
    SuspectRecord,
    UpdateTally,
)
from gossipseg.wire import peer_pb2 as pb

MAX_RECORDS = 8192
MAX_CONTRACT_ENTRIES = 1024
MAX_SITES = 4096
"""Contributors, or absent sites, of a global model."""
MAX_ATTEMPT = 1 << 31
_MAX_COUNT = 1 << 53
_MAX_TEXT, _MAX_VALUE, _MAX_SIGNATURE = 256, 64 << 10, 1024
_SITE = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_HASH = re.compile(r"[0-9a-f]{64}")
_CODE = re.compile(r"[a-z0-9_]{0,64}")
_FINGERPRINT = re.compile(r"[0-9a-f]{32}")
_PHASES = {phase: getattr(pb, f"PHASE_{phase.name}") for phase in Phase}
_VERDICT_OF: dict[int, Literal["accept", "busy", "reject"]] = {
    pb.VERDICT_ACCEPT: "accept",
    pb.VERDICT_BUSY: "busy",
    pb.VERDICT_REJECT: "reject",
}
_VERDICTS: dict[str, Any] = {word: number for number, word in _VERDICT_OF.items()}
_PHASE_OF = {number: phase for phase, number in _PHASES.items()}
_KINDS: dict[ModelKind, Any] = {
    "model": pb.MODEL_KIND_MODEL,
    "update": pb.MODEL_KIND_UPDATE,
    "global": pb.MODEL_KIND_GLOBAL,
    "personal": pb.MODEL_KIND_PERSONAL,
}
_KIND_OF: dict[int, ModelKind] = {number: kind for kind, number in _KINDS.items()}
_KIND_OF[pb.MODEL_KIND_UNSPECIFIED] = "model"
_COUNTS = ("round", "sequence", "size_bytes", "steps", "cases")
_PLAIN = (
    "schema", "dtype", "federation", "contract", "maker", "run", "attempt", "hash", "dice_val", *_COUNTS,
)  # fmt: skip


class Malformed(ValueError):
    """A message that lacks what its kind requires."""


@dataclass(frozen=True, slots=True)
class MessageKind:
    """One request/reply pair: the RPC's name, and how each side is encoded and decoded."""

    rpc: str
    write_request: Callable[[Any], Any]
    read_request: Callable[[Any], Any]
    request_message: Any
    write_reply: Callable[[Any], Any]
    read_reply: Callable[[Any], Any]
    reply_message: Any


def write_info(info: PeerInfo) -> Any:
    return pb.PeerInfo(
        round=info.round,
        steps=info.steps,
        cases=info.cases,
        phase=_PHASES[info.phase],
        contract=info.contract,
        committed=info.committed,
        listed=info.listed,
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
        committed=count(info.committed, "committed"),
        listed=text(info.listed, "listed"),
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
        kind=write_kind(model.kind),
        manifest=_write_manifest(model.manifest) if model.manifest is not None else None,
    )


def _write_manifest(manifest: Manifest) -> Any:
    plain = {name: getattr(manifest, name) for name in _PLAIN}
    return pb.Manifest(**plain, kind=write_kind(manifest.kind), signature=bytes.fromhex(manifest.signature))


def _read_manifest(x: Any) -> Manifest:
    require(_HASH.fullmatch(x.hash) is not None, "a manifest's hash must be 64 hex digits")
    dice = x.dice_val if x.HasField("dice_val") else None
    require(dice is None or math.isfinite(dice), "dice_val is not finite")
    return Manifest(
        schema=text(x.schema, "schema"),
        dtype=text(x.dtype, "dtype"),
        federation=text(x.federation, "federation"),
        contract=text(x.contract, "contract"),
        round=count(x.round, "round"),
        sequence=count(x.sequence, "sequence"),
        size_bytes=count(x.size_bytes, "size_bytes"),
        steps=count(x.steps, "steps"),
        cases=count(x.cases, "cases"),
        maker=site_name(x.maker),
        kind=read_kind(x.kind),
        run=fingerprint(x.run, "run") if x.run else "",
        attempt=attempt(x.attempt),
        hash=x.hash,
        dice_val=dice,
        signature=signature(x.signature),
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
        kind=read_kind(ref.kind),
        manifest=_read_manifest(ref.manifest) if ref.HasField("manifest") else None,
    )


def write_verdict(verdict: str) -> Any:
    return _VERDICTS[verdict]


def read_verdict(number: int) -> Literal["accept", "busy", "reject"]:
    require(number in _VERDICT_OF, f"unknown verdict {number}")
    return _VERDICT_OF[number]


def write_kind(kind: ModelKind) -> Any:
    return _KINDS[kind]


def read_kind(number: int) -> ModelKind:
    require(number in _KIND_OF, f"unknown kind of model {number}")
    return _KIND_OF[number]


def write_proposal(proposal: Proposal) -> Any:
    return pb.Proposal(
        round=proposal.round,
        attempt=proposal.attempt,
        model=write_model(proposal.model),
        contributors=proposal.contributors,
        absent=_absences(proposal.absent),
    )


def read_proposal(message: Any) -> Proposal:
    contributors, absent = _read_parts(message.contributors, message.absent)
    require(message.round > 0, "a global model of no round")
    return Proposal(
        round=count(message.round, "round"),
        attempt=attempt(message.attempt),
        model=read_model(sub(message, "model")),
        contributors=contributors,
        absent=absent,
    )


def write_tally(tally: UpdateTally) -> Any:
    return pb.Tally(
        deadline_ms=tally.deadline_ms, delivered=tally.delivered, left_out=_absences(tally.left_out)
    )


def read_tally(message: Any) -> UpdateTally:
    deadline_ms = count(message.deadline_ms, "deadline_ms") if message.HasField("deadline_ms") else None
    return UpdateTally(deadline_ms, *_read_parts(message.delivered, message.left_out))


def _absences(absent: Iterable[tuple[Site, str]]) -> list[Any]:
    return [pb.Absence(site=site, reason=reason) for site, reason in absent]


def _read_parts(there: Any, away: Any) -> tuple[tuple[Site, ...], tuple[tuple[Site, str], ...]]:
    """The sites that have contributed, and those that have not, with the reason."""
    contributors = [site_name(site) for site in _few(there)]
    absent = [(site_name(a.site), code(a.reason)) for a in _few(away)]
    missing = [site for site, _ in absent]
    require(contributors == sorted(set(contributors)), "contributors are not sorted, or one is there twice")
    require(missing == sorted(set(missing)), "absent sites are not sorted, or one is there twice")
    require(set(contributors).isdisjoint(missing), "a site both contributes and is absent")
    return tuple(contributors), tuple(absent)


def _few(entries: Any) -> Any:
    require(len(entries) <= MAX_SITES, f"{len(entries)} sites, at most {MAX_SITES}")
    return entries


def optional_proposal(message: Any, name: str) -> Proposal | None:
    return read_proposal(getattr(message, name)) if message.HasField(name) else None


def optional_model(message: Any, name: str) -> ModelRef | None:
    return read_model(getattr(message, name)) if message.HasField(name) else None


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
    require(value < _MAX_COUNT, f"{name} is far too large")
    return value


def attempt(value: int) -> int:
    require(value < MAX_ATTEMPT, f"attempt {value} is far too large")
    return value


def code(value: str) -> str:
    require(_CODE.fullmatch(value) is not None, "a reason that is no lower_case code")
    return value


def code_or_other(value: str) -> str:
    """A reason to be sent: one that a worker or a connection gave in other words is `other`."""
    return value if _CODE.fullmatch(value) is not None else "other"


def signature(value: bytes) -> str:
    """A signature in hex digits, as the core keeps it."""
    require(len(value) <= _MAX_SIGNATURE, "a signature too long")
    return bytes(value).hex()


def hash_or_nothing(value: str) -> str:
    require(not value or _HASH.fullmatch(value) is not None, "a model's hash must be 64 hex digits")
    return value


def fingerprint(value: str, name: str) -> str:
    require(_FINGERPRINT.fullmatch(value) is not None, f"{name} must be 32 hex digits")
    return value


def text(value: str, name: str, limit: int = _MAX_TEXT) -> str:
    require(len(value) <= limit, f"{name} has more than {limit} characters")
    return value


def site_name(value: str) -> Site:
    require(_SITE.fullmatch(value) is not None, "a name that no site can have")
    return value
