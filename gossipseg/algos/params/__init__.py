"""Settings of the algorithms. Torch-free, so that the network process and gossipctl may read them.

What belongs here: the list of them, those of installed packages included. What must not: an algorithm's own
settings (one file a family).

A package adds an algorithm by an entry point of the group `gossipseg.algorithms`: its name, and the Params
class, which lives in a module that imports no torch. The class derives from Coordinated (or sets `exchange`
itself), has the field `name: Literal["…"]`, and names the maker of the algorithm in the class variable
`algorithm`, as "package.module:function"; see algos.registry.build.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Annotated, Any, Union, get_args

from pydantic import Field

from gossipseg.algos.params.common import Exchange, Personal
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
from gossipseg.errors import ConfigError

__all__ = ["AlgorithmParams", "Exchange", "Personal", "names", "params_class", "personal_of", "why_broken"]
__all__ += ["DittoParams", "FedAvgFinetuneParams", "FedAvgParams", "FedBnParams", "FedProxParams"]
__all__ += ["FedCoWProParams", "FedOapParams", "FedScaParams"]
__all__ += ["GcmlParams", "GossipAverageParams", "LocalParams"]

GROUP = "gossipseg.algorithms"
_BuiltIn = (
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


def _name(kind: Any) -> str:
    return str(kind.__dataclass_fields__["name"].default)


def _installed() -> tuple[dict[str, Any], dict[str, str]]:
    """Params classes of installed packages by name, and why those that cannot be used cannot."""
    found: dict[str, Any] = {}
    broken: dict[str, str] = {}
    for point in entry_points(group=GROUP):
        try:
            kind = point.load()
            if _name(kind) != point.name or not hasattr(kind, "algorithm") or not hasattr(kind, "exchange"):
                raise TypeError("its Params class needs `name` as the entry point's, `exchange`, `algorithm`")
            found[point.name] = kind
        except Exception as e:  # whatever a package does at import must not end a daemon that does not use it
            broken[point.name] = f"{point.value}: {type(e).__name__}: {e}"
    return found, broken


_CLASSES: dict[str, Any] = {_name(kind): kind for kind in get_args(_BuiltIn)}
_INSTALLED, _BROKEN = _installed()
_CLASSES = {**_INSTALLED, **_CLASSES}

if TYPE_CHECKING:
    AlgorithmParams = _BuiltIn
else:
    AlgorithmParams = Annotated[Union[tuple(_CLASSES.values())], Field(discriminator="name")]  # noqa: UP007


def names() -> tuple[str, ...]:
    """All algorithms, the built-in ones first."""
    built_in = [_name(kind) for kind in get_args(_BuiltIn)]
    return (*built_in, *sorted(set(_CLASSES) - set(built_in)))


def personal_of(params: Any) -> Personal:
    """What an algorithm says of a personal model; one of an installed package may leave it out."""
    found: Personal = getattr(params, "personal", "may")
    return found


def why_broken(name: str) -> str:
    """Why an installed package's algorithm of this name cannot be used; "" if there is no such package."""
    return _BROKEN.get(name, "")


def params_class(name: str) -> Any:
    """The Params class of an algorithm. Raises ConfigError."""
    if name in _CLASSES:
        return _CLASSES[name]
    raise ConfigError(
        "no such algorithm",
        key="algorithm.name",
        value=name,
        remedy=f"Choose one of {', '.join(names())}.",
    )
