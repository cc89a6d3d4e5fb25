"""A comparison with `gossip_ensemble`: it trains as `local` does, moves models, and predicts with them."""

from __future__ import annotations

from pathlib import Path

import pytest

from gossipseg.lab.simulation.training import DataCache
from tests.lab import rig

OFTEN = "gossip.sender_rate=1,gossip.warmup_rounds=0"
FAST = ("training.learning_rate=0.05", "training.ema_decay=0")


@pytest.mark.slow
def test_it_costs_local_training_and_deploys_no_less_than_its_own_model(hospitals: Path) -> None:
    cache = DataCache()
    alone = rig.run(rig.plan(hospitals, "local", rounds=4, settings=FAST), cache)
    together = rig.run(rig.plan(hospitals, f"gossip_ensemble[{OFTEN}]", rounds=4, settings=FAST), cache)
    for site, row in together.items():
        assert row["gradient_evaluations"] == alone[site]["gradient_evaluations"]
        assert row["model_bytes_in"] > 0 and row["merged"] == 0
        verdict = row["deployed"]
        assert verdict["dice"] == alone[site]["dice_val"], "its own model is that of training alone"
        assert verdict["dice_ensemble"] == row["dice_val"] >= verdict["dice"]
        assert (verdict["deployed"] == "ensemble") == bool(verdict["members"])
        if not verdict["members"]:
            assert row["cases"] == alone[site]["cases"]
    assert any(row["deployed"]["held"] for row in together.values())
