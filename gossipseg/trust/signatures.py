"""Signatures over payloads: ECDSA or RSA-PSS, with SHA-256."""

from __future__ import annotations

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

from gossipseg.certificates import PrivateKey, PublicKey

_PSS = padding.PSS(padding.MGF1(hashes.SHA256()), padding.PSS.DIGEST_LENGTH)


def sign(key: PrivateKey, payload: bytes) -> bytes:
    if isinstance(key, rsa.RSAPrivateKey):
        return key.sign(payload, _PSS, hashes.SHA256())
    return key.sign(payload, ec.ECDSA(hashes.SHA256()))


def signed_by(key: PublicKey, payload: bytes, signature: bytes) -> bool:
    """Whether the key made this signature over the payload."""
    try:
        if isinstance(key, rsa.RSAPublicKey):
            key.verify(signature, payload, _PSS, hashes.SHA256())
        else:
            key.verify(signature, payload, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        return False
    return True
