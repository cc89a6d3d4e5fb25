"""Slow streams, stalled requests, lying sizes, compression: one listed peer against everybody's time.

The victim's limits are shortened, so that a test takes seconds; what is bounded is the same.
"""

from __future__ import annotations

import gzip
import json
import secrets
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from blake3 import blake3

from gossipseg.core.types import ModelRef
from gossipseg.wire.codec import messages as codec
from tests.attacks.rig import BOUND_BYTES, MIB, PING, Attack, attack, call

LIMITS = {"request_s": 1.0, "stall_s": 1.5, "stall_bytes": 4096, "stream_s": 6.0}
PUSH = "/gossipseg.wire.Peer/Push"
SHAPES = {"w": (256, 256), "b": (16,)}


def safetensors() -> bytes:
    header, at = {}, 0
    for name, shape in SHAPES.items():
        size = 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(at)


DATA = safetensors()
MODEL = ModelRef(blake3(DATA).hexdigest(), len(DATA), 5, 50, 10)


@pytest.fixture(scope="module")
def slow_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attack]:
    with attack(tmp_path_factory.mktemp("slow"), **LIMITS) as made:
        yield made


def refusal(error: grpc.RpcError) -> str:
    trailing = dict(iter(error.trailing_metadata() or ()))
    return str(trailing.get("gossipseg-reason", error.code().name))


def gone(site: Attack) -> bool:
    """Whether no stream of anybody is under way, within some seconds."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if site.about()["streams"] == 0:
            return True
        threading.Event().wait(0.05)
    return False


def endless() -> ModelRef:
    """A model that nobody has heard of before, as large as its tensors may make it."""
    return replace(MODEL, hash=secrets.token_hex(32), size_bytes=3 * len(DATA))


def stream(channel: grpc.Channel, model: ModelRef, chunks: Iterator[bytes], offset: int = 0) -> str:
    """How it ended; the client's own patience is far longer than any of LIMITS."""

    def messages() -> Iterator[bytes]:
        yield codec.encode_header(codec.PushHeader(model, offset))
        yield from map(codec.encode_data, chunks)

    try:
        channel.stream_unary(PUSH)(messages(), timeout=60.0)
    except grpc.RpcError as e:
        return refusal(e)
    return "ok"


class Drip:
    """Byte by byte, until it is told to stop."""

    def __init__(self, pause_s: float, size: int = 1) -> None:
        self.pause_s, self.size, self.stop = pause_s, size, threading.Event()

    def __iter__(self) -> Iterator[bytes]:
        while not self.stop.is_set():
            yield b"\0" * self.size
            self.stop.wait(self.pause_s)


@pytest.mark.parametrize(
    "drip",
    [Drip(0.05), Drip(3600.0), Drip(0.1, 400)],
    ids=["one byte at a time", "one byte, then nothing", "just fast enough, and without an end"],
)
def test_a_slow_stream_is_cut_off_and_its_place_freed(slow_site: Attack, seen: Any, drip: Drip) -> None:
    channel, model = slow_site.channel("south"), endless()
    assert slow_site.promised(channel, model)
    begun = time.monotonic()
    ended = stream(channel, model, iter(drip))
    took_s = time.monotonic() - begun
    drip.stop.set()
    assert ended == "too_slow", "by the victim's limits; tests/wire/test_rekeying.py shows which, and when"
    assert gone(slow_site) and not slow_site.errors()
    seen(f"refused with too_slow after {took_s:.1f} s (limits: {LIMITS})")


def test_requests_that_never_come_to_their_end_hold_nobody_else_up(slow_site: Attack, seen: Any) -> None:
    """Calls of single requests whose message is never sent: without a bound they would hold every place."""
    calls, hold = [], threading.Event()

    def never() -> Iterator[bytes]:
        hold.wait(30)
        yield PING

    for _ in range(8):
        channel = slow_site.channel("south")
        for rpc in ("Ping", "Offer", "Hello", "Sync", "Push", "PushOffset") * 6:
            method = channel.stream_unary(f"/gossipseg.wire.Peer/{rpc}")
            calls.append(method.future(never(), timeout=25.0))
    waits = [slow_site.serves() for _ in range(3)]
    ended = [refusal(c.exception(timeout=25)) for c in calls]
    hold.set()
    assert set(ended) <= {"too_slow", "too_many_calls"}
    seen(f"{len(calls)} calls without a request: {', '.join(sorted(set(ended)))}; pings ≤ {max(waits):.1f} s")


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Attack]:
    """A victim that holds nothing against anybody yet."""
    with attack(tmp_path) as made:
        yield made


