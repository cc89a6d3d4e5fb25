"""A personal model is trained once for all runs of a comparison, and no figure changes by it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gossipseg.errors import ConfigError, LocalError
from gossipseg.lab.plan.run_plans import RunPlan
from gossipseg.lab.simulation import lone_pair
from gossipseg.lab.simulation.training import DataCache
from tests.lab import rig


@pytest.fixture(scope="module")
def cache() -> DataCache:
    return DataCache()


def _kept(plan: RunPlan, folder: Path) -> RunPlan:
    return replace(plan, personal_records=str(folder))


def _records(folder: Path) -> list[str]:
    return sorted(f.parent.name.split("-seed")[0] + "/" + f.name for f in folder.rglob("*.safetensors"))


def _lone(hospitals: Path, folder: Path, cache: DataCache, **options: Any) -> dict[str, dict[str, Any]]:
    made = _kept(rig.plan(hospitals, "lone_pair", rounds=2, **options), folder)
    return {row["site"]: row for row in lone_pair.run(made, cache, lambda steps, text: None)}


@pytest.mark.slow
@pytest.mark.parametrize("first", ["local", "fedavg", "gcml[mutual=shared]"])
def test_what_was_recorded_gives_the_same_figures(
    hospitals: Path, cache: DataCache, tmp_path: Path, first: str
) -> None:
    """Bit for bit, whichever algorithm trained it; the gradients count as if it were trained again."""
    rig.run(_kept(rig.plan(hospitals, first, rounds=4), tmp_path), cache)
    rounds = ("000001", "000002", "000003", "000004")
    assert _records(tmp_path) == [
        f"{site}/round-{r}.safetensors" for site in ("lakeside", "north", "valley") for r in rounds
    ]
    held = {f: f.stat().st_mtime_ns for f in tmp_path.rglob("*.safetensors")}
    made = rig.plan(hospitals, "gossip_average[gossip.sender_rate=1,gossip.warmup_rounds=0]", rounds=4)
    trained, read = rig.run(made, cache), rig.run(_kept(made, tmp_path), cache)
    assert rig.timeless(read) == rig.timeless(trained)
    assert sum(row["merged"] for row in read.values()) > 0
    assert {f: f.stat().st_mtime_ns for f in tmp_path.rglob("*.safetensors")} == held


@pytest.mark.slow
def test_a_record_is_of_one_seed_one_training_and_one_list_of_cases(
    hospitals: Path, cache: DataCache, tmp_path: Path
) -> None:
    made = rig.plan(hospitals, "local", rounds=1)
    for plan in (
        made,
        rig.plan(hospitals, "local", rounds=1, seed=1),
        rig.plan(hospitals, "local", rounds=2),
        rig.plan(hospitals, "local[training.learning_rate=0.01]", rounds=1),
        rig.plan(hospitals, "local[training.batch_size=1]", rounds=1),
        rig.plan(hospitals, "local", rounds=1, heterogeneity="cases:north"),
    ):
        rig.run(_kept(plan, tmp_path), cache)
    folders = [f.name.split("-seed")[0] for f in tmp_path.iterdir()]
    assert {site: folders.count(site) for site in set(folders)} == {"lakeside": 5, "valley": 5, "north": 6}


@pytest.mark.slow
@pytest.mark.parametrize(
    "algorithm", ["ditto", "gcml[mutual=both]", "fedavg[training.personal_from_round=2]", "fedavg_finetune"]
)
def test_a_personal_model_that_is_not_as_local_has_it_is_neither_kept_nor_read(
    hospitals: Path, cache: DataCache, tmp_path: Path, algorithm: str
) -> None:
    rounds = 8 if algorithm == "fedavg_finetune" else 2
    made = rig.plan(hospitals, algorithm, rounds=rounds)
    without = rig.run(made, cache)
    rig.run(_kept(made, tmp_path), cache)
    assert _records(tmp_path) == []
    rig.run(_kept(rig.plan(hospitals, "local", rounds=rounds), tmp_path), cache)
    assert rig.timeless(rig.run(_kept(made, tmp_path), cache)) == rig.timeless(without)


@pytest.mark.slow
def test_a_personal_model_with_a_network_of_its_own_has_a_record_of_its_own(
    hospitals: Path, cache: DataCache, tmp_path: Path
) -> None:
    rig.run(_kept(rig.plan(hospitals, "local", rounds=2), tmp_path), cache)
    own = "site.north.personal_network.name=segresnet,site.north.personal_network.width=4"
    made = rig.plan(hospitals, f"gossip_average[gossip.sender_rate=1,gossip.warmup_rounds=0,{own}]", rounds=2)
    trained = rig.run(made, cache)
    assert rig.timeless(rig.run(_kept(made, tmp_path), cache)) == rig.timeless(trained)
    folders = [f.name.split("-seed")[0] for f in tmp_path.iterdir()]
    assert {site: folders.count(site) for site in set(folders)} == {"lakeside": 1, "valley": 1, "north": 2}
    assert rig.timeless(rig.run(_kept(made, tmp_path), cache)) == rig.timeless(trained), "all are read"


@pytest.mark.slow
def test_two_lone_models_predict_together(hospitals: Path, cache: DataCache, tmp_path: Path) -> None:
    alone = rig.run(_kept(rig.plan(hospitals, "local", rounds=2), tmp_path), cache)
    rows = _lone(hospitals, tmp_path, cache)
    second = rig.run(rig.plan(hospitals, "local", rounds=2, seed=lone_pair.SECOND), cache)
    for site, row in rows.items():
        assert row["members"]["personal"] == pytest.approx(alone[site]["dice_test"])
        assert row["members"]["shared"] == pytest.approx(second[site]["dice_test"])
        assert row["gradient_evaluations"] == 2 * alone[site]["gradient_evaluations"]
        assert row["model_bytes_out"] == 0 and row["deployed"]["weights"]
        assert (row["dice_test"], row["seed"]) == (pytest.approx(row["dice_test"]), 0)
    assert rig.timeless(_lone(hospitals, tmp_path, cache)) == rig.timeless(rows)


@pytest.mark.slow
def test_two_lone_models_of_sites_that_come_late_are_refused(
    hospitals: Path, cache: DataCache, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="lone models need sites that are all there"):
        _lone(hospitals, tmp_path, cache, late_join=("north:2",))


@pytest.mark.slow
def test_a_record_with_a_hole_is_named(hospitals: Path, cache: DataCache, tmp_path: Path) -> None:
    made = _kept(rig.plan(hospitals, "local", rounds=2), tmp_path)
    rig.run(made, cache)
    for file in tmp_path.rglob("round-000001.safetensors"):
        file.unlink()
    with pytest.raises(LocalError, match="round 1 of a recorded personal model is missing"):
        rig.run(_kept(rig.plan(hospitals, "fedavg", rounds=2), tmp_path), cache)
    shutil.rmtree(tmp_path)
    assert rig.run(_kept(rig.plan(hospitals, "fedavg", rounds=2), tmp_path), cache)
