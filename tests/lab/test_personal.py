"""Personal models that travel, in the lab: fetched, chosen from and paid for in whole runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from gossipseg.lab.simulation.training import DataCache, numbers
from gossipseg.testbed import synthetic
from tests.lab import rig

EVERY_4 = "gossip.personal_every_rounds=4"
LABEL = f"gossip_average[{EVERY_4}]"


@pytest.fixture(scope="module")
def wards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three sites of eight validation patients, and one of three."""
    root = tmp_path_factory.mktemp("wards")
    four = synthetic.hospitals(4)
    sizes = [(6, 8, 1), (6, 8, 1), (6, 8, 1), (6, 3, 1)]
    small = [replace(h, cases=cases) for h, cases in zip(four, sizes, strict=True)]
    synthetic.write_federation(root, small, seed=1, size_px=40)
    return root


@pytest.fixture(scope="module")
def cache() -> DataCache:
    return DataCache()


@pytest.fixture(scope="module")
def rows(wards: Path, cache: DataCache) -> rig.Rows:
    return rig.run(rig.plan(wards, LABEL, rounds=8, steps=4), cache)


def poor(rows: rig.Rows) -> str:
    """The site with too few validation patients."""
    return next(site for site, row in rows.items() if not row["personal_bytes_in"])


def test_only_sites_with_eight_validation_patients_fetch(rows: rig.Rows) -> None:
    fetching = [site for site, row in rows.items() if row["personal_bytes_in"]]
    assert len(fetching) == 3 and not rows[poor(rows)]["deployed"]["peers"]
    for site in fetching:
        peers = rows[site]["deployed"]["peers"]
        assert sorted(peers) == sorted(f"personal of {s}" for s in rows if s != site)
        assert all(dice is not None for dice in peers.values())


def test_every_fetch_is_in_int8_and_counted(rows: rig.Rows) -> None:
    for site, row in rows.items():
        sent, received = row["notes"].get("personal_sent", 0), row["notes"].get("personal_received", 0)
        assert row["personal_bytes_out"] <= row["model_bytes_out"] <= row["bytes_out"]
        assert row["personal_bytes_in"] <= row["model_bytes_in"] <= row["bytes_in"]
        if received:  # three a refresh: after round 4, and at the end
            assert 3 <= received <= 6, site
            per_fetch = row["personal_bytes_in"] / received
            assert 0.5 * row["wire_model_bytes"] < per_fetch < 0.9 * row["wire_model_bytes"], "and its names"
        assert sent, "the site that fetches none is asked all the same"
    out, into = (sum(row[f"personal_bytes_{way}"] for row in rows.values()) for way in ("out", "in"))
    assert out == into > 0


def test_without_fetches_only_the_choice_differs(wards: Path, cache: DataCache, rows: rig.Rows) -> None:
    without = rig.run(rig.plan(wards, f"{LABEL[:-1]},gossip.personal_fetches=0]", rounds=8, steps=4), cache)
    for site, row in without.items():
        assert row["personal_bytes_in"] == row["personal_bytes_out"] == 0
        assert row["members"]["personal"] == rows[site]["members"]["personal"], "it is never mixed"


@pytest.mark.slow
@pytest.mark.parametrize(
    "label",
    [LABEL, f"gcml[gossip.exchange=swap,{EVERY_4}]", f"fedavg[training.personal=always,{EVERY_4}]"],
)
def test_runs_are_the_same_twice(wards: Path, cache: DataCache, label: str) -> None:
    made = rig.plan(wards, label, rounds=5, steps=3)
    first, again = rig.run(made, cache), rig.run(made, DataCache())
    assert sum(row["personal_bytes_in"] for row in first.values()) > 0
    assert rig.timeless(first) == rig.timeless(again)


@pytest.mark.slow
def test_a_recorded_model_travels_as_a_trained_one_does(
    wards: Path, cache: DataCache, tmp_path: Path
) -> None:
    """Rounds that are validated, and rounds in which it is sent, need not be the same."""
    apart = "gossip.personal_every_rounds=2,training.validate_every_rounds=3"
    made = rig.plan(wards, f"gossip_average[{apart}]", rounds=5, steps=3)
    kept = replace(made, personal_records=str(tmp_path))
    trained = rig.run(made, cache)
    rig.run(replace(rig.plan(wards, f"local[{apart}]", rounds=5, steps=3), personal_records=str(tmp_path)))
    files = {f.name for f in tmp_path.rglob("*.safetensors")}
    assert files == {f"round-00000{number}.safetensors" for number in (2, 3, 4, 5)}
    assert rig.timeless(rig.run(kept, cache)) == rig.timeless(trained)
    assert sum(row["notes"].get("personal_sent", 0) for row in trained.values()) > 6


