"""This site's own key and certificate, read from their files and checked."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from gossipseg.certificates import PrivateKey, id_of_public_key, parse_certificate, spki_of, supported_key
from gossipseg.errors import ConfigError, LocalError
from gossipseg.trust.signatures import sign


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
        return sign(self._key, payload)

    def days_left(self, now: float) -> float:
        """Days until the certificate expires, from `now` in wall seconds; negative when it has."""
        return (self.not_after.timestamp() - now) / 86400


def next_paths(key: Path, certificate: Path) -> tuple[Path, Path]:
    """Where the next key and certificate lie during a rotation: key.next.pem beside key.pem, and so on."""
    key, certificate = Path(key), Path(certificate)
    return tuple(p.with_name(f"{p.stem}.next{p.suffix}") for p in (key, certificate))  # type: ignore[return-value]


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
    """The next certificate, where the key is the next one already.

    `rotate --finish` replaces the key first. A machine whose power failed in between shall start all the
    same.
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
