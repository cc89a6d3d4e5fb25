"""A tiny site on disk, its spec, and a real worker process driven through its real socket."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import nibabel
import numpy as np
from PIL import Image

from gossipseg.algos.params import GossipAverageParams
from gossipseg.learn import protocol
from gossipseg.learn.params import DataParams, DeviceParams, TaskParams, TrainingParams, WorkerSpec
from gossipseg.nets.params import NetworkParams

DEADLINE_S = 240.0
M = TypeVar("M")


def write_png_site(folder: Path, cases: int = 6, size: int = 40, seed: int = 0) -> Path:
    """Grey discs on noise with their masks: `images/` and `masks/`."""
    rng = np.random.default_rng(seed)
    for sub in ("images", "masks"):
        (folder / sub).mkdir(parents=True, exist_ok=True)
    rows, columns = np.mgrid[:size, :size]
    for i in range(cases):
        y, x = rng.integers(size // 4, 3 * size // 4, 2)
        mask = (rows - y) ** 2 + (columns - x) ** 2 < (size // 5) ** 2
        image = np.clip(60 + 100 * mask + rng.normal(0, 12, mask.shape), 0, 255).astype(np.uint8)
        Image.fromarray(image).save(folder / "images" / f"case{i}.png")
        Image.fromarray(mask.astype(np.uint8)).save(folder / "masks" / f"case{i}.png")
    return _listed(folder, [(f"images/case{i}.png", f"masks/case{i}.png") for i in range(cases)])


def _listed(folder: Path, pairs: list[tuple[str, str]]) -> Path:
    """A list that divides the cases by their names: of six, two are for each split."""
    lists: dict[str, list[dict[str, str]]] = {"training": [], "validation": [], "test": []}
    for i, (image, label) in enumerate(pairs):
        drawn = hashlib.sha256(f"case{i}".encode()).digest()[0] / 256
        split = "test" if drawn < 0.2 else "validation" if drawn < 0.35 else "training"
        lists[split].append({"image": image, "label": label})
    (folder / "dataset.json").write_text(json.dumps(lists))
    return folder


def write_nifti_site(folder: Path, cases: int = 6, size: int = 36, seed: int = 0) -> Path:
    """Balls in noise with their labels: `images/` and `labels/`."""
    rng = np.random.default_rng(seed)
    for sub in ("images", "labels"):
        (folder / sub).mkdir(parents=True, exist_ok=True)
    grid = np.stack(np.mgrid[:size, :size, :size])
    for i in range(cases):
        centre = rng.integers(size // 3, 2 * size // 3, 3).reshape(3, 1, 1, 1)
        mask = ((grid - centre) ** 2).sum(0) < (size // 5) ** 2
        image = (100 * mask + rng.normal(0, 10, mask.shape)).astype(np.float32)
        for sub, array in (("images", image), ("labels", mask.astype(np.uint8))):
            nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), folder / sub / f"case{i}.nii.gz")
    return _listed(folder, [(f"images/case{i}.nii.gz", f"labels/case{i}.nii.gz") for i in range(cases)])


def make_spec(
    data: Path,
    state_dir: Path,
    *,
    site: str = "north",
    algorithm: Any = None,
    dims: int = 2,
    rounds: int | None = None,
    report_test: bool = False,
    training: dict[str, Any] | None = None,
    network: dict[str, Any] | None = None,
    device: dict[str, Any] | None = None,
    **more: Any,
) -> WorkerSpec:
    """A spec as config.worker_spec() makes it, for a network of a few thousand parameters.

    Gossip without a personal model, unless another algorithm is asked for, or one that needs it.
    """
    algorithm = GossipAverageParams() if algorithm is None else algorithm
    settings = {"steps_per_round": 4, "batch_size": 2, "augment": "flip", "personal": "none"}
    if algorithm.name in ("gcml", "ditto"):
        del settings["personal"]
    settings |= training or {}
    return WorkerSpec(
        site=site,
        federation="tiny",
        seed=7,
        task=dataclasses.asdict(
            TaskParams("discs", 1, {0: "background", 1: "disc"}, dims, patch_size=(32,) * dims)
        ),
        network=dataclasses.asdict(NetworkParams(**{"width": 2, **(network or {})})),
        algorithm=dataclasses.asdict(algorithm),
        training=dataclasses.asdict(TrainingParams(**settings)),
        data=dataclasses.asdict(DataParams(str(data))),
        device=dataclasses.asdict(DeviceParams(**{"device": "cpu", "threads": 1, **(device or {})})),
        wire_dtype="float16",
        state_dir=str(state_dir),
        report_test=report_test,
        rounds=rounds,
        **more,
    )


class Worker:
    """The daemon's part of the conversation with a real worker process."""

    def __init__(
        self, spec: WorkerSpec, *, configure: bool = True, env: dict[str, str] | None = None
    ) -> None:
        # A unix socket's path may have no more than about 100 characters: pytest's own folders are too deep.
        self._folder = tempfile.TemporaryDirectory(prefix="worker-")
        path = Path(self._folder.name) / "worker.sock"
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen(1)
        listener.settimeout(DEADLINE_S)
        self.stderr_path = Path(self._folder.name) / "worker.log"
        with self.stderr_path.open("wb") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "gossipseg.learn.worker"],
                env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {}), protocol.SOCKET_ENV: str(path)},
                stderr=stderr,
            )
        self.socket, _ = listener.accept()
        listener.close()
        self.messages: list[protocol.Message] = []
        self._incoming: queue.Queue[protocol.Message | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        if configure:
            self.send(protocol.Configure(dataclasses.asdict(spec)))

    def _read(self) -> None:
        reader = protocol.LineReader()
        with contextlib.suppress(OSError):
            while data := self.socket.recv(65536):
                for line in reader.feed(data):
                    self._incoming.put(protocol.decode(line))
        self._incoming.put(None)

    def send(self, message: protocol.ToWorker) -> None:
        self.socket.sendall(protocol.encode(message))

    def wait(self, kind: type[M], timeout_s: float = DEADLINE_S) -> M:
        """The next message of this kind; those before it are kept in `messages`."""
        deadline_s = time.monotonic() + timeout_s
        while True:
            try:
                message = self._incoming.get(timeout=max(0.0, deadline_s - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"no {kind.__name__} in {timeout_s} s; {self.stderr}") from None
            if message is None:
                raise AssertionError(f"the worker left before {kind.__name__}; {self.stderr}")
            self.messages.append(message)
            if isinstance(message, kind):
                return message

    def round(
        self, number: int, visit: protocol.Visit | None = None, *, export: bool = False
    ) -> protocol.RoundDone:
        self.send(protocol.StartRound(number, visit, export))
        return self.wait(protocol.RoundDone)

    @property
    def stderr(self) -> str:
        return self.stderr_path.read_text(errors="replace")[-3000:]

    def exit_code(self, timeout_s: float = DEADLINE_S) -> int:
        return self.process.wait(timeout_s)

    def stop(self) -> int:
        self.send(protocol.Stop())
        return self.exit_code()

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def hang_up(self) -> None:
        """Close the socket, as the kernel does for a daemon that was killed."""
        with contextlib.suppress(OSError):  # wakes the reading thread
            self.socket.shutdown(socket.SHUT_RDWR)
        self._reader.join()
        self.socket.close()

    def close(self) -> None:
        if self.process.poll() is None:
            self.kill()
        self.hang_up()
        self._folder.cleanup()


@contextlib.contextmanager
def worker(spec: WorkerSpec, **options: Any) -> Iterator[Worker]:
    """A running worker, configured; killed at the end if it still runs."""
    running = Worker(spec, **options)
    try:
        yield running
    finally:
        running.close()


def make_trainer(
    spec: WorkerSpec,
    gate: Any = lambda: None,
    reports: list[Any] | None = None,
    context: Any = None,
) -> Any:
    """A trainer in this process with the site's real data; `context` saves reading them again."""
    from gossipseg.learn.data.dataset import Dataset
    from gossipseg.learn.engine.precision import choose_compute
    from gossipseg.learn.engine.sites import open_site
    from gossipseg.learn.settings import read_settings
    from gossipseg.learn.training.trainer import Trainer

    settings = read_settings(spec)
    if context is None:
        context = open_site(settings, Dataset.open(spec), choose_compute(settings.device))
    return Trainer(context, lambda make, activity: None if reports is None else reports.append(make()), gate)


def stored(trainer: Any) -> None:
    """Write the trainer's checkpoint, and read it, as a worker does."""
    from gossipseg.learn.engine.checkpoint import contract_of, load_checkpoint, save_checkpoint
    from gossipseg.store import Checkpoints

    store = Checkpoints(Path(trainer.settings.spec.state_dir) / "checkpoint")
    store.prepare()
    contract = contract_of(trainer.settings, trainer.network_signature)
    save_checkpoint(store, trainer.state(), contract)
    assert load_checkpoint(store, contract)[0] is not None


def same(a: Any, b: Any) -> bool:
    """Whether two trees of plain values and tensors are equal bit by bit."""
    import torch

    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a.cpu(), b.cpu())
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)
