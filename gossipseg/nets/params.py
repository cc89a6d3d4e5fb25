"""Settings of the networks. Torch-free, so that the network process and gossipctl may read them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

NetworkName = Literal["sanet", "unet", "dynunet", "segresnet", "swinunetr", "dca_unet"]

WITH_PRIVATE_PARTS = ("dca_unet",)
"""Networks that declare some parts to be a site's own: what FedOAP needs."""


@dataclass(frozen=True, slots=True)
class NetworkParams:
    """Which network, and how large. Spatial dimensions and channels come from the task."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    name: str = "sanet"
    """`sanet`; one of MONAI's: `unet`, `dynunet`, `segresnet`, `swinunetr`; or `dca_unet`, FedOAP's."""
    width: Annotated[int, Field(ge=1)] = 12
    """Channels of the first scale; deeper scales double it."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.2
    norm: Literal["instance", "group", "batch"] = "instance"
    options: dict[str, Any] = field(default_factory=dict)
    """Passed to the MONAI network's constructor as they are."""
