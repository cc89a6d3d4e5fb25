"""What a trainer needs of its site: settings, device, batches in order, scores."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from gossipseg.algos.base import Outputs
from gossipseg.errors import LocalError
from gossipseg.learn.data.cases import Case
from gossipseg.learn.data.dataset import Dataset, Item
from gossipseg.learn.data.division import patients_in
from gossipseg.learn.data.labels import IGNORE
from gossipseg.learn.data.patches import TrainBatches
from gossipseg.learn.engine.losses import make_target
from gossipseg.learn.engine.partial import Annotated
from gossipseg.learn.engine.precision import Compute
from gossipseg.learn.evaluation.evaluate import CaseScore, Scores, predict_logits, score, score_item
from gossipseg.learn.evaluation.mixture import log_likelihoods
from gossipseg.learn.evaluation.pairs import PairScores, Predict, Seen, losses_of, score_pair
from gossipseg.learn.params import SplitName
from gossipseg.learn.settings import WorkerSettings

MAX_READERS = 4

Batch = dict[str, Tensor]


class Batches(Protocol):
    """Where training batches come from: any of them, in any order, from any thread."""

    def batch(self, seed: int, site: str, round: int, step: int) -> Batch: ...


class SiteData:
    """One site's data on one device. Stateless: any batch of any round can be had at any time.

    `batches`: another source than patches of the training cases.
    """

    def __init__(
        self, settings: WorkerSettings, data: Dataset, compute: Compute, batches: Batches | None = None
    ) -> None:
        self.settings, self.compute = settings, compute
        self.splits = dict(data.counts)
        self.annotated = Annotated.of(settings, data.rule)
        self._data = data
        self._batches: Batches = batches or TrainBatches(data, settings.task, settings.training)
        self._patients: dict[SplitName, tuple[str, ...]] = {}
        self._told: dict[SplitName, tuple[bool, ...]] = {}

    def feed(self, wrap: Callable[[Batches], Batches]) -> None:
        """Train on other batches, made of the present ones."""
        self._batches = wrap(self._batches)

    @property
    def cases(self) -> int:
        """Training cases."""
        return self.splits["training"]

    def batches(self, round: int, first: int, last: int) -> Iterator[tuple[int, Batch]]:
        """(step, batch on the device) for first ≤ step < last.

        On CUDA threads prepare the next batches in pinned memory while the device works; on the CPU, where
        they would take the cores from the step itself, each batch is made when it is asked for.
        """
        if self.compute.device.type != "cuda":
            for step in range(first, last):
                yield step, self._place(self._read(round, step))
            return
        yield from self._read_ahead(round, first, last)

    def _read_ahead(self, round: int, first: int, last: int) -> Iterator[tuple[int, Batch]]:
        readers = max(1, min(MAX_READERS, (os.cpu_count() or 2) - 1))
        waiting: deque[tuple[int, Future[Batch]]] = deque()
        pool = ThreadPoolExecutor(readers, thread_name_prefix="batches")
        try:
            for step in range(first, last):
                waiting.append((step, pool.submit(self._read, round, step)))
                if len(waiting) > 2 * readers:
                    yield self._take(waiting)
            while waiting:
                yield self._take(waiting)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _take(self, waiting: deque[tuple[int, Future[Batch]]]) -> tuple[int, Batch]:
        step, future = waiting.popleft()
        return step, self._place(future.result())

    def _read(self, round: int, step: int) -> Batch:
        spec = self.settings.spec
        return self.compute.stage(self._batches.batch(spec.seed, spec.site, round, step))

    def _place(self, batch: Batch) -> Batch:
        return {name: self.compute.place(tensor) for name, tensor in batch.items()}

    def case(self, index: int, rng: np.random.Generator) -> Batch:
        """A batch of one on the device: a patch of the training case `index`. Raises LocalError where
        training is fed with other batches than patches of the cases."""
        if not isinstance(self._batches, TrainBatches):
            raise LocalError("private training (privacy.dp) works on patches of the site's own cases only.")
        return self._place(self.compute.stage(self._batches.case(index, rng)))

    def score(self, model: nn.Module, split: SplitName, on_progress: Callable[[float], None]) -> Scores:
        """Dice of a model over a split, of the classes that the site annotates; `on_progress` is called after
        each case."""
        with self.scoring():
            return score(
                model,
                self._data.items(split),
                self.settings.task,
                self.settings.training,
                self.compute.device,
                on_progress,
                total=self.splits[split],
                annotated=self._data.rule.annotated,
            )

    def score_pair(
        self,
        personal: nn.Module,
        shared: nn.Module,
        split: SplitName,
        compared: Collection[float],
        deployable: Collection[float],
        on_progress: Callable[[float], None],
        predict: Predict | None = None,
        seen: Seen = lambda item, label, p, t: None,
    ) -> PairScores:
        """Both models and their mixes over a split, as score() scores one; see evaluation.pairs."""
        with self.scoring():
            return score_pair(
                personal,
                shared,
                self._data.items(split),
                self.settings.task,
                self.settings.training,
                self.compute.device,
                compared=compared,
                deployable=deployable,
                loss=self._loss,
                annotated=self._data.rule.annotated,
                on_progress=on_progress,
                total=self.splits[split],
                predict=predict,
                seen=seen,
            )

    def losses(
        self, model: nn.Module, split: SplitName, on_progress: Callable[[float], None]
    ) -> list[float | None]:
        """NLL of a model by case of a split, over a few windows of each, in the order of patients()."""
        with self.scoring():
            return losses_of(
                model,
                self._data.items(split),
                self.settings.task,
                self.settings.training,
                self.compute.device,
                loss=self._loss,
                on_progress=on_progress,
                total=self.splits[split],
            )

    @contextmanager
    def scoring(self) -> Iterator[None]:
        """Without gradients, and in the precision of training: how every score here is made."""
        with torch.no_grad(), self.compute.autocast():
            yield

    def labelled(self, split: SplitName) -> Iterator[tuple[Item, Tensor]]:
        """The cases that score_pair() scores, in its order, with their labels."""
        for item in self._data.items(split):
            if item.label is not None:
                yield item, item.label

    def case_ids(self, split: SplitName) -> tuple[str, ...]:
        """Names of all cases of a split."""
        return tuple(case.id for case in self._data.splits.of(split))

    def seen(self) -> tuple[object, ...]:
        """What the scores of validation and test cases were counted by: their files as they were when they
        were read, and how labels are read."""
        return (self._data.seen("validation"), self._data.seen("test"), repr(self._data.rule))

    def predict(self, net: nn.Module, item: Item) -> Tensor:
        """Logits (K, *spatial) of a case; within scoring()."""
        return predict_logits(
            net, item.image, self.settings.task, self.settings.training, self.compute.device
        )

    def score_logits(self, item: Item, label: Tensor, logits: Tensor) -> CaseScore:
        """Dice of a case, as score() counts it."""
        task, training = self.settings.task, self.settings.training
        return score_item(item, label, logits, task, training, self._data.rule.annotated)

    def log_likelihoods(self, logits: Tensor, label: Tensor) -> Tensor:
        """log p(label) of what the label says, of the classes that the site annotates, in one axis."""
        output, annotated = self.settings.training.output, self.annotated
        target = make_target(annotated.label(label[None]), output, annotated.classes)[0]
        seen = annotated.outputs(Outputs(logits[None])).logits[0]
        return log_likelihoods(seen, target, output)

    def _loss(self, logits: Tensor, label: Tensor) -> float | None:
        """NLL of a case, of the classes that the site annotates."""
        log_p = self.log_likelihoods(logits, label)
        return float(-log_p.double().mean()) if log_p.numel() else None

    def patients(self, split: SplitName) -> tuple[str, ...]:
        """Whose the cases of `score` are, in its order. All of the site's cases tell (patients_in)."""
        if split not in self._patients:
            patients = patients_in(case for _, case in self._data.splits)
            self._patients[split] = tuple(patients[case.id] for case in self._scored(split))
        return self._patients[split]

    def told_patients(self, split: SplitName) -> tuple[str, ...]:
        """Those of `patients` whose labels say what some voxel is: the cases that have an NLL."""
        if split not in self._told:
            labels = (item.label for item in self._data.items(split) if item.label is not None)
            told = (bool((self.annotated.label(label[None]) != IGNORE).any()) for label in labels)
            self._told[split] = tuple(told)
        return tuple(p for p, told in zip(self.patients(split), self._told[split], strict=True) if told)

    def _scored(self, split: SplitName) -> tuple[Case, ...]:
        """The cases that `score` returns, in its order."""
        return tuple(case for case in self._data.splits.of(split) if case.label is not None)
