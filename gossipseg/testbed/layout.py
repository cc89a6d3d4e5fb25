"""The paths of a testbed's files: identities, peers.yaml, one folder per site.

WORKDIR/
  peers.yaml            the list of sites, with their certificates, and the task
  sites/NAME/site.yaml  + identity/, state/, daemon.log
"""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from gossipseg import config, trust
from gossipseg.algos.params import params_class
from gossipseg.errors import ConfigError
from gossipseg.learn.data.lists.paths import shown
from gossipseg.learn.params import TaskParams
from gossipseg.testbed import dataset, presets, synthetic

DATA_FOLDER = "data"
EMPTY_FOLDERS = ("images", "masks")
"""Folders of a site without data."""


@dataclass(frozen=True, slots=True)
class SiteFolder:
    """One site of a testbed."""

    name: str
    folder: Path
    data: Path
    address: str

    @property
    def config_path(self) -> Path:
        return self.folder / "site.yaml"

    @property
    def state_dir(self) -> Path:
        return self.folder / "state"

    @property
    def control_socket(self) -> Path:
        return self.state_dir / "control.sock"

    @property
    def log(self) -> Path:
        return self.folder / "daemon.log"


@dataclass(frozen=True, slots=True)
class Layout:
    """A testbed's folder."""

    root: Path
    sites: tuple[SiteFolder, ...]
    algorithm: str
    rounds: int | None
    """Training budget; None: until stopped."""
    steps_per_round: int
    task: TaskParams

    @property
    def federation_path(self) -> Path:
        return self.root / "peers.yaml"


@dataclass(frozen=True, slots=True)
class WantedTestbed:
    """The user's wishes; None leaves a choice to the preset, or to the --peers file."""

    algorithm: str | None = None
    rounds: int | None = None
    steps: int | None = None
    seed: int | None = None
    peers: Path | None = None
    endless: bool = False
    """Train until stopped, unless `rounds`, or training.rounds in the --peers file, says otherwise."""
    address: str = "127.0.0.1"
    """A loopback address, on free ports; or a pattern such as `{site}:7443` for machines with these names."""
    listen: str | None = None
    """host:port on which every daemon listens, where that is not its address."""
    mdns: bool = False
    """Find each other by mDNS alone, not by the listed addresses."""


def init_testbed(
    root: Path, data: list[Path], wanted: WantedTestbed | None = None, *, may_be_empty: bool = False
) -> Layout:
    """Write identities, peers.yaml and site files for the sites whose data folders are given.

    Site names are the folders' names, made lower case. `may_be_empty`: where no folder holds a file yet, the
    task is that of the synthetic hospitals. Raises ConfigError or DataError.
    """
    wanted = wanted or WantedTestbed()
    names = _site_names(data)
    sections = _sections(data, wanted, may_be_empty and not any(_holds_files(folder) for folder in data))
    addresses = _addresses(names, wanted.address)
    sites = tuple(
        SiteFolder(name, root / "sites" / name, folder.absolute(), address)
        for name, folder, address in zip(names, data, addresses, strict=True)
    )
    for site in sites:
        _write_site(root, site, wanted)
    sections["sites"] = [
        {"name": s.name, "address": s.address, "certificate": _certificate(s).read_text(encoding="ascii")}
        for s in sites
    ]
    _write_yaml(root / "peers.yaml", "The testbed's federation, the same for every site.", sections)
    return load_layout(root)


def init_empty(root: Path, count: int, wanted: WantedTestbed | None = None) -> Layout:
    """Write the same without data: site files that point to folders, made here, for the user's data."""
    wanted = wanted or WantedTestbed()
    names = [hospital.name for hospital in synthetic.hospitals(count)]
    folders = [root / DATA_FOLDER / name for name in names]
    made = init_testbed(root, folders, wanted, may_be_empty=True)
    for folder in folders:
        for kind in EMPTY_FOLDERS:
            (folder / kind).mkdir(parents=True, exist_ok=True)
    return made


def load_layout(root: Path) -> Layout:
    """Read a testbed's files again, checked by gossipseg.config."""
    if not (root / "peers.yaml").is_file() or not (root / "sites").is_dir():
        raise ConfigError(
            "holds no testbed",
            file=root,
            remedy="Make one with `gossipctl testbed init --sites 3 --out DIR`.",
        )
    federation = config.load_federation(root / "peers.yaml")
    sites, rounds = [], None
    for listed in federation.sites:
        folder = root / "sites" / listed.name
        loaded = config.load(folder / "site.yaml", env={})
        sites.append(SiteFolder(listed.name, folder, Path(loaded.site.data.path), listed.address))
        rounds = loaded.rounds
    return Layout(
        root=root,
        sites=tuple(sites),
        algorithm=federation.algorithm.name,
        rounds=rounds,
        steps_per_round=federation.training.steps_per_round,
        task=federation.task,
    )


def _addresses(names: list[str], address: str) -> list[str]:
    """host:port for each site."""
    if "{site}" in address:
        return [address.replace("{site}", name) for name in names]
    host = f"[{address}]" if ":" in address else address
    return [f"{host}:{port}" for port in free_ports(len(names), address)]


