"""Every message of the Peer service, as nonsense: random bytes, random fields, messages with odd values.

Against a real server with the real intake and core behind it. The daemon stays up, its memory is bounded,
and every answer is an answer or a refusal: never INTERNAL, never a dead connection.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from gossipseg.wire import peer_pb2 as pb
from gossipseg.wire.codec import messages as codec
from tests.attacks.rig import BOUND_BYTES, REFUSALS, Attack, call

REQUESTS = {m.name: m.input_type for m in pb.DESCRIPTOR.services_by_name["Peer"].methods}
HASH = "ab" * 32
NUMBERS = st.one_of(
    st.sampled_from([0, 1, 5, 2**31, 2**32 - 1, 2**53 - 1, 2**53, 2**63, 2**64 - 1]),
    st.integers(0, 2**64 - 1),
)
TEXTS = st.one_of(
    st.sampled_from(["", "north", "south", "west", "nobody", HASH, "a" * 64, "x" * 300, "127.0.0.1:1", "\0",
                     "../../etc/passwd", "ü", "b" * 32, '"a"', "north:1"]),
    st.text(max_size=80),
)  # fmt: skip
SMALL, LARGE = 60, 3000
COUNTS = [SMALL, pytest.param(LARGE, marks=pytest.mark.faults)]


def odd(descriptor: Descriptor, depth: int = 0) -> st.SearchStrategy[bytes]:
    """Valid messages of a type, with values that no honest peer sends beside such as it does."""
    return _message(descriptor, depth).map(lambda m: m.SerializeToString())


def _message(descriptor: Descriptor, depth: int) -> st.SearchStrategy[Any]:
    kind = getattr(pb, descriptor.name)
    fields = {f.name: _field(f, depth) for f in descriptor.fields}
    usual = {name: value for name, value in fields.items() if depth < 4}
    return st.fixed_dictionaries({}, optional=usual).map(lambda values: kind(**values))


def _field(field: FieldDescriptor, depth: int) -> st.SearchStrategy[Any]:
    one = _value(field, depth)
    repeated = getattr(field, "is_repeated", None)
    if repeated is None:
        repeated = field.label == FieldDescriptor.LABEL_REPEATED
    return st.lists(one, max_size=4) if repeated else one


def _value(field: FieldDescriptor, depth: int) -> st.SearchStrategy[Any]:
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_MESSAGE:
            return _message(field.message_type, depth + 1)
        case FieldDescriptor.CPPTYPE_STRING if field.type == FieldDescriptor.TYPE_BYTES:
            return st.binary(max_size=1500)
        case FieldDescriptor.CPPTYPE_STRING:
            return TEXTS
        case FieldDescriptor.CPPTYPE_BOOL:
            return st.booleans()
        case FieldDescriptor.CPPTYPE_DOUBLE:
            return st.floats()
        case FieldDescriptor.CPPTYPE_ENUM:
            return st.integers(-(2**31), 2**31 - 1) | st.integers(0, 8)
        case FieldDescriptor.CPPTYPE_UINT32:
            return NUMBERS.map(lambda n: n % 2**32)
    return NUMBERS


USUAL: dict[str, st.SearchStrategy[Any]] = {
    **dict.fromkeys(("site", "target", "accuser", "maker"), st.sampled_from(["south", "west", "north"])),
    **dict.fromkeys(("contributors", "delivered"), st.just([]) | st.just(["south", "west"])),
    **dict.fromkeys(("hash", "schema"), st.integers(0, 255).map(lambda n: f"{n:064x}")),
    **dict.fromkeys(("run", "sites"), st.just("b" * 32)),
    **dict.fromkeys(("absent", "left_out", "contract"), st.just([])),
    "phase": st.integers(1, 7),
    "kind": st.integers(0, 3),
    "size_bytes": st.integers(1, 1 << 40),
    "attempt": st.integers(0, 9),
    "reason": st.just("busy"),
    "federation": st.just("test"),
    "dice_val": st.floats(0, 1),
    "protocol_min": st.just(1),
    "protocol_max": st.just(2),
}
SINGLE = (FieldDescriptor.CPPTYPE_STRING, FieldDescriptor.CPPTYPE_UINT64)


def nearly(descriptor: Descriptor) -> st.SearchStrategy[bytes]:
    """Messages that get past the reader, for the most part: mostly whole, mostly with likely values."""
    return _nearly(descriptor, 0).map(lambda m: m.SerializeToString())


def _nearly(descriptor: Descriptor, depth: int) -> st.SearchStrategy[Any]:
    kind, whole = getattr(pb, descriptor.name), {}
    for field in descriptor.fields:
        if field.name == "contract" and field.cpp_type == SINGLE[0]:
            usual = st.just("")
        elif field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE and field.name not in USUAL:
            inner = _nearly(field.message_type, depth + 1)
            usual = st.lists(inner, max_size=3) if field.name == "records" else inner
        else:
            usual = USUAL.get(field.name, st.just("x") if field.cpp_type == SINGLE[0] else st.integers(0, 99))
            if field.type == FieldDescriptor.TYPE_BYTES:
                usual = st.binary(max_size=72)
        odd_ = _field(field, depth)
        whole[field.name] = mostly(usual, odd_)
    if descriptor.name == "Record":
        return st.one_of([value.map(lambda v, n=name: kind(**{n: v})) for name, value in whole.items()])
    missing = st.none() | st.sampled_from(sorted(whole)) if whole else st.none()

    @st.composite
    def made(draw: Callable[[Any], Any]) -> Any:
        without = draw(mostly(st.none(), missing))
        return kind(**{name: draw(value) for name, value in whole.items() if name != without})

    return made()


def mostly(usual: st.SearchStrategy[Any], else_: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """The usual 39 times of 40."""

    @st.composite
    def pick(draw: Callable[[Any], Any]) -> Any:
        return draw(else_ if draw(st.integers(0, 39)) == 0 else usual)

    return pick()


def varint(n: int) -> bytes:
    out = bytearray()
    while n > 0x7F:
        out.append(n & 0x7F | 0x80)
        n >>= 7
    return bytes([*out, n])


def random_fields() -> st.SearchStrategy[bytes]:
    """Fields of protobuf's wire format with any number, of any type, one within the other."""
    leaf = st.binary(max_size=64)
    content = st.recursive(leaf, lambda inner: st.lists(_tagged(inner), max_size=5).map(b"".join))
    return st.lists(_tagged(content), max_size=8).map(b"".join)


