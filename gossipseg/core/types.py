"""The core's values: sites, membership records, models. Frozen, standard library only."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

PROTOCOL_MIN = 1
PROTOCOL_MAX = 2
"""Range of the supported peer protocol; only disjoint ranges are refused. 2: models carry manifests."""

Site = str
"""A site's name, as listed in peers.yaml. Members, rounds and state are keyed by it."""

Sign = Callable[[bytes], bytes]
"""Signs a record's payload with the site's key (in tests: any function)."""


class MemberState(StrEnum):
    """A member's state, as this site believes it."""

    UNSEEN = "unseen"
    """A listed site that has not been heard of since this daemon started."""
    ALIVE = "alive"
    SUSPECT = "suspect"
    DEAD = "dead"
    LEFT = "left"


class Phase(StrEnum):
    """What a site is doing, as it reports to its peers."""

    STARTING = "starting"
    """The worker has not reported yet: pings are answered, weights refused with `not_ready`."""
    TRAINING = "training"
    ENDING = "ending"
    """The site trains its last rounds alone. It still votes on global models, and contributes to none."""
    PAUSED = "paused"
    FAILED = "failed"
    """Training has failed for good; the site stays a member."""
    FINISHED = "finished"
    """The training budget is used up; the site stays a member and accepts no more models."""
    LEAVING = "leaving"


@dataclass(frozen=True, slots=True)
class AliveRecord:
    """An "alive" record, signed by its subject."""

    site: Site
    nonce: int
    """A random value of each start; it differs between two daemons, or two runs, with one key."""
    incarnation: int
    address: str
    """host:port where the site says it can be reached; a hint beside the listed address."""
    cases: int
    """Training cases; 0 while the site does not know them yet."""
    signature: bytes = b""


@dataclass(frozen=True, slots=True)
class LeftRecord:
    """A "left" record, signed by its subject, which leaves on purpose."""

    site: Site
    nonce: int
    incarnation: int
    signature: bytes = b""


@dataclass(frozen=True, slots=True)
class SuspectRecord:
    """A "suspect" record, signed by the accuser: the site did not answer it in this incarnation."""

    site: Site
    incarnation: int
    accuser: Site
    signature: bytes = b""


Record = AliveRecord | LeftRecord | SuspectRecord


def fingerprint(pairs: tuple[tuple[str, str], ...]) -> str:
    """Hash of a contract (sorted pairs of dotted key and JSON value), 32 hex digits."""
    return hashlib.sha256(json.dumps(pairs).encode()).hexdigest()[:32]


def signer_of(record: Record) -> Site:
    """The site whose key must have signed the record."""
    return record.accuser if isinstance(record, SuspectRecord) else record.site


def payload(record: Record) -> bytes:
    """The signed bytes: kind and every field but the signature, in a fixed order."""
    fields = [getattr(record, name) for name in record.__dataclass_fields__ if name != "signature"]
    return json.dumps([type(record).__name__, *fields], separators=(",", ":")).encode()


@dataclass(frozen=True, slots=True)
class PeerInfo:
    """What a site says of itself with every ping, answer and sync (authenticated by the connection)."""

    round: int
    steps: int
    """Optimizer steps behind its model: the larger of its own count and of the merged one."""
    cases: int
    phase: Phase
    contract: str
    """Fingerprint of its contract with the network signature; "" until its worker has reported."""
    committed: int = 0
    """The newest federation round whose global model it knows to be committed."""
    listed: str = ""
    """Hash of its list of sites and keys (`listing`); "" from an older version."""


def listing(keys: Mapping[Site, Iterable[str]]) -> str:
    """The hash of a list of sites and the IDs of their keys, with the number of sites."""
    pairs = tuple((site, ",".join(sorted(ids))) for site, ids in sorted(keys.items()))
    return f"{len(pairs)}-{fingerprint(pairs)[:12]}"


