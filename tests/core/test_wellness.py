"""Am I well? Each concern arises in its time, and goes once its cause is gone. In virtual time."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gossipseg.core import effects as fx
from gossipseg.core import events as ev
from gossipseg.core import messages as ms
from gossipseg.core.exchange_times import ExchangeTimes
from gossipseg.core.params import GossipParams, MembershipParams, RoundsParams, membership_preset
from gossipseg.core.types import Phase, SwapTerms, listing
from gossipseg.core.wellness import FAILED_TRANSFERS, QUIET_ROUNDS, lists_text
from tests.core.personal.test_personal import EVERY, at_work, fetch, fetching, personal, receive
from tests.core.personal.test_personal import rig as personal_rig
from tests.core.rig import PRINT, TRAINING, Rig, alive, model, phase


def codes(rig: Rig, site: str | None = None) -> set[str]:
    return {c.code for c in rig.node.concerns(rig.now) if site in (None, c.site)}


def text(rig: Rig, code: str) -> str:
    (found,) = [c for c in rig.node.concerns(rig.now) if c.code == code]
    return f"{found.site}: {found.text} ({found.why})"


def rounds(rig: Rig, n: int) -> None:
    for _ in range(n):
        rig.round_done()


def training(*others: str, **changes: object) -> Rig:
    """A node that has met the others and trains."""
    rig = Rig(others, **{"gossip": GossipParams(exchange="push", warmup_rounds=0), **changes}).start()
    rig.ready()
    return rig.meet(*others)


# ---------------------------------------------------------------- never seen


def test_a_listed_peer_that_never_came_is_told_after_a_grace_and_forgotten_once_it_comes() -> None:
    rig = Rig(("b", "c")).start()
    (first, *_) = rig.requests(ms.Sync, "b")
    rig.fail(first, "unreachable", "b:7443: Connection refused")
    rig.meet("c")
    assert codes(rig) == set(), "the start is no time to complain"
    rig.until(100 + rig.node.grace_s + 1)
    assert codes(rig) == {"never_seen"}
    assert "never seen since the start" in text(rig, "never_seen")
    assert "Connection refused" in text(rig, "never_seen")
    rig.meet("b")
    assert "never_seen" not in codes(rig)


def test_the_grace_follows_the_pace_of_the_membership() -> None:
    assert Rig().node.grace_s == 120
    assert Rig(membership=membership_preset("lan")).node.grace_s == 60
    assert Rig(membership=membership_preset("local")).node.grace_s == 15


def test_a_site_added_by_a_reload_has_its_own_grace() -> None:
    rig = Rig(("b",)).start().meet("b")
    rig.until(1000)
    rig.do(ev.SitesChanged({"b": "b:7443", "late": "late:7443"}))
    assert "never_seen" not in codes(rig, "late")
    rig.until(rig.now + rig.node.grace_s + 1)
    assert "never_seen" in codes(rig, "late")
    rig.do(ev.SitesChanged({"b": "b:7443"}))
    assert codes(rig, "late") == set()


def test_a_federation_of_one_site_is_well_for_ever() -> None:
    for exchange in ("gossip", "rounds", "none"):
        rig = Rig((), exchange=exchange).start()
        rig.ready()
        rig.until(5000)
        assert codes(rig) == set(), exchange


def test_one_of_two_that_never_came_leaves_the_other_training() -> None:
    rig = Rig(("b",), gossip=GossipParams(exchange="push", warmup_rounds=0)).start()
    rig.ready()
    assert rig.of(fx.StartRound)
    rounds(rig, 3)
    rig.until(1000)
    assert codes(rig) == {"never_seen"} and rig.node.phase is Phase.TRAINING
    rounds(rig, QUIET_ROUNDS)
    assert codes(rig) == {"never_seen", "nothing_sent", "nothing_received"}
    assert rig.of(fx.StartRound), "it is said, and nothing is stopped"


# ---------------------------------------------------------------- one way only


def fails_its_pings(rig: Rig, site: str, until: float, *, calls_in: bool) -> None:
    """Play the ticks; all that goes to `site` fails, what goes to others is answered."""
    queue = list(rig.out)
    while (due := rig.node.next_deadline()) is not None and due <= until:
        queue += rig.do(ev.Tick(), at=max(due, rig.now))
        while queue:
            effect = queue.pop(0)
            if isinstance(effect, fx.Request):
                queue += answered(rig, effect, site)
        if calls_in:
            queue += rig.hears(site)


def answered(rig: Rig, request: fx.Request, lost: str) -> list[fx.Effect]:
    if request.to == lost:
        return rig.fail(request, "unreachable", f"{lost}:7443: No route to host")
    if isinstance(request.body, ms.Ping):
        return rig.answer(request, ms.Ack((), TRAINING))
    if isinstance(request.body, ms.IndirectPing):
        return rig.answer(request, ms.IndirectAck(request.body.target, True, ()))
    if isinstance(request.body, ms.Sync):
        return rig.answer(request, ms.SyncReply((), TRAINING))
    return rig.fail(request)


@pytest.mark.parametrize("others", [("b",), ("b", "c", "d")])
def test_alive_only_because_it_calls_in(others: tuple[str, ...]) -> None:
    """A one-way firewall: b dials this site, this site cannot dial b. Others may relay, or there are none."""
    rig = training(*others)
    fails_its_pings(rig, "b", 100 + 200, calls_in=True)
    assert "calls_in_only" in codes(rig, "b") and rig.node.members["b"].live
    assert "No route to host" in text(rig, "calls_in_only")
    assert all(codes(rig, other) == set() for other in others[1:])
    rig.hears("b")
    (ping,) = rig.requests(ms.Ping, "b") or [None]
    member = rig.node.members["b"]
    request = ping or next(r for r in rig.until(rig.now + 60) if isinstance(r, fx.Request) and r.to == "b")
    rig.do(ev.Reply(request.id, ms.Ack((), TRAINING), 0.01))
    assert member.calls.failed == 0 and "calls_in_only" not in codes(rig, "b")


def test_a_peer_that_is_silent_both_ways_is_not_said_to_call_in() -> None:
    rig = training("b", "c")
    fails_its_pings(rig, "b", 100 + 60, calls_in=False)
    assert "calls_in_only" not in codes(rig, "b")


def test_a_refusal_is_an_answer() -> None:
    rig = training("b")
    for _ in range(10):
        for request in [r for r in rig.until(rig.now + 30) if isinstance(r, fx.Request) and r.to == "b"]:
            rig.fail(request, "refused", "paused")
        rig.hears("b")
    assert rig.node.members["b"].calls.failed == 0 and "calls_in_only" not in codes(rig)


def test_a_site_that_was_away_and_calls_again_is_given_time_for_an_answer() -> None:
    rig = training("b", "c")
    fails_its_pings(rig, "b", 100 + 60, calls_in=False)
    member = rig.node.members["b"]
    assert member.calls.failed >= 3
    rig.hears("b", alive("b", incarnation=2))
    assert member.live and member.calls.failed >= 3
    assert "calls_in_only" not in codes(rig, "b"), "nothing has been tried since"


# ---------------------------------------------------------------- models that do not get through


def begin_transfer(rig: Rig) -> fx.StartTransfer:
    rig.round_done(export=model(f"m{rig.node.round}"))
    rig.answer(rig.request(ms.Offer), ms.OfferReply("accept"))
    (transfer,) = rig.of(fx.StartTransfer)
    return transfer


def test_a_run_of_failed_transfers_to_a_peer() -> None:
    rig = training("b", gossip=GossipParams(exchange="push", warmup_rounds=0, sender_rate=1.0))
    for n in range(FAILED_TRANSFERS):
        assert "sends_fail" not in codes(rig), n
        rig.do(ev.TransferFailed(begin_transfer(rig).id, "unreachable", "the line stood still"))
    assert "the line stood still" in text(rig, "sends_fail")
    rig.do(ev.TransferDone(begin_transfer(rig).id))
    assert "sends_fail" not in codes(rig)


def test_a_closed_window_is_no_failure() -> None:
    rig = training("b", gossip=GossipParams(exchange="push", warmup_rounds=0, sender_rate=1.0))
    for _ in range(FAILED_TRANSFERS + 1):
        rig.do(ev.TransferFailed(begin_transfer(rig).id, "window_closed"))
    assert "sends_fail" not in codes(rig)


def test_a_run_of_failed_transfers_from_a_peer() -> None:
    rig = training("b")
    for n in range(FAILED_TRANSFERS):
        assert "takes_fail" not in codes(rig), n
        offered = model(f"in{n}")
        rig.asks("b", ms.Offer(offered))
        assert rig.reply().verdict == "accept"
        rig.do(ev.ModelBroken("b", offered.hash, "cut_off"))
    assert "(cut_off)" in text(rig, "takes_fail")
    whole = model("whole")
    rig.asks("b", ms.Offer(whole))
    rig.do(ev.ModelArrived("b", whole))
    assert "takes_fail" not in codes(rig)


def test_promised_models_that_never_come_count_too() -> None:
    rig = training("b", gossip=GossipParams(exchange="push", warmup_rounds=0, transfer_timeout_s=10))
    for n in range(FAILED_TRANSFERS):
        rig.asks("b", ms.Offer(model(f"in{n}")))
        fails_its_pings(rig, "nobody", rig.now + 11, calls_in=False)
    assert "never_came" in text(rig, "takes_fail")


def test_what_failed_with_a_life_that_is_over_is_forgotten() -> None:
    """It was restarted: neither calls nor models of before say anything."""
    rig = training("b", gossip=GossipParams(exchange="push", warmup_rounds=0, sender_rate=1.0))
    for _ in range(FAILED_TRANSFERS):
        rig.do(ev.TransferFailed(begin_transfer(rig).id, "unreachable", "gone"))
    assert "sends_fail" in codes(rig)
    rig.hears("b", alive("b", nonce=8))
    assert "sends_fail" not in codes(rig)


def test_models_that_failed_are_no_concern_once_none_will_go() -> None:
    rig = training("b", "c", gossip=GossipParams(exchange="push", warmup_rounds=0, sender_rate=1.0))
    for n in range(FAILED_TRANSFERS):
        offered = model(f"in{n}")
        rig.asks("b", ms.Offer(offered))
        rig.do(ev.ModelBroken("b", offered.hash, "cut_off"))
    assert "takes_fail" in codes(rig)
    rig.hears("b", info=phase(Phase.FINISHED))
    assert "takes_fail" not in codes(rig)


# ---------------------------------------------------------------- rounds in which nothing came or went


def test_no_model_for_too_many_rounds_is_told_and_the_count_begins_anew_with_each() -> None:
    rig = training("b", gossip=GossipParams(exchange="push", warmup_rounds=0, sender_rate=1.0))
    later = replace(TRAINING, round=100)
    rounds(rig, QUIET_ROUNDS - 1)
    rig.hears("b", info=later)
    assert codes(rig) == set()
    rounds(rig, 1)
    rig.hears("b", info=later)
    assert codes(rig) == {"nothing_sent", "nothing_received"}
    assert f"in the last {QUIET_ROUNDS} rounds; b is alive" in text(rig, "nothing_received")
    rig.asks("b", ms.Offer(model("in")))
    rig.do(ev.ModelArrived("b", model("in")))
    assert codes(rig) == {"nothing_sent"}
    rig.do(ev.TransferDone(begin_transfer(rig).id))
    assert codes(rig) == set()


def test_under_swaps_the_exchanges_that_were_due_are_counted() -> None:
    swap = GossipParams(exchange="swap", warmup_rounds=0)
    rig = training("b", gossip=swap, exchange_at=ExchangeTimes(3))
    n = 0
    while codes(rig) == set():
        rig.round_done()
        refuse(rig)
        n += 1
    assert 3 * QUIET_ROUNDS - 2 <= n <= 3 * QUIET_ROUNDS
    assert codes(rig) == {"nothing_sent", "nothing_received"}
    assert f"in the last {QUIET_ROUNDS} exchanges that were due; b is alive" in text(rig, "nothing_sent")


@pytest.mark.parametrize(("length", "limit"), [(30, 5), (90, 10), (600, QUIET_ROUNDS)])
@pytest.mark.parametrize("exchange", ["swap", "push"])
def test_in_a_short_training_fewer_exchanges_are_waited_for(exchange: str, length: int, limit: int) -> None:
    """A third of all, five at least: ten exchanges in all would never come to twenty without a model."""
    gossip = GossipParams(exchange=exchange, warmup_rounds=0, sender_rate=1.0)  # type: ignore[arg-type]
    rig = training("b", gossip=gossip, exchange_at=ExchangeTimes(3), rounds=length, federation_rounds=length)
    rig.hears("b", info=replace(TRAINING, round=1000))
    n = 0
    while codes(rig) == set() and n < length:
        rig.round_done()
        if exchange == "swap":
            refuse(rig)
        n += 1
    assert f"in the last {limit} exchanges that were due" in text(rig, "nothing_sent")
    if exchange == "swap":
        assert codes(rig) == {"nothing_sent", "nothing_received"}
    elif limit < 10:
        assert codes(rig) == {"nothing_sent"}, "who is sent to is drawn"


def test_a_personal_model_that_is_fetched_or_served_is_no_exchange() -> None:
    rig = at_work(personal_rig("b", gossip=replace(EVERY, warmup_rounds=0, sender_rate=1.0)))
    rig.hears("b", info=replace(TRAINING, round=1000))
    served = fetched = n = 0
    while codes(rig) == set() and n < 2 * QUIET_ROUNDS:
        rig.round_done()
        n += 1
        requests = fetching(rig)
        if rig.of(fx.ExportPersonal):
            rig.do(ev.PersonalExported(personal(f"mine {n}"), rig.node.round))
        for site, request in requests.items():
            receive(rig, site, personal(f"theirs {n}"), request)
            rig.do(ev.PersonalHeld())
            fetched += 1
        rig.asks("b", fetch())
        if (named := rig.reply().model) is not None:
            rig.asks("b", fetch(named.hash))
            rig.do(ev.TransferDone(rig.of(fx.StartTransfer)[0].id))
            served += bool(rig.notes("personal_sent"))
    assert served > 3 and fetched > 3
    assert n == QUIET_ROUNDS and codes(rig) == {"nothing_sent", "nothing_received"}


def test_exchanges_that_are_seldom_due_are_counted_and_not_rounds() -> None:
    """Under push, and under a coordinator: none of the rounds between them is counted."""
    gossip = GossipParams(exchange="push", warmup_rounds=0, sender_rate=1.0)
    rig = training("b", gossip=gossip, exchange_at=ExchangeTimes(3))
    rig.hears("b", info=replace(TRAINING, round=1000))
    n = 0
    while codes(rig) == set():
        rig.round_done()
        n += 1
    assert 3 * QUIET_ROUNDS - 2 <= n <= 3 * QUIET_ROUNDS
    assert codes(rig) == {"nothing_sent", "nothing_received"}
    assert f"in the last {QUIET_ROUNDS} exchanges that were due; b is alive" in text(rig, "nothing_sent")
    slow = training("b", gossip=gossip, exchange_at=ExchangeTimes(3))
    rounds(slow, 9 * QUIET_ROUNDS)
    slow.hears("b", info=replace(TRAINING, round=TRAINING.round + 3 * QUIET_ROUNDS - 1))
    assert codes(slow) == set(), "it has had too few rounds to send in"


def test_under_swaps_a_model_each_way_ends_the_silence() -> None:
    rig = training("b", gossip=GossipParams(exchange="swap", warmup_rounds=0))
    for _ in range(QUIET_ROUNDS):
        rig.round_done()
        refuse(rig)
    rig.round_done()
    offer = rig.request(ms.SwapOffer)
    swap = offer.body.terms.swap  # type: ignore[union-attr]
    terms = SwapTerms(swap, "f", PRINT, "b", "me", 10, 10, rig.node.info.steps, 5)
    rig.answer(offer, ms.SwapOfferReply("accept", "", terms))
    rig.do(ev.SnapshotExported(swap, model("mine")))
    rig.answer(rig.request(ms.SwapSnapshot), ms.SwapSnapshotReply("accept"))
    rig.do(ev.TransferDone(rig.of(fx.StartTransfer)[0].id))
    assert codes(rig) == {"nothing_received"}
    rig.asks("b", ms.SwapSnapshot(swap, model("theirs")))
    rig.do(ev.ModelArrived("b", model("theirs")))
    assert codes(rig) == set()


def refuse(rig: Rig) -> None:
    """The peer is busy each time."""
    while found := rig.requests(ms.SwapOffer):
        rig.answer(found[0], ms.SwapOfferReply("busy", "busy"))


def test_a_restart_begins_the_count_at_its_own_round() -> None:
    rig = Rig(("b",), gossip=GossipParams(exchange="push", warmup_rounds=0)).start()
    rig.ready(round=500, steps=5000)
    rig.meet("b")
    assert codes(rig) == set()


def test_a_worker_that_comes_again_does_not_begin_the_count_anew() -> None:
    rig = training("b", gossip=GossipParams(exchange="push", warmup_rounds=0, sender_rate=1.0))
    rounds(rig, QUIET_ROUNDS)
    rig.do(ev.WorkerLost("killed"))
    rig.ready(round=rig.node.round, steps=rig.node.round * 10)
    rig.hears("b", info=replace(TRAINING, round=100))
    assert "nothing_sent" in codes(rig)


def test_a_site_that_is_slower_is_no_cause_for_alarm() -> None:
    rig = training("b", gossip=GossipParams(exchange="push", warmup_rounds=0, sender_rate=1.0))
    rounds(rig, 5 * QUIET_ROUNDS)
    rig.hears("b", info=replace(TRAINING, round=TRAINING.round + 1))
    assert codes(rig) == set()
    rig.hears("b", info=replace(TRAINING, round=TRAINING.round + QUIET_ROUNDS))
    assert codes(rig) == {"nothing_sent", "nothing_received"}


def test_the_others_count_together_and_without_their_warm_up() -> None:
    """One fast site among slow ones sends to each of them in turn; nobody sends while it warms up."""
    rig = training("b", "c", "d", gossip=GossipParams(exchange="push", warmup_rounds=0, sender_rate=1.0))
    rounds(rig, 5 * QUIET_ROUNDS)
    rig.hears("b", info=replace(TRAINING, round=TRAINING.round + QUIET_ROUNDS))
    assert codes(rig) == set()
    warm = training(
        "b", gossip=GossipParams(exchange="push", warmup_rounds=TRAINING.round + 100, sender_rate=1.0)
    )
    rounds(warm, 300)
    warm.hears("b", info=replace(TRAINING, round=TRAINING.round + 100))
    assert codes(warm) == set()
    warm.hears("b", info=replace(TRAINING, round=TRAINING.round + 100 + QUIET_ROUNDS))
    assert codes(warm) == {"nothing_sent", "nothing_received"}


def test_where_chance_seldom_sends_more_rounds_are_waited_for() -> None:
    rig = training("b", gossip=GossipParams(exchange="push", warmup_rounds=0, sender_rate=0.02))
    rounds(rig, 10 * QUIET_ROUNDS)
    rig.hears("b", info=replace(TRAINING, round=10_000))
    assert codes(rig) == set(), "one model in fifty rounds is what was asked for"
    rounds(rig, 80 * QUIET_ROUNDS)
    rig.hears("b", info=replace(TRAINING, round=10_000))
    assert "nothing_received" in codes(rig)


@pytest.mark.parametrize(
    "changes", [{"exchange": "none"}, {"gossip": GossipParams(exchange="push", sender_rate=0.0)}]
)
def test_who_is_to_send_nothing_is_well(changes: dict[str, object]) -> None:
    rig = training("b", **changes)
    rounds(rig, 10 * QUIET_ROUNDS)
    rig.hears("b", info=replace(TRAINING, round=1000))
    assert codes(rig) == set()


def test_others_that_have_finished_or_left_are_not_missed() -> None:
    rig = training("b")
    rig.hears("b", info=replace(phase(Phase.FINISHED), round=1000))
    rounds(rig, 10 * QUIET_ROUNDS)
    assert codes(rig) == set()


def test_a_site_that_leaves_has_no_concerns() -> None:
    rig = Rig(("b",)).start()
    rig.until(1000)
    assert codes(rig) == {"never_seen"}
    rig.do(ev.Leave())
    assert codes(rig) == set()


# ---------------------------------------------------------------- under a coordinator


def coordinated(*others: str, **changes: object) -> Rig:
    params = {"membership": MembershipParams(), "rounds_params": RoundsParams()}
    rig = Rig(others, exchange="rounds", **params, **changes).start()
    rig.ready(round=0, steps=0)
    return rig


def test_a_round_without_a_quorum_says_who_is_missing() -> None:
    rig = coordinated("b", "c", "d")
    rig.meet("b")
    assert "round_cannot_close" not in codes(rig)
    rig.until(100 + rig.node.grace_s + 1)
    told = text(rig, "round_cannot_close")
    assert "round 1 cannot close: it needs 3 of 4 sites, and 2 are there" in told
    assert "missing: c (unseen), d (unseen)" in told
    rig.meet("c")
    rig.meet("b")  # it was not answered meanwhile
    assert "round_cannot_close" not in codes(rig)


def test_rounds_without_a_common_model_are_told() -> None:
    rig = coordinated("b")
    rig.until(rig.now + 20)  # it met nobody: it trains on its own
    for _ in range(QUIET_ROUNDS):
        rig.until(rig.now + 4000)
        rig.round_done(export=model(f"u{rig.node.round}"))
    assert "no_common_model" in codes(rig) and "b is unseen" in text(rig, "no_common_model")


def test_under_a_coordinator_the_exchanges_that_were_due_are_counted() -> None:
    """The first update is due after three rounds, and anew after each round that is trained alone."""
    rig = coordinated("b", exchange_at=ExchangeTimes(3))
    rig.until(rig.now + 20)
    for n in range(QUIET_ROUNDS + 2):
        assert "no_common_model" not in codes(rig), n
        rig.until(rig.now + 4000)
        rig.round_done(export=model(f"u{n}") if n >= 2 else None)
    assert f"in the last {QUIET_ROUNDS} exchanges that were due" in text(rig, "no_common_model")


# ---------------------------------------------------------------- lists that differ


def test_lists_that_differ_are_an_event_and_a_concern() -> None:
    ours, theirs = listing({"me": ["A"], "b": ["B"]}), listing({"me": ["A"], "b": ["B"], "c": ["C"]})
    rig = Rig(("b",), listed=ours).start()
    rig.meet("b", info=replace(TRAINING, listed=ours))
    assert "lists_differ" not in codes(rig) and not rig.notes("lists_differ")
    rig.hears("b", info=replace(TRAINING, listed=theirs))
    assert rig.notes("lists_differ")
    assert "its peers.yaml lists 3 sites, this site's lists 2" in text(rig, "lists_differ")
    rig.hears("b", info=replace(TRAINING, listed=theirs))
    assert not rig.notes("lists_differ"), "once"
    rig.do(ev.SitesChanged({"b": "b:7443", "c": "c:7443"}, listed=theirs))
    assert "lists_differ" not in codes(rig) and rig.node.info.listed == theirs
    rig.hears("b", info=TRAINING)
    assert "lists_differ" not in codes(rig), "an older version says nothing of its list"


def test_what_stands_for_a_list() -> None:
    assert listing({"a": ["2", "1"], "b": ["3"]}) == listing({"b": ["3"], "a": ["1", "2"]})
    assert listing({"a": ["1"]}) != listing({"a": ["2"]}) != listing({"b": ["2"]})
    assert lists_text("2-aa", "2-bb") == "its peers.yaml lists other sites or keys than this site's"
    assert "other sites or keys" in lists_text("2-aa", "9" * 200 + "-bb")
