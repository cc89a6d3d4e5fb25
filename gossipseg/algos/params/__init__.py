"""Settings of the algorithms. Torch-free, so that the network process and gossipctl may read them.

What belongs here: the list of them. What must not: an algorithm's own settings (one file a family).
"""

from __future__ import annotations

from gossipseg.algos.params.common import Exchange
from gossipseg.algos.params.fedavg import (
    DittoParams,
    FedAvgFinetuneParams,
    FedAvgParams,
    FedBnParams,
    FedProxParams,
)
from gossipseg.algos.params.fedcowpro import FedCoWProParams
from gossipseg.algos.params.fedoap import FedOapParams
from gossipseg.algos.params.fedsca import FedScaParams
from gossipseg.algos.params.gossip import GcmlParams, GossipAverageParams, LocalParams

__all__ = ["AlgorithmParams", "Exchange"]
__all__ += ["DittoParams", "FedAvgFinetuneParams", "FedAvgParams", "FedBnParams", "FedProxParams"]
__all__ += ["FedCoWProParams", "FedOapParams", "FedScaParams"]
__all__ += ["GcmlParams", "GossipAverageParams", "LocalParams"]

AlgorithmParams = (
    GcmlParams
    | LocalParams
    | GossipAverageParams
    | FedAvgParams
    | FedProxParams
    | FedAvgFinetuneParams
    | FedBnParams
    | DittoParams
    | FedCoWProParams
    | FedOapParams
    | FedScaParams
)
