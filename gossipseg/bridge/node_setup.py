"""From the configuration to the core's setup."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from gossipseg.config.exchange import exchange_times
from gossipseg.config.files import FederationFile
from gossipseg.core.setup import NodeSetup
from gossipseg.core.types import Sign, Site

Contract = tuple[tuple[str, str], ...]


def node_setup(
    federation: FederationFile,
    site: Site,
    *,
    address: str,
    sites: Mapping[Site, str],
    contract: Contract,
    rounds: int | None,
    rng: random.Random,
    sign: Sign,
    **own: Any,
) -> NodeSetup:
    """All settings of peers.yaml for a node. `own`: fields of NodeSetup that a site sets itself."""
    algorithm = federation.algorithm
    said: dict[str, Any] = {
        "membership": federation.membership,
        "rounds_params": federation.rounds,
        "trust": federation.trust,
        **own,
    }
    return NodeSetup(
        site,
        address=address,
        sites=sites,
        federation=federation.federation,
        contract=contract,
        gossip=federation.gossip,
        exchange=algorithm.exchange,
        exchange_at=exchange_times(federation),
        finetune_rounds=getattr(algorithm, "finetune_rounds", 0),
        rounds=rounds,
        federation_rounds=federation.training.rounds,
        rng=rng,
        sign=sign,
        max_model_bytes=federation.wire.max_model_bytes,
        **said,
    )
