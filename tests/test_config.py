"""peers.yaml and site.yaml: what is read, what is refused, and in which words."""

from __future__ import annotations

import codecs
import dataclasses
import json
import os
import typing
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from gossipseg import config, trust
from gossipseg.algos.params import (
    FedAvgFinetuneParams,
    FedCoWProParams,
    FedOapParams,
    GcmlParams,
    params_class,
)
from gossipseg.config import ranges
from gossipseg.config.exchange import exchange_times
from gossipseg.config.files import FederationFile, SiteFile
from gossipseg.config.reading import parse_yaml
from gossipseg.core.membership.handshake import refusal
from gossipseg.core.messages import Hello
from gossipseg.core.types import PeerInfo, Phase
from gossipseg.errors import EXIT_CONFIG, ConfigError
from gossipseg.learn.params import (
    DataParams,
    TaskParams,
    TrainingParams,
    personal_network_problem,
    personal_problem,
    trains_personal,
    unlearned_problem,
)
from gossipseg.nets.params import NetworkParams
from gossipseg.yamlbounds import TooLarge, check_bounds

ROOT = Path(__file__).parent.parent

PEERS = """\
federation: test
task:
  name: vessels
  channels: 3
  intensity: rgb
  labels: {0: background, 1: vessel}
algorithm:
  name: gcml
  lambda: 0.3
membership:
  preset: lan
sites:
  - name: north
    address: 127.0.0.1:7443
    certificate: certs/north.pem
  - name: south
    address: "[::1]:7443"
    certificate: certs/south.pem
"""
SITE = """\
site: north
data:
  path: images
device:
  device: cpu
"""
FEDAVG = ("name: gcml\n  lambda: 0.3", "name: fedavg")
FEDAVG_BATCH_NORM = (FEDAVG[0], "name: fedavg\nnetwork:\n  norm: batch")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("identities")
    return {
        name: trust.create_identity(name, root / name).certificate_pem.decode() for name in ("north", "south")
    }


@pytest.fixture
def folder(tmp_path: Path, certificates: dict[str, str]) -> Path:
    (tmp_path / "certs").mkdir()
    for name, pem in certificates.items():
        (tmp_path / "certs" / f"{name}.pem").write_text(pem)
    (tmp_path / "peers.yaml").write_text(PEERS)
    (tmp_path / "site.yaml").write_text(SITE)
    return tmp_path


def load(folder: Path, **keywords: Any) -> config.Config:
    return config.load(folder / "site.yaml", env=keywords.pop("env", {}), **keywords)


def replaced(text: str, old: str, new: str) -> str:
    assert old in text, old
    return text.replace(old, new)


def refused(folder: Path, **keywords: Any) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load(folder, **keywords)
    assert "\n" not in str(caught.value), "one paragraph"
    assert caught.value.exit_code == EXIT_CONFIG
    assert caught.value.remedy.endswith((".", "?")), caught.value.remedy
    return caught.value


# ---------------------------------------------------------------- what is read


def test_both_files_are_composed(folder: Path, certificates: dict[str, str]) -> None:
    loaded = load(folder)
    assert loaded.me.name == "north"
    assert [s.name for s in loaded.others] == ["south"]
    assert loaded.me.certificate == [certificates["north"]]
    assert loaded.federation.algorithm == config.FederationFile(
        "x", loaded.federation.task
    ).algorithm.__class__(lambda_=0.3)
    assert loaded.federation.membership.probe_interval_s == 1.0, "the lan preset"
    assert loaded.site.data.path == str(folder / "images")
    assert loaded.control_socket == folder / "state" / "control.sock"


def test_preset_is_a_delta_that_keys_override(folder: Path) -> None:
    (folder / "peers.yaml").write_text(replaced(PEERS, "preset: lan", "preset: lan\n  indirect_checks: 7"))
    membership = load(folder).federation.membership
    assert (membership.indirect_checks, membership.probe_interval_s) == (7, 1.0)


def test_precedence_flag_environment_file_default(folder: Path) -> None:
    (folder / "site.yaml").write_text(SITE + "rounds: 5\nmax_parallel_transfers: 5\n")
    env = {"GOSSIPSEG_ROUNDS": "6", "GOSSIPSEG_MAX_PARALLEL_TRANSFERS": "6", "GOSSIPSEG_DATA": "/elsewhere"}
    site = load(folder, env=env, overrides={"rounds": "7"}).site
    assert (site.rounds, site.max_parallel_transfers, site.disk_reserve_bytes) == (7, 6, 256 << 20)
    assert site.data.path == str(folder / "images"), "GOSSIPSEG_DATA is the tests' own variable"


def test_nested_environment_keys(folder: Path) -> None:
    env = {
        "GOSSIPSEG_DEVICE__THREADS": "2",
        "GOSSIPSEG_DISCOVERY__MDNS": "true",
        "GOSSIPSEG_LOG__LEVEL": "debug",
    }
    site = load(folder, env=env).site
    assert (site.device.threads, site.device.device) == (2, "cpu")
    assert (site.discovery.mdns, site.log.level) == (True, "debug")


def test_overrides_of_text_keep_the_text(folder: Path) -> None:
    env = {"GOSSIPSEG_DATA__PATH": "2024", "GOSSIPSEG_DEVICE__AMP": "off", "GOSSIPSEG_ADVERTISE": ""}
    site = load(folder, env=env).site
    assert (Path(site.data.path).name, site.device.amp, site.advertise) == ("2024", "off", None)


def test_plain_yaml_values_mean_what_they_look_like(folder: Path) -> None:
    (folder / "site.yaml").write_text(SITE + "  amp: off\n")
    (folder / "peers.yaml").write_text(PEERS + "training: {learning_rate: 1e-4}\n")
    loaded = load(folder)
    assert loaded.site.device.amp == "off"
    assert loaded.federation.training.learning_rate == 1e-4
    (folder / "peers.yaml").write_text(replaced(PEERS, "name: south", "name: no"))
    assert [s.name for s in load(folder).others] == ["no"], "Norway is no boolean"


def test_byte_order_mark_and_line_ends_of_windows(folder: Path) -> None:
    (folder / "peers.yaml").write_bytes(codecs.BOM_UTF8 + PEERS.replace("\n", "\r\n").encode())
    assert load(folder).federation.federation == "test"


def test_a_section_with_only_comments_takes_its_defaults(folder: Path) -> None:
    (folder / "peers.yaml").write_text(PEERS + "gossip:\n  # retries: 3\n")
    assert load(folder).federation.gossip.retries == 2


