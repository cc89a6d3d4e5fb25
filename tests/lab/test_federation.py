"""Whole runs in virtual time: the same twice, and what dropout, late joining and heterogeneity do to them."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gossipseg.lab.simulation import pooled
from gossipseg.lab.simulation.training import DataCache
from gossipseg.learn.data.datalist import load_cases
from gossipseg.learn.data.patches import TrainBatches
from gossipseg.learn.settings import read_settings
from tests.lab import rig


@pytest.fixture(scope="module")
def cache() -> DataCache:
    return DataCache()


@pytest.mark.slow
def test_the_same_seed_gives_the_same_run_bit_by_bit(hospitals: Path, cache: DataCache) -> None:
    made = rig.plan(hospitals, "gcml[gossip.sender_rate=1,gossip.warmup_rounds=0]", rounds=4)
    first, again = rig.run(made, cache), rig.run(made, DataCache())
    assert sum(row["merged"] for row in first.values()) > 0, "models must have met for this to mean anything"
    assert rig.timeless(first) == rig.timeless(again)
    other = rig.run(rig.plan(hospitals, made.label, rounds=3, seed=1), cache)
    assert {s: r["cases"] for s, r in other.items()} != {s: r["cases"] for s, r in first.items()}


def test_all_algorithms_begin_alike_and_see_the_same_batches(hospitals: Path, cache: DataCache) -> None:
    """Before models meet nothing differs: in a single round of warm-up even gossip is training alone."""
    alone = rig.run(rig.plan(hospitals, "local", rounds=1), cache)
    for algorithm in ("gossip_average", "gcml", "fedavg"):
        other = rig.run(rig.plan(hospitals, algorithm, rounds=1), cache)
        assert {s: r["cases"] for s, r in other.items()} == {s: r["cases"] for s, r in alone.items()}


@pytest.mark.slow
def test_alone_nothing_moves_and_pooled_trains_as_much_as_all_sites(
    hospitals: Path, cache: DataCache
) -> None:
    local = rig.run(rig.plan(hospitals, "local"), cache)
    assert all(r["model_bytes_out"] == r["sent"] == r["merged"] == 0 for r in local.values())
    assert [r["gradient_evaluations"] for r in local.values()] == [4, 4, 4]
    together = rig.run(rig.plan(hospitals, "pooled"), cache)
    assert [r["gradient_evaluations"] for r in together.values()] == [4, 4, 4]
    assert [r["steps"] for r in together.values()] == [12, 12, 12], "one model took all of them"
    assert set(together) == set(local) == {"lakeside", "north", "valley"}
    one = rig.run(rig.plan(hospitals, "pooled[steps=site]"), cache)
    assert {r["steps"] for r in one.values()} == {4}
    for site in local:
        assert [c["id"] for c in together[site]["cases"]] == [c["id"] for c in local[site]["cases"]]


def test_pooled_draws_its_patches_evenly_from_the_sites(
    hospitals: Path, cache: DataCache, tmp_path: Path
) -> None:
    """A site that kept a quarter of its cases has as many patches as each of the others."""
    made = rig.plan(hospitals, "pooled", heterogeneity="cases:north")
    pool = pooled._Pooled(made, tmp_path, cache, lambda steps, text: None)
    sizes = {name: context.cases for name, context in pool._contexts.items()}
    assert sizes["north"] < min(sizes["lakeside"], sizes["valley"])
    whose = [name for name, size in sizes.items() for _ in range(size)]
    union = load_cases(read_settings(pool._training.trainer.settings.spec).data, "pooled").training
    own = [load_cases(read_settings(spec).data, name).training for name, spec in pool._specs.items()]
    listed = [case.files for cases in own for case in cases]
    assert [case.files for case in union] == listed and len(listed) == len(whose), "site after site"
    batches, rng = pool._training.trainer.site._batches, np.random.default_rng(0)
    assert isinstance(batches, TrainBatches)
    drawn = Counter(whose[batches._draw(rng)] for _ in range(3000))
    assert all(drawn[name] == pytest.approx(1000, abs=100) for name in sizes)


def test_pooled_ends_with_its_last_round_and_not_before(
    hospitals: Path, cache: DataCache, tmp_path: Path
) -> None:
    """The end is the plan's: the trainer knows of none, but of the whole cosine."""
    for given, cosine in ((), 2), (("training.rounds=9",), 9), (("training.schedule_rounds=5",), 5):
        made = rig.plan(hospitals, "pooled", settings=given)
        run = pooled._Pooled(
            made, tmp_path / f"{cosine}", cache, lambda steps, text: None
        )._training.trainer.run
        assert run.settings.training.cosine_rounds == cosine
        assert not any(run.is_last(number) for number in range(1, made.rounds + 1))


