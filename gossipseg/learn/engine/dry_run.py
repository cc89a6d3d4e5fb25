"""A network on torch's meta device, where tensors have shapes and no memory: what it would take, and what a
prediction of it would look like, before a byte is allocated.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from gossipseg.errors import ConfigError
from gossipseg.learn.engine.build import SITE_FILE, make, output_channels
from gossipseg.learn.settings import WorkerSettings
from gossipseg.nets.params import NetworkParams

_MADE = frozenset({
    torch.empty, torch.zeros, torch.ones, torch.full, torch.eye, torch.tensor, torch.arange,
    torch.rand, torch.randn, torch.randperm,
})  # fmt: skip
FAULTS = (TypeError, ValueError, AssertionError, LookupError, ArithmeticError, AttributeError, RuntimeError)
"""What constructors and layers raise at sizes that do not fit together."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What a network takes, counted on the meta device."""

    parameters: int
    """Values of its state dict."""
    multiplications: int
    """In the prediction of a patch."""
    values: int
    """Results of all operations of that prediction: a measure of time, where little is multiplied."""
    largest: int
    """Values of the largest result: a measure of memory."""


def check_output(settings: WorkerSettings) -> None:
    """Check that the network of this site's own predicts a patch of the size it is given. Raises ConfigError.

    One that cannot be made on the meta device is not checked: its first step will show it.
    """
    network = settings.personal_network
    if network is None:
        return
    try:
        measured(network, settings)
    except WrongOutput as e:
        raise ConfigError(
            f"the network does not suit the task: {e}",
            file=SITE_FILE,
            key="personal_network.options",
            value=dict(network.options),
            remedy="Leave out the options that change the size of its output, or write another network.",
        ) from None
    except (ConfigError, NotImplementedError, *FAULTS):
        return


class TooLarge(Exception):
    """It takes more than it may."""


class WrongOutput(Exception):
    """Its prediction of a patch is not one."""


class _OnMeta(TorchFunctionMode):
    """What is made has no memory. `linspace` is left out: constructors read its few numbers."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in _MADE and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


class _CountValues(TorchDispatchMode):
    """Counts what operations return."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.values = self.largest = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        self.values += sum(sizes)
        self.largest = max(self.largest, *sizes, 0)
        return out


def measured(
    network: NetworkParams, settings: WorkerSettings, bounds: Cost | None = None
) -> tuple[dict[str, Tensor], Cost]:
    """Its state dict on the meta device, and its cost. Raises TooLarge, WrongOutput, ConfigError and
    what layers raise (FAULTS). The caller's random state is left as it was."""
    with _quiet(), torch.random.fork_rng(devices=[]), torch.no_grad(), _OnMeta():
        net = make(network, settings).eval()
        state = {name: tensor.detach() for name, tensor in net.state_dict().items()}
        parameters = sum(tensor.numel() for tensor in state.values())
        if bounds is not None:
            _check("parameters", parameters, bounds.parameters)
        patch = torch.empty(1, settings.task.channels, *settings.task.patch_size, device="meta")
        with FlopCounterMode(display=False) as flops, _CountValues() as count:
            logits = net(patch).logits
        wanted = (1, output_channels(settings.task, settings.training), *settings.task.patch_size)
        if tuple(logits.shape) != wanted:
            raise WrongOutput(f"its prediction of a patch has the shape {tuple(logits.shape)}, not {wanted}")
    cost = Cost(parameters, flops.get_total_flops() // 2, count.values, count.largest)
    if bounds is not None:
        _check("multiplications in the prediction of a patch", cost.multiplications, bounds.multiplications)
        _check("values in the prediction of a patch", cost.values, bounds.values)
        _check("values in one result of the prediction of a patch", cost.largest, bounds.largest)
    return state, cost


@contextmanager
def _quiet() -> Iterator[None]:
    """What MONAI has to say of a stranger's options is not for this site's log."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _check(what: str, found: int, most: int) -> None:
    if found > most:
        raise TooLarge(f"it has {found:,} {what}; this site takes {most:,} at most")
