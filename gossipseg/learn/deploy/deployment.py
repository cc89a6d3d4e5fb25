"""The model a site evaluates, predicts with and exports: its deployment model, from the newest checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gossipseg.errors import ConfigError, LocalError
from gossipseg.learn.deploy.choice import OF_PEER, Mix, limited, only
from gossipseg.learn.deploy.earlier import of_earlier_version
from gossipseg.learn.deploy.peers import network_of
from gossipseg.learn.deploy.prediction import learned, mixed_net
from gossipseg.learn.engine.build import (
    build_described,
    build_model,
    build_personal,
    check_identity,
    personal_identity,
)
from gossipseg.learn.engine.checkpoint import check_meaning, intact
from gossipseg.learn.engine.precision import Compute, choose_compute
from gossipseg.learn.params import ONE_SHOT_ALGORITHM, WorkerSpec
from gossipseg.learn.settings import WorkerSettings, read_settings
from gossipseg.nets.params import NetworkParams
from gossipseg.store import Checkpoints

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Deployment:
    """A network in evaluation mode on its device, and where its weights come from."""

    net: nn.Module
    settings: WorkerSettings
    compute: Compute
    weights: str
    """`ema`, or `initial` before any training; with a personal model `mix`, or the one that predicts alone:
    `personal`, `shared`."""
    round: int
    steps: int
    file: Path | None
    """The checkpoint; None for the initial weights."""
    members: Mapping[str, float] = field(default_factory=dict)
    """The models that predict, with their weights, where there is a personal one."""
    reason: str = ""
    """Why these, in one line."""
    networks: Sequence[NetworkParams] = ()
    """The network of each model in `net`, in its order."""
    taught: bool = True
    """Whether somebody has taught the model every class: a site that does not annotate all of them must have
    met another one."""


def load_deployment(spec: WorkerSpec, *, initial: bool = False, single: bool = False) -> Deployment:
    """What the newest checkpoint that can be read deploys, or the initial model of the federation's seed.

    `single`: of several models that predict together, the one that validates best by itself.

    Reads only, so it may run beside the daemon. Peers that are not listed any more, and those beyond
    inference.max_members, have no say. Raises LocalError where there is no usable checkpoint, ConfigError
    where it was trained for another task or network than the settings say.
    """
    settings = read_settings(spec)
    compute = choose_compute(settings.device)
    if settings.device.threads:
        torch.set_num_threads(settings.device.threads)
    net: nn.Module = build_model(settings)
    file: Path | None = None
    checkpoint: dict[str, Any] = {}
    weights, mix, networks = "initial", None, [settings.network]
    if not initial:
        file, found = newest_checkpoint(Path(spec.state_dir) / "checkpoint")
        check_meaning(file, found.get("contract", {}), settings)
        checkpoint = dict(of_earlier_version(found))
        _load(net, checkpoint["ema"], file)
        net, mix = _chosen(net, checkpoint, settings, file, single=single)
        networks = networks_of(mix, settings, checkpoint.get("peers", {}))
        weights = "ema" if mix is None else mix.name
    return Deployment(
        compute.place_model(net, settings.task.spatial_dims).eval(),
        settings,
        compute,
        weights,
        int(checkpoint.get("round", 0)),
        int(checkpoint.get("steps", 0)),
        file,
        mix.weights if mix is not None else {},
        _reason(mix, int(checkpoint.get("round", 0))) if mix is not None else "",
        networks,
        settings.annotates_all or _has_met(checkpoint.get("history", {})),
    )


def _has_met(history: Mapping[str, Any]) -> bool:
    """Whether another site's model, or a global one, has come into the shared model."""
    return history.get("first_exchange") is not None or bool(history.get("last_global"))


def _reason(mix: Mix, round: int) -> str:
    """The mix in words, with the round of its figures where it is another."""
    of_then = mix.round is not None and mix.round != round and mix.deployed is not None
    return f"{mix.reason} (validated at round {mix.round})" if of_then else mix.reason


def networks_of(
    mix: Mix | None, settings: WorkerSettings, peers: Mapping[str, Mapping[str, Any]]
) -> list[NetworkParams]:
    """The network of each model that predicts, in the order of mixed_net(). `peers`: of the checkpoint."""
    own = {OF_PEER + site: network_of(told, settings) for site, told in peers.items()}
    own["personal"] = settings.personal_network or settings.network
    names = [name for name, weight in mix.weights.items() if weight > 0] if mix is not None else ["shared"]
    return [own.get(name, settings.network) for name in names]