def test_two_certificates_during_a_rotation(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    new = trust.create_identity("south", tmp_path_factory.mktemp("new"))
    doc = yaml.safe_load(PEERS)
    doc["sites"][1]["certificate"] = ["certs/south.pem", new.certificate_pem.decode()]
    doc["sites"][1]["id"] = new.site_id.lower().replace("-", " ")
    (folder / "peers.yaml").write_text(yaml.safe_dump(doc))
    assert len(load(folder).others[0].certificate) == 2


def test_a_federation_without_sites_can_still_lend_its_task(folder: Path) -> None:
    (folder / "peers.yaml").write_text(PEERS.partition("sites:")[0])
    assert config.load_federation(folder / "peers.yaml").sites == []
    assert "lists no sites" in str(refused(folder))


def test_an_algorithm_that_needs_more_sites_than_are_listed(folder: Path) -> None:
    doc = yaml.safe_load(PEERS)
    doc.update(algorithm={"name": "fedsca"}, network={"name": "adapted_unetr"}, sites=doc["sites"][:1])
    (folder / "peers.yaml").write_text(yaml.safe_dump(doc))
    said = str(refused(folder))
    assert "algorithm.name" in said and "needs 2 sites or more, and 1 is listed" in said


def test_insecure_needs_no_certificates_on_loopback(folder: Path) -> None:
    text = replaced(replaced(PEERS, "certs/north.pem", '""'), "certs/south.pem", '""')
    (folder / "peers.yaml").write_text(text)
    (folder / "site.yaml").write_text(SITE + "insecure: true\nlisten: localhost:7443\n")
    assert load(folder).site.insecure


# ---------------------------------------------------------------- what is refused: peers.yaml

BAD_PEERS = {
    "network without private parts": (
        ("  name: gcml\n  lambda: 0.3", "  name: fedoap"),
        "network.name",
        "sanet",
        "dca_unet",
    ),
    "network without adapters": (
        ("  name: gcml\n  lambda: 0.3", "  name: fedsca"),
        "network.name",
        "sanet",
        "adapted_unetr",
    ),
    "unknown key": (("federation: test", "federation: test\nsede: 3"), "sede", None, "`seed`"),
    "unknown key goes first": (
        ("  channels: 3", "  chanels: 3\n  spatial_dims: four"),
        "task.chanels",
        None,
        "`channels`",
    ),
    "unknown key of a site": (("address: 127", "adress: 127"), "sites.0.adress", None, "`address`"),
    "unknown key of an algorithm": (("lambda: 0.3", "lamda: 0.3"), "algorithm.lamda", None, "`lambda`"),
    "unknown key of another section": (
        ("federation: test", "federation: test\nlearning_rate: 1"),
        "learning_rate",
        None,
        "`training.learning_rate`",
    ),
    "key of site.yaml": (
        ("federation: test", "federation: test\nstate_dir: x"),
        "state_dir",
        None,
        "`state_dir` in site.yaml",
    ),
    "unknown key like nothing": (
        ("federation: test", "federation: test\nzzz: 1"),
        "zzz",
        None,
        "Known keys here: federation, task",
    ),
    "key of another algorithm": (
        ("name: gcml", "name: local"),
        "algorithm.lambda",
        None,
        "Known keys here: name",
    ),
    "algorithm": (("name: gcml", "name: gmcl"), "algorithm.name", "gmcl", "`gcml`"),
    "algorithm without name": (
        ("  name: gcml\n", ""),
        "algorithm.name",
        None,
        "Name the algorithm: gcml, local, gossip_average, fedavg",
    ),
    "algorithm as text": (
        ("algorithm:\n  name: gcml\n  lambda: 0.3", "algorithm: gcml"),
        "algorithm",
        "gcml",
        "keys indented",
    ),
    "lambda twice": (
        ("lambda: 0.3", "lambda: 0.3\n  lambda_: 0.4"),
        "algorithm.lambda",
        None,
        "Keep `lambda`",
    ),
    "preset": (("preset: lan", "preset: lann"), "membership.preset", "lann", "`lan`"),
    "preset as list": (("preset: lan", "preset: [lan]"), "membership.preset", ["lan"], "`lan`"),
    "preset mistyped": (("preset: lan", "presett: lan"), "membership.presett", None, "`preset`"),
    "missing key": (("federation: test\n", ""), "federation", None, "Add it"),
    "empty key": (("federation: test", "federation:"), "federation", None, "Add it"),
    "federation name": (("federation: test", "federation: ' test'"), "federation", " test", "printable"),
    "site name": (("name: south", "name: South"), "sites.1.name", "South", "lower-case"),
    "number as text": (("lambda: 0.3", "lambda: much"), "algorithm.lambda", "much", "number"),
    "whole number": (("channels: 3", "channels: 3.5"), "task.channels", 3.5, "whole number"),
    "boolean for a number": (("channels: 3", "channels: true"), "task.channels", True, "number"),
    "text for a boolean": (
        ("channels: 3", "channels: 3\n  convert_grey_to_rgb: maybe"),
        "task.convert_grey_to_rgb",
        "maybe",
        "true or false",
    ),
    "number for text": (("1: vessel", "1: 5"), "task.labels.1", 5, "quotes"),
    "text for a list": (
        ("channels: 3", "channels: 3\n  patch_size: big"),
        "task.patch_size",
        "big",
        "[a, b]",
    ),
    "text for a section": (("task:\n", "training: fast\ntask:\n"), "training", "fast", "keys indented"),
    "choice": (("intensity: rgb", "intensity: rbg"), "task.intensity", "rbg", "`rgb`"),
    "choice like nothing": (
        ("intensity: rgb", "intensity: 7"),
        "task.intensity",
        7,
        "Choose one of zscore, ct_window, rgb",
    ),
    "network": (("task:\n", "network: {name: sanett}\ntask:\n"), "network.name", "sanett", "`sanet`"),
    "negative": (("lambda: 0.3", "lambda: -1"), "algorithm.lambda", -1, "Correct the number"),
    "bool for lambda": (("lambda: 0.3", "lambda: true"), "algorithm.lambda", True, "number"),
    "dropout": (("task:\n", "network: {dropout: 1}\ntask:\n"), "network.dropout", 1, "Correct"),
    "rate above 1": (
        ("task:\n", "gossip: {sender_rate: 1.5}\ntask:\n"),
        "gossip.sender_rate",
        1.5,
        "Correct the number",
    ),
    "no patience": (("task:\n", "rounds: {patience_s: 0}\ntask:\n"), "rounds.patience_s", 0, "Correct"),
    "half of the sites": (("task:\n", "rounds: {quorum: 1}\ntask:\n"), "rounds.quorum", 1, "from 2 to 2"),
    "more than all sites": (("task:\n", "rounds: {quorum: 3}\ntask:\n"), "rounds.quorum", 3, "majority"),
    "zero": (("task:\n", "training: {batch_size: 0}\ntask:\n"), "training.batch_size", 0, "Correct"),
    "not a number": (
        ("task:\n", "training: {learning_rate: .nan}\ntask:\n"),
        "training.learning_rate",
        "nan",
        "Correct",
    ),
    "growing learning rate": (
        ("task:\n", "training: {decay_factor: 1.1}\ntask:\n"),
        "training.decay_factor",
        1.1,
        "Correct",
    ),
    "a fourth axis": (("channels: 3", "channels: 3\n  slice_axis: 3"), "task.slice_axis", 3, "Correct"),
    "slices for another algorithm": (
        ("channels: 3", "channels: 3\n  slice_axis: 2"),
        "task.slice_axis",
        2,
        "fedcowpro",
    ),
    "slices for a 3-D network": (
        ("channels: 3", "channels: 3\n  spatial_dims: 3\n  patch_size: [9, 9, 9]\n  slice_axis: 2"),
        "task.slice_axis",
        2,
        "spatial_dims: 2",
    ),
    "encoder of another algorithm": (
        ("task:\n", "network: {name: cowpro_encoder}\ntask:\n"),
        "network.name",
        "cowpro_encoder",
        "fedcowpro",
    ),
    "infinite": (
        ("task:\n", "training: {guard_drop: .inf}\ntask:\n"),
        "training.guard_drop",
        float("inf"),
        "",
    ),
    "patch size of 3": (
        ("channels: 3", "channels: 3\n  patch_size: [9, 9, 9]"),
        "task.patch_size",
        [9, 9, 9],
        "task.spatial_dims",
    ),
    "negative patch": (
        ("channels: 3", "channels: 3\n  patch_size: [9, -9]"),
        "task.patch_size",
        [9, -9],
        "Correct",
    ),
    "spacing of 3": (
        ("channels: 3", "channels: 3\n  spacing_mm: [1, 1, 1]"),
        "task.spacing_mm",
        [1.0, 1.0, 1.0],
        "per axis",
    ),
    "dimensions": (
        ("channels: 3", "channels: 3\n  spatial_dims: 4"),
        "task.spatial_dims",
        4,
        "Choose one of 2, 3",
    ),
    "labels with a gap": (
        ("1: vessel", "2: vessel"),
        "task.labels",
        {0: "background", 2: "vessel"},
        "label_map",
    ),
    "too many labels": (
        ("{0: background, 1: vessel}", str({n: f"class {n}" for n in range(256)})),
        "task.labels",
        256,
        "task.label_map",
    ),
    "labels alike": (("1: vessel", "1: background"), "task.labels", None, "own name"),
    "labels as list": (
        ("{0: background, 1: vessel}", "[background, vessel]"),
        "task.labels",
        ["background", "vessel"],
        "keys indented",
    ),
    "label map": (
        ("channels: 3", "channels: 3\n  label_map: {255: 2}"),
        "task.label_map",
        {255: 2},
        "Map file values to 0, 1",
    ),
    "rgb of one channel": (("channels: 3", "channels: 1"), "task.channels", 1, "Write 3"),
    "orientation": (
        ("channels: 3", "channels: 3\n  orientation: RAR"),
        "task.orientation",
        "RAR",
        "three letters",
    ),
    "axis of another kind of image": (
        ("algorithm:", "training:\n  flip_axes: [rows, left-right]\nalgorithm:"),
        "training.flip_axes",
        "left-right",
        "Write rows or columns",
    ),
    "no axis": (
        ("algorithm:", "training:\n  flip_axes: row\nalgorithm:"),
        "training.flip_axes",
        "row",
        "[rows, columns]",
    ),
    "axis as a number": (
        ("algorithm:", "training:\n  flip_axes: [0]\nalgorithm:"),
        "training.flip_axes.0",
        0,
        "quotes",
    ),
    "axes as a number": (
        ("algorithm:", "training:\n  flip_axes: 0\nalgorithm:"),
        "training.flip_axes",
        0,
        "[a, b]",
    ),
    "window upside down": (
        ("channels: 3", "channels: 3\n  ct_window_hu: [240, -160]"),
        "task.ct_window_hu",
        [240.0, -160.0],
        "[low, high]",
    ),
    "time-out longer than interval": (
        ("preset: lan", "preset: lan\n  probe_timeout_s: 9"),
        "membership.probe_timeout_s",
        9.0,
        "shorter",
    ),
    "two sites of one name": (("name: south", "name: north"), "sites.1.name", "north", "its own name"),
    "two sites at one address": (
        ('"[::1]:7443"', "127.0.0.1:7443"),
        "sites.1.address",
        "127.0.0.1:7443",
        "its own address",
    ),
    "two sites of one key": (
        ("certs/south.pem", "certs/north.pem"),
        "sites.1.certificate",
        None,
        "makes its own identity",
    ),
    "address without port": (
        ("127.0.0.1:7443", "127.0.0.1"),
        "sites.0.address",
        "127.0.0.1",
        "127.0.0.1:7443",
    ),
    "address with a bad port": (
        ("127.0.0.1:7443", "127.0.0.1:74443"),
        "sites.0.address",
        "127.0.0.1:74443",
        "host:port",
    ),
    "address with port 0": (("127.0.0.1:7443", "127.0.0.1:0"), "sites.0.address", "127.0.0.1:0", "reach"),
    "address of every interface": (("127.0.0.1", "0.0.0.0"), "sites.0.address", "0.0.0.0:7443", "reach"),
    "address as URL": (
        ("127.0.0.1:7443", "https://north:7443"),
        "sites.0.address",
        "https://north:7443",
        "host:port",
    ),
    "address without brackets": (('"[::1]:7443"', '"::1"'), "sites.1.address", "::1", "[::1]:7443"),
    "address with a blank": (
        ("127.0.0.1:7443", "my host:7443"),
        "sites.0.address",
        "my host:7443",
        "host:port",
    ),
    "address that is a number": (("127.0.0.1:7443", "7443"), "sites.0.address", 7443, "quotes"),
    "no certificate": (("certs/south.pem", '""'), "sites.1.certificate", None, "gossipctl init"),
    "certificate file missing": (
        ("certs/south.pem", "x.pem"),
        "sites.1.certificate",
        "x.pem",
        "cert.pem",
    ),
    "certificate file of something else": (
        ("certs/south.pem", "site.yaml"),
        "sites.1.certificate",
        "site.yaml",
        "cert.pem",
    ),
    "certificate of a wrong kind": (("certs/south.pem", "5"), "sites.1.certificate", 5, "quotes"),
    "an ID with a mistake": (
        ("name: south", "name: south\n    id: ABC"),
        "sites.1.id",
        "ABC",
        "Copy it again",
    ),
    "sites as text": (
        (PEERS[PEERS.index("sites:") :], "sites: north\n"),
        "sites",
        "north",
        "lines that begin",
    ),
    "duplicate key": (("channels: 3", "channels: 3\n  channels: 1"), "task.channels", None, "Remove one"),
    "duplicate key of a site": (
        ("name: south", "name: south\n    name: west"),
        "sites.1.name",
        None,
        "Remove",
    ),
    "version": (("federation: test", "federation: test\nversion: 2"), "version", 2, "Upgrade"),
}


@pytest.mark.parametrize(("edit", "key", "value", "remedy"), BAD_PEERS.values(), ids=BAD_PEERS.keys())
def test_bad_peers_file(folder: Path, edit: tuple[str, str], key: str, value: object, remedy: str) -> None:
    path = folder / "peers.yaml"
    path.write_text(replaced(PEERS, *edit))
    error = refused(folder)
    text = str(error)
    assert error.key == key, text
    assert text.startswith(f"{path}: {key}"), text
    if isinstance(value, float) and value == float("inf"):
        assert error.value == value
    elif value is not None:
        shown = repr(value) if value != "nan" else "nan"
        assert shown in text or str(value) in text, text
    assert remedy in error.remedy, text


def test_an_id_that_does_not_match_the_certificate(folder: Path, certificates: dict[str, str]) -> None:
    wrong = trust.site_id(certificates["north"].encode())
    (folder / "peers.yaml").write_text(replaced(PEERS, "name: south", f"name: south\n    id: {wrong}"))
    error = refused(folder)
    right = trust.site_id(certificates["south"].encode())
    assert (error.file, error.key, error.value) == (folder / "peers.yaml", "sites.1.id", wrong)
    assert right in str(error) and "read out its ID" in error.remedy


def test_a_private_key_in_the_list(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    leaked = trust.create_identity("south", tmp_path_factory.mktemp("leaked"))
    (folder / "certs" / "south.pem").write_bytes(leaked.key_pem)
    error = refused(folder)
    assert "PRIVATE KEY" in str(error) and "new identity" in error.remedy
    assert leaked.key_pem.decode().splitlines()[1] not in str(error), "the key itself is not printed"


def test_three_certificates(folder: Path) -> None:
    listed = "[certs/south.pem, certs/south.pem, certs/south.pem]"
    (folder / "peers.yaml").write_text(replaced(PEERS, "certs/south.pem", listed))
    assert "two during a rotation" in refused(folder).remedy


# ---------------------------------------------------------------- what is refused: site.yaml

BAD_SITE = {
    "unknown key": (("device:", "divice:"), "divice", None, "`device`"),
    "unknown nested key": (("device: cpu", "divice: cpu"), "device.divice", None, "`device`"),
    "key of peers.yaml": (("site: north", "site: north\nfederation: x"), "federation", None, "in peers.yaml"),
    "site that is not listed": (("site: north", "site: nroth"), "site", "nroth", "`north`"),
    "site like nothing": (("site: north", "site: zzz"), "site", "zzz", "listed: north, south"),
    "no data": (("data:\n  path: images\n", ""), "data", None, "Add it"),
    "empty data": (("  path: images\n", ""), "data", None, "Add it"),
    "data as text": (("data:\n  path: images", "data: images"), "data", "images", "keys indented"),
    "empty path": (("path: images", "path: ''"), "data.path", "", "path of a folder"),
    "device": (("device: cpu", "device: cdua"), "device.device", "cdua", "`cuda`"),
    "device number": (("device: cpu", "device: cuda:x"), "device.device", "cuda:x", "cuda"),
    "threads": (("device: cpu", "threads: 0"), "device.threads", 0, "Correct"),
    "threads as boolean": (("device: cpu", "threads: true"), "device.threads", True, "number"),
    "rounds": (("site: north", "site: north\nrounds: -3"), "rounds", -3, "Correct"),
    "listen": (("site: north", "site: north\nlisten: 7443"), "listen", 7443, "quotes"),
    "listen without port": (
        ("site: north", "site: north\nlisten: 0.0.0.0"),
        "listen",
        "0.0.0.0",
        "0.0.0.0:7443",
    ),
    "advertise": (("site: north", "site: north\nadvertise: '[::]:7443'"), "advertise", "[::]:7443", "reach"),
    "interface": (
        ("site: north", "site: north\ndiscovery: {interfaces: [eth0]}"),
        "discovery.interfaces.0",
        "eth0",
        "192.168.1.5",
    ),
    "level": (("site: north", "site: north\nlog: {level: warn}"), "log.level", "warn", "`warning`"),
    "fractions": (
        ("path: images", "path: images\n  test_fraction: 0.9"),
        "data.test_fraction",
        0.9,
        "below 1",
    ),
    "pattern": (
        ("path: images", "path: images\n  patient_pattern: 'p(\\d+'"),
        "data.patient_pattern",
        "p(\\d+",
        "(.+)",
    ),
    "no group": (
        ("path: images", "path: images\n  patient_pattern: 'p_.*'"),
        "data.patient_pattern",
        "p_.*",
        "(.+)",
    ),
    "version": (("site: north", "site: north\nversion: '1.0'"), "version", "1.0", "version: 1"),
}


@pytest.mark.parametrize(("edit", "key", "value", "remedy"), BAD_SITE.values(), ids=BAD_SITE.keys())
def test_bad_site_file(folder: Path, edit: tuple[str, str], key: str, value: object, remedy: str) -> None:
    path = folder / "site.yaml"
    path.write_text(replaced(SITE, *edit))
    error = refused(folder)
    text = str(error)
    assert error.key == key, text
    assert text.startswith(f"{path}: {key}"), text
    assert value is None or repr(value) in text, text
    assert remedy in error.remedy, text


@pytest.mark.parametrize(
    ("edit", "key"),
    [
        (("site: north", "site: north\ninsecure: true"), "listen"),
        (
            ("site: north", "site: north\ninsecure: true\nlisten: 127.0.0.1:1\nadvertise: 10.0.0.1:1"),
            "advertise",
        ),
    ],
)
def test_plaintext_beyond_loopback(folder: Path, edit: tuple[str, str], key: str) -> None:
    (folder / "site.yaml").write_text(replaced(SITE, *edit))
    error = refused(folder)
    assert (error.file, error.key) == (str(folder / "site.yaml"), key)
    assert "Remove `insecure`" in error.remedy


@pytest.mark.parametrize(
    ("site", "peers", "file", "key"),
    [
        ("privacy: {dp: {}}", ("name: gcml", "name: gcml"), "peers.yaml", "algorithm.name"),
        ("privacy: {dp: {}}", FEDAVG_BATCH_NORM, "peers.yaml", "network.norm"),
        ("privacy: {dp: {noise_multiplier: 0}}", FEDAVG, "site.yaml", "privacy.dp.noise_multiplier"),
        ("privacy: {dp: {delta: 1}}", FEDAVG, "site.yaml", "privacy.dp.delta"),
        ("privacy: {dp: {epsilon: 1}}", FEDAVG, "site.yaml", "privacy.dp.epsilon"),
    ],
)
def test_private_training_that_cannot_be(
    folder: Path, site: str, peers: tuple[str, str], file: str, key: str
) -> None:
    (folder / "site.yaml").write_text(f"{SITE}{site}\n")
    (folder / "peers.yaml").write_text(replaced(PEERS, *peers))
    error = refused(folder)
    assert (error.file, error.key) == (str(folder / file), key) and error.remedy


def test_private_training_reaches_the_worker(folder: Path) -> None:
    (folder / "site.yaml").write_text(SITE + "privacy: {dp: {noise_multiplier: 1.5, max_epsilon: 8}}\n")
    (folder / "peers.yaml").write_text(replaced(PEERS, *FEDAVG))
    told = config.worker_spec(load(folder)).privacy["dp"]
    assert told == {"noise_multiplier": 1.5, "max_grad_norm": 1.0, "delta": 1e-5, "max_epsilon": 8}


@pytest.mark.parametrize("lines", ["personal: none", "personal: always", "personal_from_round: 3"])
def test_the_personal_model_is_a_sites_own_affair(folder: Path, lines: str) -> None:
    (folder / "peers.yaml").write_text(replaced(PEERS, *FEDAVG))
    plain = load(folder)
    (folder / "peers.yaml").write_text(replaced(PEERS, *FEDAVG) + f"training:\n  {lines}\n")
    asked = load(folder)
    key, _, value = lines.partition(": ")
    assert str(config.worker_spec(asked).training[key]) == value
    assert config.contract(asked.federation) == config.contract(plain.federation)


@pytest.mark.parametrize(
    ("algorithm", "training", "key", "remedy"),
    [
        ("gcml", "personal: none", "personal", "use gossip_average"),
        ("ditto", "personal: none", "personal", "use fedavg"),
        ("ditto", "personal_from_round: 2", "personal_from_round", "Leave the key out"),
        ("local", "personal_from_round: 2", "personal_from_round", "Leave the key out"),
        ("fedavg", "personal: none\n  personal_from_round: 2", "personal_from_round", "Leave the key out"),
        ("fedavg", "personal: sometimes", "personal", "Choose one of always, none"),
        ("fedavg", "personal_from_round: 0", "personal_from_round", "Correct the number"),
    ],
)
def test_a_personal_model_that_cannot_be(
    folder: Path, algorithm: str, training: str, key: str, remedy: str
) -> None:
    text = replaced(PEERS, FEDAVG[0], f"name: {algorithm}") + f"training:\n  {training}\n"
    (folder / "peers.yaml").write_text(text)
    error = refused(folder)
    assert (error.file, error.key) == (str(folder / "peers.yaml"), f"training.{key}")
    assert remedy in error.remedy


SEGRESNET = "personal_network: {name: segresnet, width: 8}\n"


def test_a_personal_network_is_a_sites_own_affair(folder: Path) -> None:
    plain = load(folder)
    (folder / "site.yaml").write_text(SITE + SEGRESNET)
    own = load(folder)
    told = config.worker_spec(own).personal_network
    assert told is not None and (told["name"], told["width"], told["norm"]) == ("segresnet", 8, "instance")
    assert config.worker_spec(own).network == config.worker_spec(plain).network
    assert config.worker_spec(plain).personal_network is None
    assert config.contract(own.federation) == config.contract(plain.federation)
    by_variable = load(folder, env={"GOSSIPSEG_PERSONAL_NETWORK__WIDTH": "4"})
    assert by_variable.site.personal_network is not None and by_variable.site.personal_network.width == 4


@pytest.mark.parametrize(
    ("site", "key", "problem", "remedy"),
    [
        ("personal_network: {width: 8}", "name", "missing", "Name the network: sanet"),
        ("personal_network: {}", "name", "missing", "Name the network: sanet"),
        ("personal_network: {name: segresnt}", "name", "is not one of", "Did you mean `segresnet`?"),
        ("personal_network: {name: unet, width: 0}", "width", "must be at least 1", "Correct the number"),
        ("personal_network: {name: unet, witdh: 8}", "witdh", "unknown key", "Did you mean `width`?"),
        ("personal_network: {name: cowpro_encoder}", "name", "gives features", "Write another network"),
    ],
)
def test_a_personal_network_that_cannot_be(
    folder: Path, site: str, key: str, problem: str, remedy: str
) -> None:
    (folder / "site.yaml").write_text(f"{SITE}{site}\n")
    error = refused(folder)
    assert (error.file, error.key) == (str(folder / "site.yaml"), f"personal_network.{key}")
    assert problem in error.problem and remedy in error.remedy


@pytest.mark.parametrize(
    ("algorithm", "training", "problem", "remedy"),
    [
        ("local", "", "trains one model", "write that network in peers.yaml"),
        ("ditto", "", "both have one network", "fedavg or gcml"),
        ("fedavg", "personal: none", "no personal model trains here", "personal: always"),
        ("fedavg", "personal_from_round: 2", "begin as a copy", "personal_from_round"),
    ],
)
def test_a_personal_network_beside_an_algorithm_that_has_no_place_for_it(
    folder: Path, algorithm: str, training: str, problem: str, remedy: str
) -> None:
    text = replaced(PEERS, FEDAVG[0], f"name: {algorithm}")
    (folder / "peers.yaml").write_text(text + (f"training:\n  {training}\n" if training else ""))
    (folder / "site.yaml").write_text(SITE + SEGRESNET)
    error = refused(folder)
    assert (error.file, error.key) == (str(folder / "site.yaml"), "personal_network.name")
    assert problem in error.problem and remedy in error.remedy


@pytest.mark.parametrize(
    ("params", "personal", "fits"),
    [
        (FedOapParams(), None, False),
        (FedOapParams(), "always", True),
        (FedCoWProParams(), None, False),
        (FedAvgFinetuneParams(), None, True),
        (GcmlParams(mutual="both"), None, True),
    ],
)
def test_which_algorithms_stand_beside_a_personal_network(params: Any, personal: Any, fits: bool) -> None:
    training = TrainingParams(personal=personal)
    assert (personal_network_problem(NetworkParams("unet"), training, params) is None) == fits


def test_features_of_two_networks_are_not_compared() -> None:
    asked = SimpleNamespace(name="gcml", personal="yes", contrast="features")
    found = personal_network_problem(NetworkParams("unet"), TrainingParams(), asked)  # type: ignore[arg-type]
    assert found is not None and "algorithm.contrast: logits" in found[3]


@pytest.mark.parametrize(
    ("algorithm", "network", "taught"),
    [("local", "unet", False), ("fedoap", "dca_unet", False), ("fedsca", "adapted_unetr", False),
     ("gcml", "dca_unet", True), ("gcml", "unet", True), ("fedavg", "segresnet", True)],
)  # fmt: skip
def test_somebody_must_teach_a_site_the_classes_that_it_does_not_annotate(
    algorithm: str, network: str, taught: bool
) -> None:
    task = TaskParams("organs", 1, {0: "background", 1: "liver", 2: "spleen"})
    chosen = params_class(algorithm)()
    found = unlearned_problem(task, DataParams("images", annotated_labels=(1,)), chosen, network)
    assert (found is None) == taught
    if found is not None:
        assert "2 (spleen)" in found[0] and found[1] == "data.annotated_labels"
    assert unlearned_problem(task, DataParams("images", annotated_labels=(1, 2)), chosen, network) is None
    assert unlearned_problem(task, DataParams("images"), chosen, network) is None


def test_a_site_alone_that_leaves_a_class_out_is_refused(folder: Path) -> None:
    doc = yaml.safe_load((folder / "peers.yaml").read_text())
    doc["task"]["labels"][2], doc["algorithm"] = "artery", {"name": "local"}
    (folder / "peers.yaml").write_text(yaml.safe_dump(doc))
    site = yaml.safe_load((folder / "site.yaml").read_text())
    site["data"]["annotated_labels"] = [1]
    (folder / "site.yaml").write_text(yaml.safe_dump(site))
    error = refused(folder)
    assert error.key == "data.annotated_labels" and "2 (artery)" in str(error)


def test_without_labels_there_is_no_personal_model() -> None:
    found = personal_problem(TrainingParams(personal="always"), FedCoWProParams())
    assert found is not None and "learns without labels" in found[0]
    assert not trains_personal(TrainingParams(), FedCoWProParams())


def test_private_training_names_what_to_write_in_place_of_gcml(folder: Path) -> None:
    (folder / "site.yaml").write_text(SITE + "privacy: {dp: {}}\n")
    error = refused(folder)
    assert error.key == "algorithm.name" and error.remedy.startswith("Write gossip_average")


@pytest.mark.parametrize("key", ["shadow_local", "ensemble_peers"])
def test_ways_to_deploy_that_went_say_what_there_is_instead(
    folder: Path, key: str, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "peers.yaml").write_text(PEERS + f"training:\n  {key}: true\n")
    error = refused(folder)
    assert (error.key, error.value) == (f"training.{key}", True)
    assert "training.personal" in error.remedy
    (folder / "peers.yaml").write_text(PEERS + f"training:\n  {key}: false\n")
    load(folder)
    (folder / "peers.yaml").write_text(replaced(PEERS, FEDAVG[0], "name: gossip_ensemble"))
    error = refused(folder)
    assert error.key == "algorithm.name" and "Write gossip_average" in error.remedy


def test_a_budget_leaves_rounds_to_learn_together(folder: Path) -> None:
    (folder / "peers.yaml").write_text(replaced(PEERS, FEDAVG[0], "name: fedavg_finetune"))
    (folder / "site.yaml").write_text(SITE + "rounds: 5\n")
    error = refused(folder)
    assert (error.file, error.key, error.value) == (str(folder / "site.yaml"), "rounds", 5)
    (folder / "site.yaml").write_text(SITE + "rounds: 6\n")
    assert load(folder).site.rounds == 6


def test_the_federations_budget_leaves_rounds_to_learn_together_too(folder: Path) -> None:
    finetuned = replaced(PEERS, FEDAVG[0], "name: fedavg_finetune")
    (folder / "peers.yaml").write_text(finetuned + "training: {rounds: 5}\n")
    error = refused(folder)
    assert (error.file, error.key, error.value) == (str(folder / "peers.yaml"), "training.rounds", 5)
    assert "Give 6 rounds" in error.remedy
    (folder / "peers.yaml").write_text(finetuned + "training: {rounds: 6}\n")
    assert load(folder).rounds == 6


@pytest.mark.parametrize(
    ("algorithm", "most", "problem"),
    [
        (
            "fedavg\nexchange_at:\n  every_rounds: 5",
            4,
            "leaves no round that is exchanged: exchange_at.every_rounds is 5",
        ),
        (
            "gossip_average\nexchange_at:\n  every_rounds: 5",
            5,
            "leaves no round that is exchanged: exchange_at.every_rounds is 5, and after the last round "
            "nothing is exchanged",
        ),
        (
            "fedavg_finetune\n  finetune_rounds: 2\nexchange_at:\n  every_rounds: 3",
            4,
            "leaves no round that is exchanged: exchange_at.every_rounds is 3, and finetune_rounds is 2",
        ),
    ],
)
def test_a_budget_leaves_a_round_that_is_exchanged(
    folder: Path, algorithm: str, most: int, problem: str
) -> None:
    """Models meet at the end of every_rounds rounds; those of fine-tuning are none of them."""
    seldom = replaced(PEERS, FEDAVG[0], f"name: {algorithm}")
    for file, key in (("peers.yaml", "training.rounds"), ("site.yaml", "rounds")):
        for rounds in (most, most + 1):
            of_all, own = (rounds, None) if file == "peers.yaml" else (None, rounds)
            (folder / "peers.yaml").write_text(
                seldom + (f"training: {{rounds: {of_all}}}\n" if of_all else "")
            )
            (folder / "site.yaml").write_text(SITE + (f"rounds: {own}\n" if own else ""))
            if rounds > most:
                assert load(folder).rounds == rounds
                continue
            error = refused(folder)
            assert (error.file, error.key, error.value) == (str(folder / file), key, most)
            assert error.problem == problem
            assert error.remedy.startswith(
                f"Give {most + 1} rounds or more, or lower exchange_at.every_rounds"
            )


def test_exchanges_by_the_summed_rate_need_a_budget(folder: Path) -> None:
    by_rate = replaced(PEERS, *FEDAVG) + "exchange_at: {summed_rate: 0.1}\n"
    (folder / "peers.yaml").write_text(by_rate)
    error = refused(folder)
    assert (error.file, error.key) == (str(folder / "peers.yaml"), "exchange_at.summed_rate")
    assert error.value == 0.1 and "training.rounds, which is not set" in error.problem
    assert error.remedy == "Write training.rounds, such as 100, or exchange_at.every_rounds instead."
    (folder / "peers.yaml").write_text(by_rate + "training: {rounds: 20, schedule: constant}\n")
    times = exchange_times(load(folder).federation)
    assert times.ends == tuple(range(2, 21, 2))


@pytest.mark.parametrize("share", [0, 1.1, -0.5, ".nan"])
def test_the_share_of_the_summed_rate_is_one(folder: Path, share: object) -> None:
    text = f"exchange_at: {{summed_rate: {share}}}\ntraining: {{rounds: 20}}\n"
    (folder / "peers.yaml").write_text(PEERS + text)
    assert refused(folder).key == "exchange_at.summed_rate"


def test_exchanges_are_spaced_in_one_way(folder: Path) -> None:
    both = "exchange_at: {summed_rate: 0.1, every_rounds: 1}\ntraining: {rounds: 20}\n"
    (folder / "peers.yaml").write_text(replaced(PEERS, *FEDAVG) + both)
    error = refused(folder)
    assert error.key == "exchange_at.summed_rate" and error.remedy == "Keep one of the two."


def test_the_old_key_says_what_to_write(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "peers.yaml").write_text(replaced(PEERS, FEDAVG[0], "name: fedavg\n  every_rounds: 3"))
    error = refused(folder)
    assert (error.key, error.value) == ("algorithm.every_rounds", 3)
    assert error.remedy == "Write exchange_at: {every_rounds: 3} beside it, at all sites."
    (folder / "peers.yaml").write_text(replaced(PEERS, FEDAVG[0], "name: fedavg\n  every_rounds: 1"))
    assert exchange_times(load(folder).federation).each_round


def test_when_models_are_exchanged_is_of_the_contract(folder: Path) -> None:
    """As versions before had it, where they could say it."""
    found = []
    for name, text in [
        ("fedavg", ""),
        ("fedavg", "exchange_at: {every_rounds: 3}\n"),
        ("fedavg", "exchange_at: {summed_rate: 0.25}\n"),
        ("gcml", ""),
        ("local", "exchange_at: {every_rounds: 3}\n"),
    ]:
        peers = replaced(PEERS, FEDAVG[0], f"name: {name}") + "training: {rounds: 20}\n"
        (folder / "peers.yaml").write_text(peers + text)
        told = dict(config.contract(load(folder).federation))
        del told["training.validate_every_rounds"]
        found.append({k: v for k, v in told.items() if "every_rounds" in k or "exchange_at" in k})
    assert found == [
        {"algorithm.every_rounds": "1"},
        {"algorithm.every_rounds": "3"},
        {"exchange_at.summed_rate": "0.25"},
        {},
        {},
    ]


def test_a_late_first_exchange_by_the_rate_must_be_within_a_sites_own_budget(folder: Path) -> None:
    late = "exchange_at: {summed_rate: 0.5}\ntraining: {rounds: 20, schedule: constant}\n"
    (folder / "peers.yaml").write_text(replaced(PEERS, *FEDAVG) + late)
    (folder / "site.yaml").write_text(SITE + "rounds: 9\n")
    error = refused(folder)
    assert (error.key, error.value) == ("rounds", 9)
    assert error.problem.endswith("by exchange_at.summed_rate (0.5) the first is after round 10")
    (folder / "site.yaml").write_text(SITE + "rounds: 10\n")
    assert load(folder).rounds == 10


@pytest.mark.parametrize(
    ("own", "of_all", "in_force"), [(None, None, None), (7, None, 7), (None, 9, 9), (7, 9, 7), (9, 9, 9)]
)
def test_the_budget_in_force_is_the_earlier_one(
    folder: Path, own: int | None, of_all: int | None, in_force: int | None
) -> None:
    (folder / "site.yaml").write_text(SITE + (f"rounds: {own}\n" if own else ""))
    (folder / "peers.yaml").write_text(PEERS + (f"training: {{rounds: {of_all}}}\n" if of_all else ""))
    loaded = load(folder)
    assert loaded.rounds == in_force
    spec = config.worker_spec(loaded)
    assert (spec.rounds, spec.training["rounds"]) == (own, of_all), (
        "the worker knows the federation's by itself"
    )


def test_no_site_trains_longer_than_the_federation(folder: Path) -> None:
    (folder / "peers.yaml").write_text(PEERS + "training: {rounds: 9}\n")
    (folder / "site.yaml").write_text(SITE + "rounds: 10\n")
    error = refused(folder)
    assert (error.file, error.key, error.value) == (str(folder / "site.yaml"), "rounds", 10)
    assert "training.rounds (9) in peers.yaml" in error.problem and "Write 9 or fewer" in error.remedy


def test_plaintext_to_a_listed_site_beyond_loopback(folder: Path) -> None:
    (folder / "site.yaml").write_text(SITE + "insecure: true\nlisten: 127.0.0.1:7443\n")
    (folder / "peers.yaml").write_text(replaced(PEERS, '"[::1]:7443"', "127.example.org:7443"))
    error = refused(folder)
    assert (error.file, error.key) == (str(folder / "peers.yaml"), "sites.1.address")


@pytest.mark.parametrize(
    ("name", "text", "key", "remedy"),
    [
        ("GOSSIPSEG_DEVICE__TREADS", "2", "device.treads", "`threads`"),
        ("GOSSIPSEG_DEVICE__THREADS", "two", "device.threads", "whole number"),
        ("GOSSIPSEG_ROUNDS", "-1", "rounds", "Correct"),
        ("GOSSIPSEG_SITE__NAME", "x", "site.name", "Correct the name"),
        ("GOSSIPSEG_LISTEN", "nowhere", "listen", "nowhere:7443"),
    ],
)
def test_errors_name_the_environment_variable(
    folder: Path, name: str, text: str, key: str, remedy: str
) -> None:
    error = refused(folder, env={name: text})
    assert name in str(error), str(error)
    assert error.key == key
    assert remedy in error.remedy


def test_errors_name_the_flag(folder: Path) -> None:
    error = refused(folder, overrides={"device.device": "gpu"})
    assert str(error).startswith("flag for device.device: device.device = 'gpu'")


# ---------------------------------------------------------------- files that are no configuration


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is empty"),
        (b"# nothing but a comment\n", "is empty"),
        (b"- a\n- b\n", "is not a YAML mapping"),
        (b"just text", "is not a YAML mapping"),
        (b"a: [1\n", "is not valid YAML in line 2"),
        (b"task:\n\tname: x\n", "Indent with spaces"),
        (b"a: b: c\n", "put text that holds `: `"),
        ("federation: \u00e9tude\n".encode("latin-1"), "byte 0xe9 in line 1"),
        ("federation: x\n".encode("utf-16"), "UTF-16"),
        (b"a: *nobody\n", "is not valid YAML"),
        (b"a: 1\n---\nb: 2\n", "is not valid YAML"),
        (b"a: !!python/object:os.system x\n", "is not valid YAML"),
        (b"1: x\n", "1: unknown key"),
    ],
)
def test_files_that_cannot_be_read(folder: Path, data: bytes, words: str) -> None:
    path = folder / "peers.yaml"
    path.write_bytes(data)
    text = str(refused(folder))
    assert text.startswith(f"{path}: ") and words in text, text


