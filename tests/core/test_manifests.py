"""Signed manifests and quarantine in a node: what is refused, with which reason, remembered, forgiven."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gossipseg.core import effects as fx
from gossipseg.core import events as ev
from gossipseg.core import messages as ms
from gossipseg.core.offences import EXCUSED, is_offence, verdict_is_offence
from gossipseg.core.params import QuarantineParams, TrustParams
from gossipseg.core.types import AliveRecord, Manifest, ModelRef, Proposal, manifest_payload, payload
from tests.core.rig import PRINT, Rig, model
from tests.core.rounds_bench import AT_1, LIST, PARAMS, RUN, SITES, arrives, asked, common, leads, state_of
from tests.core.rounds_bench import update as an_update

STRICT = TrustParams(require_manifests=True)
QUICK = QuarantineParams(offences=3, window_s=1000.0, first_s=60.0)


def signed(of: ModelRef, maker: str = "b", sequence: int = 1, **changes: Any) -> ModelRef:
    """As its maker signed it; `changes` are of the manifest alone."""
    manifest = Manifest(
        schema="s", dtype="F16", federation="f", contract=PRINT, maker=maker, kind=of.kind, round=of.round,
        sequence=sequence, hash=of.hash, size_bytes=of.size_bytes, steps=of.steps, cases=of.cases,
        dice_val=of.dice_val, signature="00",
    )  # fmt: skip
    if of.kind != "model":
        manifest = replace(manifest, run=RUN)
    return replace(of, manifest=replace(manifest, **changes))


def bench(**changes: Any) -> Rig:
    """A node in training that wants manifests."""
    rig = Rig(("b", "c"), **{"trust": STRICT, "quarantine": QUICK, **changes}).start()
    rig.meet("b", "c")
    rig.ready()
    return rig


def offer(rig: Rig, of: ModelRef, frm: str = "b") -> str:
    """ "" if it is accepted."""
    rig.asks(frm, ms.Offer(of))
    return str(rig.reply().reason)


def snapshot(rig: Rig) -> fx.Snapshot:
    return rig.of(fx.Persist)[-1].snapshot


# ---------------------------------------------------------------- this site's own


def test_every_model_for_gossip_is_signed_under_a_number_that_is_on_disk_first() -> None:
    keys: list[bytes] = []
    rig = bench(sign=lambda data: (keys.append(data), b"\x07")[1], seed=1)
    sent = []
    for n in range(12):
        rig.round_done(replace(model(f"m{n}", round=6 + n), manifest=Manifest("schema", "F16")))
        for request in rig.requests(ms.Offer):
            before = rig.out[: rig.out.index(request)]
            persisted = [e.snapshot.sequence for e in before if isinstance(e, fx.Persist)]
            manifest = request.body.model.manifest
            assert persisted and persisted[-1] == manifest.sequence
            assert (
                keys[-1] == manifest_payload(replace(manifest, signature="")) and manifest.signature == "07"
            )
            assert (manifest.maker, manifest.federation, manifest.contract) == ("me", "f", PRINT)
            assert (manifest.schema, manifest.dtype, manifest.hash) == ("schema", "F16", model(f"m{n}").hash)
            sent.append(manifest.sequence)
            rig.answer(request, ms.OfferReply("reject", "stale"))
            for other in rig.requests(ms.Offer):
                rig.answer(other, ms.OfferReply("reject", "stale"))
    assert len(sent) > 2 and sent == sorted(set(sent))


def test_numbers_go_on_after_a_restart_and_a_lost_disk_falls_back_on_the_clock() -> None:
    for then, floor, first in ((fx.Snapshot(sequence=41), 7, 42), (fx.Snapshot(), 1000, 1001)):
        rig = bench(snapshot=then, sequence_floor=floor)
        rig.round_done(model("m", round=6))
        assert snapshot(rig).sequence == first


def test_a_records_signature_is_never_a_manifests() -> None:
    record = payload(AliveRecord("b", 1, 2, "b:1", 3))
    assert not manifest_payload(Manifest()).startswith(record[:1])
    fields = set(Manifest.__dataclass_fields__) - {"signature", "fault"}
    base = manifest_payload(Manifest())
    for name in fields:  # every field is signed
        value = getattr(Manifest(), name)
        other: Any = "update" if name == "kind" else 0.5 if name == "dice_val" else 9 if value == 0 else "x"
        assert manifest_payload(replace(Manifest(), **{name: other})) != base, name


def test_an_older_model_is_not_offered_to_a_site_that_was_offered_a_newer_one() -> None:
    """There it would be refused as a replay, and counted as an offence."""
    rig = Rig(("b", "c"), trust=STRICT).start()
    rig.meet("b", "c")
    rig.ready()
    while not rig.requests(ms.Offer):
        rig.round_done(model(f"old {rig.node.round}", round=rig.node.round + 1))
    first = rig.request(ms.Offer)
    rig.round_done(model("new", round=rig.node.round + 1))
    second = rig.request(ms.Offer)
    assert {first.to, second.to} == {"b", "c"}
    rig.answer(second, ms.OfferReply("accept"))
    rig.do(ev.TransferDone(rig.of(fx.StartTransfer)[0].id))
    rig.answer(first, ms.OfferReply("busy", "busy"))
    assert not rig.requests(ms.Offer), "the other site was offered the newer one"


# ---------------------------------------------------------------- models for gossip


def test_a_model_whose_manifest_holds_is_accepted() -> None:
    rig = bench()
    assert offer(rig, signed(model("x"))) == ""
    seen = snapshot(rig).seen
    assert [(s.maker, s.kind, s.sequence, s.arrived) for s in seen] == [("b", "model", 1, False)]


GOOD = signed(model("x"), sequence=5)


@pytest.mark.parametrize(
    ("of", "reason"),
    [
        (model("x"), "manifest_missing"),
        (signed(model("x"), fault="manifest_forged"), "manifest_forged"),
        (signed(model("x"), fault="manifest_stranger"), "manifest_stranger"),
        (signed(model("x"), fault="schema_mismatch"), "schema_mismatch"),
        (signed(model("x"), maker="c"), "manifest_forged"),
        (signed(model("x"), federation="g"), "manifest_federation"),
        (signed(model("x"), contract="0" * 32), "manifest_contract"),
        (replace(GOOD, size_bytes=GOOD.size_bytes + 1), "manifest_mismatch"),
        (replace(GOOD, hash="0" * 64), "manifest_mismatch"),
        (replace(GOOD, steps=10_000), "manifest_mismatch"),
        (replace(GOOD, cases=10_000), "manifest_mismatch"),
        (replace(GOOD, dice_val=1.0), "manifest_mismatch"),
        (signed(model("x"), kind="global"), "manifest_mismatch"),
        (signed(model("x", size=3 << 30)), "too_large"),
    ],
)
def test_what_does_not_hold_is_refused_with_its_reason_and_counts(of: ModelRef, reason: str) -> None:
    rig = bench()
    assert offer(rig, of) == reason
    counted = 0 if reason == "manifest_missing" else 1
    assert rig.node.count("offences", "b") == counted and len(rig.notes("offence")) == counted
    assert rig.node.reserved is None


def test_without_a_manifest_only_where_the_list_allows_it() -> None:
    rig = bench(trust=TrustParams(require_manifests=False))
    assert offer(rig, model("x")) == ""
    assert offer(rig, signed(model("y", round=6), fault="manifest_forged")) == "manifest_forged"


def test_a_number_is_taken_once() -> None:
    rig = bench()
    assert offer(rig, GOOD) == ""
    assert offer(rig, GOOD) == "", "the answer may have been lost"
    assert offer(rig, signed(model("y", round=6), sequence=4)) == "manifest_replayed"
    assert offer(rig, signed(model("y", round=6), sequence=5)) == "manifest_replayed", "another one"
    rig.do(ev.ModelArrived("b", GOOD))
    rig.round_done()  # it visits
    visit = rig.of(fx.StartRound)[0].visit
    assert visit is not None and visit.model == GOOD
    for _ in range(2):
        rig.round_done(visit=ev.VisitResult(GOOD.hash, "merged") if rig.node.visiting else None)
    assert offer(rig, signed(model("z", round=9), sequence=6)) == ""
    assert offer(rig, GOOD) in ("duplicate", "manifest_replayed")


def test_the_newest_model_is_not_taken_twice_either() -> None:
    rig = bench()
    offer(rig, GOOD)
    rig.do(ev.ModelArrived("b", GOOD))
    rig.round_done()
    rig.round_done(visit=ev.VisitResult(GOOD.hash, "merged"))
    rig.ready(round=rig.node.round)  # a worker whose checkpoint names no last visit
    assert offer(rig, GOOD) == "manifest_replayed"


def test_replays_are_known_after_a_restart() -> None:
    rig = bench()
    offer(rig, GOOD)
    rig.do(ev.ModelArrived("b", GOOD))
    then = replace(snapshot(rig), inbox=())
    again = bench(snapshot=then)
    assert offer(again, GOOD) == "manifest_replayed"
    assert offer(again, signed(model("y", round=6), sequence=6)) == ""


# ---------------------------------------------------------------- rounds


def test_a_report_made_up_for_the_attempt_under_way_is_not_proposed() -> None:
    """Proposed again it would be the leader whom the others charge: another's manifest for its attempt."""
    rig, requests = led()
    made_up = replace(proposal(0, maker="b"), attempt=0)
    rig.answer(requests[0], ms.PrepareReply(True, 0, accepted=made_up))
    assert state_of(rig, "b") == ("left_out", "other_model") and rig.node.count("offences", "b") == 1
    assert not rig.requests(ms.Fetch)


