"""Who is who: a site's own key and certificate, site IDs, and the list of keys that belong to each site.

What belongs here: identities, IDs, checking signatures against the listed certificates.
What must not: sockets, gRPC, the configuration reader (what it passes in is read by its attributes).
The list in peers.yaml is the only authority: no CA is asked, and a name inside a certificate proves nothing.
"""

from __future__ import annotations

import hashlib
import ipaddress
import os
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Protocol

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from gossipseg.certificates import (
    PrivateKey,
    PublicKey,
    id_of_public_key,
    name_in_certificates,
    names_in_certificate,
    parse_certificate,
    parse_site_id,
    public_key_of,
    short_id,
    site_id,
    spki_of,
    supported_key,
)
from gossipseg.core.types import Site
from gossipseg.errors import ConfigError, LocalError

__all__ = [
    "CERTIFICATE_FILE",
    "KEY_FILE",
    "Identity",
    "Listed",
    "TrustList",
    "certificates_of",
    "check_listed_ids",
    "check_own_certificate",
    "create_identity",
    "create_next",
    "id_of_public_key",
    "name_in_certificates",
    "next_paths",
    "parse_site_id",
    "public_key_of",
    "short_id",
    "site_id",
    "trust_list",
]

KEY_FILE = "key.pem"
CERTIFICATE_FILE = "cert.pem"
_BACKDATED = timedelta(days=1)
"""A certificate counts from a day before it was made: sites' clocks differ."""
_SIGNATURE_CACHE = 8192


class Listed(Protocol):
    """An entry of peers.yaml, as config.ListedSite has it after loading (certificates are PEM texts)."""

    @property
    def name(self) -> str: ...
    @property
    def certificate(self) -> str | list[str]: ...
    @property
    def id(self) -> str | None: ...


# ---------------------------------------------------------------- this site's identity


@dataclass(frozen=True, slots=True)
class Identity:
    """This site's own key and certificate. The key stays in this process and in its file (0600)."""

    key_path: Path
    certificate_path: Path
    certificate_pem: bytes
    key_pem: bytes = field(repr=False)
    site_id: str
    not_after: datetime
    _key: PrivateKey = field(repr=False)

    @classmethod
    def load(cls, key: Path, certificate: Path, *, now: float | None = None) -> Identity:
        """Read and check both files. `now` is wall seconds (default: this machine's clock).

        Raises LocalError (missing, unreadable, readable by others, expired, not yet valid) or ConfigError
        (not PEM, key and certificate of different pairs).
        """
        key, certificate = Path(key), Path(certificate)
        key_pem, certificate_pem = _read_key(key), _read(certificate, "certificate")
        private = _load_private_key(key_pem, key)
        try:
            parsed = parse_certificate(certificate_pem)
        except ConfigError as e:
            raise ConfigError(e.problem, file=certificate, remedy=e.remedy) from None
        if (following := _certificate_to_come(private, parsed, certificate)) is not None:
            certificate_pem, parsed = following
        if spki_of(supported_key(parsed)) != spki_of(private.public_key()):
            raise ConfigError(
                f"this certificate does not belong to the key in {key}",
                file=certificate,
                remedy="Point identity.key and identity.certificate at files of the same pair.",
            )
        _check_validity(parsed, certificate, time.time() if now is None else now)
        return cls(
            key_path=key,
            certificate_path=certificate,
            certificate_pem=certificate_pem,
            key_pem=key_pem,
            site_id=id_of_public_key(spki_of(private.public_key())),
            not_after=parsed.not_valid_after_utc,
            _key=private,
        )

    def sign(self, payload: bytes) -> bytes:
        """A signature over the payload (ECDSA or RSA-PSS with SHA-256) for TrustList.verify."""
        if isinstance(self._key, rsa.RSAPrivateKey):
            return self._key.sign(payload, _PSS, hashes.SHA256())
        return self._key.sign(payload, ec.ECDSA(hashes.SHA256()))

    def days_left(self, now: float) -> float:
        """Days until the certificate expires, from `now` in wall seconds; negative when it has."""
        return (self.not_after.timestamp() - now) / 86400


_PSS = padding.PSS(padding.MGF1(hashes.SHA256()), padding.PSS.DIGEST_LENGTH)


def create_identity(name: Site, directory: Path, *, days: int = 3650, hosts: Iterable[str] = ()) -> Identity:
    """Make a key (ECDSA P-256, 0600) and a self-signed certificate for a site in `directory`.

    `hosts` are further host names or IP addresses to put into the certificate; nothing of gossipseg needs
    them. The certificate is no CA: what its key might sign is believed by nobody. Refuses to overwrite.
    """
    directory = Path(directory)
    key_path, certificate_path = directory / KEY_FILE, directory / CERTIFICATE_FILE
    for path in (key_path, certificate_path):
        if path.exists():
            raise LocalError(
                f"{path} exists already and is not overwritten: the other sites know this one by it. "
                "Move it away first if you really want a new identity."
            )
    return _make_pair(name, key_path, certificate_path, days, hosts)