@pytest.mark.slow
def test_fedavg_moves_two_models_a_round_for_each_site_but_the_coordinator(
    hospitals: Path, cache: DataCache
) -> None:
    """The global model of the last round's updates is made, too, and kept; no worker begins with it."""
    rows = rig.run(rig.plan(hospitals, "fedavg", rounds=4), cache)
    assert sum(r["sent"] for r in rows.values()) == 2 * 2 * 4
    assert all(r["merged"] == 3 and r["warnings"] == [] for r in rows.values())
    assert sum(r["model_bytes_out"] for r in rows.values()) == sum(r["model_bytes_in"] for r in rows.values())
    size = rows["north"]["wire_model_bytes"]
    assert sum(r["model_bytes_out"] for r in rows.values()) / 16 == pytest.approx(size, rel=0.5, abs=30_000)
    seldom = rig.run(rig.plan(hospitals, "fedavg@3", rounds=4), cache)
    assert sum(r["sent"] for r in seldom.values()) == 2 * 2 * 1


def test_what_each_model_would_have_had_alone_is_told(hospitals: Path, cache: DataCache) -> None:
    rows = rig.run(rig.plan(hospitals, "fedavg", rounds=3), cache)
    alone = rig.run(rig.plan(hospitals, "local", rounds=3), cache)
    without = rig.run(rig.plan(hospitals, "fedavg[training.personal=none]", rounds=3), cache)
    for site, row in rows.items():
        assert row["members"].keys() == {"personal", "shared", "half"}
        assert row["members"]["personal"] == pytest.approx(alone[site]["dice_test"])
        assert row["members"]["shared"] == pytest.approx(without[site]["dice_test"])
        assert row["deployed"]["name"] in ("mix", "personal") and row["deployed"]["weights"]
        assert row["gradient_evaluations"] == 2 * alone[site]["gradient_evaluations"]
        assert "members" not in alone[site] and "deployed" not in without[site]


def test_sites_of_three_architectures_share_one_model(hospitals: Path, cache: DataCache) -> None:
    own = {"north": "segresnet", "valley": "unet"}
    options = ",".join(
        f"site.{n}.personal_network.name={v},site.{n}.personal_network.width=4" for n, v in own.items()
    )
    made = rig.plan(hospitals, f"gcml[{options}]", rounds=3)
    rows, plain = rig.run(made, cache), rig.run(rig.plan(hospitals, "gcml", rounds=3), cache)
    assert set(own) < set(made.sites)
    for site, row in rows.items():
        assert row["deployed"]["name"] in ("mix", "personal") and row["warnings"] == []
        same = row["members"]["personal"] == plain[site]["members"]["personal"]
        assert same == (site not in own), "mutual learning leaves the personal model alone"
        assert row["wire_model_bytes"] == plain[site]["wire_model_bytes"]


def test_what_the_others_sent_is_what_came(hospitals: Path, cache: DataCache) -> None:
    rows = rig.run(
        rig.plan(hospitals, "gossip_average[gossip.sender_rate=1,gossip.warmup_rounds=0]", rounds=3), cache
    )
    assert sum(r["sent"] for r in rows.values()) > 0
    for row in rows.values():
        assert row["sent"] == sum(row["sent_to"].values())
        assert row["merged"] == sum(row["merged_from"].values())
        assert row["bytes_out"] > row["model_bytes_out"]


# ---------------------------------------------------------------- made harder on purpose


@pytest.mark.slow
def test_sites_that_vanish_are_missed_and_come_back(hospitals: Path, cache: DataCache) -> None:
    made = rig.plan(hospitals, "fedavg", rounds=5, site_dropout=0.6)
    rows = rig.run(made, cache)
    assert sum(r["absences"] for r in rows.values()) >= 2
    assert all(0 < r["rounds"] <= 5 for r in rows.values()), "all end, whatever rounds they were away for"
    noted = [set(r["notes"]) for r in rows.values()]
    assert any("member_suspect" in n or "member_dead" in n for n in noted), "their silence is noticed"
    assert rig.timeless(rows) == rig.timeless(rig.run(made, cache))


