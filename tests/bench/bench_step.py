"""Steps: a mutual-learning (DCML) step against a plain one, and the trainer against a bare torch loop.

Prints one JSON document. On CUDA also the peak memory of both kinds of step.

    python tests/bench/bench_step.py [--device cpu|cuda] [--steps N] [--dims 2|3]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from gossipseg.algos.base import Role, StepContext
from gossipseg.algos.gcml import Gcml
from gossipseg.algos.params import GcmlParams, LocalParams
from gossipseg.learn import protocol
from gossipseg.learn.engine.build import build_model
from gossipseg.learn.engine.losses import make_target, segmentation_loss
from gossipseg.learn.engine.precision import Compute, choose_compute
from gossipseg.learn.engine.site_data import Batch, SiteData
from gossipseg.learn.engine.train_step import Learner, make_learner, train_step
from gossipseg.learn.params import DeviceParams
from gossipseg.learn.settings import WorkerSettings, read_settings
from gossipseg.learn.training.trainer import Trainer
from tests.learn.harness import make_spec

PATCH = {("cpu", 2): (96, 96), ("cpu", 3): (32, 32, 32), ("cuda", 2): (256, 256), ("cuda", 3): (128, 128, 64)}


def setup_of(compute: Compute, dims: int, steps: int) -> WorkerSettings:
    training = {"steps_per_round": steps, "batch_size": 4 if dims == 2 else 2}
    folder = Path(tempfile.gettempdir())
    spec = make_spec(
        folder, folder, dims=dims, training=training, network={"width": 12}, algorithm=LocalParams()
    )
    patch = PATCH[compute.device.type, dims]
    return read_settings(dataclasses.replace(spec, task={**spec.task, "patch_size": patch}))


def batch_of(setup: WorkerSettings, seed: int) -> Batch:
    shape = (setup.training.batch_size, 1, *setup.task.patch_size)
    g = torch.Generator().manual_seed(seed)
    return {"image": torch.randn(shape, generator=g), "label": (torch.rand(shape, generator=g) > 0.7).long()}


def seconds(run: Callable[[], Any], compute: Compute) -> float:
    """CUDA: wall time, the device idle before and after. CPU: this process's own time, whatever else runs."""
    if compute.device.type != "cuda":
        started = time.process_time()
        run()
        return time.process_time() - started
    torch.cuda.synchronize(compute.device)
    started = time.perf_counter()
    run()
    torch.cuda.synchronize(compute.device)
    return time.perf_counter() - started


# ---------------------------------------------------------------- DCML against plain


def compare_steps(setup: WorkerSettings, compute: Compute, repeats: int) -> dict[str, Any]:
    """Interleaved, so that a busy machine slows both alike; medians of single steps."""
    batch = {k: compute.place(v) for k, v in batch_of(setup, 0).items()}
    target = make_target(batch["label"], setup.training.output, 2)
    context = StepContext(
        setup.training.output, 5, segmentation_loss(setup.training, setup.task.spatial_dims)
    )
    roles: tuple[Role, Role] = ("local", "incoming")
    learners: dict[Role, Learner] = {role: learner_of(setup, compute) for role in roles}
    kinds: dict[str, dict[Role, Learner]] = {"plain": {"local": learners["local"]}, "dcml": learners}
    algorithm = Gcml(GcmlParams())

    def step(kind: str) -> None:
        clip = setup.training.clip_grad_norm
        train_step(kinds[kind], batch["image"], target, algorithm, context, compute, clip)

    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    peaks: dict[str, int] = {}
    for kind in [*kinds] * (3 if compute.device.type == "cuda" else 1):
        step(kind)
    for _ in range(repeats):
        for kind, taken in times.items():
            if compute.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(compute.device)
            taken.append(seconds(lambda kind=kind: step(kind), compute))
            if compute.device.type == "cuda":
                peaks[kind] = torch.cuda.max_memory_allocated(compute.device)
    plain, dcml = (statistics.median(times[kind]) for kind in ("plain", "dcml"))
    found = {"plain_ms": 1e3 * plain, "dcml_ms": 1e3 * dcml, "ratio": dcml / plain, "aim_ratio_at_most": 2.2}
    if peaks:
        found |= {f"{kind}_peak_bytes": peak for kind, peak in peaks.items()}
        found["peak_ratio"] = peaks["dcml"] / peaks["plain"]
    return found


