"""Where a training run stands: the numbers that a checkpoint carries beside the tensors."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(slots=True)
class History:
    """The model stands `step` steps after the end of `round`."""

    round: int = 0
    step: int = 0
    averaged: bool = False
    """Whether the EMA was given the present round's weights (its steps are done, its validation is not)."""
    in_average: bool = False
    """Whether the EMA still holds them: not where they have been undone since."""
    ahead: int = 0
    """Rounds by which the federation's budget is ahead of `round`: the learning rate goes by its round."""
    finetuned: int = 0
    """Rounds of fine-tuning behind the model."""
    steps: int = 0
    """Optimizer steps behind the model: its own, or the larger of its own and what it merged."""
    own_steps: int = 0
    """Steps that this site took itself, and did not undo."""
    visits: int = 0
    """Models of other sites that were taken in, or looked at and kept out."""
    first_exchange: int | None = None
    """The round in which another site's weights first came into the shared model; None: not yet."""
    last_swap: tuple[str, int] | None = None
    """Asker and number of the last swap that is in the shared model."""
    last_visit: str | None = None
    """Hash of the last model that visited, whatever became of it."""
    dice_val: float | None = None
    """Mean validation Dice of what is deployed."""
    dice_shared: float | None = None
    """The same of the shared model's average: what is said of it where it travels."""
    dice_test_start: float | None = None
    dice_test: float | None = None
    reverted: tuple[str, str] | None = None
    """Hash and site of a visit that was undone in the present round and has not been told of yet."""
    last_global: str | None = None
    """Hash of the last global model that the weights were taken from."""
    settling_round: int = 0
    """The round in which it joined the others, with a global model taken over outright; 0: none such."""
    best_finetuned: float | None = None
    """Validation Dice of the best model of the fine-tuning rounds, where the algorithm keeps it."""
    dice_history: list[tuple[int, float | None]] = field(default_factory=list)
    """(round, validation Dice of the EMA)."""

    def state(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> History:
        """From what state() gave."""
        past = [(int(r), d) for r, d in state["dice_history"]]
        reverted = tuple(state["reverted"]) if state.get("reverted") else None
        swap = tuple(state["last_swap"]) if state.get("last_swap") else None
        own = int(state.get("own_steps", state["steps"]))  # an earlier version kept one number
        return cls(
            **{**state, "own_steps": own, "dice_history": past, "reverted": reverted, "last_swap": swap}
        )


class RunningMeans:
    """Running means of the loss and the terms over a round; the sums stay on the device until asked for."""

    def __init__(self) -> None:
        self.count = 0
        self.skipped = 0
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        """Steps that had each: a term may begin within a round, as with the first exchange."""
        self.last_loss: Tensor | None = None

    def add(self, loss: Tensor, terms: Mapping[str, Tensor]) -> None:
        """Take in a step that was not skipped."""
        self.count += 1
        self.last_loss = loss
        for name, value in {"loss": loss, **terms}.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value.clone()
            self._counts[name] = self._counts.get(name, 0) + 1

    def means(self) -> tuple[float | None, dict[str, float | None]]:
        """Mean loss and mean terms; (None, {}) before the first step."""
        if not self.count:
            return None, {}
        means = {name: finite(float(total) / self._counts[name]) for name, total in self._sums.items()}
        return means.pop("loss"), means

    def state(self) -> dict[str, Any]:
        """As plain values; the sums are float32 and survive as Python floats exactly."""
        return {
            "count": self.count,
            "skipped": self.skipped,
            "sums": {name: float(total) for name, total in self._sums.items()},
            "counts": dict(self._counts),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from what state() gave."""
        self.count, self.skipped = state["count"], state["skipped"]
        self._sums = {name: torch.tensor(total) for name, total in state["sums"].items()}
        self._counts = {name: self.count for name in self._sums} | state.get("counts", {})


class Throughput:
    """Steps per second since the steps of this round began."""

    def __init__(self) -> None:
        self._started, self._steps = time.perf_counter(), 0

    def tick(self) -> None:
        """A step is done."""
        self._steps += 1

    @property
    def steps_per_s(self) -> float:
        """Mean so far."""
        return self._steps / max(1e-9, time.perf_counter() - self._started)


def finite(value: float | None) -> float | None:
    """The value, or None where it says nothing."""
    return value if value is not None and math.isfinite(value) else None
