"""Exchanges spaced by the summed learning rate, in whole federations: which rounds, and which bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gossipseg.config.exchange import exchange_times
from gossipseg.errors import ConfigError
from gossipseg.lab.plan import run_plans
from gossipseg.lab.simulation.training import DataCache
from gossipseg.learn import protocol
from gossipseg.learn.training.trainer import Trainer
from tests.lab import rig

ROUNDS = 8
BY_RATE = "fedavg[exchange_at.summed_rate=0.3,training.personal=none]"


def test_a_coordinator_exchanges_at_the_rounds_that_the_sum_gives(
    hospitals: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders: list[protocol.StartRound] = []
    run_round = Trainer.run_round

    def spy(self: Trainer, order: protocol.StartRound) -> protocol.RoundDone:
        orders.append(order)
        return run_round(self, order)

    monkeypatch.setattr(Trainer, "run_round", spy)
    cache = DataCache()
    made = rig.plan(hospitals, BY_RATE, rounds=ROUNDS)
    assert exchange_times(made.parsed()).ends == (2, 4), "a cosine of 8 rounds, the share 0.3"
    seldom = rig.run(made, cache)
    assert {site: row["rounds"] for site, row in seldom.items()} == dict.fromkeys(seldom, ROUNDS)
    for site in range(len(seldom)):
        mine = sorted(orders[site :: len(seldom)], key=lambda o: o.round)
        assert len(mine) == ROUNDS
    assert sorted(o.round for o in orders if o.export) == sorted([2, 4] * len(seldom))
    assert sorted(o.round for o in orders if o.start_from) == sorted([3, 5] * len(seldom))
    assert {o.ahead for o in orders} == {0}, "the learning rate goes by the federation's round"
    each = rig.run(rig.plan(hospitals, "fedavg[training.personal=none]", rounds=ROUNDS), cache)
    moved = [sum(row["model_bytes_out"] for row in rows.values()) for rows in (seldom, each)]
    assert moved[0] / moved[1] == pytest.approx(2 / ROUNDS, rel=0.01)


@pytest.mark.parametrize("way", ["swap", "push"])
def test_gossip_is_spaced_alike(hospitals: Path, way: str) -> None:
    """A constant rate: a quarter of the sum is a quarter of the rounds."""
    settings = (
        f"gossip.exchange={way}",
        "gossip.warmup_rounds=0",
        "gossip.sender_rate=1",
        "training.schedule=constant",
        "network.width=1",
    )
    cache, sent, bytes_out = DataCache(), {}, {}
    for when in ("every_rounds=1", "every_rounds=3", "summed_rate=0.25"):
        name = f"gossip_average[training.personal=none,exchange_at.{when}]"
        rows = rig.run(rig.plan(hospitals, name, rounds=12, settings=settings), cache)
        sent[when] = sum(row["sent"] for row in rows.values())
        bytes_out[when] = sum(row["model_bytes_out"] for row in rows.values())
        assert {row["rounds"] for row in rows.values()} == {12}
    assert sent["every_rounds=3"] == sent["summed_rate=0.25"], "the same rounds, the same draws"
    assert 0 < sent["every_rounds=3"] <= 0.5 * sent["every_rounds=1"], "the third site, too"
    assert bytes_out["summed_rate=0.25"] <= 0.51 * bytes_out["every_rounds=1"]


def test_settings_that_do_not_go_together_are_told(hospitals: Path) -> None:
    with pytest.raises(ConfigError, match=r"exchange_at.every_rounds \(3\) both say when"):
        rig.plan(hospitals, "fedavg@3[exchange_at.summed_rate=0.3]")
    with pytest.raises(ConfigError, match="local exchanges nothing"):
        rig.plan(hospitals, "local[every_rounds=3]")
    common = ("exchange_at.summed_rate=0.3",)
    assert exchange_times(rig.plan(hospitals, "fedavg@2", settings=common).parsed()).every_rounds == 2
    assert rig.plan(hospitals, "local", settings=common).name == "local"


def test_finished_runs_of_earlier_versions_are_found_again(
    hospitals: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What identifies a run is as it was, where earlier versions could run it."""
    told: dict[str, dict[str, Any]] = {}
    for algorithm in ("fedavg", "fedavg@2", "gossip_average", BY_RATE):
        monkeypatch.setattr(run_plans, "digest", lambda said, a=algorithm: told.setdefault(a, said) and "")
        rig.plan(hospitals, algorithm)
    assert told["fedavg"]["algorithm"]["every_rounds"] == 1
    assert told["fedavg@2"]["algorithm"]["every_rounds"] == 2
    assert told["fedavg@2"]["variant"] == ["fedavg", ("every_rounds", "2")]
    assert told["gossip_average"]["algorithm"].keys() == {"name", "private_norm"}
    assert told[BY_RATE]["algorithm"]["exchange_at.summed_rate"] == 0.3
    assert "every_rounds" not in told[BY_RATE]["algorithm"]