def learner_of(setup: WorkerSettings, compute: Compute) -> Learner:
    return make_learner(
        compute.place_model(build_model(setup), setup.task.spatial_dims), setup.training, compute
    )


# ---------------------------------------------------------------- the trainer against a bare loop


class ReadyBatches(SiteData):
    """A site whose batches are in memory already: what is left is the trainer's own cost."""

    def __init__(self, setup: WorkerSettings, compute: Compute, batches: list[Batch]) -> None:
        self.settings, self.compute = setup, compute
        self.splits = {"training": len(batches), "validation": 0, "test": 0}
        self._ready = batches

    def _read(self, round: int, step: int) -> Batch:
        return self._ready[step % len(self._ready)]


def compare_loops(setup: WorkerSettings, compute: Compute, repeats: int) -> dict[str, Any]:
    """Steps per second of Trainer's steps and of the loop one would write by hand, on the same batches."""
    batches = [compute.stage(batch_of(setup, seed)) for seed in range(8)]
    trainer = Trainer(ReadyBatches(setup, compute, batches), lambda make, activity: None, lambda: None)
    learner = learner_of(setup, compute)
    steps = setup.training.steps_per_round

    def ours() -> None:
        trainer.history.step = 0
        trainer.steps.take(protocol.StartRound(1), None)

    ours()
    bare_loop(learner, setup, compute, batches, steps)
    times: dict[str, list[float]] = {"trainer": [], "bare": []}
    for _ in range(repeats):
        times["bare"].append(seconds(lambda: bare_loop(learner, setup, compute, batches, steps), compute))
        times["trainer"].append(seconds(ours, compute))
    rates = {f"{kind}_steps_per_s": steps / statistics.median(taken) for kind, taken in times.items()}
    ratio = rates["trainer_steps_per_s"] / rates["bare_steps_per_s"]
    return {**rates, "ratio": ratio, "aim_ratio_at_least": 0.9}


def bare_loop(
    learner: Learner, setup: WorkerSettings, compute: Compute, batches: list[Batch], steps: int
) -> None:
    """Forward, loss, backward, clip, Adam; nothing else."""
    loss_of = segmentation_loss(setup.training, setup.task.spatial_dims)
    parameters = list(learner.model.parameters())
    for batch in endless(batches, steps):
        image, label = compute.place(batch["image"]), compute.place(batch["label"])
        learner.optimizer.zero_grad(set_to_none=True)
        with compute.autocast():
            out = learner.model(image)
        loss = loss_of(out, label)
        learner.scaler.scale(loss).backward()
        learner.scaler.unscale_(learner.optimizer)
        torch.nn.utils.clip_grad_norm_(parameters, setup.training.clip_grad_norm)
        learner.scaler.step(learner.optimizer)
        learner.scaler.update()


def endless(batches: list[Batch], count: int) -> Iterator[Batch]:
    return (batches[i % len(batches)] for i in range(count))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--dims", type=int, choices=(2, 3))
    options = parser.parse_args()
    compute = choose_compute(DeviceParams(device=options.device))
    cuda = compute.device.type == "cuda"
    if cuda:
        torch.backends.cudnn.benchmark = True
    else:
        torch.set_num_threads(1)
    steps = options.steps or (100 if cuda else 5)
    report: dict[str, Any] = {
        "bench": "step",
        "device": compute.name,
        "amp": compute.amp,
        "torch": torch.__version__,
    }
    for dims in (options.dims,) if options.dims else (2, 3):
        setup = setup_of(compute, dims, steps)
        case = {"patch": setup.task.patch_size, "batch": setup.training.batch_size}
        repeats = 50 if cuda else 7
        report[f"{dims}d"] = {
            **case,
            "step": compare_steps(setup, compute, repeats),
            "loop": compare_loops(setup, compute, 5 if cuda else 3),
        }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
