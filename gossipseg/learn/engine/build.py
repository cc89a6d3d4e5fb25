"""The network of a federation, with the weights W_0 that its seed gives."""

from __future__ import annotations

from pathlib import Path

from gossipseg.errors import ConfigError
from gossipseg.learn.params import TaskParams, TrainingParams
from gossipseg.learn.settings import WorkerSettings
from gossipseg.nets.features import head_of
from gossipseg.nets.registry import Segmenter, build, initialise, network_signature


def output_channels(task: TaskParams, training: TrainingParams) -> int:
    """softmax: one channel per label; sigmoid: one per foreground label."""
    return len(task.labels) - (training.output == "sigmoid")


def build_model(settings: WorkerSettings) -> Segmenter:
    """The network with its initial weights, the same at every site: on the CPU, in training mode.

    Files of pretrained weights that the settings name lie in the site's data folder. Raises ConfigError for
    settings that the network does not take, and for such a file that is missing or another one.
    """
    task = settings.task

    def factory() -> Segmenter:
        return build(
            settings.network,
            spatial_dims=task.spatial_dims,
            in_channels=task.channels,
            out_channels=output_channels(task, settings.training),
            patch_size=task.patch_size,
            weights_folder=Path(settings.data.path),
        )

    model = initialise(factory, settings.spec.seed)
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
