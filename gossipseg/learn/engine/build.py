"""The networks of a site, with their first weights: the federation's W_0, and that of its personal model."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from gossipseg.errors import ConfigError
from gossipseg.learn.engine.optim import step_seed
from gossipseg.learn.params import TaskParams, TrainingParams
from gossipseg.learn.settings import WorkerSettings
from gossipseg.nets.features import head_of
from gossipseg.nets.params import NetworkParams
from gossipseg.nets.params.described import read
from gossipseg.nets.registry import Segmenter, build, initialise, network_signature

SITE_FILE = "site.yaml"


def output_channels(task: TaskParams, training: TrainingParams) -> int:
    """softmax: one channel per label; sigmoid: one per foreground label."""
    return len(task.labels) - (training.output == "sigmoid")


def build_model(settings: WorkerSettings) -> Segmenter:
    """The network with its initial weights, the same at every site: on the CPU, in training mode.

    Files of pretrained weights that the settings name lie in the site's data folder. Raises ConfigError for
    settings that the network does not take, and for such a file that is missing or another one.
    """
    return _initial(settings.network, settings, settings.spec.seed)


def build_personal(settings: WorkerSettings) -> Segmenter:
    """The personal model with its first weights, as build_model() gives the shared one.

    With a network of its own they are drawn from the seed and the site's name. Raises ConfigError, which
    then names site.yaml's key.
    """
    network = settings.personal_network
    if network is None:
        return build_model(settings)
    seed = step_seed(settings.spec.seed, f"{settings.spec.site}/personal", 0, 0)
    try:
        return _initial(network, settings, seed)
    except ConfigError as e:
        raise _of_site(e, network, settings.task) from e


def build_described(record: object, weights: Mapping[str, Tensor], settings: WorkerSettings) -> Segmenter:
    """A peer's model of the network that its record describes, on the CPU.

    `weights`: its floating-point tensors; tables of indices follow from the network. The caller has checked
    both (exchange/described_models.py). Raises NotDescribed, ConfigError, RuntimeError.
    """
    network = read(record)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what MONAI says of another site's options
        model = _initial(network, settings, 0)
    missing, unexpected = model.load_state_dict(dict(weights), strict=False)
    state = model.state_dict()
    if unexpected or any(state[name].is_floating_point() for name in missing):
        raise RuntimeError(f"the weights are not those of {network.name} with these options")
    return model


def make(network: NetworkParams, settings: WorkerSettings, weights_folder: Path | None = None) -> Segmenter:
    """The network for this federation's task, as its constructor leaves it. `weights_folder`: of files of
    pretrained weights. Raises ConfigError, and what layers raise at sizes that do not fit."""
    task = settings.task
    return build(
        network,
        spatial_dims=task.spatial_dims,
        in_channels=task.channels,
        out_channels=output_channels(task, settings.training),
        patch_size=task.patch_size,
        weights_folder=weights_folder,
    )


def _initial(network: NetworkParams, settings: WorkerSettings, seed: int) -> Segmenter:
    model = initialise(lambda: make(network, settings, Path(settings.data.path)), seed)
    assert isinstance(model, Segmenter)
    return model


def check_features(shared: Segmenter, personal: Segmenter) -> None:
    """Check that both models have features that can be compared. Raises ConfigError."""
    key, value = "algorithm.contrast", "features"
    remedy = "Write contrast: logits (or leave it out), or none, at all sites."
    if head_of(shared) is None:
        name = type(shared.network).__name__
        raise ConfigError(
            f"{name} does not say which of its layers is its `head`", key=key, value=value, remedy=remedy
        )
    of_shared, of_personal = (network_signature(m, lambda name: True) for m in (shared, personal))
    if of_shared != of_personal:
        problem = "the personal model has another network than the shared one, and other features"
        raise ConfigError(problem, key=key, value=value, remedy=remedy)


def _of_site(error: ConfigError, network: NetworkParams, task: TaskParams) -> ConfigError:
    """The error in terms of site.yaml: the patch is the federation's, and this site cannot change it."""
    if (error.key or "").startswith("network."):
        remedy = re.sub(r"\bnetwork\.(?=\w)", "personal_network.", error.remedy)
        return ConfigError(
            error.problem, file=SITE_FILE, key=f"personal_{error.key}", value=error.value, remedy=remedy
        )
    if error.key != "task.patch_size":
        return error
    patch = list(task.patch_size)
    return ConfigError(
        f"does not go with task.patch_size {patch} of peers.yaml: {error.problem}",
        file=SITE_FILE,
        key="personal_network.name",
        value=network.name,
        remedy="Write a shallower network or another one, or leave personal_network out. For another patch, "
        f"at all sites: {error.remedy}",
    )


# ---------------------------------------------------------------- which network a personal model has


def personal_identity(settings: WorkerSettings, model: Segmenter) -> Mapping[str, str] | None:
    """What tells the personal model's network from others in a checkpoint; None: it is the shared one's."""
    network = settings.personal_network
    if network is None:
        return None
    options = json.dumps(dict(network.options), sort_keys=True, default=str)
    signature = network_signature(model, _all)
    return {"name": network.name, "signature": signature, "norm": network.norm, "options": options}


def check_identity(stored: Mapping[str, str] | None, present: Mapping[str, str] | None) -> None:
    """Refuse to go on from a personal model of another network than site.yaml has. Raises ConfigError."""
    if stored == present:
        return
    had = "the shared model's network" if stored is None else f"a network {stored['name']} of its own"
    wanted = None if present is None else present["name"]
    if stored is not None and stored["name"] == wanted:
        had += " with other tensors, norm or options"
    raise ConfigError(
        f"the personal model of this site's checkpoint has {had}",
        file=SITE_FILE,
        key="personal_network.name",
        value=wanted,
        remedy="Restore the setting, or start afresh: give the site another state_dir.",
    )


def _all(name: str) -> bool:
    return True
