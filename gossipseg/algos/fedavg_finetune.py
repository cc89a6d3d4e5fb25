"""`fedavg_finetune`: FedAvg, and then the last rounds alone.

Standing: a usual control. Equation (1) of fedavg.py, and training alone from the last global model W: the
schedule has it (`finetune_rounds`), and nothing else differs.
"""

from __future__ import annotations

from gossipseg.algos.fedavg import FedAvg


class FedAvgFinetune(FedAvg):
    """FedAvg whose last rounds are trained alone (a matter of its schedule)."""

    name = "fedavg_finetune"
