"""What training will cost this machine: memory for the images, time for a round. For `gossipctl check`."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from gossipseg.algos.base import Algorithm, StepContext
from gossipseg.algos.params import personal_of
from gossipseg.errors import LocalError
from gossipseg.learn.commands.peak import with_peak
from gossipseg.learn.data.cases import Splits
from gossipseg.learn.data.dataset import Dataset, Item
from gossipseg.learn.data.labels import label_rule
from gossipseg.learn.data.memory import available_bytes, gigabytes, is_out_of_memory
from gossipseg.learn.data.patches import TrainBatches
from gossipseg.learn.engine.build import build_model, build_personal
from gossipseg.learn.engine.losses import make_target, segmentation_loss
from gossipseg.learn.engine.partial import Annotated
from gossipseg.learn.engine.precision import Compute
from gossipseg.learn.engine.train_step import make_learner, train_step
from gossipseg.learn.evaluation.evaluate import score
from gossipseg.learn.params import DataParams
from gossipseg.learn.settings import WorkerSettings

TIMED_STEPS = 3
LONGEST_S = 20.0
"""No further step is timed after this."""
HIGH_SHARE = 0.8
"""Share of the free memory above which there is a warning."""


class Memory:
    """How much memory the images of a site take where they are kept (data.cache)."""

    def __init__(self, data: DataParams, *, keeps_test: bool) -> None:
        self._cache, self._keeps_test = data.cache, keeps_test
        self.kept_bytes = 0
        self._largest = 0

    def add(self, split: str, item: Item) -> None:
        """A case that was read."""
        count = bytes_of(item, scored=split != "training")
        self._largest = max(self._largest, count)
        if split != "test" or self._keeps_test:
            self.kept_bytes += count

    def document(self) -> dict[str, int | None]:
        """Bytes: what data.cache will keep, the largest case, what is free."""
        return {
            "cache_bytes": self.kept_bytes if self._cache else 0,
            "largest_case_bytes": self._largest,
            "available_bytes": available_bytes(),
        }

    def warnings(self) -> list[str]:
        """What will not fit."""
        there = available_bytes()
        if there is None or not self._cache or self.kept_bytes <= HIGH_SHARE * there:
            return []
        return [
            f"data.cache will keep {gigabytes(self.kept_bytes)} of images in memory, and {gigabytes(there)} "
            "are "
            "free: write data.cache: false in site.yaml (each case is then read anew when it is drawn), or "
            "give the machine more memory"
        ]


def bytes_of(item: Item, *, scored: bool) -> int:
    """Memory of a case's tensors. `scored`: also of its label on its own grid, where that is another."""
    tensors = [item.image, item.label]
    if scored and item.grid is not None and item.grid.to_task is not None:
        tensors.append(item.truth)
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)


def time_round(settings: WorkerSettings, splits: Splits, compute: Compute) -> dict[str, Any] | None:
    """Seconds of a step of this site's own models, of the validation of a case, and of a round of them; and
    the memory of a step, models and optimizers included.

    A few real steps on the first training cases, which are read anew each time where data.cache is false, as
    in training. None where there is nothing to time.
    Raises LocalError where a step does not fit into memory, or does not work.
    """
    training, validation = splits.training[:2], splits.validation[:1]
    if not training or any(case.label is None for case in training):
        return None
    if settings.device.threads:
        torch.set_num_threads(settings.device.threads)
    rule = label_rule(settings.task, settings.data)
    data = Dataset(settings.task, Splits(training, validation), cache=settings.data.cache, rule=rule)
    if settings.data.cache:
        data.keep_all()
    try:
        (step_s, nets), step_bytes = with_peak(lambda: _step_seconds(settings, data, compute), compute)
        timed = nets if settings.personal_network is not None else nets[:1]  # alike ones take as long
        case_s = sum(_case_seconds(settings, data, net, compute) for net in timed) if validation else 0.0
        case_s *= len(nets) / len(timed)
    except (RuntimeError, MemoryError) as e:
        if not is_out_of_memory(e):
            said = " ".join(str(e).split())[:300]
            raise LocalError(
                f"a training step with {_networks(settings)} on {compute.name} does not work: {said} The "
                "worker would end so, too: choose other network options or another task.patch_size."
            ) from e
        batch, size = settings.training.batch_size, "×".join(map(str, settings.task.patch_size))
        raise LocalError(
            f"not enough memory on {compute.name} for a training step: batch_size {batch} of patches {size} "
            f"through {_networks(settings)}. Choose a smaller training.batch_size, task.patch_size or "
            f"network in peers.yaml (at all sites), or a device with more memory.{_without(settings)}"
        ) from e
    total = settings.training.steps_per_round
    cases = len(splits.validation)
    return {
        "step_s": step_s,
        "step_bytes": step_bytes,
        "models": 1 + settings.has_personal,
        "one_model_will_do": settings.has_personal and _one_will_do(settings),
        "steps_per_round": total,
        "validation_case_s": case_s,
        "validation_cases": cases,
        "round_s": step_s * total + case_s * cases,
    }