def test_missing_file_and_folder_in_its_place(folder: Path) -> None:
    (folder / "peers.yaml").unlink()
    error = refused(folder)
    assert error.file == folder / "peers.yaml" and "gossipctl init" in error.remedy
    (folder / "peers.yaml").mkdir()
    assert "is a folder" in str(refused(folder))


ONE_SHOT = """\
federation: one-shot
task: {name: organs, channels: 1, labels: {0: background, 1: liver}, patch_size: [96, 96], slice_axis: 2,
       spacing_mm: [1.5, 1.5, 3], orientation: RAS}
network: {name: cowpro_encoder, norm: group, width: 16, options: {depth: 18}}
algorithm: {name: fedcowpro, pseudo_labels: cow}
training: {optimizer: sgd, schedule: step_decay}
"""


def test_a_federation_that_learns_from_slices_of_volumes(tmp_path: Path) -> None:
    path = tmp_path / "peers.yaml"
    path.write_text(ONE_SHOT)
    federation = config.load_federation(path)
    assert federation.task.image_dims == 3
    assert dict(config.contract(federation))["task.slice_axis"] == "2"


@pytest.mark.parametrize(
    ("edit", "key", "remedy"),
    [
        (("cowpro_encoder", "unet"), "network.name", "fedcowpro"),
        (("step_decay}", "step_decay, output: sigmoid}"), "training.output", "softmax"),
        (("slice_axis: 2", "slice_axis: null"), "task.spacing_mm", "one number per axis"),
        (("[96, 96]", "[96, 96, 96]"), "task.patch_size", "one number per axis"),
        (
            ("[96, 96], slice_axis: 2,", "[96, 96, 96], spatial_dims: 3,"),
            "task.spatial_dims",
            "slice_axis",
        ),
    ],
)
def test_bad_one_shot_federation(tmp_path: Path, edit: tuple[str, str], key: str, remedy: str) -> None:
    path = tmp_path / "peers.yaml"
    path.write_text(replaced(ONE_SHOT, *edit))
    with pytest.raises(ConfigError) as caught:
        config.load_federation(path)
    assert caught.value.key == key
    assert remedy in caught.value.remedy