def next_paths(key: Path, certificate: Path) -> tuple[Path, Path]:
    """Where the next key and certificate lie during a rotation: key.next.pem beside key.pem, and so on."""
    key, certificate = Path(key), Path(certificate)
    return tuple(p.with_name(f"{p.stem}.next{p.suffix}") for p in (key, certificate))  # type: ignore[return-value]


def create_next(name: Site, present: Identity, *, days: int = 3650) -> Identity:
    """Make the key (0600) and certificate that shall follow the present ones, beside them.

    The certificate carries the present one's names too: during a rotation a peer expects one name of both.
    Raises LocalError when they are there already, or cannot be written.
    """
    key_path, certificate_path = next_paths(present.key_path, present.certificate_path)
    if key_path.exists() or certificate_path.exists():
        raise LocalError(f"{key_path} or {certificate_path} is there already, and is not overwritten.")
    hosts = names_in_certificate(present.certificate_pem)
    return _make_pair(name, key_path, certificate_path, days, hosts)


def _make_pair(
    name: Site, key_path: Path, certificate_path: Path, days: int, hosts: Iterable[str]
) -> Identity:
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = _self_signed(name, key, days, hosts)
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    try:
        key_path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write_new(key_path, pem, 0o600)
        _write_new(certificate_path, certificate.public_bytes(serialization.Encoding.PEM), 0o644)
    except OSError as e:
        raise LocalError(f"the identity cannot be written to {key_path.parent}: {e}.") from e
    return Identity.load(key_path, certificate_path)


def _self_signed(
    name: Site, key: ec.EllipticCurvePrivateKey, days: int, hosts: Iterable[str]
) -> x509.Certificate:
    public, now = key.public_key(), datetime.now(UTC).replace(microsecond=0)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    usage = x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
    names = [x509.DNSName(name), *(_general_name(h) for h in hosts if h != name)]
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
            critical=False,
        )
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(public), critical=False)
        .sign(key, hashes.SHA256())
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host.strip("[]")))
    except ValueError:
        return x509.DNSName(host)


