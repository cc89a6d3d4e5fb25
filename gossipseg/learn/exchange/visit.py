"""A visit: another site's model, read and checked, and what becomes of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from gossipseg.algos.base import Algorithm
from gossipseg.errors import PeerRefused
from gossipseg.learn import protocol
from gossipseg.learn.engine.precision import Compute
from gossipseg.learn.exchange.admission import Admission
from gossipseg.learn.exchange.wire_format import load_incoming
from gossipseg.nets.segmenter import Segmenter


@dataclass(slots=True)
class Visitor:
    """An admitted model. `incoming`: its shared tensors as they came, on the device."""

    order: protocol.Visit
    incoming: dict[str, Tensor]
    reason: str = ""
    outcome: protocol.VisitOutcome = "kept_out"

    def result(self) -> protocol.VisitDone:
        """For RoundDone."""
        return protocol.VisitDone(self.order.hash, self.outcome, self.reason, frm=self.order.frm)


def admit(
    order: protocol.Visit,
    model: Segmenter,
    algorithm: Algorithm,
    wire_dtype: str,
    compute: Compute,
    admission: Admission | None = None,
) -> Visitor:
    """Load and check the visiting file against the local model. Raises PeerRefused with a stable reason."""
    if not algorithm.exchanges:
        raise PeerRefused(order.frm, "no_exchange", f"{algorithm.name} takes no models in")
    own, path = model.state_dict(), Path(order.path)
    incoming = load_incoming(path, own, algorithm.is_shared, wire_dtype, order.frm, admission)
    return Visitor(order, {name: tensor.to(compute.device) for name, tensor in incoming.items()})
