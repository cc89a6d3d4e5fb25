"""Differentially private training (DP-SGD, Abadi et al. 2016): who is drawn, what is added, what is spent.

Each step draws every training case of itself with probability q = batch_size / cases (Poisson sampling), cuts
one patch of each drawn case, and with g_i the gradient of that patch's own loss takes

    g = ( Σ_i g_i·min(1, C/‖g_i‖) + N(0, (z·C)²) ) / batch_size    C: max_grad_norm, z: noise_multiplier  (1)

ε of all steps so far comes from Opacus' RDP accountant: an upper bound, for adding or removing one case.
Nothing in (1) may depend on the other cases but the sum: every drawn case has random numbers of its own, and
one whose gradient is not finite counts as 0. None of these numbers come from the federation's seed, which
everybody knows.

The account is in a file of its own beside the checkpoints, written before the steps it speaks of: a model
that has left cannot be forgotten with a checkpoint that was lost.
"""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from gossipseg.errors import ConfigError, LocalError
from gossipseg.learn import protocol
from gossipseg.learn.engine.optim import step_seed
from gossipseg.learn.engine.precision import Compute
from gossipseg.learn.params import DpParams
from gossipseg.learn.privacy.csprng import secret_generator
from gossipseg.store.atomic import atomic_write

if TYPE_CHECKING:
    from opacus.optimizers import DPOptimizer

FILE = "privacy.json"
SCHEMA = 1
REMEDY = "Install it: pip install 'gossipseg[dp]'. Or remove privacy.dp."

History = list[tuple[float, float, int]]
"""(noise multiplier, sampling rate, steps), as Opacus' accountants keep it."""


class PrivateTraining:
    """One site's private training and its account."""

    def __init__(
        self, params: DpParams, seed: int | None, site: str, cases: int, batch_size: int, file: Path
    ) -> None:
        """`seed`: for experiments alone; None: the system's randomness. Raises ConfigError, LocalError."""
        _need_opacus()
        if params.delta * cases >= 1:
            raise ConfigError(
                f"must be below 1 / training cases ({1 / cases:.2g}): a larger one lets a whole case be told",
                key="privacy.dp.delta",
                value=params.delta,
                remedy=f"Write {0.1 / cases:.1g} or less.",
            )
        self._params, self._seed, self._site, self._file = params, seed, site, file
        self._cases, self._expected = cases, min(batch_size, cases)
        self.sample_rate = self._expected / cases
        self._history: History = _read(file)
        self._reserved = 0
        self._epsilon = epsilon(self._history, params.delta)

    # ------------------------------------------------------------ the account

    @property
    def spent(self) -> protocol.Spent:
        """What all steps so far have cost."""
        p = self._params
        steps = sum(n for _, _, n in self._history)
        return protocol.Spent(self._epsilon, p.delta, steps, p.max_epsilon, over=self._room(1) == 0)

    def begin(self, wanted: int) -> tuple[int, str]:
        """(steps that may be taken of those wanted, why not all of them or ""); they are charged at once.

        `wanted` below 0 (a round that has been made shorter) is none.
        """
        wanted = max(0, wanted)
        allowed = self._room(wanted)
        try:
            self._write(self._with(allowed))
        except LocalError as e:
            return 0, f"no step was taken: the account of privacy could not be written: {e}"
        self._reserved = allowed
        if allowed == wanted:
            return allowed, ""
        return allowed, (
            f"the privacy budget is spent: {allowed} of {wanted} training steps were left within "
            f"privacy.dp.max_epsilon = {self._params.max_epsilon:g}. Training here has ended"
        )

    def settle(self, taken: int) -> None:
        """Report the steps taken of those charged. A process that is killed leaves them all charged."""
        reserved = self._reserved
        self._history, self._reserved = self._with(taken), 0
        self._epsilon = epsilon(self._history, self._params.delta)
        if taken != reserved:
            with contextlib.suppress(LocalError):  # the file then says too much, which is on the safe side
                self._write(self._history)

    def state(self) -> list[list[float]]:
        """For a checkpoint: with the steps that are charged already, as in the file."""
        return [list(entry) for entry in self._with(self._reserved)]

    def load(self, state: Sequence[Sequence[float]] | None) -> None:
        """From a checkpoint, if the file knows of less: it may have been removed, or be an older one."""
        known = [(float(z), float(q), int(n)) for z, q, n in state or ()]
        spent = epsilon(known, self._params.delta)
        charged = epsilon(self._with(self._reserved), self._params.delta)
        if spent > charged:  # few steps under little noise cost more than many under much
            self._history, self._epsilon = known, spent

    def _room(self, wanted: int) -> int:
        limit = self._params.max_epsilon
        if limit is None:
            return wanted
        low, high = 0, wanted
        while low < high:
            middle = (low + high + 1) // 2
            if epsilon(self._with(middle), self._params.delta) <= limit:
                low = middle
            else:
                high = middle - 1
        return low

    def _with(self, steps: int) -> History:
        if not steps:
            return list(self._history)
        z, q = self._params.noise_multiplier, self.sample_rate
        *earlier, last = self._history or [(z, q, 0)]
        if last[:2] == (z, q):
            return [*earlier, (z, q, last[2] + steps)]
        return [*earlier, last, (z, q, steps)]

    def _write(self, history: History) -> None:
        atomic_write(self._file, json.dumps({"schema": SCHEMA, "history": history}).encode())

    # ------------------------------------------------------------ a step

    def draw(self, round: int, step: int) -> list[tuple[int, np.random.Generator, int]]:
        """The cases of a step: index, its own random numbers for the patch, and its own torch seed."""
        from opacus.utils.uniform_sampler import UniformWithReplacementSampler

        sampler = UniformWithReplacementSampler(
            num_samples=self._cases,
            sample_rate=self.sample_rate,
            generator=self._generator("draw", round, step),
            steps=1,
        )
        (drawn,) = list(sampler)
        return [(index, *self._own_numbers(round, step, index)) for index in drawn]

    def optimizer(self, inner: torch.optim.Optimizer, round: int, step: int) -> DPOptimizer:
        """Equation (1) around the site's own optimizer; it keeps nothing from one step to the next."""
        from opacus.optimizers import DPOptimizer

        device = inner.param_groups[0]["params"][0].device
        return DPOptimizer(
            inner,
            noise_multiplier=self._params.noise_multiplier,
            max_grad_norm=self._params.max_grad_norm,
            expected_batch_size=self._expected,
            generator=self._generator("noise", round, step, device),
        )

    def _generator(
        self, what: str, round: int, step: int, device: torch.device | str = "cpu"
    ) -> torch.Generator:
        if self._seed is None:
            return secret_generator(device)
        generator = torch.Generator(device)
        return generator.manual_seed(step_seed(self._seed, f"{self._site}/dp/{what}", round, step))

    def _own_numbers(self, round: int, step: int, index: int) -> tuple[np.random.Generator, int]:
        if self._seed is None:
            rng = np.random.default_rng()
        else:
            rng = np.random.default_rng(step_seed(self._seed, f"{self._site}/dp/case/{index}", round, step))
        return rng, int(rng.integers(2**63))


