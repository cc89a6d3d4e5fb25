"""Which keys belong to which site, and whether one of them signed something."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence

from gossipseg.certificates import PublicKey, id_of_public_key, parse_certificate, spki_of, supported_key
from gossipseg.core.types import Site
from gossipseg.errors import ConfigError
from gossipseg.trust.signatures import signed_by

_SIGNATURE_CACHE = 8192


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
        """Accept every statement about the listed names: for `insecure: true` on loopback alone."""
        return cls({site: () for site in sites}, unsigned=True)

    @property
    def sites(self) -> frozenset[Site]:
        """The listed names."""
        return frozenset(self._keys)

    def site_of_public_key(self, spki_der: bytes) -> Site | None:
        """The site that a key (SubjectPublicKeyInfo, DER) is listed for; None: no site."""
        return self._by_key.get(spki_der)

    def ids_of(self, site: Site) -> tuple[str, ...]:
        """The IDs of the keys listed for a site."""
        return tuple(id_of_public_key(spki_of(key)) for key in self._keys.get(site, ()))

    def verify(self, site: Site, payload: bytes, signature: bytes) -> bool:
        """Whether one of the site's listed keys signed the payload. Results are cached: records come
        often."""
        if self._open:
            return site in self._keys
        memo = (site, hashlib.sha256(payload).digest(), signature)
        known = self._seen.get(memo)
        if known is None:
            known = any(signed_by(key, payload, signature) for key in self._keys.get(site, ()))
            self._seen[memo] = known
            if len(self._seen) > _SIGNATURE_CACHE:
                self._seen.popitem(last=False)
        return known
