"""What peers ask and send: a real node, a real store, and bytes that are not always what was promised."""

from __future__ import annotations

import asyncio
import errno
import json
import struct
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from gossipseg.bridge import intake as inbound
from gossipseg.bridge.expected_files import content_difference, most_bytes
from gossipseg.bridge.intake import Intake
from gossipseg.core import events as ev
from gossipseg.core import messages as ms
from gossipseg.core.node import NodeState
from gossipseg.core.types import ModelKind, ModelRef, Record
from gossipseg.errors import PeerRefused, PeerUnreachable
from gossipseg.store import ModelStore, read_safetensors_header
from tests.core.rig import TRAINING, Rig, alive, suspect

SCHEMA: dict[str, tuple[str, tuple[int, ...]]] = {"w": ("F16", (10, 20))}


def safetensors(shape: tuple[int, ...] = (10, 20), dtype: str = "F16", fill: bytes = b"\0") -> bytes:
    data = fill * (2 * shape[0] * shape[1])
    header = json.dumps({"w": {"dtype": dtype, "shape": shape, "data_offsets": [0, len(data)]}}).encode()
    return struct.pack("<Q", len(header)) + header + data


def ref(data: bytes, **changes: Any) -> ModelRef:
    return replace(ModelRef(blake3(data).hexdigest(), len(data), 5, 50, 10), **changes)


class Signatures:
    """Believes signatures that say so; knows b and c."""

    sites = frozenset({"b", "c"})

    def __init__(self) -> None:
        self.checked = 0

    def verify(self, site: str, payload: bytes, signature: bytes) -> bool:
        self.checked += 1
        return site in self.sites and signature == b"good"


class Bench:
    """An intake before a node in training that knows b and c."""

    def __init__(self, tmp_path: Path, *, reserve: int = 0, **node: Any) -> None:
        self.rig = Rig(("b", "c"), **node).start()
        self.rig.meet("b", "c")
        self.rig.ready()
        self.store, self.verifier = ModelStore(tmp_path / "models"), Signatures()
        self.forged: list[tuple[str, Record, int]] = []
        self.moved: list[float] = []
        self.events: list[ev.Event] = []
        self.now = 0.0
        self.intake = Intake(
            self.rig.node,
            self.inject,
            self.store,
            self.verifier,
            disk_reserve_bytes=reserve,
            moved=lambda *args: self.moved.append(args[-1]),
            forged=lambda *args: self.forged.append(args),
            clock=lambda: self.now,
        )
        self.intake.schemas = dict.fromkeys(("model", "update", "global"), SCHEMA)

    def inject(self, event: ev.Event) -> None:
        self.events.append(event)
        for effect in self.rig.do(event):
            if hasattr(effect, "token"):
                self.intake.respond(effect.token, effect.body)

    async def promise(self, data: bytes, frm: str = "b", **changes: Any) -> ModelRef:
        model = ref(data, **changes)
        reply = await self.intake.on_request(frm, ms.Offer(model))
        assert reply == ms.OfferReply("accept")
        return model

    async def push(self, model: ModelRef, data: bytes, frm: str = "b", chunk: int = 40) -> None:
        offset = await self.intake.push_offset(frm, model)
        await self.intake.on_push(frm, model, offset, chunks(data[offset:], chunk))

    async def refused(self, model: ModelRef, data: bytes, frm: str = "b") -> str:
        with pytest.raises(PeerRefused) as e:
            await self.push(model, data, frm)
        return e.value.reason


async def chunks(data: bytes, size: int = 40, cut: bool = False) -> AsyncIterator[bytes]:
    for i in range(0, len(data), size):
        yield data[i : i + size]
    if cut:
        raise PeerUnreachable("b", "cut_off")


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


# ---------------------------------------------------------------- requests


async def test_the_core_answers(bench: Bench) -> None:
    reply = await bench.intake.on_request("b", ms.Ping((), TRAINING))
    assert isinstance(reply, ms.Ack)


async def test_records_that_their_signer_did_not_sign_do_not_reach_the_core(bench: Bench) -> None:
    good = replace(alive("c", 5), signature=b"good")
    body = ms.Ping((replace(suspect("c", "b"), signature=b"bad"), good, alive("b", 9)), TRAINING)
    kept = bench.intake.verified("b", body)
    assert kept.records == (good,)
    assert [(peer, record.site, more) for peer, record, more in bench.forged] == [("b", "c", 1)]


