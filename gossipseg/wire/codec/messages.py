"""Core messages as bytes, and back: strict with a peer's bytes, exact in both directions.

A malformed message is the peer's fault and raises errors.PeerRefused(peer, "malformed", what).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError

from gossipseg.core import messages as m
from gossipseg.core.types import ModelRef, Site
from gossipseg.errors import PeerRefused
from gossipseg.wire import peer_pb2 as pb
from gossipseg.wire.codec import rounds, swaps
from gossipseg.wire.codec.parts import (
    Malformed,
    MessageKind,
    code,
    count,
    read_contract,
    read_info,
    read_model,
    read_records,
    read_verdict,
    require,
    site_name,
    sub,
    text,
    write_contract,
    write_info,
    write_model,
    write_records,
    write_verdict,
)
from gossipseg.wire.params import CHUNK_BYTES

SERVICE = "gossipseg.wire.Peer"
MAX_MESSAGE_BYTES = 4 << 20


# ---------------------------------------------------------------- requests and replies


def encode_request(body: m.Request) -> bytes:
    """The bytes of a request; `kind_of(body).rpc` is the RPC that carries them."""
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
    """The reply of `peer` to `request`."""
    kind = kind_of(request)
    reply: m.Reply = _decode(kind.reply_message, kind.read_reply, data, peer)
    return reply


def kind_of(body: m.Request) -> MessageKind:
    """The request/reply pair that a request opens."""
    return _KIND_OF_REQUEST[type(body)]


def _decode(message: Any, read: Callable[[Any], Any], data: bytes, peer: Site) -> Any:
    try:
        return read(message.FromString(data))
    except (DecodeError, Malformed) as e:
        raise PeerRefused(peer, "malformed", f"{message.DESCRIPTOR.name}: {e}") from None


# ---------------------------------------------------------------- model streams


@dataclass(frozen=True, slots=True)
class PushHeader:
    """The first message of a stream: which model, and at which offset its data continues."""

    model: ModelRef
    offset: int


_DATA_TAG = bytes([pb.PushChunk.DESCRIPTOR.fields_by_name["data"].number << 3 | 2])


def encode_header(header: PushHeader) -> bytes:
    """The first message of a model stream."""
    message = pb.PushChunk(header=pb.PushHeader(model=write_model(header.model), offset=header.offset))
    data: bytes = message.SerializeToString()
    return data


def encode_data(chunk: bytes) -> bytes:
    """A data message, byte for byte as protobuf writes it, with one copy of the chunk instead of two."""
    return b"".join((_DATA_TAG, _varint(len(chunk)), chunk))


def decode_chunk(data: bytes, peer: Site) -> PushHeader | bytes:
    """A message of a model stream: its header, or data of at most CHUNK_BYTES."""
    if data[:1] == _DATA_TAG:
        length, start = _read_varint(data, 1)
        if length == len(data) - start and length <= CHUNK_BYTES:
            return data[start:]

    def read(message: Any) -> PushHeader | bytes:
        part = message.WhichOneof("part")
        require(part is not None, "neither header nor data")
        if part == "header":
            return PushHeader(
                read_model(sub(message.header, "model")), count(message.header.offset, "offset")
            )
        require(len(message.data) <= CHUNK_BYTES, f"more than {CHUNK_BYTES} bytes in a chunk")
        return bytes(message.data)

    found: PushHeader | bytes = _decode(pb.PushChunk, read, data, peer)
    return found


def encode_offset_request(model: ModelRef) -> bytes:
    """The question how much of this model the peer has."""
    data: bytes = pb.PushOffsetRequest(model=write_model(model)).SerializeToString()
    return data


def decode_offset_request(data: bytes, peer: Site) -> ModelRef:
    """The model that `peer` asks the offset of."""
    model: ModelRef = _decode(pb.PushOffsetRequest, lambda x: read_model(sub(x, "model")), data, peer)
    return model


def encode_offset(offset: int) -> bytes:
    """The answer: the offset in bytes."""
    data: bytes = pb.PushOffsetResponse(offset=offset).SerializeToString()
    return data


def decode_offset(data: bytes, peer: Site, model: ModelRef) -> int:
    """The offset at which `peer` wants the stream to start, 0 … size."""

    def read(message: Any) -> int:
        offset: int = message.offset
        require(offset <= model.size_bytes, f"offset {offset} of {model.size_bytes} bytes")
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
    """(value, end position); (-1, start) when there is none of at most five bytes."""
    value = 0
    for i, byte in enumerate(data[start : start + 5]):
        value |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:
            return value, start + i + 1
    return -1, start


# ---------------------------------------------------------------- the pairs


def _hello(message: Any, x: m.Hello | m.HelloReply) -> Any:
    return message(
        protocol_min=x.protocol_min,
        protocol_max=x.protocol_max,
        federation=x.federation,
        contract=write_contract(x.contract),
        info=write_info(x.info),
    )


def _read_hello(kind: Callable[..., Any], x: Any) -> Any:
    require(x.protocol_min <= x.protocol_max, "an empty protocol range")
    return kind(
        x.protocol_min,
        x.protocol_max,
        text(x.federation, "federation"),
        read_contract(x.contract),
        read_info(x),
    )


def _told(message: Any, x: m.Ping | m.Ack | m.Sync | m.SyncReply) -> Any:
    return message(records=write_records(x.records), info=write_info(x.info))


def _read_told(kind: Callable[..., Any], x: Any) -> Any:
    return kind(read_records(x.records), read_info(x))


def _read_offer_reply(x: Any) -> m.OfferReply:
    return m.OfferReply(read_verdict(x.verdict), code(x.reason))


_PAIRS: tuple[tuple[type, type, MessageKind], ...] = (
    (
        m.Hello,
        m.HelloReply,
        MessageKind(
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
        MessageKind(
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
        MessageKind(
            "IndirectPing",
            lambda x: pb.IndirectPingRequest(target=x.target, records=write_records(x.records)),
            lambda x: m.IndirectPing(site_name(x.target), read_records(x.records)),
            pb.IndirectPingRequest,
            lambda x: pb.IndirectPingResponse(
                target=x.target, reached=x.reached, records=write_records(x.records)
            ),
            lambda x: m.IndirectAck(site_name(x.target), x.reached, read_records(x.records)),
            pb.IndirectPingResponse,
        ),
    ),
    (
        m.Sync,
        m.SyncReply,
        MessageKind(
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
        MessageKind(
            "Offer",
            lambda x: pb.OfferRequest(model=write_model(x.model)),
            lambda x: m.Offer(read_model(sub(x, "model"))),
            pb.OfferRequest,
            lambda x: pb.OfferResponse(verdict=write_verdict(x.verdict), reason=x.reason),
            _read_offer_reply,
            pb.OfferResponse,
        ),
    ),
    *rounds.PAIRS,
    *swaps.PAIRS,
)
_KIND_OF_REQUEST: dict[type, MessageKind] = {request: kind for request, _, kind in _PAIRS}
_KIND_OF_REPLY: dict[type, MessageKind] = {reply: kind for _, reply, kind in _PAIRS}
KINDS: dict[str, MessageKind] = {kind.rpc: kind for _, _, kind in _PAIRS}