def epsilon(history: History, delta: float) -> float:
    """ε at δ = `delta` of all steps of a history, by Opacus' RDP accountant."""
    from opacus.accountants import RDPAccountant

    accountant = RDPAccountant()
    accountant.history = [entry for entry in history if entry[2]]
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # the best order may lie beyond the ones it tries: the bound still holds
        return float(accountant.get_epsilon(delta))


def check_network(model: nn.Module, compute: Compute) -> None:
    """Raises ConfigError for what has no gradient of a single case, or would tell of cases without noise."""
    for name, module in model.named_modules():
        batch_wise = isinstance(module, nn.modules.batchnorm._BatchNorm)
        if batch_wise or getattr(module, "track_running_stats", False):
            raise ConfigError(
                f"{name} keeps statistics of the images, which leave the site without noise",
                key="network.norm",
                value="batch",
                remedy="With privacy.dp write network.norm: instance or group.",
            )
    if compute.autocast_dtype is torch.float16:
        raise ConfigError(
            "fp16 scales the gradients of a whole batch together",
            key="device.amp",
            value="fp16",
            remedy="With privacy.dp write device.amp: bf16 or off.",
        )


def _need_opacus() -> None:
    try:
        import opacus  # noqa: F401
    except ImportError:
        raise ConfigError(
            "differentially private training needs the package opacus", key="privacy.dp", remedy=REMEDY
        ) from None


def _read(file: Path) -> History:
    try:
        found: Any = json.loads(file.read_bytes())
        return [(float(z), float(q), int(n)) for z, q, n in found["history"]]
    except FileNotFoundError:
        return []
    except OSError as e:
        raise LocalError(f"{file} cannot be read: {e}. It says how much privacy has been spent.") from e
    except (ValueError, KeyError, TypeError) as e:
        raise LocalError(
            f"{file} is damaged ({e}). It says how much privacy has been spent: restore it from a backup; "
            "the newest checkpoint knows it, too, if no power was lost since."
        ) from None
