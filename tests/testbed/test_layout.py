"""The testbed's files: what is written loads, and what the data say becomes the task."""

from __future__ import annotations

import json
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import yaml
from PIL import Image

from gossipseg import config, trust
from gossipseg.errors import ConfigError, DataError
from gossipseg.testbed import dataset, experiment, layout, presets, synthetic
from gossipseg.testbed.layout import WantedTestbed


@pytest.fixture
def data(tmp_path: Path) -> list[Path]:
    hospitals = [replace(h, cases=(3, 1, 1)) for h in synthetic.hospitals(3)]
    return synthetic.write_federation(tmp_path / "data", hospitals)


def write_site(
    folder: Path, image: np.ndarray, mask: np.ndarray, labels: dict[str, str] | None, **listed: object
) -> Path:
    """A site of one case. 2-D arrays become PNG, 3-D masks NIfTI."""
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    suffix = ".nii.gz" if mask.ndim == 3 else ".png"
    for kind, array in (("images", image), ("masks", mask)):
        path = folder / kind / f"case{suffix}"
        if mask.ndim == 3:
            nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), path)
        else:
            Image.fromarray(array).save(path)
    if labels is not None:
        case = {"image": f"images/case{suffix}", "label": f"masks/case{suffix}"}
        doc = {"labels": labels, "training": [case], "validation": [], "test": [], **listed}
        (folder / "dataset.json").write_text(json.dumps(doc))
    return folder


GREY = np.full((40, 50), 90, np.uint8)
MASK = np.zeros((40, 50), np.uint8)
MASK[5:20, 5:20] = 255
TWO = {"0": "background", "1": "thing"}


def test_every_site_file_loads_and_names_its_own_identity(data: list[Path], tmp_path: Path) -> None:
    made = layout.init_testbed(tmp_path / "bed", data, WantedTestbed(rounds=7, seed=3))
    assert [s.name for s in made.sites] == ["north", "lakeside", "valley"]
    for site in made.sites:
        loaded = config.load(site.config_path, env={})
        assert (loaded.rounds, loaded.federation.training.rounds, loaded.site.rounds) == (7, 7, None)
        assert loaded.federation.training.schedule_in_force == "cosine"
        assert loaded.site.report_test
        assert loaded.federation.seed == 3
        assert loaded.federation.task.label_map == {255: 1}
        assert loaded.site.device.threads == 1
        assert not loaded.site.insecure
        assert loaded.control_socket == site.control_socket.absolute()
        key = Path(loaded.site.identity.key)
        assert key.stat().st_mode & 0o077 == 0
        identity = trust.Identity.load(key, Path(loaded.site.identity.certificate))
        assert trust.site_id(loaded.me.certificate[0].encode()) == identity.site_id
    assert len({s.address for s in made.sites}) == 3
    assert layout.load_layout(tmp_path / "bed") == made


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["Klinik S\xfcd"], "is not a valid site name"),
        (["a.b"], "is not a valid site name"),
        (["A", "a"], "A and a give the same site name"),
    ],
)
def test_folders_whose_names_can_be_no_sites_are_named(
    data: list[Path], tmp_path: Path, names: list[str], words: str
) -> None:
    folders = [folder.rename(tmp_path / name) for folder, name in zip(data, names, strict=False)]
    with pytest.raises(ConfigError) as caught:
        layout.init_testbed(tmp_path / "testbed", folders)
    assert words in str(caught.value) and str(folders[-1]) in str(caught.value)
    assert not (tmp_path / "testbed").exists()


def test_identities_stay_when_a_testbed_is_written_again(data: list[Path], tmp_path: Path) -> None:
    first = layout.init_testbed(tmp_path / "bed", data)
    keys = [(s.folder / "identity/key.pem").read_bytes() for s in first.sites]
    again = layout.init_testbed(tmp_path / "bed", data[:2], WantedTestbed(algorithm="local"))
    assert [(s.folder / "identity/key.pem").read_bytes() for s in again.sites] == keys[:2]
    assert [s.name for s in layout.load_layout(tmp_path / "bed").sites] == ["north", "lakeside"]
    assert again.algorithm == "local"