def _tagged(content: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    number = st.integers(1, 20) | st.integers(1, 2**29 - 1)
    bytes_ = st.tuples(number, content).map(lambda t: varint(t[0] << 3 | 2) + varint(len(t[1])) + t[1])
    lying = st.tuples(number, NUMBERS).map(lambda t: varint(t[0] << 3 | 2) + varint(t[1]))
    number_ = st.tuples(number, NUMBERS).map(lambda t: varint(t[0] << 3) + varint(t[1]))
    fixed = st.tuples(number, st.binary(min_size=8, max_size=8)).map(lambda t: varint(t[0] << 3 | 1) + t[1])
    group = st.tuples(number, content).map(lambda t: varint(t[0] << 3 | 3) + t[1])
    return st.one_of(bytes_, bytes_, number_, fixed, lying, group)


KINDS: dict[str, Callable[[Descriptor], st.SearchStrategy[bytes]]] = {
    "bytes": lambda _: st.binary(max_size=4096),
    "fields": lambda _: random_fields(),
    "odd": odd,
    "nearly": nearly,
}


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_single_request(site: Attack, seen: Any, kind: str, count: int) -> None:
    answers: Counter[str] = Counter()
    understood: set[str] = set()
    rpcs = sorted(set(REQUESTS) - {"Push"})
    messages = st.one_of([st.tuples(st.just(r), KINDS[kind](REQUESTS[r])) for r in rpcs])
    channel = site.channel("south")

    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    @given(messages)
    def throw(sent: tuple[str, bytes]) -> None:
        code = call(channel, *sent)
        answers[code.name] += 1
        if code is grpc.StatusCode.OK:
            understood.add(sent[0])
        assert code in REFUSALS, (code, sent)

    before = site.about()
    throw()
    after = site.about()
    assert after["peak_bytes"] < BOUND_BYTES and after["waiting"] == 0 and not site.errors()
    assert set(after["members"]) == set(before["members"]) and after["models"] == before["models"]
    assert site.serves() < 5.0
    if kind == "nearly" and count == LARGE:
        assert understood >= set(rpcs) - {"PushOffset"}, "the core has been asked everything"
    seen(f"{sum(answers.values())} requests: {dict(answers)}; {after['rss_bytes'] >> 20} MiB")


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("kind", KINDS)
def test_streams_of_nonsense(site: Attack, seen: Any, kind: str, count: int) -> None:
    answers: Counter[str] = Counter()
    piece = KINDS[kind](pb.PushChunk.DESCRIPTOR) | st.binary(max_size=64).map(codec.encode_data)
    channel = site.channel("south")
    push = channel.stream_unary("/gossipseg.wire.Peer/Push")

    @settings(
        max_examples=count // 4,
        deadline=None,
        database=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(piece, max_size=5))
    def throw(pieces: list[bytes]) -> None:
        try:
            push(iter(pieces), timeout=20.0)
            code = grpc.StatusCode.OK
        except grpc.RpcError as e:
            code = e.code()
        answers[code.name] += 1
        assert code in REFUSALS and code is not grpc.StatusCode.OK, (code, pieces)

    throw()
    after = site.about()
    assert after["peak_bytes"] < BOUND_BYTES and after["streams"] == 0 and not site.errors()
    assert after["models"] == 0 and after["disk_bytes"] == 0
    assert site.serves() < 5.0
    seen(f"{sum(answers.values())} streams: {dict(answers)}; {after['rss_bytes'] >> 20} MiB")
