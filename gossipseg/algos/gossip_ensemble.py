"""`gossip_ensemble`: train alone, send the averaged model, predict together. No weights are ever mixed.

A control of ours [O]: one-shot federated learning by ensembles (Guha, Talwalkar and Smith, arXiv
1902.11175) made continuous by gossip. Each site trains with L = L_seg as `local` does and sends its EMA; the
receiver holds the newest model of each peer and deploys

    p(x) = ½·p_own(x) + ½·mean over S of p_s(x)                                                          (1)

where S, the peers that take part, is chosen on the receiver's validation cases and may be empty
(learn/deploy/peer_ensemble.py). Exchange does nothing to training: averaged weights are compared with it.
"""

from __future__ import annotations

from gossipseg.algos.base import Algorithm


class GossipEnsemble(Algorithm):
    """Visitors neither train nor touch the local weights; they predict."""

    name = "gossip_ensemble"
    exchanges = True
    averages = False
    takes_over = False
    sends_average = True
