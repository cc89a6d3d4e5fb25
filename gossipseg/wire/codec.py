"""Core messages as bytes, and back: strict on what a peer sent, exact in both directions.

What belongs here: the mapping to protobuf, limits on what is read, the framing of model chunks.
What must not: sockets, gRPC, judgement about what a message means. Anything malformed is the peer's fault
and raises errors.PeerRefused(peer, "malformed", what).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from google.protobuf.message import DecodeError

from gossipseg.core import messages as m
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
from gossipseg.errors import PeerRefused
from gossipseg.wire import peer_pb2 as pb
from gossipseg.wire.params import CHUNK_BYTES

SERVICE = "gossipseg.wire.Peer"
MAX_MESSAGE_BYTES = 4 << 20
MAX_RECORDS = 8192
MAX_CONTRACT_ENTRIES = 1024
_MAX_COUNT = 1 << 53
_MAX_TEXT, _MAX_VALUE, _MAX_SIGNATURE = 256, 64 << 10, 1024
_SITE = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_HASH = re.compile(r"[0-9a-f]{64}")
_CODE = re.compile(r"[a-z0-9_]{0,64}")
_PHASES = {phase: getattr(pb, f"PHASE_{phase.name}") for phase in Phase}
_PHASE_OF = {number: phase for phase, number in _PHASES.items()}
_VERDICT_OF: dict[int, Literal["accept", "busy", "reject"]] = {
    pb.VERDICT_ACCEPT: "accept",
    pb.VERDICT_BUSY: "busy",
    pb.VERDICT_REJECT: "reject",
}
_VERDICTS: dict[str, Any] = {word: number for number, word in _VERDICT_OF.items()}


class Malformed(ValueError):
    """What came does not say what a message of its kind must say."""


# ---------------------------------------------------------------- requests and replies


@dataclass(frozen=True, slots=True)
class Kind:
    """One request/reply pair: the RPC's name and how either side becomes bytes and is read again."""

    rpc: str
    write_request: Callable[[Any], Any]
    read_request: Callable[[Any], Any]
    request_message: Any
    write_reply: Callable[[Any], Any]
    read_reply: Callable[[Any], Any]
    reply_message: Any


def encode_request(body: m.Request) -> bytes:
    """The bytes of a request; `kind_of(body).rpc` is the RPC they go to."""
    data: bytes = kind_of(body).write_request(body).SerializeToString()
    return data


def decode_request(rpc: str, data: bytes, peer: Site) -> m.Request:
    """The request that `peer` sent to an RPC."""
    kind = KINDS[rpc]
    request: m.Request = _decode(kind.request_message, kind.read_request, data, peer)
    return request


def encode_reply(body: m.Reply) -> bytes:
    """The bytes of a reply."""
    data: bytes = _KIND_OF_REPLY[type(body)].write_reply(body).SerializeToString()
    return data


def decode_reply(request: m.Request, data: bytes, peer: Site) -> m.Reply:
    """What `peer` answered to `request`."""
    kind = kind_of(request)
    reply: m.Reply = _decode(kind.reply_message, kind.read_reply, data, peer)
    return reply


def kind_of(body: m.Request) -> Kind:
    """The pair that a request opens."""
    return _KIND_OF_REQUEST[type(body)]


def _decode(message: Any, read: Callable[[Any], Any], data: bytes, peer: Site) -> Any:
    try:
        return read(message.FromString(data))
    except (DecodeError, Malformed) as e:
        raise PeerRefused(peer, "malformed", f"{message.DESCRIPTOR.name}: {e}") from None


# ---------------------------------------------------------------- model streams


@dataclass(frozen=True, slots=True)
class PushHeader:
    """The first message of a stream: which model, and where its data goes on."""

    model: ModelRef
    offset: int


_DATA_TAG = bytes([pb.PushChunk.DESCRIPTOR.fields_by_name["data"].number << 3 | 2])


def encode_header(header: PushHeader) -> bytes:
    """The first message of a model stream."""
    message = pb.PushChunk(header=pb.PushHeader(model=_model(header.model), offset=header.offset))
    data: bytes = message.SerializeToString()
    return data


def encode_data(chunk: bytes) -> bytes:
    """A data message, byte for byte what protobuf writes, with one copy of the chunk in place of two."""
    return b"".join((_DATA_TAG, _varint(len(chunk)), chunk))


def decode_chunk(data: bytes, peer: Site) -> PushHeader | bytes:
    """A message of a model stream: its header, or data of at most CHUNK_BYTES."""
    if data[:1] == _DATA_TAG:
        length, start = _read_varint(data, 1)
        if length == len(data) - start and length <= CHUNK_BYTES:
            return data[start:]

    def read(message: Any) -> PushHeader | bytes:
        part = message.WhichOneof("part")
        _require(part is not None, "neither header nor data")
        if part == "header":
            return PushHeader(
                _read_model(_sub(message.header, "model")), _count(message.header.offset, "offset")
            )
        _require(len(message.data) <= CHUNK_BYTES, f"more than {CHUNK_BYTES} bytes in a chunk")
        return bytes(message.data)

    found: PushHeader | bytes = _decode(pb.PushChunk, read, data, peer)
    return found