def test_training_alone_does_not_care_who_vanishes(hospitals: Path, cache: DataCache) -> None:
    calm = rig.run(rig.plan(hospitals, "local"), cache)
    rough = rig.run(rig.plan(hospitals, "local", site_dropout=0.9), cache)
    assert {s: r["cases"] for s, r in rough.items()} == {s: r["cases"] for s, r in calm.items()}


def test_a_late_joiner_has_fewer_rounds_and_ends_with_the_others(hospitals: Path, cache: DataCache) -> None:
    rows = rig.run(rig.plan(hospitals, "gcml", rounds=4, late_join=("valley:3",)), cache)
    assert {s: r["rounds"] for s, r in rows.items()} == {"lakeside": 4, "north": 4, "valley": 2}
    assert rows["valley"]["gradient_evaluations"] < rows["north"]["gradient_evaluations"]
    began_s = {site: row["virtual_seconds"][0] for site, row in rows.items()}
    assert began_s == {"lakeside": 0.0, "north": 0.0, "valley": 4.0}, "two rounds of two steps of a second"


@pytest.mark.parametrize("algorithm", ["gcml", "fedavg"])
def test_slow_and_fast_sites_all_finish(algorithm: str, hospitals: Path, cache: DataCache) -> None:
    rows = rig.run(rig.plan(hospitals, algorithm, rounds=3, heterogeneity="speed"), cache)
    assert {r["rounds"] for r in rows.values()} == {3}
    if algorithm == "fedavg":
        assert all(r["merged"] == 2 for r in rows.values())
        assert all(r["left_out"] == 0 for r in rows.values()), "the coordinator waits for the slowest"
    else:
        took_s = [row["virtual_seconds"][1] for row in rows.values()]
        assert took_s == sorted(took_s), "by name, from the fastest to the slowest"
        assert 3 < took_s[-1] / took_s[0] < 8, (
            "four times as slow, and rounds with a visitor take twice as long"
        )


@pytest.mark.parametrize("algorithm", ["local", "pooled"])
def test_one_site_keeps_a_quarter_of_its_training_cases(
    algorithm: str, hospitals: Path, cache: DataCache
) -> None:
    rows = rig.run(rig.plan(hospitals, algorithm, heterogeneity="cases:north"), cache)
    full = rig.run(rig.plan(hospitals, algorithm), cache)
    if algorithm == "local":
        assert {s: r["cases_training"] for s, r in rows.items()} == {"lakeside": 4, "north": 2, "valley": 3}
    else:
        assert {r["cases_training"] for r in rows.values()} == {9}
    for site in rows:  # the cases it is judged on stay the same
        assert [c["id"] for c in rows[site]["cases"]] == [c["id"] for c in full[site]["cases"]]


def _always_visits() -> dict[str, Any]:
    return {"rounds": 4, "steps": 4}


@pytest.mark.slow
def test_equal_evaluations_let_two_models_share_the_steps_of_one(hospitals: Path, cache: DataCache) -> None:
    gcml = "gcml[gossip.sender_rate=1,gossip.warmup_rounds=0]"
    free = rig.run(rig.plan(hospitals, gcml, **_always_visits()), cache)
    equal = rig.run(rig.plan(hospitals, gcml, equal_evaluations=True, **_always_visits()), cache)
    assert max(r["gradient_evaluations"] for r in free.values()) > 16, "a visit costs two models' gradients"
    visited = [s for s, r in equal.items() if r["merged"]]
    assert visited
    assert all(r["gradient_evaluations"] == 16 for r in equal.values())
    ditto = rig.run(rig.plan(hospitals, "ditto", equal_evaluations=True, **_always_visits()), cache)
    assert all(r["gradient_evaluations"] == 16 for r in ditto.values())
    assert all(r["steps"] == 8 for r in ditto.values())


@pytest.mark.slow
def test_the_tail_is_the_mean_over_the_last_tenth_of_the_rounds(hospitals: Path, cache: DataCache) -> None:
    rows = rig.run(rig.plan(hospitals, "local", rounds=20, steps=1), cache)
    for row in rows.values():
        last = dict(row["curve"])
        assert sorted(last) == list(range(1, 21)), "validated every round at twenty rounds"
        assert row["dice_val_tail"] == pytest.approx((last[19] + last[20]) / 2)
        assert row["dice_val"] == last[20]
        assert math.isfinite(row["dice_test"])
