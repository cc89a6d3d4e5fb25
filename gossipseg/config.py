"""peers.yaml (the federation, the same everywhere) and site.yaml (one site's own): read, checked, composed.

What belongs here: file formats, defaults, overrides, the contract. What must not: torch, grpc, sockets.
Precedence: flag > GOSSIPSEG_… environment > site.yaml > default. Relative paths are relative to their file.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import yaml
from pydantic import Field, TypeAdapter, ValidationError

from gossipseg.algos.params import AlgorithmParams, GcmlParams
from gossipseg.core.params import (
    MEMBERSHIP_PRESETS,
    GossipParams,
    MembershipParams,
    Preset,
    membership_preset,
)
from gossipseg.core.types import fingerprint as fingerprint  # part of this module's surface
from gossipseg.errors import ConfigError
from gossipseg.learn.params import DataParams, DeviceParams, TaskParams, TrainingParams, WorkerSpec
from gossipseg.nets.params import NetworkParams
from gossipseg.wire.params import WireParams

_FORBID: dict[str, Any] = {"extra": "forbid"}
ENV_PREFIX = "GOSSIPSEG_"
FILE_VERSION = 1
SITE_NAME_PATTERN = r"^[a-z0-9][a-z0-9_-]{0,62}$"


@dataclass(frozen=True)
class ListedSite:
    """One entry of the list of sites: the only authority on who takes part."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _FORBID

    name: Annotated[str, Field(pattern=SITE_NAME_PATTERN)]
    address: str
    """host:port, or [IPv6]:port."""
    certificate: str | list[str] = ""
    """PEM text, or a file beside peers.yaml; one, or two during a rotation. After loading: PEM texts."""
    id: str | None = None
    """The site ID as its administrator read it out; checked against the certificate."""


@dataclass(frozen=True)
class FederationFile:
    """peers.yaml."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _FORBID

    federation: str
    task: TaskParams
    version: Literal[1] = 1
    seed: int = 0
    network: NetworkParams = field(default_factory=NetworkParams)
    algorithm: Annotated[AlgorithmParams, Field(discriminator="name")] = field(default_factory=GcmlParams)
    training: TrainingParams = field(default_factory=TrainingParams)
    gossip: GossipParams = field(default_factory=GossipParams)
    membership: MembershipParams = field(default_factory=MembershipParams)
    wire: WireParams = field(default_factory=WireParams)
    sites: list[ListedSite] = field(default_factory=list)


@dataclass(frozen=True)
class IdentityPaths:
    """This site's key (0600) and certificate."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _FORBID

    key: str = "identity/key.pem"
    certificate: str = "identity/cert.pem"


@dataclass(frozen=True)
class DiscoveryParams:
    """How other sites' addresses are found. Neither source grants trust."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _FORBID

    static: bool = True
    """Dial the addresses listed in peers.yaml."""
    mdns: bool = False
    """Announce this site on the local link and look for listed sites there."""
    interfaces: list[str] = field(default_factory=list)
    """IP addresses of the interfaces for mDNS; empty: all."""


@dataclass(frozen=True)
class LogParams:
    __pydantic_config__: ClassVar[dict[str, Any]] = _FORBID

    format: Literal["text", "json"] = "text"
    level: Literal["debug", "info", "warning", "error"] = "info"


@dataclass(frozen=True)
class SiteFile:
    """site.yaml."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _FORBID

    site: Annotated[str, Field(pattern=SITE_NAME_PATTERN)]
    data: DataParams
    version: Literal[1] = 1
    peers: str = "peers.yaml"
    state_dir: str = "state"
    identity: IdentityPaths = field(default_factory=IdentityPaths)
    listen: str = "0.0.0.0:7443"
    advertise: str | None = None
    """host:port that other sites shall dial, where it differs from the listed address."""
    control_socket: str | None = None
    """Unix socket of gossipctl; None: control.sock in state_dir."""
    device: DeviceParams = field(default_factory=DeviceParams)
    rounds: int | None = None
    """Training budget; None: train for as long as the daemon runs."""
    report_test: bool = False
    """Evaluate the test split before the first and after the last round (used by the testbed)."""
    max_parallel_transfers: int = 2
    disk_reserve_bytes: int = 256 << 20
    """Incoming models are refused when less than this would stay free."""
    discovery: DiscoveryParams = field(default_factory=DiscoveryParams)
    log: LogParams = field(default_factory=LogParams)
    insecure: bool = False
    """Plaintext, without identities: for experiments on loopback addresses only."""