async def test_a_flood_of_forgeries_is_told_once_and_ends_the_message(bench: Bench) -> None:
    """Signatures are checked between pings: 8,000 of them would hold up everything else for a second."""
    signed = [replace(alive("c", i + 1), signature=b"good") for i in range(4000)]
    forged = [alive("b", i + 1) for i in range(4000)]
    kept = bench.intake.verified("b", ms.Sync((signed[0], *forged, *signed), TRAINING))
    assert kept.records == (signed[0],) and bench.verifier.checked == 1 + inbound.FORGED_AT_MOST
    assert len(bench.forged) == 1 and bench.forged[0][2] == inbound.FORGED_AT_MOST - 1


async def test_of_a_message_as_many_records_are_looked_at_as_a_list_of_sites_has(bench: Bench) -> None:
    signed = [replace(alive("c", i + 1), signature=b"good") for i in range(4000)]
    strangers = [replace(alive("newcomer", i + 1), signature=b"good") for i in range(1000)]
    kept = bench.intake.verified("b", ms.Sync((*strangers, *signed), TRAINING))
    most = inbound.RECORDS + 2 * inbound.RECORDS_PER_SITE
    assert kept.records == tuple(signed[:most]) and bench.verifier.checked == most
    assert bench.forged == []


async def test_records_of_a_site_not_listed_here_are_no_forgery(bench: Bench) -> None:
    body = ms.Ping((alive("newcomer"),), TRAINING)
    assert bench.intake.verified("b", body).records == () and bench.forged == []


async def test_nobody_is_left_waiting(bench: Bench) -> None:
    waiting = asyncio.create_task(bench.intake.on_request("b", ms.IndirectPing("c", ())))
    await asyncio.sleep(0)
    assert bench.intake.waiting == 1
    waiting.cancel()
    await asyncio.wait({waiting})
    assert bench.intake.waiting == 0
    bench.intake.respond(99, ms.Ack((), TRAINING))


# ---------------------------------------------------------------- models


async def test_a_promised_model_is_stored_and_told(bench: Bench) -> None:
    data = safetensors()
    model = await bench.promise(data)
    await bench.push(model, data)
    assert bench.store.path(model.hash).read_bytes() == data
    assert bench.events[-1] == ev.ModelArrived("b", model) and bench.rig.node.inbox[0].model == model
    assert bench.moved[-1] == 1.0 and bench.moved == sorted(bench.moved)


async def test_the_core_hears_that_it_comes_every_few_seconds(bench: Bench) -> None:
    data = safetensors()
    model = await bench.promise(data)

    async def slowly() -> AsyncIterator[bytes]:
        async for chunk in chunks(data, 100):
            bench.now += 0.5
            yield chunk

    await bench.intake.on_push("b", model, 0, slowly())
    told = [e for e in bench.events if isinstance(e, ev.TransferBegan)]
    assert 2 <= len(told) <= 5


async def test_what_was_not_promised_is_not_taken(bench: Bench) -> None:
    data = safetensors()
    assert await bench.refused(ref(data), data) == "not_offered"
    model = await bench.promise(data)
    assert await bench.refused(model, data, frm="c") == "not_offered"
    assert await bench.refused(replace(model, size_bytes=1), data) == "not_offered"


async def test_a_cut_stream_goes_on_where_it_broke_off(bench: Bench) -> None:
    data = safetensors()
    model = await bench.promise(data)
    with pytest.raises(PeerUnreachable):
        await bench.intake.on_push("b", model, 0, chunks(data[:200], 40, cut=True))
    assert await bench.intake.push_offset("b", model) == 200
    with pytest.raises(PeerRefused, match="wrong_offset"):
        await bench.intake.on_push("b", model, 100, chunks(data[100:]))
    await bench.push(model, data)
    assert bench.store.has(model.hash)


async def test_a_stream_that_ends_early_keeps_the_promise(bench: Bench) -> None:
    data = safetensors()
    model = await bench.promise(data)
    assert await bench.refused(model, data[:-5]) == "incomplete"
    assert bench.rig.node.expects("b", model.hash) == model


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (safetensors((20, 10)), "schema_mismatch"),
        (safetensors(dtype="I16"), "schema_mismatch"),
        (b"\x80\x04pickled, and no safetensors file at all", "unreadable"),
    ],
)
async def test_a_model_that_does_not_fit_is_refused_counted_and_removed(
    bench: Bench, data: bytes, reason: str
) -> None:
    model = await bench.promise(data)
    assert await bench.refused(model, data) == reason
    assert not bench.store.has(model.hash) and bench.rig.node.reserved is None
    assert bench.rig.node.count("refused", "b") == 1


async def test_other_bytes_than_promised_are_refused(bench: Bench) -> None:
    data = safetensors()
    model = await bench.promise(data)
    assert await bench.refused(model, safetensors(fill=b"\1")) == "hash_mismatch"
    assert bench.store.list() == [] and list(bench.store.root.glob("partial/*")) == []


