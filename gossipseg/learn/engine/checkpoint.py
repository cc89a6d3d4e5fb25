"""Checkpoints: what is in them, how they are written, and which one a worker starts from.

Files are the site's own; none ever comes from the network. They are read with weights_only all the same.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import blake3
import torch

from gossipseg.algos.params.retired import droppable_settings
from gossipseg.errors import ConfigError, LocalError
from gossipseg.learn.settings import WorkerSettings
from gossipseg.store import Checkpoints

FORMAT = 3
READABLE = (1, 2, FORMAT)
"""1: of version 0.1, whose average begins at the initial weights (ModelState.restore). 2: without a personal
model under this name (deploy/earlier.py)."""
log = logging.getLogger(__name__)


INPUT = ("spatial_dims", "spacing_mm", "orientation", "intensity", "slice_axis")
"""Keys of `task` that decide what a network sees of an image."""
ADDED = frozenset({"network.norm", "network.options", *(f"task.{key}" for key in INPUT)})
"""Keys that checkpoints of earlier versions lack."""


def contract_of(settings: WorkerSettings, network_signature: str) -> dict[str, str]:
    """What must be the same for a checkpoint to be continued: anything else would be another model or run."""
    spec = settings.spec
    return {
        "federation": spec.federation,
        "site": spec.site,
        "seed": str(spec.seed),
        "network.signature": network_signature,
        "algorithm.name": settings.algorithm.name,
        "training.optimizer": settings.training.optimizer,
        **meaning_of(settings),
    }


def meaning_of(settings: WorkerSettings) -> dict[str, str]:
    """What must be the same for a checkpoint's weights to mean what they meant: what the network is, what it
    sees of an image, and what its channels are."""
    task = settings.task
    return {
        "task.channels": str(task.channels),
        "task.labels": str(dict(sorted(task.labels.items()))),
        "network.name": settings.network.name,
        "network.norm": settings.network.norm,
        "network.options": json.dumps(settings.network.options, sort_keys=True, default=str),
        "training.output": settings.training.output,
        **{f"task.{key}": str(getattr(task, key)) for key in INPUT},
        "task.intensity": task.intensity + (f" {task.ct_window_hu}" if task.intensity == "ct_window" else ""),
    }


def save_checkpoint(store: Checkpoints, state: Mapping[str, Any], contract: Mapping[str, str]) -> Path:
    """Write the trainer's state, whole or not at all. Raises DiskFull, LocalError: the earlier ones stay."""
    round, steps = state["history"]["round"], state["history"]["steps"]
    document = {"format": FORMAT, "contract": dict(contract), "round": round, "steps": steps, **state}
    document["digest"] = digest(document)
    return store.save(round, lambda file: torch.save(document, file))


def load_checkpoint(store: Checkpoints, contract: Mapping[str, str]) -> tuple[dict[str, Any] | None, str]:
    """The newest readable checkpoint, on the CPU, and a warning ("" if all is well).

    (None, "") when there is none: a fresh start. A damaged one is set aside when an older one can be read.
    Raises ConfigError when it belongs to another contract, LocalError when none can be read or a later
    version wrote one.
    """
    damaged: list[Path] = []
    for path in store.newest():
        document = _read(path)
        if document is None:
            damaged.append(path)
            continue
        _check_contract(path, document["contract"], contract)
        for bad in damaged:
            store.set_aside(bad)
        return document, _warning(damaged, path)
    if damaged:
        raise LocalError(
            f"{damaged[0].parent}: no checkpoint can be read ({', '.join(p.name for p in damaged)}). "
            "Restore one from a backup, or move the folder away to start this site's training afresh."
        )
    return None, ""


def _read(path: Path) -> dict[str, Any] | None:
    try:
        document = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # torch.load raises whatever the damage leads to: zip, pickle, EOF, runtime errors
        log.warning("%s cannot be read: %s: %s", path, type(e).__name__, e)
        return None
    written = document.get("format") if isinstance(document, dict) else None
    if isinstance(written, int) and written > FORMAT:
        raise LocalError(
            f"{path}: was written by a later version of gossipseg. Install that version again, or start "
            "afresh: give the site another state_dir."
        )
    if not isinstance(document, dict) or written not in READABLE:
        log.warning("%s is not a checkpoint", path)
        return None
    if not intact(document):
        log.warning("%s does not hold what was written", path)
        return None
    return document


def intact(document: Mapping[str, Any]) -> bool:
    """Whether the content is what was written: torch does not check the sums of its files' parts."""
    return document.get("digest") == digest({k: v for k, v in document.items() if k != "digest"})


def digest(tree: Any) -> str:
    """blake3 (hex) over a tree of mappings, lists, CPU tensors and plain values."""
    hasher = blake3.blake3()
    _hash_into(hasher, tree)
    return str(hasher.hexdigest())


def _hash_into(hasher: blake3.blake3, tree: Any) -> None:
    if isinstance(tree, torch.Tensor):
        hasher.update(f"tensor {tree.dtype} {tuple(tree.shape)}\n".encode())
        hasher.update(tree.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    elif isinstance(tree, Mapping):
        hasher.update(f"mapping {len(tree)}\n".encode())
        for key, value in tree.items():
            hasher.update(f"{key!r}\n".encode())
            _hash_into(hasher, value)
    elif isinstance(tree, list | tuple):
        hasher.update(f"list {len(tree)}\n".encode())
        for value in tree:
            _hash_into(hasher, value)
    else:
        hasher.update(f"{tree!r}\n".encode())


def _warning(damaged: list[Path], used: Path) -> str:
    if not damaged:
        return ""
    names = ", ".join(p.name for p in damaged)
    return f"checkpoint {names} was damaged and is set aside; went on from {used.name}"


def check_meaning(path: Path, stored: Mapping[str, str], settings: WorkerSettings) -> None:
    """Raises ConfigError where the settings would make another prediction of the checkpoint's weights, or
    are of another site or algorithm: what is deployed depends on it.

    `stored`: its contract. A key that it lacks, of an earlier version, is passed over.
    """
    whose = {
        "federation": settings.spec.federation,
        "site": settings.spec.site,
        "algorithm.name": settings.algorithm.name,
    }
    present = {key: value for key, value in (whose | meaning_of(settings)).items() if key in stored}
    _compare(path, stored, present, present)


def _check_contract(path: Path, stored: Mapping[str, str], present: Mapping[str, str]) -> None:
    _compare(path, stored, present, stored.keys() | (present.keys() - ADDED))


def _compare(
    path: Path, stored: Mapping[str, str], present: Mapping[str, str], told: Collection[str]
) -> None:
    for key in sorted(told):
        if stored.get(key) != present.get(key):
            afresh = f"start afresh: give the site another state_dir, or move {path.parent} away."
            remedy = f"Restore the setting in peers.yaml, or {afresh}"
            retired = droppable_settings(stored.get("algorithm.name"))
            if key == "network.signature" and "private_norm" in retired:
                remedy += " If it had algorithm.private_norm: true, it goes on under version 0.3 alone."
            raise ConfigError(
                f"this site's checkpoint was trained with {key} = {stored.get(key)!r}",
                file=path,
                key=key,
                value=present.get(key),
                remedy=remedy,
            )
