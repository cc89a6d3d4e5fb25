"""A WorkerSpec's plain dictionaries as the typed Params of each part."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pydantic import TypeAdapter, ValidationError

from gossipseg.algos.params import AlgorithmParams
from gossipseg.errors import ConfigError
from gossipseg.learn.data.flips import flips_problem
from gossipseg.learn.params import (
    AdmissionParams,
    DataParams,
    DeviceParams,
    InferenceParams,
    PrivacyParams,
    TaskParams,
    TrainingParams,
    WorkerSpec,
    annotates_all,
    dp_problem,
    one_shot_problem,
    personal_network_problem,
    personal_problem,
    trains_personal,
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
    personal_network: NetworkParams | None = None
    """That of the personal model alone, with first weights of its own; None: the shared model's."""
    inference: InferenceParams = field(default_factory=InferenceParams)

    @property
    def has_personal(self) -> bool:
        """Whether a personal model trains beside the shared one."""
        return trains_personal(self.training, self.algorithm)

    @property
    def annotates_all(self) -> bool:
        """Whether this site's labels tell of every class of the task."""
        return annotates_all(self.task, self.data)


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
        _read(NetworkParams | None, spec.personal_network, "personal_network"),
        _read(InferenceParams, spec.inference, "inference"),
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
        problem = personal_problem(settings.training, settings.algorithm)
    if problem is None:
        problem = personal_network_problem(settings.personal_network, settings.training, settings.algorithm)
    if problem is not None:
        text, key, value, remedy = problem
        raise ConfigError(text, key=key, value=value, remedy=remedy)
    return settings


def _read(kind: Any, raw: dict[str, Any] | None, section: str) -> Any:
    try:
        return TypeAdapter(kind).validate_python(raw)
    except ValidationError as e:
        first = e.errors(include_url=False)[0]
        key = ".".join([section, *map(str, first["loc"])])
        raise ConfigError(
            first["msg"], key=key, value=first.get("input"), remedy="Correct it in peers.yaml or site.yaml."
        ) from None
