"""A quorum that the federation file sets, from the least that may be written to all sites (config/rules.py).

What belongs here: what a partition, a death and a slow site come to under such a quorum. What must not: what
holds under the majority that counts without one (test_rounds.py).
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from tests.sim.simulator import Simulator
from tests.sim.test_rounds import QUICK, committed, federation, goes_on, notes, on_disk, until_led, verify

SETTLED_S = 15.0
"""Within this time a round that was about to be closed when the network broke is closed or never will be."""


def with_quorum(quorum: int, n: int, seed: int = 0, **changes: object) -> Simulator:
    return federation(n, seed=seed, rounds_params=replace(QUICK, quorum=quorum), **changes)


def contributors(sim: Simulator) -> set[int]:
    """Of how many sites' updates the global models were made so far."""
    return {len(c.proposal.contributors) for c in sim.commits}


@pytest.mark.parametrize(("n", "quorum"), [(1, 1), (2, 2), (3, 2), (3, 3), (4, 3), (4, 4), (5, 3), (5, 5)])
def test_with_all_sites_there_every_quorum_lets_the_rounds_go_on(n: int, quorum: int) -> None:
    sim = with_quorum(quorum, n, seed=n)
    sim.run(20)
    goes_on(sim, 100, rounds=4)
    assert contributors(sim) == {n}
    assert not sim.events["round_passed"] and not sim.events["round_alone"]


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize(("quorum", "away"), [(3, 2), (4, 1)])
def test_the_part_that_has_the_quorum_goes_on(quorum: int, away: int, seed: int) -> None:
    """Five sites; 3 is the least that may be set."""
    sim = with_quorum(quorum, 5, seed)
    names = sorted(sim.nodes)
    sim.run(40)
    sim.partition(names[:away], names[away:])
    sim.run(40 + SETTLED_S)
    before = committed(sim)
    sim.run(250)
    after = committed(sim)
    assert all(after[s] == before[s] for s in names[:away]), "a global model without a quorum"
    assert all(after[s] >= before[s] + 5 for s in names[away:]), (before, after)
    assert min(contributors(sim)) == quorum
    verify(sim)
    sim.heal()
    sim.run(sim.now + 60)
    goes_on(sim, 60)
    assert len(max(sim.commits, key=lambda c: c.proposal.round).proposal.contributors) == 5


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize(("quorum", "parts"), [(3, (2, 2, 1)), (4, (2, 3)), (5, (1, 4))])
def test_where_no_part_has_the_quorum_none_closes_a_round(
    quorum: int, parts: tuple[int, ...], seed: int
) -> None:
    """Five sites, of which so many stay together that the next smaller quorum would be theirs."""
    sim = with_quorum(quorum, 5, seed)
    names = sorted(sim.nodes)
    sim.run(40)
    ends = list(itertools.accumulate(parts))
    sim.partition(*(names[end - size : end] for end, size in zip(ends, parts, strict=True)))
    sim.run(40 + SETTLED_S)
    before = on_disk(sim)
    sim.run(40 + 3 * QUICK.alone_after_s)
    assert before >= 1 and on_disk(sim) == before, "a round was closed without the quorum"
    assert {site for _, site, _ in notes(sim, "round_alone")} == set(names), "all train on, each alone"
    verify(sim)
    sim.heal()
    sim.run(sim.now + 60)
    goes_on(sim, 60)


def test_with_a_quorum_of_all_one_death_stops_the_rounds_until_it_is_back() -> None:
    sim = with_quorum(4, 4, seed=3)
    leader = until_led(sim, round=3)
    sim.crash(leader)
    sim.run(sim.now + SETTLED_S)
    assert on_disk(sim) == 2, "the round of the dead one had only begun"
    sim.run(sim.now + 2 * QUICK.alone_after_s)
    assert on_disk(sim) == 2
    sim.start(leader)
    sim.run(sim.now + 30)
    goes_on(sim, 100)
    assert contributors(sim) == {4}


def test_with_the_least_quorum_as_many_may_die_as_it_leaves_and_no_more() -> None:
    sim = with_quorum(3, 5, seed=3)
    sim.crash(until_led(sim, round=3))
    sim.crash(next(n.site for n in sim.up()))
    sim.run(sim.now + 60)
    goes_on(sim, 200, rounds=3)
    sim.crash(next(n.site for n in sim.up()))
    sim.run(sim.now + SETTLED_S)
    before = on_disk(sim)
    sim.run(sim.now + 100)
    assert on_disk(sim) == before, "two of five have closed a round"
    verify(sim)


def test_with_a_quorum_of_all_a_slow_site_is_waited_for_beyond_the_deadline() -> None:
    sim = with_quorum(3, 3, seed=1, round_s=lambda i: 6.0 if i < 2 else 2 * QUICK.deadline_s)
    sim.run(600)
    assert on_disk(sim) >= 4
    assert contributors(sim) == {3}, "a deadline begins when a quorum has delivered"
    verify(sim)