@dataclass(frozen=True)
class Config:
    """Both files, checked against each other; all paths absolute."""

    federation: FederationFile
    site: SiteFile
    federation_path: Path
    site_path: Path

    @property
    def me(self) -> ListedSite:
        """This site's own entry in the list."""
        return next(s for s in self.federation.sites if s.name == self.site.site)

    @property
    def others(self) -> list[ListedSite]:
        return [s for s in self.federation.sites if s.name != self.site.site]

    @property
    def control_socket(self) -> Path:
        return Path(self.site.control_socket or str(Path(self.site.state_dir) / "control.sock"))


# ---------------------------------------------------------------- reading


def load_federation(path: Path) -> FederationFile:
    """Read and check peers.yaml. Certificates are inlined as PEM texts.

    Raises ConfigError naming file, key, value and remedy.
    """
    raw = _read_yaml(path)
    _apply_membership_preset(raw, path)
    federation: FederationFile = _validate(FederationFile, raw, path)
    _check_task(federation, path)
    sites = [_inline_certificates(s, i, path) for i, s in enumerate(federation.sites)]
    _check_unique(sites, path)
    return dataclasses.replace(federation, sites=sites)


def load_site(
    path: Path, *, overrides: Mapping[str, str] | None = None, env: Mapping[str, str] | None = None
) -> SiteFile:
    """Read and check site.yaml alone.

    `overrides` maps dotted keys to YAML values (flags); `env` defaults to os.environ, where
    GOSSIPSEG_DEVICE__THREADS=2 sets device.threads.
    """
    raw = _read_yaml(path)
    for source, pairs in (
        ("environment", _env_overrides(os.environ if env is None else env)),
        ("flag", overrides or {}),
    ):
        for key, text in pairs.items():
            _set_dotted(raw, key, text, source, path)
    site: SiteFile = _validate(SiteFile, raw, path)
    return _absolute(site, path)


def load(
    path: Path, *, overrides: Mapping[str, str] | None = None, env: Mapping[str, str] | None = None
) -> Config:
    """Read site.yaml and the peers.yaml it names, and check them against each other."""
    site = load_site(path, overrides=overrides, env=env)
    peers_path = Path(site.peers)
    federation = load_federation(peers_path)
    names = [s.name for s in federation.sites]
    if site.site not in names:
        raise ConfigError(
            "this site is not in the list of sites",
            file=path,
            key="site",
            value=site.site,
            remedy=_nearest(site.site, names)
            or f"Add it to {peers_path} (`gossipctl peers add`), or correct the name; "
            f"listed: {', '.join(names) or 'none'}.",
        )
    if site.insecure:
        _check_loopback(site, federation, path, peers_path)
    return Config(federation, site, peers_path, path.absolute())


def dump(config: Config) -> str:
    """The effective configuration as YAML, certificates shortened."""
    doc = {"site": dataclasses.asdict(config.site), "federation": dataclasses.asdict(config.federation)}
    for entry in doc["federation"]["sites"]:
        entry["certificate"] = f"{len(entry['certificate'])} certificate(s)"
    return yaml.safe_dump(json.loads(json.dumps(doc)), sort_keys=False)


# ---------------------------------------------------------------- the contract


def contract(federation: FederationFile, network_signature: str = "") -> tuple[tuple[str, str], ...]:
    """What two sites must agree on before weights move, as sorted (dotted key, JSON value) pairs.

    Task, network, algorithm, training, wire dtype, seed and the network signature; not sites or addresses.
    """
    parts: dict[str, Any] = {
        "federation": federation.federation,
        "seed": federation.seed,
        "task": dataclasses.asdict(federation.task),
        "network": dataclasses.asdict(federation.network),
        "algorithm": dataclasses.asdict(federation.algorithm),
        "training": dataclasses.asdict(federation.training),
        "wire.dtype": federation.wire.dtype,
        "network.signature": network_signature,
    }
    return tuple(sorted((k, json.dumps(v, sort_keys=True)) for k, v in _flatten(parts)))