# ---------------------------------------------------------------- rules, contract, dump


def dataclasses_within(kind: Any) -> Iterator[type]:
    yield kind
    for hint in typing.get_type_hints(kind).values():
        for part in (hint, *typing.get_args(hint)):
            if dataclasses.is_dataclass(part):
                assert isinstance(part, type)
                yield from dataclasses_within(part)


UNBOUNDED = {"ct_window_hu", "ignore_label"}
"""Numbers of which any finite value is allowed."""


@pytest.mark.parametrize("file", [FederationFile, SiteFile])
def test_every_number_states_its_bounds(file: type) -> None:
    for kind in dataclasses_within(file):
        annotated = typing.get_type_hints(kind, include_extras=True)
        for name, hint in typing.get_type_hints(kind).items():
            parts = {hint, *typing.get_args(hint)}
            is_number = typing.get_origin(hint) not in (dict, typing.ClassVar) and parts & {int, float}
            if is_number and not hasattr(annotated[name], "__metadata__") and not name.startswith("__"):
                assert name in UNBOUNDED, f"{kind.__name__}.{name} states no bounds"


def test_defaults_satisfy_their_own_rules(folder: Path) -> None:
    loaded = load(folder)
    ranges.check_ranges(loaded.federation, config.reading.Source(folder, {}))
    ranges.check_ranges(loaded.site, config.reading.Source(folder, {}))


