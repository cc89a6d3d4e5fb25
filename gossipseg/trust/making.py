"""Making a site's key and certificate, the first and the one that follows it in a rotation."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from gossipseg.certificates import names_in_certificate
from gossipseg.core.types import Site
from gossipseg.errors import LocalError
from gossipseg.trust.identity import Identity, next_paths

KEY_FILE = "key.pem"
CERTIFICATE_FILE = "cert.pem"
_BACKDATED = timedelta(days=1)
"""A certificate is valid from a day before it was made, since sites' clocks differ."""


def create_identity(name: Site, directory: Path, *, days: int = 3650, hosts: Iterable[str] = ()) -> Identity:
    """Make a key (ECDSA P-256, 0600) and a self-signed certificate for a site in `directory`.

    `hosts` are further host names or IP addresses to put into the certificate; gossipseg itself does not need
    them. The certificate is no CA: nobody believes what its key might sign. Existing files are not
    overwritten.
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
    certificate = self_signed(name, key, days, hosts)
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


def self_signed(
    name: Site, key: ec.EllipticCurvePrivateKey, days: int, hosts: Iterable[str]
) -> x509.Certificate:
    """A certificate for the site's key, valid for `days` from now; `hosts` are further names in it."""
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
