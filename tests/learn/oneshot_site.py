"""A tiny site for one-shot learning: a spec, and volumes or slices with labels for some or none."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gossipseg.algos.params import FedCoWProParams
from gossipseg.learn.params import DataParams, DeviceParams, TaskParams, TrainingParams, WorkerSpec
from gossipseg.nets.params import NetworkParams
from tests.learn.imagery import write_list, write_nifti, write_png

SIZE = 48
SLICES = 6
TASK = TaskParams("organ", 1, {0: "background", 1: "organ"}, patch_size=(SIZE, SIZE))


def picture(seed: int, slices: int = SLICES) -> tuple[np.ndarray, np.ndarray]:
    """A body with an organ and a vessel that move a little from scan to scan: (H, W, S) and its label.

    The organ is in all slices but the first and the last.
    """
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:SIZE, :SIZE] / SIZE
    y, x = rng.uniform(0.38, 0.46, 2)
    image, label = np.zeros((SIZE, SIZE, slices)), np.zeros((SIZE, SIZE, slices), np.uint8)
    for k in range(slices):
        organ = (rows - y) ** 2 + (columns - x) ** 2 < 0.02
        image[..., k] = 80.0 * ((rows - 0.5) ** 2 + (columns - 0.5) ** 2 < 0.2)
        image[(rows - 0.7) ** 2 + (columns - 0.6) ** 2 < 0.01, k] = 30
        if slices == 1 or 0 < k < slices - 1:
            image[organ, k], label[organ, k] = 160, 1
    return image + rng.normal(0, 4, image.shape), label


def write_scans(root: Path, counts: Mapping[str, int], *, labels: bool = True, flat: bool = False) -> Path:
    """dataset.json with volumes (`flat`: single slices, PNG); labels for every split, or for none."""
    lists: dict[str, list[dict[str, str]]] = {}
    seed = 0
    for split, count in counts.items():
        for i in range(count):
            seed += 1
            image, label = picture(seed, 1 if flat else SLICES)
            name = f"{split}_{i}" + (".png" if flat else ".nii.gz")
            entry = {"image": f"images/{name}"}
            if flat:
                write_png(root / "images" / name, image[..., 0].clip(0, 255).astype(np.uint8))
                write_png(root / "labels" / name, label[..., 0])
            else:
                write_nifti(root / "images" / name, image.astype(np.float32))
                write_nifti(root / "labels" / name, label)
            if labels:
                entry["label"] = f"labels/{name}"
            lists.setdefault(split, []).append(entry)
    write_list(root, lists)
    return root


def make_spec(data: Path, state: Path, *, flat: bool = False, **changes: Any) -> WorkerSpec:
    """A spec of the smallest encoder; `task`, `training`, `network`, `algorithm` update those sections."""
    task = dataclasses.replace(TASK, slice_axis=None if flat else 2)
    training = TrainingParams(
        steps_per_round=2, batch_size=2, optimizer="sgd", learning_rate=1e-2, schedule="step_decay"
    )
    sections: dict[str, Any] = {
        "task": dataclasses.asdict(task),
        "network": dataclasses.asdict(
            NetworkParams("cowpro_encoder", 4, norm="group", options={"depth": 18})
        ),
        "algorithm": dataclasses.asdict(FedCoWProParams()),
        "training": dataclasses.asdict(training),
        "data": dataclasses.asdict(DataParams(str(data))),
        "device": dataclasses.asdict(DeviceParams("cpu", threads=1)),
    }
    for name in sections.keys() & changes.keys():
        sections[name] |= changes.pop(name)
    return WorkerSpec(
        **{
            "site": "north",
            "federation": "tiny",
            "seed": 7,
            "wire_dtype": "float16",
            "state_dir": str(state),
            **sections,
            **changes,
        }
    )