ModelKind = Literal["model", "update", "global", "personal"]
"""The kind of a file: a model for gossip, a site's update for a coordinator, a global model, or a site's
personal model."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """The maker's signed description of a model; it travels with the model unchanged."""

    schema: str = ""
    """Hash of the names and shapes of the file's tensors (computed by the shell)."""
    dtype: str = ""
    """The tensors' types, sorted and joined by "+": F16, F16+F32, F16+F32+I8."""
    federation: str = ""
    contract: str = ""
    """Fingerprint of the contract."""
    maker: Site = ""
    kind: ModelKind = "model"
    run: str = ""
    """The run of rounds that an update or a global model is for; "" for a model for gossip."""
    round: int = 0
    """The federation's round of an update or a global model.

    For a model for gossip: the round of the federation's budget at its end, as its maker counts.
    """
    attempt: int = 0
    """The attempt that made a global model; else 0."""
    sequence: int = 0
    """The maker's count of manifests. A number is never used twice, not even after a restart."""
    hash: str = ""
    size_bytes: int = 0
    steps: int = 0
    cases: int = 0
    dice_val: float | None = None
    signature: str = ""
    """Hex digits, so that a snapshot is plain JSON."""
    fault: str = ""
    """Why the receiving shell rejects the manifest; "" where it does not. Neither signed nor sent."""


def manifest_payload(manifest: Manifest) -> bytes:
    """The signed bytes. Their prefix differs from a record's, so that neither can pass for the other."""
    unsigned = ("signature", "fault")
    fields = {n: getattr(manifest, n) for n in manifest.__dataclass_fields__ if n not in unsigned}
    return b"gossipseg manifest 1\n" + json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()


@dataclass(frozen=True, slots=True)
class ModelRef:
    """A model in some store, by content."""

    hash: str
    """blake3 of the file, 64 hex digits."""
    size_bytes: int
    round: int
    steps: int
    cases: int
    dice_val: float | None = None
    """Validation Dice of the model that its maker deploys, which may be another one. No decision depends on
    it."""
    kind: ModelKind = "model"
    manifest: Manifest | None = None
    """The maker's signed manifest; None: an older version made the model."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """A global model that the coordinator of (round, attempt) made from the contributors' updates."""

    round: int
    """Federation round, from 1; round 0 is W_0, which all sites make from the seed."""
    attempt: int
    model: ModelRef
    contributors: tuple[Site, ...]
    """Sorted; each counted once."""
    absent: tuple[tuple[Site, str], ...] = ()
    """Listed sites that are not in it, with the reason."""


@dataclass(frozen=True, slots=True)
class UpdateTally:
    """The coordinator's report on its updates. It is shown; no decision depends on it."""

    deadline_ms: int | None = None
    """Milliseconds until sites that have not delivered are left out; None: the deadline is not set."""
    delivered: tuple[Site, ...] = ()
    """Sorted; the coordinator itself among them."""
    left_out: tuple[tuple[Site, str], ...] = ()
    """Sorted; sites that the coordinator does not wait for, with the reason."""


@dataclass(frozen=True, slots=True)
class ExchangeId:
    """The name of one swap: the site that asked for it, and that site's count of its offers."""

    asker: Site
    number: int
    """Persisted before its offer is sent, and never used twice, not even after a restart."""


@dataclass(frozen=True, slots=True)
class SwapTerms:
    """One site's signed side of a swap. Both sites compute the same plan from the two."""

    swap: ExchangeId
    federation: str
    contract: str
    """Fingerprint of the contract."""
    maker: Site
    partner: Site
    own_cases: int
    """The maker's training cases."""
    partner_cases: int
    """The partner's training cases as the maker counts them: capped, see swap_terms.py."""
    steps: int
    """Optimizer steps behind the maker's model."""
    round: int
    behind: bool = False
    """Whether the maker has under half of the steps that the other sites have in the median."""
    one_way: bool = False
    """Whether the maker, which was asked, cannot dial the asker: its own model stays where it is."""
    position: int = 0
    """Round of the federation whose stages these are; only along a hypercube."""
    stage: int = 0
    living: str = ""
    """Hash of the numbering of the living sites; "" where partners are drawn."""
    signature: str = ""
    """Hex digits, as in a manifest."""
    fault: str = ""
    """Why the receiving shell rejects the terms; "" where it does not. Neither signed nor sent."""


def terms_payload(terms: SwapTerms) -> bytes:
    """The signed bytes. Their prefix differs from those of records and manifests."""
    names = (n for n in terms.__dataclass_fields__ if n not in ("swap", "signature", "fault"))
    fields: dict[str, object] = {"asker": terms.swap.asker, "number": terms.swap.number}
    fields.update({n: getattr(terms, n) for n in names})
    return b"gossipseg swap 1\n" + json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()
