"""Settings of the networks. Torch-free, so that the network process and gossipctl may read them."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import Field

NetworkName = Literal[
    "sanet",
    "unet",
    "dynunet",
    "segresnet",
    "swinunetr",
    "dca_unet",
    "adapted_unetr",
    "adapted_swinunetr",
    "adapted_sam",
    "cowpro_encoder",
]

WITH_ADAPTERS = ("adapted_unetr", "adapted_swinunetr", "adapted_sam")
"""Networks with adapters, of which a site keeps all but the low ones: what FedSCA needs."""
WITH_PRIVATE_PARTS = ("dca_unet", *WITH_ADAPTERS)
"""Networks that declare private parts: what FedOAP needs; its own network is the first."""

NETWORK_GROUP = "gossipseg.networks"
"""Entry points of packages that add a network: its name, and a nets.registry.Entry."""


def network_names() -> tuple[str, ...]:
    """All networks, those of installed packages last; none is loaded for it."""
    built_in = get_args(NetworkName)
    brought = {point.name for point in entry_points(group=NETWORK_GROUP)} - set(built_in)
    return (*built_in, *sorted(brought))


@dataclass(frozen=True, slots=True)
class NetworkParams:
    """Which network, and how large. Spatial dimensions and channels come from the task."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    name: str = "sanet"
    """`sanet`; one of MONAI's: `unet`, `dynunet`, `segresnet`, `swinunetr`; `dca_unet`, FedOAP's;
    `adapted_unetr`, `adapted_swinunetr` and `adapted_sam`, FedSCA's."""
    width: Annotated[int, Field(ge=1)] = 12
    """Channels of the first scale; deeper scales double it."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Dropout probability."""
    norm: Literal["instance", "group", "batch"] = "instance"
    """Normalisation layers."""
    options: dict[str, Any] = field(default_factory=dict)
    """Passed to the MONAI network's constructor as they are. `cowpro_encoder` takes depth (18, 50 or 101),
    adapted networks take adapter_width and adapter_scale. Both take encoder_weights and
    encoder_weights_sha256: name and checksum of a file of pretrained weights in each site's data folder."""
