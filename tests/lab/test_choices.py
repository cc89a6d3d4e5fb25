"""The user's choices: what is refused, and what is read from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from gossipseg.errors import ConfigError, DataError
from gossipseg.lab.plan import choices, run_plans, variants
from gossipseg.lab.plan.choices import WantedRuns
from gossipseg.lab.plan.run_plans import Replicate
from gossipseg.testbed import presets
from tests.lab import rig


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({"rounds": 0}, "--rounds = 0"),
        ({"rounds": -2}, "at least 1"),
        ({"sites": "nroth"}, "no such site"),
        ({"sites": "7"}, "has 3 sites"),
        ({"sites": ""}, "--sites = '': names no site. Write names"),
        ({"sites": " ,"}, "names no site"),
        ({"device": "gpu"}, "--device = 'gpu': is no device. Write cpu, cuda"),
        ({"peers": Path("/nowhere.yaml")}, "--peers = '/nowhere.yaml': no such file. Give the path"),
        ({"site_dropout": 1.0}, "--site-dropout"),
        ({"site_dropout": float("nan")}, "--site-dropout"),
        ({"late_join": ("nowhere:2",)}, "--late-join = 'nowhere'"),
        ({"late_join": ("north:1",)}, "a round from 2"),
        ({"late_join": ("north:99",)}, "a round from 2"),
        ({"late_join": ("north",)}, "--late-join"),
        ({"heterogeneity": "colour"}, "speed: sites differ"),
        ({"heterogeneity": "cases:nowhere"}, "no such site"),
        ({"heterogeneity": "cases:north+nowhere"}, "no such site"),
        ({"settings": ("training.learning_rate",)}, "--set"),
        ({"settings": ("training.lerning_rate=1",)}, "Did you mean"),
        ({"settings": ("algorithm.name=gcml",)}, "is not set so"),
        ({"settings": ("training.batch_size=0",)}, "batch_size"),
        ({"patient_pattern": "(.+)_("}, "--patient-pattern = .*no regular expression"),
        ({"patient_pattern": ".+_.*"}, "one group in brackets"),
    ],
)
def test_wrong_choices_are_refused_in_words(hospitals: Path, wanted: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        choices.read(WantedRuns(hospitals, **{"rounds": 4, **wanted}))


@pytest.mark.parametrize(
    ("written", "wanted", "rounds", "budget"),
    [
        (None, {"rounds": 6}, 6, 6),
        (None, {"rounds": 6, "settings": ("training.rounds=8",)}, 6, 8),
        (None, {"rounds": 6, "settings": ("training.rounds=null",)}, 6, None),
        ({}, {}, 18, 18),
        ({"rounds": 9}, {}, 9, 9),
        ({"rounds": 9}, {"rounds": 6}, 6, 9),
        (None, {"settings": ("training.rounds=12",)}, 12, 12),
        (None, {"settings": ("training.rounds=30",)}, 30, 30),
        ({"rounds": 9}, {"settings": ("training.rounds=12",)}, 12, 12),
        (None, {"settings": ("training.rounds=null",)}, 18, None),
    ],
)
def test_the_rounds_are_the_federations_budget_unless_one_is_set(
    hospitals: Path, tmp_path: Path, written: Any, wanted: dict[str, Any], rounds: int, budget: int | None
) -> None:
    if written is not None:
        sections, _ = presets.from_data(sorted(p for p in hospitals.iterdir() if p.is_dir()))
        sections["training"] |= written
        (tmp_path / "mine.yaml").write_text(yaml.safe_dump(sections))
        wanted = {**wanted, "peers": tmp_path / "mine.yaml"}
    study = choices.read(WantedRuns(hospitals, **wanted))
    assert (study.rounds, study.sections["training"]["rounds"]) == (rounds, budget)


def test_more_rounds_than_the_budget_that_is_set(hospitals: Path) -> None:
    with pytest.raises(ConfigError, match=r"more than training\.rounds") as caught:
        choices.read(WantedRuns(hospitals, rounds=6, settings=("training.rounds=5",)))
    assert caught.value.key == "--rounds" and "--rounds 5" in caught.value.remedy


def test_what_the_user_set_stays_under_an_algorithm_with_a_preset_of_its_own(
    hospitals: Path, tmp_path: Path
) -> None:
    """fedcowpro's quick run would have another patch, batch and optimizer."""
    (one_shot,) = variants.parse("fedcowpro")

    def made(**wanted: Any) -> Any:
        study = choices.read(WantedRuns(hospitals, rounds=4, **wanted))
        return variants.federation(study.sections, one_shot, study.own)

    preset = made()
    assert (preset.training.optimizer, preset.task.patch_size) == ("sgd", (128, 128))
    rate = made(settings=("training.learning_rate=0.0005",)).training
    assert (rate.learning_rate, rate.batch_size) == (0.0005, 2)
    file = tmp_path / "mine.yaml"
    file.write_text(
        "federation: mine\nalgorithm: {name: gcml}\ntraining: {batch_size: 7}\n"
        "task: {name: t, channels: 1, labels: {0: b, 1: f}, label_map: {255: 1}, patch_size: [64, 64]}\n"
    )
    written = made(peers=file)
    assert (written.training.batch_size, written.task.patch_size) == (7, (64, 64))
    assert written.training.optimizer == "sgd"