def encode_offset_request(model: ModelRef) -> bytes:
    """How much of this model do you have?"""
    data: bytes = pb.PushOffsetRequest(model=_model(model)).SerializeToString()
    return data


def decode_offset_request(data: bytes, peer: Site) -> ModelRef:
    """The model that `peer` asks the offset of."""
    model: ModelRef = _decode(pb.PushOffsetRequest, lambda x: _read_model(_sub(x, "model")), data, peer)
    return model


def encode_offset(offset: int) -> bytes:
    """The answer: so many bytes."""
    data: bytes = pb.PushOffsetResponse(offset=offset).SerializeToString()
    return data


def decode_offset(data: bytes, peer: Site, model: ModelRef) -> int:
    """The offset `peer` wants the stream to start at, 0 … size."""

    def read(message: Any) -> int:
        offset: int = message.offset
        _require(offset <= model.size_bytes, f"offset {offset} of {model.size_bytes} bytes")
        return offset

    found: int = _decode(pb.PushOffsetResponse, read, data, peer)
    return found


def encode_pushed() -> bytes:
    """The answer to a stream whose model is whole and stored."""
    data: bytes = pb.PushResponse().SerializeToString()
    return data


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(data: bytes, start: int) -> tuple[int, int]:
    """(value, where it ended); (-1, start) when there is none of at most five bytes."""
    value = 0
    for i, byte in enumerate(data[start : start + 5]):
        value |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:
            return value, start + i + 1
    return -1, start


# ---------------------------------------------------------------- parts


def _info(info: PeerInfo) -> Any:
    return pb.PeerInfo(
        round=info.round,
        steps=info.steps,
        cases=info.cases,
        phase=_PHASES[info.phase],
        contract=info.contract,
    )


def _read_info(message: Any) -> PeerInfo:
    info = _sub(message, "info")
    _require(info.phase in _PHASE_OF, f"unknown phase {info.phase}")
    return PeerInfo(
        round=_count(info.round, "round"),
        steps=_count(info.steps, "steps"),
        cases=_count(info.cases, "cases"),
        phase=_PHASE_OF[info.phase],
        contract=_text(info.contract, "contract"),
    )


def _records(records: Iterable[Record]) -> list[Any]:
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


def _read_records(records: Any) -> tuple[Record, ...]:
    _require(len(records) <= MAX_RECORDS, f"{len(records)} records, at most {MAX_RECORDS}")
    return tuple(_read_record(r) for r in records)


def _read_record(message: Any) -> Record:
    kind = message.WhichOneof("kind")
    _require(kind is not None, "a record of no known kind")
    r = getattr(message, kind)
    _require(len(r.signature) <= _MAX_SIGNATURE, "a signature too long")
    site, incarnation = _site(r.site), _count(r.incarnation, "incarnation")
    if kind == "alive":
        address, cases = _text(r.address, "address"), _count(r.cases, "cases")
        return AliveRecord(site, r.nonce, incarnation, address, cases, bytes(r.signature))
    if kind == "left":
        return LeftRecord(site, r.nonce, incarnation, bytes(r.signature))
    return SuspectRecord(site, incarnation, _site(r.accuser), bytes(r.signature))


def _model(model: ModelRef) -> Any:
    return pb.ModelRef(
        hash=model.hash,
        size_bytes=model.size_bytes,
        round=model.round,
        steps=model.steps,
        cases=model.cases,
        dice_val=model.dice_val,
    )


def _read_model(ref: Any) -> ModelRef:
    _require(_HASH.fullmatch(ref.hash) is not None, "a model's hash must be 64 hex digits")
    _require(ref.size_bytes > 0, "a model of no bytes")
    dice = ref.dice_val if ref.HasField("dice_val") else None
    _require(dice is None or math.isfinite(dice), "dice_val is not finite")
    return ModelRef(
        hash=ref.hash,
        size_bytes=_count(ref.size_bytes, "size_bytes"),
        round=_count(ref.round, "round"),
        steps=_count(ref.steps, "steps"),
        cases=_count(ref.cases, "cases"),
        dice_val=dice,
    )


def _contract(pairs: Iterable[tuple[str, str]]) -> list[Any]:
    return [pb.ContractEntry(key=key, value=value) for key, value in pairs]


