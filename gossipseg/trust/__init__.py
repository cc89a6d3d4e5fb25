"""Identities: a site's own key and certificate, site IDs, and the keys that belong to each site.

What belongs here: identities, IDs, checking signatures against the listed certificates. What must not:
sockets, gRPC, the configuration reader (its values are read by their attributes). The list in peers.yaml is
the only authority: no CA is asked, and a name inside a certificate proves nothing.
"""

from __future__ import annotations

from gossipseg.certificates import (
    id_of_public_key,
    name_in_certificates,
    parse_site_id,
    public_key_of,
    short_id,
    site_id,
)
from gossipseg.trust.entries import (
    Listed,
    certificates_of,
    check_listed_ids,
    check_own_certificate,
    last_ends,
    trust_list,
)
from gossipseg.trust.identity import Identity, next_paths
from gossipseg.trust.making import CERTIFICATE_FILE, KEY_FILE, create_identity, create_next
from gossipseg.trust.trustlist import TrustList

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
    "last_ends",
    "name_in_certificates",
    "next_paths",
    "parse_site_id",
    "public_key_of",
    "short_id",
    "site_id",
    "trust_list",
]