def _chosen(
    net: nn.Module, checkpoint: Mapping[str, Any], settings: WorkerSettings, file: Path, *, single: bool
) -> tuple[nn.Module, Mix | None]:
    """What is deployed, and the mix; None where there is no personal model, or it is not asked for.

    `net`: the shared model's average.
    """
    personal, told = checkpoint.get("personal_model"), checkpoint.get("mix")
    unusable = personal is None or told is None or not personal.get("begun", True)
    if personal is None or told is None or unusable or not settings.has_personal:
        return net, None
    mix, told_peers = learned(Mix(**told), settings), checkpoint.get("peers", {})
    listed = settings.spec.listed
    may = {m for m in mix.weights if listed is None or m.removeprefix(OF_PEER) in listed}
    mix = limited(mix, may, settings.inference.max_members)
    if single and len(mix.weights) > 1:
        mix = only(mix)
    nets: dict[str, nn.Module] = {"shared": net}
    for member in mix.weights:
        if member == "personal":
            nets[member] = _built_personal(settings, personal, file)
        elif member.startswith(OF_PEER):
            record = told_peers.get(member.removeprefix(OF_PEER))
            if record is None:
                raise LocalError(
                    f"{file}: {member} predicts, and is not in the checkpoint. Start the daemon: it writes "
                    "a new one at the end of the round."
                )
            nets[member] = _built_peer(settings, record, file)
    return mixed_net(mix, nets, settings.training.output), mix


def _built_personal(settings: WorkerSettings, state: Mapping[str, Any], file: Path) -> nn.Module:
    """The personal model's average, from its part of a checkpoint."""
    net = build_personal(settings)
    check_identity(state.get("network"), personal_identity(settings, net))
    _load(net, state["model"]["ema"], file)
    return net


def _built_peer(settings: WorkerSettings, told: Mapping[str, Any], file: Path) -> nn.Module:
    """A peer's personal model, from its part of a checkpoint."""
    if told.get("network") is not None:
        return build_described(told["network"], told["weights"], settings)
    net = build_model(settings)
    _load(net, told["weights"], file)
    return net


def must_segment(deployment: Deployment) -> None:
    """Raises ConfigError where the network gives features, which need a labelled scan to become labels, and
    LocalError where nobody has taught the model some of the classes yet."""
    algorithm = deployment.settings.algorithm.name
    if algorithm == ONE_SHOT_ALGORITHM:
        raise ConfigError(
            "its network segments by the example of a labelled scan only",
            key="algorithm.name",
            value=algorithm,
            remedy="`gossipctl evaluate` takes each labelled scan of a split as the example in turn.",
        )
    if not deployment.taught:
        raise LocalError(
            "the shared model has met no other site yet, and this site does not annotate all classes "
            "(data.annotated_labels): where it put the others would mean nothing. Wait for the first "
            "exchange (`gossipctl status`)."
        )


def newest_checkpoint(directory: Path) -> tuple[Path, dict[str, Any]]:
    """The newest checkpoint that loads; a broken one is passed over for the one before it.

    Raises LocalError that names what was tried.
    """
    broken = []
    for file in Checkpoints(directory).newest():
        try:
            loaded = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as e:  # torch.load raises whatever the damage leads to
            broken.append(f"{file.name} cannot be read ({type(e).__name__})")
            continue
        if not isinstance(loaded, dict) or not isinstance(loaded.get("ema"), Mapping):
            broken.append(f"{file.name} holds no averaged weights")
        elif not intact(loaded):
            broken.append(f"{file.name} is damaged")
        else:
            if broken:
                log.warning("%s: %s; %s is used", directory, "; ".join(broken), file.name)
            return file, loaded
    if broken:
        raise LocalError(
            f"{directory}: no usable checkpoint: {'; '.join(broken)}. Start the daemon: it goes on from "
            "what it can read, and writes a new one at the end of the round."
        )
    raise LocalError(
        f"{directory}: there is no checkpoint yet. One is written at the end of the first round of training. "
        "Start `gossipsegd` and wait for it (`gossipctl status`). `gossipctl evaluate --initial` scores the "
        "weights before any training."
    )


def _load(net: nn.Module, weights: Mapping[str, Tensor], file: Path) -> None:
    try:
        net.load_state_dict(dict(weights))
    except RuntimeError as e:
        reason = str(e).splitlines()[-1].strip()
        raise LocalError(
            f"{file}: the checkpoint is of another network than peers.yaml describes: {reason} "
            "Restore the network section, or start with an empty state_dir."
        ) from e