def test_sites_without_data_get_the_synthetic_task_and_a_place_to_put_some(tmp_path: Path) -> None:
    made = layout.init_empty(tmp_path, 4)
    assert len(made.sites) == 4
    assert made.task.name == synthetic.TASK_NAME
    for site in made.sites:
        folder = site.config_path.parent / config.load(site.config_path, env={}).site.data.path
        assert (folder / "images").is_dir() and (folder / "masks").is_dir()
    assert layout.init_empty(tmp_path, 4).task == made.task, "empty folders tell no task"
    assert made.sites[0].data.resolve() == tmp_path / "data" / "north"


def test_a_testbed_for_containers_may_be_moved(data: list[Path], tmp_path: Path) -> None:
    wanted = WantedTestbed(address="{site}:7443", listen="0.0.0.0:7443", mdns=True, endless=True)
    made = layout.init_testbed(tmp_path, data, wanted)
    raw = yaml.safe_load(made.sites[0].config_path.read_text())
    assert raw["data"]["path"] == "../../data/north"
    assert raw["listen"] == "0.0.0.0:7443"
    assert "rounds" not in raw and made.rounds is None
    assert raw["discovery"] == {"static": False, "mdns": True}
    assert made.sites[0].address == "north:7443"


@pytest.mark.parametrize(
    ("training", "wanted", "rounds", "cosine"),
    [
        ({}, {}, 18, 18),
        ({}, {"endless": True}, None, None),
        ({}, {"endless": True, "rounds": 5}, 5, 5),
        ({"rounds": 30}, {}, 30, 30),
        ({"rounds": 30}, {"endless": True}, 30, 30),
        ({"rounds": 30}, {"rounds": 5}, 5, 5),
        ({"schedule_rounds": 40}, {"rounds": 5}, 5, 40),
    ],
)
def test_the_budget_of_a_testbed_is_the_federations(
    data: list[Path], tmp_path: Path, training: Any, wanted: Any, rounds: int | None, cosine: int | None
) -> None:
    file = tmp_path / "mine.yaml"
    task = {"name": "t", "channels": 1, "labels": {0: "background", 1: "organ"}}
    file.write_text(yaml.safe_dump({"federation": "mine", "task": task, "training": training}))
    made = layout.init_testbed(tmp_path / "bed", data, WantedTestbed(peers=file, **wanted))
    found = config.load_federation(made.federation_path).training
    assert (made.rounds, found.rounds, found.cosine_rounds) == (rounds, rounds, cosine)


def test_a_peers_file_decides_and_flags_decide_over_it(data: list[Path], tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        yaml.safe_dump(
            {
                "federation": "mine",
                "seed": 11,
                "task": {
                    "name": "t",
                    "channels": 1,
                    "labels": {0: "b", 1: "f"},
                    "label_map": {255: 1},
                    "patch_size": [32, 32],
                },
                "network": {"name": "sanet", "width": 4},
                "algorithm": {"name": "gcml", "gamma": 0.25},
                "training": {"steps_per_round": 9},
            }
        )
    )
    made = layout.init_testbed(tmp_path / "bed", data, WantedTestbed(peers=file, steps=5))
    federation = config.load_federation(made.federation_path)
    assert (federation.federation, federation.seed, federation.network.width) == ("mine", 11, 4)
    assert federation.algorithm.name == "gcml"
    assert federation.algorithm.gamma == 0.25
    assert federation.training.steps_per_round == 5
    assert federation.task.patch_size == (32, 32)
    assert federation.membership.probe_interval_s < 1, "daemons on one machine use the local preset"
    other = layout.init_testbed(tmp_path / "bed", data, WantedTestbed(peers=file, algorithm="gossip_average"))
    assert other.algorithm == "gossip_average"


def made_from(tmp_path: Path, data: list[Path], name: str, /, **sections: object) -> config.FederationFile:
    """The federation that `--algorithm` makes of a peers.yaml with these sections."""
    task = {"name": "t", "channels": 1, "labels": {0: "b", 1: "f"}, "label_map": {255: 1}}
    doc = {"federation": "mine", "algorithm": {"name": "gcml"}, **sections}
    doc["task"] = task | sections.get("task", {})  # type: ignore[operator]
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(doc))
    made = layout.init_testbed(tmp_path / "bed", data, WantedTestbed(peers=file, algorithm=name))
    return config.load_federation(made.federation_path)


