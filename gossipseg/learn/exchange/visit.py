"""A visit: another site's model, taken in, trained beside the local one, and what becomes of it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from gossipseg.algos.base import Algorithm
from gossipseg.errors import PeerRefused
from gossipseg.learn import protocol
from gossipseg.learn.engine.precision import Compute
from gossipseg.learn.engine.train_step import Learner, make_learner
from gossipseg.learn.exchange.admission import Admission
from gossipseg.learn.exchange.wire_format import load_incoming, shared
from gossipseg.learn.params import TrainingParams
from gossipseg.nets.segmenter import Segmenter

MAX_BAD_STEPS = 3
"""Steps on end with a loss or gradient that is not finite, after which a visitor is sent away, unless the
local model's output was not finite either."""


@dataclass(slots=True)
class Visitor:
    """An admitted model. `incoming`: its shared tensors as they came, on the device; empty once it trains."""

    order: protocol.Visit
    incoming: dict[str, Tensor]
    learner: Learner | None = None
    """Set when the algorithm trains the visitor: its own fresh optimizer, thrown away after the round."""
    reason: str = ""
    outcome: protocol.VisitOutcome = "kept_out"
    bad_steps: int = 0

    def note_step(self, bad: bool) -> bool:
        """Count steps on end that came to nothing by its own fault; whether the visitor must leave."""
        self.bad_steps = self.bad_steps + 1 if bad else 0
        if self.bad_steps < MAX_BAD_STEPS:
            return False
        self.outcome, self.reason, self.learner = "refused", "diverged", None
        return True

    @property
    def stays(self) -> bool:
        """Whether it has not been sent away."""
        return self.outcome != "refused"

    def weights(self, algorithm: Algorithm) -> Mapping[str, Tensor]:
        """Its shared tensors as they are now."""
        if self.learner is None:
            return self.incoming
        return shared(self.learner.model.state_dict(), algorithm.is_shared)

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


def dress(visitor: Visitor, model: Segmenter) -> Segmenter:
    """The visitor as a network: its shared tensors, and the receiver's private ones (norm statistics)."""
    guest = copy.deepcopy(model)
    guest.load_state_dict(dict(visitor.incoming), strict=False)
    return guest


def seat(visitor: Visitor, model: Segmenter, training: TrainingParams, compute: Compute) -> None:
    """Give the visitor a learner of its own, to train beside the local one.

    What came is let go of: a device holds two models during a visit (and the EMA), not three.
    """
    visitor.learner = make_learner(dress(visitor, model), training, compute)
    visitor.incoming = {}
