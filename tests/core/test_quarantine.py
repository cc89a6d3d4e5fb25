"""Quarantine alone: offences, growing times, forgetting, the disk."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossipseg.core.params import QuarantineParams
from gossipseg.core.quarantine import TRANSITIONS, PeerStatus, Quarantine, Transition

PARAMS = QuarantineParams(offences=3, window_s=100.0, first_s=10.0, factor=3.0, max_s=200.0, decay_s=1000.0)


def held(**changes: float) -> Quarantine:
    """b has just been quarantined, at t=2."""
    q = Quarantine(replace(PARAMS, **changes))
    assert [q.offend("b", "manifest_forged", float(t)) for t in range(3)] == [False, False, True]
    return q


def test_every_standing_can_be_reached_and_left() -> None:
    assert {to for to in TRANSITIONS.values()} == set(PeerStatus)
    assert all((standing, Transition.LIFTED) in TRANSITIONS for standing in PeerStatus)


def test_so_many_offences_within_the_window_and_no_fewer() -> None:
    q = Quarantine(PARAMS)
    assert not q.offend("b", "too_large", 0.0) and not q.offend("b", "too_large", 50.0)
    assert q.conducts()["b"].standing is PeerStatus.WATCHED and q.until("b") is None
    assert not q.offend("b", "too_large", 101.0), "the first has left the window"
    assert q.offend("b", "not_finite", 102.0)
    assert (q.until("b"), q.reason("b"), q.until("c")) == (112.0, "not_finite", None)


def test_it_ends_by_itself() -> None:
    q = held()
    assert q.settle(11.9) == [] and q.next_deadline() == 12.0
    assert q.settle(12.0) == ["b"] and q.until("b") is None


def test_each_lasts_longer_up_to_the_limit() -> None:
    q, now, lasted = Quarantine(PARAMS), 0.0, []
    for _ in range(5):
        for _ in range(3):
            q.offend("b", "manifest_forged", now)
        until = q.until("b")
        assert until is not None
        lasted.append(until - now)
        now = until
        q.settle(now)
    assert lasted == [10.0, 30.0, 90.0, 200.0, 200.0]


def test_quiet_takes_the_growth_back_a_step_at_a_time() -> None:
    q = held()
    for t in (20.0, 21.0, 22.0):
        q.offend("b", "manifest_forged", t)
    assert q.until("b") == 52.0
    q.settle(52.0)
    q.settle(1051.0)
    assert q.duration_s(q.conducts()["b"].steps) == 90.0
    q.settle(1052.0)
    assert q.duration_s(q.conducts()["b"].steps) == 30.0
    q.settle(2052.0)
    assert "b" not in q.conducts(), "nothing is held against it"


def test_what_was_under_way_does_not_lengthen_it() -> None:
    q = held()
    assert not q.offend("b", "hash_mismatch", 5.0) and q.until("b") == 12.0
    q.settle(12.0)
    assert not q.offend("b", "hash_mismatch", 13.0), "nor does it count afterwards"


def test_an_operator_lifts_it_and_all_is_forgotten() -> None:
    q = held()
    assert q.lift("b") and not q.lift("b") and q.until("b") is None
    assert [q.offend("b", "x", float(t)) for t in (5, 6, 7)] == [False, False, True]
    assert q.until("b") == 17.0, "as if for the first time"


def test_the_disk_keeps_what_is_left_whatever_the_next_lifes_clock_says() -> None:
    q = held()
    q.offend("c", "too_large", 4.0)
    then = Quarantine(PARAMS)
    then.restore(q.records(5.0), 1_000_000.0)
    assert then.until("b") == 1_000_007.0 and then.reason("b") == "manifest_forged"
    assert then.conducts()["c"].standing is PeerStatus.WATCHED
    assert not then.offend("c", "too_large", 1_000_001.0) and then.offend("c", "too_large", 1_000_002.0)
    then.settle(1_000_020.0)
    for t in (20.0, 21.0, 22.0):
        then.offend("b", "manifest_forged", 1_000_000 + t)
    assert then.until("b") == 1_000_052.0, "the growth is remembered, too"


def test_a_damaged_record_binds_nobody_for_longer_than_the_limit() -> None:
    (record,) = held().records(2.0)
    q = Quarantine(PARAMS)
    q.restore([replace(record, left_s=1e12)], 0.0)
    assert q.until("b") == PARAMS.max_s


def test_a_site_that_is_no_longer_listed_takes_no_room() -> None:
    q = held()
    q.forget({"c"})
    assert not q.conducts()


params = st.builds(
    QuarantineParams,
    offences=st.integers(1, 5),
    window_s=st.floats(1, 1e4),
    first_s=st.floats(1, 1e4),
    factor=st.floats(1, 10),
    max_s=st.floats(1, 1e6),
    decay_s=st.floats(1, 1e5),
)
deeds = st.lists(
    st.tuples(
        st.sampled_from(["offend", "settle", "lift", "restart"]), st.sampled_from("bc"), st.floats(0, 5e3)
    ),
    max_size=60,
)


@given(params, deeds)
def test_whatever_happens(p: QuarantineParams, happened: list[tuple[str, str, float]]) -> None:
    """None without enough offences, none longer than the limit, none cut short but by an operator."""
    q, now, offences = Quarantine(p), 0.0, {"b": [], "c": []}
    for what, site, later_s in happened:
        now += later_s
        before = {s: q.until(s) for s in "bc"}
        freed = q.settle(now)
        assert set(freed) == {s for s, until in before.items() if until is not None and until <= now}
        if what == "offend":
            was_held = q.until(site) is not None
            offences[site] += [] if was_held else [now]
            if q.offend(site, "x", now):
                lately = [t for t in offences[site] if now - t < p.window_s]
                assert not was_held and len(lately) >= p.offences
                until = q.until(site)
                assert until is not None and min(p.first_s, p.max_s) - 1e-6 <= until - now <= p.max_s + 1e-6
                offences[site] = []
        elif what == "lift":
            q.lift(site)
            offences[site] = []
            assert q.until(site) is None
        elif what == "restart":
            ends = {s: q.until(s) for s in "bc"}
            then = Quarantine(p)
            then.restore(q.records(now), now)
            q = then
            assert {s: q.until(s) for s in "bc"} == pytest.approx(ends)
        else:
            kept = {s: until for s, until in before.items() if s not in freed}
            assert all(q.until(s) == until for s, until in kept.items())
        assert set(q.conducts()) <= {"b", "c"} and q.next_deadline() > now
        assert all(len(c.offences) < p.offences for c in q.conducts().values())