def worker_spec(config: Config) -> WorkerSpec:
    """What the training process is told: its part of both files, nothing of peers or keys."""
    f, s = config.federation, config.site
    return WorkerSpec(
        site=s.site,
        federation=f.federation,
        seed=f.seed,
        task=dataclasses.asdict(f.task),
        network=dataclasses.asdict(f.network),
        algorithm=dataclasses.asdict(f.algorithm),
        training=dataclasses.asdict(f.training),
        data=dataclasses.asdict(s.data),
        device=dataclasses.asdict(s.device),
        wire_dtype=f.wire.dtype,
        state_dir=s.state_dir,
        report_test=s.report_test,
        rounds=s.rounds,
    )


# ---------------------------------------------------------------- helpers


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            "no such file",
            file=path,
            remedy="Write one with `gossipctl init`, or give its path with --config.",
        ) from None
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigError(f"cannot be read: {e}", file=path, remedy="Check its permissions.") from None
    except yaml.YAMLError as e:
        where = getattr(e, "problem_mark", None)
        line = f" (line {where.line + 1}, column {where.column + 1})" if where else ""
        raise ConfigError(
            f"is not valid YAML{line}: {getattr(e, 'problem', e)}", file=path, remedy="Mend the line named."
        ) from None
    if not isinstance(raw, dict):
        raise ConfigError(
            "holds no keys", file=path, remedy="It must be a YAML mapping; see peers.yaml for an example."
        )
    version = raw.get("version", FILE_VERSION)
    if version != FILE_VERSION:
        raise ConfigError(
            "this gossipseg reads file version 1 only",
            file=path,
            key="version",
            value=version,
            remedy="Upgrade gossipseg, or write version: 1.",
        )
    return raw


def _validate(kind: Any, raw: dict[str, Any], path: Path) -> Any:
    try:
        return TypeAdapter(kind).validate_python(raw)
    except ValidationError as e:
        raise _config_error(e, kind, path) from None


def _config_error(e: ValidationError, kind: Any, path: Path) -> ConfigError:
    first = e.errors(include_url=False)[0]
    tags = {"gcml", "local", "gossip_average", "str", "list[str]"}
    loc = [str(p) for i, p in enumerate(first["loc"]) if not (i > 0 and str(p) in tags)]
    key = ".".join(loc)
    value = first.get("input")
    if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        known = list(_known_keys(kind, first["loc"][:-1]))
        return ConfigError(
            "unknown key",
            file=path,
            key=key,
            value=value,
            remedy=_nearest(loc[-1], known) or f"Known keys here: {', '.join(known)}.",
        )
    if first["type"] == "missing":
        return ConfigError(
            "this key is missing",
            file=path,
            key=key,
            remedy="Add it; README, configuration, says what it means.",
        )
    if isinstance(value, dict | list):
        value = None
    options = first.get("ctx", {}).get("expected", "") or first.get("ctx", {}).get("expected_tags", "")
    near = (
        _nearest(str(value), [o.strip().strip("'") for o in options.replace(" or ", ",").split(",")])
        if options
        else ""
    )
    return ConfigError(first["msg"], file=path, key=key, value=value, remedy=near or "Correct the value.")


def _known_keys(kind: Any, loc: tuple[Any, ...]) -> Iterator[str]:
    """Names of the fields of the dataclass reached from `kind` by the path `loc`."""
    schema = TypeAdapter(kind).json_schema()
    node: Any = schema

    def resolve(n: Any) -> Any:
        while "$ref" in n:
            n = schema["$defs"][n["$ref"].rsplit("/", 1)[1]]
        return n

    for part in loc:
        node = resolve(node)
        if isinstance(part, int):
            node = node.get("items", {})
        elif "discriminator" in node:
            node = {"$ref": node["discriminator"]["mapping"].get(part, "")}
        else:
            node = node.get("properties", {}).get(part, {})
    yield from resolve(node).get("properties", {})


def _nearest(name: str, known: list[str]) -> str:
    match = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"Did you mean `{match[0]}`?" if match else ""


def _apply_membership_preset(raw: dict[str, Any], path: Path) -> None:
    section = raw.get("membership")
    if not isinstance(section, dict) or "preset" not in section:
        return
    name: Preset = section.pop("preset")
    if name not in MEMBERSHIP_PRESETS:
        raise ConfigError(
            "no such preset",
            file=path,
            key="membership.preset",
            value=name,
            remedy=_nearest(str(name), list(MEMBERSHIP_PRESETS))
            or f"Choose one of {', '.join(MEMBERSHIP_PRESETS)}.",
        )
    raw["membership"] = {**dataclasses.asdict(membership_preset(name)), **section}