def test_alone_nobody_is_asked(wards: Path, cache: DataCache) -> None:
    rows = rig.run(rig.plan(wards, "local", rounds=2, steps=2), cache)
    assert all(row["personal_bytes_in"] == row["model_bytes_in"] == 0 for row in rows.values())


@pytest.mark.parametrize("label", ["fedbn[training.personal=always,gossip.personal_every_rounds=2]"])
def test_a_model_with_a_private_part_does_not_travel(wards: Path, cache: DataCache, label: str) -> None:
    rows = rig.run(rig.plan(wards, label, rounds=3, steps=2), cache)
    assert all(row["personal_bytes_out"] == 0 and row["deployed"]["weights"] for row in rows.values())


def test_peers_of_other_networks_are_fetched_and_chosen_from(wards: Path, cache: DataCache) -> None:
    sites = sorted(rig.plan(wards, LABEL, rounds=8, steps=4).sites)
    own = dict(zip(sites, ("segresnet", "unet"), strict=False))
    options = ",".join(
        f"site.{site}.personal_network.name={name},site.{site}.personal_network.width=4"
        for site, name in own.items()
    )
    rows = rig.run(rig.plan(wards, f"{LABEL[:-1]},{options}]", rounds=8, steps=4), cache)
    for site, row in rows.items():
        assert row["notes"].get("personal_refused", 0) == 0, (site, row["notes"])
        if row["personal_bytes_in"]:
            assert sorted(row["deployed"]["peers"]) == sorted(f"personal of {s}" for s in rows if s != site)
    assert sum(1 for row in rows.values() if row["personal_bytes_in"]) == 3


def test_losses_that_are_not_finite_can_be_written_to_a_row() -> None:
    """Of a personal model that has diverged: JSON has no other word for its loss than null."""
    found = numbers([0.5, None, float("nan"), float("inf")])
    assert json.loads(json.dumps(found, allow_nan=False)) == [0.5, None, None, None]


# ---------------------------------------------------------------- a malicious peer


@pytest.fixture(scope="module")
def clinics(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four alike sites of few training cases and eight validation patients: a peer's model helps."""
    root = tmp_path_factory.mktemp("clinics")
    first = synthetic.hospitals(1)[0]
    alike = [replace(first, name=f"clinic{i}", cases=(3, 8, 1)) for i in range(4)]
    synthetic.write_federation(root, alike, seed=3, size_px=40)
    return root


@pytest.mark.parametrize("attack", ["label_flipped", "random_weights", "nan", "scaled"])
@pytest.mark.parametrize(
    "seed",
    [pytest.param(0, marks=pytest.mark.slow), *(pytest.param(s, marks=pytest.mark.faults) for s in (1, 2))],
)
def test_a_malicious_peer_s_model_gets_no_weight_where_an_honest_one_s_does(
    clinics: Path, cache: DataCache, attack: str, seed: int
) -> None:
    label = "gossip_average[gossip.personal_every_rounds=6,training.validate_every_rounds=6]"
    made = rig.plan(clinics, label, seed=seed, rounds=12, steps=10, adversary=(f"clinic3:{attack}",))
    rows = rig.run(made, cache)
    weights = [row["deployed"]["weights"] for row in rows.values()]
    assert len(rows) == 3 and all("personal of clinic3" not in w for w in weights)
    honest = [sum(w for m, w in found.items() if m.startswith("personal of")) for found in weights]
    assert max(honest) > 0.2, honest
    refused = sum(row["notes"].get("personal_refused", 0) for row in rows.values())
    compared = sum("personal of clinic3" in row["deployed"]["peers"] for row in rows.values())
    assert refused + compared > 0, "it came"
    assert not compared or attack in ("label_flipped", "random_weights")
    assert not refused or attack != "label_flipped"
