"""`fedbn`: FedAvg without the normalisation layers (Li 2021, arXiv 2102.07623).

Standing: textbook. Equation (1) of fedavg.py over all tensors but those of the normalisation layers, which
stay at each site.
"""

from __future__ import annotations

from gossipseg.algos.fedavg import FedAvg


class FedBn(FedAvg):
    """FedAvg with private normalisation layers (given as private names)."""

    name = "fedbn"
