"""What records mean: SWIM §4.2 (suspicion, incarnations) and what gossipseg adds (signed by the subject)."""

from __future__ import annotations

import itertools
import math

import pytest

from gossipseg.core import effects as fx
from gossipseg.core import events as ev
from gossipseg.core import messages as ms
from gossipseg.core.effects import Snapshot
from gossipseg.core.membership.members import TRANSITIONS, MemberEvent
from gossipseg.core.membership.suspicion import (
    FALSE_ALARMS,
    confirmations_needed,
    minimum_timeout_s,
    timeout_s,
)
from gossipseg.core.params import MembershipParams
from gossipseg.core.types import AliveRecord, MemberState, PeerInfo, Phase
from tests.core.rig import TRAINING, Rig, alive, left, signature, suspect


@pytest.fixture
def rig() -> Rig:
    """`me` among b, c, d; b and c are known alive."""
    r = Rig().start()
    r.hears("b", alive("b"))
    r.hears("c", alive("c"))
    return r


# ---------------------------------------------------------------- suspicion times


@pytest.mark.parametrize(
    ("live", "expected_s"), [(1, 30.0), (3, 30.0), (10, 30.0), (100, 60.0), (1000, 90.0)]
)
def test_minimum_timeout_is_multiplier_times_log10_n_times_interval(live: int, expected_s: float) -> None:
    assert minimum_timeout_s(live, MembershipParams()) == pytest.approx(expected_s)


@pytest.mark.parametrize(("live", "needed"), [(2, 0), (5, 0), (6, 4), (100, 4)])
def test_confirmations_are_asked_only_where_there_are_sites_to_give_them(live: int, needed: int) -> None:
    # N − 2 ≥ multiplier − 2 with the WAN multiplier of 6
    assert confirmations_needed(live, MembershipParams()) == needed


def test_lifeguard_timeout_shrinks_logarithmically_from_max_to_min() -> None:
    # Lifeguard: "SuspicionTimeout = max(Min, Max − (Max − Min)·log(C+1)/log(K+1))", Max = 6·Min, K = 4
    assert timeout_s(30.0, 0, 4) == pytest.approx(180.0)
    assert timeout_s(30.0, 1, 4) == pytest.approx(180 - 150 * math.log(2) / math.log(5))
    assert timeout_s(30.0, 4, 4) == pytest.approx(30.0)
    assert timeout_s(30.0, 9, 4) == 30.0
    assert timeout_s(30.0, 0, 0) == 30.0


# ---------------------------------------------------------------- the order of records


def test_a_newer_alive_record_replaces_an_older_one_and_never_the_reverse(rig: Rig) -> None:
    # SWIM: "{Alive Ml, inc = i} overrides {Alive Ml, inc = j}, any j < i"
    rig.hears("b", alive("c", 3, cases=9))
    rig.hears("b", alive("c", 2, cases=5))
    member = rig.node.members["c"]
    assert (member.incarnation, member.cases, member.address) == (3, 9, "c:1")


def test_suspect_overrides_alive_of_the_same_incarnation(rig: Rig) -> None:
    # SWIM: "{Suspect Ml, inc = i} overrides {Alive Ml, inc = j}, any i ≥ j"
    rig.hears("b", suspect("c", "b"))
    assert rig.state("c") == "suspect"
    assert rig.node.members["c"].reason == "no answer to b"


def test_alive_of_a_higher_incarnation_overrides_suspect(rig: Rig) -> None:
    # SWIM: "{Alive Ml, inc = i} overrides {Suspect Ml, inc = j}, any i > j"
    rig.hears("b", suspect("c", "b"))
    rig.hears("b", alive("c", 1))
    assert rig.state("c") == "suspect"
    rig.hears("b", alive("c", 2))
    assert rig.state("c") == "alive"
    assert rig.notes("member_alive")[0].reason == "refuted"
    rig.hears("b", suspect("c", "b", 1))
    assert rig.state("c") == "alive"


def test_a_suspicion_of_an_incarnation_never_announced_is_dropped(rig: Rig) -> None:
    # SWIM: "only Ml can increment its own incarnation number", so an accuser cannot invent one
    rig.hears("b", suspect("c", "b", 99))
    assert rig.state("c") == "alive"
    rig.hears("b", suspect("d", "b", 1))
    assert rig.state("d") == "unseen"


def test_unlisted_sites_and_unlisted_accusers_change_nothing(rig: Rig) -> None:
    rig.hears("b", alive("mallory"), suspect("c", "mallory"), left("mallory"))
    assert "mallory" not in rig.node.members
    assert rig.state("c") == "alive"
    sync = rig.asks("b", ms.Sync((), TRAINING))
    assert all(r.site != "mallory" for e in sync if isinstance(e, fx.Respond) for r in e.body.records)


