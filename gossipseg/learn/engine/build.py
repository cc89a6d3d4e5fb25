"""The network of a federation, with the weights W_0 that its seed gives."""

from __future__ import annotations

from pathlib import Path

from gossipseg.learn.params import TaskParams, TrainingParams
from gossipseg.learn.settings import WorkerSettings
from gossipseg.nets.registry import Segmenter, build, initialise


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