def follower(**changes: Any) -> Rig:
    """me has a worker, and trains for round 1."""
    rig = Rig(("b", "z"), exchange="rounds", rounds_params=PARAMS, trust=STRICT, quarantine=QUICK, **changes)
    rig.start().meet("b", "z", info=AT_1)
    rig.ready(round=0, steps=0)
    return rig


def led(**changes: Any) -> tuple[Rig, list[fx.Request]]:
    """me leads round 1, attempt 0, and has asked b and z."""
    rig = follower(**changes)
    rig.round_done(model("mine", round=1))
    return rig, leads(rig)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"round": 2}, "manifest_mismatch"),
        ({"run": "0" * 32}, "other_run"),
        ({"fault": "manifest_forged"}, "manifest_forged"),
        ({"maker": "z"}, "manifest_forged"),
        ({"size_bytes": 1}, "manifest_mismatch"),
    ],
)
def test_an_update_that_does_not_hold_is_left_out_with_its_reason(changes: Any, reason: str) -> None:
    rig, requests = led()
    rig.answer(requests[0], ms.PrepareReply(True, 0, update=signed(an_update("of b"), **changes)))
    assert not rig.requests(ms.Fetch) and state_of(rig, "b") == ("left_out", reason)
    assert rig.node.count("offences", "b") == 1


