"""Settings of the pure core: membership, gossip, rounds, trust and quarantine. Times are in seconds.

Presets are deltas on the WAN defaults; `local` is for several daemons on one machine.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

Preset = Literal["wan", "lan", "local"]
_FORBID: dict[str, Any] = {"extra": "forbid"}


@dataclass(frozen=True, slots=True)
class MembershipParams:
    """SWIM with suspicion and Lifeguard self-health (memberlist's names and WAN numbers)."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _FORBID

    probe_interval_s: float = 5.0
    probe_timeout_s: float = 3.0
    indirect_checks: int = 3
    suspicion_multiplier: float = 6.0
    push_pull_interval_s: float = 60.0
    dead_kept_s: float = 60.0
    """So long (one push/pull interval at least) the dead are told of to sites that sync."""
    gossip_records_per_message: int = 16
    max_self_health: int = 7


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
    """The GML exchange protocol (docs/design/equations.md §1)."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _FORBID

    sender_rate: float = 0.5
    """rho: the expected share of alive sites that send at the end of a round, 0..1."""
    warmup_rounds: int = 2
    """Rounds a site trains alone before it sends or receives."""
    retries: int = 2
    """Other peers tried after a busy or refusing receiver; then none until the next round."""
    max_age_rounds: int = 3
    """A model that has waited longer than this many of the receiver's rounds is dropped."""
    offer_timeout_s: float = 10.0
    transfer_timeout_s: float = 3600.0
    """A reserved inbox place is freed when the promised model has not come by then."""
    max_parallel_transfers: int = 2


@dataclass(frozen=True, slots=True)
class RoundsParams:
    """Rounds under a rotating coordinator (docs/design/why-consensus.md).

    Only for algorithms that exchange by `rounds`."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _FORBID

    quorum: int | None = None
    """Sites that must contribute, and store, for a round to close; None: a majority of the listed sites."""
    deadline_s: float = 1800.0
    """A site that is alive and has not delivered so long after a quorum had is left out of the round."""
    patience_s: float = 60.0
    """An attempt of which nothing is heard for so long gives way to the next coordinator's."""
    alone_after_s: float = 3600.0
    """A site that waits so long for a common model trains another round alone."""
    poll_interval_s: float = 2.0
    """So often the coordinator asks sites that are still training whether they have done."""
    request_timeout_s: float = 10.0
    transfer_timeout_s: float = 3600.0
    max_parallel_transfers: int = 2
    """Updates that the coordinator fetches at once."""


@dataclass(frozen=True, slots=True)
class TrustParams:
    """What a model must bring with it."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _FORBID

    require_manifests: bool = True
    """False: a model without a signed manifest is taken, too, while sites of an older version are there."""


@dataclass(frozen=True, slots=True)
class QuarantineParams:
    """When a peer that sends what must be refused is kept out, and for how long (core/quarantine.py)."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _FORBID

    offences: int = 3
    """So many within the window, and the peer is quarantined."""
    window_s: float = 3600.0
    first_s: float = 600.0
    factor: float = 3.0
    """Each further quarantine lasts so many times as long as the one before, up to max_s."""
    max_s: float = 7 * 86400.0
    decay_s: float = 86400.0
    """So long without an offence takes one step of that growth back."""
    dice_offence: bool = False
    """True: dice_run models in a row that only do worse on this site's validation count as one, too."""
    dice_run: int = 5
