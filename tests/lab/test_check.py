"""What stops a run is found before anything is made: patches, weights, parts of a network, devices."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest
import safetensors.torch

from gossipseg.lab import main
from gossipseg.lab.experiment import check, runs
from gossipseg.lab.plan import choices, run_plans, splits, variants
from gossipseg.lab.plan.choices import WantedRuns
from gossipseg.lab.plan.run_plans import Replicate
from gossipseg.lab.simulation import pretrained
from gossipseg.lab.simulation.training import make_spec
from gossipseg.learn.engine.build import build_model
from gossipseg.learn.params import DataParams
from gossipseg.learn.settings import read_settings
from gossipseg.nets.params import NetworkParams
from gossipseg.nets.registry import build
from tests.lab import rig
from tests.lab.test_compare import arguments
from tests.nets.test_adapters import monais


def refused(data: Path, out: Path, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    """What is said of a comparison that must end before it begins."""
    assert main.run([*arguments(data, out, "local"), *more]) == 78
    assert not out.exists(), "nothing is made before all is checked"
    return capsys.readouterr().err


def test_a_patch_too_small_for_one_of_the_networks_names_its_algorithm(
    hospitals: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ("--set", "task.patch_size=[16,16]")
    said = refused(
        hospitals, tmp_path / "out", capsys, *small, "--algorithms", "local[network.name=dynunet],fedsca"
    )
    assert "fedsca cannot be run: adapted_unetr halves the patch down" in said
    assert "task.patch_size = [16, 16]" in said and "Use at least [32, 32]" in said


def test_settings_that_a_network_does_not_take_are_told_at_once(
    hospitals: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    algorithms = "local,gcml[network.name=swinunetr,network.width=7]"
    said = refused(hospitals, tmp_path / "out", capsys, "--algorithms", algorithms)
    assert "gcml[network.name=swinunetr,network.width=7] cannot be run" in said and "multiple of 12" in said


def test_a_sites_own_network_that_cannot_be_built_is_told_at_once(
    hospitals: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    algorithms = "gcml[site.north.personal_network.name=swinunetr,site.north.personal_network.width=12]"
    small = ("--set", "task.patch_size=[32,32]")
    said = refused(hospitals, tmp_path / "out", capsys, *small, "--algorithms", algorithms)
    assert "does not go with task.patch_size [32, 32]" in said and "personal_network.name" in said


def test_a_network_that_declares_nothing_its_own_is_told_at_once(
    hospitals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No network in the package lacks the parts; one of another package may."""
    made = build(
        NetworkParams("sanet", 2), spatial_dims=2, in_channels=3, out_channels=2, patch_size=(32, 32)
    )
    monkeypatch.setattr(check, "build_model", lambda setup: made)
    said = refused(hospitals, tmp_path / "out", capsys, "--algorithms", "fedavg,fedsca")
    assert "fedsca cannot be run" in said


def test_a_device_that_is_not_there_is_told_at_once(
    hospitals: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run([*arguments(hospitals, tmp_path / "out", "local"), "--device", "cuda:99"]) == 1
    assert not (tmp_path / "out").exists()
    assert "this machine shows" in capsys.readouterr().err


# ---------------------------------------------------------------- pretrained weights


@pytest.fixture
def equipped(hospitals: Path, tmp_path: Path) -> tuple[Path, list[str]]:
    """Sites with a file of an encoder's weights each, and the settings that name it."""
    data, name = tmp_path / "data", "encoder.safetensors"
    shutil.copytree(hospitals, data)
    network = ("network.name=adapted_unetr", "network.options.adapter_width=2")
    plan = rig.plan(hospitals, "local", sites="lakeside,north", settings=network)
    folder = data / "north"
    setup = read_settings(make_spec(plan.parsed(), "north", DataParams(str(folder)), folder, 2, "cpu"))
    inner = build_model(setup).network.get_submodule("vit").state_dict()
    tensors = {monais(n): t + 1.0 for n, t in inner.items() if "_adapter." not in n}
    safetensors.torch.save_file(tensors, folder / name)
    shutil.copy(folder / name, data / "lakeside")
    sha256 = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    file = (f"network.options.encoder_weights={name}", f"network.options.encoder_weights_sha256={sha256}")
    return data, [part for text in (*network, *file) for part in ("--set", text)]


def test_weights_that_one_site_lacks_are_missed_at_once(
    equipped: tuple[Path, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, settings = equipped
    for site in ("lakeside", "north"):
        (data / site / "encoder.safetensors").rename(tmp_path / "kept")
        said = refused(data, tmp_path / "out", capsys, *settings)
        assert "local cannot be run: the weights cannot be read" in said
        assert f"{site}/encoder.safetensors" in said and "Put the file there" in said
        (tmp_path / "kept").rename(data / site / "encoder.safetensors")


def test_weights_of_another_checksum_are_refused_at_once(
    equipped: tuple[Path, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, settings = equipped
    for site in ("lakeside", "north"):
        file = data / site / "encoder.safetensors"
        whole = file.read_bytes()
        file.write_bytes(whole[:-1] + b"x")
        said = refused(data, tmp_path / "out", capsys, *settings)
        assert f"{site}/encoder.safetensors: network.options.encoder_weights_sha256" in said
        file.write_bytes(whole)


def test_weights_are_found_beside_every_list_that_the_lab_makes(
    equipped: tuple[Path, list[str]], tmp_path: Path
) -> None:
    """Of a redrawn split, of fewer cases, of all sites together."""
    data, settings = equipped
    out, sites = tmp_path / "out", {site: str(data / site) for site in ("lakeside", "north")}
    wanted = WantedRuns(
        data,
        sites="lakeside,north",
        rounds=1,
        steps=1,
        settings=(*rig.TINY, *settings[1::2]),
        heterogeneity="cases:north",
    )
    made = run_plans.plans(choices.read(wanted), variants.parse("local,pooled"), [Replicate(0, 1)], out)
    splits.write(out, {site: DataParams(folder) for site, folder in sites.items()}, [1])
    pretrained.lend_all(made, sites)
    for plan in made:
        assert rig.run(plan).keys() == sites.keys()
    for site in sites:
        (data / site / "encoder.safetensors").unlink()
    pretrained.lend_all(made, sites)
    assert not any((data / site / "encoder.safetensors").is_symlink() for site in sites)


def test_finished_runs_are_not_checked_again(hospitals: Path, tmp_path: Path) -> None:
    study = choices.read(WantedRuns(hospitals, sites="2", rounds=2))
    made = run_plans.plans(study, variants.parse("local,pooled"), [Replicate(0)], tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "local-seed0.json").touch()
    assert [plan.label for plan in runs.missing(tmp_path, made)] == ["pooled"]