def test_an_update_of_another_round_is_refused() -> None:
    rig, requests = led()
    rig.answer(requests[0], ms.PrepareReply(True, 0, update=signed(an_update("of b", round=7))))
    assert state_of(rig, "b") == ("left_out", "other_round") and not rig.requests(ms.Fetch)
    rig.answer(requests[1], ms.PrepareReply(True, 0, update=signed(an_update("of z"), maker="z")))
    assert [r.to for r in rig.requests(ms.Fetch)] == ["z"]
    assert [(s.maker, s.kind) for s in snapshot(rig).seen] == [("z", "update")]


def proposal(
    attempt: int = 1, name: str = "g1", round: int = 1, maker: str = "z", **manifest: Any
) -> Proposal:
    made = signed(common(name, round), maker, **{"attempt": attempt, **manifest})
    return Proposal(round, attempt, made, ("b", "z"), (("me", "late"),))


@pytest.mark.parametrize(
    ("of", "reason"),
    [
        (proposal(), ""),
        (proposal(fault="manifest_forged"), "manifest_forged"),
        (proposal(maker="b"), "manifest_mismatch"),
        (replace(proposal(), model=common()), "manifest_missing"),
        (proposal(round=1, run="0" * 32), "other_run"),
        (replace(proposal(round=3), round=1), "other_round"),
        (proposal(contract="0" * 32), "manifest_contract"),
        (replace(proposal(attempt=4), attempt=1), "manifest_mismatch"),
    ],
)
def test_a_common_model_that_does_not_hold_is_not_stored(of: Proposal, reason: str) -> None:
    rig = follower()
    reply = asked(rig, "z", ms.Accept(RUN, LIST, of))
    assert (reply.verdict, reply.reason) == ("reject" if reason else "missing", reason)
    assert bool(rig.node.count("offences", "z")) == (reason not in ("", "manifest_missing"))


