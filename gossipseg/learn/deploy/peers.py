"""Peers' personal models at this site: checked when they came (exchange/personal_models.py), kept in the
checkpoint, and members of the mix where they earn it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gossipseg.learn.deploy.choice import OF_PEER
from gossipseg.learn.engine.build import build_described, build_model
from gossipseg.learn.engine.precision import Compute
from gossipseg.learn.settings import WorkerSettings
from gossipseg.nets.params import NetworkParams
from gossipseg.nets.params.described import read


@dataclass(frozen=True, slots=True)
class PeerModel:
    """A peer's personal model: its average (EMA), as it went over the wire."""

    site: str
    hash: str
    """blake3 of its wire file."""
    round: int
    weights: Mapping[str, Tensor]
    """State dict on the CPU."""
    record: Mapping[str, Any] | None = None
    """Describes its network; None: it is the federation's."""

    @property
    def member(self) -> str:
        """Its name in a mix."""
        return OF_PEER + self.site

    def net(self, settings: WorkerSettings, compute: Compute) -> nn.Module:
        """The network in evaluation mode, on the device. Raises RuntimeError where it is another one's."""
        net: nn.Module
        if self.record is None:
            net = build_model(settings)
            net.load_state_dict(dict(self.weights))
        else:
            net = build_described(self.record, self.weights, settings)
        return compute.place_model(net, settings.task.spatial_dims).requires_grad_(False).eval()

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        own = {} if self.record is None else {"network": dict(self.record)}
        return {"hash": self.hash, "round": self.round, "weights": dict(self.weights), **own}


class PeerModels:
    """Those that are held, by site."""

    def __init__(self) -> None:
        self.held: dict[str, PeerModel] = {}

    def put(self, model: PeerModel) -> None:
        """Hold a model in place of that site's earlier one."""
        self.held[model.site] = model

    def keep(self, sites: Mapping[str, str]) -> bool:
        """Drop all but these, site → hash; whether one was dropped."""
        before = len(self.held)
        self.held = {site: m for site, m in self.held.items() if sites.get(site) == m.hash}
        return len(self.held) < before

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {site: model.state() for site, model in sorted(self.held.items())}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from what state() gave."""
        self.held = {site: peer_model(site, told) for site, told in state.items()}


def peer_model(site: str, told: Mapping[str, Any]) -> PeerModel:
    """The model of a checkpoint's record."""
    weights = {str(name): torch.as_tensor(tensor) for name, tensor in told["weights"].items()}
    return PeerModel(site, told["hash"], told["round"], weights, told.get("network"))


def network_of(told: Mapping[str, Any], settings: WorkerSettings) -> NetworkParams:
    """The network of the model of a checkpoint's record."""
    return settings.network if told.get("network") is None else read(told["network"])
