"""The list of algorithms: what may stand in it, and what it makes of peers.yaml."""

from __future__ import annotations

from typing import Any

import pytest

from gossipseg.errors import ConfigError
from gossipseg.lab.plan import variants

SECTIONS: dict[str, Any] = {
    "version": 1,
    "federation": "tiny",
    "task": {"name": "t", "channels": 1, "labels": {0: "background", 1: "disc"}},
    "gossip": {"sender_rate": 0.5},
}


def settings(text: str) -> Any:
    (only,) = variants.parse(text)
    return variants.federation(SECTIONS, only)


def test_names_variants_and_intervals_of_exchange() -> None:
    found = variants.parse("local, gcml[lambda=0, region=whole],fedavg@3,pooled")
    assert [v.label for v in found] == ["local", "gcml[lambda=0,region=whole]", "fedavg@3", "pooled"]
    assert [v.name for v in found] == ["local", "gcml", "fedavg", "pooled"]
    assert len({v.slug for v in found}) == 4
    assert all("/" not in v.slug and "[" not in v.slug for v in found)


def test_a_variant_sets_its_algorithm_and_dotted_keys() -> None:
    found = settings("gcml[lambda=0,region=whole,gossip.sender_rate=1,training.learning_rate=3e-4]")
    assert (found.algorithm.lambda_, found.algorithm.region) == (0.0, "whole")
    assert (found.gossip.sender_rate, found.training.learning_rate) == (1.0, 3e-4)
    assert SECTIONS["gossip"]["sender_rate"] == 0.5, "the common settings stay as they are"


def test_at_three_exchanges_every_third_round() -> None:
    assert settings("fedavg@3").exchange_at.every_rounds == 3
    assert settings("fedprox[mu=0.1]").algorithm.mu == 0.1


def test_settings_of_the_files_own_algorithm_are_kept_and_may_be_changed() -> None:
    common = {**SECTIONS, "algorithm": {"name": "gcml", "lambda_": 0.7, "gamma": 0.1}}
    (same, changed, other) = variants.parse("gcml,gcml[lambda=0.3],local")
    assert variants.federation(common, same).algorithm.lambda_ == 0.7  # type: ignore[union-attr]
    found: Any = variants.federation(common, changed).algorithm
    assert (found.lambda_, found.gamma) == (0.3, 0.1)
    assert variants.federation(common, other).algorithm.name == "local"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "names no algorithm"),
        ("gmcl", "Did you mean `gcml`"),
        ("gcml[lambda", "cannot be read"),
        ("gcml[lambda]", "is no setting"),
        ("gcml,gcml", "stands there twice"),
        ("gcml[lambda=-1]", "lambda"),
        ("gcml[lambd=1]", "lambd"),
        ("gcml[resident_rounds=4]", r"resident_rounds = 4: is no longer a setting: .* Leave the key out"),
        ("gcml[merge=val_weighted]", r"merge = 'val_weighted': .* Leave the key out"),
        ("gossip_average[private_norm=true]", "private_norm = True: is no longer a setting"),
        ("local@3", "every_rounds"),
        ("pooled[epochs=3]", "no setting of pooled"),
        ("gcml[gossip.sender_rate=7]", "sender_rate"),
    ],
)
def test_a_wrong_list_is_refused_in_words(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        for variant in variants.parse(text):
            variants.federation(SECTIONS, variant)
    assert "--algorithms" in str(caught.value)
    assert caught.value.exit_code == 78


def test_a_claim_is_two_of_the_chosen() -> None:
    chosen = variants.parse("local,gcml[lambda=0,region=whole],fedavg@3")
    found = variants.read_claims(["gcml[lambda=0, region=whole]:fedavg@3"], chosen)
    assert found == [("gcml[lambda=0,region=whole]", "fedavg@3")]
    for wrong in ("gcml:local", "local", "local:local", "local:fedavg@3:local"):
        with pytest.raises(ConfigError, match="--claim"):
            variants.read_claims([wrong], chosen)
