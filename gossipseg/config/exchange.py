"""When models are exchanged: what exchange_at comes to, and whether it leaves an exchange at all."""

from __future__ import annotations

from typing import Any

from gossipseg.algos.params.common import Coordinated
from gossipseg.config.files import FederationFile
from gossipseg.core.exchange_times import ExchangeTimes
from gossipseg.core.params import GossipParams
from gossipseg.learn.rates import summed_rate

Found = tuple[str, str, object, str]
"""(problem, key, value, remedy)"""


def exchange_times(federation: FederationFile) -> ExchangeTimes:
    """The rounds at whose ends exchanges are due, by the schedule that all sites share."""
    at, training = federation.exchange_at, federation.training
    if at.summed_rate is None:
        return ExchangeTimes(at.every_rounds or 1)
    assert training.rounds is not None, "exchange_problem() has refused it"
    together = training.rounds - _alone(federation)
    return ExchangeTimes.by_rate(at.summed_rate, [summed_rate(training, r + 1) for r in range(together)])


def exchange_terms(federation: FederationFile) -> dict[str, Any]:
    """What two sites must agree on. Earlier versions had the rounds between two exchanges among the settings
    of a coordinated algorithm, and none for gossip."""
    at, every = federation.exchange_at, federation.exchange_at.every_rounds or 1
    if federation.algorithm.exchange == "none":
        return {}
    if at.summed_rate is not None:
        return {"exchange_at.summed_rate": at.summed_rate}
    if isinstance(federation.algorithm, Coordinated):
        return {"algorithm.every_rounds": every}
    return {"exchange_at.every_rounds": every} if every > 1 else {}


def exchange_problem(federation: FederationFile) -> Found | None:
    """What is wrong with exchange_at by itself, or None."""
    at = federation.exchange_at
    if at.summed_rate is None:
        return None
    if at.every_rounds is not None:
        problem = f"and exchange_at.every_rounds ({at.every_rounds}) both say when models are exchanged"
        return problem, "exchange_at.summed_rate", at.summed_rate, "Keep one of the two."
    if federation.training.rounds is None:
        problem = "is a share of the learning rate summed over training.rounds, which is not set"
        remedy = "Write training.rounds, such as 100, or exchange_at.every_rounds instead."
        return problem, "exchange_at.summed_rate", at.summed_rate, remedy
    return None


def idle_key(federation: FederationFile) -> tuple[str, object, str] | None:
    """A key of gossip that changes nothing beside the exchange that is set, its value, and where it counts.
    One at its default is in every copy of the example, and is not meant."""
    gossip, default = federation.gossip, GossipParams()
    if federation.algorithm.exchange != "gossip":
        return None
    if gossip.exchange == "swap" and gossip.sender_rate != default.sender_rate:
        return "gossip.sender_rate", gossip.sender_rate, "exchange: push"
    if gossip.exchange == "push" and gossip.swaps_per_round != default.swaps_per_round:
        return "gossip.swaps_per_round", gossip.swaps_per_round, "exchange: swap"
    return None


def together_problem(federation: FederationFile, rounds: int) -> tuple[str, str, int] | None:
    """Why no model would be exchanged in `rounds` rounds: (problem, the key to lower, the least budget that
    has one), or None."""
    alone = _alone(federation)
    if federation.algorithm.exchange == "none":
        return None
    if rounds <= alone:
        problem = f"with algorithm.finetune_rounds ({alone}) leaves no round to learn together"
        return problem, "algorithm.finetune_rounds", alone + (federation.exchange_at.every_rounds or 1)
    first = exchange_times(federation).end_of(1)
    # After the last round a site gossips no more: an exchange that is due then comes to nothing.
    after = int(federation.algorithm.exchange == "gossip" and first > 1)
    if rounds >= alone + first + after:
        return None
    share = federation.exchange_at.summed_rate
    key = "exchange_at.every_rounds" if share is None else "exchange_at.summed_rate"
    also = f", and finetune_rounds is {alone}" if alone else ""
    by = f"{key} is {first}" if share is None else f"by {key} ({share:g}) the first is after round {first}"
    over = ", and after the last round nothing is exchanged" if after else ""
    return f"leaves no round that is exchanged: {by}{also}{over}", key, alone + first + after


def _alone(federation: FederationFile) -> int:
    found: int = getattr(federation.algorithm, "finetune_rounds", 0)
    return found