def _check_task(federation: FederationFile, path: Path) -> None:
    task = federation.task
    for key in ("patch_size", "spacing_mm"):
        value = getattr(task, key)
        if value is not None and len(value) != task.spatial_dims:
            raise ConfigError(
                f"needs {task.spatial_dims} numbers, one for each spatial dimension",
                file=path,
                key=f"task.{key}",
                value=list(value),
                remedy="Give one number per axis, or change task.spatial_dims.",
            )
    if 0 not in task.labels or sorted(task.labels) != list(range(len(task.labels))) or len(task.labels) < 2:
        raise ConfigError(
            "labels must be numbered 0, 1, 2 … with 0 the background",
            file=path,
            key="task.labels",
            value=task.labels,
            remedy="Use task.label_map to translate the values in the files.",
        )


def _inline_certificates(site: ListedSite, index: int, path: Path) -> ListedSite:
    given = [site.certificate] if isinstance(site.certificate, str) else site.certificate
    texts = []
    for text in filter(None, given):
        if "-----BEGIN" not in text:
            file = path.parent / text
            try:
                text = file.read_text(encoding="ascii")
            except (OSError, UnicodeDecodeError) as e:
                raise ConfigError(
                    f"the certificate file cannot be read: {e}",
                    file=path,
                    key=f"sites.{index}.certificate",
                    value=str(text),
                    remedy=f"Put {site.name}'s cert.pem there, or paste its text.",
                ) from None
        texts.append(text)
    return dataclasses.replace(site, certificate=texts)


def _check_unique(sites: list[ListedSite], path: Path) -> None:
    seen: dict[str, int] = {}
    for i, site in enumerate(sites):
        if site.name in seen:
            raise ConfigError(
                f"two sites have this name (entries {seen[site.name]} and {i})",
                file=path,
                key=f"sites.{i}.name",
                value=site.name,
                remedy="Names must be unique; rename or remove one.",
            )
        seen[site.name] = i


def _check_loopback(site: SiteFile, federation: FederationFile, path: Path, peers_path: Path) -> None:
    def is_loopback(address: str) -> bool:
        host = address.rsplit(":", 1)[0].strip("[]")
        return host in ("localhost", "::1") or host.startswith("127.")

    checks = [(path, "listen", site.listen), (path, "advertise", site.advertise)]
    checks += [(peers_path, f"sites.{i}.address", s.address) for i, s in enumerate(federation.sites)]
    for file, key, address in checks:
        if address is not None and not is_loopback(address):
            raise ConfigError(
                "insecure: true is allowed on loopback addresses only",
                file=file,
                key=key,
                value=address,
                remedy="Remove `insecure`, or use 127.0.0.1 addresses.",
            )


def _absolute(site: SiteFile, path: Path) -> SiteFile:
    base = path.absolute().parent

    def fix(p: str) -> str:
        return str(base / Path(p).expanduser())

    return dataclasses.replace(
        site,
        peers=fix(site.peers),
        state_dir=fix(site.state_dir),
        identity=IdentityPaths(fix(site.identity.key), fix(site.identity.certificate)),
        data=dataclasses.replace(site.data, path=fix(site.data.path)),
        control_socket=fix(site.control_socket) if site.control_socket else None,
    )


def _env_overrides(env: Mapping[str, str]) -> dict[str, str]:
    reserved = {"DATA", "WORKER_SOCKET", "CONFIG"}
    pairs = ((k.removeprefix(ENV_PREFIX), v) for k, v in env.items() if k.startswith(ENV_PREFIX))
    return {k.lower().replace("__", "."): v for k, v in pairs if k not in reserved}


def _set_dotted(raw: dict[str, Any], key: str, text: str, source: str, path: Path) -> None:
    *parents, last = key.split(".")
    node = raw
    for part in parents:
        node = node.setdefault(part, {})
        if not isinstance(node, dict):
            raise ConfigError(f"the {source} sets a key inside a plain value", file=path, key=key, value=text)
    try:
        node[last] = yaml.safe_load(text)
    except yaml.YAMLError:
        node[last] = text


def _flatten(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, item in value.items():
        if isinstance(item, dict) and item and prefix + str(key) not in ("task.labels", "task.label_map"):
            yield from _flatten(item, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", item