def _read_contract(entries: Any) -> tuple[tuple[str, str], ...]:
    _require(len(entries) <= MAX_CONTRACT_ENTRIES, f"{len(entries)} contract entries")
    pairs = tuple((_text(e.key, "key"), _text(e.value, "value", _MAX_VALUE)) for e in entries)
    keys = [key for key, _ in pairs]
    _require(keys == sorted(set(keys)), "contract entries are not sorted, or one is there twice")
    return pairs


# ---------------------------------------------------------------- the pairs


def _hello(message: Any, x: m.Hello | m.HelloReply) -> Any:
    return message(
        protocol_min=x.protocol_min,
        protocol_max=x.protocol_max,
        federation=x.federation,
        contract=_contract(x.contract),
        info=_info(x.info),
    )


def _read_hello(kind: Callable[..., Any], x: Any) -> Any:
    _require(x.protocol_min <= x.protocol_max, "an empty protocol range")
    return kind(
        x.protocol_min,
        x.protocol_max,
        _text(x.federation, "federation"),
        _read_contract(x.contract),
        _read_info(x),
    )


def _told(message: Any, x: m.Ping | m.Ack | m.Sync | m.SyncReply) -> Any:
    return message(records=_records(x.records), info=_info(x.info))


def _read_told(kind: Callable[..., Any], x: Any) -> Any:
    return kind(_read_records(x.records), _read_info(x))


def _read_offer_reply(x: Any) -> m.OfferReply:
    _require(x.verdict in _VERDICT_OF, f"unknown verdict {x.verdict}")
    _require(_CODE.fullmatch(x.reason) is not None, "a reason that is no lower_case code")
    return m.OfferReply(_VERDICT_OF[x.verdict], x.reason)


_PAIRS: tuple[tuple[type, type, Kind], ...] = (
    (
        m.Hello,
        m.HelloReply,
        Kind(
            "Hello",
            lambda x: _hello(pb.HelloRequest, x),
            lambda x: _read_hello(m.Hello, x),
            pb.HelloRequest,
            lambda x: _hello(pb.HelloResponse, x),
            lambda x: _read_hello(m.HelloReply, x),
            pb.HelloResponse,
        ),
    ),
    (
        m.Ping,
        m.Ack,
        Kind(
            "Ping",
            lambda x: _told(pb.PingRequest, x),
            lambda x: _read_told(m.Ping, x),
            pb.PingRequest,
            lambda x: _told(pb.PingResponse, x),
            lambda x: _read_told(m.Ack, x),
            pb.PingResponse,
        ),
    ),
    (
        m.IndirectPing,
        m.IndirectAck,
        Kind(
            "IndirectPing",
            lambda x: pb.IndirectPingRequest(target=x.target, records=_records(x.records)),
            lambda x: m.IndirectPing(_site(x.target), _read_records(x.records)),
            pb.IndirectPingRequest,
            lambda x: pb.IndirectPingResponse(
                target=x.target, reached=x.reached, records=_records(x.records)
            ),
            lambda x: m.IndirectAck(_site(x.target), x.reached, _read_records(x.records)),
            pb.IndirectPingResponse,
        ),
    ),
    (
        m.Sync,
        m.SyncReply,
        Kind(
            "Sync",
            lambda x: _told(pb.SyncRequest, x),
            lambda x: _read_told(m.Sync, x),
            pb.SyncRequest,
            lambda x: _told(pb.SyncResponse, x),
            lambda x: _read_told(m.SyncReply, x),
            pb.SyncResponse,
        ),
    ),
    (
        m.Offer,
        m.OfferReply,
        Kind(
            "Offer",
            lambda x: pb.OfferRequest(model=_model(x.model)),
            lambda x: m.Offer(_read_model(_sub(x, "model"))),
            pb.OfferRequest,
            lambda x: pb.OfferResponse(verdict=_VERDICTS[x.verdict], reason=x.reason),
            _read_offer_reply,
            pb.OfferResponse,
        ),
    ),
)
_KIND_OF_REQUEST: dict[type, Kind] = {request: kind for request, _, kind in _PAIRS}
_KIND_OF_REPLY: dict[type, Kind] = {reply: kind for _, reply, kind in _PAIRS}
KINDS: dict[str, Kind] = {kind.rpc: kind for _, _, kind in _PAIRS}


# ---------------------------------------------------------------- checks


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise Malformed(otherwise)


def _sub(message: Any, name: str) -> Any:
    _require(message.HasField(name), f"{name} is missing")
    return getattr(message, name)


def _count(value: int, name: str) -> int:
    _require(value < _MAX_COUNT, f"{name} is beyond all measure")
    return value


def _text(value: str, name: str, limit: int = _MAX_TEXT) -> str:
    _require(len(value) <= limit, f"{name} has more than {limit} characters")
    return value


def _site(value: str) -> Site:
    _require(_SITE.fullmatch(value) is not None, "a name that no site can have")
    return value