def test_a_site_does_not_accuse_itself(rig: Rig) -> None:
    rig.hears("b", suspect("c", "c"))
    assert rig.state("c") == "alive"


def test_an_absurd_incarnation_is_dropped(rig: Rig) -> None:
    rig.hears("b", alive("c", 1 << 62))
    assert rig.node.members["c"].incarnation == 1


@pytest.mark.parametrize("state", list(MemberState))
def test_no_record_makes_a_member_dead(state: MemberState) -> None:
    dead = [key for key, to in TRANSITIONS.items() if to is MemberState.DEAD]
    assert dead == [(MemberState.SUSPECT, MemberEvent.TIMEOUT)]


# ---------------------------------------------------------------- from suspicion to death


def test_a_suspect_that_does_not_refute_is_dead_when_the_own_timer_ends(rig: Rig) -> None:
    rig.hears("b", suspect("c", "b"))
    began = rig.now
    rig.until(began + 29.9)
    assert rig.state("c") == "suspect"
    rig.until(began + 30.1)  # N = 3: no confirmations can be asked for, the minimum holds
    assert rig.state("c") == "dead"
    assert "30.0 s" in rig.node.members["c"].reason


def test_the_dead_come_back_only_with_a_higher_incarnation(rig: Rig) -> None:
    rig.hears("b", suspect("c", "b"))
    rig.until(rig.now + 31)
    rig.hears("b", alive("c", 1))
    assert rig.state("c") == "dead"
    rig.hears("b", alive("c", 2))
    assert rig.state("c") == "alive"
    assert rig.notes("member_alive")[0].reason == "returned"


def test_confirmations_shorten_a_suspicion_and_repetitions_do_not() -> None:
    names = [f"s{i}" for i in range(8)]
    rig = Rig(names).start()
    for s in names:
        rig.hears(s, alive(s))
    rig.hears("s1", suspect("s0", "s1"))
    held = rig.node.members["s0"].suspicion
    assert held is not None and held.needed == 4
    assert held.deadline - held.started == pytest.approx(180.0)
    rig.hears("s1", suspect("s0", "s1"))
    assert len(held.accusers) == 1
    # SWIM-with-Lifeguard: each further *independent* accuser counts
    for accuser in ("s2", "s3", "s4", "s5"):
        rig.hears(accuser, suspect("s0", accuser))
    assert held.deadline - held.started == pytest.approx(30.0)
    rig.hears("s6", suspect("s0", "s6"))
    assert len(held.accusers) == 5


def test_hearing_from_a_suspect_directly_puts_its_death_off(rig: Rig) -> None:
    rig.hears("b", suspect("c", "b"))
    rig.until(rig.now + 25)
    rig.hears("c")
    spoke = rig.now
    rig.until(spoke + 29)
    assert rig.state("c") == "suspect"
    rig.until(spoke + 31)
    assert rig.state("c") == "dead"


# ---------------------------------------------------------------- this site's own word


def test_a_suspected_site_refutes_with_a_higher_incarnation_that_is_on_disk_first(rig: Rig) -> None:
    # SWIM: "it globally propagates an Alive message with an incremented incarnation number"
    before = rig.node.incarnation
    rig.hears("b", suspect("me", "b", before))
    persist, respond = rig.of(fx.Persist)[0], rig.of(fx.Respond)[0]
    assert rig.out.index(persist) < rig.out.index(respond)
    assert persist.snapshot.incarnation == before + 1
    own = next(r for r in respond.body.records if r.site == "me")
    assert isinstance(own, AliveRecord) and own.incarnation == before + 1
    assert own.signature == signature("me", own)
    assert rig.node.self_health == 1  # Lifeguard: refuting a suspicion about oneself


def test_an_accuser_that_is_refuted_again_and_again_is_not_believed_for_a_while(rig: Rig) -> None:
    """Or one listed site could keep every other suspect, and be told apart from a bad line by nobody."""
    pause_s, heard, incarnation = 2 * minimum_timeout_s(3, MembershipParams()), [], 1
    for _ in range(FALSE_ALARMS + 6):
        rig.hears("b", suspect("c", "b", incarnation))
        heard.append(rig.state("c"))
        incarnation += 1
        rig.hears("c", alive("c", incarnation))
        assert rig.state("c") == "alive"
    assert heard == [*["suspect"] * (FALSE_ALARMS + 1), *["alive"] * 5]
    rig.hears("b", suspect("d", "b"), alive("d"), suspect("d", "b"))
    assert rig.state("d") == "suspect", "of another site its word counts"
    rig.hears("d", alive("d", 2), suspect("c", "d", incarnation))
    assert rig.state("c") == "suspect", "and so does another's of this one"
    rig.hears("c", alive("c", incarnation + 1))
    rig.until(rig.now + pause_s + 1.0)
    rig.hears("c", alive("c", incarnation + 2))
    rig.hears("b", suspect("c", "b", incarnation + 2))
    assert rig.state("c") == "suspect", "after the pause it is believed again"


