"""What a node wants done. The shell carries the effects out in order; outcomes return as events."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from gossipseg.core import messages
from gossipseg.core.quarantine import PeerRecordSnapshot
from gossipseg.core.types import ExchangeId, ModelKind, ModelRef, Proposal, Site


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
    """The receiver's round when the model came; it is dropped after waiting max_age_rounds."""


@dataclass(frozen=True, slots=True)
class SeenManifest:
    """The newest manifest accepted from a maker, of one kind."""

    maker: Site
    kind: ModelKind
    sequence: int
    round: int
    hash: str
    arrived: bool = False
    """Whether its model has come. From then on the same manifest of a model for gossip is a replay."""


@dataclass(frozen=True, slots=True)
class RoundsRecord:
    """What a site must remember of the rounds under a coordinator. It is fsynced before any answer depends on
    it."""

    committed: Proposal | None = None
    """The newest global model known to be committed; its file is kept."""
    promised_round: int = 1
    promised_attempt: int = -1
    """Lowest attempt of that round that this site still accepts."""
    promised_sites: str = ""
    """Key of the list of sites that the promise was made under; "" from an older version."""
    accepted: Proposal | None = None
    """The model stored for the round after the committed one; its file is kept."""
    update_round: int = 0
    update: ModelRef | None = None
    """This site's update for that round."""
    base_round: int = 0
    """This site's own rounds when it began to work towards the next global model."""
    run: str = ""
    """Federation, contract and run number of all the above."""


@dataclass(frozen=True, slots=True)
class SwapSeen:
    """The newest swap that a site has asked this one for, and how it stands."""

    asker: Site
    number: int
    standing: Literal["open", "committed", "dropped"]
    """After a restart `open` counts as dropped: the site that was asked has not committed it."""


SwapPart = Literal["mix", "copy", "keep"]
"""What a swap does to a site's model. `mix`: w of the difference is added. `copy`: the partner's model takes
its place. `keep`: nothing."""


@dataclass(frozen=True, slots=True)
class BoundSwap:
    """A swap that a crash must not undo: committed here, or in doubt."""

    swap: ExchangeId
    partner: Site
    part: SwapPart
    weight: float
    own: ModelRef | None
    theirs: ModelRef | None
    committed: bool
    """False: this site asked, is ready, and does not know whether the other one committed."""


@dataclass(frozen=True, slots=True)
class SwapRecord:
    """What a site must remember of its swaps. It is fsynced before any message depends on it."""

    number: int = 0
    """The last number with which this site has asked for a swap."""
    seen: tuple[SwapSeen, ...] = ()
    bound: BoundSwap | None = None
    aside: tuple[tuple[Site, int], ...] = ()
    """Sites that are set aside, and the own round until which."""
    last: int = 0
    """The federation's round at whose end the last exchange that was made was due, or for which it was
    made."""


@dataclass(frozen=True, slots=True)
class PersonalRecord:
    """What a site must remember of personal models that travel; all these files are kept."""

    own: ModelRef | None = None
    """This site's own, as it is served."""
    held: tuple[tuple[Site, ModelRef], ...] = ()
    """Other sites', the oldest first."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All a node must remember across a crash. It is small: each save writes it whole."""

    incarnation: int = 0
    round: int = 0
    steps: int = 0
    inbox: tuple[InboxEntry, ...] = ()
    paused: bool = False
    counters: tuple[tuple[str, Site, int], ...] = ()
    """(what, site, count) of models sent, received, merged, … so that counts survive a restart."""
    rounds: RoundsRecord | None = None
    sequence: int = 0
    """The last number with which this site has signed a manifest."""
    seen: tuple[SeenManifest, ...] = ()
    conduct: tuple[PeerRecordSnapshot, ...] = ()
    swaps: SwapRecord | None = None
    personal: PersonalRecord | None = None


@dataclass(frozen=True, slots=True)
class Persist:
    """Put the snapshot on disk (fsync) before any later effect of the same step runs."""

    snapshot: Snapshot


@dataclass(frozen=True, slots=True)
class StartRound:
    """Let the worker run a round, with the visiting model if one is given, else alone."""

    round: int
    visit: InboxEntry | None
    export: bool
    """Whether to write the wire model at the end, because this site is a sender this round."""
    start_from: ModelRef | None = None
    """The global model to begin with; None: keep the present weights."""
    settling_in: bool = False
    """Whether this is the first round of a site that joined after the others had begun."""
    finetuning: bool = False
    """Whether this is one of the last rounds, trained alone."""
    ahead: int = 0
    """Under a coordinator: rounds by which the federation is ahead of `round`. In gossip the worker reports
    it."""


@dataclass(frozen=True, slots=True)
class Aggregate:
    """Let the worker make the global model of a round; the outcome is events.Aggregated or AggregationFailed.
    A later order replaces an earlier one."""

    round: int
    attempt: int
    updates: tuple[tuple[Site, ModelRef], ...]


@dataclass(frozen=True, slots=True)
class ExportSnapshot:
    """Let the worker write its shared model as it is now, at the next step's end or while idle. The outcome
    is events.SnapshotExported. After a restart of the worker the order may come again."""

    swap: ExchangeId
    keeps: bool = False
    """Whether this site gives the snapshot and applies nothing."""


@dataclass(frozen=True, slots=True)
class AdmitSnapshot:
    """Let the worker check the partner's snapshot; the outcome is events.SnapshotAdmitted."""

    swap: ExchangeId
    frm: Site
    model: ModelRef


@dataclass(frozen=True, slots=True)
class ApplySwap:
    """Let the worker apply a swap at its next step's end, or while idle.

    `mix`: T += weight·(theirs − own), both as they went over the wire. `copy`: T = theirs, with its round.
    The worker writes a checkpoint that names the swap, and then reports events.SwapApplied. It never applies
    the swap that its checkpoint names.
    """

    swap: ExchangeId
    frm: Site
    part: Literal["mix", "copy"]
    weight: float
    """w_j, the share of the partner's model; 1 for a copy."""
    theirs: ModelRef
    own: ModelRef | None
    """The own snapshot; None for a copy."""
    gave: bool = False
    """Whether the partner got it; False where a restart has forgotten."""


@dataclass(frozen=True, slots=True)
class ExportPersonal:
    """Let the worker write its personal model, between two rounds or while idle. The outcome is
    events.PersonalExported."""


@dataclass(frozen=True, slots=True)
class HoldPersonal:
    """Tell the worker which peers' personal models may predict here: all of them, the oldest first. It lets
    go of others. The outcome is events.PersonalHeld."""

    models: tuple[tuple[Site, ModelRef], ...]


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
    Swaps: swap_asked, swap_refused (by the other side, with the reason), swap_in_refused, swap_opened,
    swap_committed, swap_applied, swap_dropped, swap_in_doubt (dropped without knowing the outcome),
    swap_lost (committed, and the worker could not apply it), peer_harmful, peer_set_aside.
    A snapshot that the worker refuses is a visit_refused, too.
    Personal models: personal_sent, personal_not_sent, personal_received, personal_declined (the site never
    sends one, with the reason), personal_refused (a received one, with the reason), personal_not_exported.
    Rounds: visit_merged, visit_refused, visit_kept_out, visit_reverted, finished, paused,
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


Effect = (
    Request
    | Respond
    | StartTransfer
    | Persist
    | StartRound
    | Aggregate
    | ExportSnapshot
    | AdmitSnapshot
    | ApplySwap
    | ExportPersonal
    | HoldPersonal
    | Finished
    | Note
)
