"""A node in the midst of gossip, for tests of the exchange and of its inbox."""

from __future__ import annotations

from typing import Any

from gossipseg.core import events as ev
from gossipseg.core import messages as ms
from gossipseg.core.params import GossipParams
from tests.core.rig import Rig, model


def rig_of(*sites: str, round: int = 5, steps: int = 50, **changes: Any) -> Rig:
    """`me`, past its warm-up and running a round, among sites that are alive and agree. It always sends."""
    changes.setdefault("gossip", GossipParams(exchange="push", sender_rate=1.0))
    rig = Rig(sites, **changes).start()
    rig.meet(*sites)
    rig.ready(round=round, steps=steps)
    return rig


def hosting() -> Rig:
    """b's model has come, and visits in the round that has just begun."""
    rig = rig_of("b")
    rig.asks("b", ms.Offer(model()))
    rig.do(ev.ModelArrived("b", model()))
    rig.round_done()
    return rig
