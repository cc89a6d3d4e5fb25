"""`gossipctl init`, `id` and `config`: a site's first minutes."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import stat
import subprocess
import typing
from pathlib import Path
from typing import Any

import pytest
import yaml

from gossipseg import config, templates, trust
from gossipseg.children import python_module
from gossipseg.config.files import SiteFile
from gossipseg.ctl.identity import site_yaml
from gossipseg.templates import SOURCES

ROOT = Path(__file__).parent.parent.parent


def test_init_writes_identity_and_site_file(ctl: Any, tmp_path: Path) -> None:
    result = ctl("init", "--name", "north", "--dir", tmp_path / "north", "--address", "north.example:7000")
    assert result.code == 0
    folder = tmp_path / "north"
    identity = trust.Identity.load(folder / "identity" / "key.pem", folder / "identity" / "cert.pem")
    assert identity.site_id in result.out
    assert stat.S_IMODE((folder / "identity" / "key.pem").stat().st_mode) == 0o600
    site = config.load_site(folder / "site.yaml", env={})
    assert (site.site, site.listen) == ("north", "0.0.0.0:7000")
    assert site.identity.certificate == str(identity.certificate_path)
    assert "PRIVATE" not in result.out + result.err


def test_init_json(ctl: Any, tmp_path: Path) -> None:
    made = ctl("init", "--name", "north", "--dir", tmp_path, "--json").json
    assert (made["schema"], made["kind"], made["site"]) == (1, "identity", "north")
    assert made["id"] == ctl("id", "--config", made["site_file"]).out.strip()
    assert ctl("id", "--certificate", made["certificate"], "--json").json["id"] == made["id"]


@pytest.mark.parametrize("existing", ["site.yaml", "identity/key.pem", "identity/cert.pem"])
def test_init_overwrites_nothing(ctl: Any, tmp_path: Path, existing: str) -> None:
    path = tmp_path / existing
    path.parent.mkdir(exist_ok=True)
    path.write_text("precious")
    before = sorted(tmp_path.rglob("*"))
    result = ctl("init", "--name", "north", "--dir", tmp_path)
    assert result.code == 1
    assert str(path) in result.err and "not overwritten" in result.err
    assert path.read_text() == "precious"
    assert sorted(tmp_path.rglob("*")) == before, "and writes nothing else"


def test_variables_that_set_nothing_are_told_once_and_not_on_stdout(tmp_path: Path) -> None:
    for name in ("peers.yaml", "site.yaml"):
        (tmp_path / name).write_text((ROOT / "peers.yaml").read_text())
    (tmp_path / "site.yaml").write_text("site: north\ndata: {path: x}\n")
    env = {**os.environ, "GOSSIPSEG_HOME": "/opt", "GOSSIPSEG_SERVICE_HOST": "10.0.0.1"}
    command = [*python_module("gossipseg.ctl.main"), "config", "--json"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and json.loads(done.stdout)["kind"] == "config"
    assert done.stderr == ("environment variable GOSSIPSEG_HOME sets nothing: site.yaml has no key 'home'\n")


@pytest.mark.parametrize("name", SOURCES)
def test_the_packaged_files_are_those_of_the_source(name: str) -> None:
    assert templates.text(name) == (ROOT / SOURCES[name]).read_text(), "run `make templates`"


def test_init_writes_a_federation_and_refuses_to_do_it_twice(ctl: Any, tmp_path: Path) -> None:
    for command in (["--federation"], ["--federation", "--name", "north"]):
        assert ctl("init", *command, "--dir", tmp_path).code == 0
        written = tmp_path / "peers.yaml"
        federation, example = config.load_federation(written), config.load_federation(ROOT / "peers.yaml")
        assert federation == dataclasses.replace(example, sites=[])
        text = written.read_text()
        assert "BEGIN CERTIFICATE" not in text and "loads as it stands" not in text and "init --fed" in text
        again = ctl("init", *command, "--dir", tmp_path)
        assert again.code == 1 and "exists already" in again.err and written.read_text() == text
        certificate = trust.create_identity("north", tmp_path / str(len(command))).certificate_path
        entry = ["--name", "north", "--address", "h:1", "--certificate", certificate]
        assert ctl("peers", "add", written, *entry).code == 0
        assert [s.name for s in config.load_federation(written).sites] == ["north"]
        written.unlink()


def test_init_writes_the_unit_and_the_alerts(ctl: Any, tmp_path: Path) -> None:
    result = ctl("init", "--unit", "--alerts", "--dir", tmp_path / "new", "--json")
    assert result.code == 0 and "alerts.yaml" in result.out
    for name in ("gossipsegd.service", "alerts.yaml"):
        assert (tmp_path / "new" / name).read_text() == templates.text(name)
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["alerts.yaml", "gossipsegd.service"]


def test_init_of_nothing_asks_for_a_name(ctl: Any, tmp_path: Path) -> None:
    result = ctl("init", "--dir", tmp_path)
    assert result.code == 2 and "--federation" in result.err and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--name", "North"),
        ("--name", "-x y"),
        ("--name", "a/b"),
        ("--address", "north"),
        ("--address", "::1"),
    ],
)
def test_init_refuses_before_it_writes(ctl: Any, tmp_path: Path, option: str, value: str) -> None:
    options = {"--name": "north", option: value}
    arguments = [f"{k}={v}" for k, v in options.items()]
    result = ctl("init", *arguments, "--dir", tmp_path / "new")
    assert result.code == 78
    assert f"{option} = {value!r}" in result.err
    assert not (tmp_path / "new").exists()


def test_init_where_nothing_can_be_written(ctl: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = ctl("init", "--name", "north", "--dir", tmp_path / "file" / "north")
    assert result.code == 1 and "cannot be written" in result.err


def test_site_file_names_every_key_with_its_default(tmp_path: Path) -> None:
    """With the comment signs of its optional keys taken away, it is the defaults of SiteFile."""
    text = site_yaml("north", 7443, None)
    full = re.sub(r"^( *)# ([a-z_]+: )", r"\1\2", text, flags=re.MULTILINE)
    raw = yaml.safe_load(full)
    missing = []

    def look(kind: Any, section: dict[str, Any], prefix: str) -> None:
        hints = typing.get_type_hints(kind)
        for f in dataclasses.fields(kind):
            if f.name not in section:
                missing.append(prefix + f.name)
            elif dataclasses.is_dataclass(hints[f.name]):
                look(hints[f.name], section[f.name], f"{prefix}{f.name}.")

    look(SiteFile, raw, "")
    assert not missing
    (tmp_path / "full.yaml").write_text(full)
    (tmp_path / "short.yaml").write_text("site: north\ndata: {path: data}\n")
    shown, default = (config.load_site(tmp_path / name, env={}) for name in ("full.yaml", "short.yaml"))
    examples = {
        "rounds": None,
        "advertise": None,
        "control_socket": None,
        "device": dataclasses.replace(shown.device, threads=None),
        "data": dataclasses.replace(
            shown.data,
            list=None,
            fold=None,
            patient_pattern=None,
            ignore_label=None,
            annotated_labels=None,
        ),
    }
    assert dataclasses.replace(shown, **examples) == default


@pytest.mark.parametrize("name", ["none.pem", "key.pem", "text.pem"])
def test_id_of_something_else(ctl: Any, tmp_path: Path, name: str) -> None:
    trust.create_identity("north", tmp_path)
    (tmp_path / "text.pem").write_text("hello")
    result = ctl("id", "--certificate", tmp_path / name)
    assert result.code == 78 and result.err.startswith("gossipctl: ")


def test_config_prints_what_is_in_force(ctl: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ctl("init", "--name", "north", "--dir", tmp_path).code == 0
    (tmp_path / "peers.yaml").write_text((ROOT / "peers.yaml").read_text())
    monkeypatch.setenv("GOSSIPSEG_ROUNDS", "12")
    site = tmp_path / "site.yaml"
    shown = yaml.safe_load(ctl("config", "--config", site).out)
    assert shown["site"]["rounds"] == 12
    assert shown["federation"]["gossip"]["sender_rate"] == 0.5
    document = ctl("config", "--config", site, "--json").json
    assert (document["schema"], document["kind"]) == (1, "config")
    assert document["federation"]["algorithm"]["lambda"] == 0.05


def test_config_with_a_mistake_exits_78(ctl: Any, tmp_path: Path) -> None:
    (tmp_path / "site.yaml").write_text("site: north\ndata: {path: x}\npears: p.yaml\n")
    for command in ("config", "check", "evaluate"):
        result = ctl(command, "--config", tmp_path / "site.yaml")
        assert (result.code, result.out) == (78, "")
        assert "pears: unknown key. Did you mean `peers`?" in result.err
