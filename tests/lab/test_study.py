"""The user's choices: what is refused, what makes two runs different."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gossipseg.errors import ConfigError, DataError
from gossipseg.lab import study, variants
from gossipseg.lab.study import Replicate, Wanted
from tests.lab import rig


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({"rounds": 0}, "--rounds = 0"),
        ({"rounds": -2}, "at least 1"),
        ({"sites": "nroth"}, "no such site"),
        ({"sites": "7"}, "has 3 sites"),
        ({"site_dropout": 1.0}, "--site-dropout"),
        ({"site_dropout": float("nan")}, "--site-dropout"),
        ({"late_join": ("nowhere:2",)}, "--late-join = 'nowhere'"),
        ({"late_join": ("north:1",)}, "a round from 2"),
        ({"late_join": ("north:99",)}, "a round from 2"),
        ({"late_join": ("north",)}, "--late-join"),
        ({"heterogeneity": "colour"}, "speed: sites differ"),
        ({"heterogeneity": "cases:nowhere"}, "no such site"),
        ({"settings": ("training.learning_rate",)}, "--set"),
        ({"settings": ("training.lerning_rate=1",)}, "Did you mean"),
        ({"settings": ("algorithm.name=gcml",)}, "is not set so"),
        ({"settings": ("training.batch_size=0",)}, "batch_size"),
    ],
)
def test_wrong_choices_are_refused_in_words(hospitals: Path, wanted: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        study.study(Wanted(hospitals, **{"rounds": 4, **wanted}))


def test_a_folder_without_sites_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        study.study(Wanted(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="holds no site"):
        study.study(Wanted(tmp_path))


def test_a_site_without_test_labels_cannot_be_compared(hospitals: Path, tmp_path: Path) -> None:
    site = tmp_path / "bare"
    site.mkdir()
    (site / "dataset.json").write_text(
        (hospitals / "north" / "dataset.json").read_text().replace('"test"', '"unused"')
    )
    for kind in ("images", "masks"):
        (site / kind).symlink_to(hospitals / "north" / kind)
    with pytest.raises(ConfigError, match="no labelled test case"):
        study.study(Wanted(tmp_path))


@pytest.mark.parametrize("text", ["", "a", "1.5", "-1", "0;1", str(2**32)])
def test_seeds_are_whole_numbers(text: str) -> None:
    with pytest.raises(ConfigError, match="--seeds"):
        study.read_replicates(text, "0")


def test_seeds_and_splits_are_crossed_or_paired() -> None:
    def read(seeds: str, splits: str) -> list[tuple[int, int]]:
        return [(r.seed, r.split) for r in study.read_replicates(seeds, splits)]

    assert read("2, 0,2", "0") == [(2, 0), (0, 0)]
    assert read("0,1", "0,3") == [(0, 0), (1, 0), (0, 3), (1, 3)]
    assert read("0,1,2", "each") == [(0, 0), (1, 1), (2, 2)]
    with pytest.raises(ConfigError, match="--splits"):
        read("0", "every")


def test_exchange_needs_two_sites(hospitals: Path) -> None:
    for algorithm in ("gcml", "fedavg", "gossip_average"):
        with pytest.raises(ConfigError, match="needs 2 sites or more") as caught:
            rig.plan(hospitals, algorithm, sites="north")
        assert caught.value.exit_code == 78
    for algorithm in ("local", "pooled"):
        assert rig.plan(hospitals, algorithm, sites="north").name == algorithm


def test_fine_tuning_must_leave_a_round_to_learn_together(hospitals: Path) -> None:
    with pytest.raises(ConfigError, match="finetune_rounds=1"):
        rig.plan(hospitals, "fedavg_finetune", rounds=4)
    assert rig.plan(hospitals, "fedavg_finetune[finetune_rounds=1]", rounds=4).name == "fedavg_finetune"


def test_the_fingerprint_changes_with_whatever_changes_results(hospitals: Path) -> None:
    made = [
        rig.plan(hospitals, "gcml"),
        rig.plan(hospitals, "gcml", seed=1),
        rig.plan(hospitals, "gcml", rounds=3),
        rig.plan(hospitals, "gcml[lambda=0]"),
        rig.plan(hospitals, "local"),
        rig.plan(hospitals, "pooled"),
        rig.plan(hospitals, "gcml", sites="2"),
        rig.plan(hospitals, "gcml", settings=("training.learning_rate=1e-4",)),
        rig.plan(hospitals, "gcml", site_dropout=0.1),
        rig.plan(hospitals, "gcml", heterogeneity="speed"),
        rig.plan(hospitals, "gcml", late_join=("north:2",)),
        rig.plan(hospitals, "gcml", equal_evaluations=True),
    ]
    assert len({m.settings for m in made}) == len(made)
    assert made[0].settings == rig.plan(hospitals, "gcml").settings


def test_validation_is_due_about_twenty_times(hospitals: Path) -> None:
    def every(**wanted: Any) -> int:
        return rig.plan(hospitals, "local", **wanted).parsed().training.validate_every_rounds

    assert every(rounds=6) == 1
    assert every(rounds=200) == 10
    assert every(rounds=200, settings=("training.validate_every_rounds=3",)) == 3


def test_runs_are_planned_seed_by_seed(hospitals: Path) -> None:
    common = study.study(Wanted(hospitals, rounds=2))
    made = study.plans(common, variants.parse("local,gcml[lambda=0]"), [Replicate(3), Replicate(5)], None)
    assert [(m.label, m.seed) for m in made] == [
        ("local", 3), ("gcml[lambda=0]", 3), ("local", 5), ("gcml[lambda=0]", 5)
    ]  # fmt: skip
    assert len({m.key for m in made}) == 4
    assert made[0].federation["seed"] == 3
