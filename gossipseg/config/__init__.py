"""peers.yaml (the federation, the same everywhere) and site.yaml (one site's own): read, checked, combined.

What belongs here: loading, the contract, the worker's part. What must not: torch, grpc, sockets. Precedence:
flag > GOSSIPSEG_… environment > site.yaml > default. Relative paths are relative to their file.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from gossipseg.algos.params.common import settings
from gossipseg.config.environment import ENV_PREFIX, RESERVED_ENV, read_environment
from gossipseg.config.exchange import exchange_terms, idle_key
from gossipseg.config.files import (
    SITE_NAME_PATTERN,
    Config,
    DiscoveryParams,
    FederationFile,
    IdentityPaths,
    ListedSite,
    LogParams,
    MetricsParams,
    SiteFile,
)
from gossipseg.config.old_keys import drop_retired, tell_idle
from gossipseg.config.problems import keys_of, nearest, takes_text, validate
from gossipseg.config.reading import FILE_VERSION, Source, read_mapping, read_text, set_dotted
from gossipseg.config.rules import (
    check_budget,
    check_federation,
    check_labels,
    check_loopback,
    check_personal_network,
    check_private,
    check_site,
)
from gossipseg.core.params import MEMBERSHIP_PRESETS, membership_preset
from gossipseg.core.types import fingerprint
from gossipseg.errors import ConfigError
from gossipseg.homes import absolute, expanded
from gossipseg.learn.data.flips import resolve
from gossipseg.learn.params import DataParams, DeviceParams, WorkerSpec
from gossipseg.yamlbounds import TooLarge, read_bounded

__all__ = [
    "ENV_PREFIX",
    "FILE_VERSION",
    "RESERVED_ENV",
    "SITE_NAME_PATTERN",
    "Config",
    "DiscoveryParams",
    "FederationFile",
    "IdentityPaths",
    "ListedSite",
    "LogParams",
    "MetricsParams",
    "SiteFile",
    "contract",
    "dump",
    "fingerprint",
    "load",
    "load_federation",
    "load_site",
    "read_text",
    "worker_spec",
    "worker_spec_for",
]


log = logging.getLogger(__name__)
_told: set[str] = set()


def load_federation(path: Path, *, text: str | None = None) -> FederationFile:
    """Read and check peers.yaml. Certificates are inlined as PEM texts.

    `text` replaces the file's contents (to check an edit before it is written). Raises ConfigError naming
    file, key, value and remedy.
    """
    return _federation(path, text)[0]


def load_site(
    path: Path, *, overrides: Mapping[str, str] | None = None, env: Mapping[str, str] | None = None
) -> SiteFile:
    """Read and check site.yaml alone; its paths become absolute.

    `overrides` maps dotted keys to YAML values (flags); `env` defaults to os.environ, where
    GOSSIPSEG_DEVICE__THREADS=2 sets device.threads. Raises ConfigError.
    """
    return _site(path, overrides, env)[0]


def load(
    path: Path, *, overrides: Mapping[str, str] | None = None, env: Mapping[str, str] | None = None
) -> Config:
    """Read site.yaml and the peers.yaml it names, and check them against each other. Raises ConfigError."""
    site, source = _site(path, overrides, env)
    federation, peers = _federation(Path(site.peers))
    names = [s.name for s in federation.sites]
    if not names:
        raise peers.error(
            "lists no sites", "sites", None, "Add this site and its peers: `gossipctl peers add`."
        )
    if site.site not in names:
        raise source.error(
            f"this site is not in the list of sites of {peers.path}",
            "site",
            site.site,
            nearest(site.site, names)
            or f"Add it there (`gossipctl peers add`), or correct the name; listed: {', '.join(names)}.",
        )
    check_private(site, source, federation, peers)
    check_budget(site, source, federation)
    check_personal_network(site, source, federation)
    check_labels(site, source, federation)
    if site.insecure:
        check_loopback(site, source, federation, peers)
    else:
        _check_certificates_given(federation, peers)
    return Config(federation, site, peers.path, absolute(path))


def dump(config: Config) -> str:
    """The effective configuration as YAML, certificates shortened."""
    doc = {"site": dataclasses.asdict(config.site), "federation": dataclasses.asdict(config.federation)}
    for entry in doc["federation"]["sites"]:
        entry["certificate"] = f"{len(entry['certificate'])} certificate(s)"
    algorithm = doc["federation"]["algorithm"]
    doc["federation"]["algorithm"] = {k.removesuffix("_"): v for k, v in algorithm.items()}
    labels = doc["federation"]["task"]["labels"], doc["federation"]["task"]["label_map"]
    own = doc["site"]["data"]["label_map"], doc["site"]["data"]["label_map_out"]
    doc = json.loads(json.dumps(doc))  # tuples become lists; integer keys must be put back
    doc["federation"]["task"].update(labels=labels[0], label_map=labels[1])
    doc["site"]["data"].update(label_map=own[0], label_map_out=own[1])
    return yaml.safe_dump(doc, sort_keys=False, allow_unicode=True)


# ---------------------------------------------------------------- the contract


def contract(federation: FederationFile, network_signature: str = "") -> tuple[tuple[str, str], ...]:
    """The settings two sites must agree on before they exchange weights, as sorted (dotted key, JSON value)
    pairs.

    They are task, network, algorithm, exchange_at, training, wire dtype, seed and the network signature.
    Sites and addresses are not among them. Neither is a site's personal model (training.personal,
    personal_from_round; personal_network of site.yaml), which is never mixed. Files with one meaning agree:
    the schedule is the one in force, and training.flip_axes the axes that are mirrored.
    """
    training = dataclasses.asdict(federation.training)
    del training["personal"], training["personal_from_round"]
    training["flip_axes"] = resolve(federation.task, federation.training).names
    schedule = training["schedule"] = federation.training.schedule_in_force
    training["schedule_rounds"] = federation.training.cosine_rounds if schedule == "cosine" else None
    parts: dict[str, Any] = {
        "federation": federation.federation,
        "seed": federation.seed,
        "task": dataclasses.asdict(federation.task),
        "network": dataclasses.asdict(federation.network),
        "algorithm": settings(federation.algorithm),
        **exchange_terms(federation),
        "training": training,
        "wire.dtype": federation.wire.dtype,
        "network.signature": network_signature,
    }
    if federation.algorithm.exchange == "rounds":
        parts["rounds.quorum"] = federation.rounds.quorum
    if swaps(federation):
        parts["gossip.exchange"] = federation.gossip.exchange
    return tuple(sorted((k, json.dumps(v, sort_keys=True)) for k, v in _flatten(parts)))


def swaps(federation: FederationFile) -> bool:
    """Whether models are exchanged by swaps. Only then is the exchange part of the contract: pushing sites of
    earlier versions have no such key."""
    return federation.algorithm.exchange == "gossip" and federation.gossip.exchange == "swap"


def worker_spec(config: Config) -> WorkerSpec:
    """The training process's settings: its part of both files; of peers only their names."""
    f, s = config.federation, config.site
    return worker_spec_for(
        f,
        s.site,
        data=s.data,
        device=s.device,
        state_dir=s.state_dir,
        rounds=s.rounds,
        admission=dataclasses.asdict(s.admission),
        personal_network=None if s.personal_network is None else dataclasses.asdict(s.personal_network),
        privacy=dataclasses.asdict(s.privacy),
        inference=dataclasses.asdict(s.inference),
        report_test=s.report_test,
        tensorboard=s.tensorboard,
        listed=[site.name for site in f.sites],
    )


