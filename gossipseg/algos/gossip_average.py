"""`gossip_average`: average with each model that arrives, then train on. Gossip without mutual learning.

A control of ours [O], the plain form of gossip learning: at an arrival

    W_r ← (W_r + W_s) / 2                                                                                (1)

and L = L_seg before and after. What GCML gains over it is what its mutual learning gains, since both
exchange the same models by the same protocol.
"""

from __future__ import annotations

from gossipseg.algos.average import merged
from gossipseg.algos.base import Algorithm, Weights


class GossipAverage(Algorithm):
    """Equation (1) before the round of a visit; the visitor itself does not train."""

    name = "gossip_average"
    exchanges = True

    def on_arrival(self, local: Weights, incoming: Weights) -> Weights | None:
        return merged(local, incoming, self.is_shared)