def test_a_later_attempt_passes_on_what_an_earlier_one_made_under_its_makers_manifest() -> None:
    rig = follower()
    mine = proposal(1, "made by z", sequence=9)
    rig.asks("z", ms.Accept(RUN, LIST, mine))
    arrives(rig, "z", mine)
    passed_on = replace(proposal(0, "made by b", maker="b", sequence=3), attempt=2)
    assert asked(rig, "b", ms.Accept(RUN, LIST, passed_on)).verdict == "missing"
    arrives(rig, "b", passed_on)
    rig.asks("b", ms.Commit(RUN, LIST, passed_on))
    assert rig.node.info.committed == 1
    manifest = passed_on.model.manifest
    assert asked(rig, "z", ms.Fetch(RUN, LIST, "global", 1, 0, "")).model.manifest == manifest


def test_the_number_of_a_later_rounds_model_must_be_higher() -> None:
    rig = follower()
    first = proposal(1, sequence=9)
    rig.asks("z", ms.Commit(RUN, LIST, first))
    arrives(rig, "z", first)
    assert rig.node.info.committed == 1
    late = proposal(0, "g2", round=2, sequence=9)  # z leads attempt 0 of round 2
    assert asked(rig, "z", ms.Accept(RUN, LIST, late)).reason == "manifest_replayed"
    assert asked(rig, "z", ms.Accept(RUN, LIST, proposal(0, "g2", round=2, sequence=10))).verdict == "missing"


def test_who_passes_on_what_this_site_cannot_check_has_not_offended() -> None:
    rig = follower()
    for fault in ("manifest_stranger", "manifest_forged", "manifest_replayed", "schema_mismatch"):
        of = replace(proposal(0, maker="b", fault=fault), attempt=1)
        assert asked(rig, "z", ms.Accept(RUN, LIST, of)).reason == fault
    assert rig.node.count("offences") == 0


# ---------------------------------------------------------------- quarantine in a node


def offended(rig: Rig, times: int = 3, frm: str = "b") -> Rig:
    for n in range(times):
        assert (
            offer(rig, signed(model(f"bad {n}"), maker=frm, fault="manifest_forged"), frm)
            == "manifest_forged"
        )
    return rig


def test_repeated_offences_shut_a_site_out_until_their_time_is_over() -> None:
    rig = bench()
    assert offer(rig, GOOD) == ""
    offended(rig)
    (note,) = rig.notes("peer_quarantined")
    assert (note.site, note.reason, note.detail["seconds"]) == ("b", "manifest_forged", 60.0)
    assert rig.node.quarantined("b") and not rig.node.quarantined("c")
    assert rig.node.reserved is None and rig.node.expects("b", GOOD.hash) is None
    assert offer(rig, signed(model("y", round=9), sequence=9)) == "quarantined"
    assert rig.node.count("offences", "b") == 3, "to be refused is no further offence"
    assert rig.state("b") == "alive", "it stays a member"
    over = [e for e in rig.until(rig.now + 61) if isinstance(e, fx.Note) and e.event == "quarantine_over"]
    assert [n.site for n in over] == ["b"] and not rig.node.quarantined("b")
    assert offer(rig, signed(model("y", round=9), sequence=9)) == ""


def test_what_came_of_it_and_waits_is_dropped() -> None:
    rig = bench()
    offer(rig, GOOD)
    rig.do(ev.ModelArrived("b", GOOD))
    assert rig.node.inbox
    offended(rig)
    assert not rig.node.inbox and rig.notes("model_dropped")[0].reason == "quarantined"


def test_it_is_not_chosen_as_a_receiver() -> None:
    rig = offended(bench())
    receivers = set()
    for n in range(20):
        rig.round_done(model(f"m{n}", round=6 + n))
        while offers := rig.requests(ms.Offer):
            receivers.add(offers[0].to)
            rig.answer(offers[0], ms.OfferReply("reject", "stale"))
    assert receivers == {"c"}


def test_an_operator_lifts_it_and_its_numbers_begin_anew() -> None:
    rig = bench()
    assert offer(rig, GOOD) == ""
    offended(rig)
    rig.do(ev.LiftQuarantine("b"))
    assert rig.notes("quarantine_lifted") and not rig.node.quarantined("b") and not snapshot(rig).conduct
    assert offer(rig, signed(model("y", round=9), sequence=1)) == ""