def worker_spec_for(
    federation: FederationFile,
    site: str,
    *,
    data: DataParams,
    device: DeviceParams,
    state_dir: str,
    rounds: int | None,
    **own: Any,
) -> WorkerSpec:
    """The worker's part of peers.yaml. `own`: the settings of site.yaml beside it."""
    plain = dataclasses.asdict
    return WorkerSpec(
        site=site,
        federation=federation.federation,
        seed=federation.seed,
        task=plain(federation.task),
        network=plain(federation.network),
        algorithm=plain(federation.algorithm),
        training=plain(federation.training),
        data=plain(data),
        device=plain(device),
        wire_dtype=federation.wire.dtype,
        state_dir=state_dir,
        rounds=rounds,
        swaps=swaps(federation),
        **own,
    )


def _flatten(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, item in value.items():
        name = prefix + str(key).removesuffix("_")
        if isinstance(item, dict) and item and name not in ("task.labels", "task.label_map"):
            yield from _flatten(item, f"{name}.")
        else:
            yield name, item


# ---------------------------------------------------------------- the two files


def _federation(path: Path, text: str | None = None) -> tuple[FederationFile, Source]:
    source = Source(path, read_mapping(path, text))
    _drop_empty(FederationFile, source.raw)
    _apply_membership_preset(source)
    _name_lambda(source)
    drop_retired(source)
    federation: FederationFile = validate(FederationFile, source)
    check_federation(federation, source)
    tell_idle(source, idle_key(federation))
    sites = [_inline_certificates(s, i, source) for i, s in enumerate(federation.sites)]
    _check_certificates(sites, source)
    return dataclasses.replace(federation, sites=sites), source


def _site(
    path: Path, overrides: Mapping[str, str] | None, env: Mapping[str, str] | None
) -> tuple[SiteFile, Source]:
    raw = read_mapping(path)
    settings = _environment(os.environ if env is None else env)
    settings |= {key: (text, f"flag for {key}") for key, text in (overrides or {}).items()}
    for key, (value, origin) in settings.items():
        set_dotted(raw, key, value, origin, is_text=takes_text(SiteFile, key))
    _drop_empty(SiteFile, raw)
    source = Source(path, raw, {key: origin for key, (_, origin) in settings.items()})
    site: SiteFile = validate(SiteFile, source)
    check_site(site, source)
    return _absolute(site, source), source


def _environment(env: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Dotted key → text and origin. Variables that set nothing, and may have been meant to, are reported once
    a process."""
    if not any(name.startswith(ENV_PREFIX) and name not in RESERVED_ENV for name in env):
        return {}  # the keys of site.yaml take a moment to list
    settings = read_environment(env, keys_of(SiteFile))
    for text in settings.warnings:
        if text not in _told:
            _told.add(text)
            log.warning("%s", text)
    return settings.overrides


def _drop_empty(kind: type, raw: dict[str, Any]) -> None:
    """Drop top-level keys without a value (all their lines are comments), so that defaults apply."""
    for f in dataclasses.fields(kind):
        if f.name in raw and raw[f.name] is None:
            del raw[f.name]


def _apply_membership_preset(source: Source) -> None:
    section = source.raw.get("membership")
    if not isinstance(section, dict) or "preset" not in section:
        return
    name = section.pop("preset")
    if name not in tuple(MEMBERSHIP_PRESETS):
        raise source.error(
            f"is not one of {', '.join(MEMBERSHIP_PRESETS)}",
            "membership.preset",
            name,
            nearest(str(name), MEMBERSHIP_PRESETS) or f"Choose one of {', '.join(MEMBERSHIP_PRESETS)}.",
        )
    source.raw["membership"] = {**dataclasses.asdict(membership_preset(name)), **section}


def _name_lambda(source: Source) -> None:
    """`lambda` in the file is a Params' lambda_ (a Python keyword cannot name a field)."""
    section = source.raw.get("algorithm")
    if not isinstance(section, dict) or "lambda" not in section:
        return
    if "lambda_" in section:
        raise source.error("appears as lambda and as lambda_", "algorithm.lambda", None, "Keep `lambda`.")
    section["lambda_"] = section.pop("lambda")


def _inline_certificates(site: ListedSite, index: int, source: Source) -> ListedSite:
    given = [site.certificate] if isinstance(site.certificate, str) else site.certificate
    key = f"sites.{index}.certificate"
    texts = []
    for text in filter(None, (t.strip() for t in given)):
        if "-----BEGIN" not in text:
            text = _certificate_file(source.path.parent / expanded(text, key, source.path), site, key, source)
        texts.append(text if text.endswith("\n") else text + "\n")
    if len(texts) > 2:
        raise source.error(
            f"site {site.name} lists {len(texts)} certificates",
            key,
            None,
            "List one, or two during a rotation.",
        )
    return dataclasses.replace(site, certificate=texts)


def _certificate_file(file: Path, site: ListedSite, key: str, source: Source) -> str:
    try:
        text = read_bounded(file).decode("ascii")
    except (OSError, UnicodeDecodeError, TooLarge) as e:
        why = getattr(e, "strerror", None) or getattr(e, "problem", None) or e
        raise source.error(
            f"the certificate file cannot be read: {why}",
            key,
            str(file),
            f"Put {site.name}'s cert.pem there, or paste its text.",
        ) from None
    if "-----BEGIN" not in text:
        raise source.error("is no PEM file", key, str(file), f"Put {site.name}'s cert.pem there.")
    return text


def _check_certificates(sites: list[ListedSite], source: Source) -> None:
    """Check that every certificate is valid, every key belongs to one site, every listed ID fits."""
    if not any(s.certificate or s.id for s in sites):
        return
    from gossipseg import trust  # cryptography: only where there is a certificate to look at

    owner: dict[str, str] = {}
    for i, site in enumerate(sites):
        for text in site.certificate:
            try:
                seen = trust.site_id(text.encode())
            except ConfigError as e:
                problem = f"{site.name}: {e.problem}"
                raise source.error(problem, f"sites.{i}.certificate", None, e.remedy) from None
            if owner.setdefault(seen, site.name) != site.name:
                raise source.error(
                    f"{owner[seen]} and {site.name} are listed with the same key ({seen})",
                    f"sites.{i}.certificate",
                    None,
                    "Every site makes its own identity with `gossipctl init`; list each one's certificate.",
                )
    trust.check_listed_ids(sites, source.path)


def _check_certificates_given(federation: FederationFile, source: Source) -> None:
    for i, site in enumerate(federation.sites):
        if not site.certificate:
            raise source.error(
                f"site {site.name} has no certificate",
                f"sites.{i}.certificate",
                None,
                "Ask its administrator for the cert.pem that `gossipctl init` made, and put it here.",
            )


def _absolute(site: SiteFile, source: Source) -> SiteFile:
    base = absolute(source.path).parent

    def fix(text: str, key: str) -> str:
        return str(base / expanded(text, key, source.place(key)))

    key, certificate = site.identity.key, site.identity.certificate
    return dataclasses.replace(
        site,
        peers=fix(site.peers, "peers"),
        state_dir=fix(site.state_dir, "state_dir"),
        identity=IdentityPaths(fix(key, "identity.key"), fix(certificate, "identity.certificate")),
        data=dataclasses.replace(site.data, path=fix(site.data.path, "data.path")),
        control_socket=fix(site.control_socket, "control_socket") if site.control_socket else None,
        log=dataclasses.replace(site.log, file=fix(site.log.file, "log.file") if site.log.file else None),
    )