def left_over(tmp_path: Path, data: bytes, peer: str = "b") -> None:
    """An earlier life of the daemon has had a part of a model."""
    with ModelStore(tmp_path / "models").partial(ref(data).hash, peer) as partial:
        partial.write(data[:200])


async def test_a_part_that_a_power_cut_has_damaged_is_dropped_and_nobodys_offence(tmp_path: Path) -> None:
    data = safetensors(fill=b"\1")
    left_over(tmp_path, data)
    path = next((tmp_path / "models/partial").iterdir())
    path.write_bytes(path.read_bytes()[:100] + bytes(100))  # its tail never reached the disk
    bench = Bench(tmp_path)
    model = await bench.promise(data)
    assert await bench.refused(model, data) == "partial_damaged"
    assert bench.rig.node.count("offences", "b") == 0 and not list(path.parent.iterdir())
    assert await bench.promise(data) == model
    await bench.push(model, data)
    assert bench.store.has(model.hash)


async def test_the_excuse_of_an_old_part_holds_once_and_not_for_parts_of_this_life(tmp_path: Path) -> None:
    data, other = safetensors(fill=b"\1"), safetensors()
    left_over(tmp_path, data)
    bench = Bench(tmp_path)
    model = await bench.promise(data)
    assert await bench.refused(model, other) == "partial_damaged"
    await bench.promise(data)
    with pytest.raises(PeerUnreachable):
        await bench.intake.on_push("b", model, 0, chunks(other[:120], cut=True))
    assert await bench.refused(model, other) == "hash_mismatch"
    assert bench.rig.node.count("offences", "b") == 1


