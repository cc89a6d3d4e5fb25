"""TensorBoard scalars of a site's training, one point a round, in state_dir/tensorboard.

A full disk stops the curves, never the training.
"""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path
from typing import Any

from gossipseg.errors import ConfigError
from gossipseg.learn import protocol

log = logging.getLogger(__name__)
DIRECTORY = "tensorboard"


class Scalars:
    """An event file in `state_dir`/tensorboard; a new one for each life of the worker."""

    def __init__(self, state_dir: Path) -> None:
        """Raises ConfigError where the tensorboard package is not installed."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as e:
            raise ConfigError(
                f"the package tensorboard cannot be imported ({e})",
                key="tensorboard",
                value=True,
                remedy="Install it: pip install 'gossipseg[tensorboard]'; or write tensorboard: false.",
            ) from e
        self._writer: Any = None
        with self._survived():
            self._writer = SummaryWriter(str(state_dir / DIRECTORY))

    def round(self, done: protocol.RoundDone, learning_rate: float) -> None:
        """The curves' next points: losses, learning rate, Dice (0..1) on validation and, if scored, test."""
        values: dict[str, float | None] = {
            "train/loss": done.loss,
            **{f"train/{name}": value for name, value in done.terms.items()},
            "train/learning_rate": learning_rate,
            "train/seconds": done.seconds,
            "validation/dice": done.dice_val,
            "test/dice": done.dice_test,
        }
        values |= {f"validation/dice_class_{i}": v for i, v in enumerate(done.dice_val_local or (), start=1)}
        if self._writer is None:
            return
        with self._survived():
            for name, value in values.items():
                if value is not None:
                    self._writer.add_scalar(name, value, done.round)
            self._writer.flush()

    def close(self) -> None:
        """Write what is left."""
        if self._writer is not None:
            with self._survived():
                self._writer.close()

    @contextlib.contextmanager
    def _survived(self) -> Any:
        try:
            yield
        except OSError as e:
            log.warning("TensorBoard scalars are not written any more: %s", e)
            self._writer = None