def test_contract_is_stable_and_leaves_out_sites(folder: Path) -> None:
    first = config.contract(load(folder).federation, "abc")
    (folder / "peers.yaml").write_text(replaced(PEERS, "127.0.0.1:7443", "127.0.0.1:7444"))
    assert config.contract(load(folder).federation, "abc") == first
    assert dict(first)["algorithm.lambda"] == "0.3", "the key that stands in the file"
    (folder / "peers.yaml").write_text(replaced(PEERS, "lambda: 0.3", "lambda: 0.4"))
    other = config.contract(load(folder).federation, "abc")
    assert {k for k, v in other if dict(first)[k] != v} == {"algorithm.lambda"}
    assert config.fingerprint(first) != config.fingerprint(other)


# ---------------------------------------------------------------- settings of earlier versions


def test_sites_of_earlier_versions_agree_on_what_they_had_besides(folder: Path) -> None:
    """Version 0.3 counts this key into the contract; both must say the same where it changes nothing."""
    (folder / "peers.yaml").write_text(replaced(PEERS, FEDAVG[0], "name: gossip_average"))
    found = {k: v for k, v in config.contract(load(folder).federation) if k.startswith("algorithm.")}
    assert found == {"algorithm.name": '"gossip_average"', "algorithm.private_norm": "false"}