def one_shot_from(tmp_path: Path, data: list[Path], **sections: object) -> config.FederationFile:
    """The same with `--algorithm fedcowpro`."""
    return made_from(tmp_path, data, "fedcowpro", **sections)


@pytest.mark.parametrize(
    ("section", "key", "value", "otherwise"),
    [
        ("task", "patch_size", (64, 64), (128, 128)),
        ("training", "batch_size", 3, 2),
        ("training", "optimizer", "adamw", "sgd"),
        ("training", "learning_rate", 0.5, 0.01),
        ("training", "weight_decay", 0.25, 5e-4),
        ("training", "schedule", "constant", "step_decay"),
    ],
)
def test_what_a_peers_file_says_stays_when_the_algorithm_becomes_one_shot(
    data: list[Path], tmp_path: Path, section: str, key: str, value: object, otherwise: object
) -> None:
    plain = list(value) if isinstance(value, tuple) else value
    kept = one_shot_from(tmp_path, data, **{section: {key: plain}})
    assert (kept.algorithm.name, kept.network.name) == ("fedcowpro", "cowpro_encoder")
    assert getattr(getattr(kept, section), key) == value
    chosen = one_shot_from(tmp_path, data, **({section: {}} if section == "task" else {}))
    assert getattr(getattr(chosen, section), key) == otherwise


def test_an_optimizer_that_a_peers_file_names_keeps_its_own_learning_rate(
    data: list[Path], tmp_path: Path
) -> None:
    """The quick run's rate is for the optimizer that it chooses."""
    kept = one_shot_from(tmp_path, data, training={"optimizer": "adamw"}).training
    default = type(kept)()
    assert (kept.learning_rate, kept.weight_decay) == (default.learning_rate, default.weight_decay)
    assert kept.batch_size == 2


