"""What a run is told: which algorithms cannot be run on a study, and what makes two runs different."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from gossipseg.errors import ConfigError
from gossipseg.lab.plan import choices, run_plans, variants
from gossipseg.lab.plan.choices import WantedRuns
from gossipseg.lab.plan.run_plans import Replicate
from tests.lab import rig


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


@pytest.mark.parametrize("settings", [(), ("training.rounds=100",)])
def test_some_round_must_be_exchanged(hospitals: Path, settings: tuple[str, ...]) -> None:
    problem = "leaves no round that is exchanged: exchange_at.every_rounds is 3"
    said = f"--algorithms = 'fedavg@3': --rounds 2 {problem}"
    with pytest.raises(ConfigError, match=re.escape(said)) as caught:
        rig.plan(hospitals, "fedavg@3", settings=settings)
    assert caught.value.remedy == "Give --rounds 3 or more, or fedavg[exchange_at.every_rounds=1]."
    assert rig.plan(hospitals, "fedavg@3", rounds=3, settings=settings).rounds == 3
    with pytest.raises(ConfigError, match="finetune_rounds is 2"):
        rig.plan(hospitals, "fedavg_finetune@3[finetune_rounds=2]", rounds=4)


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
        rig.plan(hospitals, "gcml", heterogeneity="cases:north+valley"),
        rig.plan(hospitals, "gcml", late_join=("north:2",)),
        rig.plan(hospitals, "gcml", equal_evaluations=True),
    ]
    assert len({m.settings for m in made}) == len(made)
    assert made[0].settings == rig.plan(hospitals, "gcml").settings


def test_the_fingerprint_changes_with_an_image_of_the_same_size(hospitals: Path, tmp_path: Path) -> None:
    """A label that was corrected: finished runs were made with the wrong one."""
    shutil.copytree(hospitals, tmp_path / "copy")
    before = rig.plan(tmp_path / "copy", "gcml").settings
    assert rig.plan(hospitals, "gcml").settings == before
    label = next((tmp_path / "copy").glob("*/masks/*"))
    content = bytearray(label.read_bytes())
    content[-1] ^= 1
    label.write_bytes(content)
    assert rig.plan(tmp_path / "copy", "gcml").settings != before


def test_one_site_may_be_rich_and_the_others_poor(hospitals: Path) -> None:
    assert rig.plan(hospitals, "gcml", heterogeneity="cases:north+valley").kept_cases == {
        "north": 0.25,
        "valley": 0.25,
    }
    assert len(rig.plan(hospitals, "gcml", heterogeneity="cases").kept_cases) == 1


def test_the_fingerprint_of_pooled_has_how_cases_are_drawn(
    hospitals: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs of versions that drew its cases in another way are not gone on with."""
    documents: dict[str, dict[str, Any]] = {}
    monkeypatch.setattr(
        run_plans, "digest", lambda said: documents.setdefault(said["variant"][0], said) and ""
    )
    for algorithm in ("pooled", "local"):
        rig.plan(hospitals, algorithm)
    assert documents["pooled"]["drawn"] == "site, then case" and "drawn" not in documents["local"]


def test_runs_are_planned_seed_by_seed(hospitals: Path) -> None:
    common = choices.read(WantedRuns(hospitals, rounds=2))
    made = run_plans.plans(common, variants.parse("local,gcml[lambda=0]"), [Replicate(3), Replicate(5)], None)
    assert [(m.label, m.seed) for m in made] == [
        ("local", 3), ("gcml[lambda=0]", 3), ("local", 5), ("gcml[lambda=0]", 5)
    ]  # fmt: skip
    assert len({m.key for m in made}) == 4
    assert made[0].federation["seed"] == 3


@pytest.mark.parametrize(
    ("algorithm", "last"),
    [("fedavg_finetune[finetune_rounds=2]", 3), ("fedavg@2", 4), ("fedavg", 5), ("gcml", 5), ("local", 5)],
)
def test_a_late_joiner_is_there_for_a_common_round(hospitals: Path, algorithm: str, last: int) -> None:
    for number in range(2, 6):
        late = (f"north:{number}",)
        if number <= last:
            assert rig.plan(hospitals, algorithm, rounds=5, late_join=late).late_join == {"north": number}
            continue
        with pytest.raises(ConfigError, match=f"after round {last}, the last that is exchanged") as caught:
            rig.plan(hospitals, algorithm, rounds=5, late_join=late)
        assert (caught.value.key, caught.value.value) == ("--late-join", f"north:{number}")
        assert caught.value.remedy == f"Write north:{last} or less."


@pytest.mark.parametrize("algorithm", ["fedavg", "pooled", "local"])
def test_all_train_as_many_rounds(hospitals: Path, algorithm: str) -> None:
    for rounds in (1, 2, 3):
        with pytest.raises(ConfigError, match="another number of rounds than the others train") as caught:
            rig.plan(hospitals, f"{algorithm}[training.rounds={rounds}]")
        assert caught.value.key == "--algorithms" and "--rounds" in caught.value.remedy
    own = rig.plan(hospitals, f"{algorithm}[training.schedule_rounds=1]")
    assert (own.rounds, own.parsed().training.schedule_rounds) == (2, 1)


# ---------------------------------------------------------------- a site's own settings


def test_a_row_may_give_sites_networks_of_their_own(hospitals: Path) -> None:
    text = (
        "gcml[site.personal_network.name=unet,site.north.personal_network.name=segresnet,"
        "site.north.personal_network.width=8]"
    )
    made = rig.plan(hospitals, text)
    networks = {site: (own["name"], own["width"]) for site, own in made.personal_networks.items()}
    assert networks == {site: ("segresnet", 8) if site == "north" else ("unet", 12) for site in made.sites}
    assert made.parsed().network.name == rig.plan(hospitals, "gcml").parsed().network.name
    one = rig.plan(hospitals, "gcml[site.north.personal_network.name=segresnet]")
    assert list(one.personal_networks) == ["north"] and not rig.plan(hospitals, "gcml").personal_networks
    assert len({made.settings, one.settings, rig.plan(hospitals, "gcml").settings}) == 3


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("gcml[site.nroth.personal_network.name=unet]", "Did you mean `north`"),
        ("gcml[site.north.device.device=cuda]", "Write site.NAME.personal_network.name"),
        ("gcml[site.north.personal_network.width=8]", "Name the network: sanet"),
        ("gcml[site.north.personal_network.name=segresnt]", "Did you mean `segresnet`"),
        ("gcml[site.north.personal_network.name=unet,site.north.personal_network.width=0]", "greater than"),
        ("local[site.north.personal_network.name=unet]", "write that network in peers.yaml"),
        ("pooled[site.north.personal_network.name=unet]", "pooled has no personal model"),
        ("lone_pair[site.north.personal_network.name=unet]", "lone_pair has no personal model"),
        ("fedavg[site.personal_network.name=unet,training.personal=none]", "training.personal: always"),
    ],
)
def test_a_sites_setting_that_a_row_cannot_have(hospitals: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)) as caught:
        rig.plan(hospitals, text)
    assert (caught.value.key, caught.value.value) == ("--algorithms", text)