def test_sites_with_gcml_in_its_earlier_form_are_told_apart(folder: Path) -> None:
    """There an incoming model trained as a guest: the two forms must not exchange models."""
    found = dict(config.contract(load(folder).federation))
    assert "algorithm.mutual" in found and "algorithm.lambda_ramp_visits" not in found


def test_lines_of_earlier_versions_that_change_nothing_are_left_out_and_told_once(
    folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gossipseg.config.old_keys._told", set())
    plain = load(folder).federation
    lines = "lambda: 0.3\n  merge: average\n  resident_rounds: 1\n  private_norm: false"
    (folder / "peers.yaml").write_text(replaced(PEERS, "lambda: 0.3", lines))
    assert load(folder).federation == load(folder).federation == plain
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        f"{folder / 'peers.yaml'}: algorithm.{written} is no longer a setting. "
        "As it stands it changes nothing: leave the key out."
        for written in ("merge = average", "private_norm = false", "resident_rounds = 1")
    ]


@pytest.mark.parametrize(
    ("gossip", "said"),
    [
        ("{sender_rate: 0.9}", ["gossip.sender_rate = 0.9 counts only with `exchange: push`."]),
        ("{exchange: push, sender_rate: 0.9}", []),
        ("{sender_rate: 0.5}", []),
        (
            "{exchange: push, swaps_per_round: 2}",
            ["gossip.swaps_per_round = 2 counts only with `exchange: swap`."],
        ),
        ("{swaps_per_round: log2}", []),
    ],
)
def test_a_key_that_does_not_count_beside_the_exchange_is_told(
    folder: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    gossip: str,
    said: list[str],
) -> None:
    monkeypatch.setattr("gossipseg.config.old_keys._told", set())
    (folder / "peers.yaml").write_text(PEERS + f"gossip: {gossip}\n")
    for _ in range(2):
        load(folder)
    assert [r.getMessage().split(": ", 1)[1] for r in caplog.records] == said


@pytest.mark.parametrize(
    ("line", "key", "value", "remedy"),
    [
        ("resident_rounds: 4", "algorithm.resident_rounds", 4, "Leave the key out, at all sites."),
        ("private_norm: true", "algorithm.private_norm", True, "Leave the key out, at all sites."),
        ("merge: val_weighted", "algorithm.merge", "val_weighted", "Leave the key out, at all sites."),
        ("merge: best_of", "algorithm.merge", "best_of", "Leave the key out, at all sites."),
    ],
)
def test_settings_that_brought_nothing_are_refused_with_what_to_write(
    folder: Path, line: str, key: str, value: object, remedy: str
) -> None:
    (folder / "peers.yaml").write_text(replaced(PEERS, "lambda: 0.3", f"lambda: 0.3\n  {line}"))
    with pytest.raises(ConfigError, match="it brought nothing when it was measured") as caught:
        load(folder)
    assert str(folder / "peers.yaml") in str(caught.value)
    assert (caught.value.key, caught.value.value, caught.value.remedy) == (key, value, remedy)


