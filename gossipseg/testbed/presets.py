"""Sizes for a quick run on a CPU: patch, network width, steps and rounds for a kind of data."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from gossipseg import config
from gossipseg.algos.params import params_class
from gossipseg.core.params import GossipParams, RoundsParams
from gossipseg.errors import ConfigError
from gossipseg.learn.params import ONE_SHOT_ALGORITHM, ONE_SHOT_NETWORK, TaskParams, TrainingParams
from gossipseg.nets.params import NetworkParams
from gossipseg.testbed import dataset


@dataclass(frozen=True, slots=True)
class Preset:
    """The settings of a quick run for one kind of data."""

    patch: int
    """Largest patch edge, in voxels."""
    network: NetworkParams
    training: TrainingParams
    rounds: int
    gossip: GossipParams = field(default_factory=GossipParams)


# Rounds are short, so that models meet while they are alike, and many, so that each site nearly surely meets
# another one's.
SMALL_2D = Preset(
    64,
    NetworkParams(width=8, dropout=0.1),
    TrainingParams(
        steps_per_round=24,
        batch_size=4,
        learning_rate=2e-3,
        window_overlap=0.25,
    ),
    18,
    GossipParams(warmup_rounds=1),
)
GREY_2D = Preset(
    96,
    NetworkParams(width=8, dropout=0.1),
    TrainingParams(steps_per_round=25, batch_size=4, learning_rate=2e-3, window_overlap=0.25),
    12,
)
RGB_2D = Preset(
    128,
    NetworkParams(width=8, dropout=0.1),
    TrainingParams(steps_per_round=20, batch_size=4, learning_rate=2e-3, window_overlap=0.125),
    10,
)
SMALL_3D = Preset(
    48,
    NetworkParams(width=8, dropout=0.1),
    TrainingParams(steps_per_round=15, batch_size=2, learning_rate=2e-3, window_overlap=0.25),
    10,
)
LOCAL_ROUNDS = RoundsParams(deadline_s=60.0, patience_s=15.0, alone_after_s=120.0, poll_interval_s=1.0)
"""Rounds take seconds here, and no run waits through a night for a site that is killed on purpose."""
NETWORK_OF = {
    "fedoap": NetworkParams(name="dca_unet", width=8, dropout=0.0),
    "fedsca": NetworkParams(name="adapted_unetr", width=8, dropout=0.0, options={"adapter_width": 16}),
    "fedcowpro": NetworkParams(
        name="cowpro_encoder", width=16, dropout=0.0, norm="group", options={"depth": 18}
    ),
}
"""Small networks for the algorithms that need a network of their own."""
ONE_SHOT_EDGE = 128
_ONE_SHOT_OPTIMIZER = {
    "optimizer": "sgd",
    "learning_rate": 1e-2,
    "weight_decay": 5e-4,
    "schedule": "step_decay",
}
NOTHING_WRITTEN: Mapping[str, Any] = MappingProxyType({})
_PATCH_STEP = 16


def choose(task: TaskParams, sizes: list[tuple[int, ...]]) -> tuple[Preset, TaskParams]:
    """The preset for a task whose images have these sizes, and the task with its patch size."""
    middle = [statistics.median(size[axis] for size in sizes) for axis in range(task.spatial_dims)]
    if task.spatial_dims == 3:
        preset = SMALL_3D
    elif max(middle) <= 160:
        preset = SMALL_2D
    else:
        preset = RGB_2D if task.channels == 3 else GREY_2D
    return preset, replace(task, patch_size=tuple(_edge(m, preset.patch) for m in middle))


def _edge(size: float, largest: int) -> int:
    return max(_PATCH_STEP * 2, min(largest, _PATCH_STEP * round(size / _PATCH_STEP)))


# ---------------------------------------------------------------- as sections of a peers.yaml


def from_data(folders: list[Path]) -> tuple[dict[str, Any], int]:
    """The sections of a peers.yaml without its sites, and the rounds, for these sites' data.

    Raises DataError naming the site, its file and what is wrong with it or differs from the others.
    """
    described = [dataset.describe(folder) for folder in folders]
    task = dataset.task_of(described[0].task or folders[0].parent.absolute().name, described)
    return sections(task, [size for site in described for size in site.sizes])


def sections(task: TaskParams, sizes: list[tuple[int, ...]]) -> tuple[dict[str, Any], int]:
    """The same for a task whose images have these sizes."""
    preset, task = choose(task, sizes)
    found = {
        "version": 1,
        "federation": f"testbed-{task.name}".replace("/", "-"),
        "seed": 0,
        "task": _changed(task),
        "network": _changed(preset.network),
        "algorithm": {"name": "gcml"},
        "training": _changed(preset.training),
        "gossip": _changed(preset.gossip),
        "rounds": _changed(LOCAL_ROUNDS),
        "membership": {"preset": "local"},
    }
    return _plain({k: v for k, v in found.items() if v != {}}), preset.rounds


def set_algorithm(sections: dict[str, Any], name: str, own: Mapping[str, Any] = NOTHING_WRITTEN) -> None:
    """Let the sections of a peers.yaml use this algorithm, with the network that it needs.

    `own`: the user's own values in these sections (`written`); those of task and training stay. Raises
    ConfigError where the algorithm cannot work with them.
    """
    sections["algorithm"] = {"name": name}
    suited = getattr(params_class(name), "networks", None)
    if suited is not None and sections.get("network", {}).get("name", "sanet") not in suited:
        network = NETWORK_OF.get(name) or NetworkParams(name=suited[0])  # of an installed package: its own
        sections["network"] = _plain(_changed(network))
    if name == ONE_SHOT_ALGORITHM:
        _one_shot(sections, own.get("task") or {}, own.get("training") or {})


def _one_shot(sections: dict[str, Any], own_task: Mapping[str, Any], own_training: Mapping[str, Any]) -> None:
    """Set up slices: FedCoWPro learns from slices, so volumes are read as slices along their last axis."""
    task, training = sections["task"], sections["training"]
    if task.get("spatial_dims", 2) == 3:
        if "spatial_dims" in own_task:
            raise ConfigError(
                f"{ONE_SHOT_ALGORITHM} works on slices",
                key="task.spatial_dims",
                value=3,
                remedy=f"Write the file for it: algorithm.name: {ONE_SHOT_ALGORITHM}, network.name: "
                f"{ONE_SHOT_NETWORK}, task.spatial_dims: 2, task.slice_axis: 2 (slices along the last axis) "
                "and two numbers as task.patch_size.",
            )
        task |= {"spatial_dims": 2, "slice_axis": 2}
        task.pop("spacing_mm", None)
        task.pop("orientation", None)
        training.pop("flip_axes", None)  # its axes are those of volumes, and FedCoWPro mirrors nothing
    if "patch_size" not in own_task:
        task["patch_size"] = [ONE_SHOT_EDGE, ONE_SHOT_EDGE]
    if "batch_size" not in own_training:
        training["batch_size"] = 2
    if not own_training.keys() & _ONE_SHOT_OPTIMIZER.keys():  # they are chosen for each other
        training |= _ONE_SHOT_OPTIMIZER


def from_file(path: Path) -> tuple[dict[str, Any], int]:
    """Everything but the sites from another peers.yaml, and its rounds (training.rounds), or a quick run's.

    Raises ConfigError.
    """
    federation = dataclasses.asdict(config.load_federation(path))
    federation.pop("sites")
    if "exchange_at" not in written(path):
        del federation["exchange_at"]
    if "membership" not in written(path):
        federation["membership"] = {"preset": "local"}
    return _plain(federation), federation["training"]["rounds"] or SMALL_2D.rounds


def written(path: Path) -> dict[str, Any]:
    """The values written in a peers.yaml that `from_file` has read, without defaults."""
    found: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return found


def _changed(params: Any) -> dict[str, Any]:
    """The fields of a Params dataclass that differ from their defaults."""
    shown = {}
    for f in dataclasses.fields(params):
        value = getattr(params, f.name)
        default = f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default
        if value != default:
            shown[f.name] = value
    return shown


def _plain(value: Any) -> Any:
    """Tuples become lists; keys keep their types (labels are numbered by integers)."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value