async def test_a_disk_that_cannot_be_read_is_not_the_senders_offence(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreadable(path: Path, **_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    data = safetensors()
    model = await bench.promise(data)
    monkeypatch.setattr(inbound, "read_safetensors", unreadable)
    assert await bench.refused(model, data) == "io_error"
    assert bench.rig.node.count("offences", "b") == 0 and not bench.store.has(model.hash)


async def test_a_model_for_which_there_is_no_room_is_refused_before_it_comes(tmp_path: Path) -> None:
    bench = Bench(tmp_path, reserve=1 << 60)
    model = await bench.promise(safetensors())
    assert await bench.refused(model, safetensors()) == "disk_full"
    assert bench.moved == [] and bench.rig.node.reserved is None


async def test_a_model_that_comes_too_late_is_refused_and_does_not_stay(bench: Bench) -> None:
    data = safetensors()
    model = await bench.promise(data)

    async def until_too_late() -> AsyncIterator[bytes]:
        async for chunk in chunks(data):
            yield chunk
        bench.rig.until(bench.rig.now + 4000)  # the promise has run out

    with pytest.raises(PeerRefused, match="too_late"):
        await bench.intake.on_push("b", model, 0, until_too_late())
    assert not bench.store.has(model.hash)


async def test_a_stream_ends_once_it_is_no_longer_wanted_and_leaves_nothing(bench: Bench) -> None:
    """A peer must not hold a place, and bytes of the disk, beyond what was promised to it."""
    data = safetensors()
    model = await bench.promise(data)

    async def slowly() -> AsyncIterator[bytes]:
        yield data[:100]
        bench.rig.until(bench.rig.now + 4000)  # the promise has run out
        yield data[100:200]
        raise AssertionError("it is read on")

    with pytest.raises(PeerRefused, match="too_late"):
        await bench.intake.on_push("b", model, 0, slowly())
    assert not list(bench.store.partials())


async def test_more_bytes_than_its_tensors_take_are_refused_before_they_come(bench: Bench) -> None:
    kinds: tuple[ModelKind, ...] = ("model", "update", "global")
    room = [most_bytes(kind, SCHEMA, bench.verifier.sites) for kind in kinds]
    assert room[0] == room[1] < room[2] < 100_000, "a common model may hold tensors for each site"
    model = await bench.promise(b"0" * 100_000)

    async def unread() -> AsyncIterator[bytes]:
        raise AssertionError("it is read")
        yield b""

    with pytest.raises(PeerRefused, match="too_large"):
        await bench.intake.on_push("b", model, 0, unread())
    assert not list(bench.store.partials())


async def test_a_call_broken_off_while_the_file_is_opened_leaves_no_lock(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = safetensors()
    model = await bench.promise(data)
    opened, go_on, real = threading.Event(), threading.Event(), bench.store.partial

    def slow(*args: Any, **kw: Any) -> Any:
        partial = real(*args, **kw)
        opened.set()
        go_on.wait(10)
        return partial

    monkeypatch.setattr(bench.store, "partial", slow)
    before = asyncio.all_tasks()
    asking = asyncio.create_task(bench.intake.push_offset("b", model))
    await asyncio.to_thread(opened.wait, 10)
    asking.cancel()
    await asyncio.wait({asking})
    go_on.set()
    monkeypatch.setattr(bench.store, "partial", real)
    await asyncio.gather(*(asyncio.all_tasks() - before))
    await asyncio.sleep(0)
    await bench.push(model, data)  # not "busy"
    assert bench.store.has(model.hash)


# ---------------------------------------------------------------- global models


def part(prefix: str, shape: list[int], begin: int) -> dict[str, Any]:
    return {f"{prefix}w": {"dtype": "F16", "shape": shape, "data_offsets": [begin, begin + 400]}}


@pytest.mark.parametrize(
    ("parts", "wrong"),
    [
        (part("", [10, 20], 0), ""),
        (part("b:", [10, 20], 0) | part("c:", [10, 20], 400), ""),
        (part("b:", [10, 20], 0) | part("x:", [10, 20], 400), "'x', which is no listed site"),
        (part("b:", [20, 10], 0), "w has shape [20, 10], expected [10, 20]"),
        (part("b:", [10, 20], 0) | part("", [10, 20], 400), ""),
        (part("b:", [10, 20], 0) | part("", [20, 10], 400), "w has shape [20, 10], expected [10, 20]"),
        (part("", [20, 10], 0) | part(":", [10, 20], 400), ":w is not among the shared tensors"),
        (part(":", [10, 20], 0), ":w is not among the shared tensors"),
    ],
)
def test_tensors_of_a_common_model_may_be_for_single_listed_sites(
    tmp_path: Path, parts: dict[str, Any], wrong: str
) -> None:
    header, path = json.dumps(parts).encode(), tmp_path / "common.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(400 * len(parts)))
    found = content_difference(read_safetensors_header(path), "global", SCHEMA, Signatures.sites)
    assert wrong in found and bool(found) == bool(wrong)
    as_update = content_difference(read_safetensors_header(path), "update", SCHEMA, Signatures.sites)
    assert bool(as_update) == (set(parts) != {"w"}), "an update is never for single sites"


@pytest.mark.parametrize(
    ("kind", "stranger", "taken"), [("global", "c", True), ("global", "x", False), ("update", "c", False)]
)
async def test_what_comes_is_checked_by_its_kind_and_the_listed_sites(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, kind: ModelKind, stranger: str, taken: bool
) -> None:
    parts = part("b:", [10, 20], 0) | part(f"{stranger}:", [10, 20], 400)
    header = json.dumps(parts).encode()
    data = struct.pack("<Q", len(header)) + header + bytes(800)
    model = ref(data, kind=kind)
    monkeypatch.setattr(NodeState, "expects", lambda self, frm, hash: model)
    if taken:
        await bench.push(model, data)
    else:
        assert await bench.refused(model, data) == "schema_mismatch"
    assert bench.store.has(model.hash) == taken


@pytest.mark.parametrize("dtype", ["I8", "F16"])
async def test_a_file_in_int8_is_checked_with_its_scales(bench: Bench, dtype: str) -> None:
    """Of a site that speaks float16, in a federation that speaks int8: refused by its header."""
    entries = {
        "w": {"dtype": dtype, "shape": [10, 20], "data_offsets": [0, 200 if dtype == "I8" else 400]},
    }
    end = entries["w"]["data_offsets"][1]  # type: ignore[index]
    if dtype == "I8":
        entries["w..scales"] = {"dtype": "F16", "shape": [4], "data_offsets": [end, end + 8]}
        end += 8
    header = json.dumps(entries).encode()
    data = struct.pack("<Q", len(header)) + header + bytes(end)
    schema = {"w": ("I8", (10, 20)), "w..scales": ("F16", (4,))}
    bench.intake.schemas = dict.fromkeys(("model", "update", "global"), schema)
    model = await bench.promise(data)
    if dtype == "I8":
        await bench.push(model, data)
        assert bench.store.has(model.hash)
    else:
        assert await bench.refused(model, data) == "schema_mismatch"


async def test_a_late_copy_of_a_file_in_use_does_not_take_it_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same global model may come twice; the second comes for nothing, and must not remove the first."""
    bench = Bench(tmp_path, exchange="rounds")
    data, stray = safetensors(), safetensors(fill=b"\1")
    (tmp_path / "export").write_bytes(data)
    bench.store.adopt(tmp_path / "export")
    bench.rig.round_done(ref(data, round=6))
    assert ref(data).hash in bench.rig.node.kept_models()
    for content in (data, stray):
        promises = iter([ref(content), ref(content)])  # at the question, at the begin, and not at the end
        monkeypatch.setattr(NodeState, "expects", lambda self, frm, hash, p=promises: next(p, None))
        assert await bench.refused(ref(content), content) == "too_late"
    assert [m.hash for m in bench.store.list()] == [ref(data).hash]
