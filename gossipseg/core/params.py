"""Settings of the pure core: membership, gossip, rounds, trust and quarantine. Times are in seconds.

Presets are deltas on the WAN defaults; `local` is for several daemons on one machine.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

from gossipseg.bounds import COUNT, NATURAL, POSITIVE, SHARE, Range

Preset = Literal["wan", "lan", "local"]
_FORBID: dict[str, Any] = {"extra": "forbid"}


@dataclass(frozen=True, slots=True)
class MembershipParams:
    """SWIM with suspicion and Lifeguard self-health (memberlist's names and WAN numbers)."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _FORBID

    probe_interval_s: Annotated[float, POSITIVE] = 5.0
    """One member is pinged in each interval."""
    probe_timeout_s: Annotated[float, POSITIVE] = 3.0
    """A ping without an answer for this long has failed."""
    indirect_checks: Annotated[int, NATURAL] = 3
    """Other members that are asked to ping a member that did not answer."""
    suspicion_multiplier: Annotated[float, COUNT] = 6.0
    """A suspicion runs for multiplier · max(1, log10 N) · probe_interval_s at least."""
    push_pull_interval_s: Annotated[float, POSITIVE] = 60.0
    """Time between two full syncs with another site."""
    dead_kept_s: Annotated[float, NATURAL] = 60.0
    """Dead members stay in syncs for this long, at least one push/pull interval."""
    gossip_records_per_message: Annotated[int, COUNT] = 16
    """Membership records that ride on a ping or its answer."""
    max_self_health: Annotated[int, NATURAL] = 7
    """Largest score of Lifeguard's local health; interval and timeout grow by score + 1."""


MEMBERSHIP_PRESETS: dict[str, dict[str, Any]] = {
    "wan": {},
    "lan": {
        "probe_interval_s": 1.0,
        "probe_timeout_s": 0.5,
        "suspicion_multiplier": 4.0,
        "push_pull_interval_s": 30.0,
    },
    "local": {
        "probe_interval_s": 0.5,
        "probe_timeout_s": 0.4,
        "suspicion_multiplier": 4.0,
        "push_pull_interval_s": 3.0,
        "dead_kept_s": 15.0,
    },
}


def membership_preset(name: str, **overrides: Any) -> MembershipParams:
    """The WAN defaults with the named preset's delta and then the overrides applied."""
    return replace(MembershipParams(), **{**MEMBERSHIP_PRESETS[name], **overrides})


@dataclass(frozen=True, slots=True)
class GossipParams:
    """The exchange: GML's push (docs/design/equations.md §1), or swaps (docs/design/swap.md)."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _FORBID

    exchange: Literal["swap", "push"] = "swap"
    """`push`: a model travels one way. `swap`: two sites exchange models, and both mix. Sites that swap and
    sites that push exchange nothing."""
    swaps_per_round: Literal[1, 2, "log2"] = 1
    """A site asks for a swap while it has taken part in fewer since the last round's end; others may ask it
    for more. Only with `exchange: swap`."""
    doubt_timeout_s: Annotated[float, POSITIVE] = 600.0
    """A site that is ready for a swap, and hears no outcome for this long, drops it."""
    sender_rate: Annotated[float, SHARE] = 0.5
    """ρ: the expected share of alive sites that send at the end of a round. Only with `exchange: push`."""
    warmup_rounds: Annotated[int, NATURAL] = 2
    """Rounds a site trains alone before it sends or receives."""
    retries: Annotated[int, NATURAL] = 2
    """Other peers tried after a busy or refusing receiver; then none until the next round."""
    max_age_rounds: Annotated[int, COUNT] = 3
    """A model that has waited longer than this many of the receiver's rounds is dropped."""
    offer_timeout_s: Annotated[float, POSITIVE] = 10.0
    """An offer without an answer for this long has failed."""
    transfer_timeout_s: Annotated[float, POSITIVE] = 3600.0
    """A reserved inbox place is freed when the promised model has not come by then."""
    max_parallel_transfers: Annotated[int, COUNT] = 2
    """This site's outgoing models, offered or being sent, at one time."""
    personal_every_rounds: Annotated[int, COUNT] = 10
    """Rounds after which others may fetch a site's personal model anew; at the end of training they may,
    too."""
    personal_fetches: Annotated[int, NATURAL] = 3
    """Personal models of others that a site of 8 validation patients or more then fetches, in int8; twice as
    many are held. 0: none, and this site's own is not sent either."""


@dataclass(frozen=True, slots=True)
class ExchangeAtParams:
    """When models are exchanged: one of the two keys (docs/design/equations.md §7). Part of the contract."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _FORBID

    every_rounds: Annotated[int | None, COUNT] = None
    """Rounds from one exchange to the next; 3 moves a third of the bytes. None: 1, unless `summed_rate` is
    set."""
    summed_rate: Annotated[float | None, Range(0.0001, 1)] = None
    """An exchange each time the learning rate, summed since the last one, reaches this share of the whole
    sum: often early, seldom late. 0.1 makes ten at most. It needs training.rounds, which gives the whole."""


@dataclass(frozen=True, slots=True)
class RoundsParams:
    """Rounds under a rotating coordinator (docs/design/why-consensus.md).

    Only for algorithms that exchange by `rounds`."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _FORBID

    quorum: Annotated[int | None, COUNT] = None
    """Sites that must contribute, and store, for a round to close; None: a majority of the listed sites.
    Part of the contract."""
    deadline_s: Annotated[float, NATURAL] = 1800.0
    """A live site that has not delivered this long after a quorum did is left out of the round."""
    patience_s: Annotated[float, POSITIVE] = 60.0
    """An attempt that is silent for this long is replaced by the next coordinator's."""
    alone_after_s: Annotated[float, POSITIVE] = 3600.0
    """A site that waits this long for a global model trains another round alone."""
    poll_interval_s: Annotated[float, POSITIVE] = 2.0
    """Time between two questions of the coordinator to a site that still trains."""
    request_timeout_s: Annotated[float, POSITIVE] = 10.0
    """A request of a round without an answer for this long has failed."""
    transfer_timeout_s: Annotated[float, POSITIVE] = 3600.0
    """A file of a round must have come within this time."""
    max_parallel_transfers: Annotated[int, COUNT] = 2
    """Updates that the coordinator fetches, and files that a site serves, at once."""


@dataclass(frozen=True, slots=True)
class TrustParams:
    """What a received model must carry."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _FORBID

    require_manifests: bool = True
    """False: models without a signed manifest are accepted, too, while sites of an older version are
    present."""


@dataclass(frozen=True, slots=True)
class QuarantineParams:
    """When and for how long a peer is quarantined that sends invalid data."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _FORBID

    offences: Annotated[int, COUNT] = 3
    """Offences within the window after which a peer is quarantined."""
    window_s: Annotated[float, POSITIVE] = 3600.0
    """Offences older than this are forgotten."""
    first_s: Annotated[float, POSITIVE] = 600.0
    """Length of the first quarantine."""
    factor: Annotated[float, COUNT] = 3.0
    """Growth factor of each quarantine over the one before, up to max_s."""
    max_s: Annotated[float, POSITIVE] = 7 * 86400.0
    """Longest quarantine."""
    decay_s: Annotated[float, POSITIVE] = 86400.0
    """Time without an offence after which the next quarantine is one step shorter."""
    dice_offence: bool = False
    """True: a run of models that only do worse on this site's validation also counts as an offence."""
    dice_run: Annotated[int, COUNT] = 5
    """Length of that run of models."""
