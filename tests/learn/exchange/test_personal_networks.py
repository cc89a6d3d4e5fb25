"""Personal models of other networks on their way: written by one worker, taken in by another."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from gossipseg.algos.params import FedBnParams, GcmlParams
from gossipseg.bridge.expected_files import PERSONAL_HEADER_BYTES, content_difference
from gossipseg.errors import PeerRefused
from gossipseg.learn import protocol
from gossipseg.learn.deploy.choice import OF_PEER
from gossipseg.learn.deploy.deployment import load_deployment
from gossipseg.nets.params.described import OPTIONS
from gossipseg.store import SCALES, read_safetensors
from tests.learn.harness import make_spec, make_trainer, stored

SEGRESNET: dict[str, Any] = {"name": "segresnet", "width": 4}
UNET: dict[str, Any] = {"name": "unet", "width": 2}


def trainer_of(data: Path, folder: Path, site: str, own: Any = None, **more: Any) -> Any:
    algorithm = more.pop("algorithm", GcmlParams())
    training = {"personal": "always"}
    made = make_spec(
        data, folder, site=site, algorithm=algorithm, training=training, personal_network=own, **more
    )
    return make_trainer(made)


@pytest.fixture(scope="module")
def sent(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, protocol.PersonalFile]:
    """What three sites of three architectures send of themselves."""
    files = {}
    for site, own in (("north", None), ("south", SEGRESNET), ("west", UNET)):
        trainer = trainer_of(data, tmp_path_factory.mktemp(site), site, own)
        trainer.run_round(protocol.StartRound(1))
        done = trainer.export_personal(protocol.ExportPersonal())
        assert done.export is not None, done
        files[site] = protocol.PersonalFile(site, done.export.path, site, done.round)
    return files


@pytest.mark.parametrize("own", [None, SEGRESNET, UNET], ids=["sanet", "segresnet", "unet"])
def test_each_takes_in_what_all_others_send(
    data: Path, tmp_path: Path, sent: dict[str, protocol.PersonalFile], own: Any
) -> None:
    here = trainer_of(data, tmp_path, "east", own)
    here.run_round(protocol.StartRound(1))
    kinds = {}
    for site, file in sent.items():
        model = here.peers.admit(file)
        here.round_end.prediction.peers.put(model)
        kinds[site] = type(model.net(here.settings, here.compute).network).__name__
    assert kinds == {"north": "SANet", "south": "SegResNet", "west": "UNet"}
    share = 1 / (2 + len(sent))
    members = ["personal", "shared", *(OF_PEER + site for site in sent)]
    mix = dataclasses.replace(here.mix, weights=dict.fromkeys(members, share))
    here.round_end.prediction.mix = mix
    stored(here)
    found = load_deployment(here.settings.spec)
    names = [(own or {"name": "sanet"})["name"], "sanet", "sanet", "segresnet", "unet"]
    assert [n.name for n in found.networks] == names and found.members == mix.weights
    image = torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(found.net(image).logits, here.deployed(image).logits)


def test_the_file_says_which_network_it_is(sent: dict[str, protocol.PersonalFile]) -> None:
    records = {}
    for site, file in sent.items():
        with safe_open(file.path, "pt") as opened:
            records[site] = opened.metadata().get("network")
    assert records["north"] is None
    assert json.loads(records["south"])["name"] == "segresnet" and json.loads(records["west"])["width"] == 2


def test_a_daemon_leaves_its_content_to_the_worker(data: Path, tmp_path: Path, sent: Any) -> None:
    schema = trainer_of(data, tmp_path, "east", UNET).personal_schema
    for site, file in sent.items():
        header = read_safetensors(Path(file.path), max_header_bytes=PERSONAL_HEADER_BYTES)
        assert not content_difference(header.tensors, "personal", schema, frozenset(), header.metadata), site
        blind = content_difference(header.tensors, "personal", schema, frozenset(), {})
        assert bool(blind) == (site != "north"), "without a record it is of the federation's network"


def changed(file: protocol.PersonalFile, to: Path, record: str) -> protocol.PersonalFile:
    """The file with another record."""
    save_file(load_file(file.path), to, {"gossipseg": "1", "network": record})
    return msgspec.structs.replace(file, path=str(to))


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ("", "bad_network"),
        ("{", "bad_network"),
        ("[" * 4000, "bad_network"),
        ("[" * 5000, "bad_network"),
        ('{"name": "adapted_sam", "width": 12}', "bad_network"),
        ('{"name": "segresnet", "width": 1024}', "network_too_large"),
        ('{"name": "segresnet", "width": 8}', "schema_mismatch"),
        ('{"name": "unet", "width": 2}', "schema_mismatch"),
    ],
)
def test_a_record_that_is_not_true_is_refused(
    data: Path, tmp_path: Path, sent: dict[str, protocol.PersonalFile], record: str, reason: str
) -> None:
    here = trainer_of(data, tmp_path, "east")
    with pytest.raises(PeerRefused) as raised:
        here.peers.admit(changed(sent["south"], tmp_path / "changed.safetensors", record))
    assert (raised.value.peer, raised.value.reason) == ("south", reason)


def test_values_that_are_not_finite_are_refused(data: Path, tmp_path: Path, sent: Any) -> None:
    tensors = load_file(sent["south"].path)
    name = next(n for n, t in tensors.items() if t.dtype == torch.float32)
    tensors[name][0] = float("nan")
    with safe_open(sent["south"].path, "pt") as opened:
        save_file(tensors, tmp_path / "nan.safetensors", opened.metadata())
    with pytest.raises(PeerRefused, match="not_finite"):
        poisoned = msgspec.structs.replace(sent["south"], path=str(tmp_path / "nan.safetensors"))
        trainer_of(data, tmp_path, "east").peers.admit(poisoned)


def test_the_bound_is_the_sites_own(data: Path, tmp_path: Path, sent: Any) -> None:
    here = trainer_of(data, tmp_path, "east", inference={"max_parameters": 1000})
    with pytest.raises(PeerRefused, match=r"network_too_large.*this site takes 1,000"):
        here.peers.admit(sent["south"])
    here.peers.admit(sent["north"])  # the federation's own network is borne by all


@pytest.mark.parametrize(
    ("more", "refusal"),
    [
        ({"own": {**SEGRESNET, "norm": "batch"}}, "private_network"),
        ({"own": {**SEGRESNET, "options": {"act": "relu"}}}, "private_network"),
        ({"own": SEGRESNET, "algorithm": FedBnParams()}, "private_part"),
        ({"own": SEGRESNET}, ""),
    ],
)
def test_what_others_could_not_build_is_never_sent(
    data: Path, tmp_path: Path, more: dict[str, Any], refusal: str
) -> None:
    trainer = trainer_of(data, tmp_path, "south", **more)
    assert trainer.personal_refusal == refusal
    done = trainer.export_personal(protocol.ExportPersonal())
    assert done.export is None and done.reason == (refusal or "not_ready")


def test_the_longest_header_of_a_described_network_has_room(data: Path, tmp_path: Path) -> None:
    """The deepest swinunetr that is allowed has the most tensors, with the longest names."""
    assert "swinunetr" in OPTIONS
    own = {"name": "swinunetr", "width": 12, "options": {"depths": [8] * 4, "num_heads": [1, 2, 4, 8]}}
    spec = make_spec(data, tmp_path, algorithm=GcmlParams(), personal_network=own)
    trainer = make_trainer(dataclasses.replace(spec, task={**spec.task, "patch_size": (64, 64)}))
    trainer.run_round(protocol.StartRound(1))
    done = trainer.export_personal(protocol.ExportPersonal())
    assert read_safetensors(Path(done.export.path), max_header_bytes=PERSONAL_HEADER_BYTES).tensors


def test_values_beyond_all_measure_are_refused_though_the_network_is_its_own(
    data: Path, tmp_path: Path, sent: dict[str, protocol.PersonalFile]
) -> None:
    """It has no counterpart here that admission could measure it by."""
    file = sent["south"]
    tensors = {n: t * 1e6 if n.endswith(SCALES) else t for n, t in load_file(file.path).items()}
    with safe_open(file.path, "pt") as opened:
        save_file(tensors, tmp_path / "huge.safetensors", opened.metadata())
    huge = msgspec.structs.replace(file, path=str(tmp_path / "huge.safetensors"))
    here = trainer_of(data, tmp_path / "here", "east")
    assert here.peers.admit(file).record is not None
    with pytest.raises(PeerRefused, match="norm_exploded"):
        here.peers.admit(huge)