def test_keys_that_went_are_unknown_where_they_never_were(folder: Path) -> None:
    text = replaced(PEERS, "name: gcml\n  lambda: 0.3", "name: fedavg\n  private_norm: false")
    (folder / "peers.yaml").write_text(text)
    with pytest.raises(ConfigError, match="unknown key"):
        load(folder)


@pytest.mark.parametrize(
    ("one", "other", "agree"),
    [
        ("rounds: 50", "rounds: 50, schedule: cosine", True),
        ("rounds: 50", "rounds: 50, schedule_rounds: 50", True),
        ("rounds: 50", "rounds: 50, schedule_rounds: 40", False),
        ("schedule: constant", "{}", True),
        ("schedule: constant", "schedule: constant, schedule_rounds: 40", True),
        ("schedule: constant, rounds: 50", "rounds: 50", False),
        ("schedule_rounds: 50", "rounds: 50", False),
    ],
)
def test_schedules_that_mean_the_same_agree(folder: Path, one: str, other: str, agree: bool) -> None:
    contracts = []
    for text in (one, other):
        (folder / "peers.yaml").write_text(PEERS + f"training: {{{text.strip('{}')}}}\n")
        contracts.append(config.contract(load(folder).federation))
    assert (contracts[0] == contracts[1]) == agree
    schedules = [(p["training.schedule"], p["training.schedule_rounds"]) for p in map(dict, contracts)]
    assert '"auto"' not in {s for s, _ in schedules}


def test_the_quorum_is_of_the_contract_where_there_is_a_coordinator(folder: Path) -> None:
    gossip = dict(config.contract(load(folder).federation))
    assert "rounds.quorum" not in gossip
    doc = yaml.safe_load(PEERS)
    doc.update(algorithm={"name": "fedavg"}, rounds={"quorum": 2, "patience_s": 5.0})
    (folder / "peers.yaml").write_text(yaml.safe_dump(doc))
    coordinated = dict(config.contract(load(folder).federation))
    assert coordinated["rounds.quorum"] == "2" and "rounds.patience_s" not in coordinated


def test_a_swap_is_of_the_contract_and_a_push_is_not(folder: Path) -> None:
    """Sites of earlier versions push, and their contract has no such key."""
    doc = yaml.safe_load(PEERS)
    (folder / "peers.yaml").write_text(yaml.safe_dump({**doc, "gossip": {"exchange": "push"}}))
    assert "gossip.exchange" not in dict(config.contract(load(folder).federation))
    (folder / "peers.yaml").write_text(yaml.safe_dump(doc))
    swapping = load(folder).federation
    assert dict(config.contract(swapping))["gossip.exchange"] == '"swap"' and config.swaps(swapping)
    doc["algorithm"] = {"name": "fedavg"}
    (folder / "peers.yaml").write_text(yaml.safe_dump(doc))
    assert "gossip.exchange" not in dict(config.contract(load(folder).federation))


def test_contract_leaves_out_what_is_not_shared(folder: Path) -> None:
    first = config.contract(load(folder).federation)
    (folder / "peers.yaml").write_text(PEERS + "gossip: {retries: 9}\nwire: {max_model_bytes: 9}\n")
    assert config.contract(load(folder).federation) == first


@pytest.mark.parametrize("other", ["float16", "bfloat16", "float32"])
def test_a_site_with_another_wire_dtype_is_refused_by_the_contract(folder: Path, other: str) -> None:
    def hello(dtype: str) -> Hello:
        (folder / "peers.yaml").write_text(PEERS + f"wire: {{dtype: {dtype}}}\n")
        loaded = load(folder)
        assert config.worker_spec(loaded).wire_dtype == dtype
        info = PeerInfo(0, 0, 0, Phase.TRAINING, "")
        return Hello(1, 1, "f", config.contract(loaded.federation, "abc"), info)

    mine, theirs = hello("int8"), hello(other)
    assert refusal(mine, theirs) == f'wire.dtype: "int8" here, "{other}" there'
    assert refusal(theirs, mine) == f'wire.dtype: "{other}" here, "int8" there'
    assert refusal(mine, mine) == ""


VOLUMES = {"spatial_dims": 3, "patch_size": [32, 32, 32], "orientation": "LPS"}


@pytest.mark.parametrize(
    ("labels", "task", "written"),
    [
        (["vessel"], {}, [["rows", "columns"], ["columns", "rows"], "all"]),
        (["left lung", "right lung"], {}, ["none", []]),
        (["front", "back"], VOLUMES, [["left-right"], "left-right"]),
    ],
)
def test_the_contract_has_the_axes_that_are_mirrored(
    folder: Path, labels: list[str], task: dict[str, Any], written: list[Any]
) -> None:
    def contract(**training: Any) -> dict[str, str]:
        doc = yaml.safe_load(PEERS)
        doc["task"] |= {"labels": dict(enumerate(["background", *labels])), **task, "intensity": "zscore"}
        (folder / "peers.yaml").write_text(yaml.safe_dump({**doc, "training": training}))
        return dict(config.contract(load(folder).federation))

    auto = contract()
    assert contract(flip_axes="auto") == auto
    for axes in written:
        assert contract(flip_axes=axes) == auto, axes
    one = contract(flip_axes=["superior-inferior"] if task else "rows")
    assert {k for k in one if one[k] != auto[k]} == {"training.flip_axes"}
    assert json.loads(one["training.flip_axes"]) == ["superior-inferior" if task else "rows"]
    assert json.loads(contract(augment="none")["training.flip_axes"]) == []


def test_worker_spec_is_json_and_knows_no_keys(folder: Path) -> None:
    spec = config.worker_spec(load(folder))
    text = json.dumps(dataclasses.asdict(spec))
    assert spec.algorithm["lambda_"] == 0.3
    assert "BEGIN" not in text and "address" not in text


def test_dump_reads_as_yaml_with_every_default(folder: Path) -> None:
    shown = yaml.safe_load(config.dump(load(folder)))
    assert shown["federation"]["algorithm"]["lambda"] == 0.3
    assert shown["federation"]["task"]["labels"] == {0: "background", 1: "vessel"}
    assert shown["federation"]["sites"][0]["certificate"] == "1 certificate(s)"
    assert shown["site"]["disk_reserve_bytes"] == 256 << 20


# ---------------------------------------------------------------- more than it looks


def bomb(first: str, of: str, levels: int = 9) -> str:
    """Each level is nine of the one before."""
    above = [f"x{i}: &x{i} " + of.format(", ".join([f"*x{i - 1}"] * 9)) for i in range(1, levels + 1)]
    return "\n".join([f"x0: &x0 {first}", *above]) + "\n"


BOMBS = {
    "lists": (bomb("[a, a, a, a, a, a, a, a, a]", "[{}]"), "written out"),
    "merges": (bomb("{k: 1}", "{{<<: [{}]}}"), "written out"),
    "values": (bomb("[a]", "{{a: *x0, b: [{}]}}"), "written out"),
    "text": ("x: &x " + "t" * 100_000 + "\ny: [" + "*x, " * 50 + "]\n", "written out"),
    "itself": ("x: &a [*a]\n", "contain itself"),
    "itself, deeper": ("x: &a {b: [1, {c: *a}]}\n", "contain itself"),
    "itself, merged": ("x: &a {<<: *a}\n", "contain itself"),
    "brackets": ("x: " + "[" * 100_000 + "]" * 100_000 + "\n", "nested more than"),
    "braces": ("x: " + "{a: " * 5000 + "1" + "}" * 5000 + "\n", "nested more than"),
    "lines": ("x:\n" + "".join(" " * i + "a:\n" for i in range(1, 400)), "nested more than"),
    "dashes": ("x: \n  " + "- " * 5000 + "a\n", "nested more than"),
    "a chain of aliases": (
        "x0: &x0 [a]\n" + "".join(f"x{i}: &x{i} [*x{i - 1}]\n" for i in range(1, 200)),
        "nested more than",
    ),
    "sixties": ("x: !!int " + "1:" * 5000 + "1\n", "a value with a tag"),
    "size": ("# " + "x" * (5 << 20) + "\n", "is larger than"),
    "many": ("x: [" + "a, " * 120_000 + "]\n", "100000 values"),
    "a long key": ("? " + "k" * 100_000 + "\n: [a, a]\n", "more than 1024 characters"),
    "numbers on one place of a dict": (f"x: {{{2**61 - 1}: a, {2**62 - 2}: b}}\n", "more than 18 characters"),
    "documents": ("---\n" * 100_000, "another document"),
}


@pytest.mark.parametrize("name", BOMBS)
@pytest.mark.parametrize("file", ["peers.yaml", "site.yaml"])
def test_a_file_that_is_more_than_it_looks_is_refused_at_once(folder: Path, file: str, name: str) -> None:
    text, words = BOMBS[name]
    (folder / file).write_text((PEERS if file == "peers.yaml" else SITE) + text)
    error = refused(folder)
    assert error.file == folder / file and words in error.problem, str(error)


@pytest.mark.parametrize("name", [n for n in BOMBS if n not in ("size", "documents")])
def test_so_is_an_override(folder: Path, name: str) -> None:
    text, words = BOMBS[name]
    for keywords in ({"env": {"GOSSIPSEG_TRANSFERS": text}}, {"overrides": {"transfers": text}}):
        error = refused(folder, **keywords)
        assert words in error.problem and error.key == "transfers" and "transfers" in str(error.file).lower()


