"""`local`: no exchange. Each site trains alone, L = L_seg; the floor of every comparison.

A control of ours [O], no paper: the same step, batches and EMA as every other algorithm, so that what an
exchange gains is always shown against doing without it.
"""

from __future__ import annotations

from gossipseg.algos.base import Algorithm


class Local(Algorithm):
    """Trains on the site's own data; nothing is sent, nothing is taken in."""

    name = "local"
