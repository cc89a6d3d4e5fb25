"""A peer's personal model of a network of its own: checked and bounded before anything of it is built.

Its record (nets/params/described.py) says which network it is. That network is made on torch's meta device,
where tensors have shapes and no memory. So its parameters, and what one prediction takes, are counted before
a byte is allocated. What passes has a wire schema, by which its file is checked as any other is.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from gossipseg.errors import ConfigError, PeerRefused
from gossipseg.learn.engine.build import output_channels
from gossipseg.learn.exchange.wire_format import INT8, wire_schema
from gossipseg.learn.protocol import WireSchema
from gossipseg.learn.settings import WorkerSettings
from gossipseg.nets.params import NetworkParams
from gossipseg.nets.params.described import NotDescribed, describe, read
from gossipseg.nets.registry import Segmenter, build

TIMES_THE_SHARED = 16
"""How many times as much a prediction may take as one of the shared model."""

_MADE = frozenset({
    torch.empty, torch.zeros, torch.ones, torch.full, torch.eye, torch.tensor, torch.arange,
    torch.rand, torch.randn, torch.randperm,
})  # fmt: skip
_FAULTS = (TypeError, ValueError, AssertionError, LookupError, ArithmeticError, AttributeError, RuntimeError)
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


BEARABLE = Cost(0, 1 << 34, 1 << 32, 1 << 26)
"""What a prediction may take at any site, however small its shared model."""


@dataclass(frozen=True, slots=True)
class DescribedModel:
    """A network that may come from another site."""

    record: Mapping[str, Any]
    """With the fields that count, for build_described()."""
    cost: Cost
    schema: WireSchema
    """What a wire file of its weights holds, in eight bits."""
    reference: Mapping[str, Tensor]
    """Those weights on the meta device, for load_incoming()."""


def bounds_of(settings: WorkerSettings, max_parameters: int) -> Cost:
    """The most that a peer's model may take: in a prediction, a multiple of what the shared model does."""
    own = _measured(settings.network, settings)[1]
    return Cost(
        max_parameters,
        max(BEARABLE.multiplications, TIMES_THE_SHARED * own.multiplications),
        max(BEARABLE.values, TIMES_THE_SHARED * own.values),
        max(BEARABLE.largest, TIMES_THE_SHARED * own.largest),
    )


def own_record(settings: WorkerSettings) -> dict[str, Any] | None:
    """The record that goes with this site's personal model; None: it has the shared model's network.

    Raises NotDescribed where others cannot build it: the model stays here.
    """
    return None if settings.personal_network is None else describe(settings.personal_network)


def personal_schema(record: object, settings: WorkerSettings, bounds: Cost, frm: str) -> DescribedModel:
    """What a peer's record describes. Raises PeerRefused(frm, reason, detail), and nothing else.

    `bad_network`: it describes no network that this site can build for its task; `network_too_large`: it
    takes more than the bounds.
    """
    try:
        network = read(record)
        state, cost = _measured(network, settings, bounds)
    except (NotDescribed, ConfigError) as e:
        raise PeerRefused(frm, "bad_network", _short(e)) from None
    except _TooLarge as e:
        raise PeerRefused(frm, "network_too_large", str(e)) from None
    except _FAULTS as e:
        raise PeerRefused(frm, "bad_network", _short(e)) from None
    reference = sent(state)
    return DescribedModel(describe(network), cost, wire_schema(reference, _all, INT8), reference)


def sent(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of such a model that travel: numbers it has learned. Tables of indices follow from the
    network, and one of a stranger's could point outside."""
    return {name: tensor for name, tensor in state.items() if tensor.is_floating_point()}


# ---------------------------------------------------------------- on the meta device


class _TooLarge(Exception):
    """It takes more than it may."""


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


def _measured(
    network: NetworkParams, settings: WorkerSettings, bounds: Cost | None = None
) -> tuple[dict[str, Tensor], Cost]:
    """Its state dict on the meta device, and its cost. Raises _TooLarge, ConfigError and what layers
    raise. The caller's random state is left as it was."""
    with _quiet(), torch.random.fork_rng(devices=[]), torch.no_grad(), _OnMeta():
        net = _network(network, settings).eval()
        state = {name: tensor.detach() for name, tensor in net.state_dict().items()}
        parameters = sum(tensor.numel() for tensor in state.values())
        if bounds is not None:
            _check("parameters", parameters, bounds.parameters)
        patch = torch.empty(1, settings.task.channels, *settings.task.patch_size, device="meta")
        with FlopCounterMode(display=False) as flops, _CountValues() as count:
            logits = net(patch).logits
        wanted = (1, output_channels(settings.task, settings.training), *settings.task.patch_size)
        if tuple(logits.shape) != wanted:
            raise NotDescribed(f"its prediction of a patch has the shape {tuple(logits.shape)}, not {wanted}")
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
        raise _TooLarge(f"it has {found:,} {what}; this site takes {most:,} at most")


def _network(network: NetworkParams, settings: WorkerSettings) -> Segmenter:
    task = settings.task
    return build(
        network,
        spatial_dims=task.spatial_dims,
        in_channels=task.channels,
        out_channels=output_channels(task, settings.training),
        patch_size=task.patch_size,
    )


def _short(error: Exception) -> str:
    text = error.problem if isinstance(error, ConfigError) else str(error)
    return " ".join(text.split())[:200] or type(error).__name__


def _all(name: str) -> bool:
    return True
