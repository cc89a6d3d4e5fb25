"""A comparison with `--set training.shadow_local=true`: what it costs, and what its rows say."""

from __future__ import annotations

from pathlib import Path

import pytest

from gossipseg.errors import ConfigError
from gossipseg.lab.experiment.progress import expected
from gossipseg.lab.simulation import federation
from gossipseg.lab.simulation.training import DataCache
from tests.lab import rig

SHADOW = "training.shadow_local=true"


@pytest.mark.slow
def test_a_shadow_is_deployed_with_the_model_and_costs_a_second_training(hospitals: Path) -> None:
    cache, gossip = DataCache(), "gossip_average[gossip.sender_rate=1,gossip.warmup_rounds=0]"
    fast = ("training.learning_rate=0.05", "training.ema_decay=0")
    plain = rig.run(rig.plan(hospitals, gossip, rounds=4, settings=fast), cache)
    shadowed = rig.run(rig.plan(hospitals, gossip, rounds=4, settings=(*fast, SHADOW)), cache)
    for site, row in shadowed.items():
        assert row["gradient_evaluations"] == 2 * plain[site]["gradient_evaluations"]
        verdict = row["deployed"]
        assert verdict["deployed"] == "averaged" and verdict["cases"] < 15, "few cases decide nothing"
        assert row["steps"] == plain[site]["steps"] and row["cases"] and "deployed" not in plain[site]
    assert any(row["cases"] != plain[site]["cases"] for site, row in shadowed.items())


def test_local_is_its_own_shadow(hospitals: Path) -> None:
    with pytest.raises(ConfigError, match="shadow_local"):
        rig.plan(hospitals, "local", settings=(SHADOW,))
    assert rig.plan(hospitals, f"gcml[{SHADOW}]").parsed().training.shadow_local


@pytest.mark.slow
def test_progress_counts_steps_however_many_models_take_them(hospitals: Path) -> None:
    plan = rig.plan(hospitals, f"gcml[{SHADOW},gossip.sender_rate=1,gossip.warmup_rounds=0]", rounds=4)
    told: list[int] = []
    rows = federation.run(plan, DataCache(), lambda steps, text: told.append(steps))
    assert any(row["merged"] for row in rows), "in some rounds three models train"
    assert sum(told) == expected(plan)
