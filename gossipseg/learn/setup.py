"""A WorkerSpec's plain dictionaries as the typed Params of each part."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pydantic import TypeAdapter, ValidationError

from gossipseg.algos.params import AlgorithmParams, ensembles
from gossipseg.errors import ConfigError
from gossipseg.learn.flips import flips_problem
from gossipseg.learn.params import (
    AdmissionParams,
    DataParams,
    DeviceParams,
    PrivacyParams,
    TaskParams,
    TrainingParams,
    WorkerSpec,
    deployed_problem,
    dp_problem,
    one_shot_problem,
)
from gossipseg.nets.params import NetworkParams


@dataclass(frozen=True, slots=True)
class Setup:
    """All settings of one training process."""

    spec: WorkerSpec
    task: TaskParams
    network: NetworkParams
    algorithm: AlgorithmParams
    training: TrainingParams
    data: DataParams
    device: DeviceParams
    admission: AdmissionParams = field(default_factory=AdmissionParams)
    privacy: PrivacyParams = field(default_factory=PrivacyParams)

    @property
    def ensembles_peers(self) -> bool:
        """Whether other sites' models may predict here: it is asked for, or the algorithm's own way."""
        return self.training.ensemble_peers or ensembles(self.algorithm)


def read_spec(raw: dict[str, Any]) -> WorkerSpec:
    """The WorkerSpec of a Configure message. Raises ConfigError."""
    spec: WorkerSpec = _read(WorkerSpec, raw, "worker spec")
    return spec


def read_setup(spec: WorkerSpec) -> Setup:
    """The typed settings of a spec. Raises ConfigError naming the section, key and value."""
    algorithm: Any = AlgorithmParams
    setup = Setup(
        spec,
        _read(TaskParams, spec.task, "task"),
        _read(NetworkParams, spec.network, "network"),
        _read(algorithm, spec.algorithm, "algorithm"),
        _read(TrainingParams, spec.training, "training"),
        _read(DataParams, spec.data, "data"),
        _read(DeviceParams, spec.device, "device"),
        _read(AdmissionParams, spec.admission, "admission"),
        _read(PrivacyParams, spec.privacy, "privacy"),
    )
    problem = one_shot_problem(setup.algorithm.name, setup.network.name, setup.task, setup.training)
    if problem is None:
        problem = flips_problem(setup.task, setup.training)
    if problem is None:
        problem = dp_problem(setup.privacy, setup.algorithm.name, setup.network.norm, setup.device.amp)
    if problem is None:
        private = setup.privacy.dp is not None
        problem = deployed_problem(setup.training, setup.algorithm, private=private)
    if problem is not None:
        text, key, value, remedy = problem
        raise ConfigError(text, key=key, value=value, remedy=remedy)
    return setup


def _read(kind: Any, raw: dict[str, Any], section: str) -> Any:
    try:
        return TypeAdapter(kind).validate_python(raw)
    except ValidationError as e:
        first = e.errors(include_url=False)[0]
        key = ".".join([section, *map(str, first["loc"])])
        raise ConfigError(
            first["msg"], key=key, value=first.get("input"), remedy="Correct it in peers.yaml or site.yaml."
        ) from None