def test_a_peers_file_for_volumes_is_not_made_one_for_slices(data: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        one_shot_from(tmp_path, data, task={"spatial_dims": 3, "patch_size": [32, 32, 32]})
    text = str(caught.value)
    for part in ("mine.yaml", "task.spatial_dims = 3", "works on slices", "slice_axis: 2"):
        assert part in text, text
    assert not (tmp_path / "bed" / "peers.yaml").exists()
    sections = {
        "algorithm": {"name": "fedcowpro"},
        "network": {"name": "cowpro_encoder"},
        "task": {"spatial_dims": 2, "slice_axis": 2, "patch_size": [32, 32]},
    }
    task = one_shot_from(tmp_path, data, **sections).task
    assert (task.slice_axis, task.patch_size) == (2, (32, 32)), "the remedy helps"


def test_an_unknown_algorithm_is_named_with_the_known_ones(data: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--algorithm = 'fedsgd'.*gcml, local, gossip_average"):
        layout.init_testbed(tmp_path / "bed", data, WantedTestbed(algorithm="fedsgd"))


def test_a_folder_without_testbed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no testbed"):
        layout.load_layout(tmp_path)


def test_sites_are_chosen_by_name_or_number(data: list[Path], tmp_path: Path) -> None:
    root = tmp_path / "data"
    assert [p.name for p in dataset.choose_sites(root, None)] == ["lakeside", "north", "valley"]
    assert [p.name for p in dataset.choose_sites(root, "2")] == ["lakeside", "north"]
    assert [p.name for p in dataset.choose_sites(root, "valley, north,valley")] == ["valley", "north"]
    with pytest.raises(ConfigError, match=r"--sites = 'norht'.*lakeside, north, valley"):
        dataset.choose_sites(root, "norht")
    with pytest.raises(ConfigError, match="has 3 sites"):
        dataset.choose_sites(root, "4")
    with pytest.raises(ConfigError, match=r"--sites = '²'.*no such site"):
        dataset.choose_sites(root, "²")
    with pytest.raises(DataError, match="holds no site"):
        dataset.choose_sites(tmp_path / "data" / "north", None)


@pytest.mark.parametrize(
    ("algorithm", "section", "setting"),
    [
        ("fedcowpro", "training", ("output", "sigmoid")),
        ("fedcowpro", "training", ("personal", "always")),
        ("gcml", "training", ("personal", "none")),
    ],
)
def test_a_setting_that_does_not_go_with_the_algorithm_is_named_in_the_peers_file(
    data: list[Path], tmp_path: Path, algorithm: str, section: str, setting: tuple[str, object]
) -> None:
    """Not in the testbed's own peers.yaml, which is written anew each time."""
    key, value = setting
    with pytest.raises(ConfigError) as caught:
        made_from(tmp_path, data, algorithm, **{section: {key: value}})
    assert f"mine.yaml: {section}.{key} = {value!r}" in str(caught.value), str(caught.value)
    assert not (tmp_path / "bed" / "peers.yaml").exists()


@pytest.mark.parametrize("nothing", ["", " , ", ","])
def test_a_choice_of_no_site_is_refused_and_an_earlier_testbed_stays(
    data: list[Path], tmp_path: Path, nothing: str
) -> None:
    made = experiment.make_testbed(tmp_path / "bed", tmp_path / "data", None, WantedTestbed())
    before = made.federation_path.read_bytes()
    with pytest.raises(ConfigError, match=r"--sites = '.*': names no site.*leave --sites out"):
        experiment.make_testbed(tmp_path / "bed", tmp_path / "data", nothing, WantedTestbed())
    assert made.federation_path.read_bytes() == before


def test_free_ports_are_different_and_free() -> None:
    ports = layout.free_ports(5)
    assert len(set(ports)) == 5
    for port in ports:
        with socket.socket() as s:
            s.bind(("127.0.0.1", port))


# ---------------------------------------------------------------- what the data say


def test_the_task_of_grey_rgb_and_3d_sites(tmp_path: Path) -> None:
    rgb = np.stack([GREY, GREY // 2, GREY], axis=-1)
    volume, classes = np.zeros((36, 50, 35), np.float32), np.zeros((36, 50, 35), np.uint8)
    classes[3:9, 3:9, 3:9], classes[12:20, 3:9, 3:9] = 1, 2
    grey_site = dataset.describe(write_site(tmp_path / "grey", GREY, MASK, TWO))
    rgb_site = dataset.describe(write_site(tmp_path / "rgb", rgb, MASK // 255, TWO))
    three = {"0": "background", "1": "front", "2": "back"}
    site_3d = dataset.describe(
        write_site(tmp_path / "vol", volume, classes, three, modality={"0": "CT"}, name="organ/vol")
    )
    grey_task, rgb_task, task_3d = (dataset.task_of("t", [s]) for s in (grey_site, rgb_site, site_3d))
    assert (grey_task.channels, grey_task.intensity, grey_task.label_map) == (1, "zscore", {255: 1})
    assert (rgb_task.channels, rgb_task.intensity, rgb_task.label_map) == (3, "rgb", {})
    assert (task_3d.spatial_dims, task_3d.labels) == (3, {0: "background", 1: "front", 2: "back"})
    assert task_3d.intensity == "ct_window"
    assert (task_3d.orientation, grey_task.orientation) == ("RAS", None)
    assert site_3d.task == "organ"
    made = layout.init_testbed(tmp_path / "bed", [tmp_path / "vol"])
    assert made.task.patch_size == (32, 48, 32)
    assert made.task.name == "organ"


@pytest.mark.parametrize(
    ("axes", "stated", "wanted"),
    [
        ([(-1, -1, 1), (-1, -1, 1)], True, "LPS"),
        ([(1, 1, 1), (-1, -1, 1)], True, None),
        ([(1, 1, 1), (1, 1, 1)], False, None),
    ],
)
def test_volumes_of_one_orientation_give_it_to_the_task(
    tmp_path: Path, axes: list[tuple[int, int, int]], stated: bool, wanted: str | None
) -> None:
    classes = np.zeros((36, 34, 35), np.uint8)
    classes[3:9, 3:9, 3:9], classes[12:20, 3:9, 3:9] = 1, 2
    labels = {"0": "background", "1": "front", "2": "back"}
    described = []
    for index, signs in enumerate(axes):
        folder = write_site(tmp_path / str(index), classes.astype(np.float32), classes, labels)
        for kind in ("images", "masks"):
            volume = nibabel.Nifti1Image(classes, np.diag([*signs, 1]))
            volume.set_sform(volume.affine, code=2 if stated else 0)
            volume.set_qform(volume.affine, code=0)
            nibabel.save(volume, folder / kind / "case.nii.gz")
        described.append(dataset.describe(folder))
    assert dataset.task_of("t", described).orientation == wanted


def test_axes_of_volumes_are_not_kept_for_slices(tmp_path: Path) -> None:
    sections = {
        "task": {"spatial_dims": 3, "patch_size": [32, 32, 32], "orientation": "RAS"},
        "training": {"flip_axes": ["left-right"]},
    }
    presets.set_algorithm(sections, "fedcowpro")
    assert "flip_axes" not in sections["training"] and "orientation" not in sections["task"]


def test_folders_without_a_list_are_read_from_their_first_masks(tmp_path: Path) -> None:
    site = dataset.describe(write_site(tmp_path / "plain", GREY, MASK, None))
    assert (site.labels, site.label_map) == ({0: "background", 1: "foreground"}, {255: 1})


def test_sites_that_do_not_fit_together_are_named_with_file_key_and_remedy(tmp_path: Path) -> None:
    rgb = np.stack([GREY, GREY // 2, GREY], axis=-1)
    grey = write_site(tmp_path / "fluo", GREY, MASK, TWO)
    colour = write_site(tmp_path / "histology", rgb, MASK, TWO)
    with pytest.raises(DataError) as caught:
        layout.init_testbed(tmp_path / "bed", [grey, colour])
    text = str(caught.value)
    for part in (
        str(colour / "images" / "case.png"),
        "channels = 3",
        "fluo",
        "--sites fluo",
        "convert_grey_to_rgb",
    ):
        assert part in text, text
    assert not (tmp_path / "bed" / "peers.yaml").exists()


def test_label_values_outside_the_labels_are_an_error(tmp_path: Path) -> None:
    mask = MASK.copy()
    mask[0, 0] = 7
    with pytest.raises(DataError, match=r"masks/case.png: labels = .*the values 0, 7, 255"):
        dataset.describe(write_site(tmp_path / "odd", GREY, mask, TWO))


@pytest.mark.parametrize(
    ("listed", "problem"),
    [
        ({"training": []}, "no training cases"),
        ({"training": [{"image": "images/case.png"}]}, "needs an image and a label"),
        ({"training": [{"image": "images/x.png", "label": "masks/case.png"}]}, "no such file"),
        ({"channels": 3}, "the list says 3 channel"),
    ],
)
def test_a_wrong_list_is_named(tmp_path: Path, listed: dict[str, object], problem: str) -> None:
    folder = write_site(tmp_path / "site", GREY, MASK, TWO, **listed)
    with pytest.raises(DataError, match=problem) as caught:
        dataset.describe(folder)
    assert str(folder / "dataset.json") in str(caught.value)


def test_a_list_that_is_no_json_and_an_image_that_is_none(tmp_path: Path) -> None:
    folder = write_site(tmp_path / "site", GREY, MASK, TWO)
    (folder / "images" / "case.png").write_bytes(b"not a picture")
    with pytest.raises(DataError, match="cannot be read"):
        dataset.describe(folder)
    (folder / "dataset.json").write_text("{")
    with pytest.raises(DataError, match="is not valid JSON"):
        dataset.describe(folder)


def test_an_algorithm_without_a_small_network_here_gets_the_one_that_it_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As one of an installed package, of which the presets know nothing."""
    monkeypatch.delitem(presets.NETWORK_OF, "fedoap")
    sections = {"network": {"width": 8}}
    presets.set_algorithm(sections, "fedoap")
    assert sections["network"] == {"name": "dca_unet"}