def free_ports(count: int, host: str = "127.0.0.1") -> list[int]:
    """Ports on which nothing listens now; all are held open until the last one is found."""
    held = []
    try:
        for _ in range(count):
            held.append(s := socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET))
            s.bind((host, 0))
        return [int(s.getsockname()[1]) for s in held]
    finally:
        for s in held:
            s.close()


# ---------------------------------------------------------------- parts of the files


def _sections(data: list[Path], wanted: WantedTestbed, empty: bool) -> dict[str, Any]:
    """The sections of peers.yaml without the sites."""
    sections, rounds = presets.from_file(wanted.peers) if wanted.peers else _from_data(data, empty)
    training = sections["training"]
    if wanted.rounds is not None or not wanted.endless:
        training["rounds"] = wanted.rounds or rounds
    if wanted.algorithm is not None and sections["algorithm"]["name"] != wanted.algorithm:
        _check_algorithm(wanted.algorithm)
        _set_algorithm(sections, wanted.algorithm, wanted.peers)
    if wanted.steps is not None:
        training["steps_per_round"] = wanted.steps
    if wanted.seed is not None:
        sections["seed"] = wanted.seed
    return sections


def _set_algorithm(sections: dict[str, Any], name: str, peers: Path | None) -> None:
    """Set the algorithm. A --peers file's own settings stay as written, and are named where they contradict
    it."""
    if peers is None:
        presets.set_algorithm(sections, name)
        return
    try:
        presets.set_algorithm(sections, name, presets.written(peers))
    except ConfigError as e:
        raise ConfigError(e.problem, file=peers, key=e.key, value=e.value, remedy=e.remedy) from None
    config.load_federation(peers, text=yaml.safe_dump(sections, allow_unicode=True))


def _holds_files(folder: Path) -> bool:
    return any(path.is_file() for path in folder.rglob("*"))


def _from_data(data: list[Path], empty: bool) -> tuple[dict[str, Any], int]:
    """Task and sizes derived from the data folders (of the synthetic task, where they are still empty)."""
    if not empty:
        return presets.from_data(data)
    task = TaskParams(
        name=synthetic.TASK_NAME,
        channels=1,
        labels=synthetic.LABELS,
        modality="synthetic",
        label_map={255: 1},
    )
    return presets.sections(task, [(synthetic.SIZE_PX, synthetic.SIZE_PX)])


def _write_site(root: Path, site: SiteFolder, wanted: WantedTestbed) -> None:
    site.folder.mkdir(parents=True, exist_ok=True)
    identity = site.folder / "identity"
    if not _certificate(site).exists():
        trust.create_identity(site.name, identity)
    asked, has_test = dataset.own_settings(site.data)
    doc = {
        "version": 1,
        "site": site.name,
        "peers": "../../peers.yaml",
        "data": {"path": _data_path(root, site), **asked},
        "state_dir": "state",
        "identity": {"key": "identity/key.pem", "certificate": "identity/cert.pem"},
        "listen": wanted.listen or site.address,
        "device": {"device": "cpu", "amp": "off", "threads": 1},
        "report_test": has_test,
        "discovery": {"static": not wanted.mdns, "mdns": wanted.mdns},
    }
    _write_yaml(site.config_path, f"Testbed site {site.name}.", doc)


def _data_path(root: Path, site: SiteFolder) -> str:
    """A path relative to site.yaml for data in the testbed's own folder, which may then be moved."""
    if site.data.is_relative_to(root.absolute()):
        return str(Path("../..") / site.data.relative_to(root.absolute()))
    return str(site.data)


def _certificate(site: SiteFolder) -> Path:
    return site.folder / "identity" / "cert.pem"


def _write_yaml(path: Path, heading: str, doc: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = yaml.dump(doc, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
    path.write_text(f"# {heading}\n{text}", encoding="utf-8")


class _Dumper(yaml.SafeDumper):
    """Certificates as literal blocks, so that a person can read the file."""


def _represent_text(dumper: _Dumper, text: str) -> yaml.Node:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _represent_text)


def _check_algorithm(name: str) -> None:
    try:
        params_class(name)
    except ConfigError as e:
        raise ConfigError(e.problem, key="--algorithm", value=name, remedy=e.remedy) from None


def _site_names(folders: list[Path]) -> list[str]:
    """The folders' names, made lower case. Raises ConfigError for one that is no name, or two folders'."""
    found: dict[str, Path] = {}
    for folder in folders:
        name = folder.name.lower()
        if re.fullmatch(config.SITE_NAME_PATTERN, name) is None:
            remedy = "Rename the folder: ASCII letters, digits, - and _; at most 63, the first no sign."
            raise ConfigError(
                "is not a valid site name", key="--data", value=shown(str(folder)), remedy=remedy
            )
        if name in found:
            problem = f"{found[name].name} and {folder.name} give the same site name"
            raise ConfigError(problem, key="--data", value=str(folder), remedy="Rename one of the folders.")
        found[name] = folder
    return list(found)