def test_this_site_refutes_each_accusation_and_does_not_call_itself_ill_for_one_accusers_words(
    rig: Rig,
) -> None:
    before = rig.node.incarnation
    for i in range(20):
        rig.hears("b", suspect("me", "b", before + i))
    assert rig.node.incarnation == before + 20, "others may believe it"
    assert rig.node.self_health == FALSE_ALARMS + 1 < MembershipParams().max_self_health
    rig.hears("c", suspect("me", "c", before + 20))
    assert rig.node.self_health == FALSE_ALARMS + 2


def test_old_and_invented_suspicions_of_this_site_are_ignored(rig: Rig) -> None:
    before = rig.node.incarnation
    rig.hears("b", suspect("me", "b", before + 5))
    assert rig.node.incarnation == before
    rig.hears("b", suspect("me", "b", before))
    rig.hears("b", suspect("me", "b", before))
    assert rig.node.incarnation == before + 1


def test_a_restart_counts_on_from_the_snapshot_and_persists_first() -> None:
    rig = Rig(snapshot=Snapshot(incarnation=41, round=3, steps=30)).start()
    assert isinstance(rig.out[0], fx.Persist)
    assert rig.out[0].snapshot.incarnation == 42
    assert rig.node.round == 3


def test_two_lives_differ_in_their_nonce() -> None:
    lives = [Rig(seed=s) for s in (1, 2)]
    nonces = set()
    for rig in lives:
        rig.start()
        nonces.add(next(r for r in rig.requests(ms.Sync)[0].body.records if r.site == "me").nonce)
    assert len(nonces) == 2


def test_known_cases_are_announced_with_a_new_incarnation(rig: Rig) -> None:
    before = rig.node.incarnation
    rig.ready(cases=17)
    assert rig.node.incarnation == before + 1
    rig.hears("b")
    own = next(r for r in rig.reply().records if r.site == "me")
    assert (own.cases, own.incarnation) == (17, before + 1)


def test_a_lost_state_directory_is_outbid(rig: Rig) -> None:
    """Peers remember an earlier life with a higher incarnation; its own signed record tells this one."""
    rig.hears("b", AliveRecord("me", 1234, 9, "me:7443", 10))
    assert rig.node.incarnation == 10
    assert not rig.notes("duplicate_site")


def test_a_second_daemon_with_the_same_key_is_noticed_when_it_answers_back(rig: Rig) -> None:
    rig.hears("b", AliveRecord("me", 1 << 61, 9, "me:7443", 10))
    rig.hears("b", AliveRecord("me", 1 << 61, 11, "me:7443", 10))
    assert [n.site for n in rig.notes("duplicate_site")] == ["me"]


def test_peers_notice_two_lives_that_take_turns(rig: Rig) -> None:
    rig.hears("b", alive("c", 2, nonce=8))
    assert not rig.notes("duplicate_site")
    rig.hears("b", alive("c", 3, nonce=7))
    assert [n.site for n in rig.notes("duplicate_site")] == ["c"]


def test_two_lives_that_go_on_taking_turns_are_told_of_once_a_minute(rig: Rig) -> None:
    told: dict[str, list[float]] = {"me": [], "c": []}
    for n in range(2, 400):
        rig.now += 0.5
        rig.hears("b", alive("c", n, nonce=7 + n % 2), AliveRecord("me", 1 << 61, 2 * n, "me:7443", 10))
        for note in rig.notes("duplicate_site"):
            told[note.site or ""].append(rig.now)
    for at in told.values():
        assert len(at) == 4 and all(b - a >= 60 for a, b in itertools.pairwise(at))


# ---------------------------------------------------------------- leaving


def test_a_goodbye_makes_a_member_left_at_once(rig: Rig) -> None:
    rig.hears("b", left("c", 1))
    assert rig.state("c") == "left"
    rig.hears("b", suspect("c", "b"))
    assert rig.state("c") == "left"
    rig.hears("b", alive("c", 1))
    assert rig.state("c") == "left"
    rig.hears("b", alive("c", 2, nonce=8))
    assert rig.state("c") == "alive"