def test_a_folder_without_sites_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        choices.read(WantedRuns(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="holds no site"):
        choices.read(WantedRuns(tmp_path))


def test_a_case_without_a_patient_in_its_name_is_refused(hospitals: Path) -> None:
    said = r"data.patient_pattern = .*no patient is found in the name of case case_000 \(.*case_000.png\)"
    with pytest.raises(DataError, match=said):
        choices.read(WantedRuns(hospitals, patient_pattern="(x+)_.*"))


def test_a_site_without_test_labels_sets_a_share_of_training_aside(hospitals: Path, tmp_path: Path) -> None:
    site = tmp_path / "bare"
    site.mkdir()
    (site / "dataset.json").write_text(
        (hospitals / "north" / "dataset.json").read_text().replace('"test"', '"unused"')
    )
    for kind in ("images", "masks"):
        (site / kind).symlink_to(hospitals / "north" / kind)
    (source,) = choices.read(WantedRuns(tmp_path)).sites
    assert source.cases["test"] >= 1 and source.rewritten and "set aside as test" in source.note
    (own,) = choices.read(WantedRuns(hospitals, sites="north")).sites
    assert not own.rewritten and not own.note
    lists = json.loads((site / "dataset.json").read_text())
    lists["training"] = lists["training"][:1]
    (site / "dataset.json").write_text(json.dumps(lists))
    with pytest.raises(ConfigError, match="no labelled test case"):
        choices.read(WantedRuns(tmp_path))


def test_a_pattern_makes_another_study_whose_runs_read_its_lists(hospitals: Path, tmp_path: Path) -> None:
    pattern = "(.+)"
    plain, told = (
        choices.read(WantedRuns(hospitals, rounds=1, patient_pattern=text)) for text in (None, pattern)
    )
    assert plain.identity() != told.identity()
    for study, lists in ((plain, False), (told, True)):
        (made,) = run_plans.plans(study, variants.parse("local"), [Replicate(0)], tmp_path)
        assert all(Path(folder).is_relative_to(tmp_path) is lists for folder in made.sites.values())


@pytest.mark.parametrize("text", ["", "a", "1.5", "-1", "0;1", str(2**32)])
def test_seeds_are_whole_numbers(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--seeds = .*: must be whole numbers .* Write 0,1,2\."):
        choices.read_replicates(text, "0")


def test_seeds_and_splits_are_crossed_or_paired() -> None:
    def read(seeds: str, splits: str) -> list[tuple[int, int]]:
        return [(r.seed, r.split) for r in choices.read_replicates(seeds, splits)]

    assert read("2, 0,2", "0") == [(2, 0), (0, 0)]
    assert read("0,1", "0,3") == [(0, 0), (1, 0), (0, 3), (1, 3)]
    assert read("0,1,2", "each") == [(0, 0), (1, 1), (2, 2)]
    with pytest.raises(ConfigError, match="--splits"):
        read("0", "every")


def test_validation_is_due_about_twenty_times(hospitals: Path) -> None:
    def every(**wanted: Any) -> int:
        return rig.plan(hospitals, "local", **wanted).parsed().training.validate_every_rounds

    assert every(rounds=6) == 1
    assert every(rounds=200) == 10
    assert every(rounds=None, settings=("training.rounds=200",)) == 10
    assert every(rounds=200, settings=("training.validate_every_rounds=3",)) == 3