def test_directives_are_counted_before_the_parser_compares_them() -> None:
    for end in ("\n", "\r\n", "\x85"):
        with pytest.raises(TooLarge, match="begin with %"):
            check_bounds("".join(f"%TAG !{n}! x{end}" for n in range(101)) + "---\na: 1\n")
    check_bounds("\ufeff%YAML 1.2\n---\na: '\n  %\n  100 %'\n")


@pytest.mark.parametrize("value", ["!!bool maybe", "!!timestamp soon", "!!int ''", "!!float ''"])
def test_a_tag_on_what_is_not_of_its_kind(folder: Path, value: str) -> None:
    (folder / "site.yaml").write_text(SITE + f"rounds: {value}\n")
    error = refused(folder)
    assert "is not valid YAML" in error.problem and "none of its kind" in error.problem
    (folder / "site.yaml").write_text(SITE)
    assert refused(folder, overrides={"rounds": value}).key == "rounds"


def test_a_key_of_a_hundred_thousand_sections(folder: Path) -> None:
    deep = ".".join(["a"] * 100_000)
    assert "sections deep" in refused(folder, overrides={deep: "1"}).problem
    variable = "GOSSIPSEG_" + deep.upper().replace(".", "__")
    assert "sections deep" in refused(folder, env={variable: "1"}).problem


def test_aliases_that_save_typing_are_read(folder: Path) -> None:
    text = "training: &t {batch_size: 3}\nwire: &w {dtype: float16}\n"
    (folder / "peers.yaml").write_text(PEERS + text)
    assert load(folder).federation.training.batch_size == 3
    merged = parse_yaml("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: [*a, *a]\n")
    assert merged["b"] == {"x": 1, "y": 3} and merged["c"] == [merged["a"]] * 2


def test_a_thousand_sites_fit(folder: Path, certificates: dict[str, str]) -> None:
    pem = certificates["north"]
    site = f"  - name: s\n    address: h:1\n    certificate: [{json.dumps(pem)}, {json.dumps(pem)}]\n"
    check_bounds("sites:\n" + site * 1000)


def test_a_pipe_is_not_waited_for(folder: Path) -> None:
    (folder / "peers.yaml").unlink()
    os.mkfifo(folder / "peers.yaml")
    assert "is a pipe" in refused(folder).problem


# ---------------------------------------------------------------- the environment of others

OF_KUBERNETES = {
    "GOSSIPSEG_PORT": "tcp://10.0.0.1:7443",
    "GOSSIPSEG_SERVICE_HOST": "10.0.0.1",
    "GOSSIPSEG_SERVICE_PORT": "7443",
    "GOSSIPSEG_SERVICE_PORT_PEER_LINK": "7443",
    "GOSSIPSEG_PORT_7443_TCP": "tcp://10.0.0.1:7443",
    "GOSSIPSEG_PORT_7443_TCP_PROTO": "tcp",
    "GOSSIPSEG_PORT_7443_TCP_PORT": "7443",
    "GOSSIPSEG_PORT_7443_TCP_ADDR": "10.0.0.1",
    "GOSSIPSEG_PORT_5353_UDP": "udp://10.0.0.1:5353",
    "GOSSIPSEG_METRICS_SERVICE_HOST": "10.0.0.2",
    "GOSSIPSEG_METRICS_SERVICE_PORT": "9464",
    "GOSSIPSEG_METRICS_PORT": "tcp://10.0.0.2:9464",
    "GOSSIPSEG_METRICS_PORT_9464_TCP_ADDR": "10.0.0.2",
    "GOSSIPSEG_PEERS_SERVICE_HOST": "10.0.0.3",
}


def test_what_kubernetes_gives_every_pod_is_ignored(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert load(folder, env=OF_KUBERNETES) == load(folder)
    assert not caplog.records


@pytest.mark.parametrize(
    "name", ["VERSION", "HOME", "IMAGE", "GIT_SHA", "NAME", "USER", "ROOT", "BUILD_DATE"]
)
def test_what_an_image_says_of_itself_is_a_warning(
    folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(config, "_told", set())
    for _ in range(2):
        assert load(folder, env={f"GOSSIPSEG_{name}": "0.1.0"}) == load(folder)
    (record,) = caplog.records
    assert record.levelname == "WARNING" and f"GOSSIPSEG_{name} sets nothing" in record.getMessage()


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("LISTN", "`listen`"),
        ("ROUND", "`rounds`"),
        ("DEVICES", "`device`"),
        ("DEVICE_THREADS", "`GOSSIPSEG_DEVICE__THREADS`"),
        ("LOG_LEVEL", "`GOSSIPSEG_LOG__LEVEL`"),
        ("METRICS_PORT", "`GOSSIPSEG_METRICS__PORT`"),
        ("FOO__BAR", "Known keys here"),
        ("SERVICE__HOST", "`device`"),
    ],
)
def test_what_was_meant_for_gossipseg_is_an_error(folder: Path, name: str, remedy: str) -> None:
    error = refused(folder, env={f"GOSSIPSEG_{name}": "1"})
    assert f"environment variable GOSSIPSEG_{name}" in str(error), str(error)
    assert remedy in error.remedy, error.remedy


def test_the_version_of_a_file_is_still_checked(folder: Path) -> None:
    (folder / "site.yaml").write_text(SITE + "version: 2\n")
    assert refused(folder, env={"GOSSIPSEG_VERSION": "1"}).key == "version"


# ---------------------------------------------------------------- homes that are nobody's


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ("state_dir: ~nosuch/state", "state_dir"),
        ("peers: ~nosuch/peers.yaml", "peers"),
        ("control_socket: ~nosuch/s", "control_socket"),
        ("identity: {key: ~nosuch/key.pem}", "identity.key"),
        ("log: {file: ~nosuch/log}", "log.file"),
    ],
)
def test_a_path_of_a_user_that_is_not_there(folder: Path, line: str, key: str) -> None:
    (folder / "site.yaml").write_text(SITE + line + "\n")
    error = refused(folder)
    assert (error.key, error.file) == (key, str(folder / "site.yaml")) and "home directory" in error.problem


def test_a_certificate_of_a_user_that_is_not_there(folder: Path) -> None:
    (folder / "peers.yaml").write_text(replaced(PEERS, "certs/north.pem", "~nosuch/north.pem"))
    assert refused(folder).key == "sites.0.certificate"


def test_a_certificate_file_that_never_ends(folder: Path) -> None:
    for name, words in (("/dev/zero", "is larger than"), ("pipe", "is a pipe")):
        if name == "pipe":
            os.mkfifo(folder / name)
        (folder / "peers.yaml").write_text(replaced(PEERS, "certs/north.pem", name))
        error = refused(folder)
        assert error.key == "sites.0.certificate" and words in error.problem, str(error)


def test_the_log_file_is_beside_site_yaml(folder: Path) -> None:
    (folder / "site.yaml").write_text(SITE + "log: {file: logs/site.log, file_count: 2}\n")
    log = load(folder).site.log
    assert (log.file, log.file_count, log.file_max_bytes) == (str(folder / "logs/site.log"), 2, 10 << 20)


# ---------------------------------------------------------------- the example at the root


def test_example_loads_and_has_three_sites() -> None:
    example = config.load_federation(ROOT / "peers.yaml")
    assert [s.name for s in example.sites] == ["north", "south", "west"]
    assert all(len(s.certificate) == 1 for s in example.sites)


def test_example_mentions_every_key() -> None:
    text = (ROOT / "peers.yaml").read_text()
    for kind in dataclasses_within(FederationFile):
        for f in dataclasses.fields(kind):
            key = f.name.removesuffix("_")
            assert f"{key}:" in text, f"{kind.__name__}.{key} is not in the example"


def test_example_shows_the_defaults() -> None:
    """Everything in the example that does not describe its own task is the default."""
    example = config.load_federation(ROOT / "peers.yaml")
    for name in ("network", "algorithm", "training", "gossip", "rounds", "membership", "wire"):
        part = getattr(example, name)
        assert part == type(part)(), name


def test_example_membership_comments_are_the_defaults() -> None:
    text = (ROOT / "peers.yaml").read_text()
    block = text[
        text.index("preset: wan") : text.index(
            "# ---------------------------------------------------------------- the sites"
        )
    ]
    commented = yaml.safe_load("\n".join(line.strip()[2:] for line in block.splitlines()[1:] if line.strip()))
    defaults = dataclasses.asdict(config.load_federation(ROOT / "peers.yaml").membership)
    assert commented == defaults


def test_numbers_among_the_choices_of_a_key_are_told(tmp_path: Path) -> None:
    from gossipseg.config import load_federation

    document = yaml.safe_load((ROOT / "peers.yaml").read_text(encoding="utf-8"))
    document["gossip"] = {**(document.get("gossip") or {}), "swaps_per_round": 3}
    (tmp_path / "peers.yaml").write_text(yaml.safe_dump(document))
    with pytest.raises(ConfigError, match=r"swaps_per_round = 3: is not one of 1, 2, log2\."):
        load_federation(tmp_path / "peers.yaml")