def test_an_old_goodbye_does_not_end_a_new_life(rig: Rig) -> None:
    rig.hears("b", alive("c", 2, nonce=8))
    rig.hears("b", left("c", 1, nonce=7), left("c", 2, nonce=7))
    assert rig.state("c") == "alive"


def test_leaving_tells_a_few_peers_at_once_and_then_only_answers(rig: Rig) -> None:
    rig.do(ev.Leave())
    pings = rig.requests(ms.Ping)
    assert sorted(p.to for p in pings) == ["b", "c"]
    for p in pings:
        goodbye = next(r for r in p.body.records if r.site == "me")
        assert goodbye.signature == signature("me", goodbye)
        assert type(goodbye).__name__ == "LeftRecord"
        assert p.body.info.phase is Phase.LEAVING
    assert rig.notes("left")
    assert rig.node.next_deadline() is None
    rig.hears("b", suspect("me", "b", rig.node.incarnation))
    assert not rig.of(fx.Persist), "who has left does not refute"
    assert rig.reply().info.phase is Phase.LEAVING
    rig.do(ev.Leave())
    assert rig.out == []


def test_the_goodbye_of_a_site_in_its_last_moments_starts_no_new_talk(rig: Rig) -> None:
    rig.hears("c", left("c"), info=PeerInfo(5, 50, 10, Phase.LEAVING, TRAINING.contract))
    assert rig.state("c") == "left"
    assert not rig.requests(ms.Sync)


# ---------------------------------------------------------------- passing on


def test_a_record_is_passed_on_a_bounded_number_of_times() -> None:
    rig = Rig(["b", "c"]).start()
    rig.hears("b", alive("b"))
    rig.hears("b", alive("c"))
    seen = 0
    for _ in range(40):
        rig.hears("b")
        seen += sum(r.site == "c" for r in rig.reply().records)
    assert 0 < seen <= 4 * math.ceil(math.log10(3 + 1))


def test_old_news_is_not_passed_on(rig: Rig) -> None:
    rig.hears("b", suspect("c", "b"))
    rig.hears("b", alive("c", 2))
    rig.hears("b")
    about_c = [r for r in rig.reply().records if r.site == "c"]
    assert all(r.incarnation == 2 for r in about_c)


def test_a_suspect_is_told_so_that_it_can_refute(rig: Rig) -> None:
    # Lifeguard's "Buddy System": tell the suspect at the first opportunity
    rig.hears("b", suspect("c", "b"))
    for _ in range(30):
        rig.hears("c")
    assert suspect("c", "b") in rig.reply().records


def test_a_push_pull_carries_the_members_with_their_accusers_and_forgets_the_long_dead(rig: Rig) -> None:
    rig.hears("b", suspect("c", "b"))
    rig.asks("b", ms.Sync((), TRAINING))
    records = rig.reply().records
    assert {type(r).__name__ for r in records if r.site == "c"} == {"AliveRecord", "SuspectRecord"}
    assert [type(r).__name__ for r in records if r.site == "b"] == ["AliveRecord"]
    rig.until(rig.now + 31)
    rig.asks("b", ms.Sync((), TRAINING))
    told = [type(r).__name__ for r in rig.reply().records if r.site == "c"]
    assert told == ["AliveRecord", "SuspectRecord"], "the accusation needs the incarnation it speaks of"
    rig.until(rig.now + 61)  # dead_kept_s
    rig.asks("b", ms.Sync((), TRAINING))
    assert not [r for r in rig.reply().records if r.site == "c"]


def test_what_a_push_pull_brings_is_not_repeated_to_everybody(rig: Rig) -> None:
    fresh = Rig([f"s{i}" for i in range(30)]).start()
    everybody = tuple(alive(f"s{i}") for i in range(30))
    fresh.asks("s0", ms.Sync(everybody, TRAINING))
    assert fresh.state("s29") == "alive"
    fresh.hears("s1")
    assert {r.site for r in fresh.reply().records} <= {"me", "s0"}


# ---------------------------------------------------------------- the list changes


def test_a_reloaded_list_adds_and_removes(rig: Rig) -> None:
    rig.do(ev.SitesChanged({"b": "b:1", "e": "e:1"}))
    assert sorted(rig.node.members) == ["b", "e"]
    assert rig.state("e") == "unseen"
    rig.hears("b", alive("c", 5))
    assert "c" not in rig.node.members
    rig.until(rig.now + 200)


def test_a_site_without_others_lives_on() -> None:
    rig = Rig([]).start()
    rig.until(rig.now + 300)
    rig.ready(round=0)
    assert rig.of(fx.StartRound)
    rig.do(ev.Leave())