def test_it_outlives_a_restart() -> None:
    rig = offended(bench())
    again = Rig(("b", "c"), trust=STRICT, quarantine=QUICK, snapshot=snapshot(rig))
    again.now = 5.0  # another life's clock
    again.start().meet("b", "c")
    again.ready()
    assert again.node.quarantined("b") and offer(again, signed(model("y"), sequence=9)) == "quarantined"
    again.until(66.0)
    assert not again.node.quarantined("b")


def test_a_stream_that_breaks_its_word_counts_and_one_that_is_cut_off_does_not() -> None:
    rig = bench()
    for n, reason in enumerate(("manifest_mismatch", "disk_full", "schema_mismatch", "unreadable")):
        of = signed(model(f"m{n}"), sequence=n + 1)
        assert offer(rig, of) == ""
        rig.do(ev.ModelBroken("b", of.hash, reason))
    assert rig.node.count("offences", "b") == 3 and rig.node.quarantined("b")


@pytest.mark.parametrize(
    ("outcome", "reason", "counts"),
    [
        ("refused", "not_finite", 1),
        ("refused", "norm_exploded", 1),
        ("merged", "", 0),
        ("kept_out", "guard", 0),
    ],
)
def test_the_workers_verdict_on_a_visitor_counts(outcome: Any, reason: str, counts: int) -> None:
    rig = bench()
    offer(rig, GOOD)
    rig.do(ev.ModelArrived("b", GOOD))
    rig.round_done()
    rig.round_done(visit=ev.VisitResult(GOOD.hash, outcome, reason))
    assert rig.node.count("offences", "b") == counts


def test_doing_worse_is_an_offence_only_if_asked_for_and_only_after_a_run_of_them() -> None:
    for wanted, counts in ((False, 0), (True, 1)):
        rig = bench(quarantine=replace(QUICK, dice_offence=wanted, dice_run=2))
        for n in range(3):
            of = signed(model(f"m{n}", round=6 + n), sequence=n + 1)
            assert offer(rig, of) == ""
            rig.do(ev.ModelArrived("b", of))
            rig.round_done()
            rig.round_done(visit=ev.VisitResult(of.hash, "kept_out", "guard"))
        assert rig.node.count("offences", "b") == counts


def test_a_quarantined_site_is_passed_over_and_its_update_not_fetched() -> None:
    rig, requests = led()
    bad = signed(an_update("of b"), fault="manifest_forged")
    rig.answer(requests[0], ms.PrepareReply(True, 0, update=bad))
    for n in range(2):
        of = proposal(2 + 3 * n, maker="b", fault="manifest_forged")
        assert asked(rig, "b", ms.Accept(RUN, LIST, of)).reason == "manifest_forged"
    assert rig.node.quarantined("b")
    assert asked(rig, "b", ms.Prepare(RUN, LIST, 1, 5)).reason == "quarantined"
    assert asked(rig, "b", ms.Accept(RUN, LIST, proposal(5, maker="b"))).reason == "quarantined"
    view = rig.node.rounds_view
    assert view is not None and ("b", "left_out") in [(r.site, r.state) for r in view.rows]
    rig.answer(requests[1], ms.PrepareReply(True, 0, update=signed(an_update("of z"), maker="z")))
    rig.answer(rig.request(ms.Fetch), ms.FetchReply("accept"))
    rig.do(ev.ModelArrived("z", an_update("of z")))
    (combining,) = rig.of(fx.Aggregate)
    assert [site for site, _ in combining.updates] == ["me", "z"], "it does not wait for b"


def test_a_coordinator_does_not_wait_for_a_quarantined_site() -> None:
    rig = follower()
    for n in range(3):
        rig.asks("b", ms.Accept(RUN, LIST, proposal(2 + 3 * n, maker="b", run="0" * 32)))
    assert rig.node.quarantined("b")
    assert state_of(rig, "b") == ("left_out", "quarantined"), "it is passed over as a coordinator"
    rig.round_done(model("mine", round=1))
    to_b, to_z = leads(rig)
    rig.answer(to_b, ms.PrepareReply(True, 0, waiting_for="training"))
    assert state_of(rig, "b") == ("left_out", "quarantined")
    rig.answer(to_z, ms.PrepareReply(True, 0, update=signed(an_update("of z"), maker="z")))
    rig.answer(rig.request(ms.Fetch), ms.FetchReply("accept"))
    rig.do(ev.ModelArrived("z", an_update("of z")))
    assert [site for site, _ in rig.of(fx.Aggregate)[0].updates] == ["me", "z"]
    assert not rig.requests(ms.Fetch, "b")