def test_sizes_that_lie(fresh: Attack, seen: Any) -> None:
    channel, reasons = fresh.channel("south"), []
    before = fresh.about()
    model = replace(endless(), size_bytes=len(DATA))
    for size in (1 << 62, 1 << 52, 3 << 30, 0):
        answer = call(channel, "Offer", _offer(replace(MODEL, size_bytes=size)))
        reasons.append(answer.name)
    assert fresh.promised(channel, model)
    lies = [
        (replace(model, size_bytes=1 << 40), DATA, 0, "not_offered"),
        (model, DATA, 4096, "wrong_offset"),
        (model, DATA[:-4096], 0, "cut_off"),
        (model, DATA[-4096:] + b"x", len(DATA) - 4096, "too_large"),
        (model, DATA, 0, "not_offered"),  # the promise is gone with that
    ]
    for said, sent, offset, expected in lies:
        ended = stream(channel, said, iter([sent]), offset)
        assert ended == expected
        reasons.append(ended)
    huge = replace(endless(), size_bytes=1 << 29)  # far more than its tensors take
    assert fresh.promised(channel, huge)
    assert stream(channel, huge, iter([DATA])) == "too_large"
    for length in (5 * MIB, 64 * MIB):  # a single message
        code = call(channel, "Ping", bytes(length))
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        reasons.append(code.name)
    after = fresh.about()
    assert after["rss_bytes"] < BOUND_BYTES and after["disk_bytes"] - before["disk_bytes"] < MIB
    assert not fresh.errors() and gone(fresh)
    seen(f"{', '.join(reasons)}; {after['rss_bytes'] >> 20} MiB")


def _offer(model: ModelRef) -> bytes:
    from gossipseg.core.messages import Offer

    return codec.encode_request(Offer(model))


def test_a_compressed_message_is_not_unpacked(slow_site: Attack, seen: Any) -> None:
    """gzip makes a thousandth of zeros: 4 MiB, the largest message, would be 4 GiB of memory."""
    before = slow_site.about()
    zeros = bytes(256 * MIB)
    codes = []
    for algorithm in (grpc.Compression.Gzip, grpc.Compression.Deflate):
        channel = slow_site.channel("south", **{"grpc.max_send_message_length": -1})
        codes.append(call(channel, "Ping", zeros, compression=algorithm, timeout_s=60.0).name)
        codes.append(call(channel, "Ping", PING, compression=algorithm).name)
    after = slow_site.about()
    assert "OK" not in codes[::2], codes
    assert after["peak_bytes"] - before["peak_bytes"] < 64 * MIB, "nothing was unpacked"
    assert slow_site.serves() and not slow_site.errors()
    packed = len(gzip.compress(zeros[: 16 * MIB])) * 16
    grown = (after["peak_bytes"] - before["peak_bytes"]) >> 20
    seen(f"256 MiB as {packed >> 10} KiB: {', '.join(codes)}; {grown} MiB more at the peak")


def test_the_place_of_a_stalled_stream_serves_the_next(slow_site: Attack, seen: Any) -> None:
    """Both places are taken by streams that stall; an honest peer's model gets through all the same."""
    attacker, honest = slow_site.channel("south"), slow_site.channel("west")
    drips, model = [Drip(3600.0) for _ in range(6)], endless()
    assert slow_site.promised(attacker, model)
    threads = [
        threading.Thread(target=stream, args=(slow_site.channel("south"), model, iter(d))) for d in drips
    ]
    for thread in threads:
        thread.start()
    begun, taken = time.monotonic(), False
    while not taken and time.monotonic() < begun + 60:
        assert slow_site.promised(attacker, model) or time.monotonic() > begun + 1, "it goes on offering"
        threading.Event().wait(0.2)
        taken = slow_site.promised(honest, MODEL) and stream(honest, MODEL, iter([DATA])) == "ok"
    took_s = time.monotonic() - begun
    for drip in drips:
        drip.stop.set()
    for thread in threads:
        thread.join(30)
    assert taken, "an honest model gets through"
    seen(f"6 stalled streams; an honest model was stored after {took_s:.1f} s")


def test_after_all_of_it_nothing_is_held(slow_site: Attack) -> None:
    """After all of it: nothing waits, what is in the store is one model and a few first bytes."""
    assert gone(slow_site)
    about = slow_site.about()
    assert about["waiting"] == 0 and about["disk_bytes"] < 4 * MIB
