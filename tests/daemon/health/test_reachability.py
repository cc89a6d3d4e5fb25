"""When which site is looked at, and what is noted of it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gossipseg.core.types import MemberState
from gossipseg.daemon.health import reachability
from gossipseg.wire.reached import Reached
from tests.daemon.health.world import OK, REFUSED, World


async def test_a_site_that_has_come_is_looked_at_both_ways_and_then_left_alone() -> None:
    w = World()
    r = w.reaching("b")
    assert await w.step(r, 1001) == []
    assert await w.step(r, 1000 + reachability.SETTLE_S) == ["b"]
    assert w.dialled == w.asked == ["b"] and not w.notes and r.found["b"].well
    w.members["b"].called_at = 1500.0
    assert await w.step(r, 1000 + reachability.WELL_S) == []
    assert await w.step(r, 1010 + reachability.WELL_S) == ["b"]


async def test_a_look_that_breaks_is_an_outcome_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever answers at an address must not end the daemon."""
    w = World()
    r = w.reaching("b", "c")

    async def breaks(site: str) -> Reached:
        if site == "b":
            raise ValueError("nobody thought of this")
        return OK

    monkeypatch.setattr(w, "reach", breaks)
    assert await w.step(r, 1000 + reachability.SETTLE_S) == ["b", "c"]
    assert r.found["b"].out.outcome == "not_asked" and "nobody thought of this" in r.found["b"].out.detail
    assert r.found["c"].well


async def test_when_nothing_comes_for_a_while_it_is_asked_again() -> None:
    w = World()
    r = w.reaching("b")
    await w.step(r, 1002)
    assert await w.step(r, 1002 + reachability.QUIET_S) == ["b"], "it has not called in since"
    w.members["b"].called_at = w.now + 1
    w.members["b"].sends.fails(w.now, "timeout")
    assert await w.step(r, w.now + reachability.QUIET_S) == ["b"], "models to it do not get through"


async def test_what_is_amiss_is_looked_at_later_and_later_and_forgotten_once_well() -> None:
    w = World(back=REFUSED)
    r = w.reaching("b")
    await w.step(r, 1002)
    looks = [t for t in range(1003, 4000) if await w.step(r, float(t))]
    gaps = [b - a for a, b in zip([1002, *looks], looks, strict=False)]
    assert gaps[:4] == [20, 40, 80, 160] and max(gaps) == reachability.AGAIN_MAX_S
    assert [n for n, _ in w.notes] == ["not_reached"], "told once"
    w.back = OK
    await w.step(r, w.now + reachability.AGAIN_MAX_S)
    assert r.found["b"].well and w.notes[-1][0] == "reached" and w.notes[-1][1]["direction"] == "in"


async def test_a_call_that_comes_in_shows_that_the_way_is_free_again() -> None:
    """Ten minutes would be long for a false alarm."""
    w = World(back=REFUSED)
    r = w.reaching("b")
    await w.step(r, 1002)
    looks = [t for t in range(1003, 2000) if await w.step(r, float(t))]
    w.back, w.members["b"].called_at = OK, w.now + 1
    assert await w.step(r, w.now + 2) == ["b"] and r.found["b"].well, (looks, "not after 320 s")
    w.back = replace(REFUSED, works_at="b:9")
    await w.step(r, w.now + 2 * reachability.WELL_S)
    await w.step(r, w.now + reachability.AGAIN_S)
    w.members["b"].called_at = w.now + 1
    assert await w.step(r, w.now + reachability.AGAIN_S) == [], "it calls by another way, as before"


async def test_a_site_that_was_never_seen_is_dialled_and_cannot_be_asked() -> None:
    w = World(out=REFUSED)
    r = w.reaching("b", state=MemberState.UNSEEN)
    assert await w.step(r, 1029) == []
    assert await w.step(r, 1030) == ["b"]
    assert w.asked == [] and r.found["b"].back.outcome == "not_asked" and not r.found["b"].well


async def test_a_site_that_left_is_let_alone_and_one_that_is_not_listed_any_more_forgotten() -> None:
    w = World()
    r = w.reaching("b", "c")
    await w.step(r, 1002)
    w.members["b"].state = MemberState.LEFT
    del w.members["c"]
    assert await w.step(r, 99_999) == [] and list(r.found) == ["b"]


async def test_an_older_site_is_not_asked_all_the_time() -> None:
    w = World(back=Reached("older"))
    r = w.reaching("b")
    await w.step(r, 1002)
    assert r.found["b"].well and await w.step(r, 1002 + reachability.AGAIN_S) == []


async def test_an_answer_is_good_for_a_while() -> None:
    """The site answers such questions once in ten seconds; an operator may ask sooner."""
    w = World(back=REFUSED)
    r = w.reaching("b")
    await w.step(r, 1002)
    w.now, w.back = 1005.0, Reached("not_asked", "", "ask again in 10 s")
    await r.look_now()
    assert r.found["b"].back == REFUSED
    w.now = 1100.0
    await r.look_now()
    assert r.found["b"].back.outcome == "not_asked"


async def test_in_a_large_federation_a_few_tell_enough() -> None:
    w = World()
    r = w.reaching(*(f"s{i:03}" for i in range(200)))
    w.members["s150"].calls.fails(w.now, "timeout")
    looked = await w.step(r, 1002)
    assert "s150" in looked and len(looked) <= reachability.MOST_WELL + 1
    assert await w.step(r, 1003) == []
    assert len(await r.look_now()) == reachability.MOST_ASKED
