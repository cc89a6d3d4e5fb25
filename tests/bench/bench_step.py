"""Steps: two models a site against one, in time and memory, and the trainer against a bare torch loop.

Prints one JSON document.

    python tests/bench/bench_step.py [--device cpu|cuda] [--steps N] [--dims 2|3]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from gossipseg.algos.params import AlgorithmParams, GcmlParams, GossipAverageParams, LocalParams
from gossipseg.learn import protocol
from gossipseg.learn.engine.build import build_model
from gossipseg.learn.engine.losses import segmentation_loss
from gossipseg.learn.engine.partial import Annotated
from gossipseg.learn.engine.precision import Compute, choose_compute
from gossipseg.learn.engine.site_data import Batch, SiteData
from gossipseg.learn.engine.train_step import Learner, make_learner
from gossipseg.learn.params import DeviceParams
from gossipseg.learn.settings import WorkerSettings, read_settings
from gossipseg.learn.training.trainer import Trainer
from tests.learn.harness import make_spec

PATCH = {("cpu", 2): (96, 96), ("cpu", 3): (32, 32, 32), ("cuda", 2): (256, 256), ("cuda", 3): (128, 128, 64)}


def setup_of(
    compute: Compute,
    dims: int,
    steps: int,
    algorithm: AlgorithmParams | None = None,
    personal: str | None = None,
) -> WorkerSettings:
    training = {"steps_per_round": steps, "batch_size": 4 if dims == 2 else 2, "personal": personal}
    folder = Path(tempfile.gettempdir())
    spec = make_spec(
        folder,
        folder,
        dims=dims,
        training=training,
        network={"width": 12},
        algorithm=algorithm or LocalParams(),
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


# ---------------------------------------------------------------- two models a site against one

KINDS = {
    "one": (GossipAverageParams(), "none"),
    "pair": (GossipAverageParams(), "always"),
    "gcml": (GcmlParams(lambda_ramp_rounds=0), "always"),
    "gcml_both": (GcmlParams(lambda_ramp_rounds=0, mutual="both"), "always"),
}
"""The shared model alone; the personal one beside it; and both under the mutual term, of one or of each."""


def trainer_of(kind: str, compute: Compute, dims: int, steps: int) -> Trainer:
    """A trainer past the first exchange, with its batch in memory."""
    algorithm, personal = KINDS[kind]
    setup = setup_of(compute, dims, steps, algorithm, personal)
    batches = [compute.stage(batch_of(setup, 0))]
    trainer = Trainer(ReadyBatches(setup, compute, batches), lambda make, activity: None, lambda: None)
    trainer.history.first_exchange = 0
    return trainer


def take(trainer: Trainer) -> None:
    """The steps of the next round: the personal model takes none twice."""
    trainer.history.round, trainer.history.step = trainer.history.round + 1, 0
    trainer.steps.take(protocol.StartRound(trainer.history.round))


def compare_models(compute: Compute, dims: int, repeats: int) -> dict[str, Any]:
    """Interleaved, so that a busy machine slows all alike; medians of single steps. Memory: each kind by
    itself, on the CPU in a process of its own."""
    trainers = {kind: trainer_of(kind, compute, dims, 1) for kind in KINDS}
    for trainer in trainers.values():
        take(trainer)
    times: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for _ in range(repeats):
        for kind, taken in times.items():
            taken.append(seconds(lambda kind=kind: take(trainers[kind]), compute))
    trainers.clear()
    found: dict[str, Any] = {"aim_time_ratio_at_most": 2.2}
    for kind, taken in times.items():
        found[kind] = {"ms": 1e3 * statistics.median(taken), "peak_bytes": peak_bytes(kind, compute, dims)}
    for kind in [*KINDS][1:]:
        found[kind] |= {
            "time_ratio": found[kind]["ms"] / found["one"]["ms"],
            "memory_ratio": found[kind]["peak_bytes"] / found["one"]["peak_bytes"],
        }
    return found


def peak_bytes(kind: str, compute: Compute, dims: int) -> int:
    """Bytes that models, optimizers and a step take at most, the batch among them."""
    if compute.device.type != "cuda":
        command = [sys.executable, __file__, "--device", "cpu", "--dims", str(dims), "--memory", kind]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(compute.device)
    before = torch.cuda.memory_allocated(compute.device)
    trainer = trainer_of(kind, compute, dims, 2)
    take(trainer)
    return torch.cuda.max_memory_allocated(compute.device) - before


def growth_bytes(kind: str, compute: Compute, dims: int) -> int:
    """By how much this process grew at most, from a small training on: what that loads is no part of it."""
    learner = torch.nn.Conv3d(1, 1, 3)
    learner(torch.zeros(1, 1, 8, 8, 8)).sum().backward()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = status_bytes("VmRSS")
    take(trainer_of(kind, compute, dims, 3))
    return status_bytes("VmHWM") - before


def status_bytes(key: str) -> int:
    (found,) = re.findall(rf"^{key}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    return 1024 * int(found)


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
        classes = len(setup.task.labels)
        self.annotated = Annotated(classes, range(1, classes), setup.training)
        self._ready = batches

    def _read(self, round: int, step: int) -> Batch:
        return self._ready[step % len(self._ready)]


def compare_loops(setup: WorkerSettings, compute: Compute, repeats: int) -> dict[str, Any]:
    """Steps per second of Trainer's steps and of the loop one would write by hand, on the same batches."""
    batches = [compute.stage(batch_of(setup, seed)) for seed in range(8)]
    trainer = Trainer(ReadyBatches(setup, compute, batches), lambda make, activity: None, lambda: None)
    learner = learner_of(setup, compute)
    steps = setup.training.steps_per_round

    take(trainer)
    bare_loop(learner, setup, compute, batches, steps)
    times: dict[str, list[float]] = {"trainer": [], "bare": []}
    for _ in range(repeats):
        times["bare"].append(seconds(lambda: bare_loop(learner, setup, compute, batches, steps), compute))
        times["trainer"].append(seconds(lambda: take(trainer), compute))
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
    parser.add_argument("--memory", choices=[*KINDS], help="print one kind's growth in bytes, and no more")
    options = parser.parse_args()
    compute = choose_compute(DeviceParams(device=options.device))
    cuda = compute.device.type == "cuda"
    if cuda:
        torch.backends.cudnn.benchmark = True
    else:
        torch.set_num_threads(1)
    if options.memory:
        print(growth_bytes(options.memory, compute, options.dims or 2))
        return
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
            "models": compare_models(compute, dims, repeats),
            "loop": compare_loops(setup, compute, 5 if cuda else 3),
        }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
