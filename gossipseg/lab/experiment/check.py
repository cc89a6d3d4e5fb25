"""Finds what would stop a run before its first step, while nothing has been made or trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gossipseg.algos import registry as algorithms
from gossipseg.errors import ConfigError
from gossipseg.lab.plan.run_plans import RunPlan
from gossipseg.lab.simulation.pretrained import WEIGHTS
from gossipseg.lab.simulation.training import make_spec
from gossipseg.learn.engine.build import build_model, build_personal
from gossipseg.learn.engine.precision import choose_compute
from gossipseg.learn.params import DataParams, DeviceParams
from gossipseg.learn.settings import WorkerSettings, read_settings
from gossipseg.nets import registry as networks
from gossipseg.nets.adapters import KEY
from gossipseg.nets.pretrained import read_weights

Names = tuple[frozenset[str], frozenset[str]]
"""State-dict names of a network: those of its normalisation layers, and those it declares private to a
site."""


def check(planned: Sequence[RunPlan], folders: Mapping[str, str]) -> None:
    """Build each algorithm of the plans and its network, on the CPU, as the runs will.

    `folders`: site → its own data folder, which holds files of pretrained weights. Raises ConfigError naming
    the algorithm when its network does not accept the patch or the settings. It does so, too, when weights
    are missing or fail their checksum, or when the network lacks parts that the algorithm needs. Raises
    LocalError for a device that does not exist.
    """
    built: dict[str, Names] = {}
    for plan in {plan.label: plan for plan in reversed(planned)}.values():
        choose_compute(DeviceParams(plan.device, amp="off"))
        try:
            _check(plan, folders, built)
        except ConfigError as e:
            problem = f"{plan.label} cannot be run: {e.problem}"
            raise ConfigError(problem, file=e.file, key=e.key, value=e.value, remedy=e.remedy) from e


def _check(plan: RunPlan, folders: Mapping[str, str], built: dict[str, Names]) -> None:
    site, *others = folders
    setup = _setup(plan, site, folders[site])
    of = repr((setup.network, setup.task, setup.training.output))
    if of not in built:
        model = build_model(setup)
        built[of] = networks.norm_parameter_names(model), networks.private_names(model)
        _check_weights(setup, [Path(folders[other]) for other in others])
    algorithms.build(setup.algorithm, *built[of])
    for name, network in plan.personal_networks.items():
        build_personal(_setup(plan, name, folders[name], network))


def _setup(plan: RunPlan, site: str, folder: str, network: Mapping[str, Any] | None = None) -> WorkerSettings:
    data = DataParams(folder)
    return read_settings(
        make_spec(plan.parsed(), site, data, Path(folder), plan.rounds, plan.device, network)
    )


def _check_weights(setup: WorkerSettings, folders: Sequence[Path]) -> None:
    """Check the other sites' files of the pretrained weights that build_model has accepted."""
    if name := setup.network.options.get(WEIGHTS):
        for folder in folders:
            read_weights(str(folder / name), setup.network.options[f"{WEIGHTS}_sha256"], KEY)
