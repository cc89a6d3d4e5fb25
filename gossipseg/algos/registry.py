"""Which settings build which algorithm."""

from __future__ import annotations

import importlib
from collections.abc import Collection
from typing import Any

from gossipseg.algos.base import Algorithm
from gossipseg.algos.ditto import Ditto
from gossipseg.algos.fedavg import FedAvg
from gossipseg.algos.fedavg_finetune import FedAvgFinetune
from gossipseg.algos.fedbn import FedBn
from gossipseg.algos.fedcowpro import FedCoWPro
from gossipseg.algos.fedoap import FedOap
from gossipseg.algos.fedprox import FedProx
from gossipseg.algos.fedsca import FedSca
from gossipseg.algos.gcml import Gcml
from gossipseg.algos.gossip_average import GossipAverage
from gossipseg.algos.local import Local
from gossipseg.algos.params import (
    AlgorithmParams,
    DittoParams,
    FedAvgFinetuneParams,
    FedAvgParams,
    FedBnParams,
    FedCoWProParams,
    FedOapParams,
    FedProxParams,
    FedScaParams,
    GcmlParams,
    GossipAverageParams,
    LocalParams,
)
from gossipseg.algos.robust import Robust
from gossipseg.errors import ConfigError

GONE = ("on_departure", "has_personal", "trains_visitor", "sends_average")
"""What algorithms of earlier versions could say; left unread, it would make another algorithm of them."""


def build(
    params: AlgorithmParams,
    norm_names: Collection[str] = frozenset(),
    private_names: Collection[str] = frozenset(),
) -> Algorithm:
    """The algorithm of these settings.

    `norm_names`: the tensors of the network's normalisation layers (nets.registry.norm_parameter_names);
    under FedBN they stay at the site. `private_names`: those of the parts that the network itself declares to
    be a site's own (nets.registry.private_names); only FedOAP and FedSCA look at them.
    Raises ConfigError when the network lacks what the algorithm needs.
    """
    algorithm = _built(params, norm_names, private_names)
    if getattr(params, "robust", "none") != "none":
        _make_robust(algorithm, params)
    return algorithm


def _make_robust(algorithm: Algorithm, params: Any) -> None:
    """Let FedAvg or a relative combine by the rule of the settings. Raises ConfigError for others."""
    if not isinstance(algorithm, FedAvg) or type(algorithm).aggregate is not FedAvg.aggregate:
        raise ConfigError(
            f"{params.name} combines updates in a way of its own",
            key="algorithm.robust",
            value=params.robust,
            remedy="Remove the key, or use fedavg or one of its relatives.",
        )
    algorithm.robust = Robust(params.robust, params.trim, params.byzantine)


def _built(params: AlgorithmParams, norm_names: Collection[str], private_names: Collection[str]) -> Algorithm:
    match params:
        case GcmlParams():
            return Gcml(params)
        case GossipAverageParams():
            return GossipAverage()
        case LocalParams():
            return Local()
        case FedAvgParams():
            return FedAvg(params.weighting)
        case FedAvgFinetuneParams():
            return FedAvgFinetune(params.weighting)
        case FedProxParams():
            return FedProx(params.mu, params.weighting)
        case FedBnParams():
            return FedBn(params.weighting, norm_names)
        case DittoParams():
            return Ditto(params.lambda_, params.weighting)
        case FedCoWProParams():
            return FedCoWPro(params.weighting)
        case FedOapParams():
            return FedOap(params, private_names)
        case FedScaParams():
            return FedSca(params, private_names)
        case _:
            return _brought(params, norm_names, private_names)


def _brought(params: Any, norm_names: Collection[str], private_names: Collection[str]) -> Algorithm:
    """The algorithm of an installed package: its Params class names the maker."""
    module, _, function = str(type(params).algorithm).partition(":")
    try:
        make = getattr(importlib.import_module(module), function)
        algorithm = make(params, norm_names, private_names)
    except (ImportError, AttributeError, TypeError) as e:
        raise ConfigError(
            f"the package that brings this algorithm cannot make it: {type(e).__name__}: {e}",
            key="algorithm.name",
            value=params.name,
            remedy=f"Correct or update the package of {type(params).algorithm}.",
        ) from e
    if not isinstance(algorithm, Algorithm):
        raise ConfigError(
            f"{type(params).algorithm} made a {type(algorithm).__name__}, which is no Algorithm",
            key="algorithm.name",
            value=params.name,
        )
    gone = [name for name in GONE if hasattr(algorithm, name)]
    if gone:
        raise ConfigError(
            f"{type(algorithm).__name__} has {', '.join(gone)}, which this version does not know",
            key="algorithm.name",
            value=params.name,
            remedy=f"Update the package of {type(params).algorithm} (docs/ml/extending.md).",
        )
    if params.exchange == "rounds" and type(algorithm).aggregate is Algorithm.aggregate:
        raise ConfigError(
            f"{type(algorithm).__name__} is coordinated and has no `aggregate`",
            key="algorithm.name",
            value=params.name,
            remedy=f"Let it override Algorithm.aggregate; update the package of {type(params).algorithm}.",
        )
    return algorithm
