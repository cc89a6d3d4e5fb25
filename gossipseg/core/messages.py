"""Requests and replies between sites, as values. The wire gives them bytes; the core gives them meaning.

Every request is answered by one reply: Hello → HelloReply, Ping → Ack, IndirectPing → IndirectAck,
Sync → SyncReply, Offer → OfferReply, Prepare → PrepareReply, Fetch → FetchReply, Accept → AcceptReply,
Commit → CommitReply.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gossipseg.core.types import ModelKind, ModelRef, PeerInfo, Proposal, Record, Site, UpdateTally


@dataclass(frozen=True, slots=True)
class Hello:
    """First words on meeting a site, and again after either side restarted or changed its contract."""

    protocol_min: int
    protocol_max: int
    federation: str
    contract: tuple[tuple[str, str], ...]
    """Sorted (dotted key, JSON value) pairs of the contract, so that both sides can name what differs."""
    info: PeerInfo


@dataclass(frozen=True, slots=True)
class HelloReply:
    protocol_min: int
    protocol_max: int
    federation: str
    contract: tuple[tuple[str, str], ...]
    info: PeerInfo


@dataclass(frozen=True, slots=True)
class Ping:
    records: tuple[Record, ...]
    info: PeerInfo


@dataclass(frozen=True, slots=True)
class Ack:
    records: tuple[Record, ...]
    info: PeerInfo


@dataclass(frozen=True, slots=True)
class IndirectPing:
    """Please ping `target` for me."""

    target: Site
    records: tuple[Record, ...]


@dataclass(frozen=True, slots=True)
class IndirectAck:
    target: Site
    reached: bool
    records: tuple[Record, ...]


@dataclass(frozen=True, slots=True)
class Sync:
    """Push/pull: everything I believe; send me everything you believe."""

    records: tuple[Record, ...]
    info: PeerInfo


@dataclass(frozen=True, slots=True)
class SyncReply:
    records: tuple[Record, ...]
    info: PeerInfo


@dataclass(frozen=True, slots=True)
class Offer:
    model: ModelRef


@dataclass(frozen=True, slots=True)
class OfferReply:
    verdict: Literal["accept", "busy", "reject"]
    reason: str = ""
    """A stable lower_case code when not accepted: busy, not_ready, paused, finished, failed, stale,
    duplicate, too_large, contract_mismatch, exchanges_nothing, warming_up, leaving."""


# ---------------------------------------------------------------- rounds under a rotating coordinator
#
# `run` stands for federation, contract and run number; `sites` for the list of sites. A site whose own
# differ refuses with `other_run` or `other_sites`.


@dataclass(frozen=True, slots=True)
class Prepare:
    """The coordinator of (round, attempt) asks for a promise, and who has an update."""

    run: str
    sites: str
    round: int
    attempt: int
    tally: UpdateTally | None = None
    """None: an older version leads."""


@dataclass(frozen=True, slots=True)
class PrepareReply:
    """`promised`: the attempt of that round this site has promised now, perhaps a later one."""

    promise: bool
    promised: int
    reason: str = ""
    """A stable lower_case code when there is no promise: other_run, other_sites, later_attempt, behind,
    not_coordinator, already_committed, not_ready, leaving, quarantined, attempt_too_far, absurd_attempt."""
    accepted: Proposal | None = None
    """What it has stored for this round."""
    committed: Proposal | None = None
    """With already_committed: the newest global model that it knows to be committed."""
    update: ModelRef | None = None
    """Its update for this round, if it is there."""
    waiting_for: str = ""
    """Why there is no update yet: training, paused, failed, finished, not_ready …"""


@dataclass(frozen=True, slots=True)
class Fetch:
    """Please stream me this file: your update for the round, or a global model that you have stored.

    With an empty hash and kind `global` it asks which one is the newest committed; no stream follows.
    """

    run: str
    sites: str
    kind: ModelKind
    round: int
    attempt: int
    hash: str


@dataclass(frozen=True, slots=True)
class FetchReply:
    """When accepted, the stream of `model` follows."""

    verdict: Literal["accept", "busy", "reject"]
    reason: str = ""
    """A stable lower_case code when not accepted: busy, not_here, other_run, other_sites, later_attempt,
    not_coordinator, not_ready, leaving."""
    model: ModelRef | None = None
    proposal: Proposal | None = None
    """The newest global model that it knows to be committed: with an empty hash, and with not_here."""


@dataclass(frozen=True, slots=True)
class Accept:
    """Please store this durably as the global model of its round, unless you promised a later attempt."""

    run: str
    sites: str
    proposal: Proposal


@dataclass(frozen=True, slots=True)
class AcceptReply:
    """`missing`: the file is not here yet; the site fetches it and is to be asked again."""

    verdict: Literal["stored", "missing", "reject"]
    reason: str = ""
    """As in PrepareReply, and: too_few_contributors (one counted twice), too_large, other_model,
    beyond_budget."""
    promised: int = -1
    committed: Proposal | None = None
    """With already_committed: the newest global model that it knows to be committed."""


@dataclass(frozen=True, slots=True)
class Commit:
    """A quorum has stored it: this is the global model of its round."""

    run: str
    sites: str
    proposal: Proposal


@dataclass(frozen=True, slots=True)
class CommitReply:
    verdict: Literal["known", "reject"]
    reason: str = ""


Request = Hello | Ping | IndirectPing | Sync | Offer | Prepare | Fetch | Accept | Commit
Reply = (
    HelloReply
    | Ack
    | IndirectAck
    | SyncReply
    | OfferReply
    | PrepareReply
    | FetchReply
    | AcceptReply
    | CommitReply
)
Body = Request | Reply
