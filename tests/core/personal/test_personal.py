"""Personal models that travel: who is asked, what is served, what is held."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gossipseg.core import effects as fx
from gossipseg.core import events as ev
from gossipseg.core import messages as ms
from gossipseg.core.params import GossipParams, TrustParams
from gossipseg.core.types import Manifest, ModelRef, PeerInfo, Phase, Site
from tests.core.rig import PRINT, TRAINING, Rig, model, phase

EVERY = GossipParams(exchange="push", personal_every_rounds=2, personal_fetches=2, warmup_rounds=100)
OTHERS = ("b", "c", "d")


def personal(name: str = "a", round: int = 5, size: int = 1000) -> ModelRef:
    return replace(model(name, round, size=size), kind="personal")


def rig(*others: Site, gossip: GossipParams = EVERY, **changes: Any) -> Rig:
    r = Rig(others or OTHERS, gossip=gossip, **changes).start()
    r.meet(*(others or OTHERS))
    return r


def at_work(r: Rig, *, refusal: str = "", takes: bool = True, round: int = 5, answers: bool = True) -> Rig:
    """Have the worker come up; `answers`: it takes in what is held."""
    r.ready(round, personal_refusal=refusal, takes_personal=takes)
    if answers and r.of(fx.HoldPersonal):
        out = r.out
        r.do(ev.PersonalHeld())
        r.out = out
    return r


def fetching(r: Rig) -> dict[Site, fx.Request]:
    """The requests for personal models in the last effects, by site."""
    return {q.to: q for q in r.requests(ms.Fetch) if q.body.kind == "personal"}  # type: ignore[union-attr]


def fetch(hash: str = "", run: str = PRINT) -> ms.Fetch:
    return ms.Fetch(run, run, "personal", 0, 0, hash)


def serve(r: Rig, ref: ModelRef | None = None) -> ModelRef:
    """Have the node export its model, and serve it."""
    r.round_done()
    assert r.of(fx.ExportPersonal)
    r.do(ev.PersonalExported(ref or personal(), r.node.round))
    r.asks("b", fetch())
    named: ModelRef | None = r.reply().model
    assert named is not None
    return named


def receive(r: Rig, site: Site, ref: ModelRef, request: fx.Request) -> None:
    """Let a peer name its model and stream it; the worker is told."""
    r.answer(request, ms.FetchReply("accept", "", ref))
    second = fetching(r)[site]
    assert second.body.hash == ref.hash  # type: ignore[union-attr]
    r.answer(second, ms.FetchReply("accept", "", ref))
    r.do(ev.ModelArrived(site, ref))


# ---------------------------------------------------------------- serving


def test_the_own_model_is_exported_every_so_many_rounds_and_before_the_next_begins() -> None:
    r = at_work(rig())
    r.round_done()  # round 6
    kinds = [type(e) for e in r.out]
    assert kinds.index(fx.ExportPersonal) < kinds.index(fx.StartRound)
    r.round_done()
    assert not r.of(fx.ExportPersonal)
    r.round_done()
    assert r.of(fx.ExportPersonal)


def test_a_peer_is_told_which_model_it_is_and_then_sent_it() -> None:
    r = at_work(rig())
    named = serve(r)
    assert named.manifest is not None and named.manifest.kind == "personal"
    r.asks("b", fetch(named.hash))
    assert r.reply() == ms.FetchReply("accept", "", named)
    (transfer,) = r.of(fx.StartTransfer)
    assert (transfer.to, transfer.model) == ("b", named)
    assert named.hash in r.node.kept_models() and r.node.sending[0].to == "b"
    r.do(ev.TransferDone(transfer.id))
    assert r.notes("personal_sent")[0].site == "b" and not r.node.sending


@pytest.mark.parametrize("refusal", ["private", "private_part", "private_network", "no_personal"])
def test_a_site_that_never_sends_one_says_so(refusal: str) -> None:
    """With privacy.dp: `private`."""
    r = at_work(rig(), refusal=refusal)
    for _ in range(3):
        r.round_done()
        assert not r.of(fx.ExportPersonal)
    r.asks("b", fetch())
    assert r.reply() == ms.FetchReply("reject", refusal)


def test_a_model_of_an_earlier_run_is_not_served_once_it_is_private() -> None:
    first = at_work(rig())
    named = serve(first)
    held = fx.PersonalRecord(named)
    r = rig(snapshot=fx.Snapshot(1, 6, 60, personal=held))
    r.asks("b", fetch())
    assert r.reply() == ms.FetchReply("reject", "not_ready"), "the worker has not said anything yet"
    at_work(r, refusal="private", round=6)
    r.asks("b", fetch(named.hash))
    assert r.reply() == ms.FetchReply("reject", "private") and named.hash not in r.node.kept_models()
    again = at_work(rig(snapshot=fx.Snapshot(1, 6, 60, personal=held)), round=6)
    again.asks("b", fetch(named.hash))
    assert again.reply().verdict == "accept"


def test_others_than_peers_of_this_contract_get_none() -> None:
    r = at_work(rig())
    named = serve(r)
    r.asks("c", fetch(run="0" * 32))
    assert r.reply() == ms.FetchReply("reject", "contract_mismatch")
    r.asks("c", fetch(model("other").hash))
    assert r.reply() == ms.FetchReply("reject", "not_here")
    for site in ("b", "c"):
        r.asks(site, fetch(named.hash))
        assert r.reply().verdict == "accept"
    r.asks("d", fetch(named.hash))
    assert r.reply() == ms.FetchReply("busy", "busy")
    r.do(ev.Leave())
    r.asks("b", fetch(named.hash))
    assert r.reply() == ms.FetchReply("reject", "leaving")


def test_a_quarantined_site_gets_none() -> None:
    r = at_work(rig())
    named = serve(r)
    for _ in range(3):
        r.asks("c", ms.Offer(replace(model("huge"), size_bytes=3 << 40)))
    assert r.node.quarantined("c")
    r.asks("c", fetch(named.hash))
    assert r.reply() == ms.FetchReply("reject", "quarantined") and not r.of(fx.StartTransfer)


def test_while_the_worker_writes_a_newer_one_it_is_busy() -> None:
    r = at_work(rig())
    serve(r)
    r.round_done()
    r.round_done()
    r.asks("b", fetch())
    assert r.reply().verdict == "busy"
    r.do(ev.PersonalExported(None, 8, "disk_full"))
    r.asks("b", fetch())
    assert r.reply().model.hash == personal().hash, "the older one is better than none"


def test_a_finished_site_serves_its_last_and_writes_it_again_where_it_was_lost() -> None:
    r = at_work(rig(rounds=7), round=6)
    r.round_done()
    assert r.of(fx.ExportPersonal) and r.node.phase is Phase.FINISHED
    r.do(ev.PersonalExported(personal(round=7), 7))
    r.asks("b", fetch())
    assert r.reply().verdict == "accept"
    lost = rig(rounds=7, snapshot=fx.Snapshot(1, 7, 70))
    at_work(lost, round=7)
    assert lost.of(fx.ExportPersonal)


def test_the_worker_may_die_while_it_writes() -> None:
    r = at_work(rig(rounds=7), round=6)
    r.round_done()
    r.do(ev.WorkerLost("killed"))
    at_work(r, round=7)
    assert r.of(fx.ExportPersonal)


def test_a_last_export_that_failed_is_repeated_when_a_peer_asks() -> None:
    r = at_work(rig(rounds=7), round=6)
    r.round_done()
    r.do(ev.PersonalExported(None, 7, "disk_full"))
    r.asks("b", fetch())
    assert r.reply() == ms.FetchReply("reject", "not_here") and not r.of(fx.ExportPersonal), "a pause first"
    for reason in ("disk_full", ""):
        r.until(r.now + 600)
        r.asks("b", fetch())
        assert r.reply().verdict == "busy" and len(r.of(fx.ExportPersonal)) == 1
        r.asks("c", fetch())
        assert r.reply().verdict == "busy" and not r.of(fx.ExportPersonal), "it is at it"
        r.do(ev.PersonalExported(None if reason else personal(round=7), 7, reason))
    r.asks("b", fetch())
    assert r.reply().verdict == "accept" and not r.of(fx.ExportPersonal)


@pytest.mark.parametrize("round", [6, 4])
def test_a_model_of_another_training_is_neither_served_nor_held(round: int) -> None:
    """The checkpoint was moved away, and the contract may be another one."""
    of_old = {"contract": "0" * 32, "maker": "a"} if round == 6 else {"maker": "a"}
    own, others = signed(personal(round=5), **of_old), signed(personal("b"), contract="0" * 32)
    record = fx.PersonalRecord(own, (("b", others), ("c", signed(personal("c"), maker="c"))))
    r = at_work(rig(snapshot=fx.Snapshot(1, 6, 60, personal=record)), round=round)
    r.asks("b", fetch(own.hash))
    assert r.reply() == ms.FetchReply("reject", "not_here") and own.hash not in r.node.kept_models()
    assert list(r.node.held_personal) == ["c"]


# ---------------------------------------------------------------- fetching


def test_sites_without_patients_enough_fetch_none() -> None:
    r = at_work(rig(), takes=False)
    for _ in range(4):
        r.round_done()
        assert not fetching(r)
    r = at_work(rig(gossip=replace(EVERY, personal_fetches=0)))
    r.round_done()
    assert not fetching(r) and not r.of(fx.ExportPersonal)
    r.asks("b", fetch())
    assert r.reply() == ms.FetchReply("reject", "exchanges_nothing"), "who takes none gives none"
    r = Rig(OTHERS, gossip=EVERY, exchange="none").start()
    r.meet(*OTHERS)
    at_work(r).round_done()
    assert not fetching(r) and not r.of(fx.ExportPersonal)


def test_a_refresh_asks_so_many_and_first_those_of_whom_nothing_is_held() -> None:
    r = at_work(rig())
    r.round_done()
    asked = fetching(r)
    assert len(asked) == 2
    for i, (site, request) in enumerate(asked.items()):
        receive(r, site, personal(site), request)
        (told,) = r.of(fx.HoldPersonal)
        assert len(told.models) == i + 1 and r.notes("personal_received")
        assert site in r.node.wants_personal, "until the worker has it"
        r.do(ev.PersonalHeld())
    assert set(r.node.held_personal) == set(asked) and not r.node.wants_personal
    assert {m.hash for m in r.node.held_personal.values()} <= r.node.kept_models()
    r.round_done()
    assert not fetching(r)
    r.round_done()
    third = (set(OTHERS) - set(asked)).pop()
    again = fetching(r)
    assert len(again) == 2 and third in again
    assert again.keys() - {third} == {next(iter(asked))}, "and the oldest"


def test_no_more_are_held_than_twice_as_many() -> None:
    r = at_work(rig(*"bcdefg"))
    for round in (1, 2, 3):
        r.round_done()
        for site, request in fetching(r).items():
            receive(r, site, personal(f"{site}{round}"), request)
        r.round_done()
    assert len(r.node.held_personal) == 4


def test_the_same_model_is_not_fetched_twice() -> None:
    r = at_work(rig("b"))
    r.round_done()
    receive(r, "b", personal("b"), fetching(r)["b"])
    r.do(ev.PersonalHeld())
    r.round_done()
    r.round_done()
    r.answer(fetching(r)["b"], ms.FetchReply("accept", "", personal("b")))
    assert not fetching(r) and not r.node.wants_personal


def test_who_has_none_yet_is_asked_again() -> None:
    r = at_work(rig("b"))
    r.round_done()
    for reply in (ms.FetchReply("reject", "not_here"), ms.FetchReply("busy", "busy")):
        r.answer(fetching(r)["b"], reply)
        assert not fetching(r) and r.node.wants_personal == {"b"}
        r.hears("b", info=TRAINING)
        r.out = r.until(r.now + 2 * EVERY.offer_timeout_s)
        assert list(fetching(r)) == ["b"]
    r.fail(fetching(r)["b"])
    assert r.node.wants_personal == {"b"}


def test_who_never_sends_one_is_not_asked_again() -> None:
    r = at_work(rig("b"))
    r.round_done()
    r.answer(fetching(r)["b"], ms.FetchReply("reject", "private"))
    assert r.notes("personal_declined")[0].reason == "private" and not r.node.wants_personal
    for _ in range(4):
        r.round_done()
        assert not fetching(r)


def test_after_the_end_a_site_at_work_is_waited_for() -> None:
    """Its last model is wanted."""
    r = at_work(rig("b", federation_rounds=7), round=6)
    r.round_done()
    assert r.node.phase is Phase.FINISHED and not fetching(r) and r.node.wants_personal == {"b"}
    assert "b" not in {q.to for q in fetching(r).values()}
    r.hears("b", info=phase(Phase.FINISHED))
    r.out += r.until(r.now + EVERY.offer_timeout_s)
    receive(r, "b", personal("b"), fetching(r)["b"])
    (told,) = r.of(fx.HoldPersonal)
    assert [site for site, _ in told.models] == ["b"], "the mix is chosen again"


def test_after_the_end_a_paused_site_gives_its_place_to_another_after_a_while() -> None:
    one = replace(EVERY, personal_fetches=1)
    r = rig("b", "c", gossip=one, rounds=6)
    at_work(r).round_done()
    (first,) = r.node.wants_personal
    other = "c" if first == "b" else "b"
    r.hears(first, info=phase(Phase.PAUSED))
    r.hears(other, info=phase(Phase.FINISHED))
    r.until(r.now + 300)
    assert r.node.wants_personal == {first}
    for _ in range(40):
        r.hears(first, info=phase(Phase.PAUSED))
        r.hears(other, info=phase(Phase.FINISHED))
        r.until(r.now + 10)
    assert r.node.wants_personal == {other}


def test_after_the_end_one_that_was_away_is_asked_when_it_is_back() -> None:
    r = Rig(("b", "c"), gossip=replace(EVERY, personal_fetches=1), rounds=7).start()
    at_work(r, round=6)
    r.round_done()
    assert not fetching(r) and not r.node.wants_personal
    r.meet("b")
    r.out += r.until(r.now + EVERY.offer_timeout_s)
    assert r.node.wants_personal == {"b"}
    r.answer(fetching(r)["b"], ms.FetchReply("reject", "private"))
    r.meet("c")
    r.out += r.until(r.now + EVERY.offer_timeout_s)
    assert r.node.wants_personal == {"c"}, "in the place of one that has none to give"
    r.answer(fetching(r)["c"], ms.FetchReply("accept", "", personal("c")))
    r.answer(fetching(r)["c"], ms.FetchReply("accept", "", personal("c")))
    r.do(ev.ModelArrived("c", personal("c")))
    r.do(ev.PersonalHeld())
    r.until(r.now + 100 * EVERY.offer_timeout_s)
    assert not r.node.wants_personal and not fetching(r), "so many, and no more"


def test_a_model_with_which_the_worker_dies_twice_is_let_go_of() -> None:
    r = at_work(rig("b", "c", gossip=replace(EVERY, personal_fetches=1)))
    r.round_done()
    ((first, request),) = fetching(r).items()
    receive(r, first, personal(first), request)
    r.do(ev.PersonalHeld())
    r.round_done()
    r.round_done()
    ((second, request),) = fetching(r).items()
    receive(r, second, personal(second), request)
    r.do(ev.WorkerLost("killed"))
    at_work(r, round=8, answers=False)
    assert len(r.of(fx.HoldPersonal)[0].models) == 2, "once may be chance"
    r.do(ev.WorkerLost("killed"))
    assert r.notes("personal_refused")[0].reason == "worker_lost"
    at_work(r, round=8, answers=False)
    assert [site for site, _ in r.of(fx.HoldPersonal)[0].models] == [first], "the newest alone was suspected"
    r.do(ev.PersonalHeld())
    assert not r.node.wants_personal
    for _ in range(4):
        r.round_done()
        assert second not in fetching(r)


@pytest.mark.parametrize("survives", [True, False])
def test_held_models_with_which_a_round_dies_twice_are_let_go_of(survives: bool) -> None:
    r = at_work(rig("b"))
    r.round_done()
    receive(r, "b", personal("b"), fetching(r)["b"])
    r.do(ev.PersonalHeld())
    for _ in range(2):
        assert r.node.held_personal
        r.do(ev.WorkerLost("killed"))
        at_work(r, round=r.node.round)
        r.do(ev.PersonalHeld())
        if survives:
            r.round_done()
    assert bool(r.node.held_personal) == survives


def test_the_worker_of_a_finished_site_may_die_with_a_model_too() -> None:
    r = at_work(rig("b", rounds=6))
    r.round_done()
    assert r.node.phase is Phase.FINISHED
    receive(r, "b", personal("b"), fetching(r)["b"])
    for _ in range(2):
        assert r.node.held_personal
        r.do(ev.WorkerLost("killed"))
        at_work(r, round=6, answers=False)
    assert not r.node.held_personal and r.of(fx.HoldPersonal)[0].models == ()
    r.do(ev.PersonalHeld())
    assert not r.node.wants_personal


def test_a_death_for_another_reason_is_not_put_down_to_what_is_held() -> None:
    """The data are away, or a visitor is there."""
    r = at_work(rig("b", "c"))
    r.round_done()
    for site, request in fetching(r).items():
        receive(r, site, personal(site), request)
    r.do(ev.PersonalHeld())
    r.do(ev.PersonalHeld())
    for _ in range(3):
        r.do(ev.WorkerLost("the data are away", waits=True))
        at_work(r, round=6)
    assert len(r.node.held_personal) == 2
    for _ in range(2):
        r.do(ev.WorkerLost("killed"))
        at_work(r, round=6)
    assert not r.node.held_personal
    asked = set()
    for _ in range(4):
        r.round_done()
        asked |= fetching(r).keys()
    assert asked == {"b", "c"}, "what had been taken in before may be innocent"


def test_one_that_cannot_be_asked_any_more_gives_its_place_to_another() -> None:
    r = Rig(("b", "c"), gossip=replace(EVERY, personal_fetches=1), federation_rounds=7).start()
    r.meet("b")
    at_work(r, round=6)
    r.round_done()
    assert r.node.wants_personal == {"b"} and not fetching(r), "it trains on"
    r.meet("c")
    r.hears("b", info=PeerInfo(5, 50, 10, Phase.TRAINING, "f" * 32))
    assert r.node.wants_personal == {"c"}


def test_a_death_with_a_visitor_is_put_down_to_the_visitor() -> None:
    r = at_work(rig("b", gossip=replace(EVERY, warmup_rounds=0)))
    r.round_done()
    receive(r, "b", personal("b"), fetching(r)["b"])
    r.do(ev.PersonalHeld())
    visitor = model("visitor", 6)
    r.asks("b", ms.Offer(visitor))
    assert r.reply().verdict == "accept"
    r.do(ev.ModelArrived("b", visitor))
    r.round_done()
    for _ in range(2):
        assert r.node.visiting is not None
        r.do(ev.WorkerLost("killed"))
        at_work(r, round=7)
    assert r.node.visiting is None and r.node.held_personal, "the visitor is dropped, and no more"


def test_one_whose_file_is_broken_gives_its_place_to_another() -> None:
    r = at_work(rig("b", "c", gossip=replace(EVERY, personal_fetches=1), rounds=6))
    r.round_done()
    ((first, request),) = fetching(r).items()
    ref = personal(first)
    r.answer(request, ms.FetchReply("accept", "", ref))
    r.answer(fetching(r)[first], ms.FetchReply("accept", "", ref))
    r.do(ev.ModelBroken(first, ref.hash, "hash_mismatch"))
    assert r.node.wants_personal == {"b", "c"} - {first}


def test_after_the_end_a_site_whose_model_is_refused_is_not_asked_again_at_once() -> None:
    """Nor for ever: a peer that names what this site cannot take would be asked as fast as it answers."""
    trust = TrustParams(require_manifests=True)
    r = at_work(rig("b", gossip=replace(EVERY, personal_fetches=1), rounds=6, trust=trust))
    r.round_done()
    r.answer(fetching(r)["b"], ms.FetchReply("accept", "", personal("b")))
    assert r.notes("personal_refused")[0].reason == "manifest_missing" and not r.notes("offence")
    assert not fetching(r) and not r.node.wants_personal
    r.until(r.now + 100 * EVERY.offer_timeout_s)
    assert not r.node.wants_personal


def test_an_answer_is_to_the_oldest_order() -> None:
    r = at_work(rig("b", "c"))
    r.round_done()
    asked = fetching(r)
    for site, request in asked.items():
        receive(r, site, personal(site), request)
    r.do(ev.PersonalHeld())
    assert r.node.wants_personal == {"b", "c"}, "the second order is not answered"
    r.do(ev.PersonalHeld())
    assert not r.node.wants_personal


def test_a_worker_that_takes_none_any_more_is_told_to_let_go_of_all() -> None:
    held = fx.PersonalRecord(None, (("b", personal("b")),))
    for changes in ({"gossip": replace(EVERY, personal_fetches=0)}, {}):
        r = rig("b", snapshot=fx.Snapshot(1, 5, 50, personal=held), **changes)
        at_work(r, takes=not changes and False)
        assert r.of(fx.HoldPersonal) == [fx.HoldPersonal(())] and not r.node.held_personal


def test_only_an_announced_stream_is_expected() -> None:
    r = at_work(rig("b"))
    ref = personal("b")
    assert r.node.expects("b", ref.hash) is None
    r.round_done()
    r.answer(fetching(r)["b"], ms.FetchReply("accept", "", ref))
    assert r.node.expects("b", ref.hash) == ref and r.node.expects("c", ref.hash) is None
    r.answer(fetching(r)["b"], ms.FetchReply("accept", "", ref))
    r.do(ev.TransferBegan("b", ref.hash))
    silent = r.now + 4 * EVERY.offer_timeout_s
    r.until(silent - 0.1)
    assert r.node.expects("b", ref.hash) == ref
    r.until(silent + 0.1)
    assert r.node.expects("b", ref.hash) is None, "it fell silent"


def signed(ref: ModelRef, **changes: Any) -> ModelRef:
    """With the manifest that its maker signs."""
    said = {"hash": ref.hash, "size_bytes": ref.size_bytes, "round": ref.round, "steps": ref.steps}
    whole = {"federation": "f", "contract": PRINT, "maker": "b", "kind": "personal", "sequence": 1}
    return replace(ref, manifest=Manifest(**{**said, "cases": ref.cases, **whole, **changes}))


@pytest.mark.parametrize(
    ("ref", "reason", "offence"),
    [
        (signed(personal("b", size=3 << 30)), "too_large", True),
        (personal("b"), "manifest_missing", False),
        (signed(personal("b"), kind="model"), "manifest_mismatch", True),
        (signed(personal("b"), maker="c"), "manifest_forged", True),
        (signed(personal("b"), fault="schema_mismatch"), "schema_mismatch", True),
        (signed(personal("b"), contract="0" * 32), "manifest_contract", True),
    ],
)
def test_what_a_peer_names_is_checked(ref: ModelRef, reason: str, offence: bool) -> None:
    r = at_work(rig("b", trust=TrustParams(require_manifests=True)))
    r.round_done()
    r.answer(fetching(r)["b"], ms.FetchReply("accept", "", ref))
    assert r.notes("personal_refused")[0].reason == reason and bool(r.notes("offence")) == offence
    assert not fetching(r) and not r.node.wants_personal


def test_a_manifest_that_was_seen_is_no_newer_model() -> None:
    r = at_work(rig("b", trust=TrustParams(require_manifests=True)))
    r.round_done()
    receive(r, "b", signed(personal("b"), sequence=7), fetching(r)["b"])
    r.round_done()
    r.round_done()
    r.answer(fetching(r)["b"], ms.FetchReply("accept", "", signed(personal("old"), sequence=6)))
    assert r.notes("personal_refused")[0].reason == "manifest_replayed"


def test_a_broken_file_is_an_offence_and_a_lost_one_is_not() -> None:
    for reason, offence in (("hash_mismatch", True), ("disk_full", False)):
        r = at_work(rig("b"))
        ref = personal("b")
        r.round_done()
        r.answer(fetching(r)["b"], ms.FetchReply("accept", "", ref))
        r.answer(fetching(r)["b"], ms.FetchReply("accept", "", ref))
        r.do(ev.ModelBroken("b", ref.hash, reason))
        assert bool(r.notes("offence")) == offence
        assert r.node.wants_personal == (set() if offence else {"b"})
        assert not r.node.held_personal


@pytest.mark.parametrize(
    ("reason", "offence"),
    [
        ("not_finite", True),
        ("unreadable", False),
        ("norm_exploded", False),
        ("layer_changed_too_much", False),
    ],
)
def test_what_the_worker_refuses_is_let_go_of(reason: str, offence: bool) -> None:
    r = at_work(rig("b"))
    r.round_done()
    ref = personal("b")
    receive(r, "b", ref, fetching(r)["b"])
    r.do(ev.PersonalHeld((("b", model("older").hash, reason, ""),)))
    assert r.node.held_personal, "it was another one"
    r.do(ev.PersonalHeld((("b", ref.hash, reason, "head.weight"),)))
    assert not r.node.held_personal and r.node.count("refused", "b") == 1
    assert bool(r.notes("offence")) == offence and r.notes("personal_refused")[0].reason == reason


@pytest.mark.parametrize("reason", ["bad_network", "network_too_large"])
def test_a_network_that_cannot_be_built_here_is_no_offence_and_not_asked_for_again(reason: str) -> None:
    r = at_work(rig("b"))
    r.round_done()
    ref = personal("b")
    receive(r, "b", ref, fetching(r)["b"])
    r.do(ev.PersonalHeld((("b", ref.hash, reason, "5,000,000 parameters"),)))
    assert r.notes("personal_refused")[0].reason == reason and not r.notes("offence")
    for _ in range(4):
        r.round_done()
        assert not fetching(r) and not r.node.held_personal


def test_the_worker_is_told_after_a_restart_what_is_held() -> None:
    held = fx.PersonalRecord(None, (("b", personal("b")), ("x", personal("x"))))
    r = rig(snapshot=fx.Snapshot(1, 5, 50, personal=held))
    at_work(r)
    (told,) = r.of(fx.HoldPersonal)
    assert [site for site, _ in told.models] == ["b"], "x is listed no more"
    r.do(ev.WorkerLost("killed"))
    at_work(r)
    assert r.of(fx.HoldPersonal) == [told]


def test_a_removed_site_is_let_go_of_at_reload() -> None:
    r = at_work(rig("b", "c"))
    r.round_done()
    for site, request in fetching(r).items():
        receive(r, site, personal(site), request)
    r.do(ev.SitesChanged({"c": "c:7443"}))
    (told,) = r.of(fx.HoldPersonal)
    assert [site for site, _ in told.models] == ["c"] and list(r.node.held_personal) == ["c"]
    persisted = r.of(fx.Persist)[-1].snapshot.personal
    assert persisted is not None and [site for site, _ in persisted.held] == ["c"]


def test_a_dead_or_quarantined_or_strange_site_is_not_asked() -> None:
    r = at_work(rig("b", "c", "d"))
    r.hears("b", info=PeerInfo(5, 50, 10, Phase.TRAINING, "f" * 32))
    for _ in range(3):
        r.asks("c", ms.Offer(replace(model("huge"), size_bytes=3 << 40)))
    r.round_done()
    assert set(fetching(r)) == {"d"}
