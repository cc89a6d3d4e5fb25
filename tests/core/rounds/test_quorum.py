"""Who takes part in the rounds, whose turn it is, which quorums there are (quorum.py)."""

from __future__ import annotations

import pytest

from gossipseg.core.rounds.quorum import QuorumConfig, run_of
from tests.core.rounds_bench import (
    SITES,
    proposal,
)


def test_the_coordinator_rotates_by_round_and_attempt() -> None:
    quorum = QuorumConfig.of(("z", "b", "me"), None)
    assert [quorum.coordinator(1, a) for a in range(4)] == ["me", "z", "b", "me"]
    assert [quorum.coordinator(r, 0) for r in range(4)] == ["b", "me", "z", "b"]


@pytest.mark.parametrize(
    ("sites", "set_to", "size"),
    [(1, None, 1), (2, None, 2), (3, None, 2), (4, None, 3), (5, 4, 4), (5, 1, 3)],
)
def test_any_two_quorums_have_a_site_in_common(sites: int, set_to: int | None, size: int) -> None:
    assert QuorumConfig.of([str(i) for i in range(sites)], set_to).size == size


def test_the_run_stands_for_federation_and_contract() -> None:
    assert len({run_of("f", "a"), run_of("f", "b"), run_of("g", "a")}) == 3


@pytest.mark.parametrize(
    ("contributors", "reason"),
    [(("b",), "too_few_contributors"), (("b", "x"), "unlisted_contributor"), (("b", "z"), "")],
)
def test_an_honest_coordinator_proposes_none_of_too_few(contributors: tuple[str, ...], reason: str) -> None:
    assert QuorumConfig.of(SITES, None).fault(proposal(1, contributors=contributors)) == reason