def _write_new(path: Path, data: bytes, mode: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(fd, "wb") as f:
        os.fchmod(fd, mode)  # a strict umask must not hide the certificate from the daemon's own user
        f.write(data)
        f.flush()
        os.fsync(fd)


def _read(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise LocalError(
            f"{path}: there is no {what}. Make this site's identity with `gossipctl init`, or correct "
            f"identity in site.yaml."
        ) from None
    except OSError as e:
        raise LocalError(f"{path}: the {what} cannot be read: {e.strerror}. Check its owner and mode.") from e


def _read_key(path: Path) -> bytes:
    pem = _read(path, "key")
    mode = path.stat().st_mode & 0o777
    # systemd hands a credential over by an access list, whose mask shows as the group's bits.
    if mode & (0o007 if _is_credential(path) else 0o077):
        raise LocalError(
            f"{path}: other users of this machine can reach the key (mode {mode:04o}), and whoever reads it "
            f"is this site. Run `chmod 600 {path}`; if it may have been read, make a new identity."
        )
    return pem


def _certificate_to_come(
    private: PrivateKey, parsed: x509.Certificate, path: Path
) -> tuple[bytes, x509.Certificate] | None:
    """The next certificate, where the key is the next one already: `rotate --finish` replaces the key first,
    and a machine whose power failed in between shall start all the same.
    """
    mine = spki_of(private.public_key())
    if spki_of(supported_key(parsed)) == mine:
        return None
    try:
        pem = next_paths(path, path)[1].read_bytes()
        following = parse_certificate(pem)
        return (pem, following) if spki_of(supported_key(following)) == mine else None
    except (OSError, ConfigError):
        return None


def _is_credential(path: Path) -> bool:
    directory = os.environ.get("CREDENTIALS_DIRECTORY")
    return bool(directory) and path.resolve().is_relative_to(Path(directory or ".").resolve())


def _load_private_key(pem: bytes, path: Path) -> PrivateKey:
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError) as e:
        raise ConfigError(
            f"this is not an unencrypted PEM private key ({e})",
            file=path,
            remedy="Point identity.key at the key.pem that `gossipctl init` wrote.",
        ) from None
    if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        raise ConfigError(
            "this kind of key is not supported", file=path, remedy="Use ECDSA on P-256, or RSA."
        )
    return key


def _check_validity(certificate: x509.Certificate, path: Path, now: float) -> None:
    until, since = certificate.not_valid_after_utc, certificate.not_valid_before_utc
    if now > until.timestamp():
        raise LocalError(
            f"{path}: this site's certificate expired on {until:%Y-%m-%d}, and no peer accepts it any more. "
            "Make the next one with `gossipctl rotate` and have its certificate listed in peers.yaml."
        )
    if now < since.timestamp():
        raise LocalError(
            f"{path}: this site's certificate is valid from {since:%Y-%m-%d}, and this machine's clock says "
            f"{datetime.fromtimestamp(now, UTC):%Y-%m-%d}. Set the clock."
        )


# ---------------------------------------------------------------- the list


class TrustList:
    """Which keys belong to which site. Immutable: a changed peers.yaml makes a new one."""

    __slots__ = ("_by_key", "_keys", "_open", "_seen")

    def __init__(self, keys: Mapping[Site, Sequence[PublicKey]], *, unsigned: bool = False) -> None:
        self._keys = {site: tuple(found) for site, found in keys.items()}
        self._by_key = {spki_of(key): site for site, found in self._keys.items() for key in found}
        self._open = unsigned
        self._seen: OrderedDict[tuple[Site, bytes, bytes], bool] = OrderedDict()

    @classmethod
    def from_sites(cls, certificates: Mapping[Site, Sequence[str | bytes]]) -> TrustList:
        """From PEM certificates by site (none, one, or two during a rotation).

        Raises ConfigError for something that is no certificate, and for one key listed for two sites.
        """
        keys: dict[Site, list[PublicKey]] = {}
        owner: dict[bytes, Site] = {}
        for site, pems in certificates.items():
            keys[site] = []
            for pem in pems:
                key = supported_key(parse_certificate(pem.encode() if isinstance(pem, str) else pem))
                spki = spki_of(key)
                if owner.setdefault(spki, site) != site:
                    raise ConfigError(
                        f"{owner[spki]} and {site} are listed with the same key ({id_of_public_key(spki)})",
                        key="certificate",
                        remedy="Every site makes its own identity with `gossipctl init`; list each one's.",
                    )
                keys[site].append(key)
        return cls(keys)

    @classmethod
    def unsigned(cls, sites: Iterable[Site]) -> TrustList:
        """Believes whatever is said of the listed names: for `insecure: true` on loopback alone."""
        return cls({site: () for site in sites}, unsigned=True)

    @property
    def sites(self) -> frozenset[Site]:
        """The listed names."""
        return frozenset(self._keys)

    def site_of_public_key(self, spki_der: bytes) -> Site | None:
        """The site that a key (SubjectPublicKeyInfo, DER) is listed for; None: nobody's."""
        return self._by_key.get(spki_der)

    def ids_of(self, site: Site) -> tuple[str, ...]:
        """The IDs of the keys listed for a site."""
        return tuple(id_of_public_key(spki_of(key)) for key in self._keys.get(site, ()))

    def verify(self, site: Site, payload: bytes, signature: bytes) -> bool:
        """Whether one of the site's listed keys signed the payload. Answers are kept: records come often."""
        if self._open:
            return site in self._keys
        memo = (site, hashlib.sha256(payload).digest(), signature)
        known = self._seen.get(memo)
        if known is None:
            known = any(_signed_by(key, payload, signature) for key in self._keys.get(site, ()))
            self._seen[memo] = known
            if len(self._seen) > _SIGNATURE_CACHE:
                self._seen.popitem(last=False)
        return known


def _signed_by(key: PublicKey, payload: bytes, signature: bytes) -> bool:
    try:
        if isinstance(key, rsa.RSAPublicKey):
            key.verify(signature, payload, _PSS, hashes.SHA256())
        else:
            key.verify(signature, payload, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        return False
    return True


# ---------------------------------------------------------------- peers.yaml


def certificates_of(listed: Listed) -> list[str]:
    """The PEM texts of an entry of peers.yaml."""
    given = [listed.certificate] if isinstance(listed.certificate, str) else listed.certificate
    return [text for text in given if text]


def trust_list(sites: Sequence[Listed], path: Path) -> TrustList:
    """The TrustList of a peers.yaml that was read from `path`. Raises ConfigError naming file and key."""
    seen: dict[Site, list[str]] = {}
    for i, listed in enumerate(sites):
        seen[listed.name] = certificates_of(listed)
        if not seen[listed.name]:
            raise ConfigError(
                f"no certificate is listed for {listed.name}, so nobody could tell it from an impostor",
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
