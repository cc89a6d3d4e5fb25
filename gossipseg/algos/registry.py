"""Which settings build which algorithm.

What belongs here: one line for each algorithm. What must not: behaviour of any of them.
"""

from __future__ import annotations

from collections.abc import Collection

from gossipseg.algos.base import Algorithm
from gossipseg.algos.gcml import Gcml
from gossipseg.algos.gossip_average import GossipAverage
from gossipseg.algos.local import Local
from gossipseg.algos.params import AlgorithmParams, GcmlParams, GossipAverageParams, LocalParams


def build(params: AlgorithmParams, norm_names: Collection[str] = frozenset()) -> Algorithm:
    """The algorithm of these settings.

    `norm_names`: the tensors of the network's normalisation layers (nets.registry.norm_parameter_names),
    which stay at the site when the settings say `private_norm`.
    """
    match params:
        case GcmlParams():
            return Gcml(params, norm_names if params.private_norm else ())
        case GossipAverageParams():
            return GossipAverage(norm_names if params.private_norm else ())
        case LocalParams():
            return Local()
