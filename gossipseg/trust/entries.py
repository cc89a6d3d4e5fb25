"""The entries of peers.yaml, checked: certificates, IDs written beside them, this site's own entry."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

from gossipseg.certificates import ends_at, parse_site_id, site_id
from gossipseg.core.types import Site
from gossipseg.errors import ConfigError
from gossipseg.trust.identity import Identity
from gossipseg.trust.trustlist import TrustList


class Listed(Protocol):
    """An entry of peers.yaml, as config.ListedSite has it after loading (certificates are PEM texts)."""

    @property
    def name(self) -> str: ...
    @property
    def certificate(self) -> str | list[str]: ...
    @property
    def id(self) -> str | None: ...


def certificates_of(listed: Listed) -> list[str]:
    """The PEM texts of an entry of peers.yaml."""
    given = [listed.certificate] if isinstance(listed.certificate, str) else listed.certificate
    return [text for text in given if text]


def last_ends(sites: Iterable[Listed]) -> dict[Site, float]:
    """Site → end of its last listed certificate, in seconds of Unix time. A site without one is left out."""
    listed = {site.name: certificates_of(site) for site in sites}
    return {name: max(map(ends_at, pems)) for name, pems in listed.items() if pems}


def trust_list(sites: Sequence[Listed], path: Path) -> TrustList:
    """The TrustList of a peers.yaml that was read from `path`. Raises ConfigError naming file and key."""
    seen: dict[Site, list[str]] = {}
    for i, listed in enumerate(sites):
        seen[listed.name] = certificates_of(listed)
        if not seen[listed.name]:
            raise ConfigError(
                f"no certificate is listed for {listed.name}, so no site could tell it from an impostor",
                file=path,
                key=f"sites.{i}.certificate",
                remedy=f"Put the text of {listed.name}'s cert.pem there (`gossipctl peers add`).",
            )
        try:
            TrustList.from_sites(seen)
        except ConfigError as e:
            raise ConfigError(e.problem, file=path, key=f"sites.{i}.certificate", remedy=e.remedy) from None
    return TrustList.from_sites(seen)


def check_listed_ids(sites: Sequence[Listed], path: Path) -> None:
    """Check every `id` in a peers.yaml against the certificates beside it. Raises ConfigError."""
    for i, listed in enumerate(sites):
        if listed.id is None:
            continue
        key = f"sites.{i}.id"
        try:
            wanted = parse_site_id(listed.id)
            ids = [site_id(text.encode()) for text in certificates_of(listed)]
        except ConfigError as e:
            raise ConfigError(e.problem, file=path, key=key, value=listed.id, remedy=e.remedy) from None
        if wanted not in ids:
            raise ConfigError(
                f"the certificate listed for {listed.name} has another ID: {', '.join(ids) or 'none listed'}",
                file=path,
                key=key,
                value=listed.id,
                remedy=f"Ask {listed.name} to read out its ID (`gossipctl check`); list the certificate "
                "that goes with it.",
            )


def check_own_certificate(identity: Identity, me: Listed, path: Path) -> None:
    """Check that this site is listed with the key it holds. Raises ConfigError."""
    ids = [site_id(text.encode()) for text in certificates_of(me)]
    if identity.site_id not in ids:
        raise ConfigError(
            f"{me.name} is listed with another key ({', '.join(ids) or 'none'}) than the one this site holds "
            f"({identity.site_id})",
            file=path,
            key=f"sites.{me.name}.certificate",
            remedy=f"List {identity.certificate_path} for {me.name}, at every site, or point identity.key at "
            "the key that belongs to the listed certificate.",
        )