def _step_seconds(
    settings: WorkerSettings, data: Dataset, compute: Compute
) -> tuple[float, list[torch.nn.Module]]:
    """Median over a few steps of all models after the first, which allocates; and their networks."""
    batches = TrainBatches(data, settings.task, settings.training)
    built = [build_model(settings), *([build_personal(settings)] if settings.has_personal else [])]
    nets = [compute.place_model(net, settings.task.spatial_dims) for net in built]
    learners = [make_learner(each, settings.training, compute) for each in nets]
    loss = segmentation_loss(settings.training, settings.task.spatial_dims)
    context, annotated = StepContext(settings.training.output, None, loss), Annotated.of(settings, data.rule)

    def step(number: int) -> None:
        batch = batches.batch(settings.spec.seed, settings.spec.site, 1, number)
        placed = {name: compute.place(tensor) for name, tensor in compute.stage(batch).items()}
        target = make_target(annotated.label(placed["label"]), settings.training.output, annotated.classes)
        clip = settings.training.clip_grad_norm
        for learner in learners:
            train_step(
                {"local": learner},
                placed["image"],
                target,
                Algorithm(),
                context,
                compute,
                clip,
                annotated.outputs,
            )

    for each in nets:
        each.train()
    first_s = _seconds(lambda: step(0), compute)
    if first_s > LONGEST_S:
        return first_s, [*nets]
    times = sorted(_seconds(lambda n=n: step(n), compute) for n in range(1, 1 + TIMED_STEPS))  # type: ignore[misc]
    return times[len(times) // 2], [*nets]


def _networks(settings: WorkerSettings) -> str:
    """The networks that train, in words."""
    names = [settings.network.name]
    if settings.has_personal:
        names.append((settings.personal_network or settings.network).name)
    return " and ".join(dict.fromkeys(names))


def _without(settings: WorkerSettings) -> str:
    """The remedies at the personal model, where there is such a choice."""
    if settings.personal_network is not None:
        return " Or write a smaller personal_network in site.yaml, or none." + _alone(settings)
    return _alone(settings)


def _alone(settings: WorkerSettings) -> str:
    if settings.algorithm.name == "gcml":
        return (
            " Or, at all sites, write algorithm.name: gossip_average and training.personal: none: one model "
            "trains then."
        )
    if not _one_will_do(settings):
        return ""
    return " Or write training.personal: none: the site then trains the shared model alone."


def _one_will_do(settings: WorkerSettings) -> bool:
    """Whether the algorithm works without a personal model."""
    return personal_of(settings.algorithm) in ("yes", "may") and settings.algorithm.name != "gcml"


def _case_seconds(settings: WorkerSettings, data: Dataset, net: torch.nn.Module, compute: Compute) -> float:
    def validate() -> None:
        with torch.no_grad(), compute.autocast():
            score(net, data.items("validation"), settings.task, settings.training, compute.device)

    return _seconds(validate, compute)


def _seconds(work: Callable[[], object], compute: Compute) -> float:
    """Wall time of some work, to the end of what it left to the device."""
    began = time.perf_counter()
    work()
    if compute.device.type == "cuda":
        torch.cuda.synchronize(compute.device)
    return time.perf_counter() - began
