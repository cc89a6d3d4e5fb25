"""Site IDs and PEM certificates: what a certificate's key is, and how its ID is written."""

from __future__ import annotations

import base64
import functools
import hashlib
from collections.abc import Sequence

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from gossipseg.core.types import Site
from gossipseg.errors import ConfigError

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey

WARN_DAYS = 30.0
"""Days before the end of a certificate from which it is reported."""

_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
_BLOCK, _GROUP, _BLOCKS = 13, 7, 4


def site_id(certificate_pem: bytes) -> str:
    """The ID of the key in a certificate: SHA-256 of its SubjectPublicKeyInfo, with check characters.

    An ID has eight groups of seven base32 characters. Each block of 13 is followed by a Luhn-mod-32 check
    character, as in Syncthing's device IDs. So a mistake in an ID read out over the telephone is found on
    typing.
    """
    return id_of_public_key(public_key_of(certificate_pem))


def id_of_public_key(spki_der: bytes) -> str:
    """The site ID of a public key given as SubjectPublicKeyInfo in DER."""
    text = base64.b32encode(hashlib.sha256(spki_der).digest()).decode().rstrip("=")
    blocks = [text[i : i + _BLOCK] for i in range(0, len(text), _BLOCK)]
    return _grouped("".join(block + _check_character(block) for block in blocks))


def short_id(site_id: str) -> str:
    """The first group of an ID, for tables."""
    return site_id.split("-", 1)[0]


def parse_site_id(text: str) -> str:
    """The canonical form of an ID as somebody typed it (case, dashes and blanks do not matter).

    Raises ConfigError that names the part with the mistake.
    """
    compact = "".join(text.upper().split()).replace("-", "")
    compact = compact.translate(str.maketrans("018", "OIB"))
    expected = _BLOCKS * (_BLOCK + 1)
    if len(compact) != expected:
        raise ConfigError(
            f"a site ID has {expected} letters and digits, this one has {len(compact)}",
            key="id",
            value=text,
            remedy="Copy it again from `gossipctl check` at that site.",
        )
    wrong = sorted(set(compact) - set(_ALPHABET))
    if wrong:
        raise ConfigError(
            f"a site ID holds only letters and the digits 2 to 7, not {' '.join(wrong)}",
            key="id",
            value=text,
            remedy="Copy it again from `gossipctl check` at that site.",
        )
    for i in range(_BLOCKS):
        block = compact[i * (_BLOCK + 1) : (i + 1) * (_BLOCK + 1)]
        if _check_character(block[:-1]) != block[-1]:
            raise ConfigError(
                f"the check character of groups {2 * i + 1} and {2 * i + 2} "
                f"({block[:_GROUP]}-{block[_GROUP:]}) does not fit: there is a typing mistake in them",
                key="id",
                value=text,
                remedy="Compare these two groups with `gossipctl check` at that site.",
            )
    return _grouped(compact)


def _grouped(text: str) -> str:
    return "-".join(text[i : i + _GROUP] for i in range(0, len(text), _GROUP))


def _check_character(block: str) -> str:
    """Luhn mod 32: catches every single wrong character and nearly all swaps of two neighbours."""
    total = 0
    for i, character in enumerate(reversed(block)):
        product = _ALPHABET.index(character) * (2 if i % 2 == 0 else 1)
        total += product // 32 + product % 32
    return _ALPHABET[-total % 32]


# ---------------------------------------------------------------- certificates


def public_key_of(certificate_pem: bytes) -> bytes:
    """SubjectPublicKeyInfo (DER) of a PEM certificate. Raises ConfigError when it is not one."""
    return spki_of(supported_key(parse_certificate(certificate_pem)))


def name_in_certificates(site: Site, certificates: Sequence[bytes]) -> str:
    """The name to expect in a TLS handshake with a site: one that all its listed certificates carry.

    It is the site's own name where they carry it; certificates of a hospital's PKI have a host name. The name
    proves nothing (the pinned certificate does), but TLS asks for one. Raises ConfigError.
    """
    names = [_names(parse_certificate(pem)) for pem in certificates]
    common = [n for n in names[0] if all(n in other for other in names)] if names else []
    if site in common:
        return site
    if not common:
        raise ConfigError(
            f"the certificates listed for {site} share no name",
            key="certificate",
            remedy="During a rotation both must carry the site's name (`gossipctl init` writes it).",
        )
    return common[0]


def names_in_certificate(pem: bytes) -> list[str]:
    """The names that a PEM certificate carries. Raises ConfigError when it is none."""
    return _names(parse_certificate(pem))


def _names(certificate: x509.Certificate) -> list[str]:
    try:
        san = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        names = list(san.get_values_for_type(x509.DNSName))
        names += [str(ip) for ip in san.get_values_for_type(x509.IPAddress)]
    except x509.ExtensionNotFound:
        names = []
    if not names:
        names = [str(a.value) for a in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    return names


def parse_certificate(pem: bytes) -> x509.Certificate:
    if b"PRIVATE KEY" in pem:
        raise ConfigError(
            "this holds a PRIVATE KEY, which must never leave its site",
            key="certificate",
            remedy="Give the certificate (cert.pem) only, and make a new identity for the key's site.",
        )
    try:
        found = x509.load_pem_x509_certificates(pem)
    except (ValueError, x509.InvalidVersion) as e:
        raise ConfigError(
            f"this is not a PEM certificate ({e})",
            key="certificate",
            remedy="Paste the whole of cert.pem, with its BEGIN and END lines.",
        ) from None
    if len(found) != 1:
        raise ConfigError(
            f"this holds {len(found)} certificates where one is expected",
            key="certificate",
            remedy="List the site's own certificate only; its issuers are not needed. "
            "During a rotation give a list of two.",
        )
    return found[0]


def described(pem: bytes) -> str:
    """Subject and issuer of any certificate that is shown, for people."""
    try:
        shown = x509.load_pem_x509_certificate(pem)
        names = (shown.subject.rfc4514_string(), shown.issuer.rfc4514_string())
    except (ValueError, x509.InvalidVersion) as e:
        return f"subject cannot be read: {e}"
    subject, issuer = ("".join(c if c.isprintable() else " " for c in name)[:200] for name in names)
    by = "itself" if subject == issuer else f"'{issuer}'"
    return f"subject is '{subject}', issued by {by}"


@functools.lru_cache(maxsize=4096)
def ends_at(pem: str) -> float:
    """When a PEM certificate ends, in seconds of Unix time. Raises ConfigError when it is none."""
    return parse_certificate(pem.encode()).not_valid_after_utc.timestamp()


def supported_key(certificate: x509.Certificate) -> PublicKey:
    try:
        key = certificate.public_key()
    except (ValueError, UnsupportedAlgorithm):  # whoever answers at an address may show anything
        key = None
    if isinstance(key, ec.EllipticCurvePublicKey) and key.key_size >= 256:
        return key
    if isinstance(key, rsa.RSAPublicKey) and key.key_size >= 2048:
        return key
    raise ConfigError(
        "the certificate's key is not of a supported kind",
        key="certificate",
        remedy="Use ECDSA on P-256 or larger (`gossipctl init` makes one), or RSA of at least 2048 bits.",
    )


def spki_of(key: PublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
