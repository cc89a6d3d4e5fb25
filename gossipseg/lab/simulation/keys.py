"""Signing keys of a run's sites, drawn from its seed: each run signs, and checks, as a federation does.

The keys are Ed25519, whose signatures have one length. So bytes on the wire are the same in every repetition.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gossipseg.core.types import Sign, Site


class RunKeys:
    """A Verifier (bridge.manifest_checks) for all sites of a run, and their signatures."""

    def __init__(self, sites: Iterable[Site], seed: int) -> None:
        self._private = {site: _key(site, seed) for site in sites}
        self._public = {site: key.public_key() for site, key in self._private.items()}
        self._known: dict[tuple[Site, bytes, bytes], bool] = {}

    @property
    def sites(self) -> frozenset[Site]:
        return frozenset(self._private)

    def signer(self, site: Site) -> Sign:
        """The function that signs for a site."""
        return self._private[site].sign

    def verify(self, site: Site, payload: bytes, signature: bytes) -> bool:
        """Whether the site has signed the payload. Answers are kept: records come often."""
        asked = (site, payload, signature)
        if asked not in self._known:
            self._known[asked] = self._verified(site, payload, signature)
        return self._known[asked]

    def _verified(self, site: Site, payload: bytes, signature: bytes) -> bool:
        key = self._public.get(site)
        if key is None:
            return False
        try:
            key.verify(signature, payload)
        except InvalidSignature:
            return False
        return True


def _key(site: Site, seed: int) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(f"{seed}/{site}/key".encode()).digest())