def test_what_is_on_its_way_from_a_quarantined_site_is_asked_of_others() -> None:
    rig = follower()
    first = proposal(1)
    rig.asks("z", ms.Commit(RUN, LIST, first))
    assert [r.to for r in rig.requests(ms.Fetch)] == ["z"]
    rig.asks("b", ms.Ping((), replace(AT_1, committed=1)))
    for n in range(3):
        rig.asks("z", ms.Accept(RUN, LIST, proposal(1 + 3 * n, maker="z", run="0" * 32)))
    assert rig.node.quarantined("z") and rig.node.expects("z", first.model.hash) is None
    asked_of = {r.to for e in [rig.until(rig.now + 30)] for r in e if isinstance(r, fx.Request)
                and isinstance(r.body, ms.Fetch)} | {r.to for r in rig.requests(ms.Fetch)}  # fmt: skip
    assert "b" in asked_of and "z" not in asked_of


def test_the_coordinators_worker_refuses_an_update_once() -> None:
    rig, requests = led()
    for request, name in zip(requests, ("b", "z"), strict=True):
        rig.answer(request, ms.PrepareReply(True, 0, update=signed(an_update(f"of {name}"), maker=name)))
        rig.answer(rig.request(ms.Fetch, name), ms.FetchReply("accept"))
        rig.do(ev.ModelArrived(name, an_update(f"of {name}")))
    rig.do(ev.Aggregated(1, 0, replace(common(), kind="global"), ("me", "z"), (("b", "not_finite"),)))
    assert rig.node.count("offences", "b") == 1 and set(SITES) > {"b"}
    manifest = rig.requests(ms.Accept)[0].body.proposal.model.manifest
    assert (manifest.kind, manifest.maker, manifest.run, manifest.round) == ("global", "me", RUN, 1)


def test_the_same_bad_update_in_the_next_attempt_is_no_further_offence() -> None:
    rig, requests = led()
    refused = (("b", "not_finite"), ("z", "not_finite"))
    counted = []
    for _ in range(2):
        while requests:
            (request, *requests) = requests
            name, promised = request.to, request.body.attempt
            update = signed(an_update(f"of {name}"), maker=name)
            rig.answer(request, ms.PrepareReply(True, promised, update=update))
            for fetch in rig.requests(ms.Fetch):
                rig.answer(fetch, ms.FetchReply("accept"))
                rig.do(ev.ModelArrived(name, an_update(f"of {name}")))
        (combining,) = rig.of(fx.Aggregate)
        rig.do(ev.AggregationFailed(1, combining.attempt, "no_update_left", refused))
        counted.append(rig.node.count("offences"))
        while not rig.requests(ms.Prepare) and (due := rig.node.next_deadline()) is not None:
            rig.do(ev.Tick(), at=max(due, rig.now))
            for site in ("b", "z"):
                rig.hears(site, info=AT_1) if not rig.requests(ms.Prepare) else None
        requests = rig.requests(ms.Prepare)
    assert counted == [2, 2]


def test_a_site_that_is_listed_again_begins_anew() -> None:
    rig = offended(bench())
    rig.do(ev.SitesChanged({"c": "c:1"}))
    rig.do(ev.SitesChanged({"b": "b:1", "c": "c:1"}))
    assert not rig.node.quarantined("b") and not snapshot(rig).conduct


def test_what_this_site_made_is_signed_anew_with_its_new_key() -> None:
    key = [b"old"]
    rig, _ = led(sign=lambda data: key[0])
    before = snapshot(rig).rounds
    key[0] = b"new"
    rig.do(ev.SitesChanged({"b": "b:1", "z": "z:1"}, rekeyed=True))
    after = snapshot(rig).rounds
    assert before is not None and before.update is not None and after is not None and after.update is not None
    old, new = before.update.manifest, after.update.manifest
    assert old is not None and (old.signature, new) == (b"old".hex(), replace(old, signature=b"new".hex()))


@pytest.mark.parametrize(
    "reason", ["busy", "not_ready", "duplicate", "too_late", "stale", "disk_full", "incomplete"]
)
def test_an_honest_site_may_be_refused_for_these(reason: str) -> None:
    assert not is_offence(reason, "b")
    assert "unreadable" in EXCUSED and not verdict_is_offence("unreadable"), (
        "that may be this site's own disk"
    )
