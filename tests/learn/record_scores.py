"""Record the validation Dice of sites that meet nobody: the fixture of test_paired.py. No test by itself.

    GOSSIPSEG_DATA=... OMP_NUM_THREADS=1 python -m tests.learn.record_scores [output.json]

It trains `local` on three sites of brain slices and three of hippocampus volumes through gossipseg's own
trainer, on one thread (about a quarter of an hour), and writes after each training:

    {"window": 3, "sites": {name: {"patients": [...], "rounds": [[...], ...], "single": [[...], ...]}}}

`patients`: of each validation case, under a name that says nothing. `rounds`: the Dice of each case for the
mean of the weights over rounds 1-3, 2-4, 3-5 and so on. `single`: for the weights after round 1, 2, 3 and
so on. A Dice that is undefined is null.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import sys
import tempfile
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gossipseg.algos.params import LocalParams
from gossipseg.learn import protocol
from gossipseg.learn.data.dataset import Dataset
from gossipseg.learn.engine.model_state import cpu_copy
from gossipseg.learn.engine.precision import choose_compute
from gossipseg.learn.engine.site_data import SiteData
from gossipseg.learn.params import DataParams, DeviceParams, TaskParams, TrainingParams, WorkerSpec
from gossipseg.learn.settings import read_settings
from gossipseg.learn.training.trainer import Trainer
from gossipseg.nets.params import NetworkParams

WINDOW = 3
SEEDS = (1,)
"""A training of each site for each."""
NEVER = 1 << 30
BRAIN = TaskParams(
    "brain tumours", 1, {0: "background", 1: "tumour"}, patch_size=(64, 64), label_map={255: 1}
)
HIPPOCAMPUS = TaskParams(
    "hippocampus",
    1,
    {0: "background", 1: "anterior", 2: "posterior"},
    spatial_dims=3,
    patch_size=(32, 32, 32),
)
SITES: dict[str, tuple[TaskParams, int]] = {
    "tumours/brain_mr_t2_fets2021": (BRAIN, 40),
    "tumours/brain_mr_t1c_cheng": (BRAIN, 40),
    "tumours/brain_mr_flair_lgg": (BRAIN, 40),
    "hippocampus_mr_3d/site_a_uint8": (HIPPOCAMPUS, 30),
    "hippocampus_mr_3d/site_b_float_1e3": (HIPPOCAMPUS, 30),
    "hippocampus_mr_3d/site_c_float_4e5": (HIPPOCAMPUS, 30),
}
"""Folder of the data → its task, and the rounds of training."""


def spec_of(folder: Path, site: str, task: TaskParams, rounds: int, seed: int, state_dir: Path) -> WorkerSpec:
    """What a daemon would tell its worker. The recorder validates by itself."""
    training = TrainingParams(
        rounds=rounds,
        steps_per_round=15,
        batch_size=4,
        learning_rate=3e-3,
        schedule="cosine",
        validate_every_rounds=NEVER,
    )
    return WorkerSpec(
        site=site,
        federation="alone",
        seed=seed,
        task=dataclasses.asdict(task),
        network=dataclasses.asdict(NetworkParams("unet", width=8)),
        algorithm=dataclasses.asdict(LocalParams()),
        training=dataclasses.asdict(training),
        data=dataclasses.asdict(DataParams(str(folder))),
        device=dataclasses.asdict(DeviceParams("cpu", amp="off", threads=1)),
        wire_dtype="float16",
        state_dir=str(state_dir),
    )


def record(spec: WorkerSpec, rounds: int) -> dict[str, Any]:
    """Train alone; the Dice of each validation case after each round, and for the mean of each window."""
    settings = read_settings(spec)
    site = SiteData(settings, Dataset.open(spec), choose_compute(settings.device))
    trainer = Trainer(site, lambda make, activity: None, lambda: None)
    model = trainer.model_state.model
    newest: deque[dict[str, Tensor]] = deque(maxlen=WINDOW)
    windows, single = [], []
    for number in range(1, rounds + 1):
        trainer.run_round(protocol.StartRound(number))
        newest.append(cpu_copy(model.state_dict()))
        single.append(dice_of(site, model))
        if len(newest) == WINDOW:
            model.load_state_dict(mean_of(newest))
            windows.append(dice_of(site, model))
            model.load_state_dict(newest[-1])
    return {"patients": nameless(site.patients("validation")), "rounds": windows, "single": single}


def mean_of(newest: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of weights; what is not a floating point number is the newest's."""
    last = newest[-1]
    return {
        name: torch.stack([each[name] for each in newest]).mean(0) if value.is_floating_point() else value
        for name, value in last.items()
    }


def dice_of(site: SiteData, model: nn.Module) -> list[float | None]:
    """Of each validation case, to four digits."""
    scores = site.score(model, "validation", lambda fraction: None)
    return [None if case.mean is None else round(case.mean, 4) for case in scores.per_case]


def nameless(patients: Sequence[str]) -> list[str]:
    """p1, p2 and so on, in the order in which they come."""
    numbers = {patient: f"p{i}" for i, patient in enumerate(dict.fromkeys(patients), start=1)}
    return [numbers[patient] for patient in patients]


def main() -> None:
    data = Path(os.environ["GOSSIPSEG_DATA"])
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("recorded_scores.json")
    torch.set_num_threads(1)
    sites: dict[str, Any] = {}
    for seed, (name, (task, rounds)) in itertools.product(SEEDS, SITES.items()):
        started = time.perf_counter()
        site = Path(name).name
        with tempfile.TemporaryDirectory(prefix="record-") as folder:
            spec = spec_of(data / name, site, task, rounds, seed, Path(folder))
            sites[f"{site} seed {seed}"] = record(spec, rounds)
        target.write_text(json.dumps({"window": WINDOW, "sites": sites}) + "\n")
        print(f"{site}, seed {seed}: {rounds} rounds in {time.perf_counter() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
