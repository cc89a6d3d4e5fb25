"""What a node wants done. The shell does it, in order; what came of it returns as an event."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gossipseg.core import messages
from gossipseg.core.quarantine import PeerRecordSnapshot
from gossipseg.core.types import ModelKind, ModelRef, Proposal, Site


@dataclass(frozen=True, slots=True)
class Request:
    """Ask a site; the outcome is events.Reply(id) or events.RequestFailed(id)."""

    id: int
    to: Site
    body: messages.Request
    timeout_s: float


@dataclass(frozen=True, slots=True)
class Respond:
    """Answer events.Incoming(token)."""

    token: int
    body: messages.Reply


@dataclass(frozen=True, slots=True)
class StartTransfer:
    """Stream an accepted model; the outcome is events.TransferDone(id) or events.TransferFailed(id)."""

    id: int
    to: Site
    model: ModelRef


@dataclass(frozen=True, slots=True)
class InboxEntry:
    """A model that waits for its visit."""

    frm: Site
    model: ModelRef
    arrived_round: int
    """The receiver's round when it came; it is dropped when it has waited max_age_rounds."""


@dataclass(frozen=True, slots=True)
class SeenManifest:
    """The newest manifest accepted from a maker, of one kind."""

    maker: Site
    kind: ModelKind
    sequence: int
    round: int
    hash: str
    arrived: bool = False
    """Its model has come: of a model for gossip the same manifest is a replay from then on."""


@dataclass(frozen=True, slots=True)
class RoundsRecord:
    """What a site must remember of the rounds under a coordinator: fsynced before any word of it is given."""

    committed: Proposal | None = None
    """The newest global model known to be committed; its file is kept."""
    promised_round: int = 1
    promised_attempt: int = -1
    """No attempt below this one of that round is listened to."""
    promised_sites: str = ""
    """The list of sites that it was promised under; "" of an older version."""
    accepted: Proposal | None = None
    """What is stored for the round after the committed one; its file is kept."""
    update_round: int = 0
    update: ModelRef | None = None
    """This site's update for that round."""
    base_round: int = 0
    """This site's own rounds behind it when it began to work towards the next global model."""
    run: str = ""
    """Federation, contract and run number that all of this belongs to."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All a node must remember across a crash. Small: it is written whole each time."""

    incarnation: int = 0
    round: int = 0
    steps: int = 0
    inbox: tuple[InboxEntry, ...] = ()
    paused: bool = False
    counters: tuple[tuple[str, Site, int], ...] = ()
    """(what, site, how often): models sent, received, merged, … so that counts outlive a restart."""
    rounds: RoundsRecord | None = None
    sequence: int = 0
    """The last number that this site has signed a manifest with."""
    seen: tuple[SeenManifest, ...] = ()
    conduct: tuple[PeerRecordSnapshot, ...] = ()


@dataclass(frozen=True, slots=True)
class Persist:
    """Put the snapshot on disk (fsync) before any later effect of the same step runs."""

    snapshot: Snapshot


@dataclass(frozen=True, slots=True)
class StartRound:
    """Let the worker run a round: with the visiting model if one is given, else alone."""

    round: int
    visit: InboxEntry | None
    export: bool
    """Write the wire model at the end: this site is a sender this round."""
    start_from: ModelRef | None = None
    """The global model to begin with; None: from the weights as they are."""
    settling_in: bool = False
    """The first round of a site that joined after the others had begun."""
    finetuning: bool = False
    """One of the last rounds, trained alone."""
    ahead: int = 0
    """Under a coordinator: rounds by which the federation is ahead of `round`. In gossip the worker tells."""


@dataclass(frozen=True, slots=True)
class Aggregate:
    """Let the worker make the global model of a round; the outcome is events.Aggregated or
    AggregationFailed. A later one replaces it."""

    round: int
    attempt: int
    updates: tuple[tuple[Site, ModelRef], ...]


@dataclass(frozen=True, slots=True)
class Finished:
    """The training budget is used up."""


@dataclass(frozen=True, slots=True)
class Note:
    """Something worth the event log, under a stable name; the shell logs it as it is and adds no second.

    Membership: member_alive, member_suspect, member_dead, member_left, peer_refused, duplicate_site, left,
    lists_differ (another site's peers.yaml has other sites or keys).
    Exchange: offer_sent, offer_accepted, offer_busy, offer_rejected, offer_in_accepted, offer_in_busy,
    offer_in_rejected, transfer_done, transfer_failed, model_arrived, model_broken, model_dropped.
    Rounds: visit_merged, visit_refused, visit_held, visit_kept_out, visit_reverted, finished, paused,
    resumed.
    Coordinator: round_led (an attempt begins here), round_passed (to the next attempt, with the reason),
    round_committed (contributors and absent in `detail`), round_alone (this site trains on without the
    others), update_refused (this site's update, with the reason), round_refused (a message of another run
    or list of sites), rounds_forgotten (what was remembered belongs to another run).
    Quarantine: offence (what a peer sent was refused for cause), peer_quarantined, quarantine_over,
    quarantine_lifted.
    Anything else: dropped_event. Exchange notes carry hash, bytes and round in `detail`.
    """

    event: str
    site: Site | None = None
    reason: str = ""
    detail: Mapping[str, Any] = field(default_factory=dict)


Effect = Request | Respond | StartTransfer | Persist | StartRound | Aggregate | Finished | Note
