"""What every transport must do, run against each of them with a real store behind it."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest

from gossipseg.core import messages as m
from gossipseg.core.types import (
    AliveRecord,
    ExchangeId,
    LeftRecord,
    ModelRef,
    Proposal,
    SuspectRecord,
    SwapTerms,
    UpdateTally,
)
from gossipseg.errors import DiskFull, LocalError, PeerError, PeerRefused, PeerUnreachable, PeerUntrusted
from tests.wire.harness import INFO, answer_of_each_kind, until

KIB = 1 << 10
RECORDS = (
    AliveRecord("north", 2**63 + 5, 4, "[2001:db8::7]:7443", 31, b"\x00\xffsigned"),
    LeftRecord("south-2", 9, 2, b"bye"),
    SuspectRecord("north", 4, "chase_db1", b"hm"),
)
CONTRACT = (("federation", '"demo"'), ("task.labels", '{"0": "background"}'))
RUN, LIST = "c0ffee00" * 4, "0badf00d" * 4
COMMON = Proposal(
    4, 1, ModelRef("0f" * 32, 9, 4, 0, 0, kind="global"), ("chase_db1", "north"), (("south-2", "dead"),)
)
UPDATE = ModelRef("1e" * 32, 7, 12, 1200, 17, 0.71, "update")
SWAP = ExchangeId("chase_db1", 1_764_000_000_000)
TERMS = SwapTerms(SWAP, "demo", "c0ffee", "chase_db1", "north", 17, 31, 400, 3, behind=True, signature="00ff")
THEIRS = SwapTerms(
    SWAP, "demo", "c0ffee", "north", "chase_db1", 31, 17, 900, 9, one_way=True, living="0badf00d"
)
SNAPSHOT = ModelRef("2d" * 32, 8, 3, 400, 17)
EXCHANGES = [
    (m.Hello(1, 3, "demo", CONTRACT, INFO), m.HelloReply(1, 2, "demo", (), INFO)),
    (m.Ping(RECORDS, INFO), m.Ack(RECORDS[:1], INFO)),
    (m.IndirectPing("south-2", RECORDS), m.IndirectAck("south-2", False, RECORDS[1:])),
    (m.Sync(RECORDS * 300, INFO), m.SyncReply(RECORDS * 300, INFO)),
    (m.Prepare(RUN, LIST, 4, 1), m.PrepareReply(True, 1, "", COMMON, None, UPDATE)),
    (
        m.Prepare(RUN, LIST, 4, 1, UpdateTally(95_000, ("chase_db1",), (("south-2", "dead"),))),
        m.PrepareReply(True, 1),
    ),
    (m.Prepare(RUN, LIST, 4, 1), m.PrepareReply(False, -1, "already_committed", None, COMMON)),
    (m.Fetch(RUN, LIST, "update", 4, 1, UPDATE.hash), m.FetchReply("accept", "", UPDATE)),
    (m.Fetch(RUN, LIST, "global", 4, 0, ""), m.FetchReply("accept", "", COMMON.model, COMMON)),
    (m.Accept(RUN, LIST, COMMON), m.AcceptReply("missing", "", 1)),
    (m.Commit(RUN, LIST, COMMON), m.CommitReply("known")),
    (m.SwapOffer(TERMS), m.SwapOfferReply("accept", "", THEIRS)),
    (m.SwapOffer(TERMS), m.SwapOfferReply("busy", "busy")),
    (m.SwapSnapshot(SWAP, SNAPSHOT), m.SwapSnapshotReply("wait", "not_opened")),
    (m.SwapReady(SWAP), m.SwapState("committed")),
    (m.SwapTold(SWAP, "dropped", "too_old"), m.SwapState("dropped", "too_old")),
]


def run(body):
    return asyncio.run(body())


@pytest.mark.parametrize(("request_", "reply"), EXCHANGES, ids=lambda x: type(x).__name__)
def test_a_request_and_its_reply_arrive_as_they_were_sent(transports, request_, reply):
    async def body():
        async with transports() as f:
            f.handlers["north"].answers = lambda peer, body: _value(reply)
            assert await f.transports["chase_db1"].request("north", request_, 5.0) == reply
            assert f.handlers["north"].requests == [("chase_db1", request_)]

    run(body)


@pytest.mark.parametrize("verdict", ["accept", "busy", "reject"])
def test_an_offer_is_answered(transports, verdict):
    async def body():
        async with transports() as f:
            model, _ = f.model(10)
            reply = m.OfferReply(verdict, "" if verdict == "accept" else "not_ready")
            f.handlers["north"].answers = lambda peer, body: _value(reply)
            for offered in (model, dataclasses.replace(model, dice_val=None)):
                assert await f.transports["chase_db1"].request("north", m.Offer(offered), 5.0) == reply
                assert f.handlers["north"].requests[-1][1] == m.Offer(offered)

    run(body)


def test_everybody_reaches_everybody_and_is_known_by_its_key(transports):
    async def body():
        async with transports() as f:
            for handler in f.handlers.values():
                handler.answers = lambda peer, body: _value(answer_of_each_kind(peer, body))
            pairs = [(a, b) for a in f.transports for b in f.transports if a != b]
            calls = [f.transports[a].request(b, m.Ping((), INFO), 5.0) for a, b in pairs]
            assert await asyncio.gather(*calls) == [m.Ack((), INFO)] * 6
            for name, handler in f.handlers.items():
                assert sorted(peer for peer, _ in handler.requests) == sorted(set(f.transports) - {name})

    run(body)


def test_what_the_handler_refuses_the_caller_is_told_with_the_reason(transports):
    async def refuse(peer, body):
        raise PeerRefused(peer, "contract_mismatch", "training.steps is 10 here")

    async def body():
        async with transports() as f:
            f.handlers["north"].answers = refuse
            with pytest.raises(PeerRefused) as e:
                await f.transports["chase_db1"].request("north", m.Ping((), INFO), 5.0)
            assert (e.value.peer, e.value.reason) == ("north", "contract_mismatch")
            assert "training.steps is 10 here" in e.value.detail

    run(body)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (DiskFull("/srv/secret/place is full"), "disk_full"),
        (KeyError("/srv/secret/place"), "internal"),
        (LocalError("/srv/secret/place cannot be read"), "internal"),
    ],
    ids=["disk_full", "a_bug", "local"],
)
def test_what_goes_wrong_at_the_other_side_is_a_refusal_without_its_paths(transports, error, reason, caplog):
    async def fail(peer, body):
        raise error

    async def body():
        async with transports() as f:
            f.handlers["north"].answers = fail
            with pytest.raises(PeerRefused) as e:
                await f.transports["chase_db1"].request("north", m.Ping((), INFO), 5.0)
            assert e.value.reason == reason
            assert "secret" not in str(e.value)
            f.handlers["north"].answers = None  # and it goes on answering
            assert await f.transports["chase_db1"].request("north", m.Ping((), INFO), 5.0)

    run(body)


def test_no_answer_in_time(transports):
    async def never(peer, body):
        await asyncio.Event().wait()

    async def body():
        async with transports() as f:
            f.handlers["north"].answers = never
            with pytest.raises(PeerUnreachable) as e:
                await f.transports["chase_db1"].request("north", m.Ping((), INFO), 0.05)
            assert e.value.reason == "timeout"

    run(body)


def test_a_site_that_has_gone_is_unreachable_and_answers_again_when_it_is_back(transports):
    async def body():
        async with transports() as f:
            a, b = f.transports["chase_db1"], f.transports["north"]
            assert await a.request("north", m.Ping((), INFO), 5.0)
            await b.close()
            with pytest.raises(PeerUnreachable) as e:
                await a.request("north", m.Ping((), INFO), 5.0)
            assert e.value.reason == "unreachable"
            again = f.rebuilt("north")
            await again.start(f.handlers["north"])
            assert await _when_back(a, "north") == m.Ack((), INFO)

    run(body)


def test_a_site_that_is_not_listed_is_not_called(transports):
    async def body():
        async with transports() as f:
            with pytest.raises(PeerUntrusted, match="not_listed"):
                await f.transports["north"].request("nobody", m.Ping((), INFO), 5.0)
            model, path = f.model(10)
            with pytest.raises(PeerUntrusted, match="not_listed"):
                await f.transports["north"].push("nobody", model, path, 5.0)

    run(body)


# ---------------------------------------------------------------- models


@pytest.mark.parametrize("size", [1, 64 * KIB, 64 * KIB + 1, 3 * 1024 * KIB + 17])
def test_a_promised_model_arrives_whole(transports, size):
    async def body():
        async with transports() as f:
            model, path = f.model(size)
            f.promise("north", model)
            told: list[int] = []
            await f.transports["chase_db1"].push("north", model, path, 20.0, told.append)
            assert f.handlers["north"].store.path(model.hash).read_bytes() == path.read_bytes()
            assert f.handlers["north"].offsets == [0]
            assert told[-1] == size and told == sorted(told)
            out, in_ = f.transports["chase_db1"].traffic("north"), f.transports["north"].traffic("chase_db1")
            assert size <= out.bytes_out < size + 1000
            assert size <= in_.bytes_in < size + 1000

    run(body)


def test_a_model_that_was_not_promised_does_not_pass(transports):
    async def body():
        async with transports() as f:
            model, path = f.model(200 * KIB)
            with pytest.raises(PeerRefused) as e:
                await f.transports["chase_db1"].push("north", model, path, 20.0)
            assert e.value.reason == "not_offered"
            assert f.handlers["north"].offsets == []
            assert f.transports["north"].traffic("chase_db1").bytes_in < 1000

    run(body)


def test_a_stream_that_the_receiver_broke_off_is_taken_up_where_it_stopped(transports):
    async def fail_half_way(peer, offset):
        if offset >= 256 * KIB:
            raise PeerRefused(peer, "disk_full", "half way")

    async def body():
        async with transports() as f:
            model, path = f.model(1024 * KIB)
            f.promise("north", model)
            handler = f.handlers["north"]
            handler.on_chunk = fail_half_way
            with pytest.raises(PeerRefused) as e:
                await f.transports["chase_db1"].push("north", model, path, 20.0)
            assert e.value.reason == "disk_full"
            handler.on_chunk = None
            sent = f.transports["north"].traffic("chase_db1").bytes_in
            await f.transports["chase_db1"].push("north", model, path, 20.0)
            assert handler.offsets == [0, 256 * KIB]
            rest = f.transports["north"].traffic("chase_db1").bytes_in - sent
            assert 768 * KIB <= rest < 769 * KIB
            assert handler.store.path(model.hash).read_bytes() == path.read_bytes()

    run(body)


def test_a_sender_that_starts_again_supersedes_its_earlier_stream(transports):
    async def body():
        async with transports() as f:
            model, path = f.model(1024 * KIB)
            f.promise("north", model)
            handler, stuck, go_on = f.handlers["north"], asyncio.Event(), asyncio.Event()

            async def stop_half_way(peer, offset):
                if offset == 512 * KIB:
                    stuck.set()
                    await go_on.wait()

            handler.on_chunk = stop_half_way
            first = asyncio.create_task(f.transports["chase_db1"].push("north", model, path, 20.0))
            await stuck.wait()
            first.cancel()
            with pytest.raises(asyncio.CancelledError):
                await first
            assert not handler.store.has(model.hash)
            second = asyncio.create_task(f.transports["chase_db1"].push("north", model, path, 20.0))
            ping = f.transports["chase_db1"].request("north", m.Ping((), INFO), 5.0)
            assert await ping  # by now the second push has been waiting behind the first one's handler
            assert handler.ended == []
            go_on.set()
            await second
            assert handler.ended == ["cut_off", "ok"]
            assert handler.offsets == [0, 512 * KIB]

    run(body)


def test_a_push_that_takes_too_long_is_given_up(transports):
    async def body():
        async with transports() as f:
            model, path = f.model(1024 * KIB)
            f.promise("north", model)
            handler, go_on, written = f.handlers["north"], asyncio.Event(), asyncio.Event()

            async def hold(peer, offset):
                written.set()
                await go_on.wait()

            handler.on_chunk = hold
            for timeout_s in (0.1, 1.0, 5.0, 25.0):  # on a busy machine no chunk may have come so soon
                with pytest.raises(PeerUnreachable) as e:
                    await f.transports["chase_db1"].push("north", model, path, timeout_s)
                assert e.value.reason == "timeout"
                if written.is_set():
                    break
                await until(lambda: handler.taking == 0)
            go_on.set()
            await until(lambda: handler.taking == 0)
            assert set(handler.ended) == {"cut_off"}
            handler.on_chunk = None
            await f.transports["chase_db1"].push("north", model, path, 60.0)
            *before, last = handler.offsets
            assert set(before) == {0} and last > 0
            assert handler.store.has(model.hash)

    run(body)


def test_bytes_that_are_not_the_promised_ones_are_refused_and_thrown_away(transports):
    async def body():
        async with transports() as f:
            model, path = f.model(300 * KIB)
            f.promise("north", model)
            path.write_bytes(path.read_bytes()[:-1] + b"!")
            with pytest.raises(PeerRefused) as e:
                await f.transports["chase_db1"].push("north", model, path, 20.0)
            assert e.value.reason == "hash_mismatch"
            handler = f.handlers["north"]
            assert not handler.store.has(model.hash)
            assert await handler.push_offset("chase_db1", model) == 0

    run(body)


def test_a_file_that_is_not_as_long_as_declared_is_not_sent(transports):
    async def body():
        async with transports() as f:
            model, path = f.model(300 * KIB)
            f.promise("north", model)
            path.write_bytes(path.read_bytes() + b"more")
            with pytest.raises(LocalError, match="307204 bytes, 307200 were offered"):
                await f.transports["chase_db1"].push("north", model, path, 20.0)
            path.unlink()
            with pytest.raises(LocalError, match="No such file"):
                await f.transports["chase_db1"].push("north", model, path, 20.0)

    run(body)


def test_no_more_models_come_in_at_once_than_allowed(transports):
    async def body():
        async with transports(max_parallel_transfers=1) as f:
            handler, gate = f.handlers["north"], asyncio.Event()

            async def hold(peer, offset):
                await gate.wait()

            handler.on_chunk = hold
            pushes = []
            for seed, site in ((1, "chase_db1"), (2, "south-2")):
                model, path = f.model(128 * KIB, seed=seed)
                f.promise("north", model)
                push = f.transports[site].push("north", model, path, 20.0)
                pushes.append(asyncio.create_task(push))
            await until(lambda: handler.taking == 1)
            await f.transports["chase_db1"].request("north", m.Ping((), INFO), 5.0)
            await f.transports["south-2"].request("north", m.Ping((), INFO), 5.0)
            gate.set()
            await asyncio.gather(*pushes)
            assert handler.most_at_once == 1
            assert handler.ended == ["ok", "ok"]

    run(body)


def test_no_more_models_go_out_at_once_than_allowed(transports):
    async def body():
        async with transports(max_parallel_transfers=1) as f:
            gate, going = asyncio.Event(), []

            async def hold(peer, offset):
                going.append(peer)
                await gate.wait()

            pushes = []
            for seed, site in ((1, "north"), (2, "south-2")):
                f.handlers[site].on_chunk = hold
                model, path = f.model(64 * KIB, seed=seed)
                f.promise(site, model)
                push = f.transports["chase_db1"].push(site, model, path, 20.0)
                pushes.append(asyncio.create_task(push))
            await until(lambda: len(going) == 1)
            await f.transports["chase_db1"].request("south-2", m.Ping((), INFO), 5.0)
            assert len(going) == 1
            gate.set()
            await asyncio.gather(*pushes)

    run(body)


def test_messages_pass_beside_a_model_that_is_stuck(transports):
    async def body():
        async with transports() as f:
            model, path = f.model(4 * 1024 * KIB)
            f.promise("north", model)
            handler, gate = f.handlers["north"], asyncio.Event()

            async def hold(peer, offset):
                await gate.wait()

            handler.on_chunk = hold
            push = asyncio.create_task(f.transports["chase_db1"].push("north", model, path, 20.0))
            await until(lambda: handler.taking == 1)
            for _ in range(5):
                assert await f.transports["chase_db1"].request("north", m.Ping((), INFO), 5.0)
            assert not push.done()
            gate.set()
            await push

    run(body)


# ---------------------------------------------------------------- the list changes, the end


def test_a_removed_site_is_refused_at_its_next_call_and_heard_again_when_listed_again(transports):
    async def body():
        async with transports() as f:
            a = f.transports["chase_db1"]
            assert await a.request("north", m.Ping((), INFO), 5.0)
            f.relist("north", ["south-2"])
            before = len(f.handlers["north"].requests)
            with pytest.raises(PeerUntrusted):
                await a.request("north", m.Ping((), INFO), 5.0)
            model, path = f.model(10)
            f.promise("north", model)
            with pytest.raises(PeerUntrusted):
                await a.push("north", model, path, 5.0)
            assert len(f.handlers["north"].requests) == before
            assert f.handlers["north"].offsets == []
            f.relist("north", ["chase_db1", "south-2"])
            assert await _when_back(a, "north")

    run(body)


def test_a_site_removed_in_the_middle_of_its_stream_is_cut_off_at_its_next_chunk(transports):
    async def body():
        async with transports() as f:
            model, path = f.model(1024 * KIB)
            f.promise("north", model)
            handler = f.handlers["north"]

            async def remove_it(peer, offset):
                if offset == 256 * KIB:
                    f.relist("north", ["south-2"])

            handler.on_chunk = remove_it
            with pytest.raises(PeerUntrusted):
                await f.transports["chase_db1"].push("north", model, path, 20.0)
            await until(lambda: handler.taking == 0)
            assert handler.ended == ["removed"]
            with handler.store.partial(model.hash, "chase_db1") as partial:
                assert partial.offset == 256 * KIB

    run(body)


def test_closing_ends_what_is_under_way(transports):
    async def body():
        async with transports() as f:
            model, path = f.model(1024 * KIB)
            f.promise("north", model)
            handler, gate = f.handlers["north"], asyncio.Event()

            async def hold(peer, offset):
                await gate.wait()

            handler.on_chunk = hold
            push = asyncio.create_task(f.transports["chase_db1"].push("north", model, path, 20.0))
            await until(lambda: handler.taking == 1)
            gate_opens = asyncio.get_running_loop().call_later(0.05, gate.set)
            await f.transports["north"].close()
            gate_opens.cancel()
            with pytest.raises(PeerError):
                await push
            assert handler.taking == 0
            with pytest.raises(PeerError):
                await f.transports["south-2"].request("north", m.Ping((), INFO), 5.0)

    run(body)


def test_closing_the_caller_ends_its_calls_as_unreachable(transports):
    async def never(peer, body):
        await asyncio.Event().wait()

    async def body():
        async with transports() as f:
            f.handlers["north"].answers = never
            call = f.transports["chase_db1"].request("north", m.Ping((), INFO), 20.0)
            task = asyncio.create_task(call)
            await until(lambda: len(f.handlers["north"].requests) == 1)
            await f.transports["chase_db1"].close()
            with pytest.raises(PeerUnreachable):
                await task

    run(body)


def test_an_occupied_address_is_named(transports):
    async def body():
        async with transports() as f:
            with pytest.raises(LocalError) as e:
                await f.rebuilt("north").start(f.handlers["north"])
            assert f.transports["north"].address in str(e.value)
            assert "already in use" in str(e.value)

    run(body)


def test_a_hint_is_tried_beside_the_listed_address_and_never_displaces_it(transports):
    async def body():
        async with transports() as f:
            a, north = f.transports["chase_db1"], f.endpoints["north"]
            elsewhere = "127.0.0.1:1" if f.kind == "grpc" else "nowhere:1"
            moved = dataclasses.replace(north, address=elsewhere)
            a.set_peers({"north": moved, "south-2": f.endpoints["south-2"]})
            with pytest.raises(PeerUnreachable):
                await a.request("north", m.Ping((), INFO), 5.0)
            a.hint_address("north", f.endpoints["south-2"].address)  # a liar: south-2 listens there
            a.hint_address("nobody", "x:1")
            with pytest.raises(PeerError):
                await a.request("north", m.Ping((), INFO), 5.0)
            assert f.handlers["south-2"].requests == []
            a.hint_address("north", north.address)
            assert await a.request("north", m.Ping((), INFO), 5.0)
            model, path = f.model(100 * KIB)
            f.promise("north", model)
            await a.push("north", model, path, 20.0)
            assert f.handlers["north"].store.has(model.hash)

    run(body)


async def _value(x):
    return x


async def _when_back(transport, site):
    """Ask until it answers; the federation's deadline bounds it."""
    while True:
        try:
            return await transport.request(site, m.Ping((), INFO), 1.0)
        except (PeerUnreachable, PeerUntrusted):
            await asyncio.sleep(0)
