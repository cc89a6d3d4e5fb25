"""What a node is built from: identity, settings, randomness, and the state on its disk.

Values only.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import Literal

from gossipseg.core.effects import Snapshot
from gossipseg.core.exchange_times import ExchangeTimes
from gossipseg.core.params import GossipParams, MembershipParams, QuarantineParams, RoundsParams, TrustParams
from gossipseg.core.types import PROTOCOL_MAX, PROTOCOL_MIN, Sign, Site


@dataclass(frozen=True, slots=True)
class NodeSetup:
    """All that `NodeState` is given when a daemon starts."""

    site: Site
    """This site's listed name."""
    _: KW_ONLY
    address: str
    """host:port that this site announces."""
    sites: Mapping[Site, str]
    """Name → listed address of the other sites."""
    federation: str
    contract: tuple[tuple[str, str], ...]
    """Sorted (dotted key, JSON value) pairs; the network signature is open until the worker reports it."""
    membership: MembershipParams
    gossip: GossipParams
    exchange: Literal["none", "gossip", "rounds"]
    rounds: int | None
    """The training budget in this site's own rounds; None: no limit."""
    rng: random.Random
    sign: Sign
    federation_rounds: int | None = None
    """The round at whose end every site has finished; a site finishes at the earlier of the two."""
    rounds_params: RoundsParams = field(default_factory=RoundsParams)
    """Set only for exchange="rounds", like finetune_rounds."""
    exchange_at: ExchangeTimes = field(default_factory=ExchangeTimes)
    """When exchanges are due."""
    finetune_rounds: int = 0
    """Own rounds at the end that are trained alone."""
    max_model_bytes: int = 2 << 30
    snapshot: Snapshot = field(default_factory=Snapshot)
    """The state that the last run saved."""
    protocol: tuple[int, int] = (PROTOCOL_MIN, PROTOCOL_MAX)
    trust: TrustParams = field(default_factory=TrustParams)
    quarantine: QuarantineParams = field(default_factory=QuarantineParams)
    sequence_floor: int = 0
    """The lowest number of a manifest. A floor taken from a clock keeps a site that has lost its disk from
    repeating numbers."""
    listed: str = ""
    """Hash of the list of sites and keys (core.types.listing); "": not known."""
    strict: bool = False
    """An event that fits no state raises."""
