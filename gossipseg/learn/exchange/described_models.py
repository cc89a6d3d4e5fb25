"""A peer's personal model of a network of its own: checked and bounded before anything of it is built.

Its record (nets/params/described.py) says which network it is. That network is made on torch's meta device,
where tensors have shapes and no memory. So its parameters, and what one prediction takes, are counted before
a byte is allocated. What passes has a wire schema, by which its file is checked as any other is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from gossipseg.errors import ConfigError, PeerRefused
from gossipseg.learn.engine.dry_run import FAULTS, Cost, TooLarge, WrongOutput, measured
from gossipseg.learn.exchange.wire_format import INT8, wire_schema
from gossipseg.learn.protocol import WireSchema
from gossipseg.learn.settings import WorkerSettings
from gossipseg.nets.params.described import NotDescribed, describe, read

TIMES_THE_SHARED = 16
"""How many times as much a prediction may take as one of the shared model."""

BEARABLE = Cost(0, 1 << 34, 1 << 32, 1 << 23)
"""What a prediction of one patch may take at any site, however small its shared model; several are
predicted at once (evaluation/evaluate.py)."""


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
    own = measured(settings.network, settings)[1]
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
        state, cost = measured(network, settings, bounds)
    except (NotDescribed, WrongOutput, ConfigError) as e:
        raise PeerRefused(frm, "bad_network", _short(e)) from None
    except TooLarge as e:
        raise PeerRefused(frm, "network_too_large", str(e)) from None
    except FAULTS as e:
        raise PeerRefused(frm, "bad_network", _short(e)) from None
    reference = sent(state)
    return DescribedModel(describe(network), cost, wire_schema(reference, _all, INT8), reference)


def sent(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of such a model that travel: numbers it has learned. Tables of indices follow from the
    network, and one of a stranger's could point outside."""
    return {name: tensor for name, tensor in state.items() if tensor.is_floating_point()}


def _short(error: Exception) -> str:
    text = error.problem if isinstance(error, ConfigError) else str(error)
    return " ".join(text.split())[:200] or type(error).__name__


def _all(name: str) -> bool:
    return True
