"""Requests and replies between sites, as values. The wire encodes them; the core interprets them.

Every request is answered by one reply: Hello → HelloReply, Ping → Ack, IndirectPing → IndirectAck, Sync →
SyncReply, Offer → OfferReply, Prepare → PrepareReply, Fetch → FetchReply, Accept → AcceptReply, Commit →
CommitReply, SwapOffer → SwapOfferReply, SwapSnapshot → SwapSnapshotReply, SwapReady and SwapTold →
SwapState.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gossipseg.core.types import (
    ExchangeId,
    ModelKind,
    ModelRef,
    PeerInfo,
    Proposal,
    Record,
    Site,
    SwapTerms,
    UpdateTally,
)


@dataclass(frozen=True, slots=True)
class Hello:
    """The first message on meeting a site; sent again after either side restarted or changed its contract."""

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
    """Ask the receiver to ping `target` for this site."""

    target: Site
    records: tuple[Record, ...]


@dataclass(frozen=True, slots=True)
class IndirectAck:
    target: Site
    reached: bool
    records: tuple[Record, ...]


@dataclass(frozen=True, slots=True)
class Sync:
    """Push/pull: everything that this site believes; the reply carries everything that the other believes."""

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
# `run` stands for federation, contract and run number; `sites` for the list of sites. A site with other
# values refuses with `other_run` or `other_sites`.


@dataclass(frozen=True, slots=True)
class Prepare:
    """The coordinator of (round, attempt) asks a site for a promise, and which update it has."""

    run: str
    sites: str
    round: int
    attempt: int
    tally: UpdateTally | None = None
    """None: the coordinator runs an older version."""


@dataclass(frozen=True, slots=True)
class PrepareReply:
    """`promised`: the attempt of that round that this site has promised now, perhaps a later one."""

    promise: bool
    promised: int
    reason: str = ""
    """A stable lower_case code when there is no promise: other_run, other_sites, later_attempt, behind,
    not_coordinator, already_committed, not_ready, leaving, quarantined, attempt_too_far, absurd_attempt."""
    accepted: Proposal | None = None
    """The model that this site has stored for the round."""
    committed: Proposal | None = None
    """With already_committed: the newest global model that this site knows to be committed."""
    update: ModelRef | None = None
    """This site's update for the round, if it has one."""
    waiting_for: str = ""
    """Why this site has no update yet: training, paused, failed, finished, not_ready …"""


@dataclass(frozen=True, slots=True)
class Fetch:
    """Ask the receiver to stream a file: its update for the round, or a global model that it has stored.

    With an empty hash and kind `global` the request asks which one is the newest committed; no stream
    follows. Kind `personal`: the receiver's personal model; with an empty hash the request asks which one it
    is. `run` and `sites` are the fingerprint of the contract then, round and attempt 0.
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
    not_coordinator, not_ready, leaving; of a personal model also private, private_part, private_network,
    partial_labels, no_personal, exchanges_nothing, contract_mismatch, quarantined."""
    model: ModelRef | None = None
    proposal: Proposal | None = None
    """The newest global model that the site knows to be committed; sent with an empty hash and with
    not_here."""


@dataclass(frozen=True, slots=True)
class Accept:
    """Ask to store this durably as the global model of its round, unless a later attempt was promised."""

    run: str
    sites: str
    proposal: Proposal


@dataclass(frozen=True, slots=True)
class AcceptReply:
    """`missing`: the file is not here yet; the site fetches it, and the coordinator asks again."""

    verdict: Literal["stored", "missing", "reject"]
    reason: str = ""
    """As in PrepareReply, and: too_few_contributors (one counted twice), too_large, other_model,
    beyond_budget."""
    promised: int = -1
    committed: Proposal | None = None
    """With already_committed: the newest global model that the site knows to be committed."""


@dataclass(frozen=True, slots=True)
class Commit:
    """Tell that a quorum has stored this model: it is the global model of its round."""

    run: str
    sites: str
    proposal: Proposal


@dataclass(frozen=True, slots=True)
class CommitReply:
    verdict: Literal["known", "reject"]
    reason: str = ""


@dataclass(frozen=True, slots=True)
class SwapOffer:
    """Ask for a swap. No model is sent yet."""

    terms: SwapTerms


@dataclass(frozen=True, slots=True)
class SwapOfferReply:
    """`terms`: with accept, the answering site's side of the swap."""

    verdict: Literal["accept", "busy", "reject"]
    reason: str = ""
    """A stable lower_case code when not accepted: busy, not_ready, paused, failed, finished, leaving,
    exchanges_nothing, contract_mismatch, quarantined, set_aside, warming_up, no_cases, cannot_dial,
    old_number, terms_mismatch, terms_forged; along a hypercube stage_over, other_list, other_numbering."""
    terms: SwapTerms | None = None


@dataclass(frozen=True, slots=True)
class SwapSnapshot:
    """Tell what the sender has exported for an open swap; either side sends it. Once accepted, the stream
    follows."""

    swap: ExchangeId
    model: ModelRef


@dataclass(frozen=True, slots=True)
class SwapSnapshotReply:
    """`here`: the file has come already. `wait`: the receiver does not know yet whether the swap is open."""

    verdict: Literal["accept", "here", "wait", "reject"]
    reason: str = ""
    """A stable lower_case code when rejected: no_such_swap, too_large, or a fault of the manifest."""


SwapStanding = Literal["open", "committed", "dropped"]
"""How a swap stands. `open`: not decided."""


@dataclass(frozen=True, slots=True)
class SwapReady:
    """The asker has admitted what it needs, and applies the swap if the receiver commits it. It is sent again
    until it is answered; the answer decides."""

    swap: ExchangeId


@dataclass(frozen=True, slots=True)
class SwapTold:
    """Tell how a swap stands for the sender. `open` only asks for the answer."""

    swap: ExchangeId
    standing: SwapStanding
    reason: str = ""


@dataclass(frozen=True, slots=True)
class SwapState:
    """How the swap stands for the answering site. A swap that it does not know is dropped."""

    standing: SwapStanding
    reason: str = ""


Request = (
    Hello
    | Ping
    | IndirectPing
    | Sync
    | Offer
    | Prepare
    | Fetch
    | Accept
    | Commit
    | SwapOffer
    | SwapSnapshot
    | SwapReady
    | SwapTold
)
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
    | SwapOfferReply
    | SwapSnapshotReply
    | SwapState
)
Body = Request | Reply
