"""Messages as bytes: exact there and back, and strict on what a peer may have written."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossipseg.core import messages as m
from gossipseg.core.types import (
    AliveRecord,
    ExchangeId,
    LeftRecord,
    Manifest,
    ModelRef,
    PeerInfo,
    Phase,
    Proposal,
    SuspectRecord,
    SwapTerms,
    UpdateTally,
)
from gossipseg.errors import PeerRefused
from gossipseg.wire import peer_pb2 as pb
from gossipseg.wire.codec import messages as codec
from gossipseg.wire.params import CHUNK_BYTES

sites = st.from_regex(r"[a-z0-9][a-z0-9_-]{0,20}", fullmatch=True)
counts = st.integers(0, 2**53 - 1)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
signatures = st.binary(max_size=80)
records = st.one_of(
    st.builds(AliveRecord, sites, st.integers(0, 2**64 - 1), counts, texts, counts, signatures),
    st.builds(LeftRecord, sites, st.integers(0, 2**64 - 1), counts, signatures),
    st.builds(SuspectRecord, sites, counts, sites, signatures),
)
some = st.lists(records, max_size=5).map(tuple)
infos = st.builds(PeerInfo, counts, counts, counts, st.sampled_from(Phase), texts, counts)
kinds = st.sampled_from(["model", "update", "global"])
manifests = st.builds(
    Manifest,
    schema=texts,
    dtype=texts,
    federation=texts,
    contract=texts,
    maker=sites,
    kind=kinds,
    run=st.just("") | st.from_regex(r"[0-9a-f]{32}", fullmatch=True),
    round=counts,
    attempt=st.integers(0, 2**31 - 1),
    sequence=counts,
    hash=st.from_regex(r"[0-9a-f]{64}", fullmatch=True),
    size_bytes=counts,
    steps=counts,
    cases=counts,
    dice_val=st.none() | st.floats(allow_nan=False, allow_infinity=False),
    signature=signatures.map(bytes.hex),
)
models = st.builds(
    ModelRef,
    st.from_regex(r"[0-9a-f]{64}", fullmatch=True),
    st.integers(1, 2**53 - 1),
    counts,
    counts,
    counts,
    st.none() | st.floats(allow_nan=False, allow_infinity=False),
    kinds,
    st.none() | manifests,
)
fingerprints = st.from_regex(r"[0-9a-f]{32}", fullmatch=True)
attempts = st.integers(0, 2**31 - 1)
codes = st.from_regex(r"[a-z0-9_]{0,20}", fullmatch=True)


@st.composite
def proposals(draw):
    there = draw(st.lists(st.tuples(sites, st.none() | codes), max_size=8, unique_by=lambda x: x[0]))
    contributors = tuple(sorted(site for site, reason in there if reason is None))
    absent = tuple(sorted((site, reason) for site, reason in there if reason is not None))
    round = draw(st.integers(1, 2**53 - 1))
    return Proposal(round, draw(attempts), draw(models), contributors, absent)


@st.composite
def tallies(draw):
    proposal = draw(proposals())
    return UpdateTally(draw(st.none() | counts), proposal.contributors, proposal.absent)


swaps = st.builds(ExchangeId, sites, counts)
terms = st.builds(
    SwapTerms,
    swaps,
    texts,
    texts,
    sites,
    sites,
    *[counts] * 4,
    behind=st.booleans(),
    one_way=st.booleans(),
    position=counts,
    stage=counts,
    living=texts,
    signature=signatures.map(bytes.hex),
)
standings = st.sampled_from(["open", "committed", "dropped"])
maybe = st.none() | proposals()
promised = st.integers(-1, 2**31 - 1)
verdicts = st.sampled_from(["accept", "busy", "reject"])
contracts = st.dictionaries(texts, texts, max_size=5).map(lambda d: tuple(sorted(d.items())))
protocols = st.integers(0, 100)
hello = (protocols, st.integers(100, 200), texts, contracts, infos)
requests = st.one_of(
    st.builds(m.Hello, *hello),
    st.builds(m.Ping, some, infos),
    st.builds(m.IndirectPing, sites, some),
    st.builds(m.Sync, some, infos),
    st.builds(m.Offer, models),
    st.builds(m.Prepare, fingerprints, fingerprints, counts, attempts, st.none() | tallies()),
    st.builds(
        m.Fetch,
        fingerprints,
        fingerprints,
        kinds,
        counts,
        attempts,
        st.just("") | st.from_regex(r"[0-9a-f]{64}", fullmatch=True),
    ),
    st.builds(m.Accept, fingerprints, fingerprints, proposals()),
    st.builds(m.Commit, fingerprints, fingerprints, proposals()),
    st.builds(m.SwapOffer, terms),
    st.builds(m.SwapSnapshot, swaps, models),
    st.builds(m.SwapReady, swaps),
    st.builds(m.SwapTold, swaps, standings, codes),
)
states = st.builds(m.SwapState, standings, codes)
REPLIES = {
    m.Hello: st.builds(m.HelloReply, *hello),
    m.Ping: st.builds(m.Ack, some, infos),
    m.IndirectPing: st.builds(m.IndirectAck, sites, st.booleans(), some),
    m.Sync: st.builds(m.SyncReply, some, infos),
    m.Offer: st.builds(
        m.OfferReply, st.sampled_from(["accept", "busy", "reject"]), st.sampled_from(["", "too_large"])
    ),
    m.Prepare: st.builds(
        m.PrepareReply, st.booleans(), promised, codes, maybe, maybe, st.none() | models, codes
    ),
    m.Fetch: st.builds(m.FetchReply, verdicts, codes, st.none() | models, maybe),
    m.Accept: st.builds(
        m.AcceptReply, st.sampled_from(["stored", "missing", "reject"]), codes, promised, maybe
    ),
    m.Commit: st.builds(m.CommitReply, st.sampled_from(["known", "reject"]), codes),
    m.SwapOffer: st.builds(m.SwapOfferReply, st.just("accept"), codes, terms)
    | st.builds(m.SwapOfferReply, st.sampled_from(["busy", "reject"]), codes),
    m.SwapSnapshot: st.builds(
        m.SwapSnapshotReply, st.sampled_from(["accept", "here", "wait", "reject"]), codes
    ),
    m.SwapReady: states,
    m.SwapTold: states,
}


@given(requests, st.data())
def test_there_and_back(request_, data):
    rpc = codec.kind_of(request_).rpc
    assert codec.decode_request(rpc, codec.encode_request(request_), "a") == request_
    reply = data.draw(REPLIES[type(request_)])
    assert codec.decode_reply(request_, codec.encode_reply(reply), "a") == reply


@given(models, st.integers(0, 2**53 - 1))
def test_a_streams_header_there_and_back(model, offset):
    header = codec.PushHeader(model, offset)
    assert codec.decode_chunk(codec.encode_header(header), "a") == header


@pytest.mark.parametrize("size", [0, 1, 127, 128, 16383, 16384, CHUNK_BYTES])
def test_data_is_written_byte_for_byte_as_protobuf_writes_it(size):
    data = bytes(i % 251 for i in range(size))
    written = codec.encode_data(data)
    assert written == pb.PushChunk(data=data).SerializeToString()
    assert codec.decode_chunk(written, "a") == data


def test_data_that_another_protobuf_wrote_differently_is_read_all_the_same():
    padded = b"\x12\x83\x80\x00abc"  # a length of 3 in three bytes
    assert pb.PushChunk.FromString(padded).data == b"abc"
    assert codec.decode_chunk(padded, "a") == b"abc"
    newer = codec.encode_data(b"abc") + b"\x7a\x01x"  # with a field of a later version
    assert codec.decode_chunk(newer, "a") == b"abc"


def test_unknown_fields_are_skipped():
    data = codec.encode_request(m.Offer(model())) + b"\xfa\x01\x03new"
    assert codec.decode_request("Offer", data, "a") == m.Offer(model())


@given(st.sampled_from(sorted(codec.KINDS)), st.binary(max_size=200))
def test_any_bytes_are_a_message_or_malformed(rpc, data):
    for read in (
        lambda: codec.decode_request(rpc, data, "a"),
        lambda: codec.decode_chunk(data, "a"),
        lambda: codec.decode_offset_request(data, "a"),
        lambda: codec.decode_offset(data, "a", model()),
    ):
        try:
            read()
        except PeerRefused as e:
            assert (e.peer, e.reason) == ("a", "malformed")


def model(**changed):
    return ModelRef(**{"hash": "0f" * 32, "size_bytes": 9, "round": 1, "steps": 2, "cases": 3} | changed)


def proposed():
    return Proposal(1, 0, model(kind="global"), ("a", "b"), (("c", "dead"),))


def test_a_model_of_a_sender_that_knows_no_kinds_is_one_for_gossip():
    data = pb.OfferRequest(model=pb.ModelRef(hash="0f" * 32, size_bytes=9)).SerializeToString()
    assert codec.decode_request("Offer", data, "a").model.kind == "model"


def info(**changed):
    return pb.PeerInfo(**{"round": 1, "phase": pb.PHASE_TRAINING} | changed)


def ping(*records_, **changed):
    return pb.PingRequest(records=records_, info=info(**changed))


def alive(**changed):
    return pb.Record(alive=pb.AliveRecord(**{"site": "north"} | changed))


def offer(**changed):
    return pb.OfferRequest(model=pb.ModelRef(**{"hash": "0f" * 32, "size_bytes": 9} | changed))


def hello_(**changed):
    return pb.HelloRequest(**{"protocol_min": 1, "protocol_max": 1, "info": info()} | changed)


KEY = "c0ffee00" * 4


def prepare(**changed):
    return pb.PrepareRequest(**{"run": KEY, "sites": KEY, "round": 1, "attempt": 0} | changed)


def fetch(**changed):
    return pb.FetchRequest(**{"run": KEY, "sites": KEY, "round": 1} | changed)


def proposal(**changed):
    ref = pb.ModelRef(hash="0f" * 32, size_bytes=9, kind=pb.MODEL_KIND_GLOBAL)
    return pb.Proposal(**{"round": 1, "model": ref, "contributors": ["a", "b"]} | changed)


def accept(**changed):
    return pb.AcceptRequest(run=KEY, sites=KEY, proposal=proposal(**changed))


def absent(*names, reason="dead"):
    return [pb.Absence(site=name, reason=reason) for name in names]


def entries(*keys):
    return [pb.ContractEntry(key=key, value="1") for key in keys]


SWAP = pb.ExchangeId(asker="north", number=7)


def terms_(**changed):
    return pb.SwapTerms(**{"swap": SWAP, "maker": "north", "partner": "south"} | changed)


def swap_offer(**changed):
    return pb.SwapOfferRequest(terms=terms_(**changed))


BAD = {
    "no terms": ("SwapOffer", pb.SwapOfferRequest(), "terms is missing"),
    "terms of no swap": (
        "SwapOffer",
        pb.SwapOfferRequest(terms=pb.SwapTerms(maker="north", partner="south")),
        "swap is missing",
    ),
    "a swap that nobody asked for": ("SwapOffer", swap_offer(swap=pb.ExchangeId(number=7)), "no site"),
    "a number beyond all measure": (
        "SwapOffer",
        swap_offer(swap=pb.ExchangeId(asker="north", number=2**53)),
        "number",
    ),
    "terms that nobody made": ("SwapOffer", swap_offer(maker=""), "no site"),
    "terms for nobody": ("SwapOffer", swap_offer(partner="So uth"), "no site"),
    "cases beyond all measure": ("SwapOffer", swap_offer(own_cases=2**53), "own_cases"),
    "others' cases beyond all measure": ("SwapOffer", swap_offer(partner_cases=2**63), "partner_cases"),
    "steps beyond all measure": ("SwapOffer", swap_offer(steps=2**53), "steps"),
    "a position beyond all measure": ("SwapOffer", swap_offer(position=2**53), "position"),
    "a stage beyond all measure": ("SwapOffer", swap_offer(stage=2**53), "stage"),
    "terms of a long federation": ("SwapOffer", swap_offer(federation="x" * 257), "federation"),
    "terms of a long contract": ("SwapOffer", swap_offer(contract="x" * 257), "contract"),
    "a long list of the living": ("SwapOffer", swap_offer(living="x" * 257), "living"),
    "terms with a long signature": ("SwapOffer", swap_offer(signature=b"s" * 1025), "signature"),
    "a snapshot of no swap": (
        "SwapSnapshot",
        pb.SwapSnapshotRequest(model=pb.ModelRef(hash="0f" * 32, size_bytes=9)),
        "swap is missing",
    ),
    "no snapshot": ("SwapSnapshot", pb.SwapSnapshotRequest(swap=SWAP), "model is missing"),
    "a snapshot of no bytes": (
        "SwapSnapshot",
        pb.SwapSnapshotRequest(swap=SWAP, model=pb.ModelRef(hash="0f" * 32)),
        "no bytes",
    ),
    "ready for nothing": ("SwapReady", pb.SwapReadyRequest(), "swap is missing"),
    "ready for a nameless swap": ("SwapReady", pb.SwapReadyRequest(swap=pb.ExchangeId()), "no site"),
    "told of nothing": ("SwapTold", pb.SwapToldRequest(standing=1), "swap is missing"),
    "told nothing": ("SwapTold", pb.SwapToldRequest(swap=SWAP), "unknown standing 0"),
    "a standing of later times": (
        "SwapTold",
        pb.SwapToldRequest(swap=SWAP, standing=4),
        "unknown standing 4",
    ),
    "told in prose": (
        "SwapTold",
        pb.SwapToldRequest(swap=SWAP, standing=3, reason="I am sorry."),
        "lower_case",
    ),
    "no info": ("Ping", pb.PingRequest(), "info is missing"),
    "no phase": ("Ping", ping(phase=0), "unknown phase 0"),
    "a later phase": ("Ping", ping(phase=99), "unknown phase 99"),
    "a round beyond all measure": ("Ping", ping(round=2**53), "round"),
    "a long contract": ("Ping", ping(contract="x" * 257), "contract"),
    "an empty record": ("Ping", ping(pb.Record()), "no known kind"),
    "no name": ("Ping", ping(alive(site="")), "no site"),
    "a path for a name": ("Ping", ping(alive(site="../../etc")), "no site"),
    "a long name": ("Ping", ping(alive(site="n" * 64)), "no site"),
    "capitals": ("Ping", ping(alive(site="North")), "no site"),
    "a long address": ("Ping", ping(alive(address="h" * 300)), "address"),
    "a long signature": ("Ping", ping(alive(signature=b"s" * 1025)), "signature"),
    "a nameless accuser": (
        "Ping",
        ping(pb.Record(suspect=pb.SuspectRecord(site="north", accuser=""))),
        "no site",
    ),
    "too many records": ("Sync", pb.SyncRequest(records=[alive()] * 8193, info=info()), "8193 records"),
    "a nameless target": ("IndirectPing", pb.IndirectPingRequest(), "no site"),
    "no model": ("Offer", pb.OfferRequest(), "model is missing"),
    "a short hash": ("Offer", offer(hash="0f"), "64 hex"),
    "a hash that is a path": ("Offer", offer(hash="../" * 21 + "x"), "64 hex"),
    "capitals in a hash": ("Offer", offer(hash="0F" * 32), "64 hex"),
    "no bytes": ("Offer", offer(size_bytes=0), "no bytes"),
    "a size beyond all measure": ("Offer", offer(size_bytes=2**63), "size_bytes"),
    "a Dice that is not a number": ("Offer", offer(dice_val=float("nan")), "finite"),
    "an empty range": ("Hello", hello_(protocol_min=2), "protocol range"),
    "a key twice": ("Hello", hello_(contract=entries("a", "a")), "sorted"),
    "keys out of order": ("Hello", hello_(contract=entries("b", "a")), "sorted"),
    "committed beyond all measure": ("Ping", ping(committed=2**53), "committed"),
    "a kind of model of later times": ("Offer", offer(kind=9), "unknown kind of model 9"),
    "no run": ("Prepare", prepare(run=""), "run must be"),
    "a run that is no fingerprint": ("Prepare", prepare(run="C0FFEE00" * 4), "run must be"),
    "a list that is no fingerprint": ("Fetch", fetch(sites="c0ffee"), "sites must be"),
    "a deadline beyond all measure": ("Prepare", prepare(tally=pb.Tally(deadline_ms=2**53)), "deadline_ms"),
    "delivered twice": ("Prepare", prepare(tally=pb.Tally(delivered=["a", "a"])), "sorted"),
    "delivered and left out": (
        "Prepare",
        prepare(tally=pb.Tally(delivered=["a"], left_out=absent("a"))),
        "both contributes",
    ),
    "left out in prose": (
        "Prepare",
        prepare(tally=pb.Tally(left_out=absent("a", reason="It died."))),
        "lower_case",
    ),
    "too many delivered": (
        "Prepare",
        prepare(tally=pb.Tally(delivered=[f"s{i:04d}" for i in range(4097)])),
        "4097",
    ),
    "an attempt beyond all measure": ("Prepare", prepare(attempt=2**31), "attempt"),
    "a file that is a path": ("Fetch", fetch(hash="../" * 21 + "x"), "64 hex"),
    "an unknown kind of file": ("Fetch", fetch(kind=77), "unknown kind of model 77"),
    "nothing proposed": ("Accept", pb.AcceptRequest(run=KEY, sites=KEY), "proposal is missing"),
    "a global model of round 0": (
        "Commit",
        pb.CommitRequest(run=KEY, sites=KEY, proposal=proposal(round=0)),
        "no round",
    ),
    "no global model": (
        "Accept",
        pb.AcceptRequest(run=KEY, sites=KEY, proposal=pb.Proposal(round=1)),
        "model is missing",
    ),
    "a contributor twice": ("Accept", accept(contributors=["a", "a"]), "sorted"),
    "contributors out of order": ("Accept", accept(contributors=["b", "a"]), "sorted"),
    "a nameless contributor": ("Accept", accept(contributors=[""]), "no site"),
    "an absent site twice": ("Accept", accept(absent=absent("c", "c")), "sorted"),
    "both there and absent": ("Accept", accept(absent=absent("b")), "both contributes"),
    "a reason in prose": ("Accept", accept(absent=absent("c", reason="It died.")), "lower_case"),
    "a long reason": ("Accept", accept(absent=absent("c", reason="x" * 65)), "lower_case"),
    "too many contributors": ("Accept", accept(contributors=[f"s{i:04d}" for i in range(4097)]), "4097"),
    "too many entries": ("Hello", hello_(contract=entries(*map(str, range(1025)))), "1025 contract"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_no_message_may_say_is_malformed(case):
    rpc, message, what = BAD[case]
    with pytest.raises(PeerRefused, match=what) as e:
        codec.decode_request(rpc, message.SerializeToString(), "mallory")
    assert (e.value.peer, e.value.reason) == ("mallory", "malformed")


TERMS = SwapTerms(ExchangeId("north", 7), "f", "c", "north", "south", 3, 3, 10, 1, signature="0f")


def test_no_one_else_marks_terms_and_the_receivers_mark_stays_here():
    marked = m.SwapOffer(dataclasses.replace(TERMS, fault="terms_forged"))
    assert codec.decode_request("SwapOffer", codec.encode_request(marked), "a") == m.SwapOffer(TERMS)


def test_a_reason_in_prose_goes_out_as_other():
    told = m.SwapTold(TERMS.swap, "dropped", "Disk /dev/sda is full!")
    data = codec.encode_request(told)
    assert codec.decode_request("SwapTold", data, "a") == m.SwapTold(TERMS.swap, "dropped", "other")


def test_replies_are_judged_as_strictly():
    asked = m.Offer(model())
    for reply in (pb.OfferResponse(), pb.OfferResponse(verdict=pb.VERDICT_BUSY, reason="Not Now\n")):
        with pytest.raises(PeerRefused, match="malformed"):
            codec.decode_reply(asked, reply.SerializeToString(), "mallory")
    key = "c0ffee00" * 4
    for asked_, reply_ in (
        (m.Prepare(key, key, 1, 0), pb.PrepareResponse(reason="Not Now")),
        (m.Prepare(key, key, 1, 0), pb.PrepareResponse(promised=2**31)),
        (m.Prepare(key, key, 1, 0), pb.PrepareResponse(update=pb.ModelRef(hash="x"))),
        (m.Prepare(key, key, 1, 0), pb.PrepareResponse(waiting_for="Mondays")),
        (m.Fetch(key, key, "global", 1, 0, ""), pb.FetchResponse()),
        (m.Fetch(key, key, "global", 1, 0, ""), pb.FetchResponse(verdict=1, proposal=pb.Proposal())),
        (m.Accept(key, key, proposed()), pb.AcceptResponse()),
        (m.Commit(key, key, proposed()), pb.CommitResponse(reason="?")),
        (m.SwapOffer(TERMS), pb.SwapOfferResponse()),
        (m.SwapOffer(TERMS), pb.SwapOfferResponse(verdict=pb.VERDICT_ACCEPT)),
        (m.SwapOffer(TERMS), pb.SwapOfferResponse(verdict=pb.VERDICT_BUSY, terms=terms_())),
        (m.SwapOffer(TERMS), pb.SwapOfferResponse(verdict=pb.VERDICT_REJECT, reason="Not Now")),
        (m.SwapSnapshot(TERMS.swap, model()), pb.SwapSnapshotResponse()),
        (m.SwapSnapshot(TERMS.swap, model()), pb.SwapSnapshotResponse(verdict=5)),
        (m.SwapSnapshot(TERMS.swap, model()), pb.SwapSnapshotResponse(verdict=4, reason="?")),
        (m.SwapReady(TERMS.swap), pb.SwapStateResponse()),
        (m.SwapReady(TERMS.swap), pb.SwapStateResponse(standing=9)),
        (m.SwapTold(TERMS.swap, "open"), pb.SwapStateResponse(standing=1, reason="No!")),
    ):
        with pytest.raises(PeerRefused, match="malformed"):
            codec.decode_reply(asked_, reply_.SerializeToString(), "mallory")
    with pytest.raises(PeerRefused, match="offset 10 of 9"):
        codec.decode_offset(pb.PushOffsetResponse(offset=10).SerializeToString(), "mallory", model())
    with pytest.raises(PeerRefused, match="more than"):
        codec.decode_chunk(pb.PushChunk(data=bytes(CHUNK_BYTES + 1)).SerializeToString(), "mallory")
    with pytest.raises(PeerRefused, match="neither"):
        codec.decode_chunk(b"", "mallory")
    with pytest.raises(PeerRefused, match="model is missing"):
        codec.decode_chunk(pb.PushChunk(header=pb.PushHeader(offset=1)).SerializeToString(), "mallory")


def test_the_codec_knows_every_rpc_of_the_proto_and_no_other():
    methods = pb.DESCRIPTOR.services_by_name["Peer"].methods_by_name
    assert set(methods) == {*codec.KINDS, "Push", "PushOffset", "Reach", "Echo"}
    assert pb.DESCRIPTOR.services_by_name["Peer"].full_name == codec.SERVICE
    for rpc, kind in codec.KINDS.items():
        assert methods[rpc].input_type is kind.request_message.DESCRIPTOR
        assert methods[rpc].output_type is kind.reply_message.DESCRIPTOR
