"""Values the core speaks of: sites, membership records, models. Frozen, standard library only."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

PROTOCOL_MIN = 1
PROTOCOL_MAX = 2
"""Range of the peer protocol spoken here; only disjoint ranges are refused. 2: models carry manifests."""

Site = str
"""A site's name, as listed in peers.yaml. Members, rounds and state are keyed by it."""

Sign = Callable[[bytes], bytes]
"""Signs a record's payload with the site's key (in tests: any function)."""


class MemberState(StrEnum):
    """What this site believes of another one."""

    UNSEEN = "unseen"
    """Listed, and not heard of since this daemon started."""
    ALIVE = "alive"
    SUSPECT = "suspect"
    DEAD = "dead"
    LEFT = "left"


class Phase(StrEnum):
    """What a site is doing, as it tells its peers."""

    STARTING = "starting"
    """The worker has not reported yet: pings are answered, weights refused with `not_ready`."""
    TRAINING = "training"
    ENDING = "ending"
    """It trains its last rounds alone: it still votes on global models, and contributes to none."""
    PAUSED = "paused"
    FAILED = "failed"
    """Training has failed for good; the site stays a member."""
    FINISHED = "finished"
    """The training budget is used up; the site stays a member and takes no more models."""
    LEAVING = "leaving"


@dataclass(frozen=True, slots=True)
class AliveRecord:
    """Signed by its subject: I am here."""

    site: Site
    nonce: int
    """Drawn at each start; two lives of one site, or two daemons with one key, differ in it."""
    incarnation: int
    address: str
    """host:port where the site says it can be reached; a hint beside the listed address."""
    cases: int
    """Training cases; 0 while the site does not know yet."""
    signature: bytes = b""


@dataclass(frozen=True, slots=True)
class LeftRecord:
    """Signed by its subject: I am leaving on purpose."""

    site: Site
    nonce: int
    incarnation: int
    signature: bytes = b""


@dataclass(frozen=True, slots=True)
class SuspectRecord:
    """Signed by the accuser: the site did not answer me in this incarnation."""

    site: Site
    incarnation: int
    accuser: Site
    signature: bytes = b""


Record = AliveRecord | LeftRecord | SuspectRecord


def fingerprint(pairs: tuple[tuple[str, str], ...]) -> str:
    """32 hex digits that stand for a contract: its sorted (dotted key, JSON value) pairs."""
    return hashlib.sha256(json.dumps(pairs).encode()).hexdigest()[:32]


def signer_of(record: Record) -> Site:
    """The site whose key must have signed the record."""
    return record.accuser if isinstance(record, SuspectRecord) else record.site


def payload(record: Record) -> bytes:
    """The bytes that are signed: kind and every field but the signature, in a fixed order."""
    fields = [getattr(record, name) for name in record.__dataclass_fields__ if name != "signature"]
    return json.dumps([type(record).__name__, *fields], separators=(",", ":")).encode()


@dataclass(frozen=True, slots=True)
class PeerInfo:
    """What a site says of itself with every ping, answer and sync (authentic by the connection)."""

    round: int
    steps: int
    """Optimizer steps its model has behind it: the larger of its own and of what it merged."""
    cases: int
    phase: Phase
    contract: str
    """Fingerprint of its contract with the network signature; "" until its worker has reported."""
    committed: int = 0
    """The newest federation round whose global model it knows to be committed."""
    listed: str = ""
    """Stands for its list of sites and keys (`listing`); "" of an older version."""


def listing(keys: Mapping[Site, Iterable[str]]) -> str:
    """What stands for a list of sites and the IDs of their keys: how many they are, and a hash."""
    pairs = tuple((site, ",".join(sorted(ids))) for site, ids in sorted(keys.items()))
    return f"{len(pairs)}-{fingerprint(pairs)[:12]}"


ModelKind = Literal["model", "update", "global"]
"""What a file holds: a model for gossip, a site's update for a coordinator, a global model."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What the maker of a model says of it, signed with its key; it travels with the model unchanged."""

    schema: str = ""
    """Names and shapes of the file's tensors, as a hash (the shell's)."""
    dtype: str = ""
    """The tensors' types, sorted and joined by "+": F16, F16+F32."""
    federation: str = ""
    contract: str = ""
    """Fingerprint."""
    maker: Site = ""
    kind: ModelKind = "model"
    run: str = ""
    """The run of rounds that an update or a global model is for; "" of a model for gossip."""
    round: int = 0
    """Of an update or a global model: the federation's; of a model for gossip: that of the federation's
    budget at whose end it stands, as its maker counts."""
    attempt: int = 0
    """Of a global model: the attempt in which it was made; else 0."""
    sequence: int = 0
    """Its maker's count of manifests: it never says a number twice, not even after a restart."""
    hash: str = ""
    size_bytes: int = 0
    steps: int = 0
    cases: int = 0
    dice_val: float | None = None
    signature: str = ""
    """Hex digits, so that a snapshot is plain JSON."""
    fault: str = ""
    """Not signed and not sent: why the receiving shell does not believe it; "" where it does."""


def manifest_payload(manifest: Manifest) -> bytes:
    """The bytes that are signed. They begin unlike a record's: neither can be passed off as the other."""
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
    """Validation Dice of what its maker deploys, which need not be this model. Nothing is decided by it."""
    kind: ModelKind = "model"
    manifest: Manifest | None = None
    """What its maker signed of it; None: an older version made it."""


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
    """What the coordinator of an attempt tells of its updates. It is shown; nothing is decided by it."""

    deadline_ms: int | None = None
    """Left until sites that have not delivered are left out; None: that clock does not run."""
    delivered: tuple[Site, ...] = ()
    """Sorted; the coordinator itself among them."""
    left_out: tuple[tuple[Site, str], ...] = ()
    """Sorted; sites that it does not wait for, with the reason."""
