"""Who is pinged and synced with: SWIM §3.1 and §4.3, Lifeguard's local health, a starved loop."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import pytest

from gossipseg.core import effects as fx
from gossipseg.core import events as ev
from gossipseg.core import messages as ms
from gossipseg.core.membership.dissemination import Broadcasts, retransmit_limit
from gossipseg.core.params import MembershipParams
from gossipseg.core.types import Record
from tests.core.rig import TRAINING, Rig, alive, suspect

NAMES = ("b", "c", "d", "e", "f", "g")


@pytest.fixture
def rig() -> Rig:
    r = Rig(NAMES).start()
    for sync in r.requests(ms.Sync):
        r.fail(sync)
    return r.meet(*NAMES)


def next_ping(rig: Rig) -> fx.Request:
    """Play on to the next probe and return it."""
    for _ in range(100):
        due = rig.node.next_deadline()
        assert due is not None
        rig.do(ev.Tick(), at=max(due, rig.now))
        if rig.requests(ms.Ping):
            return rig.request(ms.Ping)
    raise AssertionError("no probe")


def ack(*records: Record) -> ms.Ack:
    return ms.Ack(records, TRAINING)


def nothing_from(rig: Rig, ping: fx.Request) -> list[fx.Request]:
    """The ping fails; returns what is asked of helpers."""
    rig.fail(ping)
    return rig.requests(ms.IndirectPing)


# ---------------------------------------------------------------- the probe cycle


def test_each_member_is_pinged_once_in_a_pass(rig: Rig) -> None:
    # SWIM §4.3: "each member ... maintains a list ... ping targets are chosen in a round-robin fashion"
    for _ in range(3):
        targets = []
        for _ in NAMES:
            ping = next_ping(rig)
            targets.append(ping.to)
            rig.answer(ping, ack())
        if len(set(targets)) == len(NAMES):
            break
    assert sorted(targets) == sorted(NAMES)


def test_probes_come_at_the_interval(rig: Rig) -> None:
    times = []
    for _ in range(4):
        rig.answer(next_ping(rig), ack())
        times.append(rig.now)
    assert [b - a for a, b in itertools.pairwise(times)] == pytest.approx([5.0] * 3)


def test_an_answered_ping_gives_the_round_trip_time(rig: Rig) -> None:
    ping = next_ping(rig)
    rig.answer(ping, ack(), rtt_s=0.123)
    assert rig.node.members[ping.to].rtt_s == 0.123
    assert rig.node.members[ping.to].last_heard == rig.now


def test_an_unanswered_ping_asks_k_others(rig: Rig) -> None:
    # SWIM §3.1: "Mi selects k members at random and sends each a ping-req(Mj) message"
    ping = next_ping(rig)
    asked = nothing_from(rig, ping)
    assert len({r.to for r in asked}) == 3
    assert all(r.body.target == ping.to != r.to for r in asked)
    assert rig.state(ping.to) == "alive", "not accused before the helpers have spoken"


def test_a_target_that_a_helper_reaches_is_not_accused(rig: Rig) -> None:
    ping = next_ping(rig)
    helpers = nothing_from(rig, ping)
    rig.answer(helpers[0], ms.IndirectAck(ping.to, True, ()))
    rig.fail(helpers[1])
    rig.answer(helpers[2], ms.IndirectAck(ping.to, False, ()))
    assert rig.state(ping.to) == "alive"


def test_a_target_nobody_reaches_is_accused_under_this_sites_name(rig: Rig) -> None:
    ping = next_ping(rig)
    for helper in nothing_from(rig, ping):
        rig.answer(helper, ms.IndirectAck(ping.to, False, ()))
    assert rig.state(ping.to) == "suspect"
    accusation = rig.node.members[ping.to].accusation
    assert accusation is not None and (accusation.accuser, accusation.signature != b"") == ("me", True)
    assert rig.node.self_health == 0, "all helpers answered: the link here is fine"


def test_helpers_that_are_silent_too_count_against_this_site(rig: Rig) -> None:
    # Lifeguard §IV-A: a missed nack raises the local health multiplier
    for helper in nothing_from(rig, next_ping(rig)):
        rig.fail(helper)
    assert rig.node.self_health == 3


def test_bad_self_health_slows_probes_and_gives_targets_more_time(rig: Rig) -> None:
    # Lifeguard LHA-Probe: "ProbeInterval = BaseProbeInterval·(LHM+1)", the timeout likewise
    for helper in nothing_from(rig, next_ping(rig)):
        rig.fail(helper)
    before = rig.now
    ping = next_ping(rig)  # was due under the old score
    assert ping.timeout_s == pytest.approx(3.0 * 4)
    first = rig.now
    rig.answer(ping, ack())
    assert rig.node.self_health == 2
    next_ping(rig)
    assert rig.now - first == pytest.approx(5.0 * 4)
    assert first - before <= 5.0


def test_self_health_is_bounded(rig: Rig) -> None:
    for _ in range(4):
        for helper in nothing_from(rig, next_ping(rig)):
            rig.fail(helper)
    assert rig.node.self_health == MembershipParams().max_self_health


def test_without_helpers_the_silence_of_one_is_held_against_both() -> None:
    rig = Rig(["b"]).start().meet("b")
    rig.fail(next_ping(rig))
    assert rig.state("b") == "suspect"
    assert rig.node.self_health == 1


def test_a_site_that_refuses_our_key_is_alive_and_shown_as_refused(rig: Rig) -> None:
    ping = next_ping(rig)
    rig.fail(ping, "refused", "me is not in its list")
    assert rig.state(ping.to) == "alive"
    assert rig.node.members[ping.to].refused == "refused: me is not in its list"
    assert rig.notes("peer_refused")
    rig.hears(ping.to)
    assert rig.node.members[ping.to].refused == ""


def test_a_site_that_shows_the_wrong_key_is_not_reached(rig: Rig) -> None:
    ping = next_ping(rig)
    helpers = rig.fail(ping, "untrusted", "expected 1234, seen 9999") and rig.requests(ms.IndirectPing)
    assert len(helpers) == 3
    assert "9999" in rig.node.members[ping.to].refused


# ---------------------------------------------------------------- helping others


def test_a_helper_pings_for_another_and_reports_what_it_saw(rig: Rig) -> None:
    rig.asks("b", ms.IndirectPing("c", ()))
    ping = rig.request(ms.Ping)
    assert ping.to == "c" and not rig.of(fx.Respond)
    rig.answer(ping, ack())
    assert rig.reply() == ms.IndirectAck("c", True, rig.reply().records)
    rig.asks("b", ms.IndirectPing("c", ()))
    rig.fail(rig.request(ms.Ping))
    assert rig.reply().reached is False
    assert rig.state("c") == "alive", "a helper accuses nobody"


@pytest.mark.parametrize(("target", "reached"), [("me", True), ("mallory", False)])
def test_a_helper_asked_about_itself_or_a_stranger_answers_at_once(
    rig: Rig, target: str, reached: bool
) -> None:
    rig.asks("b", ms.IndirectPing(target, ()))
    assert rig.reply().reached is reached
    assert not rig.requests(ms.Ping)


# ---------------------------------------------------------------- a starved loop


def test_failures_seen_after_the_own_loop_stood_still_accuse_nobody(rig: Rig) -> None:
    ping = next_ping(rig)
    rig.do(ev.RequestFailed(ping.id, "timeout"), at=rig.now + 20)
    assert not rig.requests(ms.IndirectPing)
    assert rig.state(ping.to) == "alive"
    assert rig.node.self_health >= 1


def test_one_stall_counts_once_whatever_is_read_before_its_tick(rig: Rig) -> None:
    rig.now += 30
    for _ in range(3):
        rig.hears("b")
    assert rig.node.self_health == 1


def test_silent_helpers_of_a_starved_site_accuse_nobody(rig: Rig) -> None:
    ping = next_ping(rig)
    helpers = nothing_from(rig, ping)
    rig.do(ev.RequestFailed(helpers[0].id, "timeout"), at=rig.now + 20)
    rig.fail(helpers[1])
    rig.fail(helpers[2])
    assert rig.state(ping.to) == "alive"


def test_a_suspicion_that_ran_out_while_the_loop_stood_still_waits_for_the_backlog(rig: Rig) -> None:
    rig.hears("b", suspect("c", "b"))
    held = rig.node.members["c"].suspicion
    assert held is not None
    late = held.deadline + 60
    rig.do(ev.Tick(), at=late)
    assert rig.state("c") == "suspect", "the refutation may be in the backlog"
    rig.hears("b", alive("c", 2))
    assert rig.state("c") == "alive"
    rig.hears("b", suspect("d", "b"))
    held = rig.node.members["d"].suspicion
    assert held is not None
    rig.do(ev.Tick(), at=held.deadline + 60)
    assert rig.requests(ms.Ping, to="d"), "it is called once more"
    rig.until(rig.now + 13)
    assert rig.state("d") == "dead"


def test_a_stall_after_the_last_call_leaves_time_to_read_its_answer(rig: Rig) -> None:
    rig.hears("b", suspect("c", "b"))
    held = rig.node.members["c"].suspicion
    assert held is not None
    rig.until(held.deadline - 0.1)
    assert held.called
    rig.do(ev.Tick(), at=held.deadline + 60)
    assert rig.state("c") == "suspect"
    rig.until(rig.now + 6)
    assert rig.state("c") == "dead"


def test_a_suspect_is_called_once_more_before_it_is_given_up(rig: Rig) -> None:
    rig.hears("b", suspect("c", "b"))
    held = rig.node.members["c"].suspicion
    assert held is not None
    calls = [e for e in rig.until(held.deadline - 0.1) if isinstance(e, fx.Request) and e.to == "c"]
    assert suspect("c", "b") in calls[-1].body.records
    rig.answer(calls[-1], ack(alive("c", 2)))
    assert rig.state("c") == "alive"


# ---------------------------------------------------------------- push/pull


def test_at_the_start_a_few_listed_sites_are_dialled_at_once() -> None:
    rig = Rig([f"s{i}" for i in range(20)]).start()
    syncs = rig.requests(ms.Sync)
    assert len({s.to for s in syncs}) == 3
    assert all(any(r.site == "me" for r in s.body.records) for s in syncs)


def test_while_alone_another_listed_site_is_dialled_each_probe_interval() -> None:
    rig = Rig(("b", "c", "d", "e")).start()
    for sync in rig.requests(ms.Sync):
        rig.fail(sync, "unreachable", "connection refused")
    assert {rig.node.members[s].reason for s in rig.node.members} >= {"unreachable: connection refused"}
    dialled = []
    for _ in range(8):
        rig.until(rig.now + 5.0)
        for sync in rig.requests(ms.Sync):
            dialled.append(sync.to)
            rig.fail(sync, "unreachable")
    assert set(dialled) == {"b", "c", "d", "e"}


def test_each_push_pull_also_dials_a_listed_site_that_is_not_alive() -> None:
    rig = Rig(NAMES).start()
    for sync in rig.requests(ms.Sync):
        rig.fail(sync)
    rig.meet("b", "c")
    dialled: Counter[str] = Counter()
    for effect in rig.until(rig.now + 600):
        if isinstance(effect, fx.Request):
            if isinstance(effect.body, ms.Sync):
                dialled[effect.to] += 1
                rig.fail(effect)
            elif isinstance(effect.body, ms.Ping):
                rig.answer(effect, ack())
    assert set(dialled) >= {"d", "e", "f", "g"}


def test_the_push_pull_interval_grows_with_the_federation() -> None:
    few, many = Rig([f"s{i}" for i in range(31)]).start(), Rig([f"s{i}" for i in range(255)]).start()
    for rig, factor in ((few, 1), (many, 4)):
        everybody = tuple(alive(s) for s in rig.node.members)
        rig.asks("s0", ms.Sync(everybody, TRAINING))
        assert rig.node._membership.news.push_pull_interval_s() == 60.0 * factor


def test_a_push_pull_with_much_news_is_soon_followed_by_another() -> None:
    rig = Rig([f"s{i}" for i in range(20)]).start()
    sync = rig.requests(ms.Sync)[0]
    rig.answer(sync, ms.SyncReply(tuple(alive(f"s{i}") for i in range(10)), TRAINING))
    assert rig.node._failure_detector._sync_at <= rig.now + 5.0


def test_a_site_held_for_dead_that_calls_is_told_and_synced_with(rig: Rig) -> None:
    rig.hears("b", suspect("c", "b"))
    held = rig.node.members["c"].suspicion
    assert held is not None
    rig.until(held.deadline + 0.001)
    assert rig.state("c") == "dead"
    rig.hears("c")
    assert suspect("c", "b") in rig.reply().records
    sync = rig.request(ms.Sync, to="c")
    assert suspect("c", "b") in sync.body.records
    rig.answer(sync, ms.SyncReply((alive("c", 2),), TRAINING))
    assert rig.state("c") == "alive"


def test_an_unlisted_caller_is_answered_without_effect(rig: Rig) -> None:
    rig.asks("mallory", ms.Ping((), TRAINING))
    assert isinstance(rig.reply(), ms.Ack)
    assert "mallory" not in rig.node.members


# ---------------------------------------------------------------- dissemination


def test_the_queue_prefers_what_was_sent_least_and_of_that_the_newest() -> None:
    queue = Broadcasts(lambda record: True)
    for site in ("a", "b", "c"):
        queue.add(alive(site))
    assert [r.site for r in queue.take(2, 4)] == ["c", "b"]
    assert [r.site for r in queue.take(2, 4)] == ["a", "b"]


@pytest.mark.parametrize(("live", "limit"), [(1, 4), (9, 4), (10, 8), (99, 8), (1000, 16)])
def test_the_retransmit_limit_is_four_times_log10(live: int, limit: int) -> None:
    assert retransmit_limit(live) == limit == 4 * math.ceil(math.log10(live + 1))


def test_the_queue_empties() -> None:
    queue = Broadcasts(lambda record: True)
    for i in range(10):
        queue.add(alive(f"s{i}"))
    sent: Counter[str] = Counter()
    while taken := queue.take(3, 5):
        sent.update(r.site for r in taken)
    assert queue.size == 0
    assert set(sent.values()) == {5}
