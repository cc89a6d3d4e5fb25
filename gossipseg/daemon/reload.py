"""What a reload does: it reads the files again, checks them against the running daemon, and reports the
changes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from gossipseg import config as configuration
from gossipseg import trust
from gossipseg.config import Config, ListedSite
from gossipseg.core.types import listing
from gossipseg.errors import ConfigError, LocalError
from gossipseg.wire.transport import PeerEndpoint


@dataclass(frozen=True, slots=True)
class Reload:
    """What is in force from now on."""

    config: Config
    identity: trust.Identity | None
    trust: trust.TrustList
    rekeyed: bool
    """Whether this site has another key, or certificate, than before."""
    changes: tuple[str, ...]
    """One sentence per change; empty: the files say what was in force already."""


def prepare(running: Config, identity: trust.Identity | None, read: Callable[[], Config]) -> Reload:
    """Read both files and the keys again. Raises ConfigError or LocalError; nothing has changed then.

    What changes is the list of sites. site.yaml and the other sections of peers.yaml must be valid, too, but
    their changes count from the next start. Half of them cannot apply to a running daemon: ports,
    directories, the budget, `insecure`.
    """
    found = read()
    if found.federation_path != running.federation_path:
        raise ConfigError(
            f"site.yaml names another list of sites than the one in force ({running.federation_path})",
            file=found.site_path,
            key="peers",
            value=str(found.federation_path),
            remedy="Restart the daemon for that.",
        )
    federation = dataclasses.replace(running.federation, sites=found.federation.sites)
    new = dataclasses.replace(running, federation=federation)
    if running.site.site not in [s.name for s in new.federation.sites]:
        raise ConfigError(
            f"this site ({running.site.site}) is no longer in the list",
            file=new.federation_path,
            key="sites",
            remedy="List it again, or let the daemon leave (`gossipctl leave`).",
        )
    if configuration.contract(found.federation) != configuration.contract(running.federation):
        raise ConfigError(
            "the contract (task, network, algorithm, training) changed",
            file=new.federation_path,
            remedy="Restart the daemon for that; only the list of sites and this site's key are reloaded.",
        )
    loaded, trusted = load_trust(new, identity)
    rekeyed = _shown(loaded) != _shown(identity)
    changes = [*_of_sites(running, new), *_of_sections(running, found)]
    if rekeyed and loaded is not None:
        changes.insert(0, f"this site now uses the key {loaded.site_id}")
    return Reload(new, loaded if rekeyed else identity, trusted, rekeyed, tuple(changes))


def _shown(identity: trust.Identity | None) -> bytes:
    return identity.certificate_pem if identity is not None else b""


# ---------------------------------------------------------------- what changed


def _of_sites(old: Config, new: Config) -> Iterator[str]:
    before = {s.name: s for s in old.federation.sites}
    after = {s.name: s for s in new.federation.sites}
    for name in sorted(before.keys() | after.keys()):
        if name not in before:
            yield f"{name} added"
        elif name not in after:
            yield f"{name} removed"
        else:
            yield from _of_site(before[name], after[name])


def _of_site(old: ListedSite, new: ListedSite) -> Iterator[str]:
    if old.address != new.address:
        yield f"{new.name} is at {new.address}, no longer {old.address}"
    before, after = ({trust.site_id(p.encode()): p for p in trust.certificates_of(s)} for s in (old, new))
    for id_ in sorted(after.keys() - before.keys()):
        yield f"{new.name}'s key {trust.short_id(id_)}… is accepted"
    for id_ in sorted(before.keys() - after.keys()):
        yield f"{new.name}'s key {trust.short_id(id_)}… is no longer accepted"
    if any(before[id_] != after[id_] for id_ in before.keys() & after.keys()):
        yield f"{new.name} has a new certificate for the same key"


def _of_sections(old: Config, found: Config) -> Iterator[str]:
    parts = [f.name for f in dataclasses.fields(old.federation) if f.name != "sites"]
    differ = [p for p in parts if getattr(old.federation, p) != getattr(found.federation, p)]
    if differ:
        yield f"peers.yaml: {', '.join(differ)} changed, which counts from the next start"
    if old.site != found.site:
        yield "site.yaml changed, which counts from the next start"


# ---------------------------------------------------------------- the list, as others want it


def listed_ids(config: Config) -> dict[str, str]:
    """Site ID → name, for every listed certificate."""
    return {trust.site_id(pem.encode()): s.name for s in config.federation.sites for pem in s.certificate}


def listed(config: Config) -> str:
    """Hash of the list of sites and keys, so that sites notice where theirs differ."""
    return listing(
        {s.name: [trust.site_id(pem.encode()) for pem in s.certificate] for s in config.federation.sites}
    )


def endpoints(config: Config) -> dict[str, PeerEndpoint]:
    """The other sites, in the transport's form."""
    return {
        s.name: PeerEndpoint(
            s.name,
            s.address if config.site.discovery.static else "",
            tuple(pem.encode() for pem in s.certificate),
        )
        for s in config.others
    }


def load_trust(
    config: Config, running: trust.Identity | None = None
) -> tuple[trust.Identity | None, trust.TrustList]:
    """This site's identity and the listed certificates, checked against each other. `running`: the identity
    in use. It may have expired: a site must be able to take another one off its list all the same."""
    sites, path = config.federation.sites, config.federation_path
    if config.site.insecure:
        return None, trust.TrustList.unsigned(s.name for s in sites)
    trust.check_listed_ids(sites, path)
    listed = trust.trust_list(sites, path)
    key, certificate = Path(config.site.identity.key), Path(config.site.identity.certificate)
    try:
        identity = trust.Identity.load(key, certificate)
    except LocalError:
        if running is None or not _is_in(certificate, running):
            raise
        identity = running
    trust.check_own_certificate(identity, config.me, path)
    return identity, listed


def _is_in(file: Path, identity: trust.Identity) -> bool:
    """Whether the file holds this identity's certificate."""
    try:
        return file.read_bytes() == identity.certificate_pem
    except OSError:
        return False
