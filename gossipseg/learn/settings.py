"""A WorkerSpec's plain dictionaries as the typed Params of each part."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pydantic import TypeAdapter, ValidationError

from gossipseg.algos.params import AlgorithmParams, ensembles
from gossipseg.errors import ConfigError
from gossipseg.learn.data.flips import flips_problem
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
class WorkerSettings:
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


def read_settings(spec: WorkerSpec) -> WorkerSettings:
    """The typed settings of a spec. Raises ConfigError naming the section, key and value."""
    algorithm: Any = AlgorithmParams
    settings = WorkerSettings(
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
    problem = one_shot_problem(
        settings.algorithm.name, settings.network.name, settings.task, settings.training
    )
    if problem is None:
        problem = flips_problem(settings.task, settings.training)
    if problem is None:
        problem = dp_problem(
            settings.privacy, settings.algorithm.name, settings.network.norm, settings.device.amp
        )
    if problem is None:
        private = settings.privacy.dp is not None
        problem = deployed_problem(settings.training, settings.algorithm, private=private)
    if problem is not None:
        text, key, value, remedy = problem
        raise ConfigError(text, key=key, value=value, remedy=remedy)
    return settings


def _read(kind: Any, raw: dict[str, Any], section: str) -> Any:
    try:
        return TypeAdapter(kind).validate_python(raw)
    except ValidationError as e:
        first = e.errors(include_url=False)[0]
        key = ".".join([section, *map(str, first["loc"])])
        raise ConfigError(
            first["msg"], key=key, value=first.get("input"), remedy="Correct it in peers.yaml or site.yaml."
        ) from None
